"""Rewards of labels: each part by hand, parts that add up to the edit's, padding that earns nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editjax.edits import EditLabel
from editjax.errors import UsageError
from editjax.reward import RewardSettings, expected, heard_frames, rewards

CUT, KEEP, LOOP, EFFECT = EditLabel.CUT, EditLabel.KEEP, EditLabel.LOOP, EditLabel.EFFECT
NOTHING = RewardSettings(reconstruction=0.0, match=0.0, duration=0.0, smoothness=0.0)
run = jax.jit(rewards, static_argnums=0)

FRAMES = np.array([[10, 20, 10, 40, 20]])
TRUE = np.array([[KEEP, CUT, CUT, KEEP, EFFECT]])
CHOSEN = np.array([[KEEP, KEEP, CUT, LOOP, EFFECT]])
ERROR = np.array([[0.1, 0.2, 0.0, 0.3, 0.0]], np.float32)


def earned(settings=NOTHING, action=CHOSEN, label=TRUE, frames=FRAMES, error=ERROR, **weights):
    integers = (np.asarray(a, np.int32) for a in (action, label, frames))
    return np.asarray(run(replace(settings, **weights), *integers, np.asarray(error, np.float32)))


def drawn(rows=16, beats=12, seed=0):
    """Rows of random beats, every one shorter than the last by some padding."""
    rng = np.random.default_rng(seed)
    action, label = rng.integers(0, EditLabel.PAD, (2, rows, beats))
    frames = rng.integers(8, 60, (rows, beats)) * (np.arange(beats) < rng.integers(1, beats + 1, (rows, 1)))
    return action, label, frames, np.where(frames > 0, rng.uniform(0, 0.3, (rows, beats)), 0.0)


def test_right_labels_earn_the_match_and_the_whole_duration():
    alike = np.full((1, 5), LOOP)
    defaults = RewardSettings()
    np.testing.assert_array_equal(earned(defaults, alike, alike, error=0 * ERROR), [[8.0] * 5])
    steady = replace(defaults, smoothness=0.0)
    np.testing.assert_array_equal(earned(steady, TRUE, TRUE, error=0 * ERROR), [[8.0] * 5])
    changes = earned(defaults, TRUE, TRUE, error=0 * ERROR)
    np.testing.assert_array_equal(changes, [[8.0, 6.0, 8.0, 6.0, 6.0]])


@pytest.mark.parametrize(
    ("weight", "wanted"),
    [
        ({"match": 5.0}, [5, 0, 5, 0, 5]),
        ({"reconstruction": 10.0}, [-1, -2, 0, -3, 0]),
        ({"smoothness": 2.0}, [0, 0, -2, -2, -2]),
        # 20 frames too long after the second beat, 60 after the fourth, of 100.
        ({"duration": 3.0}, [3, 3 - 3 * 5 * 0.2, 3, 3 - 3 * 5 * 0.4, 3]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_every_weight_alone_by_hand(weight, wanted):
    np.testing.assert_allclose(earned(**weight), [wanted], atol=1e-5)


def test_all_weights_together_are_their_sum():
    whole = earned(RewardSettings())
    np.testing.assert_allclose(whole, [[7, -2, 6, -8, 6]], atol=1e-5)
    single = [earned(**{name: getattr(RewardSettings(), name)}) for name in ("match", "reconstruction")]
    single += [earned(**{name: getattr(RewardSettings(), name)}) for name in ("duration", "smoothness")]
    np.testing.assert_allclose(whole, sum(single), atol=1e-5)


def test_a_beat_that_brings_the_length_back_earns_it():
    """20 frames too many, then 20 too few: the second beat makes good what the first one did."""
    found = earned(action=[[KEEP, CUT]], label=[[CUT, KEEP]], frames=[[20, 20]], error=[[0, 0]], duration=3.0)
    np.testing.assert_allclose(found, [[3 * (1 - 2 * 0.5), 3 * (1 + 2 * 0.5)]], atol=1e-6)


def test_the_mean_over_the_beats_is_the_reward_of_the_whole_edit():
    action, label, frames, error = drawn()
    counted = frames > 0
    found = earned(RewardSettings(), action, label, frames, error).sum(1) / counted.sum(1)
    times = np.array([0, 1, 2, 1, 1, 1, 1])
    off = np.abs(((times[action] - times[label]) * frames).sum(1)) / frames.sum(1)
    changes = ((np.diff(action) != 0) & counted[:, 1:]).sum(1) / counted.sum(1)
    right = ((action == label) & counted).sum(1) / counted.sum(1)
    wanted = 5 * right - 10 * error.sum(1) / counted.sum(1) + 3 * (1 - off) - 2 * changes
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    duration = earned(NOTHING, action, label, frames, error, duration=3.0)
    np.testing.assert_allclose(duration.sum(1) / counted.sum(1), 3 * (1 - off), rtol=1e-4, atol=1e-4)


def test_what_is_expected_is_what_is_earned_on_average_and_nobodys_draw_is_in_it():
    """20,000 edits of three beats drawn with odds that differ from beat to beat."""
    logits = np.random.default_rng(0).normal(size=(1, 3, len(EditLabel))).astype(np.float32)
    logits[..., EditLabel.PAD] = -np.inf
    label, settings = np.array([[KEEP, CUT, EFFECT]]), RewardSettings(0.0, 5.0, 0.0, 2.0, balance=0.35)
    found = expected(settings, jax.nn.softmax(jnp.asarray(logits)), jnp.asarray(label))
    action = np.asarray(jax.random.categorical(jax.random.key(0), jnp.asarray(logits[0]), shape=(20_000, 3)))
    same = (np.repeat(a, len(action), 0) for a in (label, np.full((1, 3), 10), np.zeros((1, 3))))
    drawn_NU = earned(settings, action, *same)
    error_U = drawn_NU.std(0) / np.sqrt(len(action))
    assert (np.abs(drawn_NU.mean(0) - found[0]) < 4 * error_U).all()


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_changes_nothing_and_earns_nothing(fill):
    action, label, frames, error = drawn()
    clean = earned(RewardSettings(), action, label, frames, error)
    rng, there = np.random.default_rng(1), frames > 0
    wild = [np.where(there, a, rng.integers(-9, 99, a.shape)) for a in (action, label)]
    poisoned = earned(RewardSettings(), *wild, frames, np.where(there, error, fill))
    np.testing.assert_array_equal(poisoned, clean)
    assert not poisoned[~there].any()
    more = (np.pad(a, ((0, 0), (0, 7)), constant_values=5) for a in wild)
    longer = np.pad(frames, ((0, 0), (0, 7))), np.pad(np.where(there, error, fill), ((0, 0), (0, 7)))
    np.testing.assert_allclose(earned(RewardSettings(), *more, *longer)[:, :12], clean, atol=1e-6)


def test_rows_earn_by_themselves_and_nothing_earns_nothing():
    rows = drawn()
    whole = earned(RewardSettings(), *rows)
    for row in (0, 7):
        alone = earned(RewardSettings(), *(a[row : row + 1] for a in rows))
        np.testing.assert_allclose(alone[0], whole[row], atol=1e-6)
    nothing = earned(RewardSettings(), frames=0 * FRAMES, error=np.full((1, 5), np.nan))
    np.testing.assert_array_equal(nothing, np.zeros((1, 5)))


def test_what_is_cut_makes_no_frames_and_a_loop_twice_as_many():
    label = jnp.arange(len(EditLabel))[None]
    found = heard_frames(label, jnp.full((1, len(EditLabel)), 7))
    wanted = dict.fromkeys(EditLabel, 7) | {CUT: 0, EditLabel.PAD: 0, LOOP: 14}
    assert dict(zip(EditLabel, found[0].tolist(), strict=True)) == wanted


@pytest.mark.parametrize("name", ["reconstruction", "match", "duration", "smoothness"])
@pytest.mark.parametrize("weight", [-0.1, np.nan])
def test_negative_weights_are_refused(name, weight):
    with pytest.raises(UsageError, match="0 or more"):
        RewardSettings(**{name: weight})
