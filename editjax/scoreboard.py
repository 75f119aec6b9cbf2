"""Figures of several editors on many edits → means with intervals, a table to read, a tree for JSON.

In come rows, one an editor and edit; NaN is a figure that is not defined there and is left out. Intervals are
95 % percentile bootstraps (Efron 1979).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
DIGITS = 5
EDITING = {
    "kept_iou": "kept IoU",
    "boundary_f1_half_second": "F1 ±0.5 s",
    "boundary_f1_3_frames": "F1 ±3 frames",
    "order_agreement": "order",
    "order_in_common": "order alone",
    "joins_found": "joins",
    "join_target_error_frames": "off by frames",
    "loop_recall": "loops",
    "length_error": "length error",
    "length_mae_frames": "MAE in frames",
    "keep_ratio": "keep ratio",
}
NO_SHARES = ("join_target_error_frames", "length_error", "length_mae_frames", "keep_ratio")
"""Figures of `EDITING` that are not best at 1."""
CUT_KINDS = ("spoiled", "superseded", "false_start", "talk", "noise", "count_in", "silence")
"""Kinds of events in a simulated session that an editor should cut."""

FOUND = {
    "spoiled_takes_found": "spoiled takes",
    **{f"found_{kind}": kind.replace("_", " ") for kind in CUT_KINDS},
}
FORCED = {
    "forced_accuracy": "accuracy",
    "forced_within_5": "within 5",
    "forced_jumps_exact": "jumps exact",
    "forced_jumps_within_5": "jumps within 5",
    "stop_precision": "stop precision",
    "stop_recall": "stop recall",
    "sequence_nll": "nats per event",
}
PLUS_ONE = ("plus_one_accuracy", "plus_one_within_5")
LENGTH = "length_{}_{}"
"""Names of the figures at a wanted length: what multiple of the natural one, then error, met or ending."""


class Row(NamedTuple):
    """The figures of one editor on one edit of a recording."""

    id: str
    recording: str
    style: str
    editor: str
    figures: dict[str, float]


class Estimate(NamedTuple):
    """A mean over `edits` edits with its interval `low` to `high`, and the extremes."""

    mean: float
    low: float
    high: float
    least: float
    most: float
    edits: int


Board = dict[str, dict[str, Estimate]]  # editor → figure → estimate


def boards(rows: Sequence[Row]) -> dict[str, Board]:
    """A board a style, after one of "all" where there are several styles."""
    styles = list(dict.fromkeys(row.style for row in rows))
    groups = {"all": list(rows)} if len(styles) > 1 else {}
    groups |= {style: [row for row in rows if row.style == style] for style in styles}
    return {name: board(group) for name, group in groups.items()}


def board(rows: Sequence[Row]) -> Board:
    """The estimates of each editor, in the order of their first rows."""
    editors = dict.fromkeys(row.editor for row in rows)
    return {editor: estimates([row for row in rows if row.editor == editor]) for editor in editors}


def estimates(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Mean and interval of each figure over the edits where it is defined.

    The bootstrap draws recordings, with all their edits, because edits of one recording are not independent;
    it draws the same ones every time.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    numbers: dict[str, int] = {}
    recording_R = np.array([numbers.setdefault(row.recording, len(numbers)) for row in rows])
    count = len(numbers)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weight_XR = drawn[:, recording_R].astype(np.float64)
    return {
        name: _estimate(np.array([row.figures.get(name, math.nan) for row in rows]), weight_XR)
        for name in names
    }


def for_people(by_style: Mapping[str, Board]) -> str:
    """Tables of means: the edits, what was found of what had to be cut, and the likelihood's view."""
    blocks = []
    for style, editors in by_style.items():
        edits = max(figure.edits for figures in editors.values() for figure in figures.values())
        blocks += [f"style {style}, {edits} edits", _table("", editors, EDITING)]
        if _known(editors, FOUND):
            blocks.append(_table("cut that was found", editors, FOUND))
        forced = {name: figures for name, figures in editors.items() if "sequence_nll" in figures}
        if forced:
            blocks.append(_table("after the true history", _with_plus_one(forced), FORCED))
        blocks += [_length_table(figures) for figures in editors.values() if wanted_lengths(figures)]
    return "\n".join(blocks)


