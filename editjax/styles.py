"""Editing styles: the log of a session comes in, the segments an editor of that style would keep go out.

*final*, the default: of every section the last complete, unspoiled take, in song order, with its own musical
pauses. The rule is the same everywhere: a segment begins LEAD_IN_S (50 ms) before the first onset of the take
and ends where its sound, room included, has decayed to 40 dB below the take's loudness (at most 1.6 s after
the last note's end). *tight* shortens pauses, *loose* keeps the breath and the dead air around a take,
*radio* drops sections or their ends to reach a length, *extended* repeats phrases to reach one, *produced*
fades, crosses over and processes.
"""

from __future__ import annotations

from itertools import pairwise, product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from editjax.edit_list import Segment

if TYPE_CHECKING:  # which every edit would wait for
    from editjax.session import KeptTake, Timeline

STYLES = ("final", "tight", "loose", "radio", "extended", "produced")
TIGHT_PAUSE_S = 0.35
TIGHT_BEFORE_SHARE = 0.6
"""Share of a shortened pause before the cut: a decay needs longer than the breath before the next note."""
LOOSE_BEFORE_S = 0.8
LOOSE_AFTER_S = 1.2
RADIO_SHARES = (0.5, 0.85)
EXTENDED_SHARES = (1.15, 1.5)
TARGET_TOLERANCE = 0.03
SHORTENED_AT_ONCE = 6
EFFECTS = ("eq", "reverb")
CROSSFADE_HALF_S = (0.4, 1.2)
FADE_S = (2.0, 4.5)


class Edit(NamedTuple):
    """An edit of one session: segments in playing order, the length asked for (None: as it comes).

    `effects` are (start, stop, name) in raw samples: spans that sound processed in the edit.
    """

    segments: tuple[Segment, ...]
    target_length_s: float | None = None
    effects: tuple[tuple[int, int, str], ...] = ()


def edit_of(style: str, timeline: Timeline, rng: np.random.Generator) -> Edit:
    """The edit of a session in a style; raises ValueError for a style there is not."""
    match style:
        case "final":
            return final(timeline)
        case "tight":
            return tight(timeline)
        case "loose":
            return loose(timeline)
        case "radio":
            return radio(timeline, rng)
        case "extended":
            return extended(timeline, rng)
        case "produced":
            return produced(timeline, rng)
        case _:
            raise ValueError(f"unknown style {style!r}: choose from {', '.join(STYLES)}")


def final(timeline: Timeline) -> Edit:
    """Every section's kept take, whole, in song order."""
    return Edit(tuple(_segment(take.start, take.stop) for take in timeline.kept))


def tight(timeline: Timeline) -> Edit:
    """As *final*, with every pause inside a take cut down to TIGHT_PAUSE_S."""
    longest = int(TIGHT_PAUSE_S * timeline.rate_hz)
    segments = []
    for take in timeline.kept:
        start = take.start
        for pause_start, pause_stop in take.pauses:
            if pause_stop - pause_start > longest:
                before = int(TIGHT_BEFORE_SHARE * longest)
                segments.append(_segment(start, pause_start + before))
                start = pause_stop - (longest - before)
        segments.append(_segment(start, take.stop))
    return Edit(tuple(segments))


def loose(timeline: Timeline) -> Edit:
    """As *final*, with up to LOOSE_BEFORE_S of breath and quiet before a take and LOOSE_AFTER_S after."""
    before, after = int(LOOSE_BEFORE_S * timeline.rate_hz), int(LOOSE_AFTER_S * timeline.rate_hz)
    wide = {
        take.section: [take.start - min(before, take.room_before), take.stop + min(after, take.room_after)]
        for take in timeline.kept
    }
    # Two kept takes may share the quiet between them: it goes with the earlier one.
    for earlier, later in pairwise(sorted(wide.values())):
        later[0] = max(later[0], earlier[1])
    spans = [wide[take.section] for take in timeline.kept]
    return Edit(tuple(_segment(start, stop) for start, stop in spans))


def radio(timeline: Timeline, rng: np.random.Generator) -> Edit:
    """A shorter version: whole sections left out, others ended at a phrase, to meet a target length.

    Sections are shortened SHORTENED_AT_ONCE at a time, because every way to do it is tried.
    """
    share, kept = rng.uniform(*RADIO_SHARES), timeline.kept
    groups = (kept[at : at + SHORTENED_AT_ONCE] for at in range(0, len(kept), SHORTENED_AT_ONCE))
    segments = tuple(segment for takes in groups for segment in _shortened(takes, share))
    return Edit(segments, _target_s(segments, timeline, rng))


def _shortened(takes: tuple[KeptTake, ...], share: float) -> tuple[Segment, ...]:
    """Some takes whole, some ended early: about `share` of their length.

    Of all ways within TARGET_TOLERANCE of it the one with the fewest early ends wins, then the one that
    leaves out the latest sections.
    """
    target = sum(take.stop - take.start for take in takes) * share
    starts = tuple(take.start for take in takes)
    choices = [(take.stop, _halfway(take), take.start) for take in takes]

    def cost(stops: tuple[int, ...]) -> tuple[float, int, tuple[bool, ...]]:
        miss = max(0.0, abs((sum(stops) - sum(starts)) / target - 1.0) - TARGET_TOLERANCE)
        early = sum(take.start < stop < take.stop for stop, take in zip(stops, takes, strict=True))
        dropped = tuple(stop == start for stop, start in zip(stops, starts, strict=True))
        return miss, early, dropped

    stops = min((way for way in product(*choices) if way != starts), key=cost)
    return tuple(_segment(a, b) for a, b in zip(starts, stops, strict=True) if b > a)


