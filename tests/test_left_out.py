"""An edit does not end while something lies unplayed that is surely kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pointer_cases import TINY, encoded, fresh_params, recording, teacher_forced_log_p, with_loops

from editjax import decode as decoding
from editjax.beam import beam_search
from editjax.edits import STOP
from editjax.models.coverage import left_out
from editjax.models.hints import Hints, hints_of

STRETCHES = ((16, 30), (36, 60))
"""Of 75 frames in bars of 16: one begins with its bar, the other within one."""


@pytest.fixture(scope="module")
def stopping():
    """Parameters of a decoder that plays what it is told is kept, and then stops."""
    fresh = fresh_params(0)
    mode = {"kernel": jnp.zeros((TINY.width, 3)), "bias": jnp.array([0.0, -5.0, 0.0])}
    return {**fresh, "decoder": {**fresh["decoder"], "mode": mode, "trust": jnp.ones(4)}}


@pytest.fixture(scope="module")
def erratic():
    """Parameters by seed of decoders that jump and stop all the time."""
    fresh = fresh_params(0)

    def of_seed(seed):
        kernel = 6.0 * jax.random.normal(jax.random.key(seed), (TINY.width, 3))
        return {**fresh, "decoder": {**fresh["decoder"], "mode": {"kernel": kernel, "bias": jnp.zeros(3)}}}

    return of_seed


def keys_of(params, sure=(16, 36), target=None):
    """The hints name the stretches, and their starts in bars alone."""
    keys = with_loops(encoded(params, [recording(75)], 75, target)[1], False)
    kept_T, sure_V = np.full(76, -50.0, np.float32), np.full(5, -1)
    for start, stop in STRETCHES:
        kept_T[start:stop] = 50.0
    for start in sure:
        sure_V[start // 16] = start
    told = {"kept_BT": kept_T, "sure_start_BV": sure_V}
    return keys._replace(
        hints=keys.hints._replace(**{name: jnp.asarray(a)[None] for name, a in told.items()})
    )


def decoded(params, keys, target=0.0, temperature=0.0, seed=0, draft=5):
    ready = TINY, params, keys, jnp.full(1, target), 70, temperature, jax.random.key(seed)
    return decoding.decode(*ready, draft=draft)


def played(out):
    row_N = np.asarray(out.pointers_BN[0])
    return row_N[row_N >= 0].tolist(), (row_N == STOP).any()


@pytest.mark.slow
def test_what_is_surely_kept_is_played_before_the_end(stopping):
    one, other = (list(range(*stretch)) for stretch in STRETCHES)
    for sure, wanted in (((), [[]]), ((36,), [other]), ((16, 36), [one + other, other + one])):
        keys = keys_of(stopping, sure)
        found, stopped = played(decoded(stopping, keys))
        assert found in wanted and stopped
        for draft in (0, 64):
            assert played(decoded(stopping, keys, draft=draft)) == (found, True)


def test_the_beginning_is_not_left_out(stopping):
    keys = keys_of(stopping, (0,))
    keys = keys._replace(hints=keys.hints._replace(kept_BT=keys.hints.kept_BT.at[0, :16].set(50.0)))
    out = decoded(stopping, keys)
    assert played(out) == (list(range(30)), True)
    forced = teacher_forced_log_p(stopping, keys, out.pointers_BN, jnp.zeros(1))
    np.testing.assert_allclose(out.log_p_BN, forced, atol=2e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_sure_is_left_out_by_erratic_decoders(erratic, temperature):
    """Neither jumps to what was played end an edit too early; drafts and a beam of one change nothing."""
    ended = 0
    for seed in range(12):
        rng, params = np.random.default_rng(seed), erratic(seed)
        sure = sorted({int(rng.integers(16 * bar, min(16 * bar + 16, 75))) for bar in range(1, 5)})
        keys = keys_of(params, sure)
        out = decoded(params, keys, temperature=temperature, seed=seed)
        found, stopped = played(out)
        shares_V = np.bincount(np.array(found, int) // 16, minlength=5) / 16
        left_V = left_out(keys.hints.sure_start_BV, jnp.asarray([shares_V]), jnp.array([75]), 16)[0]
        assert not stopped or all(start in found for start in sure if left_V[start // 16])
        ended += stopped
        again = decoded(params, keys, temperature=temperature, seed=seed, draft=0)
        np.testing.assert_array_equal(again.pointers_BN, out.pointers_BN)
        if not temperature:
            beam = beam_search(TINY, params, keys, jnp.zeros(1), 70, 1, draft=5)
            np.testing.assert_array_equal(beam.pointers_WN, out.pointers_BN)
    assert ended >= 6


def test_a_wanted_length_may_leave_things_out(stopping):
    keys = keys_of(stopping, target=[30.0])
    assert played(decoded(stopping, keys, target=30.0)) == ([], True)


def test_the_log_probability_is_that_of_the_pointers(stopping):
    keys = keys_of(stopping)
    for temperature in (0.0, 1.0):
        out = decoded(stopping, keys, temperature=temperature, draft=3)
        forced = teacher_forced_log_p(stopping, keys, out.pointers_BN, jnp.zeros(1))
        np.testing.assert_allclose(out.log_p_BN, forced, atol=2e-4)


@pytest.mark.parametrize("seed", range(5))
def test_samples_leave_nothing_out_and_drafts_change_none(stopping, seed):
    keys = keys_of(stopping)
    plain, drafted = (decoded(stopping, keys, temperature=1.0, seed=seed, draft=draft) for draft in (0, 7))
    np.testing.assert_array_equal(plain.pointers_BN, drafted.pointers_BN)
    assert {16, 36} <= set(played(plain)[0])


@pytest.mark.parametrize("width", [1, 4])
def test_beams_leave_nothing_out(stopping, width):
    keys = keys_of(stopping)
    greedy = decoded(stopping, keys)
    found = beam_search(TINY, stopping, keys, jnp.zeros(1), 70, width, draft=5)
    if width == 1:
        np.testing.assert_array_equal(found.pointers_WN, greedy.pointers_BN)
        np.testing.assert_allclose(found.log_p_WN, greedy.log_p_BN, atol=1e-4)
    ended = np.isfinite(found.log_p_W) & (np.asarray(found.pointers_WN) == STOP).any(1)
    rows = [tuple(row) for row in np.asarray(found.pointers_WN)[ended]]
    assert rows and len(set(rows)) == len(rows)
    assert all({16, 36} <= set(row) for row in rows)
    forced = teacher_forced_log_p(
        stopping,
        jax.tree.map(lambda a: jnp.repeat(a, width, axis=0), keys),
        found.pointers_WN,
        jnp.zeros(width),
    )
    np.testing.assert_allclose(found.log_p_W[ended], forced.sum(1)[ended], atol=1e-3)


@pytest.mark.parametrize(
    ("played_V", "left"),
    [
        ([0.0, 0.0, 0.0, 0.0, 0.0], [False, True, True, False, False]),
        ([0.0, 0.9, 0.0, 0.0, 0.0], [False, False, True, False, False]),
        ([0.0, 0.9, 0.75, 0.0, 0.0], [False, False, True, False, False]),  # what lies before the start
        ([0.0, 0.9, 1.0, 0.5, 0.0], [False, False, False, False, False]),
    ],
)
def test_a_stretch_is_left_out_that_is_not_played_from_its_start(played_V, left):
    sure_BV, n_frames_B = jnp.array([[-1, 16, 44, -1, -1]]), jnp.array([75])
    found = left_out(sure_BV, jnp.array([played_V]), n_frames_B, 16)
    assert found[0].tolist() == left


def test_what_is_sure():
    """Stretches that are kept by 0.9 in the mean, and those of 0.7 not, nor flickers."""
    spans = ((100, 400, 0.9), (500, 800, 0.7), (900, 950, 0.99), (1000, 1200, 0.99))
    p_T = np.full(1300, 0.01)
    for start, stop, p in spans:
        p_T[start:stop] = p
    odds_T = np.log(p_T / (1 - p_T)).astype(np.float32)
    structure = np.stack([-odds_T / 2, odds_T / 2, np.full(1300, -30.0)], -1)[None]
    found: Hints = hints_of(jnp.asarray(structure), jnp.zeros((1, 1300)), jnp.array([1200]), 4, 4)
    sure_V = np.asarray(found.sure_start_BV[0])
    assert sure_V[sure_V >= 0].tolist() == [100, 1000]
