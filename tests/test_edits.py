"""Pointers and edit lists are two views of one edit; labels and figures on planted edits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax import edits
from editjax.edits import PAD, STOP, UNALIGNED, EditLabel, EditList, Segment, Source
from editjax.errors import DataError
from editjax.mel import FrameGrid

RATES_HZ = (8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000)


def source_of(rate_hz: int, n_samples: int) -> Source:
    return Source("take.wav", "0" * 64, rate_hz, 2, n_samples)


@st.composite
def edits_of_recordings(draw, unaligned=True):
    """A grid, a source and pointers: runs, loops, reorders, single repeated frames, unaligned inserts."""
    grid = FrameGrid(draw(st.sampled_from(RATES_HZ)), hop=draw(st.sampled_from((256, 512))))
    source = source_of(grid.source_rate_hz, draw(st.integers(1, 400_000)))
    n_frames = int(grid.frames_in(source.frames))
    first = st.integers(-1 if unaligned else 0, n_frames - 1)
    runs = draw(st.lists(st.tuples(first, st.integers(1, 40)), max_size=25))
    parts = [
        np.full(length, UNALIGNED) if start < 0 else np.arange(start, min(start + length, n_frames))
        for start, length in runs
    ]
    return grid, source, np.concatenate([np.zeros(0, int), *parts]).astype(np.int32)


@given(edits_of_recordings())
@settings(max_examples=300, deadline=None)
def test_pointers_survive_the_edit_list(case):
    grid, source, pointers_N = case
    back_N = edits.to_pointers(edits.from_pointers(pointers_N, source, grid), grid)
    assert back_N.dtype == np.int32
    np.testing.assert_array_equal(back_N, pointers_N)


@given(edits_of_recordings(), st.data())
@settings(max_examples=100, deadline=None)
def test_pointers_survive_moved_joins(case, data):
    grid, source, pointers_N = case
    edit_list = edits.from_pointers(pointers_N, source, grid)
    moved = []
    for segment in edit_list.segments:
        start = min(max(0, segment.start + data.draw(st.integers(-99, 99))), source.frames - 1)
        stop = max(start + 1, min(source.frames, segment.stop + data.draw(st.integers(-99, 99))))
        moved.append(segment._replace(start=start, stop=stop))
    back_N = edits.to_pointers(edit_list._replace(segments=tuple(moved)), grid)
    np.testing.assert_array_equal(back_N, pointers_N)


@given(edits_of_recordings())
@settings(max_examples=100, deadline=None)
def test_segments_play_what_the_pointers_point_at(case):
    grid, source, pointers_N = case
    edit_list = edits.from_pointers(pointers_N, source, grid)
    played = [
        sample
        for pointer in pointers_N[pointers_N >= 0].tolist()
        for sample in (grid.sample_of_frame(pointer), min(grid.sample_of_frame(pointer + 1), source.frames))
    ]
    assert edits.duration_samples(edit_list) == sum(played[1::2]) - sum(played[::2])
    assert all(0 <= s.start < s.stop <= source.frames for s in edit_list.segments)


@given(edits_of_recordings(unaligned=False))
@settings(max_examples=100, deadline=None)
def test_played_and_cut_spans_share_out_the_source(case):
    grid, source, pointers_N = case
    edit_list = edits.from_pointers(pointers_N, source, grid)
    spans = sorted([*edits.played_spans(edit_list), *edits.cut_spans(edit_list)])
    assert [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), source.frames]


@given(st.sampled_from((11025, 22050, 44100)), st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40))))
@settings(max_examples=100, deadline=None)
def test_pointers_by_time_are_the_pointers_where_frames_are_whole_samples(rate_hz, runs):
    grid = FrameGrid(rate_hz)
    parts = [np.arange(start, min(start + length, 100)) for start, length in runs]
    pointers_N = np.concatenate([np.zeros(0, int), *parts])
    edit_list = edits.from_pointers(pointers_N, source_of(rate_hz, grid.sample_of_frame(100)), grid)
    np.testing.assert_array_equal(edits.pointers_by_time(edit_list, grid), pointers_N)


def test_pointers_by_time_follow_the_output_clock():
    """Ten segments of 40.75 frames: counting by segment drifts, the clock does not."""
    grid, length = FrameGrid(22050), 40 * 512 + 384
    spans = [(i * 102_400, i * 102_400 + length) for i in range(10)]
    edit_list = EditList(source_of(22050, 1_024_000), tuple(Segment(*s, *s) for s in spans), {})
    by_time_N = edits.pointers_by_time(edit_list, grid)
    assert by_time_N.size == grid.frames_in(edits.duration_samples(edit_list)) == 408
    heard = np.array([spans[at // length][0] + at % length for at in np.arange(408) * 512])
    assert np.abs(by_time_N * 512 - heard).max() <= 256


def test_contiguous_runs_are_one_segment_and_a_repeated_frame_is_many():
    grid, source = FrameGrid(22050), source_of(22050, 51_200)
    assert len(edits.from_pointers(np.r_[5:10, 10:15], source, grid).segments) == 1
    assert len(edits.from_pointers(np.array([7, 7, 7]), source, grid).segments) == 3


def test_stop_ends_pad_is_skipped_and_unaligned_breaks():
    grid, source = FrameGrid(22050), source_of(22050, 51_200)
    edit_list = edits.from_pointers(np.array([3, 4, PAD, 5, UNALIGNED, 6, STOP, 9]), source, grid)
    assert [(s.start, s.stop) for s in edit_list.segments] == [(1536, 3072), (3072, 3584)]
    assert edits.to_pointers(edit_list, grid).tolist() == [3, 4, 5, UNALIGNED, 6]


def test_scores_and_reasons_are_those_of_the_jump():
    grid, source = FrameGrid(22050), source_of(22050, 51_200)
    pointers_N = np.array([PAD, 3, 4, 9, 10])
    scores, reasons = [0.0, 0.1, 0.2, 0.3, 0.4], ["", "a", "b", "c", "d"]
    segments = edits.from_pointers(pointers_N, source, grid, scores, reasons).segments
    assert [(s.score, s.reason) for s in segments] == [(0.1, "a"), (0.3, "c")]


@pytest.mark.parametrize(
    "pointers", [np.array([100]), np.array([-4]), np.array([0.5]), np.zeros((2, 2), int)]
)
def test_impossible_pointers_are_refused(pointers):
    with pytest.raises(DataError):
        edits.from_pointers(pointers, source_of(22050, 51_200), FrameGrid(22050))


def test_the_last_frame_is_clipped_to_the_source():
    grid, source = FrameGrid(44100), source_of(44100, 44_101)
    whole = edits.from_pointers(np.arange(grid.frames_in(source.frames)), source, grid)
    assert whole.segments == edits.identity(source).segments


def test_structure_and_mask_count_playings():
    pointers_N = np.array([1, 2, 2, 2, 3, UNALIGNED, PAD, STOP, 0])
    assert edits.structure_of(pointers_N, 6).tolist() == [0, 1, 2, 1, 0, 0]
    assert edits.kept_mask_frames(pointers_N, 6).tolist() == [False, True, True, True, False, False]


def test_beats_take_the_label_of_most_of_their_frames():
    pointers_N = np.r_[10:20, 20:40, 20:40, 40:46]
    labels = edits.beat_labels(pointers_N, np.arange(0, 60, 10), 60, n_beats=8)
    names = "CUT KEEP LOOP LOOP KEEP CUT PAD PAD"
    assert labels.dtype == np.uint8
    assert " ".join(EditLabel(label).name for label in labels) == names
    assert edits.beat_labels(pointers_N, np.arange(0, 60, 10), 60, n_beats=2).tolist() == [0, 1]


def test_beats_hear_fades_effects_and_transitions():
    hop = 512
    segments = (
        Segment(0, 40 * hop, 0, 40 * hop, fade_in=10 * hop, fade_out=10 * hop),
        Segment(60 * hop, 100 * hop, 60 * hop, 100 * hop, fade_in=10 * hop),
        Segment(120 * hop, 140 * hop, 120 * hop, 140 * hop, gain_db=-6.0),
        Segment(140 * hop, 160 * hop, 140 * hop, 160 * hop, 10 * hop, 10 * hop, gain_db=0.4),
    )
    edit_list = EditList(source_of(22050, 170 * hop), segments, {})
    beats, effects = np.arange(0, 170, 10), [(80 * hop, 110 * hop)]
    labels = edits.beat_labels(edit_list, beats, 170, effects=effects)
    assert " ".join(EditLabel(label).name for label in labels) == (
        "FADE_IN KEEP KEEP TRANSITION CUT CUT TRANSITION KEEP EFFECT EFFECT CUT CUT EFFECT EFFECT FADE_IN "
        "FADE_OUT CUT"
    )
    np.testing.assert_array_equal(
        labels, edits.beat_labels(edit_list, beats, 170, grid=FrameGrid(22050), effects=effects)
    )


def test_frames_before_the_first_beat_belong_to_none():
    assert edits.beat_labels(np.arange(5, 20), np.array([5, 10]), 20).tolist() == [1, 1]


def test_summary_adds_up():
    spans = [(0, 8000), (4000, 8000), (16_000, 40_000)]
    figures = edits.summary(EditList(source_of(8000, 48_000), tuple(Segment(*s, *s) for s in spans), {}))
    assert figures.input_s == 6.0 and figures.output_s == 4.5
    assert (figures.clips, figures.cuts) == (3, 2)
    assert (figures.smallest_clip_s, figures.median_clip_s, figures.largest_clip_s) == (0.5, 1.0, 3.0)
    assert (figures.smallest_cut_s, figures.median_cut_s, figures.largest_cut_s) == (1.0, 1.0, 1.0)
    assert (figures.kept_s, figures.cut_s, figures.looped_s) == (4.0, 2.0, 0.5)


def test_an_edit_without_segments_is_silent_in_every_view():
    nothing = EditList(source_of(8000, 800), (), {})
    assert edits.duration_samples(nothing) == 0
    assert edits.to_pointers(nothing, FrameGrid(8000)).size == 0
    assert edits.pointers_by_time(nothing, FrameGrid(8000)).size == 0
    assert edits.summary(nothing).clips == 0
