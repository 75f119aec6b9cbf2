"""Settings and batches → a trained run: one step for every model family, resumable bit for bit.

    devices → mesh → state made inside jit → (resume) → update · validate · save, until the last step

What a step does is a pure function of the state, the batch and the step's number, so a run killed at any
moment and started again with the same command ends with the parameters of the run that was never killed.
"""

import contextlib
import functools
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from editjax.bundle import flatten, unflatten
from editjax.checkpoint import Checkpoints, abstract
from editjax.config import first_difference, load_config, override, to_json
from editjax.data import DataSettings
from editjax.data import batches as read_batches
from editjax.errors import CannotCreateError, UsageError
from editjax.export import load_bundle, refuse_misfit
from editjax.family import Family, family_of
from editjax.files import sha256_of
from editjax.interruption import Interruption
from editjax.journal import Journal, Rows
from editjax.losses import LossSettings
from editjax.mesh import REPLICATED, MeshSettings, make_mesh, place_batch, state_shardings
from editjax.models.autoencoder import ScorerSettings
from editjax.models.layers import RUNNING
from editjax.models.pointer import PointerSettings
from editjax.models.policy import PolicySettings
from editjax.models.reconstruct import ReconstructSettings
from editjax.optim import OptimSettings, keep_if, make_optimizer, make_schedule
from editjax.policy_loss import PolicyLossSettings, PolicyPpoSettings
from editjax.ppo import Frozen, Learner
from editjax.reconstruct_loss import ReconstructLossSettings
from editjax.scorer_loss import ScorerLossSettings
from editjax.shards import MANIFEST, read_manifest, write_json
from editjax.styles import STYLES
from editjax.tune import TuneSettings

MAY_CHANGE = ("validate_every", "checkpoint_every", "keep_every", "mesh", "threads", "prefetch_batches")
"""Settings without a say in the result: a run may go on with others."""

NO_SHAPE = ("dtype", "attention", "match_reach")
"""Settings of a model that its parameters do not depend on."""

