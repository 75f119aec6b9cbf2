"""What PPO is tried on: rollouts drawn at random with the algorithm in NumPy, and worlds with known answers.

Functions take the module, `editjax.ppo` or a mutant of it.
"""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

SETTINGS = {"discount": 0.9, "trace": 0.8, "epochs": 2, "minibatches": 2, "iterations": 10}


class Drawn(NamedTuple):
    """A random rollout (B, T) and what a policy says of it now; rows are of random lengths."""

    log_p: np.ndarray
    value: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    counted: np.ndarray
    last_value: np.ndarray
    reference: np.ndarray
    now_log_p: np.ndarray
    now_entropy: np.ndarray
    now_value: np.ndarray

    def rollout(self, ppo: ModuleType, padding: float = 0.0, dtype: Any = np.float32) -> Any:
        """As the module takes it, in the padding what is asked for."""
        log_p, value, reward, reference = (
            jnp.asarray(np.where(self.counted, x, padding), dtype)
            for x in (self.log_p, self.value, self.reward, self.reference)
        )
        ends = jnp.asarray(self.done), jnp.asarray(self.counted), jnp.asarray(self.last_value, dtype)
        index_BT = jnp.arange(self.done.size).reshape(self.done.shape)
        return ppo.Rollout(index_BT, index_BT, log_p, value, reward, *ends, reference)

    def now(self, padding: float = 0.0) -> dict[str, jax.Array]:
        """Parameters of the policy of `evaluate_freely`."""
        arrays = {"log_p": self.now_log_p, "entropy": self.now_entropy, "value": self.now_value}
        return {
            name: jnp.asarray(np.where(self.counted, x, padding), jnp.float32).ravel()
            for name, x in arrays.items()
        }


def draw(rows: int = 6, steps: int = 7, seed: int = 0) -> Drawn:
    rng = np.random.default_rng(seed)
    shape = rows, steps
    counted = np.arange(steps) < rng.integers(1, steps + 1, (rows, 1))
    log_p, reference, now_log_p = (np.log(rng.uniform(0.05, 0.9, shape)) for _ in range(3))
    value, reward, now_value = (rng.uniform(-1, 1, shape) for _ in range(3))
    done = rng.uniform(size=shape) < 0.15
    return Drawn(
        log_p, value, reward, done, counted, rng.uniform(-1, 1, rows), reference,
        now_log_p, rng.uniform(0, 1, shape), now_value,
    )  # fmt: skip


def evaluate_freely(ppo: ModuleType) -> Any:
    """A policy whose parameters are what it says of every step: gradients are those of the single steps."""

    def evaluate(params: Any, index_BT: Any, action_BT: Any) -> Any:
        return ppo.Evaluated(*(params[name][index_BT] for name in ("log_p", "entropy", "value")))

    return evaluate


def closed_form(drawn: Drawn, discount: float, trace: float) -> np.ndarray:
    """Advantages as the sum over all later steps of the same episode, from the definition."""
    rows, steps = drawn.done.shape
    lengths = drawn.counted.sum(1)
    total = np.zeros((rows, steps))
    last = np.arange(steps) == lengths[:, None] - 1
    following = np.where(last, drawn.last_value[:, None], np.roll(drawn.value, -1, axis=1))
    delta = drawn.reward + np.where(drawn.done, 0, discount * following) - drawn.value
    for ahead in range(steps):
        here = steps - ahead
        ended = np.array([drawn.done[:, t : t + ahead].any(1) for t in range(here)]).T
        alive = drawn.counted[:, ahead:] & ~ended
        total[:, :here] += (discount * trace) ** ahead * np.where(alive, delta[:, ahead:], 0)
    return np.where(drawn.counted, total, 0)


def loss_in_numpy(drawn: Drawn, settings: Any, entropy_weight: float) -> float:
    """The loss of all rows, step by step."""
    advantage = closed_form(drawn, settings.discount, settings.trace)
    known = advantage[drawn.counted]
    total = 0.0
    for at in zip(*np.nonzero(drawn.counted), strict=True):
        normal = (advantage[at] - known.mean()) / (known.std() + 1e-8)
        ratio = np.exp(drawn.now_log_p[at] - drawn.log_p[at])
        near = min(max(ratio, 1 - settings.clip), 1 + settings.clip)
        total -= min(ratio * normal, near * normal)
        wanted, new, old = advantage[at] + drawn.value[at], drawn.now_value[at], drawn.value[at]
        clipped = old + min(max(new - old, -settings.clip), settings.clip)
        total += settings.value * 0.5 * max((new - wanted) ** 2, (clipped - wanted) ** 2)
        total -= entropy_weight * drawn.now_entropy[at]
        total += settings.tether * ratio * 0.5 * (drawn.now_log_p[at] - drawn.reference[at]) ** 2
    return total / drawn.counted.sum()


