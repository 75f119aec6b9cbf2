"""What PPO must keep to. Every function takes `editjax.ppo`, or a mutant of it, and fails if it does not."""

from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import ppo_cases as cases
import pytest
from jax.sharding import PartitionSpec
from ppo_cases import DISTANCE, GOAL, MOVES, SETTINGS, SIDE, draw, evaluate_freely, evaluate_table

from editjax.errors import UsageError
from editjax.mesh import EXAMPLES, REPLICATED, MeshSettings, make_mesh

SEEDS = 20


def settings_of(ppo: ModuleType, **changes: Any) -> Any:
    return ppo.PpoSettings(**SETTINGS | changes)


def advantages(ppo: ModuleType, rollout: Any, **changes: Any) -> np.ndarray:
    return np.asarray(jax.jit(partial(ppo.advantages, settings_of(ppo, **changes)))(rollout))


def loss_and_gradient(ppo: ModuleType, drawn: Any, settings: Any, padding: float = 0.0) -> Any:
    """Of all rows: (loss, metrics), and gradients of the loss for what the policy says of every step."""

    def of(params: Any, rollout: Any) -> Any:
        batch = ppo.batch_of(settings, rollout)
        evaluate = evaluate_freely(ppo)
        return jax.value_and_grad(ppo.loss, has_aux=True)(params, batch, settings, evaluate, 0.03)

    return jax.jit(of)(drawn.now(padding), drawn.rollout(ppo, padding))


def advantages_are_their_closed_form(ppo):
    drawn, shares = draw(10_000, 30), {"discount": 0.99, "trace": 0.95}
    wanted = cases.closed_form(drawn, **shares)
    with jax.enable_x64(True):
        found = advantages(ppo, drawn.rollout(ppo, dtype=np.float64), **shares)
    assert found.dtype == np.float64 and found[drawn.done].any() and (~drawn.counted).any()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(advantages(ppo, drawn.rollout(ppo), **shares), wanted, rtol=0, atol=1e-5)


def with_a_whole_trace_they_are_returns_less_values(ppo):
    drawn = draw(200, 12)
    found = advantages(ppo, drawn.rollout(ppo), trace=1.0) + np.where(drawn.counted, drawn.value, 0)
    for row, length in enumerate(drawn.counted.sum(1)):
        later = drawn.last_value[row]
        for t in reversed(range(length)):
            later = drawn.reward[row, t] + (0 if drawn.done[row, t] else SETTINGS["discount"] * later)
            assert found[row, t] == pytest.approx(later, abs=1e-5)


def without_a_trace_they_are_one_step_errors(ppo):
    drawn = draw(200, 12)
    found, ends = advantages(ppo, drawn.rollout(ppo), trace=0.0), drawn.counted.sum(1) - 1
    for row, t in zip(*np.nonzero(drawn.counted), strict=True):
        following = drawn.last_value[row] if t == ends[row] else drawn.value[row, t + 1]
        following = 0 if drawn.done[row, t] else SETTINGS["discount"] * following
        error = drawn.reward[row, t] + following - drawn.value[row, t]
        assert found[row, t] == pytest.approx(error, abs=1e-6)


def nothing_flows_back_from_behind_an_end(ppo):
    drawn, at = draw(4, 9), 4
    drawn.done[:, at], drawn.counted[:] = True, True
    rng = np.random.default_rng(1)
    others = {name: np.array(getattr(drawn, name)) for name in ("value", "reward", "done", "last_value")}
    for name, x in others.items():
        after = x if x.ndim == 1 else x[:, at + 1 :]
        after[:] = (
            rng.uniform(size=after.shape) < 0.5 if name == "done" else 1e3 * rng.normal(size=after.shape)
        )
    one, other = (advantages(ppo, d.rollout(ppo)) for d in (drawn, drawn._replace(**others)))
    np.testing.assert_array_equal(one[:, : at + 1], other[:, : at + 1])
    assert np.abs(one - other).max() > 100


