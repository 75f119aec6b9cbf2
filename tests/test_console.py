"""The console's parts against SciPy, loops over samples in float64, and EBU Tech 3341."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from editjax.console.dynamics import decibel, held, left_after, reduction, smooth
from editjax.console.filters import BUTTERWORTH, filtered, high_pass, high_shelf, low_shelf, peak, response
from editjax.console.loudness import limited, loudness, true_peak

RATE_HZ = 48_000
NOISE_CS = np.random.default_rng(0).normal(size=(2, RATE_HZ)).astype(np.float32)


def cookbook(kind: str, hz: float, gain_db: float, q: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the *Audio EQ Cookbook* in float64."""
    a, w = 10 ** (gain_db / 40), 2 * np.pi * hz / RATE_HZ
    c, alpha = np.cos(w), np.sin(w) / (2 * q)
    root = 2 * np.sqrt(a) * alpha
    match kind:
        case "high pass":
            above, below = [(1 + c) / 2, -(1 + c), (1 + c) / 2], [1 + alpha, -2 * c, 1 - alpha]
        case "peak":
            above, below = [1 + alpha * a, -2 * c, 1 - alpha * a], [1 + alpha / a, -2 * c, 1 - alpha / a]
        case "low shelf":
            above = [a * (a + 1 - (a - 1) * c + root), 2 * a * (a - 1 - (a + 1) * c)]
            above.append(a * (a + 1 - (a - 1) * c - root))
            below = [a + 1 + (a - 1) * c + root, -2 * (a - 1 + (a + 1) * c), a + 1 + (a - 1) * c - root]
        case "high shelf":
            above = [a * (a + 1 + (a - 1) * c + root), -2 * a * (a - 1 + (a + 1) * c)]
            above.append(a * (a + 1 + (a - 1) * c - root))
            below = [a + 1 - (a - 1) * c + root, 2 * (a - 1 - (a + 1) * c), a + 1 - (a - 1) * c - root]
    return np.array(above), np.array(below)


def prototype(kind: str, gain_db, q):
    made = {"peak": peak, "low shelf": low_shelf, "high shelf": high_shelf}
    return high_pass(q) if kind == "high pass" else made[kind](gain_db, q)


@pytest.mark.parametrize("hz", [20.0, 60.0, 1000.0, 8000.0, 20_000.0])
@pytest.mark.parametrize(
    "kind, gain_db, q",
    [
        ("high pass", 0.0, BUTTERWORTH),
        ("peak", 12.0, 0.5),
        ("peak", -18.0, 8.0),
        ("low shelf", 6.0, BUTTERWORTH),
        ("high shelf", -9.0, BUTTERWORTH),
    ],
)
def test_filters_are_the_cookbooks_in_float64(kind, gain_db, q, hz):
    wanted = scipy.signal.lfilter(*cookbook(kind, hz, gain_db, q), NOISE_CS.astype(np.float64))
    found = filtered(NOISE_CS, lambda n: response(prototype(kind, gain_db, q), hz, RATE_HZ, n), RATE_HZ)
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["high pass", "peak", "low shelf", "high shelf"])
def test_every_setting_of_a_filter_gets_a_finite_gradient(kind):
    def power(hz, gain_db, q):
        def answer(n_bins):
            return response(prototype(kind, gain_db, q), hz, RATE_HZ, n_bins)

        return (filtered(NOISE_CS, answer, RATE_HZ) ** 2).mean()

    for hz in (20.0, 23_900.0):
        found = jax.grad(power, (0, 1, 2))(hz, 3.0, 0.9)
        assert np.isfinite(found).all() and found[0] != 0 and found[2] != 0
        assert (found[1] != 0) == (kind != "high pass")


def test_several_settings_go_through_at_once():
    def one(hz, q):
        return filtered(NOISE_CS, lambda n_bins: response(peak(6.0, q), hz, RATE_HZ, n_bins), RATE_HZ)

    hz_2, q_2 = jnp.array([100.0, 3000.0]), jnp.array([1.0, 2.0])
    for found, hz, q in zip(jax.vmap(one)(hz_2, q_2), hz_2, q_2, strict=True):
        np.testing.assert_allclose(found, one(hz, q), atol=1e-5)


def test_what_is_over_the_threshold_is_divided_by_the_ratio():
    level_db = np.array([-40.0, -23.0, -20.0, -17.0, 0.0], np.float32)
    hard = reduction(level_db, -20.0, 4.0, 0.0)
    np.testing.assert_allclose(hard, [0, 0, 0, 2.25, 15], atol=1e-3)
    soft = reduction(level_db, -20.0, 4.0, 6.0)
    np.testing.assert_allclose(soft, [0, 0, 0.75 * 3**2 / 12, 2.25, 15], atol=1e-4)
    assert not reduction(level_db, -20.0, 1.0, 6.0).any()


def test_the_detector_is_the_loop_over_samples():
    asked = np.maximum(0, 6 * NOISE_CS[0, :9600]).astype(np.float64)
    attack, release = (np.exp(-1 / (s * RATE_HZ)) for s in (0.005, 0.1))
    slow = quick = 0.0
    wanted = []
    for one in asked:
        slow = max(one, release * slow + (1 - release) * one)
        quick = attack * quick + (1 - attack) * slow
        wanted.append(quick)
    found = jax.jit(smooth)(asked.astype(np.float32), left_after(0.005, RATE_HZ), left_after(0.1, RATE_HZ))
    np.testing.assert_allclose(found, wanted, atol=2e-3)  # dB


