"""What an edit list says: pointers, labels and figures of one edit.

In come pointers (the raw frame each edited frame plays) or an `EditList`; out goes the same edit in another
view. Pointers survive the round trip exactly: the nominal fields carry them, whatever the renderer does to
`start` and `stop` to make joins inaudible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from editjax.audio import ArrayReader, Reader
from editjax.edit_list import EditList, Segment, Source, read_edits, write_edits
from editjax.errors import DataError
from editjax.files import sha256_of
from editjax.mel import FrameGrid
from editjax.tracks import Mix

__all__ = [
    "PAD",
    "STOP",
    "UNALIGNED",
    "EditLabel",
    "EditList",
    "Segment",
    "Source",
    "Summary",
    "beat_labels",
    "beat_of_frames",
    "cut_spans",
    "duration_samples",
    "from_pointers",
    "identity",
    "kept_mask_frames",
    "labels_of_beats",
    "labels_of_frames",
    "played_spans",
    "pointers_by_time",
    "read_edits",
    "source_of",
    "structure_of",
    "summary",
    "to_pointers",
    "write_edits",
]

STOP = -2
PAD = -1
UNALIGNED = -3

EFFECT_GAIN_DB = 1.0
"""Gains smaller than this match levels; larger ones are heard as an effect."""


class EditLabel(IntEnum):
    """What an edit does to a beat of the raw recording."""

    CUT = 0
    KEEP = 1
    LOOP = 2
    FADE_IN = 3
    FADE_OUT = 4
    EFFECT = 5
    TRANSITION = 6
    PAD = 7


class Summary(NamedTuple):
    """An edit in figures: counts, and seconds of source kept and cut, of output heard more than once."""

    input_s: float
    output_s: float
    clips: int
    cuts: int
    smallest_clip_s: float
    largest_clip_s: float
    median_clip_s: float
    smallest_cut_s: float
    largest_cut_s: float
    median_cut_s: float
    kept_s: float
    cut_s: float
    looped_s: float


def identity(source: Source) -> EditList:
    """The edit that plays the whole source once."""
    whole = Segment(0, source.frames, 0, source.frames)
    return EditList(source, (whole,) if source.frames else (), {"name": "identity"})


def from_pointers(
    pointers_N: np.ndarray,
    source: Source,
    grid: FrameGrid,
    scores: Sequence[float] | np.ndarray | None = None,
    reasons: Sequence[str] | None = None,
    editor: dict[str, Any] | None = None,
) -> EditList:
    """Turns raw frame numbers (N,) into segments, one per run of consecutive frames.

    Everything from the first STOP on and every PAD is dropped; UNALIGNED frames end a run and are noted in
    the editor's `unaligned`. `scores` and `reasons` (N,) give each segment those of its first frame: of the
    jump. Raises DataError if a pointer is outside the source.
    """
    pointers_N = np.asarray(pointers_N)
    _check_pointers(pointers_N, grid.frames_in(source.frames))
    stops = np.flatnonzero(pointers_N == STOP)
    rows = np.arange(stops[0] if stops.size else pointers_N.size)
    rows = rows[pointers_N[rows] != PAD]
    segments: list[Segment] = []
    unaligned: list[list[int]] = []
    for run in _runs(pointers_N[rows]):
        row = rows[run.start]
        first, last = int(pointers_N[row]), int(pointers_N[rows[run.stop - 1]])
        if first == UNALIGNED:
            unaligned.append([len(segments), run.stop - run.start])
            continue
        start = int(grid.sample_of_frame(first))
        stop = min(int(grid.sample_of_frame(last + 1)), source.frames)
        score = None if scores is None else float(scores[row])
        segments.append(Segment(start, stop, start, stop, 0, 0, 0.0, score, reasons[row] if reasons else ""))
    notes = dict(editor or {})
    if unaligned:
        notes["unaligned"] = unaligned
    return EditList(source, tuple(segments), notes)


def to_pointers(edit_list: EditList, grid: FrameGrid) -> np.ndarray:
    """The raw frames an edit plays, int32 (N,), without STOP; the exact inverse of `from_pointers`.

    A segment plays the frames whose first sample lies in its nominal span, so that neighbours never share
    one.
    """
    gaps: dict[int, int] = {}
    for index, frames in edit_list.editor.get("unaligned", ()):
        gaps[index] = gaps.get(index, 0) + frames
    parts = []
    for index, segment in enumerate(edit_list.segments):
        parts.append(np.full(gaps.get(index, 0), UNALIGNED, np.int32))
        first, last = grid.frames_in(segment.nominal_start), grid.frames_in(segment.nominal_stop)
        parts.append(np.arange(first, last, dtype=np.int32))
    parts.append(np.full(gaps.get(len(edit_list.segments), 0), UNALIGNED, np.int32))
    return np.concatenate(parts)


def pointers_by_time(edit_list: EditList, grid: FrameGrid) -> np.ndarray:
    """The raw frame nearest to what sounds at each frame of the rendered file, int32 (N,).

    N is the frame count of the rendered file, also for cuts between frames, where `to_pointers` may differ by
    a frame per segment; within a segment pointers advance by one. `unaligned` notes are ignored: nothing
    renders them.
    """
    last = grid.frames_in(edit_list.source.frames) - 1
    half_hop = int(grid.sample_of_frame(1)) // 2
    parts, at = [np.zeros(0, np.int32)], 0
    for segment in edit_list.segments:
        length = segment.stop - segment.start
        first_row, stop_row = grid.frames_in(at), grid.frames_in(at + length)
        heard = segment.start + int(grid.sample_of_frame(first_row)) - at
        first = grid.frame_of_sample(heard + half_hop)
        parts.append(np.minimum(first + np.arange(stop_row - first_row), last).astype(np.int32))
        at += length
    return np.concatenate(parts)


def duration_samples(edit_list: EditList) -> int:
    """Length of the rendered edit: Σ(stop − start)."""
    return sum(segment.stop - segment.start for segment in edit_list.segments)


def played_spans(edit_list: EditList) -> list[tuple[int, int]]:
    """Source spans heard at least once, disjoint and ascending."""
    spans: list[tuple[int, int]] = []
    for start, stop in sorted((segment.start, segment.stop) for segment in edit_list.segments):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], stop))
        else:
            spans.append((start, stop))
    return spans


def cut_spans(edit_list: EditList) -> list[tuple[int, int]]:
    """Source spans never heard, disjoint and ascending: the complement of `played_spans`."""
    edges = [0, *(edge for span in played_spans(edit_list) for edge in span), edit_list.source.frames]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def source_of(reader: Reader) -> Source:
    """A recording as an edit list names it; samples in memory have a fingerprint but no path."""
    info = reader.info
    tracks: tuple[Source, ...] = ()
    if isinstance(reader, Mix):
        tracks = tuple(source_of(track) for track in reader.readers)
        path = str(info.path.absolute()) if all(track.path for track in tracks) else ""
        sha256 = hashlib.sha256("".join(track.sha256 for track in tracks).encode()).hexdigest()
    elif not isinstance(reader, ArrayReader):
        path, sha256 = str(info.path.absolute()), sha256_of(info.path)
    else:
        path, digest = "", hashlib.sha256()
        for samples_SC in reader.blocks():
            digest.update(samples_SC.tobytes())
        sha256 = digest.hexdigest()
    return Source(path, sha256, info.sample_rate_hz, info.channels, reader.frames, tracks)


def summary(edit_list: EditList) -> Summary:
    """Counts and lengths for the report of an edit; lengths are 0 where there is nothing to measure."""
    rate = edit_list.source.sample_rate
    clips_s = [(segment.stop - segment.start) / rate for segment in edit_list.segments]
    cuts_s = [(stop - start) / rate for start, stop in cut_spans(edit_list)]
    output_s, cut_s = duration_samples(edit_list) / rate, sum(cuts_s)
    kept_s = edit_list.source.frames / rate - cut_s
    return Summary(
        edit_list.source.frames / rate,
        output_s,
        len(clips_s),
        len(cuts_s),
        *_spread(clips_s),
        *_spread(cuts_s),
        kept_s,
        cut_s,
        max(0.0, output_s - kept_s),
    )


def kept_mask_frames(pointers_N: np.ndarray, n_frames: int) -> np.ndarray:
    """Whether each raw frame is played at least once, bool (T,); sentinels are ignored."""
    return _counts(pointers_N, n_frames) > 0


def structure_of(pointers_N: np.ndarray, n_frames: int) -> np.ndarray:
    """What becomes of each raw frame, int32 (T,): 0 cut, 1 kept, 2 looped (played more than once)."""
    return np.minimum(_counts(pointers_N, n_frames), 2).astype(np.int32)


def beat_labels(
    edit: np.ndarray | EditList,
    beat_frames: np.ndarray,
    n_frames: int,
    *,
    grid: FrameGrid | None = None,
    effects: Sequence[tuple[int, int]] = (),
    n_beats: int | None = None,
) -> np.ndarray:
    """The `EditLabel` of each raw beat, uint8 (beats,): the one most of its frames carry, the larger at a
    tie.

    Pointers (N,) give CUT, KEEP and LOOP; an EditList also the rest: FADE_IN and FADE_OUT over its fades,
    TRANSITION over the two fades that meet at a join, EFFECT where the gain is at least `EFFECT_GAIN_DB` off,
    and over `effects` (source samples) as far as they are played. A beat lasts to the next one, the last to
    `n_frames`; frames before the first beat belong to none. With `n_beats` the answer is cut or filled with
    PAD to that length.
    """
    if isinstance(edit, EditList):
        labels_T = _frame_labels(edit, grid or FrameGrid(edit.source.sample_rate), n_frames, effects)
    else:
        labels_T = structure_of(edit, n_frames)
    winners = labels_of_beats(labels_T, beat_frames)
    if n_beats is None:
        return winners
    return np.append(winners, np.full(n_beats, EditLabel.PAD, np.uint8))[:n_beats]


def labels_of_beats(labels_T: np.ndarray, beat_frames: np.ndarray) -> np.ndarray:
    """The label of each beat, uint8 (beats,): the one most of its frames carry, the larger at a tie; PAD
    without any."""
    n_frames = len(labels_T)
    edges = np.append(np.asarray(beat_frames, np.int64), n_frames)
    votes = np.zeros((edges.size, len(EditLabel)), np.int64)
    beat_of_T = np.searchsorted(edges, np.arange(n_frames), side="right") - 1
    inside = beat_of_T >= 0
    np.add.at(votes, (beat_of_T[inside], labels_T[inside]), 1)
    winners = (len(EditLabel) - 1 - votes[:-1, ::-1].argmax(axis=1)).astype(np.uint8)
    winners[votes[:-1].sum(axis=1) == 0] = EditLabel.PAD
    return winners


def labels_of_frames(
    labels: np.ndarray, beat_frames: np.ndarray, pointers_N: np.ndarray, n_frames: int
) -> np.ndarray:
    """The label of every frame, uint8 (T,): its beat's; before the first beat whether it is played."""
    beat_T = beat_of_frames(beat_frames, n_frames)
    before_T = np.minimum(structure_of(pointers_N, n_frames), EditLabel.KEEP)
    padded = np.append(EditLabel.PAD, labels)
    return np.where(beat_T > 0, padded[beat_T], before_T).astype(np.uint8)


