"""Planted silences are found at any level and over noise; music without silence is left alone."""

import numpy as np
import pytest

from editjax import silence
from editjax.edits import Source, cut_spans, duration_samples
from editjax.mel import FrameGrid, mel_spectrogram

RATE_HZ = 22_050
GRID = FrameGrid(RATE_HZ)


def recording(*parts: tuple[str, float], noise_db: float = -90.0, gain_db: float = 0.0, seed: int = 0):
    """A mel and its source from ("tone" | "quiet" | "soft", seconds) parts over a noise floor."""
    rng = np.random.default_rng(seed)
    pieces = []
    for kind, length_s in parts:
        t = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
        chord = sum(np.sin(2 * np.pi * f * t) for f in (220.0, 277.2, 329.6)) / 6
        beat = 0.6 + 0.4 * np.cos(2 * np.pi * 2 * t)
        pieces.append({"tone": 1.0, "soft": 10 ** (-15 / 20), "quiet": 0.0}[kind] * chord * beat)
    samples_S = np.concatenate(pieces) + 10 ** (noise_db / 20) * rng.standard_normal(sum(map(len, pieces)))
    samples_S = (samples_S * 10 ** (gain_db / 20)).astype(np.float32)
    return mel_spectrogram(samples_S), Source("a.wav", "", RATE_HZ, 1, samples_S.size)


PLANTED = (
    ("quiet", 2.0),
    ("tone", 4.0),
    ("quiet", 3.0),
    ("tone", 2.0),
    ("quiet", 0.3),
    ("tone", 2.0),
    ("quiet", 2.0),
)


@pytest.mark.parametrize("noise_db", [-200.0, -90.0, -60.0, -45.0])
@pytest.mark.parametrize("gain_db", [0.0, -20.0])
def test_planted_silences_are_cut_to_the_margin(noise_db, gain_db):
    mel_TF, source = recording(*PLANTED, noise_db=noise_db, gain_db=gain_db)
    edit_list = silence.silence_edit(mel_TF, GRID, source, margin_s=0.2, min_silence_s=0.5)
    found_s = np.array(cut_spans(edit_list)) / RATE_HZ
    np.testing.assert_allclose(found_s, [(0, 1.8), (6.2, 8.8), (13.5, 15.3)], atol=0.1)
    assert edit_list.editor["name"] == "silence"
    assert all(segment.reason == "sound" and segment.score > 0 for segment in edit_list.segments)


@pytest.mark.parametrize("parts", [[("tone", 6.0)], [("tone", 4.0), ("soft", 4.0)], [("quiet", 4.0)]])
def test_recordings_without_silence_stay_whole(parts):
    mel_TF, source = recording(*parts)
    edit_list = silence.silence_edit(mel_TF, GRID, source)
    assert [(s.start, s.stop) for s in edit_list.segments] == [(0, source.frames)]


def test_soft_music_survives_beside_silence():
    mel_TF, source = recording(("tone", 4.0), ("quiet", 3.0), ("soft", 4.0), ("quiet", 3.0))
    kept_s = duration_samples(silence.silence_edit(mel_TF, GRID, source, margin_s=0.0)) / RATE_HZ
    assert kept_s == pytest.approx(8.0, abs=0.3)


def test_a_given_threshold_counts_from_the_loud_frames():
    mel_TF, source = recording(("tone", 4.0), ("soft", 4.0))
    cut = silence.silence_edit(mel_TF, GRID, source, threshold_db=-10.0, margin_s=0.0)
    assert duration_samples(cut) / RATE_HZ == pytest.approx(4.0, abs=0.1)
    assert cut.editor["threshold_db"] == -10.0


def test_short_silences_stay():
    mel_TF, source = recording(("tone", 2.0), ("quiet", 0.8), ("tone", 2.0))
    assert len(silence.silence_edit(mel_TF, GRID, source, min_silence_s=1.0).segments) == 1
    assert len(silence.silence_edit(mel_TF, GRID, source, min_silence_s=0.5).segments) == 2


def test_quiet_spans_are_the_pauses():
    mel_TF, source = recording(*PLANTED)
    spans_s = np.array(silence.quiet_spans(mel_TF, GRID, source)) / RATE_HZ
    np.testing.assert_allclose(spans_s, [(0, 2), (6, 9), (11, 11.3), (13.3, 15.3)], atol=0.1)
    assert spans_s[-1, 1] == source.frames / RATE_HZ


def test_levels_are_those_of_the_samples():
    """Twice the amplitude is 6.02 dB, whatever the bands."""
    mel_TF, _ = recording(("tone", 1.0), noise_db=-50.0)
    louder_TF, _ = recording(("tone", 1.0), noise_db=-50.0, gain_db=6.02)
    difference_T = silence.frame_levels_db(louder_TF) - silence.frame_levels_db(mel_TF)
    np.testing.assert_allclose(difference_T, 6.02, atol=0.01)