def padding_holds_what_it_likes(ppo):
    drawn = draw(6, 7)
    settings = settings_of(ppo, tether=0.1)
    (clean, metrics), gradient = loss_and_gradient(ppo, drawn, settings)
    other = drawn._replace(done=np.where(drawn.counted, drawn.done, ~drawn.done))
    (poisoned, same), gradient_too = loss_and_gradient(ppo, other, settings, padding=np.nan)
    assert clean == poisoned and np.isfinite(clean) and metrics == same
    jax.tree.map(np.testing.assert_array_equal, gradient, gradient_too)
    for x in gradient.values():
        assert not np.any(np.asarray(x)[~drawn.counted.ravel()])
    longer = drawn._replace(**{
        name: np.concatenate([x, np.zeros((6, 3), x.dtype)], axis=1)
        for name, x in drawn._asdict().items()
        if x.ndim == 2
    })  # fmt: skip
    (appended, _), _ = loss_and_gradient(ppo, longer, settings)
    assert clean == pytest.approx(float(appended), rel=1e-6)


def rows_of_padding_alone_change_no_number(ppo):
    drawn = draw(6, 7)
    drawn.counted[3:] = False
    few = drawn._replace(**{name: x[:3] for name, x in drawn._asdict().items()})
    settings = settings_of(ppo)
    (all_rows, _), _ = loss_and_gradient(ppo, drawn, settings, padding=np.nan)
    (three, _), _ = loss_and_gradient(ppo, few, settings)
    assert float(all_rows) == pytest.approx(float(three), rel=1e-6)
    drawn.counted[:] = False
    (nothing, _), gradient = loss_and_gradient(ppo, drawn, settings, padding=np.nan)
    assert nothing == 0 and not any(np.any(np.asarray(x)) for x in gradient.values())


def the_loss_is_that_of_numpy(ppo):
    drawn = draw(16, 12)
    settings = settings_of(ppo, tether=0.3, value=0.7)
    (found, metrics), _ = loss_and_gradient(ppo, drawn, settings)
    assert float(found) == pytest.approx(cases.loss_in_numpy(drawn, settings, 0.03), rel=1e-5)
    new, old, reference = drawn.now_log_p, drawn.log_p, drawn.reference
    assert metrics["kl"] == pytest.approx(cases.mean_k3(old, new, drawn.counted), rel=1e-5)
    assert metrics["tether_kl"] == pytest.approx(cases.mean_k3(new, reference, drawn.counted), rel=1e-5)
    far = np.abs(np.exp(new - old) - 1)[drawn.counted] > settings.clip
    assert 0 < metrics["clipped"] == pytest.approx(far.mean(), rel=1e-6)


def ratios_are_those_of_single_steps(ppo):
    """A row of 2,000 steps each of which is 5 % likelier: their product is 2e42, beyond float32."""
    steps = 2000
    drawn = draw(2, steps)
    drawn.counted[:] = True
    drawn = drawn._replace(now_log_p=drawn.log_p + np.log(1.05))
    (found, metrics), gradient = loss_and_gradient(ppo, drawn, settings_of(ppo, value=0.0))
    assert np.isfinite(found) and metrics["clipped"] == 0
    assert np.all(np.asarray(gradient["log_p"]) != 0) and abs(float(metrics["policy"])) < 1e-3


def a_ratio_beyond_the_clip_has_no_gradient(ppo):
    settings = settings_of(ppo)
    ratio = jnp.array([[0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0]])
    slope = jax.grad(lambda log_ratio, sign: ppo.policy_loss(settings, log_ratio, sign).sum())
    better, worse = (slope(jnp.log(ratio), jnp.full_like(ratio, sign)) for sign in (1.0, -1.0))
    np.testing.assert_allclose(better, jnp.where(ratio < 1.2, -ratio, 0.0), rtol=1e-6)
    np.testing.assert_allclose(worse, jnp.where(ratio > 0.8, ratio, 0.0), rtol=1e-6)


