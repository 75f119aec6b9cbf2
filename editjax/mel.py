"""Frame ↔ sample ↔ seconds arithmetic, and mono samples → mel frames in [0, 1].

The power mel is librosa's (`librosa.feature.melspectrogram`: centred frames, zero padding, periodic Hann
window, Slaney scale and norm), then `10 log10(max(power, 1e-10))`, then a fixed map of −80…+40 dB to 0…1.

The project's documents normalise each file by itself: `(dB + 80) / 80`, dB relative to the file's loudest
bin. Then a frame's values depend on the rest of the recording: a cough changes every other frame, and neither
a stream nor a crop can be normalised. Here the reference is fixed, a frame depends on its own 2,048 samples
only, and streaming equals the whole; the model takes the level out by a running mean of its own.

Source: Davis & Mermelstein 1980; M. Slaney, "Auditory Toolbox", 1998; librosa 0.11.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.fft

from editjax.audio import resample_stream, to_mono_float
from editjax.errors import UsageError

CHUNK_FRAMES = 128  # one chunk's frames and spectra (2 MB) stay in the second-level cache
BAND_GROUP = 16  # bands a dense product: their filters span few bins, so most zero weights are skipped
POWER_FLOOR = 1e-10
SPAN_FRAMES, SPAN_CONTEXT_FRAMES = 4096, 8  # made at once, and heard on either side
STEM_FRAMES = 8  # a stem is heard in steps of this many frames, 5.4 a second
SLANEY_LINEAR_HZ = 200.0 / 3.0  # width of one mel below 1 kHz
SLANEY_BREAK_HZ = 1000.0
SLANEY_LOG_STEP = np.log(6.4) / 27.0  # 27 mels from 1 to 6.4 kHz

LARGEST, LARGEST_HZ = 1 << 16, 768_000


@dataclass(frozen=True)
class MelSettings:
    """The mel's definition; two mels are comparable when their settings are equal."""

    sample_rate_hz: int = 22050
    n_fft: int = 2048
    hop: int = 512
    n_mels: int = 128
    floor_db: float = -80.0
    ceiling_db: float = 40.0

    def __post_init__(self):
        if min(self.sample_rate_hz, self.n_fft, self.hop, self.n_mels) < 1 or self.n_fft % 2:
            raise UsageError(f"mel settings must be positive and n_fft even, got {self}")
        if max(self.n_fft, self.n_mels) > LARGEST or self.sample_rate_hz > LARGEST_HZ:
            raise UsageError(f"mel settings are no larger than {LARGEST}, {LARGEST_HZ} Hz, got {self}")
        if self.hop > self.n_fft:
            raise UsageError(f"mel hop {self.hop} would skip samples: choose at most n_fft = {self.n_fft}")
        if not -LARGEST <= self.floor_db < self.ceiling_db <= LARGEST:
            raise UsageError(f"mel ceiling {self.ceiling_db} dB must lie above the floor {self.floor_db} dB")

    @property
    def frames_per_second(self) -> float:
        return self.sample_rate_hz / self.hop

    def grid(self, source_rate_hz: int) -> FrameGrid:
        """The frame grid of a recording at `source_rate_hz`."""
        return FrameGrid(source_rate_hz, self.sample_rate_hz, self.hop)


class FrameGrid(NamedTuple):
    """Where mel frames lie in the source recording, in exact integers.

    Frame t plays the source samples [sample_of_frame(t), sample_of_frame(t + 1)), clipped to the end.
    Methods take and return Python integers or int64 arrays; ten hours at 768 kHz stay far below 2⁶³.
    """

    source_rate_hz: int
    mel_rate_hz: int = 22050
    hop: int = 512

    def sample_of_frame(self, frame):
        """First source sample of a frame: t · hop · source rate / mel rate, halves rounded up."""
        return (2 * _exact(frame) * self.hop * self.source_rate_hz + self.mel_rate_hz) // (
            2 * self.mel_rate_hz
        )

    def frame_of_sample(self, sample):
        """The frame that plays a source sample: the largest t with sample_of_frame(t) <= sample."""
        return (self.mel_rate_hz * (2 * _exact(sample) + 1) - 1) // (2 * self.hop * self.source_rate_hz)

    def frames_in(self, n_samples):
        """Frames that start before the end of `n_samples` source samples; 0 only for no samples."""
        return self.frame_of_sample(_exact(n_samples) - 1) + 1

    def seconds_of_frame(self, frame):
        """When a frame begins to play, in seconds (float; of its first source sample)."""
        return self.sample_of_frame(frame) / self.source_rate_hz

    def frame_of_seconds(self, seconds):
        """The frame that plays at a time in seconds, read to the nearest source sample."""
        samples = np.floor(np.asarray(seconds, np.float64) * self.source_rate_hz + 0.5).astype(np.int64)
        return self.frame_of_sample(samples if samples.ndim else int(samples))


