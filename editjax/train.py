"""Settings and batches → a trained run, of every model family, resumable bit for bit.

    devices → mesh → state made inside jit → (resume) → update · validate · save, until the last step

What a step does is a pure function of the state, the batch and the step's number, so a run killed at any
moment and started again with the same command ends with the parameters of the run that was never killed.
"""

import contextlib
import functools
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from editjax import cluster
from editjax.array_records import MANIFEST, write_json
from editjax.badput import Badput
from editjax.bundle import find_bundle, read_config
from editjax.checkpoint import Checkpoints, abstract
from editjax.config import first_difference, load_config, override, to_json
from editjax.errors import CannotCreateError, DataError, UsageError
from editjax.export import load_bundle
from editjax.family import Family, family_of
from editjax.feed import feed_of
from editjax.files import sha256_of
from editjax.flops import Counted
from editjax.interruption import Interruption
from editjax.journal import Journal, Rows
from editjax.lock import RunLock, read_record
from editjax.mesh import REPLICATED, make_mesh, place_batch, share_of_examples, state_shardings
from editjax.ppo import Frozen
from editjax.step import TrainConfig, TrainState, compiled_update, init_state
from editjax.warm_start import begin_from

MAY_CHANGE = (
    "validate_every",
    "checkpoint_every",
    "keep_every",
    "patience",
    "mesh",
    "threads",
    "prefetch_batches",
)
"""Settings without a say in the result: a run may go on with others."""

ORIGINS = ("shards", "start_from", "frozen_model")
"""What a run learns from, is begun from, and learns with: it goes on with those alone."""

SHARED_S = 60.0
"""Until what one host wrote is seen by the others: NFS remembers for so long that it was not there."""


