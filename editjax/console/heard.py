"""What regressors hear of a sound: levels of its bands against time, and figures of the whole.

The picture has the level in dB of left, right and side; it is of no other scale than the sound, so that a
gain can be read off it. The figures are those that engineers and their programs look at: loudness and its
range, true peak, crest, width, harmonic against percussive, chroma, tonnetz (Harte, Sandler and Gasser
2006), cepstrum, spectral contrast (Jiang et al. 2002), zero crossings, rhythm.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax.numpy as jnp
import numpy as np

from editjax.console.dynamics import decibel
from editjax.console.loudness import loudness
from editjax.errors import UsageError, shown
from editjax.mel import LARGEST, LARGEST_HZ

FLOOR_DB, SPAN_DB = -100.0, 50.0
"""The least level, and the dB that one is in a picture."""
SHOWN = 3
CEPSTRA, OCTAVES, LAGS = 20, 7, 12
NEIGHBOURS = 8
MEDIAN = 9
"""Frames and bands over which the median tells steady from sudden (Fitzgerald 2010)."""
LAG_S = 0.1
LEAST_HZ = 25_600
"""Octaves of contrast reach up to half of it."""
OVERLAP, FASTEST = 16, 400
"""The most frames that hear the same sample, and frames a second."""
FIGURES = 7 + 12 + 6 + 2 * CEPSTRA + OCTAVES + 2 + LAGS


@dataclass(frozen=True)
class PictureSettings:
    """Frames and bands of a picture; `rate_hz` is that of the sound. UsageError for what shows nothing."""

    rate_hz: int = 44_100
    n_fft: int = 4096
    hop: int = 2048
    n_mels: int = 96
    low_hz: float = 20.0
    high_hz: float = 20_000.0

    def __post_init__(self):
        if not LEAST_HZ <= self.rate_hz <= LARGEST_HZ:
            raise UsageError(f"pictures at {shown(self.rate_hz)} Hz: give {LEAST_HZ} to {LARGEST_HZ}")
        if not 64 <= self.n_fft <= LARGEST or self.n_fft % 2:
            raise UsageError(
                f"pictures with an n_fft of {shown(self.n_fft)}: give an even one, 64 to {LARGEST}"
            )
        if not max(self.n_fft / OVERLAP, self.rate_hz / FASTEST) <= self.hop <= self.n_fft:
            raise UsageError(
                f"pictures with a hop of {shown(self.hop)}: give 1/{OVERLAP} of the n_fft to all of it, "
                f"and at most {FASTEST} frames a second"
            )
        if not CEPSTRA <= self.n_mels <= self.n_fft // 2:
            raise UsageError(f"pictures of {shown(self.n_mels)} bands: give {CEPSTRA} to half of the n_fft")
        if not 0.0 <= self.low_hz < min(self.high_hz, self.rate_hz / 2):
            raise UsageError(
                f"pictures from {self.low_hz:g} to {self.high_hz:g} Hz: give some below half the rate"
            )

    def frames_in(self, n_samples: int) -> int:
        """How many frames so many samples have."""
        return n_samples // self.hop


def picture(settings: PictureSettings, x_2S):
    """Levels (T, F, 3) of a stereo sound, 0 at −100 dB of full scale and 2 at 0 dB."""
    left_right_side = jnp.stack([x_2S[0], x_2S[1], (x_2S[0] - x_2S[1]) / 2.0])
    mel_3TF = spectrum(settings, left_right_side) @ _bands(settings)
    level_3TF = jnp.maximum(10.0 * jnp.log10(mel_3TF + 1e-12), FLOOR_DB)
    return jnp.moveaxis((level_3TF - FLOOR_DB) / SPAN_DB, 0, -1)


def spectrum(settings: PictureSettings, x_CS):
    """Power (C, T, n_fft / 2 + 1) of frames whose middles are `hop` apart; a full sine has a half in all."""
    n_frames, around = settings.frames_in(x_CS.shape[1]), settings.n_fft // 2
    x_CS = jnp.pad(x_CS, ((0, 0), (around, around)))
    at_TN = np.arange(n_frames)[:, None] * settings.hop + np.arange(settings.n_fft)
    window_N = np.hanning(settings.n_fft + 1)[:-1].astype(np.float32)
    scale = np.float32(2.0 / (settings.n_fft * (window_N**2).sum()))
    bins_CTN = jnp.fft.rfft(x_CS[:, at_TN] * window_N[None, None])
    return (bins_CTN.real**2 + bins_CTN.imag**2) * scale


def figures(settings: PictureSettings, x_2S):
    """Figures (K,) of a stereo sound, of the order of 1 each."""
    power_1TN = spectrum(settings, x_2S.mean(0, keepdims=True))
    power_TN, mel_TF = power_1TN[0], power_1TN[0] @ _bands(settings)
    level_TF = 10.0 * jnp.log10(mel_TF + 1e-10)
    parts = [
        _levels(settings, x_2S, mel_TF),
        _tones(settings, power_TN),
        _cepstra(level_TF),
        _contrast(settings, power_TN),
        _crossings(x_2S),
        _rhythm(settings, level_TF),
    ]
    return jnp.concatenate(parts)


def _levels(settings: PictureSettings, x_2S, mel_TF):
    """Loudness, true peak, crest, range of levels, side, left against right, what is percussive."""
    level_T = 10.0 * jnp.log10(mel_TF.sum(1) + 1e-10)
    low, high = jnp.percentile(level_T, jnp.array([10.0, 95.0]))
    power_2 = (x_2S**2).mean(1) + 1e-10
    middle, side = ((x_2S[0] + x_2S[1]) ** 2).mean() / 4.0, ((x_2S[0] - x_2S[1]) ** 2).mean() / 4.0
    peak_db = decibel(_true_peak(x_2S))
    across_TF, along_TF = _median(mel_TF.T).T, _median(mel_TF)  # over bands: sudden; over time: steady
    sudden = (across_TF**2 / (across_TF**2 + along_TF**2 + 1e-20) * mel_TF).sum() / (mel_TF.sum() + 1e-10)
    loud = jnp.maximum(loudness(x_2S, settings.rate_hz), FLOOR_DB)
    return jnp.stack(
        [
            loud / SPAN_DB,
            peak_db / SPAN_DB,
            (peak_db - 10.0 * jnp.log10(power_2.mean())) / SPAN_DB,
            (high - low) / SPAN_DB,
            jnp.log10((side + 1e-10) / (middle + 1e-10)) / 5.0,
            jnp.log10(power_2[0] / power_2[1]) / 5.0,
            sudden,
        ]
    )


def _true_peak(x_2S):
    """The largest amplitude between samples too, four times oversampled; the end leads on to the beginning.

    A third of the cost of `loudness.true_peak`, which pads with silence.
    """
    n_samples = x_2S.shape[1]
    bins_2F = jnp.fft.rfft(x_2S)
    turn_F = 2.0 * np.pi * np.arange(bins_2F.shape[1]) / n_samples
    peak = jnp.abs(x_2S).max()
    for part in (0.25, 0.5, 0.75):
        ahead_F = np.exp(1j * part * turn_F).astype(np.complex64)
        peak = jnp.maximum(peak, jnp.abs(jnp.fft.irfft(bins_2F * ahead_F[None], n_samples)).max())
    return peak


def _median(x_TF):
    """The median of MEDIAN neighbours in time."""
    half = MEDIAN // 2
    padded = jnp.pad(x_TF, ((half, half), (0, 0)), mode="edge")
    return jnp.median(jnp.stack([padded[k : k + len(x_TF)] for k in range(MEDIAN)]), axis=0)


def _tones(settings: PictureSettings, power_TN):
    """Chroma (12) and tonnetz (6), means over time."""
    chroma_TP = power_TN @ _chroma(settings)
    chroma_TP = chroma_TP / (chroma_TP.sum(1, keepdims=True) + 1e-10)
    return jnp.concatenate([chroma_TP.mean(0), (chroma_TP @ _tonnetz()).mean(0)])


def _cepstra(level_TF):
    """Mean and deviation over time of cepstral coefficients (Davis and Mermelstein 1980)."""
    cepstrum_TC = level_TF @ _cosines(level_TF.shape[1])
    return jnp.concatenate([cepstrum_TC.mean(0), cepstrum_TC.std(0)]) / SPAN_DB


def _contrast(settings: PictureSettings, power_TN):
    """dB between peaks and valleys, each of NEIGHBOURS bins, in octaves from 100 Hz up, means over time."""
    width = settings.rate_hz / settings.n_fft
    found = []
    for octave in range(OCTAVES):
        low, high = (round(hz / width) for hz in (100.0 * 2**octave, 200.0 * 2**octave))
        count = max(1, (high - low) // NEIGHBOURS)
        bins_TGN = power_TN[:, low : low + count * NEIGHBOURS].reshape(len(power_TN), count, -1)
        peak_T, valley_T = bins_TGN.max(2).mean(1), bins_TGN.min(2).mean(1)
        found.append(jnp.log10((peak_T + 1e-10) / (valley_T + 1e-10)).mean() / 5.0)
    return jnp.stack(found)


def _crossings(x_2S):
    """The share of samples at which the sound changes its sign: mean and deviation over 50 parts."""
    middle_S = x_2S.mean(0)
    changed_S = ((middle_S[1:] >= 0) != (middle_S[:-1] >= 0)).astype(jnp.float32)
    share_P = changed_S[: len(changed_S) // 50 * 50].reshape(50, -1).mean(1)
    return jnp.stack([share_P.mean(), share_P.std()]) * 5.0


def _rhythm(settings: PictureSettings, level_TF):
    """How alike onsets are to themselves 0.1, 0.2, … s later."""
    onset_T = jnp.maximum(level_TF[1:] - level_TF[:-1], 0.0).mean(1)
    onset_T = onset_T - onset_T.mean()
    total = (onset_T**2).sum() + 1e-6
    lags = [max(1, round((k + 1) * LAG_S * settings.rate_hz / settings.hop)) for k in range(LAGS)]
    return jnp.stack([(onset_T[lag:] * onset_T[:-lag]).sum() / total for lag in lags])


@lru_cache
def _bands(settings: PictureSettings) -> np.ndarray:
    """Triangles (N, F) on the mel scale that take each bin's power whole between them."""
    import librosa

    filters_FN = librosa.filters.mel(
        sr=settings.rate_hz,
        n_fft=settings.n_fft,
        n_mels=settings.n_mels,
        fmin=settings.low_hz,
        fmax=min(settings.high_hz, settings.rate_hz / 2),
        norm=None,
    )
    return np.ascontiguousarray(filters_FN.T, np.float32)


@lru_cache
def _chroma(settings: PictureSettings) -> np.ndarray:
    import librosa

    return np.ascontiguousarray(
        librosa.filters.chroma(sr=settings.rate_hz, n_fft=settings.n_fft).T, np.float32
    )


def _tonnetz() -> np.ndarray:
    """Pitch classes (12) → fifths, minor thirds and major thirds as points on circles (6)."""
    pitch_P = np.arange(12)
    turns = [np.pi * step * pitch_P / 6 for step in (7, 9, 4)]
    radii = (1.0, 1.0, 0.5)
    return np.stack(
        [r * wave(turn) for r, turn in zip(radii, turns, strict=True) for wave in (np.sin, np.cos)], 1
    ).astype(np.float32)


def _cosines(n_bands: int) -> np.ndarray:
    """The first coefficients of the discrete cosine transform, orthonormal."""
    import scipy.fft

    return scipy.fft.dct(np.eye(n_bands), norm="ortho")[:, :CEPSTRA].astype(np.float32)
