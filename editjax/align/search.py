"""Where in the raw does the edit sound? Every diagonal worth considering.

In come signals; out come diagonals. Short chunks of the edit are looked for in the whole raw by FFT
correlation of decimated signals, the peaks are sharpened to the sample, and each is followed both ways for
as long as it holds. There is no limit on the distance of a jump. Time goes with the number of joins rather
than with the length of the edit, because a chunk that a diagonal already explains is not looked for again.

Overlap-save correlation: A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing, ch. 8.7.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.signal

from editjax.align.signals import (
    FALSE_PEAK_FLOOR,
    LOST,
    UNPROCESSED,
    Diagonal,
    Signals,
    SignalSettings,
    held,
    held_weight,
    measure,
    noise_of,
    slice_padded,
    spooled,
)

CELL = 48
"""Coarse samples per cell (8 ms): a cell gives at most one peak, so that one pitch does not give hundreds."""
BATCH = 16
"""Chunks looked for in one pass over the raw."""
LONG_CHUNK_MISSING = 0.15
"""Part of a chunk of the first length that must be unexplained before it is looked for."""
SHORT_CHUNK_MISSING = 0.5
"""The same for the shorter chunks."""
HOPELESS = 0.3
"""Likeness of the best match of a chunk below which it is given up."""
LAST_HOPES = 64
"""Short chunks that are looked for all the same: a short piece is easily hidden in a long chunk."""
HEARD = 0.05
"""Energy of a window over the chunk's mean below which the rest of the chunk hides it."""
SEED_HELD = 0.05
"""Part of a chunk's windows that a diagonal must explain to be followed."""
AROUND = 9
"""Windows that are judged together when something is missing: single ones may be spoilt by a codec."""
EXACT_RESIDUAL = 1e-3
"""Residual that no neighbouring period has."""
FEW_LAGS = 32
"""Reach below which lags are correlated one by one."""
DRIFT = 8
"""Samples by which the offsets of neighbouring diagonals may differ to be taken for drifting clocks."""
ROUNDING = 1e-6
"""Part of an energy that sums in float32 may be wrong by."""
CANDIDATES = 4
"""Peaks that are sharpened for each that is followed."""
STRIDES = (16.0, 4.0, 1.0, 0.5)
"""Distances of chunks, in chunks, of the rounds in which they are looked for."""


@dataclass(frozen=True)
class SearchSettings:
    """How content is looked for; `chunks_s` are tried in turn where nothing is found yet."""

    coarse_rate_hz: float = 6000.0
    fine_rate_hz: float = 22050.0
    chunks_s: tuple[float, ...] = (1.0, 0.35, 0.15)
    peaks: int = 12
    lowest_peak: float = 0.15
    patience_s: float = 0.37
    bridge_s: float = 5.0


class Coarse(NamedTuple):
    """Both signals with every `factor`-th sample kept."""

    raw_S: np.ndarray
    edit_S: np.ndarray
    factor: int


