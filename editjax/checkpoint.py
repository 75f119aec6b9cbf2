"""A training run's state on disk: numbered checkpoints, each whole or absent. Orbax is hidden here.

A checkpoint is written under a temporary name, sealed with a manifest (`manifest`: Orbax has no checksum over
the values of arrays), read back against it, and only then renamed to its number; the ones it replaces are
renamed and deleted after that. So a process killed at any moment leaves the last whole checkpoint in place,
and what the medium changes later is found: nothing is read before all files of a checkpoint were verified.

Of several processes each writes its part; the first does all else (it seals, hashes, renames, deletes) and
tells the others. What one cannot do ends all of them, and all go back to the same step.
"""

import contextlib
import logging
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from editjax import cluster
from editjax.errors import DataError, EditjaxError, InputOutputError, NoInputError, first_line
from editjax.manifest import MANIFEST, check, refuse_links, seal, to_disk
from editjax.mesh import tree_path

SEALED = "editjax.sealed"  # in the notes of a checkpoint that has a manifest: without it, it was lost
NEW, OLD = ".new-", ".old-"  # what is not yet a checkpoint, and what is one no more
UNFINISHED = (f"{NEW}*", "*.orbax-checkpoint-tmp*")
Parts = dict[str, Any]  # name → tree of arrays; each part can be restored without the others
FAILURES = (OSError, ValueError, KeyError, TypeError, RuntimeError)
"""What Orbax and TensorStore raise for a full disk (ValueError!), a damaged or a missing file."""


