"""Label policies: what they hear, how beats are counted, what they learn from labels and from rewards."""

import os
import signal
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from policy_cases import BEAT, BEATS, CUT, HEARS, JUDGE, KEEP, TINY, batch_of, louder, params_of, write_model

from editjax import ppo
from editjax.config import load_config
from editjax.edits import EditLabel
from editjax.errors import TryAgainError, UsageError
from editjax.export import load_bundle
from editjax.family import family_of
from editjax.journal import read_journal
from editjax.models.layers import RUNNING
from editjax.models.policy import (
    PolicySettings,
    frames_of,
    label_logits,
    labels_of_beats,
    slots,
    summed,
    values,
)
from editjax.optim import OptimSettings, make_schedule
from editjax.policy_loss import (
    PolicyLossSettings,
    PolicyPpoSettings,
    judged,
    policy_loss,
    roll_out,
    seen_of,
)
from editjax.ppo import Frozen, PpoSettings
from editjax.reward import SHARES, TIMES_HEARD, RewardSettings, expected
from editjax.step import TrainConfig, init_state, update
from editjax.train import train
from editjax.warm_start import begin_from

CONFIGS = Path(__file__).parents[1] / "configs"
PPO = PpoSettings(discount=0.9, trace=0.9, clip_value=False, entropy=0.0, final_entropy=0.0, minibatches=2)
EARNING = PolicyPpoSettings(ppo=PPO, reward=RewardSettings(smoothness=0.0))
TIMES = np.array(TIMES_HEARD)
loss_of = jax.jit(policy_loss, static_argnums=(2, 3))


@pytest.fixture(scope="module")
def params():
    return louder(params_of(TINY))


@pytest.fixture(scope="module")
def judge():
    """A reconstruction model that has learned nothing: what it hears is the recording."""
    return Frozen(JUDGE, params_of(JUDGE))


@jax.jit
def said(params, judge_params, batch, action=None):
    """What a policy sees and says of a batch, and what an action everywhere, or all in turn, earn."""
    seen = seen_of(TINY, params, batch)
    beats, label_BU = seen
    in_turn_U = jnp.arange(label_BU.shape[1]) % EditLabel.PAD
    action_BU = jnp.broadcast_to(in_turn_U if action is None else action, label_BU.shape)
    reward_BU = judged(EARNING, action_BU, label_BU, beats.frames_BU, batch, Frozen(JUDGE, judge_params))
    return seen, label_logits(TINY, params, beats), values(TINY, params, beats), reward_BU


def config_of(loss, steps=200, rate=1e-2) -> TrainConfig:
    optim = OptimSettings(learning_rate=rate, warmup_steps=2, steps=steps, weight_decay=0.1)
    return TrainConfig(model=TINY, loss=loss, optim=optim, checkpoint_every=2, validate_every=0)


LEARNING, REWARDED = config_of(PolicyLossSettings()), config_of(EARNING, rate=2e-2)


@cache
def step_of(config):
    family = family_of(config.model, config.loss)
    return jax.jit(partial(update, config=config, family=family, frozen_settings=JUDGE))


def learned(config, params, judge, count):
    """The state after so many steps, and the metrics of each; only rewards need the judge."""
    state = init_state(config, family_of(config.model, config.loss), jax.random.key(0), params)
    rows = []
    for k in range(count):
        state, metrics = step_of(config)(state, batch_of(k), jax.random.key(0), judge.params)
        rows.append({name: float(value) for name, value in metrics.items()})
    return state, rows


def share_right(params, judge):
    """Of the beats of a batch that nothing was learned from."""
    (beats, label_BU), logits, *_ = said(params, judge.params, batch_of(1000))
    return np.asarray(logits.argmax(-1) == label_BU)[np.asarray(beats.counted_BU)].mean()


def assert_identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_padding_is_not_heard(params, judge):
    clean = batch_of()
    (beats, label_BU), logits, value, reward = said(params, judge.params, clean)
    there = np.asarray(beats.counted_BU)
    assert there.sum(1).tolist() == [BEATS, BEATS - 1, BEATS - 2, BEATS] and there.shape[1] == slots(128)
    for other in (batch_of(fill=np.nan, junk=99), batch_of(fill=np.inf, junk=-5), batch_of(padding=96)):
        (found, found_BU), *results = said(params, judge.params, other)
        np.testing.assert_array_equal(np.asarray(found.frames_BU)[:, : there.shape[1]], beats.frames_BU)
        np.testing.assert_array_equal(np.asarray(found_BU)[:, : there.shape[1]], label_BU)
        for mine, theirs in zip(results, (logits, value, reward), strict=True):
            mine = np.asarray(mine)
            np.testing.assert_allclose(mine[:, : there.shape[1]][there], np.asarray(theirs)[there], atol=1e-5)
            assert not np.isnan(mine).any()  # a NaN in the padding would be one in the gradient