def a_value_beyond_the_clip_has_no_gradient(ppo):
    old, wanted = jnp.zeros((1, 6)), jnp.full((1, 6), 1.0)
    value = jnp.array([[-0.5, -0.19, 0.0, 0.19, 0.21, 0.9]])

    def slope(**changes):
        settings = settings_of(ppo, **changes)
        return jax.grad(lambda value: ppo.value_loss(settings, value, old, wanted).sum())(value)

    np.testing.assert_allclose(slope(clip_value=False), value - wanted, rtol=1e-6)
    np.testing.assert_allclose(slope(), jnp.where(value < 0.2, value - wanted, 0.0), rtol=1e-6)


def advantages_are_normalised_without_the_padding(ppo):
    drawn = draw(8, 9)
    found = np.asarray(ppo.normalised(jnp.asarray(drawn.reward, jnp.float32), jnp.asarray(drawn.counted)))
    known = drawn.reward[drawn.counted]
    np.testing.assert_allclose(found[drawn.counted], (known - known.mean()) / known.std(), rtol=1e-4)
    alike = ppo.normalised(jnp.full((8, 9), 3.0), jnp.asarray(drawn.counted))
    assert not np.any(np.asarray(alike)[drawn.counted])


def the_divergence_is_right_on_average_and_never_negative(ppo):
    logits_A, other_A = jax.random.normal(jax.random.key(0), (2, 9))
    log_p_A, log_q_A = jax.nn.log_softmax(logits_A), jax.nn.log_softmax(other_A)
    k3_A = ppo.divergence(log_p_A, log_q_A)
    exact = (jnp.exp(log_p_A) * (log_p_A - log_q_A)).sum()
    assert float((jnp.exp(log_p_A) * k3_A).sum()) == pytest.approx(float(exact), rel=1e-5)
    assert (k3_A > 0).all() and not ppo.divergence(log_p_A, log_p_A).any()


def explained_variance_is_one_of_the_truth_and_zero_of_a_constant(ppo):
    drawn = draw(8, 9)
    counted, wanted = jnp.asarray(drawn.counted), jnp.asarray(drawn.reward, jnp.float32)
    garbage = jnp.where(counted, wanted, 100.0)
    assert ppo.explained_variance(garbage, wanted, counted) == 1
    assert float(ppo.explained_variance(jnp.full((8, 9), 7.0), wanted, counted)) == pytest.approx(0, abs=1e-5)
    assert float(ppo.explained_variance(-wanted, wanted, counted)) == pytest.approx(-3, abs=1e-5)


def an_action_that_cannot_be_has_no_part_in_entropy(ppo):
    logits = jnp.array([[[0.3, -jnp.inf, 1.2]]])
    action = jnp.array([[2]])

    def both(logits):
        log_p, entropy = ppo.categorical(logits, action)
        return log_p.sum() + entropy.sum(), (log_p, entropy)

    (_, (log_p, entropy)), gradient = jax.value_and_grad(both, has_aux=True)(logits)
    p = np.exp([0.3, 1.2]) / np.exp([0.3, 1.2]).sum()
    np.testing.assert_allclose(log_p, [[np.log(p[1])]], rtol=1e-6)
    np.testing.assert_allclose(entropy, [[-(p * np.log(p)).sum()]], rtol=1e-6)
    assert np.isfinite(gradient).all() and gradient[0, 0, 1] == 0


def the_weight_of_entropy_goes_in_a_line(ppo):
    settings = settings_of(ppo, entropy=0.5, final_entropy=0.1, iterations=4)
    found = [float(ppo.entropy_weight(settings, iteration)) for iteration in (0, 1, 2, 4, 9)]
    assert found == pytest.approx([0.5, 0.4, 0.3, 0.1, 0.1])
    settings, params, batch = tables(ppo, epochs=1, entropy=0.5, final_entropy=0.1, iterations=4)
    learner, metrics = learnt(ppo, settings, params, batch, optax.sgd(0.0), iteration=1)
    assert metrics["entropy_weight"] == pytest.approx(0.4) and learner.iteration == 2
    parts = metrics["policy"] + settings.value * metrics["value"] - 0.4 * metrics["entropy"]
    assert float(metrics["loss"]) == pytest.approx(float(parts), rel=1e-5)


