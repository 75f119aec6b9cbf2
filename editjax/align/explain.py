"""Explains an edited track as few long spans of the raw recording.

In come diagonals (where the edit may sound in the raw, and how well, window by window); out come spans, each
at one offset. A shortest path over the windows decides: every window pays the logarithm of what its diagonal
leaves unexplained, every change of diagonal pays a fixed price. An ambiguous repeat therefore belongs to the
longest span, and what no diagonal explains stays unaligned.

The price of a window is the log-likelihood ratio of a Gaussian residual against the noise floor of this pair
of files, which was estimated before: an exact copy is then worth far more than a near repeat, while in a
noisy copy quiet windows decide nothing. The path is Viterbi's (A. J. Viterbi, 1967).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from editjax.align.signals import LOST, Diagonal, Noise, Signals, held_weight, measure

MUTE = 1e-3
"""Edit energy over expected energy below which the raw was muted rather than played (−30 dB)."""
STRAY = 4.0
"""Residual over the noise floor from which on a window is better unaligned, if that is not little anyway."""
SILENT_STRAY = 0.01
"""Price of silence without a run: next to nothing, so that a run is preferred but never stretched for it."""
FAINT_MISFIT = 0.005
"""Price of silence in which a run does not even fit the faintest traces: less, and only to break ties."""
FAINT_FIT = 0.5
"""Residual up to which silence counts as fitting."""
TIE = 1e-9
"""Difference of prices that is none: a run then goes on, as a sound's own silence belongs to it."""
MOST_FOREIGN = 0.3
"""Part of the energy of a span that may be neither the raw's nor added noise; reverberation leaves more."""


@dataclass(frozen=True)
class ExplainSettings:
    """`switch_cost`: price of a change; `stray_residual`: from which residual on (clean, noisy) nothing is
    better.
    """

    switch_cost: float = 7.0
    stray_residual: tuple[float, float] = (0.3, 1.0)


class Span(NamedTuple):
    """Windows or frames [first, stop) of the edit that are `offset` (samples or frames) further on in the
    raw.
    """

    first: int
    stop: int
    offset: int


def explain(
    signals: Signals, diagonals: list[Diagonal], noise: Noise, settings: ExplainSettings
) -> list[Span]:
    """The spans of windows that explain the edit, in its order, disjoint; what lies between them is
    unaligned.
    """
    costs = [_cost(signals, diagonal, noise) for diagonal in diagonals]
    path_W = cheapest_path(diagonals, costs, _stray_cost(signals, noise, settings), settings.switch_cost)
    spans = [Span(first, stop, diagonals[k].offset) for first, stop, k in stretches(path_W)]
    return [span for span in spans if _foreign(signals, span, noise) < MOST_FOREIGN]


def _foreign(signals: Signals, span: Span, noise: Noise) -> float:
    """The part of a span's energy that its offset and the added noise leave unexplained."""
    energy_W = signals.energy_W[span.first : span.stop]
    residual_W = measure(signals, span.offset, span.first, span.stop).residual_W
    left = float(np.dot(residual_W, energy_W)) - noise.absolute * len(energy_W)
    return left / max(float(energy_W.sum()), noise.absolute)


def typical_gain(diagonal: Diagonal) -> float:
    """The median gain, windows weighing as much as they speak for the diagonal; its sign is the polarity."""
    weight_W = held_weight(diagonal)
    if not weight_W.any():
        return 1.0
    order = np.argsort(diagonal.gain_W)
    total = np.cumsum(weight_W[order])
    return float(diagonal.gain_W[order[np.searchsorted(total, total[-1] / 2)]]) or 1.0