class MelStream:
    """Mel frames of samples that arrive in pieces; bit for bit what `mel_spectrogram` gives for the whole.

    Chunks are counted from the first sample, so that how the samples were cut changes nothing.
    """

    def __init__(self, settings: MelSettings = MelSettings()):
        self.settings = settings
        self.n_samples = 0
        self._waiting_S = np.zeros(settings.n_fft // 2, np.float32)
        self._pieces: list[np.ndarray] = []
        self._pending_samples = 0

    def push(self, samples_S: np.ndarray) -> np.ndarray:
        """Take samples (S,) float; return the frames (T, F) whose chunk they complete, often none."""
        piece_S = np.array(samples_S, np.float32)
        if piece_S.ndim != 1:
            raise ValueError(f"the mel needs mono samples (S,), got shape {piece_S.shape}")
        self.n_samples += len(piece_S)
        self._pieces.append(piece_S)
        self._pending_samples += len(piece_S)
        settings = self.settings
        ready = (len(self._waiting_S) + self._pending_samples - settings.n_fft) // settings.hop + 1
        return self._take(max(0, ready // CHUNK_FRAMES) * CHUNK_FRAMES)

    def finish(self) -> np.ndarray:
        """Return the remaining frames (T, F), the signal continued by silence; none without any samples."""
        if not self.n_samples:
            return np.zeros((0, self.settings.n_mels), np.float32)
        self._pieces.append(np.zeros(self.settings.n_fft // 2, np.float32))
        n_samples = len(self._waiting_S) + sum(map(len, self._pieces))
        return self._take(1 + (n_samples - self.settings.n_fft) // self.settings.hop)

    def _take(self, n_frames: int) -> np.ndarray:
        if not n_frames:
            return np.zeros((0, self.settings.n_mels), np.float32)
        padded_S = np.concatenate([self._waiting_S, *self._pieces])
        self._pieces, self._pending_samples = [], 0
        self._waiting_S = padded_S[n_frames * self.settings.hop :].copy()
        return _mel_of_padded(padded_S, n_frames, self.settings)


def mel_spectrogram(samples_S: np.ndarray, settings: MelSettings = MelSettings()) -> np.ndarray:
    """Mel (T, F) float32 in [0, 1] of mono samples (S,) in [-1, 1] at the mel rate.

    T = 1 + S // hop, frame t centred on sample t · hop; no samples give no frames.
    Raises ValueError unless the samples are one-dimensional.
    """
    samples_S = np.asarray(samples_S, np.float32)
    if samples_S.ndim != 1:
        raise ValueError(f"the mel needs mono samples (S,), got shape {samples_S.shape}")
    if not len(samples_S):
        return np.zeros((0, settings.n_mels), np.float32)
    padded_S = np.pad(samples_S, settings.n_fft // 2)
    return _mel_of_padded(padded_S, 1 + len(samples_S) // settings.hop, settings)


def mel_of(reader: Any, settings: MelSettings = MelSettings()) -> tuple[np.ndarray, int]:
    """Mel (T, F) of a whole `audio.Reader` or `ArrayReader`, and the number of source samples it holds.

    Blocks are decoded in a second thread, mixed to mono, resampled and transformed as they come: memory is
    twice the mel (512 bytes a frame) and few blocks. T = FrameGrid.frames_in(source samples). Errors are the
    reader's.
    """
    rate_hz = reader.info.sample_rate_hz
    n_source_samples = 0

    def mono_blocks() -> Iterator[np.ndarray]:
        nonlocal n_source_samples
        for block_SC in reader.blocks():
            n_source_samples += len(block_SC)
            yield to_mono_float(block_SC)

    stream = MelStream(settings)
    pieces = [
        stream.push(part_S)
        for part_S in resample_stream(_one_ahead(mono_blocks()), rate_hz, settings.sample_rate_hz)
    ]
    n_frames = settings.grid(rate_hz).frames_in(n_source_samples)
    if n_frames:  # the resampler's length may fall a sample short of the last frame's start
        pieces.append(
            stream.push(np.zeros(max(0, (n_frames - 1) * settings.hop + 1 - stream.n_samples), np.float32))
        )
    return np.concatenate([*pieces, stream.finish()])[:n_frames], n_source_samples


def mel_of_span(reader: Any, start: int, n_frames: int, settings: MelSettings = MelSettings()) -> np.ndarray:
    """Mel (T, F) of `n_frames` frames, the first centred on source sample `start` instead of on the grid.

    Silence is heard before the recording and after it. Read in pieces of SPAN_FRAMES.
    """
    grid, pieces = settings.grid(reader.info.sample_rate_hz), []
    around = SPAN_CONTEXT_FRAMES
    for done in range(0, n_frames, SPAN_FRAMES):
        frames = min(SPAN_FRAMES, n_frames - done)
        first = start + int(grid.sample_of_frame(done) - grid.sample_of_frame(around))
        last = start + int(grid.sample_of_frame(done + frames + around))
        inside = min(max(first, 0), reader.frames), min(max(last, 0), reader.frames)
        heard_S = np.zeros(last - first, np.float32)
        if inside[0] < inside[1]:
            heard_S[inside[0] - first : inside[1] - first] = to_mono_float(reader.read(*inside))
        resampled = list(resample_stream([heard_S], grid.source_rate_hz, settings.sample_rate_hz))
        mel_TF = mel_spectrogram(np.concatenate(resampled), settings)
        pieces.append(mel_TF[around : around + frames])
    return np.concatenate([*pieces, np.zeros((0, settings.n_mels), np.float32)])


def stem_mel(reader: Any, n_frames: int, settings: MelSettings = MelSettings()) -> np.ndarray:
    """Mel of one stem in steps of STEM_FRAMES of the recording's `n_frames`, (M, F) float32: see `pooled`."""
    return pooled(mel_of(reader, settings)[0], n_frames)


def pooled(mel_TF: np.ndarray, n_frames: int) -> np.ndarray:
    """Mean of every STEM_FRAMES of the first `n_frames` frames, (M, F) float32; silence where there are none.

    M = ceil(n_frames / STEM_FRAMES); the last step is the mean of what is left.
    """
    heard_TF = np.zeros((n_frames, mel_TF.shape[1]), np.float32)
    heard_TF[: len(mel_TF)] = mel_TF[:n_frames]
    first_M = np.arange(0, n_frames, STEM_FRAMES)
    if not n_frames:
        return heard_TF
    count_M = np.minimum(STEM_FRAMES, n_frames - first_M).astype(np.float32)
    return np.add.reduceat(heard_TF, first_M) / count_M[:, None]


def to_documents_layout(mel_BTF: Any, settings: MelSettings = MelSettings()) -> Any:
    """(batch, time, mel) → the documents' (batch, mel, time); NumPy or JAX. UsageError on another layout."""
    if mel_BTF.ndim != 3 or mel_BTF.shape[2] != settings.n_mels:
        raise layout_error(mel_BTF, f"(batch, time, {settings.n_mels})")
    return mel_BTF.transpose(0, 2, 1)


def from_documents_layout(mel_BFT: Any, settings: MelSettings = MelSettings()) -> Any:
    """The documents' (batch, mel, time) → (batch, time, mel); NumPy or JAX. UsageError on another layout."""
    if mel_BFT.ndim != 3 or mel_BFT.shape[1] != settings.n_mels:
        raise layout_error(mel_BFT, f"(batch, {settings.n_mels}, time)")
    return mel_BFT.transpose(0, 2, 1)


def mel_filterbank(settings: MelSettings = MelSettings()) -> np.ndarray:
    """Slaney's triangular filters (n_fft // 2 + 1, F) float32, each of unit area in Hz."""
    edges_hz = slaney_edges_hz(0.0, settings.sample_rate_hz / 2, settings.n_mels)
    return triangular_filters(edges_hz, settings.sample_rate_hz, settings.n_fft)


def slaney_edges_hz(low_hz: float, high_hz: float, n_mels: int) -> np.ndarray:
    """The n_mels + 2 frequencies between which filters rise and fall, evenly apart on Slaney's mel scale."""
    return _mel_to_hz(np.linspace(_hz_to_mel(low_hz), _hz_to_mel(high_hz), n_mels + 2))


def triangular_filters(edges_hz: np.ndarray, sample_rate_hz: int, n_fft: int) -> np.ndarray:
    """Filters (n_fft // 2 + 1, F) float32, of unit area in Hz, between the F + 2 edges."""
    bins_hz = np.fft.rfftfreq(n_fft, 1 / sample_rate_hz)[:, None]
    rising = (bins_hz - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * (2.0 / (edges_hz[2:] - edges_hz[:-2]))).astype(np.float32)


@lru_cache(maxsize=4)
def band_centres_hz(settings: MelSettings = MelSettings()) -> np.ndarray:
    """The mean frequency of each band, (F,)."""
    filters_KF = mel_filterbank(settings)
    bins_hz = np.fft.rfftfreq(settings.n_fft, 1.0 / settings.sample_rate_hz)
    return bins_hz @ filters_KF / filters_KF.sum(axis=0)


def hann_window(n_fft: int) -> np.ndarray:
    """Periodic Hann window (n_fft,) float32."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)


class _Bands(NamedTuple):
    """Filters of a few neighbouring bands, cut to the bins they touch."""

    bins: slice
    bands: slice
    weights: np.ndarray


@lru_cache(maxsize=8)
def _analysis(settings: MelSettings) -> tuple[np.ndarray, tuple[_Bands, ...]]:
    filters_KF = mel_filterbank(settings)
    groups = []
    for first in range(0, settings.n_mels, BAND_GROUP):
        bands = slice(first, min(first + BAND_GROUP, settings.n_mels))
        touched = np.flatnonzero(filters_KF[:, bands].any(axis=1))
        bins = slice(touched[0], touched[-1] + 1) if len(touched) else slice(0, 1)
        groups.append(_Bands(bins, bands, np.ascontiguousarray(filters_KF[bins, bands])))
    return hann_window(settings.n_fft), tuple(groups)


def _mel_of_padded(padded_S: np.ndarray, n_frames: int, settings: MelSettings) -> np.ndarray:
    """First `n_frames` frames of samples that already carry their padding, chunk by chunk."""
    window, groups = _analysis(settings)
    frames_TW = np.lib.stride_tricks.sliding_window_view(padded_S, settings.n_fft)[:: settings.hop]
    mel_TF = np.empty((n_frames, settings.n_mels), np.float32)
    chunk = min(CHUNK_FRAMES, n_frames)
    windowed = np.empty((chunk, settings.n_fft), np.float32)
    power, imaginary = np.empty((2, chunk, settings.n_fft // 2 + 1), np.float32)
    for first in range(0, n_frames, chunk):
        mel = mel_TF[first : first + chunk]
        n = len(mel)
        np.multiply(frames_TW[first : first + n], window, out=windowed[:n])
        spectrum = scipy.fft.rfft(windowed[:n], axis=-1, overwrite_x=True, workers=1)
        np.square(spectrum.real, out=power[:n])
        np.square(spectrum.imag, out=imaginary[:n])
        power[:n] += imaginary[:n]
        for group in groups:
            np.matmul(power[:n, group.bins], group.weights, out=mel[:, group.bands])
        _normalise(mel, settings)
    return mel_TF


def _normalise(power_TF: np.ndarray, settings: MelSettings) -> None:
    """Power → [0, 1] in place."""
    range_db = settings.ceiling_db - settings.floor_db
    np.maximum(power_TF, POWER_FLOOR, out=power_TF)
    np.log10(power_TF, out=power_TF)
    power_TF *= np.float32(10.0 / range_db)
    power_TF -= np.float32(settings.floor_db / range_db)
    np.clip(power_TF, 0.0, 1.0, out=power_TF)


def _one_ahead(items: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same items, each computed in a second thread while the one before is used."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, iterator, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, iterator, None)
            yield item


def _exact(value):
    """A Python integer or an int64 array; TypeError for floats, which could not stay exact."""
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"frame arithmetic is exact: pass integers, not {array.dtype}")
    return array.astype(np.int64) if array.ndim else int(array)


def layout_error(mel: Any, wanted: str) -> UsageError:
    """The error for a mel of another shape."""
    return UsageError(
        f"the mel has shape {tuple(mel.shape)}, wanted {wanted}: transposed, or other settings?"
    )


def _hz_to_mel(hz: float) -> float:
    if hz < SLANEY_BREAK_HZ:
        return hz / SLANEY_LINEAR_HZ
    return SLANEY_BREAK_HZ / SLANEY_LINEAR_HZ + np.log(hz / SLANEY_BREAK_HZ) / SLANEY_LOG_STEP


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    break_mel = SLANEY_BREAK_HZ / SLANEY_LINEAR_HZ
    logarithmic_hz = SLANEY_BREAK_HZ * np.exp(SLANEY_LOG_STEP * (np.maximum(mels, break_mel) - break_mel))
    return np.where(mels < break_mel, mels * SLANEY_LINEAR_HZ, logarithmic_hz)