def beat_of_frames(beat_frames: np.ndarray, n_frames: int) -> np.ndarray:
    """The beat of every frame, int32 (T,), counted from 1; 0 before the first."""
    return np.searchsorted(beat_frames, np.arange(n_frames), side="right").astype(np.int32)


def _check_pointers(pointers_N: np.ndarray, n_frames: int) -> None:
    if pointers_N.ndim != 1 or pointers_N.dtype.kind not in "iu":
        raise DataError(
            f"pointers are {pointers_N.dtype} of shape {pointers_N.shape}; give integers of shape (N,)"
        )
    if pointers_N.size and (pointers_N.max() >= n_frames or pointers_N.min() < UNALIGNED):
        raise DataError(
            f"pointers reach from {pointers_N.min()} to {pointers_N.max()} but the source has frames 0 to "
            f"{n_frames - 1}; make them with the same hop and sample rate"
        )


def _counts(pointers_N: np.ndarray, n_frames: int) -> np.ndarray:
    """How often each raw frame is played, int64 (T,)."""
    pointers_N = np.asarray(pointers_N)
    stops = np.flatnonzero(pointers_N == STOP)
    played = pointers_N[: stops[0] if stops.size else None]
    return np.bincount(played[played >= 0], minlength=n_frames)[:n_frames]


