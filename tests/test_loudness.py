"""Meters against pyloudnorm, a float64 copy of BS.1770's tables, EBU Tech 3342 and SciPy's resampler."""

from pathlib import Path

import jax
import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import soundfile

from editjax.console.filters import sections
from editjax.console.loudness import (
    LOW_GAIN,
    hair,
    limited,
    loudness,
    loudness_range,
    momentary,
    short_term,
    true_peak,
    weighting,
)

RATE_HZ = 48_000
RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.flac"))
STANDARD = np.array(
    [
        [1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585],
        [1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621],
    ]
)
"""BS.1770-5, tables 1 and 2: at 48 kHz."""


def tone(*parts: tuple[float, float], rate_hz: int = RATE_HZ) -> np.ndarray:
    """1 kHz in both channels, (dB of full scale, seconds) after (dB, seconds)."""
    level_S = np.concatenate([np.full(round(s * rate_hz), 10 ** (db / 20)) for db, s in parts])
    sine_S = level_S * np.sin(2 * np.pi * 1000 * np.arange(len(level_S)) / rate_hz)
    return np.stack([sine_S, sine_S]).astype(np.float32)


def programme(kind: str, rate_hz: int, channels: int) -> np.ndarray:
    """Some seconds of sound (C, S) with loud and quiet parts, and silence in between."""
    rng, n_samples = np.random.default_rng(1), 12 * rate_hz
    if kind == "music":
        clips = [soundfile.read(path)[0] for path in RECORDINGS]
        up, down = rate_hz // 50, soundfile.info(RECORDINGS[0]).samplerate // 50
        x_S = np.tile(scipy.signal.resample_poly(np.concatenate(clips), up, down), 2)[:n_samples]
        x_CS = np.stack([x_S, 0.5 * np.roll(x_S, rate_hz // 3)])[:channels]
    elif kind == "noise":
        x_CS = 0.1 * rng.normal(size=(channels, n_samples))
    else:
        time_S = np.arange(n_samples) / rate_hz
        x_CS = np.stack([0.2 * np.sin(2 * np.pi * hz * time_S) for hz in (60.0, 3000.0)])[:channels]
    levels_db = np.repeat(rng.uniform(-18, 0, 24), n_samples // 24)
    levels_db[n_samples // 3 : n_samples // 2] = -200.0
    return (x_CS[:, : len(levels_db)] * 10 ** (levels_db / 20)[None]).astype(np.float32)


def test_the_weighting_is_the_standards():
    """Where the standard gives numbers; it wants the same answer at other rates."""
    made = sections(weighting(), RATE_HZ)[::-1]
    made[1, :3] *= LOW_GAIN
    np.testing.assert_allclose(made, STANDARD, atol=1e-7)


@pytest.mark.parametrize("kind", ["music", "noise", "tones"])
@pytest.mark.parametrize(
    "rate_hz, channels", [(22_050, 2), (44_100, 1), (44_100, 2), (48_000, 2), (96_000, 1)]
)
def test_loudness_is_pyloudnorms(kind, rate_hz, channels):
    """With its weighting `DeMan`, which has the standard's numbers at 48 kHz; elsewhere its high-pass, not
    normalised, amplifies otherwise. What it takes if not asked is another filter, 0.04 LU less in music."""
    x_CS = programme(kind, rate_hz, channels)
    found, programme_SC = float(loudness(x_CS, rate_hz)), x_CS.T.astype(np.float64)
    theirs = pyloudnorm.Meter(rate_hz, "DeMan").integrated_loudness(programme_SC)
    assert found == pytest.approx(theirs, abs=1e-3 if rate_hz == RATE_HZ else 0.06)
    assert found - 0.05 < pyloudnorm.Meter(rate_hz).integrated_loudness(programme_SC) < found


def test_loudness_with_gates_is_the_standards_filter_with_pyloudnorms_gates():
    x_CS = programme("noise", RATE_HZ, 2)
    gates = pyloudnorm.Meter(RATE_HZ)
    gates._filters = {}
    wanted = gates.integrated_loudness(scipy.signal.sosfilt(STANDARD, x_CS.astype(np.float64)).T)
    assert float(loudness(x_CS, RATE_HZ)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    "parts, range_lu",
    [
        ([(-20, 20), (-30, 20)], 10),
        ([(-20, 20), (-15, 20)], 5),
        ([(-40, 20), (-20, 20)], 20),
        ([(-50, 20), (-35, 20), (-20, 20), (-35, 20), (-50, 20)], 15),
    ],
)
def test_the_range_is_that_of_the_ebus_cases(parts, range_lu):
    """EBU Tech 3342, cases 1 to 4: within 1 LU."""
    assert float(loudness_range(tone(*parts), RATE_HZ)) == pytest.approx(range_lu, abs=0.1)


@pytest.mark.parametrize("rate_hz", [22_050, 48_000])
def test_the_range_is_nearly_pyloudnorms(rate_hz):
    """It appends 1.5 s of silence, has a block every 90 ms, and interpolates percentiles."""
    x_CS = np.concatenate([programme("music", rate_hz, 2)] * 2, 1)
    theirs = pyloudnorm.Meter(rate_hz, "DeMan").loudness_range(x_CS.T.astype(np.float64))
    assert theirs > 3
    assert float(loudness_range(x_CS, rate_hz)) == pytest.approx(theirs, abs=0.5)


def test_the_range_of_what_is_short_silent_or_even():
    assert float(loudness_range(tone((-20, 2)), RATE_HZ)) == 0
    assert float(loudness_range(np.zeros((2, 5 * RATE_HZ), np.float32), RATE_HZ)) == 0
    assert float(loudness_range(tone((-20, 5)), RATE_HZ)) == pytest.approx(0, abs=0.01)


def test_momentary_and_short_term():
    """EBU Tech 3341, cases 9 and 12: short tones whose blocks are all equally loud, by the blocks' length."""
    for meter, parts, n_blocks in (
        (short_term, [(-20, 1.34), (-30, 1.66)] * 4, 12 * 10 - 29),
        (momentary, [(-20, 0.18), (-30, 0.22)] * 20, 8 * 10 - 3),
    ):
        found_J = np.asarray(meter(tone(*parts), RATE_HZ))
        assert found_J.shape == (n_blocks,)
        np.testing.assert_allclose(found_J[1:], -23, atol=0.1)


def test_gradients_of_the_range_are_finite():
    x_CS = programme("music", 22_050, 2)
    for gain in (1.0, 0.0):
        d_CS = jax.grad(lambda x: loudness_range(x, 22_050))(gain * x_CS)
        assert np.isfinite(d_CS).all() and np.any(d_CS != 0) == (gain > 0)


def between(x_CS: np.ndarray, factor: int) -> float:
    """The highest of `factor` times as many samples."""
    window = ("kaiser", 8.0)
    return np.abs(scipy.signal.resample_poly(x_CS.astype(np.float64), factor, 1, axis=1, window=window)).max()


def decibels(ratio: float) -> float:
    return 20 * np.log10(ratio)


@pytest.mark.parametrize("kind", ["music", "tones"])
def test_true_peaks_are_those_of_four_times_as_many_samples(kind):
    x_CS = programme(kind, RATE_HZ, 2)
    found = float(true_peak(x_CS))
    assert abs(decibels(found / between(x_CS, 4))) < 0.01
    for factor in (8, 16):
        assert -0.05 < decibels(found / between(x_CS, factor)) < 0.005


@pytest.mark.parametrize("phase", np.linspace(0, np.pi / 2, 5))
@pytest.mark.parametrize("part", [0.02, 0.25, 0.4, 0.45])
def test_true_peaks_of_tones_are_found_as_the_standard_wants(part, phase):
    """At most what the grid of a quarter sample misses, which the standard gives: cos(π part / 4)."""
    fade_S = scipy.signal.windows.tukey(4000, 0.5)
    sine_S = fade_S * np.cos(2 * np.pi * part * np.arange(4000) + phase)
    missed = decibels(np.cos(np.pi * part / 4))
    assert missed - 0.01 < decibels(float(true_peak(sine_S[None].astype(np.float32)))) < 0.01


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("ceiling_db", [-1.0, -12.0])
@pytest.mark.parametrize("kind", ["music", "white", "steps", "impulses"])
def test_nothing_passes_the_limiter(kind, ceiling_db, rate_hz):
    """By its own meter, and, of music, by SciPy's."""
    rng, n_samples = np.random.default_rng(2), 3 * rate_hz
    x_CS = 3 * rng.normal(size=(2, n_samples))
    if kind == "music":
        x_CS = 8 * programme("music", rate_hz, 2)[:, :n_samples]
    elif kind == "steps":
        x_CS = 30 * np.sign(np.sin(np.arange(n_samples) ** 1.3 / 50))[None].repeat(2, 0)
    elif kind == "impulses":
        x_CS = 40 * np.sign(x_CS) * (np.abs(x_CS) > 10)
    y_CS = np.asarray(jax.jit(limited, static_argnums=2)(x_CS.astype(np.float32), ceiling_db, rate_hz))
    assert decibels(float(true_peak(y_CS))) <= ceiling_db
    assert decibels(float(true_peak(y_CS))) > ceiling_db + decibels(1 - 2.1 * hair())
    if kind == "music":
        assert decibels(between(y_CS, 4)) < ceiling_db + 0.05


def test_what_is_just_below_the_ceiling_stays_as_it_is():
    x_CS = programme("music", 22_050, 2)
    x_CS *= 0.9 * (1 - 1.01 * hair()) / float(true_peak(x_CS))
    np.testing.assert_array_equal(limited(x_CS, decibels(0.9), 22_050), x_CS)
