"""What becomes of every beat → an edit list: what is cut is left out, what is looped is heard twice.

    labels → runs → stretches between cuts → segments with fades, gains and loops

The converse of `edits.beat_labels`, as far as beats are fine enough to say.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from editjax.edits import EFFECT_GAIN_DB, EditLabel, EditList, Segment, Source
from editjax.joins import LONGEST_FADE_S
from editjax.mel import FrameGrid

MOST_GAIN_DB = 12.0


class Run(NamedTuple):
    """Beats with the same label: raw frames [start, stop), and the level of what is heard there."""

    label: EditLabel
    start: int
    stop: int
    gain_db: float = 0.0


def runs_of(label_U: np.ndarray, beat_frames: np.ndarray, n_frames: int) -> list[Run]:
    """Neighbouring beats with the same label as one; PAD counts as cut.

    `label_U` begins with what lies before the first beat; beats last to the next one, the last to the end.
    """
    edges = np.concatenate([[0], beat_frames, [n_frames]])
    wanted = np.where(label_U == EditLabel.PAD, EditLabel.CUT, label_U)
    spans = [(int(label), *map(int, span)) for label, span in zip(wanted, pairwise(edges), strict=True)]
    runs = []
    for label, group in groupby((s for s in spans if s[1] < s[2]), key=lambda span: span[0]):
        same = list(group)
        runs.append(Run(EditLabel(label), same[0][1], same[-1][2]))
    return runs


def without_scraps(runs: Sequence[Run], shortest: int) -> list[Run]:
    """The runs, stretches between two cuts that last fewer than `shortest` frames being cut.

    What the recording begins or ends with is no scrap.
    """
    kept: list[Run] = []
    for cut, group in groupby(runs, lambda r: r.label == EditLabel.CUT):
        stretch = list(group)
        inside = stretch[0] is not runs[0] and stretch[-1] is not runs[-1]
        scrap = not cut and inside and stretch[-1].stop - stretch[0].start < shortest
        kept += [run._replace(label=EditLabel.CUT) for run in stretch] if scrap else stretch
    return kept


def labelled_edit(
    runs: Sequence[Run], grid: FrameGrid, source: Source, editor: dict[str, Any] | None = None
) -> EditList:
    """The edit list that runs of labels ask for.

    A fade is made where it meets a cut: FADE_IN at the start of a stretch that is played, FADE_OUT at its
    end. TRANSITION on both sides of what is cut is one crossfade as long as the two together, and so are
    FADE_OUT before and FADE_IN after it; TRANSITION on one side alone, and fades amidst what is played, are
    played as they are. Where an effect changes the level by less than can be told from matching levels,
    nothing is changed.
    """
    stretches = [list(group) for cut, group in groupby(runs, lambda r: r.label == EditLabel.CUT) if not cut]
    segments: list[Segment] = []
    for before, stretch, after in zip([None, *stretches], stretches, [*stretches[1:], None], strict=False):
        pieces = _pieces(stretch, grid, source.frames)
        fade_in, fade_out = (
            _samples(run, grid, source) if fades else 0
            for run, fades in ((stretch[0], _opens(before, stretch)), (stretch[-1], _closes(stretch, after)))
        )
        pieces[0] = _faded(pieces[0], fade_in, 0)
        pieces[-1] = _faded(pieces[-1], pieces[-1].fade_in, fade_out)
        segments += pieces
    return EditList(source, tuple(segments), dict(editor or {}))


def _pieces(stretch: Sequence[Run], grid: FrameGrid, n_samples: int) -> list[Segment]:
    """What is played between two cuts, without fades."""
    pieces: list[Segment] = []
    start, reason = stretch[0].start, "keep"

    def play(first: int, last: int, reason: str, gain_db: float = 0.0) -> None:
        if first < last:
            span = int(grid.sample_of_frame(first)), min(int(grid.sample_of_frame(last)), n_samples)
            pieces.append(Segment(*span, *span, gain_db=gain_db, reason=reason))

    for run in stretch:
        if run.label == EditLabel.LOOP:
            play(start, run.stop, reason)
            start, reason = run.start, "loop"
        elif run.label == EditLabel.EFFECT and abs(run.gain_db) >= EFFECT_GAIN_DB:
            play(start, run.start, reason)
            play(run.start, run.stop, "effect", float(np.clip(run.gain_db, -MOST_GAIN_DB, MOST_GAIN_DB)))
            start, reason = run.stop, "keep"
    play(start, stretch[-1].stop, reason)
    return pieces


def _opens(before: Sequence[Run] | None, stretch: Sequence[Run]) -> bool:
    """Whether a stretch fades in over its first run."""
    first = stretch[0].label
    crosses = before is not None and before[-1].label == first == EditLabel.TRANSITION
    return crosses or first == EditLabel.FADE_IN


def _closes(stretch: Sequence[Run], after: Sequence[Run] | None) -> bool:
    """Whether a stretch fades out over its last run."""
    last = stretch[-1].label
    crosses = after is not None and after[0].label == last == EditLabel.TRANSITION
    return crosses or last == EditLabel.FADE_OUT


def _samples(run: Run, grid: FrameGrid, source: Source) -> int:
    """The length of a run, no longer than a fade may be."""
    start, stop = int(grid.sample_of_frame(run.start)), int(grid.sample_of_frame(run.stop))
    return min(min(stop, source.frames) - start, int(LONGEST_FADE_S * source.sample_rate))


def _faded(segment: Segment, fade_in: int, fade_out: int) -> Segment:
    """A segment with fades; two that would overlap share it."""
    length = segment.stop - segment.start
    most = length if fade_in + fade_out <= length else length // 2
    return segment._replace(fade_in=min(fade_in, most), fade_out=min(fade_out, most))