def wanted_lengths(figures: Mapping[str, Any]) -> list[str]:
    """The lengths, as multiples of the natural one, that an editor was asked for."""
    return [match[1] for name in figures if (match := re.fullmatch(LENGTH.format("(.+)", "error"), name))]


def for_programs(rows: Sequence[Row], by_style: Mapping[str, Board]) -> dict[str, Any]:
    """The same as a tree for JSON, with every row; NaN is null."""
    return {
        "estimates": {
            style: {
                editor: {
                    figure: dict(zip(Estimate._fields, map(plain, estimate), strict=True))
                    for figure, estimate in figures.items()
                }
                for editor, figures in editors.items()
            }
            for style, editors in by_style.items()
        },
        "edits": [
            {**row._asdict(), "figures": {name: plain(value) for name, value in row.figures.items()}}
            for row in rows
        ],
    }


def for_picture(editors: Board) -> dict[str, dict[str, float]]:
    """The figures of which 1 is best, by editor and name: what `picture.draw_scores` draws."""
    shown = {name: label for name, label in EDITING.items() if name not in NO_SHARES}
    shown["spoiled_takes_found"] = "spoiled takes found"
    known = {name: label for name, label in shown.items() if _known(editors, {name: label})}
    return {
        editor: {label: figures[name].mean for name, label in known.items()}
        for editor, figures in editors.items()
    }


def plain(value: float) -> float | None:
    """A number as JSON has it: few digits, None for NaN."""
    return round(value, DIGITS) if math.isfinite(value) else None


def _estimate(value_R: np.ndarray, weight_XR: np.ndarray) -> Estimate:
    known_R = np.isfinite(value_R)
    if not known_R.any():
        return Estimate(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    value_K, weight_XK = value_R[known_R], weight_XR[:, known_R]
    total_X = weight_XK.sum(1)
    drawn = total_X > 0  # a resample may hold none of the edits that have this figure
    low, high = np.quantile((weight_XK[drawn] @ value_K) / total_X[drawn], (0.025, 0.975))
    extremes = float(value_K.min()), float(value_K.max())
    return Estimate(float(value_K.mean()), float(low), float(high), *extremes, len(value_K))


def _with_plus_one(editors: Board) -> Board:
    """The models, and the `+1` baseline as an editor of its own."""
    figures = next(iter(editors.values()))
    own = {name: figures[plus_one] for name, plus_one in zip(FORCED, PLUS_ONE, strict=False)}
    return {**editors, "previous + 1": own}


def _length_table(figures: Mapping[str, Estimate]) -> str:
    """What became of wanted lengths: a length a row."""
    cells = [["wanted length", "mean error", "largest error", "within 5 %", "ending kept"]]
    for times in wanted_lengths(figures):
        error, met, ending = (figures[LENGTH.format(times, what)] for what in ("error", "met", "ending"))
        cells.append([f"× {times}", *map(_number, (error.mean, error.most, met.mean, ending.mean))])
    return _lines(cells)


def _known(editors: Board, columns: Mapping[str, str]) -> bool:
    return any(figures[name].edits for figures in editors.values() for name in columns if name in figures)


def _table(title: str, editors: Board, columns: Mapping[str, str]) -> str:
    """Editors down, the figures that any of them has across."""
    shown = [name for name in columns if _known(editors, {name: ""})]
    cells = [[title, *(columns[name] for name in shown)]]
    for editor, figures in editors.items():
        cells.append([editor, *(_shown(figures.get(name)) for name in shown)])
    return _lines(cells)


def _lines(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *rest in cells:
        line = [first.ljust(widths[0])]
        line += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  " + "  ".join(line).rstrip())
    return "\n".join(lines)


def _shown(estimate: Estimate | None) -> str:
    return _number(estimate.mean if estimate else math.nan)


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
