"""Settings, state and batch → the next state: one training step of every model family, a pure function."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from editjax.codec_loss import CodecLossSettings
from editjax.data import DataSettings
from editjax.family import Family
from editjax.losses import LossSettings
from editjax.mesh import MeshSettings
from editjax.mixer_loss import MixerLossSettings
from editjax.mixes import MixSettings
from editjax.models.autoencoder import ScorerSettings
from editjax.models.codec import CodecSettings
from editjax.models.layers import RUNNING
from editjax.models.mixer import MixerSettings
from editjax.models.pointer import PointerSettings
from editjax.models.policy import PolicySettings
from editjax.models.reconstruct import ReconstructSettings
from editjax.models.window import WindowSettings
from editjax.optim import OptimSettings, keep_if, make_optimizer, make_schedule
from editjax.policy_loss import PolicyLossSettings, PolicyPpoSettings
from editjax.ppo import Frozen, Learner
from editjax.reconstruct_loss import ReconstructLossSettings
from editjax.scorer_loss import ScorerLossSettings
from editjax.sounds import SoundSettings
from editjax.tune import TuneSettings
from editjax.window_loss import WindowLossSettings


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's result, except the shards. `optim.steps` is its length.

    `ema_decay` averages the parameters for validation and export (0: use them as they are). After
    `max_skipped` updates in a row without a finite loss and gradient the run stops. With a `patience` it ends
    early: after so many validations without a better score.
    """

    model: (
        PointerSettings
        | ScorerSettings
        | ReconstructSettings
        | PolicySettings
        | MixerSettings
        | CodecSettings
        | WindowSettings
    ) = field(default_factory=PointerSettings)
    loss: (
        LossSettings
        | ScorerLossSettings
        | ReconstructLossSettings
        | PolicyLossSettings
        | PolicyPpoSettings
        | TuneSettings
        | MixerLossSettings
        | CodecLossSettings
        | WindowLossSettings
    ) = field(default_factory=LossSettings)
    data: DataSettings | SoundSettings | MixSettings = field(default_factory=DataSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    seed: int = 0
    ema_decay: float = 0.0
    max_skipped: int = 10
    validate_every: int = 500
    checkpoint_every: int = 100
    keep_every: int = 0
    patience: int = 0


class TrainState(NamedTuple):
    step: jax.Array  # batches consumed
    params: Any
    opt_state: Any
    ema_params: Any  # None without ema_decay
    skipped: jax.Array  # updates refused since the last good one
    total_skipped: jax.Array


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

    What is frozen is the model that the family's loss or way of learning needs besides (`Family.frozen`).
    """
    key = jax.random.fold_in(key, state.step)
    learner = Learner(state.step - state.total_skipped, state.params, state.opt_state)
    frozen = Frozen(frozen_settings, frozen_params)
    if family.learn is None:
        (_, params, opt_state), metrics = _descend(learner, batch, key, config, family, frozen)
    else:
        (_, params, opt_state), metrics = family.learn(learner, batch, key, config, frozen)
    ok = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    ema_params = _average(state, params, config.ema_decay) if config.ema_decay else None
    learned = keep_if(ok, (params, opt_state, ema_params), (state.params, state.opt_state, state.ema_params))
    bad = (~ok).astype(jnp.int32)
    params, opt_state, ema_params = learned
    skipped, total = bad * (state.skipped + 1), state.total_skipped + bad
    new = TrainState(state.step + 1, params, opt_state, ema_params, skipped, total)
    return new, {
        "learning_rate": make_schedule(config.optim)(state.step - state.total_skipped),
        **metrics,
        "skipped": new.skipped,
        "total_skipped": new.total_skipped,
    }


def compiled_update(
    config: TrainConfig, family: Family, layout: Any, frozen_settings: Any = None
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`update` as the one program of a run, its state laid out as `layout` and given up for the new one."""
    step_of = functools.partial(update, config=config, family=family, frozen_settings=frozen_settings)
    return jax.jit(step_of, donate_argnums=0, out_shardings=(layout, None))


def _descend(
    learner: Learner, batch: Any, key: jax.Array, config: TrainConfig, family: Family, frozen: Frozen
) -> tuple[Learner, dict[str, jax.Array]]:
    """One step against the gradient of the family's loss."""
    count, params, opt_state = learner
    besides = {"frozen": frozen} if family.frozen else {}
    loss_of = functools.partial(family.loss, settings=config.model, weights=config.loss, **besides)
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)
    (loss, metrics), gradient = _averaged(gradient_of, params, batch, key, config.optim.accumulate)
    changes, opt_state = make_optimizer(config.optim).update(gradient, opt_state, params)
    params = optax.apply_updates(params, changes)
    if RUNNING in metrics:
        params = {**params, RUNNING: metrics.pop(RUNNING)}
    figures = {**metrics, "loss": loss, "gradient_norm": optax.tree.norm(gradient)}
    return Learner(count + 1, params, opt_state), figures


def _averaged(function: Callable, params: Any, batch: Any, key: jax.Array, parts: int) -> Any:
    """`function` of parameters, a batch and a key, or the mean of what it gives for parts of the batch.

    Every part takes examples from all over the batch, so that each device has its share of all of them.
    """
    if parts == 1:
        return function(params, batch, key)
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(len(x) // parts, parts, *x.shape[1:]), 0, 1), batch)

    def add(total: Any, part: tuple) -> tuple[Any, None]:
        number, one = part
        found = function(params, one, jax.random.fold_in(key, number))
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, found), None

    first = jax.tree.map(lambda x: x[0], split)
    shapes = jax.eval_shape(function, params, first, key)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
    total, _ = jax.lax.scan(add, nothing, (jnp.arange(parts), split))
    return jax.tree.map(lambda x: x / parts, total)


def _average(state: TrainState, params: Any, decay: float) -> Any:
    """Exponential average whose window grows with the run: the first parameters are soon forgotten."""
    step = state.step.astype(jnp.float32)
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, b: a + share.astype(a.dtype) * (b - a), state.ema_params, params)