def tables(ppo: ModuleType, rows: int = 8, **settings: Any) -> Any:
    """(settings, parameters, batch): a table entry for every row of two steps, which did both things. In even
    rows the first was better, in odd ones neither."""
    log_p = jax.random.normal(jax.random.key(0), (rows, 2))
    params = {"logits": log_p, "value": jnp.zeros(rows)}
    seen_BTC = jnp.repeat(jnp.eye(rows)[:, None], 2, axis=1)
    action_BT = jnp.tile(jnp.array([[0, 1]]), (rows, 1))
    live_B1 = (jnp.arange(rows) % 2 == 0).astype(jnp.float32)[:, None]
    did = evaluate_table(ppo)(params, seen_BTC, action_BT)
    advantage_BT = live_B1 * jnp.array([[1.0, -1.0]])
    learnt = did.log_p_BT, did.value_BT, advantage_BT, advantage_BT, jnp.ones((rows, 2), bool)
    batch = ppo.Batch(seen_BTC, action_BT, *learnt)
    return settings_of(ppo, minibatches=rows, **settings), params, batch


def learnt(
    ppo: ModuleType, settings: Any, params: Any, batch: Any, optimizer: Any, iteration: int = 0
) -> Any:
    """(learner, metrics) after one iteration."""
    learner = ppo.new_learner(optimizer, params)._replace(iteration=jnp.asarray(iteration))
    step = partial(ppo.learn, settings, evaluate_table(ppo), optimizer)
    return jax.jit(step)(learner, batch, jax.random.key(3))


def beyond_the_target_nothing_changes(ppo):
    """As if the rate had been 0 from there on, for the rows as well that would not go beyond it."""
    settings, params, batch = tables(ppo, epochs=4, entropy=0.2, final_entropy=0.2)
    stopped, metrics = learnt(ppo, replace(settings, target_kl=0.1), params, batch, optax.sgd(10.0))
    made = int(metrics["updates"])
    assert 8 <= made < 20
    all_live = batch._replace(advantage_BT=jnp.tile(batch.advantage_BT[:1], (8, 1)))
    _, metrics = learnt(ppo, replace(settings, target_kl=0.1), params, all_live, optax.sgd(10.0))
    assert int(metrics["updates"]) == 8  # in the second epoch every row is beyond it

    def until_then(count):
        return jnp.where(count < made, 10.0, 0.0)

    cut, _ = learnt(ppo, settings, params, batch, optax.sgd(until_then))
    free, _ = learnt(ppo, settings, params, batch, optax.sgd(10.0))
    np.testing.assert_allclose(stopped.params["logits"], cut.params["logits"], rtol=1e-6)
    assert np.abs(stopped.params["logits"] - free.params["logits"]).max() > 0.1
    _, all_made = learnt(ppo, replace(settings, target_kl=1e9), params, batch, optax.sgd(10.0))
    assert int(all_made["updates"]) == 32


def what_is_not_finite_changes_nothing(ppo):
    settings, params, batch = tables(ppo, epochs=1, entropy=0.1)
    before = batch._replace(return_BT=batch.return_BT.at[4, 0].set(jnp.nan))
    optimizer = optax.sgd(1.0)
    learner, metrics = learnt(ppo, settings, params, before, optimizer)
    assert int(metrics["updates"]) == 7 and np.isnan(metrics["loss"])
    changed = np.any(learner.params["logits"] != params["logits"], axis=1)
    assert changed.tolist() == [row != 4 for row in range(8)]


def every_row_is_learnt_from_once_an_epoch(ppo):
    order = np.asarray(ppo.shuffled(jax.random.key(0), 400, 24))
    assert order.shape == (400, 24) and order.dtype == np.int32
    assert (np.sort(order, axis=1) == np.arange(24)).all()
    first_half = (order[:, :12] == 5).any(1).mean()
    assert len(np.unique(order, axis=0)) == 400 and 0.4 < first_half < 0.6
    settings, params, batch = tables(ppo, epochs=1, entropy=0.2)
    _, metrics = learnt(ppo, settings, params, batch, optax.sgd(1.0))
    assert int(metrics["updates"]) == 8


