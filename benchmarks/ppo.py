"""PPO on CartPole: acting and learning as one compiled program against a loop in PyTorch, one agent each.

Settings, networks and optimizer are those of CleanRL's `ppo.py`: an actor and a critic with two layers of 64,
128 steps in 4 copies of the world, 4 epochs of 4 minibatches, Adam with a rate that falls to 0; also with 64
copies. The peer is `torch_ppo.py`, CleanRL's loop, over a CartPole in NumPy. Agreement first: of the
dynamics, the advantages, the loss and its gradients with a part of the ratios beyond the clip, and of the
parameters after an iteration of learning from the same steps in the same order. Then CPU seconds, the cases
taking turns: `steady` is an iteration once all is compiled, `learning` one without the acting, `from nothing`
a whole run with all that is compiled for it, and what it earned in its first and last tenth. Many agents side
by side are a row of their own and in no ratio. `of ceiling` is the share of the fastest matrix product that
the networks' products would reach if nothing else took time: what is near 1 no program can better.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from report import (
    fastest_seconds,
    finish,
    installed,
    matrix_gflops,
    options,
    require_agreement,
    use_one_core,
)

use_one_core()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from cart_pole import (  # noqa: E402
    ACTIONS,
    POLICY,
    SEEN,
    WORLD,
    Cart,
    evaluate,
    init,
    make_optimizer,
    step,
)

from editjax import ppo  # noqa: E402

STEPS, WIDTH, RATE = 128, 64, 2.5e-4
COPIES, MANY_COPIES, AGENTS = 4, 64, 16
AT_ONCE = 10  # iterations of ours in one call
RUN_STEPS, QUICK_RUN_STEPS = 500_000, 20_480
LEARNING = ((64, 512, 10), (512, 8192, 1), (2048, 2048, 1))  # width, steps to learn from, iterations at once
OURS, PEER = "ours", "PyTorch, CleanRL's loop"
TOLERANCE = 1e-4


def main() -> None:
    """Prove that both compute the same, then time them."""
    chosen = options(__doc__)
    rounds = 2 if chosen.quick else 10
    peer = installed("torch")
    if peer:
        compare_dynamics()
        compare_learning()
    rows, ratios = [], {}

    def add(what: str, columns: dict[str, Any], found: dict[str, dict[str, Any]], of: str) -> None:
        rows.extend({"what": what, "case": case, **columns, **row} for case, row in found.items())
        if PEER in found:
            named = ", ".join([what, *(f"{value:,} {name}" for name, value in columns.items())])
            ratios[f"{named}: {PEER} / ours"] = found[PEER][of] / found[OURS][of]

    for copies in (COPIES,) if chosen.quick else (COPIES, MANY_COPIES):
        add("steady", {"copies": copies}, steady(copies, peer, rounds), "ms")
    for width, samples, at_once in LEARNING[:1] if chosen.quick else LEARNING:
        found = learning(width, samples, at_once, peer, rounds if width < 2048 else 2)
        add("learning", {"width": width, "steps": samples}, found, "ms")
    run_steps = QUICK_RUN_STEPS if chosen.quick else RUN_STEPS
    add("from nothing", {"copies": COPIES, "steps": run_steps}, from_nothing(run_steps, peer), "s")
    if not chosen.quick:
        rows.append(many_agents(rounds))
    packages = ("jax", "optax", "numpy", *(["torch"] if peer else []))
    finish("ppo", rows, ratios, packages, chosen.out)


def practice_of(iterations: int) -> ppo.Practice:
    settings = ppo.PpoSettings(iterations=iterations)
    optimizer = make_optimizer(RATE, settings.epochs * settings.minibatches, iterations)
    return ppo.Practice(settings, WORLD, POLICY, optimizer, STEPS)


def new_run(practice: ppo.Practice, copies: int, seed: Any = 0) -> ppo.Run:
    first, second = jax.random.split(jax.random.key(seed))
    return ppo.new_run(practice, init(first, WIDTH), copies, second)


def many(practice: ppo.Practice, iterations: int) -> Callable[[ppo.Run, jax.Array], Any]:
    """So many iterations as one program: (run, metrics of each)."""

    def program(run: ppo.Run, key: jax.Array) -> Any:
        return jax.lax.scan(lambda run, _: ppo.iterate(practice, run, key), run, length=iterations)

    return program


def peer_of(practice: ppo.Practice, width: int, copies: int) -> Any:
    from torch_ppo import Loop

    return Loop(practice.settings, width, copies, STEPS, RATE)


def compare_dynamics() -> None:
    """Steps of random carts, in the middle and about to be over."""
    from torch_ppo import dynamics

    rng = np.random.default_rng(0)
    x_BC = rng.uniform(-1, 1, (10_000, 4)) * np.array([2.45, 2.0, 0.22, 2.0])
    action_B = rng.integers(0, 2, len(x_BC))
    wanted, over_B = dynamics(x_BC, action_B)
    cart = Cart(jnp.asarray(x_BC, jnp.float32), jnp.zeros(len(x_BC), jnp.int32))
    found, _, ours_B, _ = jax.jit(jax.vmap(step, (None, 0, 0)))(
        jax.random.key(0), cart, jnp.asarray(action_B)
    )
    require_agreement("dynamics", float(np.abs(found.x_4 - wanted).max()), 1e-6)
    require_agreement("carts over here and not there", int((np.asarray(ours_B) != over_B).sum()), 0)
    require_agreement("share of carts that are over − 1/2", abs(over_B.mean() - 0.5), 0.49)


def compare_learning() -> None:
    """Advantages; loss and gradients of a policy that has moved on; the parameters after an iteration."""
    import torch
    from torch_ppo import Steps, advantages, loss

    practice, key = practice_of(10), jax.random.key(1)
    settings, run = practice.settings, new_run(practice, COPIES)

    @jax.jit
    def ours(run: ppo.Run) -> Any:
        _, rollout, _ = ppo.roll_out(practice, run, key)
        batch = ppo.by_step(ppo.batch_of(settings, rollout))
        moved = jax.tree.map(
            lambda x: x + 0.2 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape),
            run.learner.params,
        )
        first = jax.grad(ppo.loss, has_aux=True)(moved, batch, settings, evaluate, settings.entropy)
        learner = ppo.new_learner(practice.optimizer, moved)
        learnt, _ = ppo.learn(settings, evaluate, practice.optimizer, learner, batch, key)
        order = ppo.shuffled(jax.random.fold_in(key, 0), settings.epochs, len(batch.log_p_BT))
        return rollout, batch, moved, first, learnt.params, order

    def tensor(x: Any) -> torch.Tensor:
        return torch.tensor(np.array(x))

    rollout, batch, moved, (gradient, found), params, order = ours(run)
    time_first = (rollout.reward_BT.T, rollout.value_BT.T, rollout.done_BT.T.astype(np.float32))
    theirs = advantages(settings, *map(tensor, time_first), tensor(rollout.last_value_B)).numpy()
    require_agreement(
        "advantages", float(np.abs(theirs.T.ravel() - batch.advantage_BT[:, 0]).max()), TOLERANCE
    )
    loop = peer_of(practice, WIDTH, COPIES)
    loop.agent.load(moved)
    rows = batch.seen, batch.action_BT, *batch[2:6]
    steps = Steps(*(tensor(x)[:, 0] for x in rows))
    total = loss(loop.agent, steps, settings)
    total.backward()
    require_agreement("share of ratios clipped − 1/2", abs(float(found["clipped"]) - 0.5), 0.45)
    require_agreement("loss", abs(total.item() / float(found["loss"]) - 1), TOLERANCE)
    require_agreement("gradients", unlike(gradient, loop.agent.ours(gradient=True)), TOLERANCE)
    loop.learn(steps, np.array(order).reshape(settings.epochs * settings.minibatches, -1))
    ours_moved, theirs_moved = (jax.tree.map(np.subtract, p, moved) for p in (params, loop.agent.ours()))
    require_agreement("changes of an iteration", unlike(ours_moved, theirs_moved), 10 * TOLERANCE)


def unlike(ours: Any, theirs: Any) -> float:
    """The largest difference of two trees, each array's as a part of its own largest entry."""
    parts = jax.tree.map(lambda a, b: np.abs(np.subtract(a, b)).max() / np.abs(a).max(), ours, theirs)
    return float(max(jax.tree.leaves(parts)))


