"""An edit as operations, step by step: COPY, LOOP, REORDER, CUT, FADE_IN, FADE_OUT, TRANSITION.

In comes an `EditList`, out go its operations, or their JSON; and back, without loss. Positions are nominal
samples: where the editor put the cuts, before joins were moved by milliseconds.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editjax.edit_list import (
    VERSION,
    EditList,
    Segment,
    Source,
    integer,
    number,
    parse_edits,
    parse_source,
    read_tree,
    refuse_unknown,
    source_tree,
)
from editjax.edits import cut_spans
from editjax.errors import DataError
from editjax.events import named_after

FORMAT = "editjax.operations"
PLAYS = ("COPY", "LOOP", "REORDER")
KINDS = (*PLAYS, "CUT", "FADE_IN", "FADE_OUT", "TRANSITION")
RANK = {"CUT": 0, "TRANSITION": 1, "COPY": 2, "LOOP": 2, "REORDER": 2, "FADE_IN": 3, "FADE_OUT": 3}
"""The order of operations that begin at the same output sample."""

SECONDS = ("start_s", "stop_s", "at_s")


class Operation(NamedTuple):
    """One step of an edit: `kind` acts on source samples [start, stop) at output sample `at`.

    COPY plays new material, LOOP plays what was heard before, REORDER plays new material from before the
    furthest point reached. CUT is never played; `at` is where it would have followed, `reason` what was heard
    there (`editor["heard"]`). FADE_IN and FADE_OUT
    span the fade. A TRANSITION leaves the source at `start` and enters it at `stop`, fading out and in over
    `fade_out` and `fade_in` samples.

    What is played says which segment it is of, with that one's gain, score and reason; `moved_start` and
    `moved_stop` are how far the segment's ends were moved to make the joins inaudible.
    """

    kind: str
    start: int
    stop: int
    at: int
    segment: int | None = None
    moved_start: int = 0
    moved_stop: int = 0
    gain_db: float = 0.0
    score: float | None = None
    reason: str = ""
    fade_out: int = 0
    fade_in: int = 0


def operations(edit_list: EditList) -> list[Operation]:
    """The edit as operations in output order: a view, `from_operations` inverts it."""
    steps = [*_plays(edit_list), *_cuts(edit_list), *_fades(edit_list)]
    return sorted(steps, key=lambda step: (step.at, RANK[step.kind]))


def from_operations(
    steps: Iterable[Operation], source: Source, editor: dict[str, Any] | None = None
) -> EditList:
    """The edit list whose `operations` are `steps`, played in the order of their `at`.

    Contiguous ones of one segment, or of none, are one segment. CUT follows from what is not played.
    Raises DataError for a fade or transition where no segment begins or ends.
    """
    steps = sorted(steps, key=lambda step: step.at)
    segments: list[Segment] = []
    starts: dict[int, int] = {}  # output sample → the segment that begins there
    stops: dict[int, int] = {}
    for run in _runs([step for step in steps if step.kind in PLAYS]):
        first, last = run[0], run[-1]
        starts[first.at] = stops[last.at + last.stop - last.start] = len(segments)
        span = (first.start + first.moved_start, last.stop + last.moved_stop, first.start, last.stop)
        segments.append(Segment(*span, 0, 0, first.gain_db, first.score, first.reason))
    for step in steps:
        length = step.stop - step.start
        if step.kind in ("FADE_OUT", "TRANSITION"):
            faded, at = (length, step.at + length) if step.kind == "FADE_OUT" else (step.fade_out, step.at)
            index = _met(stops, step, at, "ends")
            segments[index] = segments[index]._replace(fade_out=faded)
        if step.kind in ("FADE_IN", "TRANSITION"):
            index = _met(starts, step, step.at, "begins")
            segments[index] = segments[index]._replace(
                fade_in=length if step.kind == "FADE_IN" else step.fade_in
            )
    return EditList(source, tuple(segments), dict(editor or {}))


def operations_tree(edit_list: EditList) -> dict[str, Any]:
    """The operations as JSON holds them, with all that `read_edit` needs; times are in seconds too."""
    rate, usual = edit_list.source.sample_rate, Operation._field_defaults
    rows = []
    for step in operations(edit_list):
        row = {k: value for k, value in step._asdict().items() if k not in usual or value != usual[k]}
        rows.append(row | {key: round(row[key.removesuffix("_s")] / rate, 6) for key in SECONDS})
    return {
        "format": FORMAT,
        "version": VERSION,
        **source_tree(edit_list.source),
        "operations": rows,
        "editor": edit_list.editor,
    }


def read_edit(path: str | Path) -> EditList:
    """An edit list from its own file or from its operations (`operations_tree`): what `--as-ops --json` says.

    Of operations the samples count, not the seconds beside them. Raises as `read_edits` does.
    """
    tree, name = read_tree(path), str(path)
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        return parse_edits(tree, name)
    source, rows, editor = parse_source(tree, name), tree.get("operations"), tree.get("editor", {})
    if not isinstance(rows, list):
        raise DataError(f"{name}: operations is {type(rows).__name__}; give a list of operations")
    steps = [_parse_operation(row, source, f"operations[{i}]", name) for i, row in enumerate(rows)]
    try:
        edit_list = from_operations(steps, source, editor if isinstance(editor, dict) else {})
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    segments = [segment._asdict() for segment in edit_list.segments]
    checked = {"format": "editjax.edits", "version": tree.get("version"), "editor": editor}
    return parse_edits({**checked, **source_tree(source), "segments": segments}, name)


def _parse_operation(row: Any, source: Source, where: str, name: str) -> Operation:
    if not isinstance(row, dict):
        raise DataError(f"{name}: {where} is {type(row).__name__}; give an object with kind, start and stop")
    refuse_unknown(row, (*Operation._fields, *SECONDS), where, name)
    kind = row.get("kind")
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind).upper(), KINDS, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(KINDS)}"
        raise DataError(f"{name}: {where}.kind is {reprlib.repr(kind)}; {remedy}")
    longest = 2 * source.frames  # a fade may reach beyond what is nominally played
    start = integer(row, "start", where, name, low=-longest, high=longest)
    low = -longest if kind == "TRANSITION" else start + 1
    stop = integer(row, "stop", where, name, low=low, high=longest)
    at = integer(row, "at", where, name, low=-longest)
    reason = row.get("reason", "")
    if not isinstance(reason, str):
        raise DataError(f"{name}: {where}.reason is {reprlib.repr(reason)}; give a text")
    return Operation(
        kind,
        start,
        stop,
        at,
        None if row.get("segment") is None else integer(row, "segment", where, name, low=0),
        integer(row, "moved_start", where, name, low=-longest, default=0),
        integer(row, "moved_stop", where, name, low=-longest, default=0),
        number(row, "gain_db", where, name, default=0.0),
        None if row.get("score") is None else number(row, "score", where, name, default=0.0),
        reason,
        integer(row, "fade_out", where, name, low=0, default=0),
        integer(row, "fade_in", where, name, low=0, default=0),
    )


def _runs(plays: list[Operation]) -> Iterator[list[Operation]]:
    """Operations that are one segment: contiguous in the source, of the same segment or of none."""
    number = 0
    numbers = [0] * len(plays)
    for i, (before, step) in enumerate(pairwise(plays), 1):
        number += before.stop != step.start or before.segment != step.segment
        numbers[i] = number
    for _, run in groupby(zip(numbers, plays, strict=True), key=lambda pair: pair[0]):
        yield [step for _, step in run]


def _met(ends: dict[int, int], step: Operation, at: int, what: str) -> int:
    """The segment that a fade belongs to."""
    if at not in ends:
        raise DataError(
            f"a {step.kind} is at output sample {at}, where nothing that is played {what}; move it"
        )
    return ends[at]


def _plays(edit_list: EditList) -> list[Operation]:
    """COPY, LOOP and REORDER: each segment split where what it plays begins or ceases to be heard before."""
    spans = [(segment.nominal_start, segment.nominal_stop) for segment in edit_list.segments]
    edges = sorted({edge for span in spans for edge in span})
    index = {edge: i for i, edge in enumerate(edges)}
    heard = np.zeros(len(edges), bool)
    plays, at, furthest = [], 0, 0
    for place, (segment, (start, stop)) in enumerate(zip(edit_list.segments, spans, strict=True)):
        first, last = index[start], index[stop]
        pieces = heard[first:last]
        turns = [0, *(np.flatnonzero(pieces[1:] != pieces[:-1]) + 1).tolist(), last - first]
        for left, right in pairwise(turns):
            a, b = edges[first + left], edges[first + right]
            kind = "LOOP" if pieces[left] else "REORDER" if a < furthest else "COPY"
            moved_start = segment.start - start if a == start else 0
            moved_stop = segment.stop - stop if b == stop else 0
            step = Operation(kind, a, b, at + a - start, place, moved_start, moved_stop)
            plays.append(step._replace(gain_db=segment.gain_db, score=segment.score, reason=segment.reason))
            furthest = max(furthest, b)
        heard[first:last] = True
        at += stop - start
    return plays


def _cuts(edit_list: EditList) -> list[Operation]:
    nominal = edit_list._replace(
        segments=tuple(s._replace(start=s.nominal_start, stop=s.nominal_stop) for s in edit_list.segments)
    )
    ends: dict[int, int] = {0: 0}
    at = 0
    for segment in nominal.segments:
        at += segment.stop - segment.start
        ends.setdefault(segment.stop, at)
    heard = edit_list.editor.get("heard")
    return [
        Operation("CUT", start, stop, ends[start], reason=named_after(heard, start, stop))
        for start, stop in cut_spans(nominal)
    ]


def _fades(edit_list: EditList) -> list[Operation]:
    fades, at, fading = [], 0, False
    segments = edit_list.segments
    for i, segment in enumerate(segments):
        following = segments[i + 1] if i + 1 < len(segments) else None
        start, stop = segment.nominal_start, segment.nominal_stop
        if segment.fade_in and not fading:
            fades.append(Operation("FADE_IN", start, start + segment.fade_in, at))
        at += stop - start
        fading = bool(segment.fade_out and following and following.fade_in)
        if fading and following:
            leap = Operation("TRANSITION", stop, following.nominal_start, at)
            fades.append(leap._replace(fade_out=segment.fade_out, fade_in=following.fade_in))
        elif segment.fade_out:
            fades.append(Operation("FADE_OUT", stop - segment.fade_out, stop, at - segment.fade_out))
    return fades