def mean_k3(log_p: np.ndarray, other: np.ndarray, counted: np.ndarray) -> float:
    """The divergence from p to another, over the counted steps."""
    ratio = np.exp(other - log_p)[counted]
    return float((ratio - 1 - np.log(ratio)).mean())


def table(states: int, actions: int) -> dict[str, jax.Array]:
    """Parameters of the policy of `by_table`: it is indifferent."""
    return {"logits": jnp.zeros((states, actions)), "value": jnp.zeros(states)}


def evaluate_table(ppo: ModuleType) -> Any:
    """A policy that is a table; what is seen of a state is a row of zeros with a one."""

    def evaluate(params: Any, seen_BTC: Any, action_BT: Any) -> Any:
        log_p_BT, entropy_BT = ppo.categorical(seen_BTC @ params["logits"], action_BT)
        return ppo.Evaluated(log_p_BT, entropy_BT, seen_BTC @ params["value"])

    return evaluate


def by_table(ppo: ModuleType, actions: int) -> Any:
    def noise(key: Any, shape: tuple[int, int]) -> Any:
        return jax.random.gumbel(key, (*shape, actions))

    def act(params: Any, seen_BC: Any, noise_BC: Any) -> Any:
        return jnp.argmax(seen_BC @ params["logits"] + noise_BC, axis=-1)

    return ppo.Policy(noise, act, evaluate_table(ppo))


def bandit(ppo: ModuleType, contexts: int = 4, arms: int = 4) -> Any:
    """One step: arm c + 1 pays 1 in context c with probability 0.8, the others with 0.3."""

    def step(key: Any, context: Any, arm: Any) -> Any:
        right = arm == (context + 1) % arms
        paid = jax.random.bernoulli(key, jnp.where(right, 0.8, 0.3)).astype(jnp.float32)
        return context, paid, jnp.array(True), jnp.array(False)

    def reset(key: Any) -> Any:
        return jax.random.randint(key, (), 0, contexts)

    return ppo.World(reset, lambda context: jax.nn.one_hot(context, contexts), step)


SIDE, TIME = 5, 20
GOAL = SIDE * SIDE - 1
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
DISTANCE = np.array([2 * (SIDE - 1) - at // SIDE - at % SIDE for at in range(SIDE * SIDE)])


class Walker(NamedTuple):
    at: Any
    taken: Any


def grid(ppo: ModuleType) -> Any:
    """5 × 5 fields; reaching the last one pays 1 and ends it: a field at a distance of d is worth γ^(d − 1).
    Time is up after 20 steps."""

    def reset(key: Any) -> Walker:
        return Walker(jax.random.randint(key, (), 0, GOAL), jnp.zeros((), jnp.int32))

    def step(key: Any, walker: Walker, action: Any) -> Any:
        place = jnp.stack([walker.at // SIDE, walker.at % SIDE]) + jnp.asarray(MOVES, jnp.int32)[action]
        place = jnp.clip(place, 0, SIDE - 1)
        walker = Walker(place[0] * SIDE + place[1], walker.taken + 1)
        there = walker.at == GOAL
        return walker, there.astype(jnp.float32), there, walker.taken == TIME

    return ppo.World(reset, lambda walker: jax.nn.one_hot(walker.at, SIDE * SIDE), step)


def clock(ppo: ModuleType, *, over: bool, hours: int = 3) -> Any:
    """Pays the hour and goes to the next one; at the last it is over, or time is up. Each begins at 0."""

    def step(key: Any, hour: Any, action: Any) -> Any:
        last = hour == hours - 1
        return hour + 1, hour.astype(jnp.float32), last & over, last

    return ppo.World(lambda key: jnp.zeros((), jnp.int32), lambda hour: jax.nn.one_hot(hour, hours + 1), step)


def practice(
    ppo: ModuleType, world: Any, actions: int, steps: int, rate: float = 0.0, **settings: Any
) -> Any:
    optimizer = optax.adam(rate) if rate else optax.sgd(0.0)
    return ppo.Practice(
        ppo.PpoSettings(**SETTINGS | settings), world, by_table(ppo, actions), optimizer, steps
    )


def practised(ppo: ModuleType, practice: Any, params: Any, copies: int, seed: Any, iterations: int) -> Any:
    """(run, metrics of every iteration), many iterations in one program."""
    key = jax.random.key(seed)
    run = ppo.new_run(practice, params, copies, jax.random.fold_in(key, 1))
    return jax.lax.scan(lambda run, _: ppo.iterate(practice, run, key), run, length=iterations)


def walked(ppo: ModuleType, practice: Any, params: Any, copies: int, seed: int = 0) -> Any:
    """(run, rollout, metrics) of the first stretch."""
    first, then = jax.random.split(jax.random.key(seed))

    def both() -> Any:
        return ppo.roll_out(practice, ppo.new_run(practice, params, copies, first), then)

    return jax.jit(both)()
