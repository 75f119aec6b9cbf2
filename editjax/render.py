"""The edit list played: original samples, faded into one another only where pieces meet.

Comes in: a recording (`audio.Reader`) and an edit list. Goes out: its samples in the recording's own number
type, Σ(stop − start) of them, block by block: outside fades and gains they are the source's, bit for bit.

At a join the crossfade is centred on the cut and borrows handles from beyond it (material that is not played
otherwise), so that it costs no length. Segments contiguous in the source, with equal gain and no fades, have
no join at all. Memory: one block, whatever the length of the recording or of the edit.

The tracks of a sum (`tracks.Mix`) are played alike, each at the fades that suit the sum: they add up to the
rendered sum.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from editjax.audio import BLOCK_SAMPLES, Reader, Writer
from editjax.crossfade import (
    DEFAULT_SETTINGS,
    LONGEST_FACTOR,
    Cut,
    Fade,
    Join,
    Meeting,
    Quantum,
    RenderSettings,
    Room,
    best_fade,
    crossfade,
    fade_in_gains,
    join,
    largest_steps,
)
from editjax.edit_list import EditList, Segment
from editjax.edits import cut_spans, duration_samples
from editjax.formats import INTEGER_BITS, output_format, to_float
from editjax.joins import check_fits, place_joins
from editjax.tracks import Mix

__all__ = [
    "RenderSettings", "faded_spans", "join_instants", "largest_join_step_ratio", "place_joins",
    "preview_joins", "render", "render_blocks", "render_tracks", "write_removed",
]  # fmt: skip

PREVIEW_S = 2.0
SIDE_S = 0.05
"""How much of either side a join is measured against."""


class _Piece(NamedTuple):
    """A run of contiguous segments: source samples [start, stop) at one gain, with fades at its ends."""

    start: int
    stop: int
    gain_db: float
    fade_in: int
    fade_out: int


class _Scale(NamedTuple):
    """The settings in samples of one recording: crossfade to either side, edge fades, measured sides.

    `grid` is what joins are judged by: the recording's own, or for a sum what the rounding of its tracks can
    make of it.
    """

    reach: Room
    edge: int
    side: int
    grid: Quantum

    @property
    def most(self) -> Room:
        """The furthest a crossfade ever reaches."""
        return Room(LONGEST_FACTOR * self.reach.before, LONGEST_FACTOR * self.reach.after)


def render(
    edit_list: EditList,
    reader: Reader,
    writer: Writer | None = None,
    settings: RenderSettings = DEFAULT_SETTINGS,
) -> np.ndarray | None:
    """Plays an edit list into `writer`, or returns its samples (S, C) in the reader's dtype without one.

    Raises DataError when the edit list does not fit the recording, and what reading and writing raise.
    """
    return _take(render_blocks(edit_list, reader, settings), duration_samples(edit_list), reader, writer)


def render_tracks(
    edit_list: EditList,
    mix: Mix,
    writers: Sequence[Writer | None],
    settings: RenderSettings = DEFAULT_SETTINGS,
) -> list[np.ndarray | None]:
    """Plays an edit list of a sum on every track: as `render`, once a track, in the order of `mix.tracks`.

    The fades are chosen once, on the sum, and are the same for all. So the rendered tracks add up to the
    rendered sum, except that a track of integers rounds inside fades and gains (by at most half a step) and
    saturates where a gain makes it louder than its number type holds.
    """
    check_fits(edit_list, mix)
    pieces, scale, length = _pieces(edit_list), _scale(mix, settings), duration_samples(edit_list)
    fades = [_fade(*place, mix, scale) for place in _joins(pieces, mix.frames, scale)]
    return [
        _take(_play(pieces, track, scale, fades), length, track, writer)
        for track, writer in zip(mix.tracks, writers, strict=True)
    ]


def render_blocks(
    edit_list: EditList, reader: Reader, settings: RenderSettings = DEFAULT_SETTINGS
) -> Iterator[np.ndarray]:
    """The edit in order as (S, C) blocks in the reader's dtype; the edit list is checked before the first."""
    check_fits(edit_list, reader)
    return _play(_pieces(edit_list), reader, _scale(reader, settings))