def test_a_row_is_heard_by_itself(params, judge):
    batch = batch_of()
    whole = said(params, judge.params, batch)
    alone = said(params, judge.params, jax.tree.map(lambda a: a[2:3], batch))
    for one, all_rows in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one[0], all_rows[2], atol=1e-5)


def test_what_is_far_away_is_not_asked(params, judge):
    """A layer sees so many beats on either side, and the encoder has been heard already."""
    (beats, _), *_ = said(params, judge.params, batch_of())
    other = beats._replace(heard_BUC=beats.heard_BUC.at[0, 1].add(3.0))
    say = jax.jit(partial(label_logits, TINY))
    changed = np.abs(np.asarray(say(params, beats) - say(params, other)))[..., : EditLabel.PAD].max(-1)
    assert changed[0, : 2 + TINY.window].all() and not changed[0, 2 + TINY.window :].any()
    assert not changed[1:].any()


def test_no_beat_is_labelled_as_padding(params, judge):
    assert max(EditLabel) == EditLabel.PAD
    wild = {**params, "policy": jax.tree.map(lambda a: 30 * a, params["policy"])}
    for saying in (params, wild):
        logits = said(saying, judge.params, batch_of())[1]
        assert (np.asarray(logits[..., EditLabel.PAD]) == -np.inf).all()
        drawn = jax.random.categorical(jax.random.key(0), logits, shape=(200, *logits.shape[:2]))
        assert int(drawn.max()) < EditLabel.PAD and int(logits.argmax(-1).max()) < EditLabel.PAD


def test_sums_and_labels_of_beats_by_hand():
    """Eleven frames in beats of 3, 4 and 2; the others lie beyond the end, or come too late for a slot."""
    beat = jnp.array([[0, 0, 0, 1, 1, 1, 1, 2, 2, 7, 7], [0, 0, 5, 5, 5, 9, 9, 9, 9, 9, 9]])
    x = jnp.arange(22.0).reshape(2, 11, 1).at[0, 9:].set(jnp.nan)
    there = jnp.arange(11)[None] < jnp.array([[9], [11]])
    found = summed(x, beat, there)[..., 0]
    assert found.shape == (2, slots(11)) == (2, 3)
    np.testing.assert_array_equal(
        found, [[0 + 1 + 2, 3 + 4 + 5 + 6, 7 + 8], [11 + 12, 0, sum(range(13, 22))]]
    )
    label = jnp.array([[1, 1, 2, 0, 3, 3, 6, 5, 5, 2, 2], [4] * 5 + [6] * 6])
    labels = labels_of_beats(label, beat, jnp.array([9, 11]))
    pad = EditLabel.PAD
    assert labels.tolist() == [[1, 3, 5], [4, pad, 6]]
    assert labels_of_beats(label, beat, jnp.array([3, 0])).tolist() == [[1, pad, pad], [pad] * 3]
    tie = jnp.array([[1, 0, 0, 1, 6, 6, 3, 3]])
    assert labels_of_beats(tie, jnp.array([[0] * 4 + [1] * 4]), jnp.array([8])).tolist() == [[1, 6, pad]]


def test_frames_have_what_their_beat_has():
    found = frames_of(jnp.array([[4, 0, 6], [1, 2, 3]]), jnp.array([[0, 0, 1, 2, 9], [2, 1, 1, 0, 0]]))
    assert found.tolist() == [[4, 4, 0, 6, 6], [3, 2, 2, 1, 1]]


def test_beats_are_means_of_frames_and_know_their_place(params, judge):
    (beats, _), *_ = said(params, judge.params, batch_of())
    place = np.asarray(beats.heard_BUC)[0, :BEATS, -9:-6]
    edges = np.arange(BEATS + 1) / BEATS
    wanted = np.stack([edges[:-1], edges[1:], np.full(BEATS, np.log(BEAT) - 3)], -1)
    np.testing.assert_allclose(place, wanted, atol=1e-5)
    assert beats.heard_BUC.shape[-1] == TINY.channels == HEARS.frame_width + HEARS.width + 12
    structure = np.asarray(beats.heard_BUC)[0, :BEATS, -12:-9]
    np.testing.assert_allclose(structure.sum(-1), 1.0, atol=1e-5)


