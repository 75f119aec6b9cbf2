"""Sound for mels that have no original samples: whole waveforms, and spans between samples that stay.

Comes in: our mel and, for `fill`, the recording at the mel rate. Goes out: samples at the mel rate.
Griffin–Lim does it alone, or makes what a vocoder (a bundle of the family *hifigan*) hears: vocoders know
mels of other frames and bands, and the way through samples is nearer to theirs than to convert magnitudes.
Of seven real recordings the log mel of the usual 80 bands is 1.7 dB off (mean, absolute) by way of the
samples, 2.5 dB by magnitudes of bins interpolated in time; what is short in time suffers most then.

Spans join without a click because in every iteration the samples around them are put back, and with them what
linear prediction (Makhoul 1975) says of the next 3 ms.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.linalg
import scipy.signal

from editjax.audio import resample_stream
from editjax.errors import DataError, UsageError
from editjax.export import load_bundle
from editjax.mel import MelSettings, layout_error
from editjax.models.griffin_lim import GriffinLimSettings, Known, mel_to_samples
from editjax.models.hifigan import HifiGanSettings, synthesise, vocoder_mel

SHORTEST_FRAMES = 16
LONGEST_FRAMES = 2048
"""Frames done at once; longer spans follow one another, each joined to the one before. A power of two."""
JOIN_SAMPLES = 64
ORDER = 128
HISTORY_SAMPLES = 4096
PREDICTOR_NOISE = 1e-6


class Vocoder(NamedTuple):
    """A HiFi-GAN, ready to use."""

    settings: HifiGanSettings
    params: Any


def load_vocoder(model: str | Path) -> Vocoder:
    """The vocoder in a folder that `editjax convert-vocoder` wrote.

    Raises what `load_bundle` does, and DataError for a model that is no vocoder.
    """
    bundle = load_bundle(model)
    if not isinstance(bundle.settings, HifiGanSettings):
        raise DataError(f"{bundle.path}: a model of the family {bundle.config['family']!r}, not a vocoder")
    return Vocoder(bundle.settings, bundle.params)


def waveform(
    mel_TF: np.ndarray,
    mel: MelSettings = MelSettings(),
    vocoder: Vocoder | None = None,
    *,
    settings: GriffinLimSettings = GriffinLimSettings(),
    seed: int = 0,
) -> np.ndarray:
    """Samples (T · hop,) float32 at the mel rate of a mel (T, F) in [0, 1]: by the vocoder if there is one.

    Frame t is heard from sample t · hop on. The same seed gives the same samples. UsageError for another
    layout or a mel that is not made of numbers.
    """
    mel_TF = _checked(mel_TF, mel)
    n_samples = len(mel_TF) * mel.hop
    if vocoder is None or not n_samples:
        silence_S = np.zeros(n_samples, np.float32)
        return fill(silence_S, mel_TF, [(0, len(mel_TF))], mel, settings=settings, seed=seed)
    heard_S = waveform(mel_TF, mel, settings=settings, seed=seed)
    theirs, ours_hz = vocoder.settings.mel, mel.sample_rate_hz
    heard_TF = vocoder_mel(_resampled(heard_S, ours_hz, theirs.sample_rate_hz), theirs)
    spoken_S = _resampled(
        synthesise(vocoder.settings, vocoder.params, heard_TF), theirs.sample_rate_hz, ours_hz
    )
    return np.pad(spoken_S, (0, max(0, n_samples - len(spoken_S))))[:n_samples]


def fill(
    samples_S: np.ndarray,
    mel_TF: np.ndarray,
    spans: Iterable[tuple[int, int]],
    mel: MelSettings = MelSettings(),
    vocoder: Vocoder | None = None,
    *,
    settings: GriffinLimSettings = GriffinLimSettings(),
    seed: int = 0,
) -> np.ndarray:
    """Samples (S,) float32 of a recording at the mel rate, its frames in `spans` made from the mel (T, F).

    A span (start, stop) is samples start · hop to stop · hop; outside of spans not a bit changes. A vocoder
    says where the search begins; the mel and the samples around the span have the last word. UsageError for
    another layout, a mel that is not made of numbers, or a span that is not of the mel.
    """
    mel_TF = _checked(mel_TF, mel)
    filled_S = np.array(samples_S, np.float32)
    if filled_S.ndim != 1:
        raise UsageError(f"spans are filled in mono samples (S,), got shape {filled_S.shape}")
    n_samples = min(len(filled_S), len(mel_TF) * mel.hop)
    sound = _Sound(np.zeros(len(mel_TF) * mel.hop, np.float32), np.ones(len(mel_TF) * mel.hop, bool))
    sound.samples_S[:n_samples] = filled_S[:n_samples]
    merged, wanted = _merged(spans, len(mel_TF)), _Wanted(mel_TF, mel, vocoder, settings, seed)
    for start, stop in merged:
        sound.samples_S[start * mel.hop : stop * mel.hop] = 0.0
        sound.given_S[start * mel.hop : stop * mel.hop] = False
    at_once = LONGEST_FRAMES - 2 * wanted.context_frames
    for start, stop in merged:
        for first in range(start, stop, at_once):
            _make(sound, wanted, first, min(stop, first + at_once))
        made = slice(start * mel.hop, min(stop * mel.hop, n_samples))
        filled_S[made] = sound.samples_S[made]
    return filled_S


class _Sound(NamedTuple):
    """Samples of all frames, and which of them are given or done."""

    samples_S: np.ndarray
    given_S: np.ndarray


class _Wanted(NamedTuple):
    """What is to be heard, and how it is made."""

    mel_TF: np.ndarray
    mel: MelSettings
    vocoder: Vocoder | None
    settings: GriffinLimSettings
    seed: int

    @property
    def context_frames(self) -> int:
        """Frames heard beside those that are made: two windows."""
        return -(-2 * self.mel.n_fft // self.mel.hop)


def _make(sound: _Sound, wanted: _Wanted, first: int, last: int) -> None:
    """Makes the frames from `first` to `last`, and marks them done."""
    mel, hop = wanted.mel, wanted.mel.hop
    low, high = max(0, first - wanted.context_frames), min(len(wanted.mel_TF), last + wanted.context_frames)
    given_S, weight_S = (a_S[low * hop : high * hop].astype(np.float32) for a_S in sound)
    into = slice((first - low) * hop, (last - low) * hop)
    _lead_on(given_S[into], weight_S[into], _Sound(*(a_S[: first * hop] for a_S in sound)))
    backwards = _Sound(*(a_S[: last * hop - 1 : -1] for a_S in sound))
    _lead_on(given_S[into][::-1], weight_S[into][::-1], backwards)
    length = SHORTEST_FRAMES
    while length < high - low:
        length *= 2

    def padded(a_S: np.ndarray) -> jax.Array:
        return jnp.asarray(np.pad(a_S, (0, length * hop - len(a_S)))[None])

    mel_TF, start_BS = wanted.mel_TF[low:high], None
    if wanted.vocoder is not None:
        said_S = waveform(mel_TF, mel, wanted.vocoder, settings=wanted.settings, seed=wanted.seed)
        start_BS = padded(said_S)
    made_BS = mel_to_samples(
        np.pad(mel_TF, ((0, length - len(mel_TF)), (0, 0)))[None],
        np.array([len(mel_TF)], np.int32),
        jax.random.fold_in(jax.random.key(wanted.seed), first),
        mel,
        wanted.settings,
        Known(padded(given_S), padded(weight_S)),
        start_BS,
    )
    sound.samples_S[first * hop : last * hop] = np.asarray(made_BS)[0, into]
    sound.given_S[first * hop : last * hop] = True


def _lead_on(samples_S: np.ndarray, weight_S: np.ndarray, before: _Sound) -> None:
    """Lets what is given just before a span fade into it, as linear prediction continues it."""
    history_S, given_S = (a_S[-HISTORY_SAMPLES:] for a_S in before)
    missing = np.flatnonzero(~given_S)
    history_S = history_S[missing[-1] + 1 if len(missing) else 0 :]
    length = min(JOIN_SAMPLES, len(samples_S) // 2)
    if len(history_S) >= 2 * ORDER:
        samples_S[:length] = _predicted(history_S.astype(np.float64), length)
        weight_S[:length] = 0.5 + 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)


def _predicted(history_S: np.ndarray, length: int) -> np.ndarray:
    """The next samples by the linear predictor of least squared error, which never grows without bound."""
    spectrum = scipy.fft.rfft(history_S, 2 * len(history_S))
    lag_L = scipy.fft.irfft(spectrum.real**2 + spectrum.imag**2)[: ORDER + 1]
    lag_L[0] = lag_L[0] * (1.0 + PREDICTOR_NOISE) + np.finfo(np.float64).tiny
    weight_L = scipy.linalg.solve_toeplitz(lag_L[:-1], lag_L[1:])
    recursion_L = np.concatenate([[1.0], -weight_L])
    state_L = scipy.signal.lfiltic([1.0], recursion_L, history_S[: -ORDER - 1 : -1])
    return scipy.signal.lfilter([1.0], recursion_L, np.zeros(length), zi=state_L)[0]


def _merged(spans: Iterable[tuple[int, int]], n_frames: int) -> list[tuple[int, int]]:
    """The spans in order, those that meet made one, empty ones left out."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if not 0 <= start <= stop <= n_frames:
            raise UsageError(f"frames {start} to {stop} are not a span of a mel of {n_frames} frames")
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        elif start < stop:
            merged.append((start, stop))
    return merged


def _checked(mel_TF: np.ndarray, mel: MelSettings) -> np.ndarray:
    mel_TF = np.asarray(mel_TF, np.float32)
    if mel_TF.ndim != 2 or mel_TF.shape[1] != mel.n_mels:
        raise layout_error(mel_TF, f"(time, {mel.n_mels})")
    if not np.isfinite(mel_TF).all():
        raise UsageError("the mel holds values that are not numbers: nothing can be heard of it")
    return mel_TF


def _resampled(samples_S: np.ndarray, rate_in_hz: int, rate_out_hz: int) -> np.ndarray:
    return np.concatenate([*resample_stream([samples_S], rate_in_hz, rate_out_hz), np.zeros(0, np.float32)])
