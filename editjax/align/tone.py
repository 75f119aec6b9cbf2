"""The tone of an edit: the filter (equaliser, tilt, phase) through which the raw was played as a whole.

In come signals and a first sketch of diagonals; out come signals whose raw has that filter applied, so that
an equalised edit matches as sharply as a plain copy, near repeats included. The filter is the least-squares
one, cross-spectrum over auto-spectrum of matched stretches, cut to a short impulse response.

Source: J. S. Bendat, A. G. Piersol, Random Data, ch. 6 (optimum single-input system).
"""

import numpy as np
import scipy.fft
import scipy.signal

from editjax.align.signals import (
    Diagonal,
    Signals,
    SignalSettings,
    best_residual,
    held,
    measure,
    noise_of,
    slice_padded,
    spooled,
)

WINDOWS = 8
"""Windows in a stretch that goes into the spectra (93 ms)."""
STRETCHES = 400
"""Most stretches that go into the spectra."""
FEWEST_STRETCHES = 12
"""Fewer say more about themselves than about a filter."""
MOST_SHIFT = 3
"""Samples by which the offsets of diagonals may be wrong before the filter is known."""
ROUNDS = 3
"""Times the offsets and the filter are adapted to each other."""
WORTH = 0.5
"""The filter is kept when it lowers the residual at least to this part."""
SMALL_RESIDUAL = 1e-3
"""Residual of matches too good for a filter to be looked for (ρ = 0.9995)."""


def toned(signals: Signals, diagonals: list[Diagonal], settings: SignalSettings) -> Signals | None:
    """Signals whose raw has the tone of the edit, at the raw's level; None when a filter explains little."""
    plain = _residual(signals, diagonals, settings)
    stretches = _stretches(signals, diagonals, settings)
    if plain < SMALL_RESIDUAL or len(stretches) < FEWEST_STRETCHES:
        return None
    taps_S, lead, delay = _filter(signals, stretches)
    block = 1 << 20
    pieces = (
        scipy.signal.oaconvolve(
            slice_padded(
                signals.raw_S, start - len(taps_S) + 1 + lead, min(start + block, len(signals.raw_S)) + lead
            ),
            taps_S,
            "valid",
        )
        for start in range(0, len(signals.raw_S), block)
    )
    changed = signals._replace(raw_S=spooled(pieces))
    again = [
        measure(changed, diagonal.offset - delay + step, diagonal.first, diagonal.stop)
        for diagonal in diagonals
        for step in (-1, 0, 1)
    ]
    return changed if _residual(changed, again, settings) < WORTH * plain else None


def _residual(signals: Signals, diagonals: list[Diagonal], settings: SignalSettings) -> float:
    return noise_of(signals, best_residual(len(signals.energy_W), diagonals), settings).relative


def _stretches(
    signals: Signals, diagonals: list[Diagonal], settings: SignalSettings
) -> list[tuple[int, Diagonal]]:
    """(first window, diagonal) of stretches that one diagonal explains best throughout, evenly chosen."""
    best_W = best_residual(len(signals.energy_W), diagonals)
    found = []
    for diagonal in diagonals:
        best = held(diagonal, settings) & (diagonal.residual_W <= best_W[diagonal.first : diagonal.stop])
        whole = len(best) // WINDOWS * WINDOWS
        for i in np.flatnonzero(best[:whole].reshape(-1, WINDOWS).all(axis=1)).tolist():
            found.append((diagonal.first + i * WINDOWS, diagonal))
    return found[:: -(-len(found) // STRETCHES) or 1]


def _filter(signals: Signals, stretches: list[tuple[int, Diagonal]]) -> tuple[np.ndarray, int, int]:
    """The impulse response (taps,) with the level of the raw, how many of its taps lead, and the delay in the
    offsets that it has not.
    """
    size = WINDOWS * signals.window_samples
    cross_DF, power_F = _spectra(signals, stretches, size)
    response_F = _agreed(cross_DF, power_F, size)
    response_F /= np.sqrt((np.abs(response_F) ** 2 * power_F).sum() / power_F.sum())
    lead, tail = size // 8, size // 4
    impulse_S = scipy.fft.irfft(response_F, size)
    # the highest tap is where the sound is: offsets then mean what they mean without a filter
    peak = int(np.abs(impulse_S).argmax())
    taps_S = np.roll(impulse_S, lead - peak)[: lead + tail]
    fade_S = np.concatenate([np.hanning(2 * lead)[:lead], np.hanning(2 * tail)[tail:]])
    return (taps_S * fade_S).astype(np.float32), lead, (peak + size // 2) % size - size // 2


def _spectra(
    signals: Signals, stretches: list[tuple[int, Diagonal]], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cross-spectrum of raw and edit summed for each diagonal (diagonals, F), and the raw's power (F,)."""
    taper_S = np.hanning(size).astype(np.float32)
    rows = {offset: d for d, offset in enumerate(dict.fromkeys(diagonal.offset for _, diagonal in stretches))}
    cross_DF = np.zeros((len(rows), size // 2 + 1), np.complex128)
    power_F = np.zeros(size // 2 + 1)
    for first, diagonal in stretches:
        start = first * signals.window_samples
        edit_F = scipy.fft.rfft(taper_S * signals.edit_S[start : start + size])
        raw_S = slice_padded(signals.raw_S, start + diagonal.offset, start + diagonal.offset + size)
        raw_F = scipy.fft.rfft(taper_S * raw_S)
        gain = float(np.median(diagonal.gain_W[first - diagonal.first :][:WINDOWS])) or 1.0
        cross_DF[rows[diagonal.offset]] += np.conj(raw_F) * edit_F / gain
        power_F += np.abs(raw_F) ** 2
    return cross_DF, power_F


def _agreed(cross_DF: np.ndarray, power_F: np.ndarray, size: int) -> np.ndarray:
    """The response (F,) all diagonals share once each is moved by the sample or two its offset may be off.

    A filter delays treble less than bass, so the offsets of different sounds differ by a sample; added as
    they are their treble would cancel.
    """
    floor_F = power_F + 1e-9 * power_F.max()
    shifts = np.arange(-MOST_SHIFT, MOST_SHIFT + 1)
    turn_LF = np.exp(2j * np.pi * shifts[:, None] * np.arange(len(power_F)) / size)
    moved_DF = cross_DF
    for _ in range(ROUNDS):
        response_F = moved_DF.sum(axis=0) / floor_F
        fit_DL = np.real((cross_DF * np.conj(response_F) / floor_F) @ turn_LF.T)
        moved_DF = cross_DF * turn_LF[fit_DL.argmax(axis=1)]
    return moved_DF.sum(axis=0) / floor_F
