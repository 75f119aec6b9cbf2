"""The cheapest way through a chain of units that has a wanted length.

In come the units' edges in frames, what a jump between any two edges costs, and a length; out goes the
cheapest path from the beginning of the first unit to the end of the last. Playing on is free. Dynamic
programming over (edge, length so far) finds it exactly, up to the rounding of lengths to ticks and the best
jumps to each edge that are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

TICKS = 8.0  # length steps in the tolerance
TOO_LONG = 1.06  # lengths up to this part of the wanted one are searched, and up to the whole chain
CLOSEST = 24  # paths whose length is counted in frames


@dataclass(frozen=True)
class Wanted:
    """A length, the relative error that is as good as none (almost: `error_cost` is charged for all of it),
    and how many jumps to each edge are looked at."""

    frames: float
    tolerance: float
    error_cost: float
    candidates: int

    def rank(self, frames: int, cost: float) -> tuple[float, float]:
        """Orders paths: as near as the tolerance first, then cheap."""
        error = abs(frames / self.frames - 1.0)
        return max(error - self.tolerance, 0.0), cost + self.error_cost * error / self.tolerance


class Path(NamedTuple):
    """Spans of edges [start, stop) in playing order, what the jumps between them cost, and the length."""

    spans: list[tuple[int, int]]
    cost: float
    frames: int


def cheapest_path(edge_E: np.ndarray, cost_EE: np.ndarray, wanted: Wanted) -> Path:
    """The best path; playing on from beginning to end is one.

    `edge_E` are E ascending frames; `cost_EE[a, b]` is the price of leaving at edge a and going on at edge b,
    infinite where that is not allowed. Edges, not units, are rounded to ticks: an unbroken run of units has
    no more error than one.
    """
    near_frames = wanted.tolerance * wanted.frames
    tick_frames = min(near_frames / TICKS, float(np.diff(edge_E).min()))
    n_ticks = int(max(TOO_LONG * wanted.frames, edge_E[-1] - edge_E[0]) / tick_frames) + 1
    ticks_U = np.minimum(np.diff(np.floor(edge_E / tick_frames + 0.5)), n_ticks + 1).astype(np.int64)
    table = _shortest(cost_EE, ticks_U, n_ticks, wanted.candidates)
    ends = np.flatnonzero(np.isfinite(table.end_L))
    off_frames = np.abs(ends * tick_frames - wanted.frames)
    score = table.end_L[ends] + wanted.error_cost * off_frames / near_frames
    score[off_frames > near_frames + 2.0 * tick_frames] = np.inf
    cheap, near = (ends[np.argsort(x, kind="stable")[:CLOSEST]] for x in (score, off_frames))
    paths = []
    for tick in np.union1d(cheap, near).tolist():
        spans = _spans(table, ticks_U, tick)
        frames = sum(int(edge_E[stop] - edge_E[start]) for start, stop in spans)
        paths.append(Path(spans, float(table.end_L[tick]), frames))
    return min(paths, key=lambda path: wanted.rank(path.frames, path.cost))


class _Table(NamedTuple):
    """Shortest paths: `end_L` cost of ending after L ticks; `choice_LU` how unit U was reached with L ticks
    played before it, 0 from the unit before, k from edge `leave_UK[:, k − 1]`."""

    end_L: np.ndarray
    choice_LU: np.ndarray
    leave_UK: np.ndarray


def _shortest(cost_EE: np.ndarray, ticks_U: np.ndarray, n_ticks: int, candidates: int) -> _Table:
    """Every unit takes a tick or more, so that lengths are filled in order, all units and jumps at once."""
    n_units, lead = len(ticks_U), int(ticks_U.max())
    leave_UK = np.argsort(cost_EE[:, :n_units].T, axis=1, kind="stable")[:, :candidates]
    price_UK = np.take_along_axis(cost_EE[:, :n_units].T, leave_UK, axis=1)
    unit_U = np.arange(n_units)
    begun_LU = np.full((lead + n_ticks + 1, n_units), np.inf)  # `lead` rows of nothing before the start
    begun_LU[lead, 0] = 0.0
    choice_LU = np.zeros((n_ticks + 1, n_units), np.int16)
    end_L = np.full(n_ticks + 1, np.inf)
    reached_E = np.full(n_units + 1, np.inf)
    for tick in range(1, n_ticks + 1):
        reached_E[1:] = begun_LU[lead + tick - ticks_U, unit_U]
        end_L[tick] = reached_E[-1]
        jump_UK = reached_E[leave_UK] + price_UK
        pick_U = jump_UK.argmin(axis=1)
        jumped_U = jump_UK[unit_U, pick_U]
        better_U = jumped_U < reached_E[:-1]
        begun_LU[lead + tick] = np.where(better_U, jumped_U, reached_E[:-1])
        choice_LU[tick] = np.where(better_U, pick_U + 1, 0)
    return _Table(end_L, choice_LU, leave_UK)


def _spans(table: _Table, ticks_U: np.ndarray, tick: int) -> list[tuple[int, int]]:
    """The path that ends after `tick` ticks."""
    unit = stop = len(ticks_U)
    spans: list[tuple[int, int]] = []
    while tick:
        unit -= 1
        tick -= int(ticks_U[unit])
        pick = int(table.choice_LU[tick, unit])
        if pick or not tick:
            spans.append((unit, stop))
        if pick:
            unit = stop = int(table.leave_UK[unit, pick - 1])
    return spans[::-1]
