"""PPO: every claim, and mistakes in the module each of which breaks one."""

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import ppo_claims as claims
import pytest

from editjax import ppo
from editjax.errors import UsageError

SOURCE = Path(ppo.__file__).read_text(encoding="utf-8")


class Mistake(NamedTuple):
    """What is written instead of something that is there once, and the claim that it breaks."""

    right: str
    wrong: str
    claim: str


MISTAKES = {
    "values flow back over an end": Mistake(
        "jnp.where(done_BT, 0.0, settings.discount * next_BT)",
        "settings.discount * next_BT",
        "nothing_flows_back_from_behind_an_end",
    ),
    "advantages flow back over an end": Mistake(
        "(counted_BT & ~done_BT)", "counted_BT", "nothing_flows_back_from_behind_an_end"
    ),
    "the trace is not discounted": Mistake(
        "settings.discount * settings.trace * goes_on_BT",
        "settings.trace * goes_on_BT",
        "advantages_are_their_closed_form",
    ),
    "the value after a cut is forgotten": Mistake(
        "rollout.done_BT, rollout.counted_BT, rollout.last_value_B[:, None]",
        "rollout.done_BT, rollout.counted_BT, 0 * rollout.last_value_B[:, None]",
        "without_a_trace_they_are_one_step_errors",
    ),
    "the value after the last counted step is that of the padding": Mistake(
        "jnp.where(counted_BT, rollout.value_BT, last_value_B1)",
        "rollout.value_BT",
        "with_a_whole_trace_they_are_returns_less_values",
    ),
    "advantages come out of the padding": Mistake(
        "cleared(earned_BT - value_BT, counted_BT)", "earned_BT - value_BT", "padding_holds_what_it_likes"
    ),
    "the padding keeps what it holds": Mistake(
        "jnp.where(counted_BT, x_BT, 0.0)", "x_BT", "padding_holds_what_it_likes"
    ),
    "returns are advantages": Mistake(
        "advantage_BT + value_BT\n", "advantage_BT\n", "the_loss_is_that_of_numpy"
    ),
    "means are over the padding too": Mistake(
        "jnp.maximum(counted_BT.sum(), 1)",
        "jnp.asarray(counted_BT.size)",
        "advantages_are_normalised_without_the_padding",
    ),
    "advantages are not centred": Mistake(
        "centred_BT = advantage_BT - mean_of(advantage_BT, counted_BT)",
        "centred_BT = advantage_BT",
        "advantages_are_normalised_without_the_padding",
    ),
    "advantages are not normalised": Mistake(
        "normalised(batch.advantage_BT, counted_BT)",
        "batch.advantage_BT",
        "the_first_minibatch_follows_the_plain_policy_gradient",
    ),
    "the better of the two objectives": Mistake(
        "-jnp.minimum(ratio_BT", "-jnp.maximum(ratio_BT", "a_ratio_beyond_the_clip_has_no_gradient"
    ),
    "the ratio is clipped on one side": Mistake(
        "jnp.clip(ratio_BT, 1 - settings.clip, 1 + settings.clip)",
        "jnp.clip(ratio_BT, 0, 1 + settings.clip)",
        "a_ratio_beyond_the_clip_has_no_gradient",
    ),
    "the ratio is that of whole rows": Mistake(
        "    log_ratio_BT = log_p_BT - batch.log_p_BT\n",
        "    log_ratio_BT = log_p_BT - batch.log_p_BT\n"
        "    log_ratio_BT = log_ratio_BT.sum(1, keepdims=True) + 0 * log_ratio_BT\n",
        "ratios_are_those_of_single_steps",
    ),
    "the smaller error of values": Mistake(
        "jnp.maximum(error_BT, ", "jnp.minimum(error_BT, ", "a_value_beyond_the_clip_has_no_gradient"
    ),
    "values are clipped around 0": Mistake(
        "near_BT = old_BT + jnp.clip(value_BT - old_BT,",
        "near_BT = jnp.clip(value_BT,",
        "the_loss_is_that_of_numpy",
    ),
    "the divergence is k1": Mistake(
        "return jnp.expm1(other_BT - log_p_BT) - (other_BT - log_p_BT)",
        "return log_p_BT - other_BT",
        "the_divergence_is_right_on_average_and_never_negative",
    ),
    "the divergence goes the other way": Mistake(
        "divergence(batch.log_p_BT, log_p_BT)",
        "divergence(log_p_BT, batch.log_p_BT)",
        "the_loss_is_that_of_numpy",
    ),
    "variance is explained by the mean": Mistake(
        "(x_BT - mean_of(x_BT, counted_BT)) ** 2",
        "x_BT**2",
        "explained_variance_is_one_of_the_truth_and_zero_of_a_constant",
    ),
    "what cannot be done has entropy": Mistake(
        "jnp.where(p_BTC > 0, log_p_BTC, 0.0)",
        "log_p_BTC",
        "an_action_that_cannot_be_has_no_part_in_entropy",
    ),
    "entropy is punished": Mistake(
        "- entropy_weight * found", "+ entropy_weight * found", "the_loss_is_that_of_numpy"
    ),
    "entropy counts more and more": Mistake(
        "(settings.final_entropy - settings.entropy)",
        "(settings.entropy - settings.final_entropy)",
        "the_weight_of_entropy_goes_in_a_line",
    ),
    "the tether pushes": Mistake(
        "total + settings.tether", "total - settings.tether", "the_loss_is_that_of_numpy"
    ),
    "the tether does not make up for old actions": Mistake(
        "jax.lax.stop_gradient(jnp.exp(log_ratio_BT)) *",
        "0 * log_ratio_BT + 1.0 *",
        "the_tether_has_the_gradient_of_the_divergence",
    ),
    "the tether's ratio is learnt too": Mistake(
        "jax.lax.stop_gradient(jnp.exp(log_ratio_BT))",
        "jnp.exp(log_ratio_BT)",
        "the_tether_has_the_gradient_of_the_divergence",
    ),
    "what is beyond the target is learnt": Mistake(
        "ok = going & ", "ok = ", "beyond_the_target_nothing_changes"
    ),
    "after the target it goes on": Mistake(
        "jax.lax.cond(carry[2],", "jax.lax.cond(carry[2] | True,", "beyond_the_target_nothing_changes"
    ),
    "what is not finite is learnt": Mistake(
        "ok = going & jnp.isfinite(found[\"loss\"]) & jnp.isfinite(norm)",
        "ok = going",
        "what_is_not_finite_changes_nothing",
    ),
    "every epoch has the same order": Mistake(
        "jax.random.bits(key, (epochs, rows), jnp.uint32)",
        "jax.random.bits(key, (1, rows), jnp.uint32) + jnp.zeros((epochs, 1), jnp.uint32)",
        "every_row_is_learnt_from_once_an_epoch",
    ),
    "rows are not shuffled": Mistake(
        "jax.random.bits(key, (epochs, rows), jnp.uint32) & ~low",
        "jnp.zeros((epochs, 1), jnp.uint32)",
        "every_row_is_learnt_from_once_an_epoch",
    ),
    "every iteration has the same order": Mistake(
        "jax.random.fold_in(key, learner.iteration)", "key", "every_iteration_draws_anew"
    ),
    "every iteration acts alike": Mistake(
        "jax.random.fold_in(key, run.learner.iteration)", "key", "every_iteration_draws_anew"
    ),
    "worlds do not begin anew": Mistake(
        "(done_B, (fresh_B, ", "(done_B, (next_B, ", "a_world_begins_anew_where_it_ends"
    ),
    "scores go on": Mistake(
        "jnp.zeros_like(score_B)), (next_B", "score_B), (next_B", "a_world_begins_anew_where_it_ends"
    ),
    "time that is up is an end": Mistake(
        "jnp.where(cut_BT, practice.settings.discount * next_BT, 0.0)", "0.0", "time_that_is_up_is_no_end"
    ),
    "an end is time that is up": Mistake(
        "truncated_B & ~terminated_B", "truncated_B", "time_that_is_up_is_no_end"
    ),
    "what follows is seen after beginning anew": Mistake(
        "policy.evaluate(params, after, action_BT).value_BT",
        "jnp.roll(value_BT, -1, axis=1)",
        "time_that_is_up_is_no_end",
    ),
    "the sampler is greedier than the learner believes": Mistake(
        "policy.act(params, seen_B, noise_B)",
        "policy.act(params, seen_B, 0.5 * noise_B)",
        "the_learner_agrees_with_the_sampler",
    ),
}  # fmt: skip


@pytest.mark.parametrize("claim", claims.CLAIMS, ids=lambda claim: claim.__name__)
def test_claim(claim):
    claim(ppo)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_noticed(mistake):
    assert SOURCE.count(mistake.right) == 1
    mutant = ModuleType("mutant")
    exec(compile(SOURCE.replace(mistake.right, mistake.wrong), "mutant", "exec"), mutant.__dict__)
    with pytest.raises(AssertionError):
        getattr(claims, mistake.claim)(mutant)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"discount": 1.1}, r"discount 1\.1, trace 0\.95: give shares"),
        ({"trace": -0.1}, r"trace -0\.1: give shares"),
        ({"clip": 0.0}, r"clip 0\.0: give more than 0"),
        ({"tether": float("nan")}, "tether nan: give 0 or more"),
        ({"entropy": -1.0}, r"entropy -1\.0: give 0 or more"),
        ({"target_kl": -0.1}, r"target_kl -0\.1: give 0 or more"),
        ({"minibatches": 0}, "must be 1 or more"),
    ],
)
def test_settings_without_sense_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        ppo.PpoSettings(**wrong)