class Batches(Protocol):
    """An endless stream of NamedTuples of host arrays whose position is a small JSON value."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


Validate = Callable[[Any], dict[str, float]]  # params → figures; the highest "score" is the best checkpoint
Scores = dict[str, float | None]  # figures as they are saved: None where one was not finite


def train(
    config: TrainConfig,
    batches: Batches,
    run_dir: str | Path,
    *,
    validate: Validate | None = None,
    family: Family | None = None,
    origin: dict[str, Any] | None = None,
    first_params: Any = None,
    takeover: bool = False,
    wandb: str | None = None,
) -> TrainState:
    """Train, or go on training, in `run_dir`, and return the final state.

    A new run begins with `first_params`, or fresh ones. `origin` (JSON: command, shards and their digest) is
    saved with every checkpoint. Raises UsageError when the run was begun with other settings, DataError when
    updates stay non-finite, TryAgainError after SIGTERM and KeyboardInterrupt after SIGINT, all three with
    everything saved; CannotCreateError when another trainer is at work in `run_dir` (`takeover` takes it
    away) or it was moved; DataError when none of its checkpoints is whole. `wandb` is a project of
    Weights & Biases that is told too.

    Several processes (`cluster`) each call this with their share of the batches, and all end alike, but where
    one cannot read or write its part of a checkpoint: InputOutputError there, TryAgainError at the others.
    """
    spent = Badput()
    family = family or family_of(config.model, config.loss)
    run_dir = Path(run_dir).absolute()
    cluster.together(lambda: _make_folder(run_dir))
    mesh, key = make_mesh(config.mesh), jax.random.key(config.seed)
    init = functools.partial(init_state, config, family)
    shapes = jax.eval_shape(init, key)
    layout = state_shardings(shapes, mesh, family.rules)
    frozen = _frozen(config, family, mesh)
    advance = Counted(compiled_update(config, family, layout, frozen.settings), spent)
    notes = {"family": family.name, "config": to_json(config), "origin": origin or {}}
    with (
        jax.set_mesh(mesh),
        _locked(run_dir, takeover) as lock,
        Checkpoints(run_dir / "last", keep_every=config.keep_every, guard=lock.check) as last,
        Checkpoints(run_dir / "best", keep=1, guard=lock.check) as best,
        Interruption() as interruption,
    ):
        if (begun := last.newest_whole()) is None:
            given = jax.tree.map(np.asarray, first_params)
            state, scores = jax.jit(init, out_shardings=layout)(key, given), None
        else:
            state, scores = _resume(last, begun, abstract(shapes, layout), notes, batches)
        step, steps = int(state.step), config.optim.steps
        last.drop_after(step)
        _drop_misled(best, step)
        cluster.from_first(lambda: write_json(run_dir / "config.json", notes))
        signals = cluster.Largest()
        with (
            Journal(run_dir, step, wandb) as journal,
            Rows(journal, step, steps, config.max_skipped, spent) as rows,
        ):
            spent.turn_to("other")
            while True:
                cut = False
                if validate and scores is None and _due(step, config.validate_every, steps):
                    with spent.on("validation"):
                        scores = _validate(validate, state, rows, interruption, mesh)
                    cut = scores is None
                    lock.stepped(step)
                with spent.on("save"):
                    if scores and _score(scores) > _best_score(best):
                        _save(best, state, batches, notes, scores)
                # Asked once: nothing may arrive after the save.
                stopping = signals.ask(interruption.signal or 0, now=cut)
                if scores or stopping or rows.hopeless or _due(step, config.checkpoint_every, steps):
                    rows.flush()
                    with spent.on("save"):
                        _save(last, state, batches, notes, scores)
                    rows.write_badput()
                if rows.hopeless:
                    raise DataError(f"{rows.hopeless}; step {step}, with the last good state, is saved")
                if stopping:
                    interruption.obey(stopping, f"stopped at step {step}, saved in {run_dir}")
                if step >= steps or (scores and _no_better(config, step, best)):
                    return state
                began = spent.now()
                with spent.on("data"):
                    batch = next(batches)
                waited_s = spent.now() - began
                placed = place_batch(batch, mesh)
                state, metrics = advance(state, placed, key, frozen.params)
                step, scores = step + 1, None
                lock.stepped(step)
                rows.add(step, metrics, batch, placed, began, waited_s, advance.call)


def train_command(
    config_path: str | Path,
    data: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    make_validate: Callable[[TrainConfig, Path], Validate] | None = None,
    start_from: str | Path | None = None,
    command: Sequence[str] = (),
    takeover: bool = False,
    wandb: str | None = None,
) -> TrainState:
    """`editjax train CONFIG --data SHARDS --out RUN [--start-from MODEL] [--optim.steps 100 …]`.

    `make_validate(config, shards_dir)` gives the function that scores parameters, by decoding freely.
    `start_from` is a bundled model or a model folder whose parameters the run begins with. `command` is noted
    in every checkpoint; `takeover` and `wandb` are those of `train`.
    """
    config, data = override(load_config(config_path), overrides), Path(data)
    family = family_of(config.model, config.loss)
    if family.goes_on and not start_from:
        raise UsageError(f"{config_path}: goes on from a trained model; add --start-from MODEL")
    feed = feed_of(config, data)
    feed.check(config, str(config_path))
    first_params, began = begin_from(start_from, config) if start_from else (None, {})
    origin = {
        "command": shlex.join(["editjax", "train", *command]),
        **began,
        "shards": str(data),
        "shards_sha256": sha256_of(data / MANIFEST),
        **feed.facts,
    }
    if family.frozen:
        origin["frozen_model_sha256"] = read_config(find_bundle(family.frozen(config)))["sha256"]
    validate = make_validate(config, data) if make_validate else None
    share, shares = share_of_examples(make_mesh(config.mesh))
    stream = feed.batches(data, config.data, process_index=share, process_count=shares)
    with contextlib.closing(stream):
        return train(
            config,
            stream,
            out,
            validate=validate,
            origin=origin,
            first_params=first_params,
            takeover=takeover,
            wandb=wandb,
        )


@contextlib.contextmanager
def _locked(run_dir: Path, takeover: bool) -> Iterator[RunLock]:
    """The locks of all processes of the job, which must see the same folder."""
    rank = jax.process_index()
    with contextlib.ExitStack() as stack:
        lock = cluster.together(lambda: stack.enter_context(RunLock(run_dir, rank=rank, takeover=takeover)))
        first = cluster.from_first(lambda: read_record(lock.path)) or {}

        def sees_first() -> bool:
            seen = read_record(run_dir / "trainer-0.lock") or {}
            return all(seen.get(name) == first.get(name) for name in ("host", "pid"))

        def look() -> None:
            until = time.monotonic() + SHARED_S
            while not sees_first():
                if time.monotonic() > until:
                    raise UsageError(
                        f"{run_dir}: process {rank} sees nothing of process 0 there: share the folder"
                    )
                time.sleep(1)

        def clean() -> None:
            for path in run_dir.glob("trainer-*.lock"):  # of a job that had more processes
                if int(path.stem.split("-")[1]) >= jax.process_count():
                    path.unlink(missing_ok=True)

        cluster.together(look)
        cluster.from_first(clean)
        yield lock


def _frozen(config: TrainConfig, family: Family, mesh: Any) -> Frozen:
    """The model that learning needs besides, on every device; without any nothing."""
    if family.frozen is None:
        return Frozen(None, None)
    bundle = load_bundle(family.frozen(config))
    return Frozen(bundle.settings, jax.device_put(bundle.params, NamedSharding(mesh, REPLICATED)))


def _resume(
    last: Checkpoints, step: int, shapes: TrainState, notes: dict[str, Any], batches: Batches
) -> tuple[TrainState, Scores | None]:
    """The state of a step, and the scores if it was validated; `batches` is set to follow it."""
    saved = last.notes(step)
    if name := first_difference(_decisive(saved), _decisive(notes)):
        raise UsageError(f"{last.folder.parent}: begun with another {name}; use that or a new folder")
    state = TrainState(**{"ema_params": None, **last.restore(step, _parts(shapes))})
    batches.set_state(saved["data"])
    cluster.say(f"going on from step {step} of {last.folder.parent}")
    return state, saved["scores"]


def _drop_misled(best: Checkpoints, step: int) -> None:
    """Forget a best checkpoint that is damaged, or of a step to be made again: validation finds another."""
    whole = best.newest_whole(required=False)
    best.drop_after(-1 if whole is None else min(whole, step))


def _decisive(notes: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to go on as if it had never stopped."""

    def kept(settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        return {name: kept(value) for name, value in settings.items() if name not in MAY_CHANGE}

    begun = {name: notes["origin"].get(f"{name}_sha256") for name in ORIGINS}
    return {"family": notes["family"], **kept(notes["config"]), **begun}


def _validate(
    validate: Validate, state: TrainState, rows: Rows, interruption: Interruption, mesh: Any
) -> Scores | None:
    """Figures of the state's parameters, averaged where they are; None if a signal cut it short.

    Every process of several finds them by itself, on a copy of its own; those of the first are taken.
    """
    params = state.params if state.ema_params is None else state.ema_params
    rows.flush()
    with contextlib.ExitStack() as stack:
        if not cluster.alone():
            here = make_mesh(devices=jax.local_devices()[:1])
            copied = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, REPLICATED))(params)
            params = jax.tree.map(lambda a: a.addressable_data(0), copied)
            stack.enter_context(jax.set_mesh(here))
        scores = interruption.cuttable(lambda: validate(params))
    told = cluster.from_all(scores and {name: float(value) for name, value in scores.items()})
    scores = told[0]
    if scores is None or None in told:
        return None
    rows.write_scores(int(state.step), scores)
    return {name: value if math.isfinite(value) else None for name, value in scores.items()}


