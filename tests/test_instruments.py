"""Synthesised notes: in tune, distinct, repeatable, and struck ones decay."""

import numpy as np
import pytest

from editjax.instruments import (
    DRUMS,
    PITCHED_FAMILIES,
    RANGES,
    STRUCK_FAMILIES,
    NoteBank,
    band_noise,
    draw_timbre,
    render_drum,
    render_note,
)

RATE_HZ = 22050
SUSTAINED = sorted(set(PITCHED_FAMILIES) - set(STRUCK_FAMILIES) - {"synth"})


def note_of(family: str, pitch: int, seed: int = 0, length_s: float = 1.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return render_note(draw_timbre(family, rng), pitch, length_s, 0.8, RATE_HZ, rng)


def pitch_class_error_cents(wave_S: np.ndarray, pitch: int) -> float:
    """Distance of the nearest strong spectral peak from the note's first, second or third harmonic."""
    size = 1 << 17
    level = np.abs(np.fft.rfft(wave_S * np.hanning(len(wave_S)), size))
    strong_hz = np.flatnonzero(level > 0.1 * level.max()) * RATE_HZ / size
    harmonics_hz = 440.0 * 2 ** ((pitch - 69) / 12) * np.arange(1, 4)
    return float(np.abs(1200 * np.log2(strong_hz[:, None] / harmonics_hz)).min())


@pytest.mark.parametrize("family", PITCHED_FAMILIES)
def test_notes_are_in_tune_and_bounded(family: str) -> None:
    low, high = RANGES[family]
    for pitch in (low, (low + high) // 2, high):
        wave_S = note_of(family, pitch)
        assert wave_S.dtype == np.float32
        assert 0.3 < np.abs(wave_S).max() < 0.75
        assert pitch_class_error_cents(wave_S, pitch) < 12.0


def brightness(wave_S: np.ndarray) -> np.ndarray:
    """Unit vector of the spectrum in octaves."""
    power = np.abs(np.fft.rfft(wave_S)) ** 2
    edges = np.geomspace(20, len(power) - 1, 25).astype(int)
    bands = np.sqrt(np.add.reduceat(power, edges)[:-1])
    return bands / np.linalg.norm(bands)


def test_at_least_six_families_do_not_sound_alike() -> None:
    shapes = np.array([brightness(note_of(family, 64)) for family in PITCHED_FAMILIES])
    cosine = shapes @ shapes.T
    distinct: list[int] = []
    for i in range(len(shapes)):
        if all(cosine[i, j] < 0.97 for j in distinct):
            distinct.append(i)
    assert len(distinct) >= 6


@pytest.mark.parametrize("family", ["piano", "strings", "brass", "voice"])
def test_every_piece_draws_its_own_timbre(family: str) -> None:
    first, second = (brightness(note_of(family, 60, seed)) for seed in (1, 2))
    assert first @ second < 0.999


@pytest.mark.parametrize("family", STRUCK_FAMILIES)
def test_struck_notes_decay(family: str) -> None:
    wave_S = note_of(family, RANGES[family][0] + 12, length_s=2.4)
    quarter = len(wave_S) // 4
    assert np.square(wave_S[-quarter:]).mean() < 0.25 * np.square(wave_S[:quarter]).mean()


@pytest.mark.parametrize("family", SUSTAINED)
def test_sustained_notes_hold(family: str) -> None:
    wave_S = note_of(family, 62, length_s=2.4)
    quarter = len(wave_S) // 4
    assert np.square(wave_S[-quarter:]).mean() > 0.5 * np.square(wave_S[quarter : 2 * quarter]).mean()


@pytest.mark.parametrize("name", DRUMS)
def test_drums_decay_and_strokes_differ(name: str) -> None:
    strokes = [
        render_drum(name, RATE_HZ, np.random.default_rng(7), np.random.default_rng(seed)) for seed in (1, 2)
    ]
    tail = len(strokes[0]) // 4
    assert np.square(strokes[0][-tail:]).mean() < 0.05 * np.square(strokes[0][:tail]).mean()
    assert np.abs(strokes[0]).max() == pytest.approx(0.5, abs=1e-3)
    assert not np.array_equal(*strokes)


def test_the_bank_is_a_function_of_its_seed_not_of_the_order_of_calls() -> None:
    timbre = draw_timbre("guitar", np.random.default_rng(3))
    calls = [(0, timbre, pitch, length_s, 0.7, 0) for pitch in (50, 57) for length_s in (0.2, 1.0)]
    one, other = NoteBank(RATE_HZ, 5), NoteBank(RATE_HZ, 5)
    forward = [one.pitched(*call) for call in calls]
    backward = [other.pitched(*call) for call in reversed(calls)][::-1]
    for left_S, right_S in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(left_S, right_S)
    assert one.pitched(*calls[0]) is forward[0]
    assert not np.array_equal(NoteBank(RATE_HZ, 6).pitched(*calls[0]), forward[0])


def test_band_noise_lies_in_its_band() -> None:
    noise_S = band_noise(RATE_HZ, 2000.0, 0.5, RATE_HZ, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise_S)) ** 2
    assert noise_S.std() == pytest.approx(1.0, abs=1e-3)
    assert power[500:5000].sum() > 0.95 * power.sum()