class Checkpoints:
    """The checkpoints of one folder.

    The `keep` newest are kept, and besides them every one whose step divides by `keep_every` (0: none). A
    reader says `writable=False`, so that nothing of a run still going on is cleaned away. A writer's `guard`
    raises where the folder is its own no more; it is asked before anything changes.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 2,
        keep_every: int = 0,
        writable: bool = True,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = Path(folder).absolute()
        self._keep, self._keep_every, self._guard = keep, keep_every, guard
        self._verified: set[int] = set()
        self._moves = writable and cluster.is_first()  # of all processes, only the first moves folders
        if writable:
            cluster.from_first(self._begin)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Left in good order, what was set aside is needed no more."""
        if kind is None and self._moves:
            self._delete_old()

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, whole or damaged, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, whole or damaged."""
        return max(self.steps, default=None)

    def newest_whole(self, *, required: bool = True) -> int | None:
        """Step of the newest checkpoint that is as it was written; None where there are none.

        Newer ones that are damaged are named on stderr. DataError when all are, if one is `required`.
        """
        whole = cluster.from_first(lambda: self._newest_whole(required))
        if whole is not None:
            self._verified.add(whole)
        return whole

    def _newest_whole(self, required: bool) -> int | None:
        damaged: dict[int, str] = {}
        whole = None
        # Listed anew each time: a trainer may have put a newer one in place of the one just looked at.
        while whole is None and (steps := [step for step in self.steps if step not in damaged]):
            try:
                self._verify(steps[-1])
                whole = steps[-1]
            except EditjaxError as error:
                damaged[steps[-1]] = str(error)
        if damaged and whole is None and required:
            problems = "; ".join(damaged.values())
            raise DataError(f"{problems}; none here is whole: copy one back or begin in a new folder")
        for problem in damaged.values():
            print(f"{problem}: passed over", file=sys.stderr)
        return whole

    def save(self, step: int, parts: Parts, notes: dict[str, Any]) -> None:
        """Write `parts` and `notes` (JSON) as checkpoint `step`, and wait until it is whole and verified.

        InputOutputError when it cannot be written; the checkpoints before it then still stand. Where one of
        several processes cannot write its part, the others lose it: TryAgainError.
        """
        new, final = self.folder / f"{NEW}{step}", self.folder / str(step)

        def write() -> None:
            with _without_tracebacks():
                ocp.save_checkpointables(new, parts, custom_metadata={**notes, SEALED: True})

        def put_in_place() -> None:
            seal(new, step)
            check(new, step)
            self._guard()
            if final.exists():
                self._retire(step)
            new.rename(final)
            to_disk(self.folder)

        cluster.together(self._guard)
        # An error here is not told to the others: they may be in Orbax, waiting for this process, and cannot
        # listen. It ends, and by that they know.
        self._attempt(write, step)
        cluster.from_first(lambda: self._attempt(put_in_place, step))
        cluster.from_first(self._replace_old)
        self._verified.add(step)

    def _begin(self) -> None:
        """The folder, without what a killed process left in it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for pattern in UNFINISHED:
                for path in self.folder.glob(pattern):
                    shutil.rmtree(path)
        except OSError as error:
            raise InputOutputError(f"{self.folder}: not writable ({error.strerror})") from error

    def _attempt(self, do: Callable[[], None], step: int) -> None:
        """Part of a save; what goes wrong leaves nothing of it."""
        try:
            do()
        except (*FAILURES, DataError, NoInputError) as error:
            if cluster.is_lost(error):
                raise
            self._guard()  # files that went with the folder say less than where it went
            for path in self.folder.glob(f"{NEW}{step}*"):
                shutil.rmtree(path, ignore_errors=True)
            raise InputOutputError(
                f"{self.folder / str(step)}: not written ({_reason(error)}); those before it stand"
            ) from error

    def notes(self, step: int) -> dict[str, Any]:
        """The JSON saved with checkpoint `step`; DataError when it is damaged."""
        return cluster.from_first(lambda: self._notes(step))

    def restore(self, step: int, abstract_parts: Parts) -> Parts:
        """Parts of checkpoint `step`, laid out like `abstract_parts`: trees of `jax.ShapeDtypeStruct`.

        DataError when it is damaged, or a part, a name or a shape is not what was saved.
        """
        cluster.together(lambda: self._refuse_misfit(step, abstract_parts))
        try:  # not told to the others either, see `save`
            return ocp.load_checkpointables(self.folder / str(step), abstract_parts)
        except FAILURES as error:
            if cluster.is_lost(error):
                raise
            raise DataError(
                f"{self.folder}/{step}: damaged ({_reason(error)}); delete it to use an older one"
            ) from error

    def _notes(self, step: int) -> dict[str, Any]:
        self._verify(step)
        notes = self._metadata(step).custom_metadata
        if not isinstance(notes, dict):
            raise DataError(f"{self.folder}/{step}: has no settings; delete it to use an older one")
        return {name: value for name, value in notes.items() if name != SEALED}

    def _refuse_misfit(self, step: int, abstract_parts: Parts) -> None:
        self._verify(step)
        saved = self._metadata(step).metadata
        for name, part in abstract_parts.items():
            if problem := _misfit(saved.get(name), part):
                raise DataError(f"{self.folder}/{step}: {name}/{problem}: made by another version or config")

    def drop_after(self, step: int) -> None:
        """Set the checkpoints of later steps aside: a run resumed at `step` will make them again.

        They are deleted when the next one has been saved, or at the end.
        """
        cluster.together(self._guard)
        cluster.from_first(lambda: self._drop_after(step))

    def _drop_after(self, step: int) -> None:
        for later in self.steps:
            if later > step:
                self._retire(later)

    def _verify(self, step: int) -> None:
        """DataError or NoInputError, naming the file, unless a checkpoint is as it was written; once each."""
        if step in self._verified:
            return
        path = self.folder / str(step)
        refuse_links(path)
        if (path / MANIFEST).exists():
            check(path, step)
        elif not isinstance(notes := self._metadata(step).custom_metadata, dict) or SEALED in notes:
            raise DataError(f"{path / MANIFEST}: missing")
        else:
            print(f"{path}: of an older editjax, without a manifest: taken unverified", file=sys.stderr)
        self._verified.add(step)

    def _metadata(self, step: int) -> Any:
        try:
            return ocp.checkpointables_metadata(self.folder / str(step))
        except FAILURES as error:
            raise DataError(f"{self.folder}/{step}: damaged ({_reason(error)})") from error

    def _replace_old(self) -> None:
        """What the newest checkpoint replaces is renamed, then deleted: no number is ever half there."""
        for step in self.steps[: -self._keep]:
            if not self._keep_every or step % self._keep_every:
                self._retire(step)
        self._delete_old()

    def _delete_old(self) -> None:
        for path in self.folder.glob(f"{OLD}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _retire(self, step: int) -> None:
        self._verified.discard(step)
        (self.folder / str(step)).rename(self.folder / f"{OLD}{step}-{secrets.token_hex(4)}")


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `tree` with a sharding for each leaf: what `restore` wants."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Orbax logs the traceback of each of its threads before it raises: pages of it for one full disk."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    return (getattr(error, "strerror", None) or first_line(error))[:300]


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
