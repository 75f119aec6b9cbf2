"""What users ask of an edit: planted wishes, and properties over random edits."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax import adjust
from editjax.edits import EditList, Segment, Source, cut_spans, duration_samples, played_spans
from editjax.errors import UsageError

RATE_HZ = 1000
FRAMES = 60_000


def edit_of(*spans, frames=FRAMES) -> EditList:
    source = Source("a.wav", "", RATE_HZ, 1, frames)
    return EditList(source, tuple(Segment(*span, *span) for span in spans), {"name": "planted"})


def spans_of(edit_list: EditList) -> list[tuple[int, int]]:
    return [(segment.start, segment.stop) for segment in edit_list.segments]


def heard(edit_list: EditList) -> np.ndarray:
    return np.concatenate([np.zeros(0, int), *(np.arange(*span) for span in spans_of(edit_list))])


spans = st.tuples(st.integers(0, 990), st.integers(1, 300)).map(lambda s: (s[0], min(1000, s[0] + s[1])))
random_edits = st.lists(spans, max_size=8).map(lambda s: edit_of(*s, frames=1000))
random_ranges = st.lists(spans, max_size=4).map(lambda s: [(a / RATE_HZ, b / RATE_HZ) for a, b in s])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        (" 90 S ", 90),
        ("1.5m", 90),
        ("500ms", 0.5),
        ("1:30.5", 90.5),
        ("0:01:30", 90),
        (".5", 0.5),
        ("start", 0),
        ("end", 600),
        ("-10", 590),
        ("-1:00", 540),
        ("9999", 600),
    ],
)
def test_times_are_read_as_people_write_them(text, seconds):
    assert adjust.parse_time(text, 600) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "abc", "1:2:3:4", "1:30s", "5 parsecs", "--5", "1e3", "nan", "-601", "1,5"]
)
def test_what_is_no_time_is_refused_in_one_line(text):
    with pytest.raises(UsageError) as caught:
        adjust.parse_time(text, 600)
    assert "\n" not in str(caught.value)


def test_ranges_come_in_pairs_that_end_after_they_start():
    assert adjust.parse_ranges(["1:00,1:30", "start,5,-10,end"], 600) == [(60, 90), (0, 5), (590, 600)]
    for text in ("5", "1,2,3", "10,5", "5,5"):
        with pytest.raises(UsageError, match="range"):
            adjust.parse_ranges([text], 600)


def test_a_range_after_the_end_is_refused_as_such_or_ignored():
    with pytest.raises(UsageError, match="begins after the recording's end"):
        adjust.parse_ranges(["10:00,12:00"], 30)
    assert adjust.parse_ranges(["10:00,12:00", "1,99"], 30, ignore_beyond=True) == [(1, 30)]


def test_a_margin_has_one_or_two_sides_and_may_be_negative():
    assert adjust.parse_margin("0.2") == (0.2, 0.2)
    assert adjust.parse_margin("100ms, -0.3") == (0.1, -0.3)
    with pytest.raises(UsageError, match="margin"):
        adjust.parse_margin("1,2,3")


def test_a_cut_splits_what_plays_there_every_time():
    cut = adjust.cut_ranges(edit_of((0, 20_000), (5_000, 20_000), (30_000, 40_000)), [(10, 15), (14, 16)])
    assert spans_of(cut) == [
        (0, 10_000),
        (16_000, 20_000),
        (5_000, 10_000),
        (16_000, 20_000),
        (30_000, 40_000),
    ]


def test_a_cut_keeps_fades_and_nominals_only_at_old_edges():
    segment = Segment(
        1_000, 9_000, 990, 9_010, fade_in=100, fade_out=200, gain_db=-3.0, score=0.5, reason="take 2"
    )
    edit_list = edit_of()._replace(segments=(segment,))
    assert adjust.cut_ranges(edit_list, [(4, 5)]).segments == (
        segment._replace(stop=4_000, nominal_stop=4_000, fade_out=0),
        segment._replace(start=5_000, nominal_start=5_000, fade_in=0),
    )


def test_kept_material_returns_where_it_belongs():
    edit_list = edit_of((10_000, 20_000), (15_000, 20_000), (30_000, 40_000))
    assert spans_of(adjust.keep_ranges(edit_list, [(20, 22)])) == [
        (10_000, 20_000),
        (15_000, 22_000),
        (30_000, 40_000),
    ]
    assert spans_of(adjust.keep_ranges(edit_list, [(24, 26)]))[2] == (24_000, 26_000)
    assert spans_of(adjust.keep_ranges(edit_list, [(0, 5)]))[0] == (0, 5_000)
    assert spans_of(adjust.keep_ranges(edit_list, [(5, 10)]))[0] == (5_000, 20_000)
    assert spans_of(adjust.keep_ranges(edit_list, [(12, 18)])) == spans_of(edit_list)
    assert spans_of(adjust.keep_ranges(edit_of(), [(1, 2)])) == [(1_000, 2_000)]


def test_a_margin_grows_into_the_cut_and_closes_it_when_it_is_short():
    edit_list = edit_of((10_000, 20_000), (20_500, 30_000), (40_000, 50_000))
    assert spans_of(adjust.with_margin(edit_list, 1.0, 2.0)) == [(9_000, 32_000), (39_000, 52_000)]
    assert spans_of(adjust.with_margin(edit_list, -0.1, -0.2)) == [
        (10_100, 19_800),
        (20_600, 29_800),
        (40_100, 49_800),
    ]


def test_a_margin_leaves_loops_in_time():
    looped = edit_of((10_000, 20_000), (10_000, 20_000), (30_000, 40_000))
    assert spans_of(adjust.with_margin(looped, 1.0, 1.0)) == [
        (9_000, 20_000),
        (10_000, 21_000),
        (29_000, 41_000),
    ]


def test_short_clips_go():
    assert spans_of(adjust.without_short_clips(edit_of((0, 99), (200, 300), (400, 600)), 0.1)) == [
        (200, 300),
        (400, 600),
    ]


def test_edges_snap_to_the_nearest_position_but_never_the_ends_of_the_recording():
    snapped = adjust.snap_joins(edit_of((0, 480), (7_000, FRAMES)), np.array([300, 600, 7_500, 9_000]))
    assert spans_of(snapped) == [(0, 600), (7_500, FRAMES)]
    assert adjust.snap_joins(edit_of((3, 9)), np.zeros(0, int)) == edit_of((3, 9))


def test_a_clip_that_would_vanish_stays_and_is_played_once():
    snapped = adjust.snap_joins(edit_of((0, 480), (490, 510), (520, 1_900)), np.arange(0, FRAMES, 500))
    assert spans_of(snapped) == [(0, 480), (490, 510), (520, 2_000)]


def test_clips_of_different_gain_meet_without_becoming_one():
    first, second = edit_of((10, 480), (700, 1_900)).segments
    edit_list = edit_of()._replace(segments=(first._replace(gain_db=6.0), second))
    snapped = adjust.snap_joins(edit_list, np.arange(0, 10_000, 500))
    assert spans_of(snapped) == [(0, 500), (500, 2_000)]
    assert [segment.gain_db for segment in snapped.segments] == [6.0, 0.0]


def test_snapping_twice_is_snapping_once():
    positions = np.arange(0, 10_000, 500)
    once = adjust.snap_joins(edit_of((10, 480), (700, 1_900)), positions)
    assert spans_of(once) == [(0, 2_000)] and adjust.snap_joins(once, positions) == once


def test_long_pauses_lose_their_middle_and_short_ones_stay():
    edit_list = edit_of((0, 60_000))
    shorter = adjust.limit_pauses(edit_list, [(10_000, 14_000), (20_000, 20_900)], 1.0)
    assert spans_of(shorter) == [(0, 10_500), (13_500, 60_000)]


def test_a_pause_across_a_join_is_one_pause():
    edit_list = edit_of((0, 10_000), (30_000, 40_000))
    shorter = adjust.limit_pauses(edit_list, [(9_200, 11_000), (29_000, 30_800)], 1.0)
    assert spans_of(shorter) == [(0, 9_700), (30_300, 40_000)]


def test_notes_on_unaligned_frames_do_not_outlive_their_segments():
    edit_list = edit_of((0, 10_000))._replace(editor={"name": "a", "unaligned": [[1, 5]]})
    assert adjust.cut_ranges(edit_list, [(1, 2)]).editor == {"name": "a"}


@given(random_edits, random_ranges)
@settings(max_examples=200, deadline=None)
def test_cutting_removes_exactly_the_ranges(edit_list, ranges):
    before = heard(edit_list)
    wanted = np.ones(1000, bool)
    for start_s, stop_s in ranges:
        wanted[round(start_s * RATE_HZ) : round(stop_s * RATE_HZ)] = False
    np.testing.assert_array_equal(heard(adjust.cut_ranges(edit_list, ranges)), before[wanted[before]])


@given(random_edits, random_ranges)
@settings(max_examples=200, deadline=None)
def test_keeping_adds_exactly_what_was_missing(edit_list, ranges):
    kept = adjust.keep_ranges(edit_list, ranges)
    asked = {n for a, b in ranges for n in range(round(a * RATE_HZ), round(b * RATE_HZ))}
    assert set(heard(kept)) == set(heard(edit_list)) | asked
    assert duration_samples(kept) == duration_samples(edit_list) + len(asked - set(heard(edit_list)))


@given(random_edits, st.floats(0, 0.3), st.floats(0, 0.3))
@settings(max_examples=200, deadline=None)
def test_a_margin_never_repeats_material_beyond_what_was_cut(edit_list, before_s, after_s):
    wider = adjust.with_margin(edit_list, before_s, after_s)
    assert set(heard(wider)) >= set(heard(edit_list))
    assert all(0 <= s.start < s.stop <= 1000 for s in wider.segments)
    assert len(wider.segments) <= len(edit_list.segments)


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True),
    st.randoms(use_true_random=False),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
)
@settings(max_examples=200, deadline=None)
def test_a_margin_repeats_nothing_in_whatever_order_clips_are_played(edges, random, before_s, after_s):
    edges = sorted(edges[: len(edges) // 2 * 2])
    clips = list(zip(edges[::2], edges[1::2], strict=True))
    random.shuffle(clips)
    wider = heard(adjust.with_margin(edit_of(*clips, frames=1000), before_s, after_s))
    assert len(wider) == len(set(wider))


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True),
    st.lists(st.integers(0, 1000), max_size=20, unique=True),
)
@settings(max_examples=200, deadline=None)
def test_snapped_edges_lie_on_the_grid_or_stay_and_nothing_is_repeated(edges, grid):
    edges = sorted(edges[: len(edges) // 2 * 2])
    edit_list = edit_of(*zip(edges[::2], edges[1::2], strict=True), frames=1000)
    snapped = adjust.snap_joins(edit_list, np.array(sorted(grid), np.int64))
    assert {edge for span in spans_of(snapped) for edge in span} <= {*edges, *grid}
    assert all(start < stop for start, stop in spans_of(snapped))
    assert (np.diff(heard(snapped)) > 0).all()
    assert all(a[1] < b[0] for a, b in pairwise(spans_of(snapped)))


@given(random_edits, st.lists(spans, max_size=5), st.floats(0, 0.2))
@settings(max_examples=200, deadline=None)
def test_no_pause_outlasts_the_limit_and_no_sound_is_lost(edit_list, pauses, max_pause_s):
    shorter = heard(adjust.limit_pauses(edit_list, pauses, max_pause_s))
    quiet = np.zeros(1000, bool)
    for start, stop in pauses:
        quiet[start:stop] = True
    np.testing.assert_array_equal(shorter[~quiet[shorter]], heard(edit_list)[~quiet[heard(edit_list)]])
    edges = np.flatnonzero(np.diff(np.r_[False, quiet[shorter], False].astype(int)))
    assert (edges[1::2] - edges[::2] <= round(max_pause_s * RATE_HZ)).all()


@given(random_edits)
@settings(max_examples=100, deadline=None)
def test_wishes_that_ask_nothing_change_nothing(edit_list):
    for same in (
        adjust.cut_ranges(edit_list, []),
        adjust.without_short_clips(edit_list, 0.0),
    ):
        assert same == edit_list
    for same in (adjust.with_margin(edit_list, 0, 0), adjust.keep_ranges(edit_list, [])):
        np.testing.assert_array_equal(heard(same), heard(edit_list))
        assert played_spans(same) == played_spans(edit_list) and cut_spans(same) == cut_spans(edit_list)