def extended(timeline: Timeline, rng: np.random.Generator) -> Edit:
    """A longer version: phrases played again, the longest that fits first, to meet a target."""
    natural = sum(take.stop - take.start for take in timeline.kept)
    missing = natural * (rng.uniform(*EXTENDED_SHARES) - 1.0)
    phrases = sorted((b - a, i, a, b) for i, take in enumerate(timeline.kept) for a, b in _phrases(take))
    again: list[list[tuple[int, int]]] = [[] for _ in timeline.kept]
    while phrases and missing > TARGET_TOLERANCE * natural:
        fitting = [phrase for phrase in phrases if phrase[0] <= missing + TARGET_TOLERANCE * natural]
        if not fitting:
            break
        length, index, start, stop = fitting[-1]
        again[index].append((start, stop))
        phrases.remove(fitting[-1])
        missing -= length
    segments: list[Segment] = []
    for take, loops in zip(timeline.kept, again, strict=True):
        segments += _looped(take, sorted(loops))
    return Edit(tuple(segments), _target_s(tuple(segments), timeline, rng))


def produced(timeline: Timeline, rng: np.random.Generator) -> Edit:
    """A mastered version: fades, overlapped sections, a looped phrase, louder and processed spans."""
    looped = int(rng.integers(len(timeline.kept)))
    segments: list[Segment] = []
    for index, take in enumerate(timeline.kept):
        pieces = _looped(take, _some_phrase(take, rng)) if index == looped else _louder_middle(take, rng)
        if segments:
            half = int(rng.uniform(*CROSSFADE_HALF_S) * timeline.rate_hz)
            segments[-1], pieces[0] = _overlapped(segments[-1], pieces[0], half)
        segments += pieces
    fade_in, fade_out = (int(rng.uniform(*FADE_S) * timeline.rate_hz) for _ in range(2))
    segments[0] = segments[0]._replace(fade_in=min(fade_in, _length(segments[0]) // 2))
    segments[-1] = segments[-1]._replace(fade_out=min(fade_out, _length(segments[-1]) // 2))
    return Edit(tuple(segments), None, _processed_spans(timeline, rng))


def _segment(start: int, stop: int, reason: str = "keep") -> Segment:
    return Segment(int(start), int(stop), int(start), int(stop), reason=reason)


def _bounds(take: KeptTake) -> list[int]:
    """Places inside a take where music may be cut: phrase starts, else every second bar line."""
    inner = [int(at) for at in take.phrases if take.start < at < take.stop][1:]
    if not inner:
        inner = [int(at) for at in take.bars[2:-1:2] if take.start < at < take.stop]
    return inner


def _phrases(take: KeptTake) -> list[tuple[int, int]]:
    """Spans between neighbouring bounds, the first from the first bar line on."""
    starts = [int(at) for at in take.bars[:1]]
    return list(pairwise([*starts, *_bounds(take)]))


def _halfway(take: KeptTake) -> int:
    """The bound nearest to the middle of a take, or its end."""
    middle = (take.start + take.stop) / 2
    return min(_bounds(take), key=lambda at: abs(at - middle), default=take.stop)


def _looped(take: KeptTake, loops: list[tuple[int, int]]) -> list[Segment]:
    """A take in which every given span is played twice."""
    segments, start, reason = [], take.start, "keep"
    for loop_start, loop_stop in loops:
        segments.append(_segment(start, loop_stop, reason))
        start, reason = loop_start, "loop"
    return [*segments, _segment(start, take.stop, reason)]


def _some_phrase(take: KeptTake, rng: np.random.Generator) -> list[tuple[int, int]]:
    phrases = _phrases(take)
    return [phrases[rng.integers(len(phrases))]] if phrases else []


def _overlapped(before: Segment, after: Segment, half: int) -> tuple[Segment, Segment]:
    """Two segments whose crossfade is `2 · half` long and plays nothing from beyond their ends."""
    half = min(half, _length(before) // 4, _length(after) // 4)
    stop, start = before.stop - half, after.start + half
    return (
        before._replace(stop=stop, nominal_stop=stop, fade_out=half),
        after._replace(start=start, nominal_start=start, fade_in=half),
    )


def _length(segment: Segment) -> int:
    return segment.stop - segment.start


def _louder_middle(take: KeptTake, rng: np.random.Generator) -> list[Segment]:
    """A take whose middle third, from bar line to bar line, is played at another level."""
    if len(take.bars) < 3:
        return [_segment(take.start, take.stop)]
    third = len(take.bars) // 3
    first, last = int(take.bars[max(1, third)]), int(take.bars[max(2, 2 * third)])
    gain_db = float(np.round(rng.choice((-1.0, 1.0)) * rng.uniform(2.0, 6.0), 1))
    middle = _segment(first, last, "gain")._replace(gain_db=gain_db)
    return [_segment(take.start, first), middle, _segment(last, take.stop)]


def _processed_spans(timeline: Timeline, rng: np.random.Generator) -> tuple[tuple[int, int, str], ...]:
    """A span of bars with an effect in about every second take."""
    spans = []
    for take in timeline.kept:
        if len(take.bars) < 3 or rng.random() < 0.5:
            continue
        first = int(rng.integers(1, len(take.bars) - 1))
        last = min(len(take.bars) - 1, first + max(1, len(take.bars) // 3))
        spans.append((int(take.bars[first]), int(take.bars[last]), str(rng.choice(EFFECTS))))
    return tuple(spans)


def _target_s(segments: tuple[Segment, ...], timeline: Timeline, rng: np.random.Generator) -> float:
    """What the editor was asked for: the length reached, give or take two per cent."""
    length = sum(segment.stop - segment.start for segment in segments)
    return round(float(length / timeline.rate_hz * rng.uniform(0.98, 1.02)), 2)