def test_what_is_held_falls_by_a_factor_a_sample():
    x_S = np.array([0, 4, 0, 0, 1, 3, 0], np.float32)
    np.testing.assert_allclose(held(x_S, 0.5, 0.0), [0, 4, 2, 1, 1, 3, 1.5])


def test_gradients_of_the_dynamics_are_finite_in_silence_and_in_noise():
    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2, 3))
    def gradients(x_S, threshold_db, ratio, attack_s):
        asked_S = reduction(decibel(jnp.abs(x_S)), threshold_db, ratio, 6.0)
        return smooth(asked_S, left_after(attack_s, RATE_HZ), left_after(0.1, RATE_HZ)).mean()

    noise_S = NOISE_CS[0, :4800]
    for x_S in noise_S, np.zeros_like(noise_S):
        assert all(np.isfinite(d).all() for d in gradients(x_S, -20.0, 4.0, 0.005))
    assert all(np.any(d != 0) for d in gradients(noise_S, -20.0, 4.0, 0.005))


@pytest.mark.parametrize("gain", [0.01, 3.0])
def test_nothing_low_is_touched_and_channels_stay_together(gain):
    x_CS = gain * NOISE_CS
    y_CS = np.asarray(jax.jit(limited, static_argnums=2)(x_CS, -12.0, RATE_HZ))
    if gain < 0.1:
        np.testing.assert_array_equal(y_CS, x_CS)
    else:
        np.testing.assert_allclose(y_CS[1] * x_CS[0], y_CS[0] * x_CS[1], atol=1e-5)


def test_a_peak_lowers_its_surroundings_alone():
    """Far from it not a bit is changed but by what the last scaling takes, a hair."""
    x_CS = np.float32(0.05) * NOISE_CS
    x_CS[:, 40_000:40_010] = 1.0
    y_CS = jax.jit(limited, static_argnums=2)(x_CS, -6.0, RATE_HZ)
    np.testing.assert_allclose(y_CS[:, :39_900], x_CS[:, :39_900], rtol=0.02)
    assert np.abs(y_CS[:, 40_000:40_010]).max() > 0.8 * 10 ** (-6 / 20)  # between samples it is higher


def test_a_peak_between_samples_is_seen():
    window = np.hanning(RATE_HZ)
    sine_S = np.sin(2 * np.pi * (RATE_HZ / 4) * np.arange(RATE_HZ) / RATE_HZ + np.pi / 4) * window
    assert np.abs(sine_S).max() < 0.708
    assert float(true_peak(sine_S[None].astype(np.float32))) == pytest.approx(1.0, abs=1e-3)


def tone(*parts: tuple[float, float], rate_hz: int = RATE_HZ) -> np.ndarray:
    """1 kHz in both channels, (dB of full scale, seconds) after (dB, seconds)."""
    level_S = np.concatenate([np.full(round(s * rate_hz), 10 ** (db / 20)) for db, s in parts])
    sine_S = level_S * np.sin(2 * np.pi * 1000 * np.arange(len(level_S)) / rate_hz)
    return np.stack([sine_S, sine_S]).astype(np.float32)


@pytest.mark.parametrize(
    "parts, lufs",
    [
        ([(-23, 20)], -23),
        ([(-33, 20)], -33),
        ([(-36, 10), (-23, 60), (-36, 10)], -23),
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23),
        ([(-26, 20), (-20, 20.1), (-26, 20)], -23),
    ],
)
def test_loudness_is_that_of_the_ebus_cases(parts, lufs):
    """EBU Tech 3341, cases 1 to 5: within 0.1 LU."""
    assert float(loudness(tone(*parts), RATE_HZ)) == pytest.approx(lufs, abs=0.1)


@pytest.mark.parametrize("rate_hz", [22_050, 44_100, 96_000])
def test_loudness_hardly_depends_on_the_rate(rate_hz):
    assert float(loudness(tone((-23, 3), rate_hz=rate_hz), rate_hz)) == pytest.approx(-23, abs=0.05)


def test_loudness_of_one_channel_of_silence_and_of_too_little():
    both = tone((-20, 2))
    assert float(loudness(both[:1], RATE_HZ)) == pytest.approx(
        float(loudness(both, RATE_HZ)) - 3.01, abs=0.01
    )
    assert float(loudness(np.zeros_like(both), RATE_HZ)) < -100
    assert float(loudness(both[:, : RATE_HZ // 3], RATE_HZ)) == -np.inf


def test_limiter_and_loudness_have_finite_gradients():
    @jax.jit
    def gradients(x_CS):
        held = jax.grad(lambda x: (limited(x, -6.0, RATE_HZ) ** 2).sum())(x_CS)
        return held, jax.grad(lambda x: loudness(x, RATE_HZ))(x_CS)

    for gain in 1.0, 0.0:
        assert all(np.isfinite(d).all() for d in gradients(gain * NOISE_CS[:, : RATE_HZ // 2]))