def _frame_labels(
    edit_list: EditList, grid: FrameGrid, n_frames: int, effects: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The label of each raw frame, int32 (T,); where several apply the last painted of the order below
    wins."""
    labels_T = structure_of(to_pointers(edit_list, grid), n_frames)
    played_T = labels_T > 0

    def paint(start: int, stop: int, label: EditLabel) -> None:
        rows = slice(grid.frames_in(start), grid.frames_in(stop))
        labels_T[rows][played_T[rows]] = label

    louder = [s for s in edit_list.segments if abs(s.gain_db) >= EFFECT_GAIN_DB]
    for start, stop in [*effects, *((s.nominal_start, s.nominal_stop) for s in louder)]:
        paint(start, stop, EditLabel.EFFECT)
    segments = edit_list.segments
    for before, segment, after in zip([None, *segments], segments, [*segments[1:], None], strict=False):
        into = EditLabel.TRANSITION if before and before.fade_out else EditLabel.FADE_IN
        out_of = EditLabel.TRANSITION if after and after.fade_in else EditLabel.FADE_OUT
        paint(segment.nominal_start, segment.nominal_start + segment.fade_in, into)
        paint(segment.nominal_stop - segment.fade_out, segment.nominal_stop, out_of)
    return labels_T


def _runs(pointers_N: np.ndarray) -> list[slice]:
    """Maximal runs of pointers that advance by one, or that are all UNALIGNED."""
    steps = np.diff(pointers_N.astype(np.int64))
    gap = pointers_N == UNALIGNED
    joined = np.where(gap[:-1] | gap[1:], gap[:-1] & gap[1:], steps == 1)
    edges = [0, *(np.flatnonzero(~joined) + 1).tolist(), pointers_N.size]
    return [slice(start, stop) for start, stop in pairwise(edges) if stop > start]


def _spread(lengths_s: list[float]) -> tuple[float, float, float]:
    return (min(lengths_s), max(lengths_s), float(np.median(lengths_s))) if lengths_s else (0.0, 0.0, 0.0)