def faded_spans(
    edit_list: EditList, reader: Reader, settings: RenderSettings = DEFAULT_SETTINGS
) -> list[tuple[int, int]]:
    """Output samples [start, stop) that hold a fade; all others are the source's own (times their gain)."""
    check_fits(edit_list, reader)
    pieces, at, spans = _pieces(edit_list), 0, []
    lengths = [0, *(piece.stop - piece.start for piece in pieces)]
    for length, seam in zip(lengths, _seams(pieces, reader, _scale(reader, settings)), strict=False):
        at += length
        spans.append((at - seam.before, at + seam.after))
    return [span for span in spans if span[0] < span[1]]


def join_instants(edit_list: EditList) -> list[int]:
    """The output samples at which two pieces meet that are not contiguous in the source."""
    lengths = [piece.stop - piece.start for piece in _pieces(edit_list)]
    return np.cumsum(lengths[:-1], dtype=int).tolist()


def largest_join_step_ratio(
    rendered_SC: np.ndarray, edit_list: EditList, reader: Reader, settings: RenderSettings = DEFAULT_SETTINGS
) -> float:
    """The largest sample-to-sample step inside any join, as a multiple of the largest beside it.

    Inside is what the crossfade can reach (`crossfade_ms` or the segments' own fades) on either side of the
    instant; beside is the source within 50 ms before the outgoing piece's stop and after the incoming one's
    start, at their gains. Channels count one by one. At most STEP_LIMIT (1.1) is no click. The sides count
    at least the two quanta that rounding alone can make.
    """
    pieces, scale, worst = _pieces(edit_list), _scale(reader, settings), 0.0
    bounds = np.cumsum([0, *(piece.stop - piece.start for piece in pieces)])
    for index in range(len(pieces) - 1):
        before, after = pieces[index], pieces[index + 1]
        reach = Room(max(scale.most.before, before.fade_out), max(scale.most.after, after.fade_in))
        first, instant, last = bounds[index : index + 3].tolist()
        inside = slice(max(first, instant - reach.before - 1), min(last, instant + reach.after + 1))
        outgoing, incoming, _ = _around(reader, before, after, Room(0, 0), scale.side)
        beside_C = np.maximum(largest_steps(outgoing.samples_SC), largest_steps(incoming.samples_SC))
        beside_C = np.maximum(beside_C, scale.grid.smallest_step)
        worst = max(worst, float((largest_steps(rendered_SC[inside]) / beside_C).max()))
    return worst


def preview_joins(
    edit_list: EditList,
    reader: Reader,
    folder: Path,
    settings: RenderSettings = DEFAULT_SETTINGS,
) -> list[Path]:
    """Writes what is heard PREVIEW_S before and after each join as `join_001_at_12.34s.wav` and so on."""
    info = reader.info
    span, paths = round(PREVIEW_S * info.sample_rate_hz), []
    for number, instant in enumerate(join_instants(edit_list), 1):
        path = folder / f"join_{number:03d}_at_{instant / info.sample_rate_hz:.2f}s.wav"
        container, subtype = output_format(info, path)
        excerpt = _excerpt(edit_list, instant - span, instant + span)
        with Writer(
            path, sample_rate_hz=info.sample_rate_hz, channels=info.channels, container=container,
            subtype=subtype, inputs=[info.path],
        ) as writer:  # fmt: skip
            render(excerpt, reader, writer, settings)
        paths.append(path)
    return paths


def write_removed(
    edit_list: EditList, reader: Reader, writer: Writer, settings: RenderSettings = DEFAULT_SETTINGS
) -> None:
    """Writes what the edit leaves out (`edits.cut_spans`) in the recording's order, joined like an edit."""
    spans = tuple(Segment(start, stop, start, stop) for start, stop in cut_spans(edit_list))
    render(edit_list._replace(segments=spans), reader, writer, settings)