def test_the_loss_is_that_of_numpy(params, judge):
    batch, weights = batch_of(), PolicyLossSettings(balance=0.5)
    (beats, label_BU), logits, *_ = said(params, judge.params, batch)
    there, label_BU = np.asarray(beats.counted_BU), np.asarray(label_BU)
    assert set(label_BU[there]) == {CUT, KEEP}
    logits = np.asarray(logits, np.float64)[..., : EditLabel.PAD]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, np.where(there, label_BU, 0)[..., None], -1)[..., 0]
    weight = np.where(there, np.asarray(SHARES)[np.where(there, label_BU, 0)] ** -0.5, 0.0)
    still = replace(TINY, dropout=0.0)
    loss, metrics = loss_of(params, batch, still, weights, jax.random.key(0))
    assert float(loss) == pytest.approx((nll * weight).sum() / weight.sum(), rel=1e-5)
    assert float(metrics["nll"]) == pytest.approx(nll[there].mean(), rel=1e-5)
    right = (log_p.argmax(-1) == label_BU)[there].mean()
    assert float(metrics["accuracy"]) == pytest.approx(right, abs=1e-6)
    entropy = -(np.exp(log_p) * log_p).sum(-1)[there].mean()
    assert float(metrics["entropy"]) == pytest.approx(entropy, rel=1e-5)
    dropped, _ = loss_of(params, batch, TINY, weights, jax.random.key(0))
    assert abs(float(dropped - loss)) > 1e-4


@pytest.mark.slow
def test_nothing_flows_into_the_encoder_and_no_update_moves_it(params, judge):
    def loss(params, batch):
        return policy_loss(params, batch, TINY, PolicyLossSettings(), jax.random.key(0))[0]

    gradient = jax.jit(jax.grad(loss))(params, batch_of())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient[RUNNING]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["policy"]["tower"]))
    for config, learning in ((LEARNING, ("policy",)), (REWARDED, ("policy", "value"))):
        state, _ = learned(config, params, judge, 1)
        assert_identical(state.params[RUNNING], params[RUNNING])
        for part in learning:
            moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params[part], params[part])
            assert all(jax.tree.leaves(moved))
        assert int(state.skipped) == 0


@pytest.mark.slow
def test_a_planted_rule_is_learned(judge):
    state, _ = learned(LEARNING, params_of(TINY), judge, 80)
    assert share_right(state.params, judge) > 0.95


@pytest.mark.slow
def test_rewards_teach_what_labels_would(judge):
    """Low beats are right to be kept, high ones to be cut, and nobody says so but by what it earns."""
    state, rows = learned(REWARDED, params_of(TINY), judge, 120)
    earned = [row["reward"] for row in rows]
    assert np.mean(earned[:5]) < 4.5 and np.mean(earned[-5:]) > 7.0
    updates = PPO.epochs * PPO.minibatches
    assert rows[-1]["updates"] == updates
    schedule = make_schedule(ppo.per_update(REWARDED.optim, PPO))
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [schedule(updates * k) for k in range(len(rows))], rtol=1e-5)
    assert share_right(state.params, judge) > 0.95


def test_a_rollout_is_what_the_policy_did_and_earned(params, judge):
    batch = batch_of(fill=np.nan)

    @jax.jit
    def act(params, judge_params, key):
        seen = seen_of(TINY, params, batch)
        return roll_out(TINY, EARNING, params, seen, batch, key, Frozen(JUDGE, judge_params))

    (rollout, reward), (other, _) = (act(params, judge.params, jax.random.key(seed)) for seed in (0, 1))
    counted, done = np.asarray(rollout.counted_BT), np.asarray(rollout.done_BT)
    assert (done.sum(1) == 1).all() and (done.argmax(1) == counted.sum(1) - 1).all()
    assert (np.asarray(rollout.action_BT) != np.asarray(other.action_BT))[counted].any()
    (beats, label_BU), logits, value, _ = said(params, judge.params, batch)
    log_p, _ = ppo.categorical(logits, rollout.action_BT)
    for found, wanted in ((rollout.log_p_BT, log_p), (rollout.value_BT, value)):
        np.testing.assert_allclose(np.asarray(found)[counted], np.asarray(wanted)[counted], atol=1e-5)
    action, label, frames = (np.asarray(a) for a in (rollout.action_BT, label_BU, beats.frames_BU))
    off = np.abs(((TIMES[action] - TIMES[label]) * frames).sum(1)) / frames.sum(1)
    right = ((action == label) & counted).sum(1) / counted.sum(1)
    # What is kept is the recording itself, and that is what the judge hears: no reconstruction error.
    earned = np.where(counted, reward, 0).sum(1) / counted.sum(1)
    np.testing.assert_allclose(earned, 5 * right + 3 * (1 - off), rtol=1e-4)
    likely = expected(EARNING.reward, jax.nn.softmax(logits), label_BU)
    np.testing.assert_allclose(
        np.asarray(rollout.reward_BT)[counted],
        EARNING.scale * np.asarray(reward - likely)[counted],
        atol=1e-6,
    )