def the_first_minibatch_follows_the_plain_policy_gradient(ppo):
    practice = cases.practice(ppo, cases.bandit(ppo), 4, 6, value=0.0, entropy=0.0, final_entropy=0.0)
    params = jax.tree.map(
        lambda x: x + jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), cases.table(4, 4)
    )
    _, rollout, _ = cases.walked(ppo, practice, params, 8)
    batch = jax.jit(lambda rollout: ppo.by_step(ppo.batch_of(practice.settings, rollout)))(rollout)
    evaluate = evaluate_table(ppo)
    advantage = np.asarray(batch.advantage_BT, np.float64)
    normal = jnp.asarray((advantage - advantage.mean()) / advantage.std(), jnp.float32)

    def plain(params):
        return -(normal * evaluate(params, batch.seen, batch.action_BT).log_p_BT).mean()

    def both(params):
        first = jax.grad(ppo.loss, has_aux=True)(params, batch, practice.settings, evaluate, 0.0)
        return first, jax.grad(plain)(params)

    (found, metrics), wanted = jax.jit(both)(params)
    np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=1e-4, atol=1e-7)
    assert metrics["kl"] == 0 == metrics["clipped"] and np.abs(wanted["logits"]).max() > 0.01
    now = jax.jit(evaluate)(params, batch.seen[:12], batch.action_BT[:12])
    np.testing.assert_array_equal(jnp.exp(now.log_p_BT - batch.log_p_BT[:12]), np.ones((12, 1)))


def the_learner_agrees_with_the_sampler(ppo):
    """Whatever acts does so as often as learning believes."""
    practice = cases.practice(ppo, cases.clock(ppo, over=True, hours=1), 4, 256)
    params = {"logits": jnp.array([[0.0, 1.0, 2.0, -1.0], [0.0] * 4]), "value": jnp.zeros(2)}
    _, rollout, _ = cases.walked(ppo, practice, params, 64)
    log_p_A = np.asarray(jax.nn.log_softmax(params["logits"][0]))
    actions = np.asarray(rollout.action_BT)
    np.testing.assert_allclose(rollout.log_p_BT, log_p_A[actions], rtol=1e-6)
    share = np.bincount(actions.ravel(), minlength=4) / actions.size
    p = np.exp(log_p_A)
    assert (np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / actions.size)).all()


def a_world_begins_anew_where_it_ends(ppo):
    """Seven steps of a clock of three hours, in two stretches: what is seen, paid, ended, and summed."""
    practice = cases.practice(ppo, cases.clock(ppo, over=True), 2, 4)
    run = ppo.new_run(practice, cases.table(4, 2), 2, jax.random.key(0))
    step = jax.jit(partial(ppo.roll_out, practice))
    run, one, first = step(run, jax.random.key(1))
    run, two, second = step(run, jax.random.key(2))
    hours = np.concatenate([np.argmax(rollout.seen, axis=-1) for rollout in (one, two)], axis=1)
    assert (hours == np.arange(8) % 3).all() and (run.state_B == 2).all() and (run.score_B == 1).all()
    assert (np.concatenate([one.reward_BT, two.reward_BT], axis=1) == hours).all()
    assert (np.concatenate([one.done_BT, two.done_BT], axis=1) == (hours == 2)).all()
    assert one.counted_BT.all() and first == second == {"episodes": 2, "episode_return": 3}


def time_that_is_up_is_no_end(ppo):
    """The value of what would have followed is earned; where it is over, nothing is."""
    params = {"logits": jnp.zeros((4, 2)), "value": jnp.array([10.0, 20.0, 30.0, 40.0])}
    wanted = {True: [0, 1, 2, 0], False: [0, 1, 2 + 0.9 * 40, 0]}
    for over in (True, False):
        practice = cases.practice(ppo, cases.clock(ppo, over=over), 2, 4)
        _, rollout, metrics = cases.walked(ppo, practice, params, 2)
        np.testing.assert_allclose(rollout.reward_BT, [wanted[over]] * 2, rtol=1e-6)
        assert rollout.done_BT.tolist() == [[False, False, True, False]] * 2
        assert metrics["episode_return"] == 3 and rollout.value_BT.tolist() == [[10, 20, 30, 10]] * 2
        assert rollout.last_value_B.tolist() == [20, 20]