def _take(
    blocks: Iterator[np.ndarray], length: int, reader: Reader, writer: Writer | None
) -> np.ndarray | None:
    """Writes blocks, or returns them as one array (length, C) without a writer."""
    if writer is not None:
        for samples_SC in blocks:
            writer.write(samples_SC)
        return None
    rendered_SC, at = np.empty((length, reader.info.channels), reader.dtype), 0
    for samples_SC in blocks:
        rendered_SC[at : at + len(samples_SC)] = samples_SC
        at += len(samples_SC)
    return rendered_SC


def _play(
    pieces: list[_Piece], reader: Reader, scale: _Scale, fades: Sequence[Fade] | None = None
) -> Iterator[np.ndarray]:
    seams = _seams(pieces, reader, scale, fades)
    opened, grid = next(seams, None), _grid(reader)
    if opened is None:
        return
    if len(opened.samples_SC):
        yield opened.samples_SC.astype(reader.dtype)
    for piece, closing in zip(pieces, seams, strict=True):
        yield from _copy(piece, piece.start + opened.after, piece.stop - closing.before, reader, grid)
        if len(closing.samples_SC):
            yield closing.samples_SC.astype(reader.dtype)
        opened = closing


def _copy(piece: _Piece, start: int, stop: int, reader: Reader, grid: Quantum) -> Iterator[np.ndarray]:
    """Source samples [start, stop) untouched, or rounded after the piece's gain."""
    for first in range(start, stop, BLOCK_SAMPLES):
        samples_SC = reader.read(first, min(first + BLOCK_SAMPLES, stop))
        if piece.gain_db:
            samples_SC = grid.round(samples_SC * _gain(piece)).astype(reader.dtype)
        yield samples_SC


def _seams(
    pieces: list[_Piece], reader: Reader, scale: _Scale, fades: Sequence[Fade] | None = None
) -> Iterator[Join]:
    """What lies before the first piece, between each two and after the last: one more than pieces.

    Without the `fades` of all joins each is the one that suits the reader's own material.
    """
    if not pieces:
        return
    grid, rooms = _grid(reader), _rooms(pieces, reader.frames, scale)
    first, last = pieces[0], pieces[-1]
    opening_SC = _read_float(reader, first, first.start, first.start + rooms[0].before)
    opening_SC *= fade_in_gains(len(opening_SC))[:, None]
    yield Join(grid.round(opening_SC), 0, len(opening_SC))
    for number, (before, after, room) in enumerate(_joins(pieces, reader.frames, scale)):
        meeting = _around(reader, before, after, room, scale.side)
        fade = _fade(before, after, room, reader, scale, meeting) if fades is None else fades[number]
        yield join(meeting, fade)
    closing_SC = _read_float(reader, last, last.stop - rooms[-1].after, last.stop)
    closing_SC *= fade_in_gains(len(closing_SC))[::-1, None]
    yield Join(grid.round(closing_SC), len(closing_SC), 0)


def _joins(pieces: list[_Piece], frames: int, scale: _Scale) -> Iterator[tuple[_Piece, _Piece, Room]]:
    """The pieces that meet at each join, and how much of them may be replaced."""
    rooms = _rooms(pieces, frames, scale)
    for (before, after), (room_before, room_after) in zip(pairwise(pieces), pairwise(rooms), strict=True):
        yield before, after, Room(room_before.after, room_after.before)


def _fade(
    before: _Piece, after: _Piece, room: Room, reader: Reader, scale: _Scale, meeting: Meeting | None = None
) -> Fade:
    """The crossfade the edit list asks for, its two separate fades, or the one that suits the material."""
    meeting = meeting or _around(reader, before, after, room, scale.side)
    outgoing, incoming = meeting.outgoing, meeting.incoming
    if before.fade_out and after.fade_in:
        handles = Room(incoming.at, len(outgoing.samples_SC) - outgoing.at)
        extent = Room(
            min(before.fade_out, room.before, handles.before), min(after.fade_in, room.after, handles.after)
        )
        return crossfade(outgoing, incoming, extent)
    if before.fade_out or after.fade_in:
        fade_out, fade_in = before.fade_out or scale.edge, after.fade_in or scale.edge
        return Fade(min(fade_out, room.before), min(fade_in, room.after), None)
    tracks = reader.tracks if isinstance(reader, Mix) else ()
    beneath = [_around(track, before, after, room, scale.side) for track in tracks]
    return best_fade(meeting._replace(grid=scale.grid), beneath, scale.reach, room, scale.side)


