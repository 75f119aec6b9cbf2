"""The two tracks as the aligner hears them, and how well they agree where one is laid over the other.

In come readers; out come mono signals at one rate, and `Diagonal`s: "the edit here is the raw shifted by so
many samples", measured window by window.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.signal

from editjax.audio import Reader, resample_stream
from editjax.files import scratch_errors

LOST = 1.0
"""Residual of a window that the raw does not explain at all."""
HIGHEST_TOP = 0.4
"""Upper edge of what is listened to, over the sample rate, at low rates."""
DROWNED = 4.0
"""Windows with less than this times the noise decide nothing."""
UNPROCESSED = 1e-5
"""Residual up to which an edit is a plain copy, however quiet a window."""
INAUDIBLE = 1e-9
"""Power (−90 dB full scale) below which processing, codecs above all, need not have left anything."""
INAUDIBLE_BELOW = 1e-4
"""The same relative to the typical power of the edit: what counts is the lower of the two."""
FALSE_PEAK_FLOOR = 1e-30
"""Energy below which a quotient of energies means nothing."""


@dataclass(frozen=True)
class SignalSettings:
    """`window_s`: one measurement; bass below `corner_hz` and treble above `top_hz` are weakened.

    Bass alone fits too many places, and treble is what codecs, noise and a fraction of a sample spoil first.
    `held_residual` is the largest residual of a window that still counts as the same sound. `relative_floor`
    and `absolute_floor` (power, full scale 1) are the least noise that is reckoned with: no copy is better
    than that.
    """

    window_s: float = 512 / 44100
    corner_hz: float = 700.0
    top_hz: float = 6000.0
    held_residual: float = 0.6
    relative_floor: float = 1e-4
    absolute_floor: float = 1e-13


class Signals(NamedTuple):
    """The raw and the edit as emphasised mono float32 at one rate, and the edit's energy per window.

    Windows (W) are `window_samples` long, side by side, from the start of the edit; a rest is left out.
    """

    raw_S: np.ndarray
    edit_S: np.ndarray
    rate_hz: int
    window_samples: int
    energy_W: np.ndarray


class Diagonal(NamedTuple):
    """Raw sample = edit sample + `offset`, measured over the windows from `first` on.

    `residual_W` is 1 − ρ²: the part of a window's energy that the best gain leaves unexplained; `gain_W` is
    that gain, signed; `raw_energy_W` the raw's energy there.
    """

    offset: int
    first: int
    residual_W: np.ndarray
    gain_W: np.ndarray
    raw_energy_W: np.ndarray

    @property
    def stop(self) -> int:
        """One past the last window."""
        return self.first + len(self.residual_W)


class Noise(NamedTuple):
    """The residual energy to expect of a true match: `relative` · energy + `absolute`, per window."""

    relative: float
    absolute: float

    def floor_W(self, energy_W: np.ndarray) -> np.ndarray:
        """The residual (a part of the energy) that a true match leaves."""
        return self.relative + self.absolute / np.maximum(energy_W, 1e-3 * self.absolute)

    def drowned_W(self, energy_W: np.ndarray) -> np.ndarray:
        """Windows too quiet to tell one match from another."""
        return energy_W < DROWNED * self.absolute


def signals_of(raw: Reader, edited: Reader, settings: SignalSettings) -> Signals:
    """Both tracks at the raw's rate, mono, emphasised between `corner_hz` and `top_hz`.

    The samples lie in unlinked temporary files ($TMPDIR, 4 bytes a sample), not in memory.
    """
    rate_hz = raw.info.sample_rate_hz
    raw_S, edit_S = (spooled(_emphasised(reader, rate_hz, settings)) for reader in (raw, edited))
    window = max(16, round(settings.window_s * rate_hz))
    windows_WS = edit_S[: len(edit_S) // window * window].reshape(-1, window)
    energy_W = np.einsum("ws,ws->w", windows_WS, windows_WS).astype(np.float64)
    return Signals(raw_S, edit_S, rate_hz, window, energy_W)


def measure(signals: Signals, offset: int, first: int, stop: int) -> Diagonal:
    """The diagonal `offset` over the windows [first, stop); where it leaves the raw the raw counts as
    silent.
    """
    window = signals.window_samples
    edit_WS = signals.edit_S[first * window : stop * window].reshape(-1, window)
    raw_WS = slice_padded(signals.raw_S, first * window + offset, stop * window + offset).reshape(-1, window)
    cross_W = np.einsum("ws,ws->w", edit_WS, raw_WS).astype(np.float64)
    raw_energy_W = np.einsum("ws,ws->w", raw_WS, raw_WS).astype(np.float64)
    explained_W = cross_W**2 / np.maximum(signals.energy_W[first:stop] * raw_energy_W, FALSE_PEAK_FLOOR)
    gain_W = (cross_W / np.maximum(raw_energy_W, FALSE_PEAK_FLOOR)).astype(np.float32)
    residual_W = np.clip(1.0 - explained_W, 0.0, LOST).astype(np.float32)
    return Diagonal(offset, first, residual_W, gain_W, raw_energy_W)


def held(diagonal: Diagonal, settings: SignalSettings) -> np.ndarray:
    """Windows that the diagonal explains with one sign of gain, bool (W,)."""
    fits_W = diagonal.residual_W < settings.held_residual
    sign = np.sign(np.sum(np.sign(diagonal.gain_W[fits_W])))
    return fits_W & (diagonal.gain_W * sign > 0)


def held_weight(diagonal: Diagonal, limit: float = 0.6, best: float = 1e-4) -> np.ndarray:
    """How much each window speaks for the diagonal, (W,): log(limit / residual), 0 above the limit."""
    weight_W = np.log(limit / np.clip(diagonal.residual_W, best, limit))
    return np.where(diagonal.raw_energy_W > 0, weight_W, 0.0)


def best_residual(n_windows: int, diagonals: Iterable[Diagonal]) -> np.ndarray:
    """The least residual of any diagonal in each window, (W,)."""
    best_W = np.full(n_windows, LOST, np.float32)
    for diagonal in diagonals:
        span = slice(diagonal.first, diagonal.stop)
        best_W[span] = np.minimum(best_W[span], diagonal.residual_W)
    return best_W


def noise_of(signals: Signals, best_W: np.ndarray, settings: SignalSettings) -> Noise:
    """Estimates the noise from the residual that the best explanation leaves in each window.

    Noise that was added is left in nearly every window, also in the quietest, and no window is quieter than
    it; the error of a codec goes with the level and is taken to spread a hundredth of itself over its quiet
    neighbourhood. In an edit that is no plain copy what is inaudible counts as noise too.
    """
    least = settings.absolute_floor * signals.window_samples
    good_W = (best_W < 0.5) & (signals.energy_W > least)
    if not good_W.any():
        return Noise(settings.relative_floor, least)
    residual, energy = best_W[good_W], signals.energy_W[good_W]
    typical = float(np.median(energy))
    relative = float(np.percentile(residual[energy >= typical], 25))
    left = residual * energy
    added = min(
        float(np.percentile(left, 10)),
        float(np.median(left[energy <= np.percentile(energy, 10)])),
        1.3 * float(np.percentile(signals.energy_W, 5)),
    )
    absolute = max(least, added, min(2e-5, 1e-2 * relative) * typical)
    if relative > UNPROCESSED:
        absolute = max(absolute, min(INAUDIBLE * signals.window_samples, INAUDIBLE_BELOW * typical))
    return Noise(float(np.clip(relative, settings.relative_floor, 0.1)), absolute)


def slice_padded(samples_S: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Samples [start, stop), zeros where that is outside the array."""
    inside = samples_S[max(0, start) : max(0, stop)]
    if len(inside) == stop - start:
        return inside
    before = min(max(0, -start), stop - start)
    return np.pad(inside, (before, stop - start - before - len(inside)))


def spooled(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """float32 blocks one after the other as one array, which lies in an unlinked temporary file."""
    with scratch_errors(), tempfile.TemporaryFile(prefix="editjax-") as file:
        for block_S in blocks:
            file.write(np.ascontiguousarray(block_S, np.float32).data)
        file.flush()
        # a plain array: slices of a memmap are slow to make
        return np.asarray(np.memmap(file, np.float32, "r")) if file.tell() else np.zeros(0, np.float32)


def _emphasised(reader: Reader, rate_hz: int, settings: SignalSettings) -> Iterator[np.ndarray]:
    pole = np.exp(-2 * np.pi * settings.corner_hz / rate_hz)
    top = min(settings.top_hz / rate_hz, HIGHEST_TOP)
    sections = scipy.signal.butter(2, 2 * top, output="sos")
    sections = np.vstack([sections, [1.0, -pole, 0.0, 1.0, 0.0, 0.0]])
    state = np.zeros((len(sections), 2))
    for mono_S in resample_stream(reader.blocks(), reader.info.sample_rate_hz, rate_hz):
        heard_S, state = scipy.signal.sosfilt(sections, mono_S, zi=state)
        yield heard_S