class Search:
    """Looks for diagonals; knows those found so far, how well they explain each window, and the noise.

    A chunk to which nothing in the raw is alike is given up; only a few smaller pieces of such are tried.
    """

    def __init__(self, signals: Signals, measuring: SignalSettings, settings: SearchSettings) -> None:
        self._signals, self._measuring, self._settings = signals, measuring, settings
        self._diagonals: dict[int, list[Diagonal]] = {}
        self._best_W = np.full(len(signals.energy_W), LOST, np.float32)
        self._hopeless_W = np.zeros(len(signals.energy_W), bool)
        self._last_hopes = 0
        self.noise = noise_of(signals, self._best_W, measuring)
        self._coarse = coarse_of(signals, settings.coarse_rate_hz)

    def sketch(self) -> list[Diagonal]:
        """The diagonals of a few chunks spread over the edit."""
        chunks = len(self._signals.edit_S) / (self._settings.chunks_s[0] * self._signals.rate_hz)
        self._look(self._settings.chunks_s[0], (max(1.0, chunks / BATCH),))
        return self._bridged()

    def complete(self) -> list[Diagonal]:
        """Every diagonal worth considering, in no order; none when the edit has nothing of the raw."""
        for chunk_s in self._settings.chunks_s:
            self._last_hopes = LAST_HOPES
            self._look(chunk_s, STRIDES)
        # what has nothing below half the coarse rate, such as a cymbal, and what seemed to be nowhere
        self._coarse = coarse_of(self._signals, self._settings.fine_rate_hz)
        self._hopeless_W[:] = False
        self._look(self._settings.chunks_s[0], STRIDES[:-1])
        # only now is the noise known, and with it how far silence may be followed
        found = [self._followed(diagonal) for diagonal in self._bridged()]
        return found + self._between(found)

    def _look(self, chunk_s: float, strides: tuple[float, ...]) -> None:
        """Looks for chunks spread over the whole edit first, then ever denser, where something is missing."""
        n_samples = len(self._signals.edit_S)
        chunk = min(round(chunk_s * self._signals.rate_hz), n_samples)
        tried: set[int] = set()
        for stride in strides:
            grid = np.minimum(np.arange(0, n_samples, max(1, round(chunk * stride))), n_samples - chunk)
            pending = [start for start in np.unique(grid).tolist() if start not in tried]
            while pending:
                starts = self._next_batch(pending, chunk, chunk_s == self._settings.chunks_s[0])
                tried.update(starts)
                self._try(starts, chunk)

    def _next_batch(self, pending: list[int], chunk: int, long: bool) -> list[int]:
        """Takes chunk starts from `pending` until a batch of those worth looking for is full."""
        missing_W = self._missing_W()
        missing = np.concatenate([[0], np.cumsum(missing_W)])
        hopeless = np.concatenate([[0], np.cumsum(missing_W & self._hopeless_W)])
        part = LONG_CHUNK_MISSING if long else SHORT_CHUNK_MISSING
        starts: list[int] = []
        while pending and len(starts) < BATCH:
            start = pending.pop(0)
            span = self._windows(start, chunk)
            least = max(2, part * (span.stop - span.start))
            given_up = hopeless[span.stop] - hopeless[span.start]
            if missing[span.stop] - missing[span.start] - given_up > least:
                starts.append(start)
            elif given_up > least and not long and self._last_hopes:
                self._last_hopes -= 1
                starts.append(start)
        return starts

    def _try(self, starts: list[int], chunk: int) -> None:
        if not starts:
            return
        peaks = coarse_peaks(self._coarse, starts, chunk, self._settings)
        for start, positions in zip(starts, peaks, strict=True):
            if self._follow(start, chunk, positions) < HOPELESS:
                span = self._windows(start, chunk)
                energy_W = self._signals.energy_W[span]
                self._hopeless_W[span] |= energy_W > HEARD * energy_W.mean()

    def _missing_W(self) -> np.ndarray:
        """Audible windows whose surroundings lack an explanation about as good as most windows have."""
        self.noise = noise_of(self._signals, self._best_W, self._measuring)
        energy_W = self._signals.energy_W
        told_W = ~self.noise.drowned_W(energy_W)
        good = self._best_W[told_W & (self._best_W < 0.5)]
        exact, usual, bad = np.percentile(good, (25, 60, 85)) if good.size else (0.0, 0.0, 0.0)
        usual = max(4 * usual, 2 * bad) if exact > UNPROCESSED else 0.0
        limit_W = np.clip(
            usual + 6 * self.noise.absolute / np.maximum(energy_W, self.noise.absolute), 2e-3, 0.5
        )
        if not told_W.any():
            return told_W
        excess_W = np.pad(self._best_W - limit_W, AROUND // 2, mode="edge")
        return told_W & (np.median(np.lib.stride_tricks.sliding_window_view(excess_W, AROUND), axis=1) > 0)

    def _windows(self, start: int, chunk: int) -> slice:
        """The windows that lie in a chunk."""
        window = self._signals.window_samples
        return slice(start // window, min((start + chunk) // window, len(self._signals.energy_W)))

    def _follow(self, start: int, chunk: int, positions: np.ndarray) -> float:
        """Sharpens the peaks of a chunk, follows the most telling, returns the best likeness."""
        span = self._windows(start, chunk)
        fits = _sharpened(self._signals, start, chunk, positions.tolist(), self._coarse.factor + 2)
        seeds = self._unknown(fits, span)[: self._settings.peaks]
        # a pitched sound may have led to a neighbouring period, unless one is right to the sample
        exact = any(np.percentile(seed.residual_W, 30) < EXACT_RESIDUAL for seed in seeds)
        places = [] if exact else [seed.offset + start for seed in seeds]
        finer = _sharpened(self._signals, start, chunk, places, CELL // 2 * self._coarse.factor)
        for seed in self._unknown(finer | {seed.offset: 0.0 for seed in seeds}, span)[: self._settings.peaks]:
            if held(seed, self._measuring).sum() >= max(3, SEED_HELD * (span.stop - span.start)):
                self._keep(self._followed(seed))
        return max(fits.values(), default=0.0)

    def _unknown(self, offsets: Iterable[int], span: slice) -> list[Diagonal]:
        """Measures the offsets that no diagonal has yet; a few exact windows go before many similar ones."""
        middle = (span.start + span.stop) // 2
        found = [
            measure(self._signals, offset, span.start, span.stop)
            for offset in offsets
            if not self._known(offset, middle)
        ]
        return sorted(found, key=lambda diagonal: -float(held_weight(diagonal).sum()))

    def _keep(self, diagonal: Diagonal) -> None:
        self._diagonals.setdefault(diagonal.offset, []).append(diagonal)
        span = slice(diagonal.first, diagonal.stop)
        self._best_W[span] = np.minimum(self._best_W[span], diagonal.residual_W)

    def _known(self, offset: int, window: int) -> bool:
        """Whether a diagonal with this offset, give or take a sample, covers the window."""
        near = (self._diagonals.get(offset + step, ()) for step in (-1, 0, 1))
        return any(diagonal.first <= window < diagonal.stop for group in near for diagonal in group)

    def _followed(self, diagonal: Diagonal) -> Diagonal:
        """The diagonal prolonged both ways while it holds, and a little further."""
        pace = max(4, round(self._settings.patience_s * self._signals.rate_hz / self._signals.window_samples))
        first, stop, n_windows = diagonal.first, diagonal.stop, len(self._signals.energy_W)
        held_W = held(diagonal, self._measuring)
        gain = float(np.median(diagonal.gain_W[held_W])) if held_W.any() else 1.0
        while stop < n_windows and self._holds_on(diagonal.offset, gain, stop, min(stop + pace, n_windows)):
            stop = min(stop + pace, n_windows)
        while first > 0 and self._holds_on(diagonal.offset, gain, max(0, first - pace), first):
            first = max(0, first - pace)
        return measure(self._signals, diagonal.offset, max(0, first - pace), min(n_windows, stop + pace))

    def _holds_on(self, offset: int, gain: float, first: int, stop: int) -> bool:
        """Whether most of the windows that can be told are explained, or hardly any can be told."""
        diagonal = measure(self._signals, offset, first, stop)
        energy_W = np.maximum(self._signals.energy_W[first:stop], gain**2 * diagonal.raw_energy_W)
        told_W = ~self.noise.drowned_W(energy_W)
        held_W = (diagonal.residual_W < self._measuring.held_residual) & (diagonal.gain_W * gain > 0)
        return bool(told_W.sum() <= 0.1 * len(told_W) or held_W[told_W].mean() > 0.3)

    def _between(self, found: list[Diagonal]) -> list[Diagonal]:
        """The offsets between neighbours a few samples apart: two clocks drift through all of them."""
        if self.noise.relative <= self._measuring.relative_floor:
            return []
        between = []
        for one, two in pairwise(sorted(found, key=lambda diagonal: diagonal.offset)):
            first, stop = min(one.first, two.first), max(one.stop, two.stop)
            if two.offset - one.offset <= DRIFT and stop - first <= len(one.gain_W) + len(two.gain_W):
                offsets = range(one.offset + 1, two.offset)
                between += [measure(self._signals, offset, first, stop) for offset in offsets]
        return between

    def _bridged(self) -> list[Diagonal]:
        """The diagonals so far, those of one offset that are near each other joined into one."""
        bridge = round(self._settings.bridge_s * self._signals.rate_hz / self._signals.window_samples)
        joined: list[Diagonal] = []
        for offset, group in self._diagonals.items():
            spans: list[list[int]] = []
            for diagonal in sorted(group, key=lambda diagonal: diagonal.first):
                if spans and diagonal.first - spans[-1][1] <= bridge:
                    spans[-1][1] = max(spans[-1][1], diagonal.stop)
                else:
                    spans.append([diagonal.first, diagonal.stop])
            joined += [measure(self._signals, offset, first, stop) for first, stop in spans]
        return joined


def coarse_of(signals: Signals, rate_hz: float) -> Coarse:
    """Both signals at the whole fraction of their rate that is nearest to `rate_hz`."""
    factor = max(1, round(signals.rate_hz / rate_hz))
    if factor == 1:
        return Coarse(signals.raw_S, signals.edit_S, 1)
    raw_S, edit_S = (spooled(decimated(samples_S, factor)) for samples_S in (signals.raw_S, signals.edit_S))
    return Coarse(raw_S, edit_S, factor)


def coarse_peaks(coarse: Coarse, starts: list[int], chunk: int, settings: SearchSettings) -> list[np.ndarray]:
    """For each chunk of `chunk` samples the raw samples where it may start, give or take `factor`; best
    first.
    """
    length = max(8, chunk // coarse.factor)
    begins = [start // coarse.factor for start in starts]
    chunks_CS = np.stack([slice_padded(coarse.edit_S, begin, begin + length) for begin in begins])
    energy_C = np.einsum("cs,cs->c", chunks_CS, chunks_CS)
    chunks_CS = chunks_CS / np.sqrt(np.maximum(energy_C, FALSE_PEAK_FLOOR))[:, None]
    size = scipy.fft.next_fast_len(
        min(max(1 << 15, 4 * length), len(coarse.raw_S) + 2 * length + CELL), real=True
    )
    step = (size - length + 1) // CELL * CELL
    spectra_CF = np.conj(scipy.fft.rfft(chunks_CS, size))
    where: list[list[np.ndarray]] = [[] for _ in starts]
    height: list[list[np.ndarray]] = [[] for _ in starts]
    for begin in range(-length, len(coarse.raw_S), step):
        block_S = slice_padded(coarse.raw_S, begin, begin + size)
        scale_S = _inverse_norm(block_S, length, step)
        spectrum_F = scipy.fft.rfft(block_S)
        for c, chunk_F in enumerate(spectra_CF):
            likeness_S = np.abs(scipy.fft.irfft(chunk_F * spectrum_F, size)[:step]) * scale_S
            at, tops = _cell_peaks(likeness_S, settings)
            where[c].append(begin + at)
            height[c].append(tops)
    peaks = []
    for at, tops in zip(map(np.concatenate, where), map(np.concatenate, height), strict=True):
        peaks.append(at[np.argsort(-tops)[: CANDIDATES * settings.peaks]] * coarse.factor)
    return peaks


def decimated(samples_S: np.ndarray, factor: int, block_samples: int = 1 << 20) -> Iterator[np.ndarray]:
    """Every `factor`-th sample after a linear-phase low-pass, float32 in blocks.

    Sample i is where sample i · factor was.
    """
    half = 8 * factor
    taps_S = scipy.signal.firwin(2 * half + 1, 0.7 / factor).astype(np.float32)
    block = block_samples // factor * factor
    for start in range(0, len(samples_S), block):
        stop = min(start + block, len(samples_S))
        padded_S = slice_padded(samples_S, start - half, stop + half)
        filtered_S = scipy.signal.upfirdn(taps_S, padded_S, 1, factor)
        kept = -((start - stop) // factor)
        yield filtered_S[2 * half // factor :][:kept]


def _inverse_norm(block_S: np.ndarray, length: int, step: int) -> np.ndarray:
    """1 / norm of the `length` samples from each of the first `step` on; 0 where they are silent."""
    sums = np.concatenate([[0.0], np.cumsum(block_S.astype(np.float64) ** 2)])
    energy_S = sums[length : length + step] - sums[:step]
    floor = max(1e-12 * sums[-1], FALSE_PEAK_FLOOR)
    return np.where(energy_S > floor, 1 / np.sqrt(np.maximum(energy_S, floor)), 0.0).astype(np.float32)


def _cell_peaks(likeness_S: np.ndarray, settings: SearchSettings) -> tuple[np.ndarray, np.ndarray]:
    """Where the highest cells have their top, and how high it is."""
    cells = likeness_S.reshape(-1, CELL)
    tops = cells.max(axis=1)
    keep = np.flatnonzero(tops > settings.lowest_peak)
    if len(keep) > CANDIDATES * settings.peaks:
        keep = keep[np.argpartition(-tops[keep], CANDIDATES * settings.peaks)[: CANDIDATES * settings.peaks]]
    return keep * CELL + cells[keep].argmax(axis=1), tops[keep]


def _sharpened(
    signals: Signals, start: int, chunk: int, positions: list[int], reach: int
) -> dict[int, float]:
    """For each peak the offset within `reach` samples at which the chunk fits best, and how well."""
    edit_S = signals.edit_S[start : start + chunk]
    energy = float(np.dot(edit_S, edit_S))
    size = scipy.fft.next_fast_len(chunk + 2 * reach, real=True)
    edit_F = None if reach < FEW_LAGS else np.conj(scipy.fft.rfft(edit_S, size))
    fits = {}
    for position in positions:
        raw_S = slice_padded(signals.raw_S, position - reach, position + chunk + reach)
        if edit_F is None:
            cross_L = np.correlate(raw_S, edit_S, "valid")
        else:
            cross_L = scipy.fft.irfft(scipy.fft.rfft(raw_S, size) * edit_F, size)[: 2 * reach + 1]
        likeness_L = np.abs(cross_L) / np.sqrt(np.maximum(_energies(raw_S, chunk) * energy, FALSE_PEAK_FLOOR))
        best = int(likeness_L.argmax())
        fits[position - reach + best - start] = float(likeness_L[best])
    return fits


def _energies(samples_S: np.ndarray, length: int) -> np.ndarray:
    """Energy of `length` samples from each sample on for which there are so many."""
    lags = len(samples_S) - length
    change_L = samples_S[length:].astype(np.float64) ** 2 - samples_S[:lags].astype(np.float64) ** 2
    first = float(np.dot(samples_S[:length], samples_S[:length]))
    energy_L = first + np.concatenate([[0.0], np.cumsum(change_L)])
    return np.maximum(energy_L, ROUNDING * energy_L.max())
