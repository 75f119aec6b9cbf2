"""What a user asks of an edit afterwards: keep this, cut that, more margin, no scraps, shorter pauses.

In comes an `EditList` and the user's wish, out goes another `EditList`; times are written as people write
them (`90`, `90s`, `1:30.5`, `start`, `end`, `-10`). Adjust before joins are placed: new edges are nominal
edges. The editor's `unaligned` notes count segments and are dropped, for segments change.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from editjax.beats import snap_to
from editjax.edits import EditList, Segment, cut_spans
from editjax.errors import UsageError

Span = tuple[int, int]

_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?|\.\d+)")
_UNITS_S = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_time(text: str, duration_s: float) -> float:
    """Seconds from the start of a recording of `duration_s`.

    Understands `90`, `90s`, `1.5m`, `500ms`, `1:30.5`, `1:02:03`, `start`, `end`, and any of the figures with
    a minus sign for a time before the end. Times beyond the end mean the end. Raises UsageError if it reads
    as no time or lies before the start.
    """
    word = text.strip().lower()
    if word in ("start", "end"):
        return 0.0 if word == "start" else duration_s
    from_end = word.startswith("-")
    amount_s = parse_length(word.removeprefix("-"), text)
    if from_end and amount_s > duration_s:
        raise UsageError(
            f"time {text!r}: lies before the start of the recording, which lasts {duration_s:.3f} s"
        )
    return duration_s - amount_s if from_end else min(amount_s, duration_s)


def parse_length(text: str, shown: str | None = None) -> float:
    """Seconds of a length such as `0.2`, `200ms`, `2:30`; raises UsageError if it reads as none."""
    word = text.strip().lower()
    number = word.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = word[len(number) :].strip()
    match = _CLOCK.fullmatch(number)
    if match is None or unit not in _UNITS_S or (":" in number and unit):
        raise UsageError(
            f"time {shown or text!r}: not understood; write 90, 90s, 500ms, 1:30.5, start, end or -10"
        )
    hours, minutes, seconds = match.groups()
    return (int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds)) * _UNITS_S[unit]


def parse_ranges(
    texts: Iterable[str], duration_s: float, ignore_beyond: bool = False
) -> list[tuple[float, float]]:
    """Ranges in seconds from texts such as `1:00,1:30`; one text may hold several pairs.

    Raises UsageError if a text has an odd number of times, a range does not end after it starts or, unless
    `ignore_beyond`, begins after the recording's end.
    """
    ranges = []
    for text in texts:
        times = text.split(",")
        if len(times) % 2:
            raise UsageError(f"range {text!r}: give pairs of times, as in 1:00,1:30")
        for first, last in zip(times[::2], times[1::2], strict=True):
            start_s, stop_s = parse_time(first, duration_s), parse_time(last, duration_s)
            if start_s == stop_s == duration_s:
                if ignore_beyond:
                    continue
                raise UsageError(
                    f"range {first},{last}: begins after the recording's end, which is at {duration_s:.3f} s"
                )
            if start_s >= stop_s:
                raise UsageError(
                    f"range {first},{last}: ends at {stop_s:.3f} s, before it starts; swap the times"
                )
            ranges.append((start_s, stop_s))
    return ranges


def parse_margin(text: str) -> tuple[float, float]:
    """Seconds before and after from `0.2`, `100ms,300ms` or, to trim instead, `-0.1`."""
    parts = text.split(",")
    if len(parts) > 2:
        raise UsageError(f"margin {text!r}: give BEFORE or BEFORE,AFTER, as in 0.2,0.5")
    sides = [
        -parse_length(part.strip()[1:], text) if part.strip()[:1] == "-" else parse_length(part)
        for part in parts
    ]
    return sides[0], sides[-1]


def cut_ranges(edit_list: EditList, ranges_s: Sequence[tuple[float, float]]) -> EditList:
    """The edit without the source seconds in `ranges_s`, wherever it played them."""
    cuts = _merged(_in_samples(edit_list, ranges_s))
    pieces = [
        _piece(segment, start, stop)
        for segment in edit_list.segments
        for start, stop in _outside((segment.start, segment.stop), cuts)
    ]
    return _with(edit_list, pieces)


def keep_ranges(edit_list: EditList, ranges_s: Sequence[tuple[float, float]]) -> EditList:
    """The edit with every source second in `ranges_s` heard at least once.

    What was cut comes back after the last playing of the material before it, or before the first playing of
    the material after it, and is one segment with a neighbour it continues.
    """
    missing = [
        span
        for wanted in _in_samples(edit_list, ranges_s)
        for span in _overlaps(wanted, cut_spans(edit_list))
    ]
    segments = list(edit_list.segments)
    for start, stop in _merged(missing):
        segments.insert(_place(segments, start), Segment(start, stop, start, stop, reason="kept by request"))
    return _with(edit_list, _joined(segments))


def with_margin(edit_list: EditList, before_s: float, after_s: float) -> EditList:
    """The edit with more (or, negative, less) of what was cut, before and after each cut.

    `before_s` moves segment starts, `after_s` segment ends, at most over the whole cut: then the two sides
    become one segment. Joins that jump back (loops, reorders) keep their musical length.
    """
    rate = edit_list.source.sample_rate
    before, after = round(before_s * rate), round(after_s * rate)
    cuts = cut_spans(edit_list)
    gap_before, gap_after = (
        {stop: stop - start for start, stop in cuts},
        {start: stop - start for start, stop in cuts},
    )
    segments, moved = edit_list.segments, []
    goes_on = [
        segment.stop in gap_after and (i + 1 == len(segments) or segments[i + 1].start >= segment.stop)
        for i, segment in enumerate(segments)
    ]
    # Of a gap, its end may have what its start leaves: what is heard on both sides would be heard twice.
    taken = {
        segment.stop + gap_after[segment.stop]: max(0, min(after, gap_after[segment.stop]))
        for segment, on in zip(segments, goes_on, strict=True)
        if on
    }
    for i, segment in enumerate(segments):
        start, stop = segment.start, segment.stop
        if start in gap_before and (i == 0 or segments[i - 1].stop <= start):
            start -= min(before, gap_before[start] - taken.get(start, 0))
        if goes_on[i]:
            stop += min(after, gap_after[stop])
        if start < stop:
            moved.append(_piece(segment, start, stop))
    return _with(edit_list, _joined(moved))


def without_short_clips(edit_list: EditList, min_clip_s: float) -> EditList:
    """The edit without segments shorter than `min_clip_s`."""
    shortest = min_clip_s * edit_list.source.sample_rate
    return _with(
        edit_list, [segment for segment in edit_list.segments if segment.stop - segment.start >= shortest]
    )


def snap_joins(edit_list: EditList, positions: np.ndarray) -> EditList:
    """The edit with every edge of a clip moved to the nearest of `positions` (ascending source samples).

    The recording's own start and end stay, and so do a clip that would vanish and the edges that would move
    to where it vanishes: the order of all edges stays as it is, so that nothing is repeated.
    """
    edges_N2 = np.array([(segment.start, segment.stop) for segment in edit_list.segments]).reshape(-1, 2)
    snapped_N2 = snap_to(positions, edges_N2)
    ends_N2 = (edges_N2 == 0) | (edges_N2 == edit_list.source.frames)
    snapped_N2 = np.where(ends_N2, edges_N2, snapped_N2)
    crowded = snapped_N2[snapped_N2[:, 0] == snapped_N2[:, 1], 0]
    snapped_N2 = np.where(np.isin(snapped_N2, crowded), edges_N2, snapped_N2).tolist()
    pieces = [_piece(segment, *span) for segment, span in zip(edit_list.segments, snapped_N2, strict=True)]
    return _with(edit_list, _joined(pieces))


def limit_pauses(edit_list: EditList, pauses: Sequence[Span], max_pause_s: float) -> EditList:
    """The edit with the middle of long pauses taken out, so that none lasts longer than `max_pause_s`.

    `pauses` are spans of source samples (see `silence.quiet_spans`). A pause heard across a join counts as
    one.
    """
    longest = round(max_pause_s * edit_list.source.sample_rate)
    pieces = _cut_at_pauses(edit_list.segments, _merged(pauses))
    kept: list[Segment] = []
    i = 0
    while i < len(pieces):
        j = i + 1
        if pieces[i].quiet:
            while j < len(pieces) and pieces[j].quiet:
                j += 1
        run = [piece.segment for piece in pieces[i:j]]
        kept += _shortened(run, longest) if pieces[i].quiet else run
        i = j
    return _with(edit_list, _joined(kept))


class _Heard(NamedTuple):
    """A piece of a segment that is all pause or all sound."""

    segment: Segment
    quiet: bool


def _cut_at_pauses(segments: Sequence[Segment], pauses: list[Span]) -> list[_Heard]:
    pieces = []
    for segment in segments:
        span = (segment.start, segment.stop)
        parts = [(part, True) for part in _overlaps(span, pauses)] + [
            (part, False) for part in _outside(span, pauses)
        ]
        pieces += [_Heard(_piece(segment, *part), quiet) for part, quiet in sorted(parts)]
    return pieces


def _shortened(run: list[Segment], longest: int) -> list[Segment]:
    """The first and last half of `longest` samples of consecutive segments, all of them if they are
    shorter."""
    total = sum(segment.stop - segment.start for segment in run)
    if total <= longest:
        return run
    head, tail = longest // 2, total - (longest - longest // 2)
    kept, at = [], 0
    for segment in run:
        length = segment.stop - segment.start
        for left, right in ((at, min(at + length, head)), (max(at, tail), at + length)):
            if left < right:
                kept.append(_piece(segment, segment.start + left - at, segment.start + right - at))
        at += length
    return kept


def _in_samples(edit_list: EditList, ranges_s: Sequence[tuple[float, float]]) -> list[Span]:
    source = edit_list.source
    spans = [
        (round(start_s * source.sample_rate), round(stop_s * source.sample_rate))
        for start_s, stop_s in ranges_s
    ]
    return [(max(0, start), min(stop, source.frames)) for start, stop in spans]


def _with(edit_list: EditList, segments: Sequence[Segment]) -> EditList:
    editor = {key: value for key, value in edit_list.editor.items() if key != "unaligned"}
    return EditList(edit_list.source, tuple(segments), editor)


def _piece(segment: Segment, start: int, stop: int) -> Segment:
    """A segment moved to [start, stop): nominal edges and fades stay where an edge stays, and go where it
    moves."""
    length = stop - start
    same_start, same_stop = start == segment.start, stop == segment.stop
    return segment._replace(
        start=start,
        stop=stop,
        nominal_start=segment.nominal_start if same_start else start,
        nominal_stop=segment.nominal_stop if same_stop else stop,
        fade_in=min(segment.fade_in, length) if same_start else 0,
        fade_out=min(segment.fade_out, length) if same_stop else 0,
    )


def _joined(segments: Sequence[Segment]) -> list[Segment]:
    """Consecutive segments that continue each other as one, unless a fade or a change of gain lies
    between."""
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if (
            last
            and last.stop == segment.start
            and last.gain_db == segment.gain_db
            and not (last.fade_out or segment.fade_in)
        ):
            joined[-1] = last._replace(
                stop=segment.stop, nominal_stop=segment.nominal_stop, fade_out=segment.fade_out
            )
        else:
            joined.append(segment)
    return joined


def _place(segments: list[Segment], start: int) -> int:
    """Where to insert source material from `start`: after the last playing of what comes nearest before
    it."""
    before = [(segment.stop, i) for i, segment in enumerate(segments) if segment.stop <= start]
    if before:
        return max(before)[1] + 1
    after = [(segment.start, i) for i, segment in enumerate(segments)]
    return min(after)[1] if after else 0


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        elif start < stop:
            merged.append((start, stop))
    return merged


def _overlaps(span: Span, others: Sequence[Span]) -> list[Span]:
    """What of disjoint ascending `others` lies within `span`."""
    start, stop = span
    first = bisect_right(others, start, key=lambda other: other[1])
    last = bisect_left(others, stop, key=lambda other: other[0])
    return [(max(start, other[0]), min(stop, other[1])) for other in others[first:last]]


def _outside(span: Span, others: Sequence[Span]) -> list[Span]:
    """What is left of `span` outside disjoint ascending `others`."""
    edges = [span[0], *(edge for overlap in _overlaps(span, others) for edge in overlap), span[1]]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]