def values_that_were_cut_off_are_learnt_as_if_they_went_on(ppo):
    """A clock of one hour that never ends pays 1 for ever, 1 / (1 − γ) = 10; one that is over pays 1."""
    found = {}
    for over in (True, False):
        world = cases.clock(ppo, over=over, hours=1)
        world = world._replace(
            observe=lambda hour: jnp.ones(1),
            step=lambda *a, step=world.step: (a[1], jnp.ones(()), *step(*a)[2:]),
        )
        practice = cases.practice(ppo, world, 2, 16, rate=0.1, clip_value=False)
        run, _ = jax.jit(
            lambda practice=practice: cases.practised(ppo, practice, cases.table(1, 2), 4, 0, 200)
        )()
        found[over] = float(run.learner.params["value"][0])
    assert found == {True: pytest.approx(1, rel=0.02), False: pytest.approx(10, rel=0.02)}


def the_tether_has_the_gradient_of_the_divergence(ppo):
    new_A, old_A, reference_A = jax.random.normal(jax.random.key(1), (3, 7))
    old, reference = jax.nn.log_softmax(old_A), jax.nn.log_softmax(reference_A)

    def exact(logits_A):
        log_p = jax.nn.log_softmax(logits_A)
        return (jnp.exp(log_p) * (log_p - reference)).sum()

    def on_average(logits_A):
        log_p = jax.nn.log_softmax(logits_A)
        return (jnp.exp(old) * ppo.tether_loss(log_p - old, log_p, reference)).sum()

    np.testing.assert_allclose(jax.grad(on_average)(new_A), jax.grad(exact)(new_A), rtol=1e-4, atol=1e-6)


def the_tether_pulls_to_the_reference(ppo):
    """Where nothing is paid."""
    reference = {"logits": jnp.array([[1.5, -1.0], [-0.5, 0.7], [0.0, 0.0]]), "value": jnp.zeros(3)}
    world = cases.clock(ppo, over=True, hours=2)
    world = world._replace(step=lambda *a, step=world.step: (step(*a)[0], jnp.zeros(()), *step(*a)[2:]))
    weights = {"tether": 1.0, "entropy": 0.0, "final_entropy": 0.0}
    practice = cases.practice(ppo, world, 2, 32, rate=0.05, **weights)

    @jax.jit
    def many(params, key):
        run = ppo.new_run(practice, params, 8, key)
        return jax.lax.scan(lambda run, _: ppo.iterate(practice, run, key, reference), run, length=60)

    run, metrics = many(cases.table(3, 2), jax.random.key(0))
    log_p, wanted = (jax.nn.log_softmax(p["logits"][:2]) for p in (run.learner.params, reference))
    assert (jnp.exp(log_p) * (log_p - wanted)).sum(-1).max() < 0.005
    assert metrics["tether_kl"][0] > 0.1 > 0.01 > metrics["tether_kl"][-1]
    with pytest.raises(UsageError, match="a tether needs what the reference policy says"):
        jax.eval_shape(partial(ppo.iterate, practice), run, jax.random.key(1))


def every_iteration_draws_anew(ppo):
    settings, params, batch = tables(ppo, epochs=1, entropy=0.1, final_entropy=0.1)
    momentum = optax.sgd(0.5, momentum=0.9)  # with it the order matters
    first, second = (learnt(ppo, settings, params, batch, momentum, i)[0].params for i in (0, 1))
    assert np.any(first["logits"] != second["logits"])
    practice = cases.practice(ppo, cases.bandit(ppo), 4, 8)
    run = ppo.new_run(practice, cases.table(4, 4), 4, jax.random.key(0))
    step = jax.jit(lambda learner: ppo.iterate(practice, run._replace(learner=learner), jax.random.key(1))[1])
    found = [step(run.learner._replace(iteration=jnp.asarray(i)))["episode_return"] for i in range(4)]
    assert len(set(map(float, found))) > 1


