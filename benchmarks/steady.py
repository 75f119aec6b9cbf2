"""Hum and noise at the level of the music they are put among: level tells nothing, and neither does a pause.

The sound lies in the middle of the longest cut, so that no music is parted by it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from editjax.mel import MelSettings, mel_spectrogram
from editjax.silence import frame_levels_db

KINDS = ("hum", "brown noise", "white noise")
LENGTH_S = 20.0
HUM_HZ, HARMONICS = 50.0, 8
LOWEST_HZ = 20.0
RMS = 0.1


class Steady(NamedTuple):
    """A mel (T, F); which of its frames are the steady sound and which the music that is kept, bool (T,)."""

    mel_TF: np.ndarray
    steady_T: np.ndarray
    music_T: np.ndarray


def with_steady(mel_TF: np.ndarray, kept_T: np.ndarray, kind: str, mel: MelSettings, seed: int) -> Steady:
    """A session with a steady sound in the middle of its longest cut, as loud as the frames it keeps."""
    sound_TF = mel_spectrogram(sound(kind, mel.sample_rate_hz, np.random.default_rng(seed)), mel)
    louder_db = mean_level_db(mel_TF[kept_T], mel) - mean_level_db(sound_TF, mel)
    sound_TF = np.clip(sound_TF + louder_db / (mel.ceiling_db - mel.floor_db), 0.0, 1.0)
    at, nothing_T = middle_of_longest(~kept_T), np.zeros(len(sound_TF), bool)
    parts = mel_TF[:at], sound_TF, mel_TF[at:]
    steady_T = np.insert(np.zeros(len(kept_T), bool), [at] * len(sound_TF), True)
    music_T = np.concatenate([kept_T[:at], nothing_T, kept_T[at:]])
    return Steady(np.concatenate(parts).astype(np.float32), steady_T, music_T)


def sound(kind: str, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """LENGTH_S of it, float32 (S,): mains hum and its harmonics, or noise whose power falls with the square
    of the frequency (brown) or not at all (white)."""
    n_samples = round(LENGTH_S * rate_hz)
    if kind == "hum":
        time_S, phase_K = np.arange(n_samples) / rate_hz, rng.uniform(0.0, 2.0 * np.pi, HARMONICS)
        parts = [
            np.sin(2 * np.pi * HUM_HZ * k * time_S + phase_K[k - 1]) / k for k in range(1, HARMONICS + 1)
        ]
        sound_S = np.sum(parts, axis=0)
    else:
        sound_S = rng.standard_normal(n_samples)
    if kind == "brown noise":
        frequency_hz = np.fft.rfftfreq(n_samples, 1.0 / rate_hz)
        sound_S = np.fft.irfft(np.fft.rfft(sound_S) / np.maximum(frequency_hz, LOWEST_HZ), n_samples)
    return (RMS * sound_S / sound_S.std()).astype(np.float32)


def mean_level_db(mel_TF: np.ndarray, mel: MelSettings) -> float:
    """The level of the mean power of frames."""
    return float(10.0 * np.log10(np.mean(10.0 ** (frame_levels_db(mel_TF, mel) / 10.0))))


def middle_of_longest(cut_T: np.ndarray) -> int:
    """The middle of the longest run of frames that are cut; the end where none is."""
    edge_E = np.flatnonzero(np.diff(np.r_[False, cut_T, False].astype(np.int8)))
    if not len(edge_E):
        return len(cut_T)
    start_R, stop_R = edge_E[::2], edge_E[1::2]
    longest = int(np.argmax(stop_R - start_R))
    return int(start_R[longest] + stop_R[longest]) // 2
