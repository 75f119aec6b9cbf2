"""Proximal policy optimisation: what a policy saw, did and earned → a policy that earns more.

    rollout → advantages → epochs of shuffled minibatches: clipped policy loss, value loss, entropy, tether

Advantages: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
estimation". Losses: Schulman et al. 2017, "Proximal policy optimization algorithms". What matters besides:
Huang et al. 2022, "The 37 implementation details of proximal policy optimization".

A rollout is (B, T), whole recordings padded to the longest, or stretches of a world that is walked step by
step: T are steps here, C choices, U updates. Ratios are those of single steps, for their product over a
recording is 0 or ∞. Nothing but the actions may be random in a policy: with dropout the ratio of a policy to
itself is not 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from editjax.errors import UsageError
from editjax.optim import OptimSettings, keep_if, make_schedule

SMALLEST = 1e-8  # deviation of advantages, variance of returns: below that all are alike


@dataclass(frozen=True)
class PpoSettings:
    """How a policy learns from what it did.

    `discount` and `trace` are γ and λ of the advantages. `clip` is how far a ratio may leave 1 and, with
    `clip_value`, a value what it was. `value`, `entropy` and `tether` weigh their losses beside that of the
    policy; the entropy's weight goes in a line to `final_entropy` over `iterations`. A minibatch whose KL
    divergence from the policy that acted exceeds `target_kl` ends an iteration (0: none does). The tether is
    the KL divergence from a frozen reference policy (0: there is none). Divergences are in nats a step.
    """

    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    clip_value: bool = True
    value: float = 0.5
    entropy: float = 0.01
    final_entropy: float = 0.01
    tether: float = 0.0
    target_kl: float = 0.0
    iterations: int = 1000
    epochs: int = 4
    minibatches: int = 4

    def __post_init__(self) -> None:
        if not (0 <= self.discount <= 1 and 0 <= self.trace <= 1):
            raise UsageError(f"discount {self.discount}, trace {self.trace}: give shares from 0 to 1")
        if not self.clip > 0:
            raise UsageError(f"clip {self.clip}: give more than 0, or nothing is learnt")
        for name in ("value", "entropy", "final_entropy", "tether", "target_kl"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} {getattr(self, name)}: give 0 or more")
        if min(self.iterations, self.epochs, self.minibatches) < 1:
            raise UsageError("iterations, epochs and minibatches must be 1 or more")


class Rollout(NamedTuple):
    """What a policy did, row by row, and what came of it.

    `seen` is all that it looked at; the arrays of `seen` and `action_BT` lead with B. The log-probabilities
    of the actions and the values of the states are its own. `done_BT`: it was over after this step.
    `counted_BT`: false in the padding, at the end of a row, which may hold anything. `last_value_B` is that
    of the state after the last counted step, for rows that were cut off there. `reference_log_p_BT`, of the
    same actions under the reference policy, is for a tether.
    """

    seen: Any
    action_BT: Any
    log_p_BT: jax.Array
    value_BT: jax.Array
    reward_BT: jax.Array
    done_BT: jax.Array
    counted_BT: jax.Array
    last_value_B: jax.Array
    reference_log_p_BT: Any = None


class Batch(NamedTuple):
    """Rows to learn from; 0 in the padding."""

    seen: Any
    action_BT: Any
    log_p_BT: jax.Array
    value_BT: jax.Array
    advantage_BT: jax.Array
    return_BT: jax.Array
    counted_BT: jax.Array
    reference_log_p_BT: Any = None


class Evaluated(NamedTuple):
    """What a policy says of a rollout, (B, T) each: log-probability of the actions, entropy, value."""

    log_p_BT: jax.Array
    entropy_BT: jax.Array
    value_BT: jax.Array


Evaluate = Callable[[Any, Any, Any], Evaluated]  # parameters, seen, action_BT


class Learner(NamedTuple):
    iteration: jax.Array  # iterations done
    params: Any
    opt_state: Any


class Frozen(NamedTuple):
    """A trained model that learning needs besides, and that learns nothing: it judges, or is a reference."""

    settings: Any
    params: Any


def per_update(optim: OptimSettings, settings: PpoSettings) -> OptimSettings:
    """A schedule in iterations as one in updates."""
    updates = settings.epochs * settings.minibatches
    return replace(optim, steps=optim.steps * updates, warmup_steps=optim.warmup_steps * updates)


def over(settings: PpoSettings, optim: OptimSettings) -> PpoSettings:
    """Settings for as many iterations as are trained for."""
    return replace(settings, iterations=optim.steps)


def rate_of(optim: OptimSettings, settings: PpoSettings, learner: Learner):
    """The learning rate after the updates made so far; those beyond a target KL do not count."""
    counts = optax.tree_utils.tree_get_all_with_path(learner.opt_state, "count")
    return make_schedule(per_update(optim, settings))(counts[-1][1])


def new_learner(optimizer: optax.GradientTransformation, params: Any) -> Learner:
    """The state before the first iteration."""
    return Learner(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def categorical(logits_BTC, action_BT):
    """Log-probability of the actions and entropy, (B, T) each, in nats. A logit may be −∞."""
    log_p_BTC = jax.nn.log_softmax(logits_BTC, axis=-1)
    p_BTC = jnp.exp(log_p_BTC)
    chosen_BTC = jax.nn.one_hot(action_BT, logits_BTC.shape[-1], dtype=bool)
    log_p_BT = jnp.where(chosen_BTC, log_p_BTC, 0.0).sum(-1)
    return log_p_BT, -(p_BTC * jnp.where(p_BTC > 0, log_p_BTC, 0.0)).sum(-1)


def advantages(settings: PpoSettings, rollout: Rollout):
    """Generalised advantage estimation (B, T): Σₖ (γλ)ᵏ δₜ₊ₖ with δₜ = rₜ + γ vₜ₊₁ − vₜ; 0 in the padding.

    Nothing flows back to a step that ended it from behind, nor out of the padding.
    """
    done_BT, counted_BT, last_value_B1 = rollout.done_BT, rollout.counted_BT, rollout.last_value_B[:, None]
    value_BT = jnp.where(counted_BT, rollout.value_BT, last_value_B1)
    next_BT = jnp.concatenate([value_BT[:, 1:], last_value_B1], axis=1)
    earned_BT = rollout.reward_BT + jnp.where(done_BT, 0.0, settings.discount * next_BT)
    delta_BT = cleared(earned_BT - value_BT, counted_BT)
    goes_on_BT = (counted_BT & ~done_BT).astype(delta_BT.dtype)
    decay_BT = settings.discount * settings.trace * goes_on_BT

    def back(after_B, step):
        delta_B, decay_B = step
        advantage_B = delta_B + decay_B * after_B
        return advantage_B, advantage_B

    steps_TB = delta_BT.T, decay_BT.T
    return jax.lax.scan(back, jnp.zeros_like(rollout.last_value_B), steps_TB, reverse=True)[1].T


def batch_of(settings: PpoSettings, rollout: Rollout) -> Batch:
    """A rollout with its advantages and its returns, which are what values ought to have been."""
    advantage_BT = advantages(settings, rollout)
    arrays = rollout.log_p_BT, rollout.value_BT, rollout.reference_log_p_BT
    log_p_BT, value_BT, reference_BT = cleared(arrays, rollout.counted_BT)
    did, return_BT = (rollout.seen, rollout.action_BT), advantage_BT + value_BT
    return Batch(*did, log_p_BT, value_BT, advantage_BT, return_BT, rollout.counted_BT, reference_BT)


def cleared(arrays_BT: Any, counted_BT) -> Any:
    """Arrays with 0 in the padding, whatever was there."""
    return jax.tree.map(lambda x_BT: jnp.where(counted_BT, x_BT, 0.0), arrays_BT)


def mean_of(x_BT, counted_BT):
    """The mean over the counted steps, 0 where there are none."""
    return cleared(x_BT, counted_BT).sum() / jnp.maximum(counted_BT.sum(), 1).astype(x_BT.dtype)


def normalised(advantage_BT, counted_BT):
    """Advantages less their mean, over their standard deviation, those of the counted steps."""
    centred_BT = advantage_BT - mean_of(advantage_BT, counted_BT)
    return centred_BT / (jnp.sqrt(mean_of(centred_BT**2, counted_BT)) + SMALLEST)


def policy_loss(settings: PpoSettings, log_ratio_BT, advantage_BT):
    """The clipped objective of every step: a ratio that left 1 for its advantage by more earns no more."""
    ratio_BT = jnp.exp(log_ratio_BT)
    near_BT = jnp.clip(ratio_BT, 1 - settings.clip, 1 + settings.clip)
    return -jnp.minimum(ratio_BT * advantage_BT, near_BT * advantage_BT)


def value_loss(settings: PpoSettings, value_BT, old_BT, return_BT):
    """Half the squared error of every step; clipped, a value that left the old one by more is no better."""
    error_BT = (value_BT - return_BT) ** 2
    if settings.clip_value:
        near_BT = old_BT + jnp.clip(value_BT - old_BT, -settings.clip, settings.clip)
        error_BT = jnp.maximum(error_BT, (near_BT - return_BT) ** 2)
    return 0.5 * error_BT


def divergence(log_p_BT, other_BT):
    """KL divergence from p to another, by what p did, of every step: right on average and never negative.

    The estimator k3 of Schulman 2020, "Approximating KL divergence".
    """
    return jnp.expm1(other_BT - log_p_BT) - (other_BT - log_p_BT)


def tether_loss(log_ratio_BT, log_p_BT, reference_BT):
    """What pulls a policy to the reference, of every step.

    Its gradient, not its value, is on average that of the KL divergence from the policy to the reference,
    E[(log p − log q) ∇ log p]; the ratio makes up for actions of the policy as it was.
    """
    return jax.lax.stop_gradient(jnp.exp(log_ratio_BT)) * (log_p_BT - reference_BT) ** 2 / 2


def clip_fraction(settings: PpoSettings, log_ratio_BT, counted_BT):
    """The share of the counted steps whose ratio left 1 by more than the clip."""
    far_BT = jnp.abs(jnp.exp(log_ratio_BT) - 1) > settings.clip
    return mean_of(far_BT.astype(log_ratio_BT.dtype), counted_BT)


def explained_variance(value_BT, return_BT, counted_BT):
    """1 − Var(return − value) / Var(return): 1 for perfect values, 0 for values that are all alike."""

    def variance(x_BT):
        return mean_of((x_BT - mean_of(x_BT, counted_BT)) ** 2, counted_BT)

    return 1 - variance(return_BT - value_BT) / jnp.maximum(variance(return_BT), SMALLEST)


def entropy_weight(settings: PpoSettings, iteration):
    """The weight of the entropy in an iteration, counted from 0."""
    progress = jnp.minimum(jnp.asarray(iteration, jnp.float32) / settings.iterations, 1.0)
    return settings.entropy + (settings.final_entropy - settings.entropy) * progress


def loss(params: Any, batch: Batch, settings: PpoSettings, evaluate: Evaluate, entropy_weight):
    """(loss, metrics) of some rows: means over their counted steps, advantages normalised among these."""
    counted_BT = batch.counted_BT
    log_p_BT, entropy_BT, value_BT = cleared(evaluate(params, batch.seen, batch.action_BT), counted_BT)
    log_ratio_BT = log_p_BT - batch.log_p_BT
    parts_BT = {
        "policy": policy_loss(settings, log_ratio_BT, normalised(batch.advantage_BT, counted_BT)),
        "value": value_loss(settings, value_BT, batch.value_BT, batch.return_BT),
        "entropy": entropy_BT,
        "kl": divergence(batch.log_p_BT, log_p_BT),
    }
    found = {name: mean_of(x_BT, counted_BT) for name, x_BT in parts_BT.items()}
    total = found["policy"] + settings.value * found["value"] - entropy_weight * found["entropy"]
    if settings.tether:
        if batch.reference_log_p_BT is None:
            raise UsageError("a tether needs what the reference policy says of the actions")
        pull_BT = tether_loss(log_ratio_BT, log_p_BT, batch.reference_log_p_BT)
        total = total + settings.tether * mean_of(pull_BT, counted_BT)
        found["tether_kl"] = mean_of(divergence(log_p_BT, batch.reference_log_p_BT), counted_BT)
    return total, found | {"loss": total, "clipped": clip_fraction(settings, log_ratio_BT, counted_BT)}


def learn(
    settings: PpoSettings,
    evaluate: Evaluate,
    optimizer: optax.GradientTransformation,
    learner: Learner,
    batch: Batch,
    key: jax.Array,
) -> tuple[Learner, dict[str, jax.Array]]:
    """One iteration, epochs of shuffled minibatches of whole rows: (learner, metrics).

    Metrics are means over the minibatches that were looked at; `updates` is how many changed something. A
    loss or gradient that is not finite changes nothing. Nor does a minibatch beyond the target KL, which is
    the last one looked at. Raises UsageError when the rows do not divide into the minibatches.
    """
    rows, parts = len(batch.return_BT), settings.minibatches
    if rows % parts:
        raise UsageError(f"{rows} rows do not divide into {parts} minibatches: change one of them")
    key, weight = jax.random.fold_in(key, learner.iteration), entropy_weight(settings, learner.iteration)

    def update(carry, order_B):
        params, opt_state, _ = carry
        some = jax.tree.map(lambda x: x[order_B], batch)
        gradient, found = jax.grad(loss, has_aux=True)(params, some, settings, evaluate, weight)
        norm = optax.tree.norm(gradient)
        going = jnp.asarray(found["kl"] <= settings.target_kl if settings.target_kl else True)
        ok = going & jnp.isfinite(found["loss"]) & jnp.isfinite(norm)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer counts
            changes, new_state = optimizer.update(gradient, opt_state, params)
        new = optax.apply_updates(params, changes), new_state
        counts = {"updates": ok.astype(jnp.float32), "looked_at": jnp.ones(())}
        return (*keep_if(ok, new, (params, opt_state)), going), found | {"gradient_norm": norm} | counts

    def unless_ended(carry, order_B):
        if not settings.target_kl:
            return update(carry, order_B)
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(update, carry, order_B)[1])
        return jax.lax.cond(carry[2], update, lambda carry, _: (carry, nothing), carry, order_B)

    order_UB = shuffled(key, settings.epochs, rows).reshape(settings.epochs * parts, rows // parts)
    first = learner.params, learner.opt_state, jnp.ones((), bool)
    (params, opt_state, _), found_U = jax.lax.scan(unless_ended, first, order_UB)
    total = {name: x_U.sum() for name, x_U in found_U.items()}
    updates, looked_at = total.pop("updates"), total.pop("looked_at")
    explained = explained_variance(batch.value_BT, batch.return_BT, batch.counted_BT)
    counts = {"updates": updates, "entropy_weight": weight, "explained_variance": explained}
    metrics = {name: x / looked_at for name, x in total.items()} | counts
    return Learner(learner.iteration + 1, params, opt_state), metrics


def shuffled(key: jax.Array, epochs: int, rows: int):
    """The rows in a random order for every epoch, (epochs, rows).

    Random numbers with the row in their low bits, sorted; the few that are alike but for these stay in order.
    On a CPU that takes a third to a tenth of the time of `jax.random.permutation`.
    """
    low = np.uint32((1 << (rows - 1).bit_length()) - 1)
    bits = jax.random.bits(key, (epochs, rows), jnp.uint32) & ~low
    return (jnp.sort(bits | jnp.arange(rows, dtype=jnp.uint32)[None, :]) & low).astype(jnp.int32)


class World(NamedTuple):
    """Somewhere to act step by step: functions of one copy, which `roll_out` maps over many.

    `reset(key)` is a state to begin in, `observe(state)` what is seen of it. `step(key, state, action)` is
    the next state, the reward, whether it is over (`terminated`), and whether time is up (`truncated`): then
    what would have followed is worth something.
    """

    reset: Callable[[jax.Array], Any]
    observe: Callable[[Any], Any]
    step: Callable[[jax.Array, Any, Any], tuple[Any, jax.Array, jax.Array, jax.Array]]


class Policy(NamedTuple):
    """Functions of many states at once. `noise(key, shape)` is all the chance that acting in so many needs,
    `act(params, seen_B, noise_B)` the actions, `evaluate` what learning must know of them."""

    noise: Callable[[jax.Array, tuple[int, int]], Any]
    act: Callable[[Any, Any, Any], Any]
    evaluate: Evaluate


class Practice(NamedTuple):
    """What stays the same from iteration to iteration, each of so many `steps` in every copy of the world."""

    settings: PpoSettings
    world: World
    policy: Policy
    optimizer: optax.GradientTransformation
    steps: int


class Run(NamedTuple):
    learner: Learner
    state_B: Any  # of every copy of the world
    score_B: jax.Array  # what was earned there since it began


def new_run(practice: Practice, params: Any, copies: int, key: jax.Array) -> Run:
    """The state before the first iteration, in so many copies of the world."""
    state_B = jax.vmap(practice.world.reset)(jax.random.split(key, copies))
    return Run(new_learner(practice.optimizer, params), state_B, jnp.zeros(copies))


def iterate(practice: Practice, run: Run, key: jax.Array, reference: Any = None):
    """Acts and learns, (run, metrics): one program under `jit`, and under `lax.scan` many times.

    `reference`: the parameters that a tether holds on to. Learning looks at single steps, in any order.
    """
    settings, _, policy, optimizer, _ = practice
    act_key, learn_key = jax.random.split(jax.random.fold_in(key, run.learner.iteration))
    run, rollout, ended = roll_out(practice, run, act_key)
    if reference is not None:
        known = policy.evaluate(reference, rollout.seen, rollout.action_BT)
        rollout = rollout._replace(reference_log_p_BT=known.log_p_BT)
    batch = by_step(batch_of(settings, rollout))
    learner, metrics = learn(settings, policy.evaluate, optimizer, run.learner, batch, learn_key)
    return run._replace(learner=learner), metrics | ended


def roll_out(practice: Practice, run: Run, key: jax.Array):
    """Steps in every copy of the world, which begins anew where it ends: (run, rollout, metrics).

    The metrics are of the episodes that ended. Where time was up, the value of what would have followed is
    added to the reward. All that is random is drawn before the loop, where that takes a fraction of the time.
    """
    _, world, policy, _, steps = practice
    params, shape = run.learner.params, (steps, len(run.score_B))
    noise_key, step_key, reset_key = jax.random.split(key, 3)
    noise_TB, key_TB = policy.noise(noise_key, shape), jax.random.split(step_key, shape)
    fresh_TB = jax.vmap(jax.vmap(world.reset))(jax.random.split(reset_key, shape))

    def step(carry, given_B):
        state_B, score_B = carry
        noise_B, key_B, fresh_B = given_B
        seen_B = jax.vmap(world.observe)(state_B)
        action_B = policy.act(params, seen_B, noise_B)
        next_B, reward_B, terminated_B, truncated_B = jax.vmap(world.step)(key_B, state_B, action_B)
        after_B, score_B, done_B = (
            jax.vmap(world.observe)(next_B),
            score_B + reward_B,
            terminated_B | truncated_B,
        )
        carry = jax.vmap(keep_if)(done_B, (fresh_B, jnp.zeros_like(score_B)), (next_B, score_B))
        return carry, (seen_B, action_B, reward_B, done_B, truncated_B & ~terminated_B, after_B, score_B)

    carry, walked = jax.lax.scan(step, (run.state_B, run.score_B), (noise_TB, key_TB, fresh_TB))
    walked = jax.tree.map(lambda x_TB: jnp.swapaxes(x_TB, 0, 1), walked)
    seen, action_BT, reward_BT, done_BT, cut_BT, after, score_BT = walked
    log_p_BT, _, value_BT = policy.evaluate(params, seen, action_BT)
    next_BT = policy.evaluate(params, after, action_BT).value_BT
    reward_BT = reward_BT + jnp.where(cut_BT, practice.settings.discount * next_BT, 0.0)
    earned = log_p_BT, value_BT, reward_BT, done_BT
    rollout = Rollout(seen, action_BT, *earned, jnp.ones_like(done_BT), next_BT[:, -1])
    ended = {"episodes": done_BT.sum().astype(jnp.float32), "episode_return": mean_of(score_BT, done_BT)}
    return Run(run.learner, *carry), rollout, ended


def by_step(batch: Batch) -> Batch:
    """Rows of one step each, (B · T, 1), for policies that look at single steps."""
    return jax.tree.map(lambda x_BT: x_BT.reshape(-1, 1, *x_BT.shape[2:]), batch)