def cheapest_path(
    candidates: Sequence[Diagonal | Span],
    costs: list[np.ndarray],
    stray_cost_W: np.ndarray,
    switch_cost: float,
) -> np.ndarray:
    """The candidate (its number) that explains each window at least cost (W,), −1 where none does.

    `costs` has for each candidate the price of its windows; Viterbi over the candidates present at a time.
    """
    n_windows = len(stray_cost_W)
    spans = [(c.first, c.stop, cost) for c, cost in zip(candidates, costs, strict=True)]
    spans.append((0, n_windows, stray_cost_W))
    edges = sorted({edge for first, stop, _ in spans for edge in (first, stop)})
    starting: dict[int, list[int]] = {}
    for k, (first, _, _) in enumerate(spans):
        starting.setdefault(first, []).append(k)
    active: list[int] = []
    total_K = np.full(len(spans), np.inf)
    best, best_total = -1, 0.0
    history: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
    for begin, end in pairwise(edges):
        active = [k for k in active if spans[k][1] > begin] + starting.get(begin, [])
        states = np.array(active)
        cost_KW = np.stack([spans[k][2][begin - spans[k][0] : end - spans[k][0]] for k in active])
        jumped_WK = np.empty((end - begin, len(active)), bool)
        from_W = np.empty(end - begin, np.int32)
        total = total_K[states]
        for w in range(end - begin):
            from_W[w] = best
            entry = best_total + switch_cost
            jumped_WK[w] = total > entry - TIE
            total = np.minimum(total, entry) + cost_KW[:, w]
            i = int(total.argmin())
            best, best_total = active[i], float(total[i])
        total_K[:] = np.inf
        total_K[states] = total
        history.append((begin, states, jumped_WK, from_W))
    return _traced(history, best, n_windows, len(spans) - 1)


def stretches(path_W: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, stop, candidate) of the stretches of a path with one candidate."""
    edges = [0, *(np.flatnonzero(np.diff(path_W)) + 1).tolist(), len(path_W)]
    found = [(first, stop, int(path_W[first])) for first, stop in pairwise(edges) if stop > first]
    return [stretch for stretch in found if stretch[2] >= 0]


def _cost(signals: Signals, diagonal: Diagonal, noise: Noise) -> np.ndarray:
    """Price of each window of a diagonal: log(1 + residual / floor), next to nothing for silence."""
    gain = typical_gain(diagonal)
    energy_W = signals.energy_W[diagonal.first : diagonal.stop]
    expected_W = gain**2 * diagonal.raw_energy_W
    mute_W = energy_W < MUTE * expected_W
    residual_W = np.where(mute_W | (diagonal.gain_W * gain < 0), LOST, diagonal.residual_W)
    louder_W = np.maximum(energy_W, expected_W)
    faint_W = np.where(residual_W > FAINT_FIT, FAINT_MISFIT, 0.0)
    cost_W = np.where(noise.drowned_W(louder_W), faint_W, np.log1p(residual_W / noise.floor_W(louder_W)))
    start_W = np.arange(diagonal.first, diagonal.stop) * signals.window_samples + diagonal.offset
    outside_W = (start_W <= -signals.window_samples) | (start_W >= len(signals.raw_S))
    return np.where(outside_W, np.log1p(LOST / noise.relative), cost_W)


def _stray_cost(signals: Signals, noise: Noise, settings: ExplainSettings) -> np.ndarray:
    """Price of a window that no diagonal explains."""
    floor_W = noise.floor_W(signals.energy_W)
    stray_W = np.clip(STRAY * floor_W, *settings.stray_residual)
    cost_W = np.log1p(stray_W / floor_W)
    return np.where(noise.drowned_W(signals.energy_W), SILENT_STRAY, cost_W)


def _traced(history: list, state: int, n_windows: int, stray: int) -> np.ndarray:
    path_W = np.empty(n_windows, np.int64)
    for begin, states, jumped_WK, from_W in reversed(history):
        position = {int(k): i for i, k in enumerate(states)}
        for w in range(len(from_W) - 1, -1, -1):
            path_W[begin + w] = state
            if jumped_WK[w, position[state]]:
                state = int(from_W[w])
    path_W[path_W == stray] = -1
    return path_W