def many_iterations_are_one_program(ppo):
    practice = cases.practice(ppo, cases.bandit(ppo), 4, 4, rate=0.1)
    key, params = jax.random.key(0), cases.table(4, 4)
    together, metrics = jax.jit(lambda: cases.practised(ppo, practice, params, 4, 0, 3))()
    run = ppo.new_run(practice, params, 4, jax.random.fold_in(key, 1))
    step, returns = jax.jit(lambda run: ppo.iterate(practice, run, key)), []
    for _ in range(3):
        run, found = step(run)
        returns.append(float(found["episode_return"]))
    assert int(run.learner.iteration) == 3 and metrics["episode_return"].tolist() == pytest.approx(returns)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), run, together)


def the_bandit_is_solved_by_every_seed(ppo):
    practice = cases.practice(ppo, cases.bandit(ppo), 4, 8, rate=0.05, epochs=4, minibatches=4, iterations=60)
    one = partial(cases.practised, ppo, practice, cases.table(4, 4), 16, iterations=60)
    run, metrics = jax.jit(jax.vmap(lambda seed: one(seed)))(jnp.arange(SEEDS))
    best = np.asarray(run.learner.params["logits"]).argmax(-1)
    assert (best == (np.arange(4) + 1) % 4).all()
    assert metrics["episode_return"][:, :3].mean() < 0.5 and metrics["episode_return"][:, -10:].mean() > 0.75


def the_grid_is_solved_by_every_seed(ppo):
    """Every step of the learnt policy leads nearer to the goal, and values are those of the shortest way."""
    weights = {"entropy": 0.02, "final_entropy": 0.0, "iterations": 120, "epochs": 4, "minibatches": 4}
    practice = cases.practice(ppo, cases.grid(ppo), 4, 32, rate=0.05, clip_value=False, **weights)
    one = partial(cases.practised, ppo, practice, cases.table(SIDE * SIDE, 4), 16, iterations=120)
    run, metrics = jax.jit(jax.vmap(lambda seed: one(seed)))(jnp.arange(SEEDS))
    best = np.asarray(run.learner.params["logits"]).argmax(-1)[:, :GOAL]
    place = np.stack(np.divmod(np.arange(GOAL), SIDE), -1)
    to = np.clip(place + MOVES[best], 0, SIDE - 1)
    assert (DISTANCE[to[..., 0] * SIDE + to[..., 1]] == DISTANCE[:GOAL] - 1).all()
    wanted = SETTINGS["discount"] ** (DISTANCE[:GOAL] - 1)
    off = np.abs(np.asarray(run.learner.params["value"])[:, :GOAL] - wanted).max()
    assert off < 0.1, off
    assert metrics["episode_return"][:, -1].min() > 0.95


def labels_of_padded_recordings_are_learnt(ppo):
    """One pass gives the labels of all beats of recordings of unequal length; what is right pays at once."""
    beats, labels = 6, 3
    right_T = jnp.array([0, 2, 1, 1, 0, 2])
    counted_BT = jnp.arange(beats)[None, :] < jnp.array([[6], [3], [4], [6], [2], [5], [6], [1]])
    seen_BTC = jnp.where(counted_BT[..., None], jnp.eye(beats)[None], 0.0)
    settings = settings_of(ppo, discount=0.0)
    evaluate, optimizer = evaluate_table(ppo), optax.adam(0.1)

    def one(learner, _):
        key = jax.random.fold_in(jax.random.key(0), learner.iteration)
        label_BT = jax.random.categorical(key, seen_BTC @ learner.params["logits"])
        did = evaluate(learner.params, seen_BTC, label_BT)
        paid_BT = jnp.where(counted_BT, (label_BT == right_T[None]).astype(jnp.float32), jnp.nan)
        done_BT = jnp.zeros_like(counted_BT)
        earned = did.log_p_BT, did.value_BT, paid_BT, done_BT, counted_BT, jnp.zeros(8)
        batch = ppo.batch_of(settings, ppo.Rollout(seen_BTC, label_BT, *earned))
        return ppo.learn(settings, evaluate, optimizer, learner, batch, key)

    start = ppo.new_learner(optimizer, cases.table(beats, labels))
    learner, _ = jax.jit(lambda start: jax.lax.scan(one, start, length=60))(start)
    assert (np.argmax(learner.params["logits"], axis=-1) == right_T).all()


