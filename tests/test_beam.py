"""Beam search: it finds all there is to find, one hypothesis is greedy decoding, drafts change nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pointer_cases import (
    SHORT_BARS,
    TINY,
    biased,
    encoded,
    params,
    recording,
    short_params,
    teacher_forced_log_p,
    with_loops,
)

from editjax import decode as decoding
from editjax.beam import beam_search
from editjax.edits import PAD, STOP

assert params and short_params  # the fixtures


def keys_of(params, frames, length, seed=0, looped=True, settings=TINY):
    return with_loops(encoded(params, [recording(frames, seed)], length, settings=settings)[1], looped)


def found(params, keys, steps, width, settings=TINY, **options):
    return beam_search(settings, params, keys, jnp.zeros(1), steps, width, **options)


def log_p_of(params, keys, sequences, settings=TINY):
    repeated = jax.tree.map(lambda a: jnp.repeat(a, len(sequences), axis=0), keys)
    asked = jnp.asarray(sequences), jnp.zeros(len(sequences))
    return teacher_forced_log_p(params, repeated, *asked, settings=settings)


def every_edit(frames, steps):
    """All sequences of so many steps, ended early or not."""
    edits = []
    for length in range(steps + 1):
        for played in itertools.product(range(frames), repeat=length):
            end = [] if length == steps else [STOP, *[PAD] * (steps - length - 1)]
            edits.append([*played, *end])
    return np.array(edits)


def follows_the_rule(row, frames, per_bar):
    """No frame again, and no jump but onwards in a bar to where more than half may be played of a bar from
    there on, or of what is left."""
    played = [int(frame) for frame in row if frame >= 0]
    if len(set(played)) < len(played):
        return False
    for k in range(1, len(played)):
        before, (bar, offset) = played[k - 1], divmod(played[k], per_bar)
        if played[k] == before + 1 or (bar == before // per_bar and played[k] > before):
            continue
        here, following = (sum(frame // per_bar == v for frame in played[:k]) for v in (bar, bar + 1))
        most = min(here, per_bar - offset) + min(following, offset)
        if most > 0.5 * min(frames - played[k], per_bar):
            return False
    return True


@pytest.mark.parametrize("looped", [True, False])
def test_a_beam_that_holds_all_there_is_finds_the_likeliest(short_params, looped):
    """All edits of three steps of six frames in two bars, enumerated."""
    frames, steps, s = 6, 3, SHORT_BARS
    even = biased(short_params, [1.0, 1.0, 0.0])
    keys = keys_of(even, frames, 16, looped=looped, settings=s)
    edits = every_edit(frames, steps)
    if not looped:
        edits = np.array([row for row in edits if follows_the_rule(row, frames, s.frames_per_bar)])
    log_p = np.asarray(log_p_of(even, keys, edits, s).sum(1), np.float64)
    order = np.argsort(-log_p)
    out = found(even, keys, steps, width=300, settings=s, draft=2, reach=1e6)
    count = int(np.isfinite(out.log_p_W).sum())
    assert count == len(edits) and (not looped or np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-4))
    np.testing.assert_allclose(out.log_p_W[:count], log_p[order], atol=1e-4)
    listed = {tuple(row): p for row, p in zip(edits.tolist(), log_p, strict=True)}
    for row, p in zip(np.asarray(out.pointers_WN)[:count].tolist(), out.log_p_W, strict=False):
        assert listed.pop(tuple(row)) == pytest.approx(float(p), abs=1e-4)
    few = found(even, keys, steps, width=24, settings=s, draft=2, reach=1e6)
    np.testing.assert_allclose(few.log_p_W[:3], log_p[order[:3]], atol=1e-4)


@pytest.mark.parametrize("bias", [[1.0, 1.0, -6.0], [4.0, 1.0, -3.0]])
@pytest.mark.parametrize("looped", [True, False])
def test_a_beam_of_one_is_greedy(params, bias, looped):
    some = biased(params, bias)
    for seed in range(4):
        keys = keys_of(some, 75, 75, seed, looped)
        ready = TINY, some, keys, jnp.zeros(1), 60, 0.0, jax.random.key(0)
        greedy = decoding.decode(*ready, draft=5)
        out = found(some, keys, 60, width=1, draft=5)
        np.testing.assert_array_equal(out.pointers_WN, greedy.pointers_BN)
        np.testing.assert_allclose(out.log_p_WN, greedy.log_p_BN, atol=1e-4)
        assert float(out.log_p_W[0]) == pytest.approx(float(greedy.log_p_BN.sum()), abs=1e-3)


@pytest.mark.parametrize("apart", [0, 2])
def test_drafts_change_no_beam(params, apart):
    for bias, looped in (([4.0, 1.0, -3.0], False), ([5.0, 0.0, -3.0], True)):
        some = biased(params, bias)
        for seed in range(3):
            keys = keys_of(some, 75, 75, seed, looped)
            plain = found(some, keys, 60, width=6, apart=apart, draft=0)
            drafted = found(some, keys, 60, width=6, apart=apart, draft=12)
            np.testing.assert_array_equal(drafted.pointers_WN, plain.pointers_WN)
            np.testing.assert_allclose(drafted.log_p_W, plain.log_p_W, atol=1e-3)
            np.testing.assert_allclose(drafted.log_p_WN, plain.log_p_WN, atol=1e-4)
            assert int(drafted.passes) <= int(plain.passes)


def test_each_hypothesis_has_its_probability_and_plays_nothing_twice(params):
    some = biased(params, [4.0, 1.0, -3.0])
    keys = keys_of(some, 75, 75, looped=False)
    out = found(some, keys, 60, width=8, draft=12)
    held = np.isfinite(out.log_p_W)
    assert held.sum() > 1 and (np.diff(np.asarray(out.log_p_W)[held]) <= 0).all()
    forced = log_p_of(some, keys, np.asarray(out.pointers_WN)[held])
    np.testing.assert_allclose(np.asarray(out.log_p_WN)[held], forced, atol=2e-4)
    np.testing.assert_allclose(np.asarray(out.log_p_W)[held], forced.sum(1), atol=1e-3)
    for row_N in np.asarray(out.pointers_WN)[held]:
        played = row_N[row_N >= 0]
        assert len(played) == len(set(played))


def test_hypotheses_that_play_nearly_the_same_are_one(params):
    """All but one of the likeliest edits start a few frames apart; recombined, the others are elsewhere."""
    apart, some = 3, biased(params, [4.0, 1.0, -3.0])
    differences = {}
    for limit in (0, apart):
        keys = keys_of(some, 75, 75, looped=False)
        out = found(some, keys, 60, width=8, apart=limit, draft=12)
        rows = np.asarray(out.pointers_WN)[np.isfinite(out.log_p_W)]
        sets = [frozenset(row[row >= 0].tolist()) for row in rows]
        differences[limit] = [len(a ^ b) for a, b in itertools.combinations(sets, 2)]
    assert min(differences[0]) <= 2 * apart < min(differences[apart])
