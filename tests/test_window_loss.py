"""What the creative agent learns from: that each loss measures what it says, and reaches what it should."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from window_cases import TINY, planted

from editjax.errors import UsageError
from editjax.models.selector import Windows
from editjax.models.window import compose, cut_out, init, select
from editjax.window_loss import (
    WindowLossSettings,
    loss_of,
    novelty,
    overlap,
    pair_losses,
    pulse_quotient,
    ratio_error,
    rhythm,
    spectral_distance,
    total_of_pairs,
)

SMALL = replace(TINY, frames_per_second=8.0, ratios=4, channels=6, match_width=4, selector_width=8)
HOP = 40
ONLY = {name: 0.0 for name in ("spectral", "rhythm", "matching", "novelty", "diversity", "ratio")}
CHOSEN = ("start_input_BP", "start_target_BP", "ratio_input_BP", "ratio_target_BP", "tonality_strength_BP")


def hear(latents_BTD):
    """Stands in for a codec: every frame plays its own mixture of sines."""
    rng = np.random.default_rng(0)
    weight_DS = rng.normal(size=(latents_BTD.shape[-1], HOP)).astype(np.float32) / HOP
    return (jnp.tanh(latents_BTD) @ weight_DS).reshape(len(latents_BTD), -1)


def latents(batch: int = 2, seed: int = 0):
    shape = 2, batch, SMALL.frames, SMALL.channels
    return tuple(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def windows(start_input=0.0, start_target=0.0, ratio_input=1.0, ratio_target=1.0) -> Windows:
    rows = [
        np.atleast_2d(np.asarray(x, np.float32))
        for x in (start_input, start_target, ratio_input, ratio_target)
    ]
    rows = np.broadcast_arrays(*rows, np.float32(0.5), np.float32(0.0))
    return Windows(*map(jnp.asarray, rows))


@pytest.fixture(scope="module")
def params():
    return jax.jit(init, static_argnums=0)(SMALL, jax.random.key(0))


def test_gradients_of_each_loss_reach_what_they_should(params):
    """The spectral loss through the codec to every start, ratio and strength; the others to the selector.

    Parameters are arguments: XLA for CPUs (jax 0.10.2) makes NaN of the gradient where it folds a constant
    kernel of zeros.
    """
    moved = jax.tree.map(lambda a: a + 0.03 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    weights, names = WindowLossSettings(heard_s=0.0), tuple(ONLY)

    @jax.jit
    def gradients(params, first, second):
        def losses(selector, nudge):
            own = {**params, "selector": selector}
            chosen = jax.tree.map(jnp.add, select(SMALL, own, first, second), nudge)
            composed = compose(SMALL, own, first, second, chosen)
            metrics = loss_of(composed, first, second, hear, SMALL, weights, jax.random.key(0))[1]
            return jnp.stack([metrics[name] for name in names])

        nudge = Windows(*[jnp.zeros((2, 3)) for _ in Windows._fields])
        return jax.jacrev(losses, (0, 1))(params["selector"], nudge)

    of_selector, of_windows = gradients(moved, *latents())
    for at, name in enumerate(names):
        sizes = [float(jnp.abs(x[at]).max()) for x in jax.tree.leaves(of_selector)]
        assert all(np.isfinite(sizes)) and max(sizes) > 0, name
    for name in CHOSEN:
        x_BP = np.asarray(getattr(of_windows, name))[names.index("spectral")]
        assert np.isfinite(x_BP).all() and (np.abs(x_BP) > 1e-9).all(), name


def test_the_loss_is_the_mean_over_pairs_and_logs_what_was_chosen(params):
    first, second = latents()
    composed = compose(SMALL, params, first, second, select(SMALL, params, first, second))
    weights, key = WindowLossSettings(), jax.random.key(2)
    total, metrics = loss_of(composed, first, second, hear, SMALL, weights, key)
    losses = pair_losses(composed, first, second, hear, SMALL, weights, key)
    assert all(loss_BP.shape == (2, 3) for loss_BP in losses.values())
    mean = total_of_pairs(losses, weights).mean() + weights.diversity * metrics["diversity"]
    np.testing.assert_allclose(total, mean, rtol=1e-5)
    assert float(metrics["pair2_start_target_mean"]) == 8 * SMALL.frames_per_second


def test_pieces_that_copy_are_the_least_novel():
    """With any sign and level, frame by frame; one score for all copies, and nothing scores worse."""
    rng = np.random.default_rng(1)
    first, second, other = (jnp.asarray(rng.normal(size=(1, 1, 60, 16)), jnp.float32) for _ in range(3))
    sign = jnp.asarray(np.where(np.arange(60) % 2, 1.0, -1.0), jnp.float32)[None, None, :, None]
    turns = jnp.where(sign > 0, first, second)
    for copy in (first, second, -first, sign * first, 0.01 * second, 3.0 * sign * second, turns):
        np.testing.assert_allclose(novelty(copy, first, second), 1.0, atol=1e-4)
    mixed, new = (float(novelty(x, first, second)[0, 0]) for x in (first + second, other))
    assert new < 0.3 < mixed < 0.8


def test_novelty_counts_frames_not_their_mean():
    """One copied frame costs a frame's share, whatever the other frames do."""
    first = jnp.eye(4)[None, None, :, :]
    piece = first.at[0, 0, 1:].set(jnp.roll(first[0, 0, 1:], 1, -1))
    np.testing.assert_allclose(novelty(piece, first, jnp.roll(first, 2, -1)), 0.25, atol=1e-5)