def rows_must_divide_into_minibatches(ppo):
    settings, params, batch = tables(ppo)
    with pytest.raises(UsageError, match="8 rows do not divide into 3 minibatches"):
        learnt(ppo, replace(settings, minibatches=3), params, batch, optax.sgd(1.0))


def many_devices_give_the_numbers_of_one(ppo):
    """Acting and learning in copies of a world, and learning from padded rows."""
    mesh = make_mesh(MeshSettings(data=2, fsdp=2))
    split, whole = (jax.sharding.NamedSharding(mesh, spec) for spec in (PartitionSpec(EXAMPLES), REPLICATED))
    practice = cases.practice(ppo, cases.clock(ppo, over=False), 2, 4, rate=0.05, target_kl=0.5, epochs=1)
    drawn, optimizer, evaluate = draw(8, 9), practice.optimizer, evaluate_freely(ppo)

    @jax.jit
    def both(run, rollout, learner):
        key, batch = jax.random.key(1), ppo.batch_of(practice.settings, rollout)
        learnt = ppo.learn(practice.settings, evaluate, optimizer, learner, batch, key)
        return ppo.iterate(practice, run, key), learnt

    run = ppo.new_run(practice, cases.table(4, 2), 8, jax.random.key(0))
    rollout, learner = drawn.rollout(ppo, np.nan), ppo.new_learner(optimizer, drawn.now())
    layout = ppo.Run(whole, split, split), split, whole
    placed = jax.device_put((run, rollout, learner), layout)
    assert len(placed[0].state_B.sharding.device_set) == 4
    one, many = both(run, rollout, learner), both(*placed)
    assert len(many[0][0].state_B.sharding.device_set) == 4
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, many)


CLAIMS = [
    advantages_are_their_closed_form,
    with_a_whole_trace_they_are_returns_less_values,
    without_a_trace_they_are_one_step_errors,
    nothing_flows_back_from_behind_an_end,
    padding_holds_what_it_likes,
    rows_of_padding_alone_change_no_number,
    the_loss_is_that_of_numpy,
    ratios_are_those_of_single_steps,
    a_ratio_beyond_the_clip_has_no_gradient,
    a_value_beyond_the_clip_has_no_gradient,
    advantages_are_normalised_without_the_padding,
    the_divergence_is_right_on_average_and_never_negative,
    explained_variance_is_one_of_the_truth_and_zero_of_a_constant,
    an_action_that_cannot_be_has_no_part_in_entropy,
    the_weight_of_entropy_goes_in_a_line,
    beyond_the_target_nothing_changes,
    what_is_not_finite_changes_nothing,
    every_row_is_learnt_from_once_an_epoch,
    the_first_minibatch_follows_the_plain_policy_gradient,
    the_learner_agrees_with_the_sampler,
    a_world_begins_anew_where_it_ends,
    time_that_is_up_is_no_end,
    values_that_were_cut_off_are_learnt_as_if_they_went_on,
    the_tether_has_the_gradient_of_the_divergence,
    the_tether_pulls_to_the_reference,
    every_iteration_draws_anew,
    many_iterations_are_one_program,
    the_bandit_is_solved_by_every_seed,
    the_grid_is_solved_by_every_seed,
    labels_of_padded_recordings_are_learnt,
    rows_must_divide_into_minibatches,
    many_devices_give_the_numbers_of_one,
]
