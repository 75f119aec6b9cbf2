"""Settings → Optax transformation: AdamW with warm-up, cosine decay, clipping and masked weight decay.

Loshchilov & Hutter 2019, "Decoupled weight decay regularization"; 2017, "SGDR: stochastic gradient descent
with warm restarts".
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from editjax.mesh import tree_path
from editjax.models.layers import RUNNING

NEVER_DECAYED = ("bias", "scale", "embedding")  # last name of a parameter's path


@dataclass(frozen=True)
class OptimSettings:
    """AdamW; the rate rises for `warmup_steps`, then falls as a cosine to `final_fraction` of its peak.

    With `restarts` it jumps back to the peak so often and falls again, in cycles of the same length.
    A batch is gone through in so many parts as `accumulate` says, in the memory of one; their gradients, and
    figures, are averaged.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 100
    steps: int = 1000
    final_fraction: float = 0.05
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    clip_norm: float = 1.0
    accumulate: int = 1
    restarts: int = 0

    def __post_init__(self) -> None:
        if self.restarts < 0:
            raise ValueError(f"optim.restarts {self.restarts}: give 0 or more")
        if not 0 <= self.warmup_steps < self.cycle_steps:
            steps = f"optim.steps {self.steps}" + " of a cycle" * bool(self.restarts)
            raise ValueError(f"optim.warmup_steps {self.warmup_steps} must be below {steps}")
        if self.accumulate < 1:
            raise ValueError(f"optim.accumulate {self.accumulate}: a batch has one part at least")

    @property
    def cycle_steps(self) -> int:
        """From one start of the schedule to the next, or to the end."""
        return -(-self.steps // (self.restarts + 1))


def make_schedule(settings: OptimSettings) -> optax.Schedule:
    """Learning rate as a function of the number of updates made."""
    peak, cycle = settings.learning_rate, settings.cycle_steps
    first = optax.warmup_cosine_decay_schedule(
        init_value=peak / (settings.warmup_steps + 1),
        peak_value=peak,
        warmup_steps=settings.warmup_steps,
        decay_steps=cycle,
        end_value=peak * settings.final_fraction,
    )
    again = optax.cosine_decay_schedule(peak, cycle, settings.final_fraction)

    def schedule(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        if not settings.restarts:
            return first(count)
        return jnp.where(count < cycle, first(count), again(jnp.minimum(count, settings.steps - 1) % cycle))

    return schedule


def make_optimizer(settings: OptimSettings) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW under the schedule."""
    adamw = optax.adamw(
        make_schedule(settings),
        b1=settings.b1,
        b2=settings.b2,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        mask=decayed,
    )
    chain = optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counts
            return chain.update(gradient, state, params)

    return optax.GradientTransformation(chain.init, update)


def decayed(params: Any) -> Any:
    """True for the matrices that weight decay shrinks: not biases, norm scales, embeddings, vectors,
    nor what is running.

    Layers stacked for `lax.scan` turn a vector into a matrix, which is why names decide before ranks do.
    """

    def is_decayed(path: tuple, leaf: jax.Array) -> bool:
        names = tree_path(path).split("/")
        return leaf.ndim > 1 and names[0] != RUNNING and names[-1] not in NEVER_DECAYED

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def keep_if(ok: jax.Array, new: Any, old: Any) -> Any:
    """`new` where the scalar `ok` holds, else `old`, leaf by leaf.

    Not optax.apply_if_finite: after its limit of bad updates that one applies them.
    """
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
