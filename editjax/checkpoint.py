"""A training run's state on disk: numbered checkpoints, each whole or absent. Orbax is hidden here.

A checkpoint is written under a temporary name and renamed when complete, and the ones it replaces are removed
only after that; so a process killed at any moment leaves the last whole checkpoint in place.
"""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from editjax.errors import DataError, InputOutputError
from editjax.mesh import tree_path

METADATA = "_CHECKPOINT_METADATA"  # Orbax's own name
Parts = dict[str, Any]  # name → tree of arrays; each part can be restored without the others


class Checkpoints:
    """The checkpoints of one folder; a context manager that finishes pending work on leaving.

    The `keep` newest are kept, and besides them every one whose step divides by `keep_every` (0: none). A
    reader says `writable=False`, so that nothing of a run still going on is cleaned away.
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 2, keep_every: int = 0, writable: bool = True
    ) -> None:
        self.folder = Path(folder).absolute()
        policies = ocp.training.preservation_policies
        preserve = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(preserve),
                cleanup_tmp_directories=writable,
            )
        except OSError as error:
            raise InputOutputError(f"{self.folder}: not writable ({error.strerror})") from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; what is left of one whose removal was cut short is passed over."""
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        return max((step for step in steps if (self.folder / str(step) / METADATA).exists()), default=None)

    def save(self, step: int, parts: Parts, notes: dict[str, Any]) -> None:
        """Write `parts` and `notes` (JSON) as checkpoint `step`, and wait until it is whole.

        InputOutputError when it cannot be written; the checkpoints before it then still stand.
        """
        try:
            self._checkpointer.save_checkpointables(step, parts, custom_metadata=notes)
        except OSError as error:
            raise InputOutputError(f"{self.folder}/{step}: not written ({error.strerror})") from error

    def notes(self, step: int) -> dict[str, Any]:
        """The JSON saved with checkpoint `step`."""
        notes = self._checkpointer.checkpointables_metadata(step).custom_metadata
        if not isinstance(notes, dict):
            raise DataError(f"{self.folder}/{step}: has no settings; delete it to use an older one")
        return notes

    def restore(self, step: int, abstract_parts: Parts) -> Parts:
        """Parts of checkpoint `step`, laid out like `abstract_parts`: trees of `jax.ShapeDtypeStruct`.

        DataError when a part, a name or a shape is not what was saved.
        """
        saved = self._checkpointer.checkpointables_metadata(step).metadata
        for name, part in abstract_parts.items():
            if problem := _misfit(saved.get(name), part):
                raise DataError(f"{self.folder}/{step}: {name}/{problem}: made by another version or config")
        try:
            return self._checkpointer.load_checkpointables(step, abstract_parts)
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise DataError(
                f"{self.folder}/{step}: damaged ({reason}); delete it to use an older one"
            ) from error

    def drop_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: a run resumed at `step` will make them again."""
        for checkpoint in self._checkpointer.checkpoints:
            if checkpoint.step > step:
                self._checkpointer.delete(checkpoint.step)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `tree` with a sharding for each leaf: what `restore` wants."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _misfit(saved: Any, wanted: Any) -> str | None:
    """The first array whose name or shape differs, or None."""
    there, here = (
        {tree_path(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (saved, wanted)
    )
    for name in sorted(there | here):
        if there.get(name) != here.get(name):
            return f"{name} has shape {there.get(name, 'none')}, wanted {here.get(name, 'none')}"
    return None