def test_rhythm_is_best_where_both_change_alike():
    held = planted(TINY, 8, 3, noise=0.0)
    at = windows(
        held.start_input_B[:, None], held.start_target_B[:, None], held.ratio_B[:, None], np.ones((8, 1))
    )

    def loss(chosen):
        return np.asarray(rhythm(TINY, *cut_out(TINY, held.input_BTD, held.target_BTD, chosen)))

    right = loss(at)
    assert right.max() < 0.15
    late = at._replace(start_input_BP=jnp.maximum(at.start_input_BP - 12.0, 0.0))
    slow = at._replace(ratio_input_BP=jnp.where(at.ratio_input_BP > 1.2, 1.05, 1.4))
    assert (loss(late) > right).mean() > 0.8 and (loss(slow) > right + 0.2).all()


def test_overlap_is_one_for_the_same_windows_and_none_for_one_pair():
    assert float(overlap(SMALL, windows([3.0, 3.0, 3.0], [9.0, 9.0, 9.0]))[0]) == 1.0
    assert float(overlap(SMALL, windows([3.0], [9.0]))[0]) == 0.0
    apart = windows([0.0, 1e4], [0.0, 1e4])
    assert float(overlap(SMALL, apart)[0]) == 0.0
    near, far = (float(overlap(SMALL, windows([0.0, by], [0.0, by]))[0]) for by in (10.0, 60.0))
    assert far < near < 1.0


def test_overlap_pushes_windows_apart():
    found = jax.grad(lambda w: overlap(SMALL, w).sum())(windows([10.0, 14.0], [10.0, 14.0]))
    assert float(found.start_input_BP[0, 0]) > 0 > float(found.start_input_BP[0, 1])


def test_pulses_tell_how_much_faster_one_recording_is():
    held = planted(TINY, 16, 7)
    log_B, trust_B = pulse_quotient(TINY, held.input_BTD, held.target_BTD)
    near = np.abs(np.asarray(log_B) - np.log(held.ratio_B)) < 0.05
    assert near.mean() > 0.85 and float(trust_B.mean()) > 0.5
    same_B, sure_B = pulse_quotient(TINY, held.input_BTD, held.input_BTD)
    np.testing.assert_allclose(same_B, 0.0, atol=2e-2)
    np.testing.assert_allclose(sure_B, 1.0, atol=2e-2)


def test_ratio_supervision_is_least_at_the_ratios_that_pulses_ask_for():
    held = planted(TINY, 8, 9)
    log_B = np.asarray(pulse_quotient(TINY, held.input_BTD, held.target_BTD)[0])
    zero = np.zeros((8, 1))
    wanted = [np.exp(np.maximum(x, 0.0))[:, None] for x in (log_B, -log_B)]
    at_best = ratio_error(TINY, windows(zero, zero, *wanted), held.input_BTD, held.target_BTD)
    np.testing.assert_allclose(at_best, 0.0, atol=1e-6)
    for off in ((1.2, 1.0), (1.0, 1.2), (1.2, 1.2)):  # the quotient alone is not enough
        moved = windows(zero, zero, wanted[0] * off[0], wanted[1] * off[1])
        assert (np.asarray(ratio_error(TINY, moved, held.input_BTD, held.target_BTD)) > 1e-3).all()


def test_spectra_are_level_with_themselves_only():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 6000)).astype(np.float32)
    assert float(spectral_distance(a, a)[0]) < 1e-3 < 0.3 < float(spectral_distance(a, b)[0])
    quiet, loud = (float(spectral_distance(x, y)[0]) for x, y in ((a, 1e-4 * b), (1e-4 * b, a)))
    assert quiet == pytest.approx(loud) and quiet < 20.0  # whichever is the quieter
    gradient = jax.grad(lambda x: spectral_distance(x, jnp.zeros_like(x)).sum())(jnp.zeros((1, 6000)))
    assert np.isfinite(gradient).all()


def test_a_negative_stretch_to_hear_is_refused():
    with pytest.raises(UsageError, match="heard_s"):
        WindowLossSettings(heard_s=-1.0)