def _around(reader: Reader, before: _Piece, after: _Piece, room: Room, side: int) -> Meeting:
    """The source around a cut at the pieces' gains: `side` of what is played, handles as far as `room`."""
    out_first, in_first = max(before.stop - max(side, room.before), 0), max(after.start - room.before, 0)
    out_last = min(before.stop + room.after, reader.frames)
    in_last = min(after.start + max(side, room.after), reader.frames)
    return Meeting(
        Cut(_read_float(reader, before, out_first, out_last), before.stop - out_first),
        Cut(_read_float(reader, after, in_first, in_last), after.start - in_first),
        _grid(reader),
    )


def _rooms(pieces: list[_Piece], frames: int, scale: _Scale) -> list[Room]:
    """How much of each piece's start and end may be faded; where a piece is short the two share it."""
    rooms = []
    for index, piece in enumerate(pieces):
        head = max(piece.fade_in, scale.most.after, scale.edge)
        tail = max(piece.fade_out, scale.most.before, scale.edge)
        if index == 0:
            head = piece.fade_in or (scale.edge if piece.start > 0 else 0)
        if index == len(pieces) - 1:
            tail = piece.fade_out or (scale.edge if piece.stop < frames else 0)
        length = piece.stop - piece.start
        if head + tail > length:
            head = length * head // (head + tail)
            tail = length - head
        rooms.append(Room(head, tail))
    return rooms


def _pieces(edit_list: EditList) -> list[_Piece]:
    """Segments with those that continue one another (same gain, no fades between) made one."""
    pieces: list[_Piece] = []
    for segment in edit_list.segments:
        piece = _Piece(segment.start, segment.stop, segment.gain_db, segment.fade_in, segment.fade_out)
        last = pieces[-1] if pieces else None
        if last and (last.stop, last.gain_db, last.fade_out, 0) == (
            piece.start,
            piece.gain_db,
            0,
            piece.fade_in,
        ):
            pieces[-1] = last._replace(stop=piece.stop, fade_out=piece.fade_out)
        else:
            pieces.append(piece)
    return pieces


def _excerpt(edit_list: EditList, first: int, last: int) -> EditList:
    """What an edit plays in its output samples [first, last)."""
    segments, at = [], 0
    for segment in edit_list.segments:
        length = segment.stop - segment.start
        head, tail = max(first - at, 0), max(at + length - last, 0)
        if head + tail < length:
            segments.append(
                segment._replace(
                    start=segment.start + head,
                    stop=segment.stop - tail,
                    fade_in=0 if head else segment.fade_in,
                    fade_out=0 if tail else segment.fade_out,
                )
            )
        at += length
    return edit_list._replace(segments=tuple(segments))


def _scale(reader: Reader, settings: RenderSettings) -> _Scale:
    rate_hz = reader.info.sample_rate_hz
    length = round(settings.crossfade_ms * rate_hz / 1000)
    grid = _rounding_of_tracks(reader) if isinstance(reader, Mix) else _grid(reader)
    edge = round(settings.fade_edges_ms * rate_hz / 1000)
    return _Scale(Room(length // 2, length - length // 2), edge, round(SIDE_S * rate_hz), grid)


def _grid(reader: Reader) -> Quantum:
    return Quantum.of(reader.dtype, INTEGER_BITS.get(reader.info.subtype, 16))


def _rounding_of_tracks(mix: Mix) -> Quantum:
    """The coarsest grid of the tracks, in the units of the sum, which has no range."""
    steps = [np.array(_grid(track).step, track.dtype) for track in mix.readers]
    return Quantum(max(float(to_float(step, np.float64)) for step in steps), -np.inf, np.inf)


def _read_float(reader: Reader, piece: _Piece, start: int, stop: int) -> np.ndarray:
    return reader.read(start, stop).astype(np.float64) * _gain(piece)


def _gain(piece: _Piece) -> float:
    return 10.0 ** (piece.gain_db / 20)