GROWN = ("stem_width", "kinds")
"""Parts that change no edit while they are fresh: a model without one may grow it."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's result, except the shards. `optim.steps` is its length.

    `ema_decay` averages the parameters for validation and export (0: use them as they are). After
    `max_skipped` updates in a row without a finite loss and gradient the run stops.
    """

    model: PointerSettings | ScorerSettings | ReconstructSettings | PolicySettings = field(
        default_factory=PointerSettings
    )
    loss: (
        LossSettings
        | ScorerLossSettings
        | ReconstructLossSettings
        | PolicyLossSettings
        | PolicyPpoSettings
        | TuneSettings
    ) = field(default_factory=LossSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    seed: int = 0
    ema_decay: float = 0.0
    max_skipped: int = 10
    validate_every: int = 500
    checkpoint_every: int = 100
    keep_every: int = 0


class TrainState(NamedTuple):
    step: jax.Array  # batches consumed
    params: Any
    opt_state: Any
    ema_params: Any  # None without ema_decay
    skipped: jax.Array  # updates refused since the last good one
    total_skipped: jax.Array


class Batches(Protocol):
    """An endless stream of NamedTuples of host arrays whose position is a small JSON value."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


Validate = Callable[[Any], dict[str, float]]  # params → figures; the highest "score" is the best checkpoint
Scores = dict[str, float | None]  # figures as they are saved: None where one was not finite


def init_state(config: TrainConfig, family: Family, key: jax.Array, params: Any = None) -> TrainState:
    """The state before the first step; fresh parameters unless some are given."""
    params = family.init(config.model, key) if params is None else params
    zero = jnp.zeros((), jnp.int32)
    opt_state = make_optimizer(config.optim).init(params)
    return TrainState(zero, params, opt_state, params if config.ema_decay else None, zero, zero)


def update(
    state: TrainState,
    batch: Any,
    key: jax.Array,
    frozen_params: Any = None,
    *,
    config: TrainConfig,
    family: Family,
    frozen_settings: Any = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step, of one batch. What is not finite leaves everything but the counters as it was.

    What is frozen is the model that the family's way of learning needs besides (`Family.frozen`).
    """
    key = jax.random.fold_in(key, state.step)
    learner = Learner(state.step - state.total_skipped, state.params, state.opt_state)
    if family.learn is None:
        (_, params, opt_state), metrics = _descend(learner, batch, key, config, family)
    else:
        (_, params, opt_state), metrics = family.learn(
            learner, batch, key, config, Frozen(frozen_settings, frozen_params)
        )
    ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    ema_params = _average(state, params, config.ema_decay) if config.ema_decay else None
    learned = keep_if(ok, (params, opt_state, ema_params), (state.params, state.opt_state, state.ema_params))
    bad = (~ok).astype(jnp.int32)
    params, opt_state, ema_params = learned
    skipped, total = bad * (state.skipped + 1), state.total_skipped + bad
    new = TrainState(state.step + 1, params, opt_state, ema_params, skipped, total)
    return new, {
        **metrics,
        "learning_rate": make_schedule(config.optim)(state.step - state.total_skipped),
        "skipped": new.skipped,
        "total_skipped": new.total_skipped,
    }


def _descend(
    learner: Learner, batch: Any, key: jax.Array, config: TrainConfig, family: Family
) -> tuple[Learner, dict[str, jax.Array]]:
    """One step against the gradient of the family's loss."""
    count, params, opt_state = learner
    loss_of = functools.partial(family.loss, batch=batch, key=key, settings=config.model, weights=config.loss)
    (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    changes, opt_state = make_optimizer(config.optim).update(gradient, opt_state, params)
    params = optax.apply_updates(params, changes)
    if RUNNING in metrics:
        params = {**params, RUNNING: metrics.pop(RUNNING)}
    figures = {**metrics, "loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return Learner(count + 1, params, opt_state), figures


def train(
    config: TrainConfig,
    batches: Batches,
    run_dir: str | Path,
    *,
    validate: Validate | None = None,
    family: Family | None = None,
    origin: dict[str, Any] | None = None,
    first_params: Any = None,
) -> TrainState:
    """Train, or go on training, in `run_dir`, and return the final state.

    A new run begins with `first_params`, or fresh ones. `origin` (JSON: command, shards and their digest) is
    saved with every checkpoint. Raises UsageError when the run was begun with other settings, DataError when
    updates stay non-finite, TryAgainError after SIGTERM and KeyboardInterrupt after SIGINT, both with
    everything saved.
    """
    family = family or family_of(config.model, config.loss)
    run_dir = _make_folder(Path(run_dir).absolute())
    mesh, key = make_mesh(config.mesh), jax.random.key(config.seed)
    init = functools.partial(init_state, config, family)
    shapes = jax.eval_shape(init, key)
    layout = state_shardings(shapes, mesh, family.rules)
    frozen = _frozen(config, family, mesh)
    step_of = functools.partial(update, config=config, family=family, frozen_settings=frozen.settings)
    advance = jax.jit(step_of, donate_argnums=0, out_shardings=(layout, None))
    notes = {"family": family.name, "config": to_json(config), "origin": origin or {}}
    with (
        jax.set_mesh(mesh),
        Checkpoints(run_dir / "last", keep_every=config.keep_every) as last,
        Checkpoints(run_dir / "best", keep=1) as best,
        Interruption() as interruption,
    ):
        if last.latest_step is None:
            state, scores = jax.jit(init, out_shardings=layout)(key, first_params), None
        else:
            state, scores = _resume(last, abstract(shapes, layout), notes, batches)
        step, steps = int(state.step), config.optim.steps
        best.drop_after(step)
        write_json(run_dir / "config.json", notes)
        with Journal(run_dir, step) as journal, Rows(journal, step, steps, config.max_skipped) as rows:
            while True:
                if validate and scores is None and _due(step, config.validate_every, steps):
                    scores = _validate(validate, state, rows, interruption)
                    if scores and _score(scores) > _best_score(best):
                        _save(best, state, batches, notes, scores)
                stopping = interruption.signal is not None  # asked once: nothing may arrive after the save
                if scores or stopping or _due(step, config.checkpoint_every, steps):
                    rows.flush()
                    _save(last, state, batches, notes, scores)
                if stopping:
                    interruption.obey(f"stopped at step {step}, saved in {run_dir}")
                if step >= steps:
                    return state
                began = time.perf_counter()
                batch = next(batches)
                waited_s = time.perf_counter() - began
                state, metrics = advance(state, place_batch(batch, mesh), key, frozen.params)
                step, scores = step + 1, None
                rows.add(step, metrics, batch, began, waited_s)


def train_command(
    config_path: str | Path,
    data: str | Path,
    out: str | Path,
    overrides: Sequence[str] = (),
    make_validate: Callable[[TrainConfig, Path], Validate] | None = None,
    start_from: str | Path | None = None,
    command: Sequence[str] = (),
) -> TrainState:
    """`editjax train CONFIG --data SHARDS --out RUN [--start-from MODEL] [--optim.steps 100 …]`.

    `make_validate(config, shards_dir)` gives the function that scores parameters, by decoding freely.
    `start_from` is a bundled model or a model folder whose parameters the run begins with. `command` is noted
    in every checkpoint.
    """
    config, data = override(load_config(config_path), overrides), Path(data)
    manifest = read_manifest(data)
    for name, value in to_json(config.model).items():
        if manifest["mel"].get(name, value) != value:
            raise UsageError(
                f"{data}: mels with {name} {manifest['mel'][name]}, but {config_path} wants {value}"
            )
    _check_batches(config)
    first_params, began = begin_from(start_from, config) if start_from else (None, {})
    origin = {
        "command": shlex.join(["editjax", "train", *command]),
        **began,
        "shards": str(data),
        "shards_sha256": sha256_of(data / MANIFEST),
        "mel": manifest["mel"],
        "settings": manifest["settings"],
        "styles": [s for s in STYLES if s in (config.data.styles or manifest["counts"]["styles"])],
    }
    validate = make_validate(config, data) if make_validate else None
    stream = read_batches(
        data, config.data, process_index=jax.process_index(), process_count=jax.process_count()
    )
    with contextlib.closing(stream):
        return train(config, stream, out, validate=validate, origin=origin, first_params=first_params)


def _check_batches(config: TrainConfig) -> None:
    """Refuses batches that the mesh's devices cannot share evenly."""
    mesh = make_mesh(config.mesh)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    for frames, _ in config.data.buckets:
        if (size := config.data.batch_size(frames)) % devices:
            raise UsageError(
                f"batches of {size} with {frames} frames do not divide over {devices} devices: "
                f"add --data.batch-multiple {devices}"
            )


def begin_from(model: str | Path, config: TrainConfig) -> tuple[Any, dict[str, str]]:
    """A trained model's parameters, and how a run notes them; UsageError for another architecture.

    Parts that it does not have and that change nothing at first are fresh. A label policy may begin from the
    pointer network that it hears with: then all but the encoder is fresh.
    """
    bundle = load_bundle(model)
    model_settings: Any = config.model
    hears = isinstance(model_settings, PolicySettings) and isinstance(bundle.settings, PointerSettings)
    theirs, ours = to_json(bundle.settings), to_json(model_settings.hears if hears else model_settings)
    grown = [name for name in GROWN if ours.get(name) and not theirs.get(name)]
    for name in ours:
        if name not in (*NO_SHAPE, *grown) and theirs.get(name) != ours[name]:
            raise UsageError(
                f"{model}: has {'model.hears' if hears else 'model'}.{name} {theirs.get(name)}, "
                f"but the config wants {ours[name]}"
            )
    refuse_misfit(bundle.path, bundle.settings, bundle.config["tensors"])
    params = bundle.params
    if hears:
        params = {**_fresh(config), RUNNING: {"encoder": params["encoder"]}}
    elif grown:
        params = unflatten({**flatten(_fresh(config)), **flatten(params)})
    return params, {"start_from": str(model), "start_from_sha256": bundle.config["sha256"]}


def _fresh(config: TrainConfig) -> Any:
    init = jax.jit(family_of(config.model).init, static_argnums=0)
    return init(config.model, jax.random.key(config.seed))


def _frozen(config: TrainConfig, family: Family, mesh: Any) -> Frozen:
    """The model that learning needs besides, on every device; without any nothing."""
    if family.frozen is None:
        return Frozen(None, None)
    bundle = load_bundle(family.frozen(config))
    return Frozen(bundle.settings, jax.device_put(bundle.params, NamedSharding(mesh, REPLICATED)))


def _resume(
    last: Checkpoints, shapes: TrainState, notes: dict[str, Any], batches: Batches
) -> tuple[TrainState, Scores | None]:
    """The latest state, and the scores if it was validated; `batches` is set to follow it."""
    step = last.latest_step
    assert step is not None
    saved = last.notes(step)
    if name := first_difference(_decisive(saved), _decisive(notes)):
        raise UsageError(f"{last.folder.parent}: begun with another {name}; use that or a new folder")
    state = TrainState(**{"ema_params": None, **last.restore(step, _parts(shapes))})
    batches.set_state(saved["data"])
    print(f"going on from step {step} of {last.folder.parent}", file=sys.stderr)
    return state, saved["scores"]


def _decisive(notes: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to go on as if it had never stopped."""

    def kept(settings: Any) -> Any:
        if not isinstance(settings, dict):
            return settings
        return {name: kept(value) for name, value in settings.items() if name not in MAY_CHANGE}

    begun = {name: notes["origin"].get(f"{name}_sha256") for name in ("shards", "start_from")}
    return {"family": notes["family"], **kept(notes["config"]), **begun}


def _validate(validate: Validate, state: TrainState, rows: Rows, interruption: Interruption) -> Scores | None:
    """Figures of the state's parameters, averaged where they are; None if a signal cut it short."""
    params = state.params if state.ema_params is None else state.ema_params
    rows.flush()
    scores = interruption.cuttable(lambda: validate(params))
    if scores is None:
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
    if checkpoints.latest_step != step:
        checkpoints.save(step, _parts(state), {**notes, "data": batches.get_state(), "scores": scores})


def _parts(state: TrainState) -> dict[str, Any]:
    return {name: part for name, part in state._asdict().items() if part is not None}


def _score(scores: Scores) -> float:
    return -math.inf if scores["score"] is None else scores["score"]


def _best_score(best: Checkpoints) -> float:
    return -math.inf if best.latest_step is None else _score(best.notes(best.latest_step)["scores"])


def _due(step: int, every: int, last: int) -> bool:
    return step > 0 and (step == last or (every > 0 and step % every == 0))


def _average(state: TrainState, params: Any, decay: float) -> Any:
    """Exponential average whose window grows with the run: the first parameters are soon forgotten."""
    step = state.step.astype(jnp.float32)
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: a + share.astype(a.dtype) * (b - a), state.ema_params, params)


def _make_folder(run_dir: Path) -> Path:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{run_dir}: cannot make this folder ({error.strerror})") from error
    return run_dir
