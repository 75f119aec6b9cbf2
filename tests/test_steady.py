"""What is put among the music to be told from it: as loud, and where nothing is kept."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from editjax.mel import MelSettings, mel_spectrogram

MEL = MelSettings()


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("steady")


@pytest.mark.parametrize("kind", ["hum", "brown noise", "white noise"])
def test_a_steady_sound_is_as_loud_as_the_music_and_parts_none(steady, kind):
    time_S = np.arange(30 * MEL.sample_rate_hz) / MEL.sample_rate_hz
    mel_TF = mel_spectrogram(0.3 * np.sin(2 * np.pi * 440 * time_S) * np.cos(2 * np.pi * time_S), MEL)
    kept_T = np.ones(len(mel_TF), bool)
    kept_T[50:100], kept_T[500:700] = False, False
    found = steady.with_steady(mel_TF, kept_T, kind, MEL, 0)
    np.testing.assert_array_equal(found.mel_TF[~found.steady_T], mel_TF)
    np.testing.assert_array_equal(found.music_T[~found.steady_T], kept_T)
    assert not found.music_T[found.steady_T].any() and np.flatnonzero(found.steady_T)[0] == 600
    assert found.steady_T.sum() == pytest.approx(20 * MEL.frames_per_second, abs=1)
    music_db, steady_db = (
        steady.mean_level_db(found.mel_TF[rows], MEL) for rows in (found.music_T, found.steady_T)
    )
    assert steady_db == pytest.approx(music_db, abs=0.3)


@pytest.mark.parametrize(("cut", "middle"), [([], 10), ([3, 4], 4), ([0, 15, 16, 17, 18], 17)])
def test_the_middle_of_the_longest_cut(steady, cut, middle):
    cut_T = np.zeros(20 if cut else 10, bool)
    cut_T[cut] = True
    assert steady.middle_of_longest(cut_T) == middle
