"""Silence in the edit that belongs to no run → silence of the raw.

A pause copied from the raw has nothing that could be matched, yet it exists there: it is laid to the silence
nearest to what was played before that is long enough. Silence longer than any of the raw's, or within
something foreign, stays unaligned.
"""

import numpy as np

from editjax.align.runs import Run
from editjax.align.signals import Noise, Signals

SHORTEST_S = 0.05
"""Shorter silences are left alone."""


def silent_runs(signals: Signals, runs: list[Run], noise: Noise) -> list[Run]:
    """The runs, and one for every silent stretch beside one of them that the raw has too."""
    window = signals.window_samples
    shortest = max(2, round(SHORTEST_S * signals.rate_hz / window))
    silent_W = noise.drowned_W(signals.energy_W)
    for run in runs:
        silent_W[run.start // window : -(-run.stop // window)] = False
    found = list(runs)
    quiet: list[tuple[int, int]] | None = None
    for first, stop in _true_spans(silent_W):
        beside = [run.stop + run.offset for run in runs if abs(run.stop - first * window) <= 2 * window]
        beside += [run.start + run.offset for run in runs if abs(run.start - stop * window) <= 2 * window]
        if stop - first < shortest or not beside:
            continue
        quiet = _true_spans(noise.drowned_W(_raw_energy(signals))) if quiet is None else quiet
        start = _place(quiet, stop - first, beside[0] // window)
        if start is not None:
            found.append(
                Run(first * window, stop * window, (start - first) * window, 1.0, 0.0, kind="silence")
            )
    return sorted(found)


def _raw_energy(signals: Signals) -> np.ndarray:
    """Energy of the raw in windows like the edit's (W,)."""
    window = signals.window_samples
    whole = len(signals.raw_S) // window * window
    raw_WS = signals.raw_S[:whole].reshape(-1, window)
    return np.einsum("ws,ws->w", raw_WS, raw_WS).astype(np.float64)


def _true_spans(mask_W: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask_W.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _place(quiet: list[tuple[int, int]], length: int, wanted: int) -> int | None:
    """Where in the quiet spans a pause of `length` fits nearest to `wanted`."""
    places = [min(max(first, wanted), stop - length) for first, stop in quiet if stop - first >= length]
    return min(places, key=lambda place: abs(place - wanted), default=None)