def test_what_differs_from_the_edit_costs_where_it_is_heard_in_both(params, judge):
    batch = batch_of()
    off = batch._replace(edited_BTF=batch.edited_BTF + np.float32(0.1))
    for action in (KEEP, CUT):
        (_, label_BU), _, _, alike = said(params, judge.params, batch, action)
        *_, differing = said(params, judge.params, off, action)
        heard_BU = (np.asarray(label_BU) == KEEP) & (action == KEEP)
        np.testing.assert_allclose(differing - alike, np.where(heard_BU, -10 * 0.1, 0.0), atol=1e-5)


def test_the_schedule_counts_every_update():
    settings = ppo.per_update(OptimSettings(steps=100, warmup_steps=5), replace(PPO, minibatches=3))
    assert (settings.steps, settings.warmup_steps) == (1200, 60)


class Stream:
    """Batch n is a pure function of n; at one of them the process is told to stop."""

    def __init__(self, stop: int = -1) -> None:
        self.position, self.stop = 0, stop

    def __next__(self):
        if self.position == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        self.position += 1
        return batch_of(self.position)

    def get_state(self) -> dict[str, int]:
        return {"next": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["next"]


@pytest.mark.slow
@pytest.mark.parametrize("earns", [False, True], ids=["labels", "rewards"])
def test_a_run_stopped_and_resumed_is_the_uninterrupted_run_bit_for_bit(tmp_path, earns, monkeypatch):
    """Learning from rewards, two epochs of shuffled minibatches, until the policy has gone far enough."""
    monkeypatch.setattr("editjax.journal.importlib.util.find_spec", lambda name: None)
    weights = PolicyLossSettings()
    if earns:
        judge = write_model(tmp_path / "judge", JUDGE, louder(params_of(JUDGE)))
        twice = replace(PPO, epochs=2, minibatches=2, target_kl=1e-3)
        weights = replace(EARNING, ppo=twice, reconstruction=str(judge))
    config = replace(config_of(weights, steps=4), ema_decay=0.9)
    whole = train(config, Stream(), tmp_path / "whole")
    with pytest.raises(TryAgainError, match="stopped at step 3"):
        train(config, Stream(stop=2), tmp_path / "parts")
    assert_identical(train(config, Stream(), tmp_path / "parts"), whole)
    assert int(whole.step) == 4 and int(whole.total_skipped) == 0
    rows = [row for row in read_journal(tmp_path / "parts" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    if earns:
        assert {row["updates"] for row in rows} != {4.0}, "no update was refused"
        assert all(row["updates"] >= 1 and row["gradient_norm"] > 0 for row in rows)


def test_what_is_no_reconstruction_model_judges_nothing(tmp_path):
    model = write_model(tmp_path / "model", HEARS)
    config = config_of(replace(EARNING, reconstruction=str(model)))
    with pytest.raises(UsageError, match="model: no reconstruction model"):
        train(config, Stream(), tmp_path / "run")


def test_a_policy_begins_from_the_pointer_network_it_hears_with():
    config = load_config(CONFIGS / "policy_tiny.py")
    params, began = begin_from("final", config)
    bundle = load_bundle("final")
    assert began == {"start_from": "final", "start_from_sha256": bundle.config["sha256"]}
    assert_identical(params[RUNNING]["encoder"], bundle.params["encoder"])
    shapes = jax.eval_shape(lambda: family_of(config.model).init(config.model, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda a: a.shape, shapes)
    assert load_config(CONFIGS / "policy_ppo.py").model == config.model


def test_only_what_it_hears_with_or_what_it_is_can_be_begun_from(tmp_path):
    config = LEARNING
    model = write_model(tmp_path / "policy", TINY, louder(params_of(TINY)))
    params, _ = begin_from(model, config)
    assert_identical(params, load_bundle(model).params)
    hears = write_model(tmp_path / "hears", HEARS)
    params, _ = begin_from(hears, config)
    assert_identical(params[RUNNING]["encoder"], load_bundle(hears).params["encoder"])
    assert_identical(params["policy"], params_of(TINY)["policy"])
    grown = replace(config, model=replace(TINY, hears=replace(HEARS, kinds=True)))
    params, _ = begin_from(hears, grown)
    shapes = jax.eval_shape(lambda: family_of(TINY).init(grown.model, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda a: a.shape, shapes)
    other = replace(config, model=replace(TINY, hears=replace(HEARS, width=32, attention="dense")))
    for place in (hears, model):
        with pytest.raises(UsageError, match=r"has model\.hears\.width 16, but the config wants 32"):
            begin_from(place, other)
    with pytest.raises(UsageError, match="the family 'reconstruct', but the config trains 'policy'"):
        begin_from(write_model(tmp_path / "judge", JUDGE), config)


@pytest.mark.parametrize(
    "change", [{"heads": 3}, {"dropout": 1.0}, {"attention": "magic"}, {"n_mels": 64}, {"floor_db": -90.0}]
)
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError):
        PolicySettings(**change)