def _save(
    checkpoints: Checkpoints,
    state: TrainState,
    batches: Batches,
    notes: dict[str, Any],
    scores: Scores | None,
) -> None:
    step = int(state.step)
    if cluster.from_first(lambda: checkpoints.latest_step) != step:
        checkpoints.save(step, _parts(state), {**notes, "data": batches.get_state(), "scores": scores})


def _parts(state: TrainState) -> dict[str, Any]:
    return {name: part for name, part in state._asdict().items() if part is not None}


def _score(scores: Scores) -> float:
    return -math.inf if scores["score"] is None else scores["score"]


def _best_score(best: Checkpoints) -> float:
    step = cluster.from_first(lambda: best.latest_step)
    return -math.inf if step is None else _score(best.notes(step)["scores"])


def _no_better(config: TrainConfig, step: int, best: Checkpoints) -> bool:
    """Whether the last `patience` validations found nothing better than the one before them."""
    since = cluster.from_first(lambda: best.latest_step)
    return bool(config.patience) and step - (since or 0) >= config.patience * config.validate_every


def _due(step: int, every: int, last: int) -> bool:
    return step > 0 and (step == last or (every > 0 and step % every == 0))


def _make_folder(run_dir: Path) -> Path:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{run_dir}: cannot make this folder ({error.strerror})") from error
    return run_dir