def steady(copies: int, peer: bool, rounds: int) -> dict[str, dict[str, Any]]:
    """An iteration, acting and learning, of one agent."""
    practice, key = practice_of(1_000_000), jax.random.key(0)
    program, run = jax.jit(many(practice, AT_ONCE)), new_run(practice, copies)

    def ours() -> None:
        nonlocal run
        run, _ = jax.block_until_ready(program(run, key))

    cases: dict[str, Callable[[], Any]] = {OURS: ours}
    if peer:
        cases[PEER] = peer_of(practice, WIDTH, copies).iterate
    seconds = fastest_seconds(cases, rounds)
    seconds[OURS] /= AT_ONCE
    return {case: speed(taken, copies * STEPS) for case, taken in seconds.items()}


def speed(taken_s: float, steps: int) -> dict[str, float]:
    return {"ms": 1e3 * taken_s, "steps / s": steps / taken_s}


def learning(width: int, samples: int, at_once: int, peer: bool, rounds: int) -> dict[str, dict[str, Any]]:
    """An iteration of learning alone, from random steps; ours some at once, as they are within a run."""
    practice, rng = practice_of(1_000_000), np.random.default_rng(0)
    settings, optimizer = practice.settings, practice.optimizer
    seen = rng.normal(size=(samples, 1, SEEN)).astype(np.float32)
    action = rng.integers(0, ACTIONS, (samples, 1))
    noise, *others = rng.normal(size=(4, samples, 1)).astype(np.float32)
    arrays = np.log(0.5) + 0.1 * noise, *others
    batch = jax.device_put(ppo.Batch(seen, action, *arrays, np.ones((samples, 1), bool)))

    @jax.jit
    def program(learner: ppo.Learner, batch: ppo.Batch) -> Any:
        step = partial(ppo.learn, settings, evaluate, optimizer, batch=batch, key=jax.random.key(0))
        return jax.lax.scan(lambda learner, _: step(learner), learner, length=at_once)

    params = init(jax.random.key(0), width)
    learner = ppo.new_learner(optimizer, params)

    def ours() -> None:
        nonlocal learner
        learner, _ = jax.block_until_ready(program(learner, batch))

    cases: dict[str, Callable[[], Any]] = {OURS: ours}
    if peer:
        import torch
        from torch_ppo import Steps

        loop = peer_of(practice, width, samples // STEPS)
        steps = Steps(*(torch.tensor(x[:, 0]) for x in (seen, action, *arrays)))
        cases[PEER] = lambda: loop.learn(steps, loop.shuffled())
    seconds = fastest_seconds(cases, rounds)
    seconds[OURS] /= at_once
    kernels = [[layer["kernel"].size for layer in layers] for layers in params.values()]
    products = sum(3 * sum(sizes) - sizes[0] for sizes in kernels)  # what is seen has no gradient
    least_s = 2e-9 * products * samples * settings.epochs / matrix_gflops()
    return {case: {"ms": 1e3 * taken, "of ceiling": least_s / taken} for case, taken in seconds.items()}


def from_nothing(steps: int, peer: bool) -> dict[str, dict[str, Any]]:
    """A whole run of one agent, compiling included; it must earn more at the end than at first."""
    iterations = steps // (COPIES * STEPS)
    tenth = iterations // 10
    practice = practice_of(iterations)

    def ours() -> tuple[float, float]:
        jax.clear_caches()
        run = new_run(practice, COPIES, 1)
        _, found = jax.block_until_ready(jax.jit(many(practice, iterations))(run, jax.random.key(1)))
        count, returns = np.asarray(found["episodes"]), np.asarray(found["episode_return"])
        parts = slice(tenth), slice(-tenth, None)
        first, last = (float((count[of] * returns[of]).sum() / count[of].sum()) for of in parts)
        return first, last

    def theirs() -> tuple[float, float]:
        loop, ended = peer_of(practice, WIDTH, COPIES), [0]
        for _ in range(iterations):
            loop.iterate()
            ended.append(len(loop.carts.scores))
        scores = loop.carts.scores
        return float(np.mean(scores[: ended[tenth]])), float(np.mean(scores[ended[-1 - tenth] :]))

    found = {}
    for case, whole in {OURS: ours, **({PEER: theirs} if peer else {})}.items():
        began = time.process_time()
        first, last = whole()
        found[case] = {"s": time.process_time() - began, "return at first": first, "return at last": last}
        require_agreement(f"{case}: first of what is earned over last", first / last, 0.9)
    return found


def many_agents(rounds: int) -> dict[str, Any]:
    """Agents that know nothing of each other, in one program."""
    practice, keys = practice_of(1_000_000), jax.random.split(jax.random.key(0), AGENTS)
    runs = jax.jit(jax.vmap(partial(new_run, practice, COPIES)))(jnp.arange(AGENTS))
    program = jax.jit(jax.vmap(many(practice, AT_ONCE)))

    def ours() -> None:
        nonlocal runs
        runs, _ = jax.block_until_ready(program(runs, keys))

    taken_s = fastest_seconds({OURS: ours}, rounds)[OURS] / AT_ONCE
    name = f"{AGENTS} agents side by side, all together"
    return {"what": name, "case": OURS, "copies": COPIES, **speed(taken_s, AGENTS * COPIES * STEPS)}


if __name__ == "__main__":
    main()
