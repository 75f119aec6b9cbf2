"""Labels of beats as edit lists: what is asked for comes back as labels, at every rate and edge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editjax.edits import EditLabel, Source, beat_labels, duration_samples, read_edits, write_edits
from editjax.joins import LONGEST_FADE_S
from editjax.labels import MOST_GAIN_DB, Run, labelled_edit, runs_of, without_scraps
from editjax.mel import FrameGrid
from editjax.reward import TIMES_HEARD

HOP, RATE_HZ, BEAT = 512, 22050, 10
RATES_HZ = (8000, 11025, 22050, 44100, 48000)
SHORT = dict(zip("CKLIOETP", EditLabel, strict=True))
"""A letter a label: Cut, Keep, Loop, fade In, fade Out, Effect, Transition, Pad."""


def labels_of(word: str) -> np.ndarray:
    return np.array([SHORT[letter] for letter in word], np.int64)


def source_of(n_frames: int, rate_hz: int = RATE_HZ) -> Source:
    return Source("", "0" * 64, rate_hz, 1, int(FrameGrid(rate_hz).sample_of_frame(n_frames)))


def edit_of(word: str, gain_db: float = 6.0, starts=None, n_frames: int = 0, rate_hz: int = RATE_HZ):
    """(edit list, where its beats begin): a letter a beat, of ten frames each unless told."""
    starts = np.arange(0, BEAT * len(word), BEAT) if starts is None else starts
    n_frames = n_frames or BEAT * len(word)
    runs = runs_of(labels_of(word), starts[1:], n_frames)
    runs = [run._replace(gain_db=gain_db if run.label == EditLabel.EFFECT else 0.0) for run in runs]
    return labelled_edit(runs, FrameGrid(rate_hz), source_of(n_frames, rate_hz), {"name": "labels"}), starts


def again(word: str, gain_db: float = 6.0, **options) -> str:
    """The letters of the labels that the edit of a word has."""
    edit_list, starts = edit_of(word, gain_db, **options)
    rate_hz = edit_list.source.sample_rate
    n_frames = int(FrameGrid(rate_hz).frames_in(edit_list.source.frames))
    labels = beat_labels(edit_list, starts, n_frames, grid=FrameGrid(rate_hz))
    letters = {label: letter for letter, label in SHORT.items()}
    return "".join(letters[EditLabel(label)] for label in labels)


def spans(edit_list) -> list[tuple[int, int]]:
    """What is played, in frames."""
    return [(s.start // HOP, s.stop // HOP) for s in edit_list.segments]


SAID_AGAIN = """
KKKK CKKC KCKCK CIKKOC KLKK LKKK KKKL LLKC KLCLK KEEK EKKE EEEE KECEK KTCTK KTTCCTK TCT TCTCT CIC COC IIKOO
IKCLKO CIEOC KELK KLEK IILOO IETCTK KTCTEL CIIC COOC CILOC
"""


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_labels_that_an_edit_can_say_come_back(rate_hz):
    for word in SAID_AGAIN.split():
        assert again(word, rate_hz=rate_hz) == word


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("KOCIK", "KTCTK"),  # fades that meet over a cut are one crossfade
        ("KTCKK", "KKCKK"),
        ("KKCTK", "KKCKK"),
        ("KTCIK", "KKCIK"),
        ("KOCTK", "KOCKK"),
        ("TKKT", "KKKK"),
        ("KTKK", "KKKK"),
        ("KIKOK", "KKKKK"),
        ("OKKI", "KKKK"),
        ("KPPK", "KCCK"),
        ("CCCC", "CCCC"),
    ],
)
def test_what_no_edit_can_say_is_played_or_cut(word, wanted):
    assert again(word) == wanted


def test_an_effect_that_is_not_heard_is_played_as_it_is():
    assert again("KEEK", gain_db=0.9) == "KKKK" == again("KEEK", gain_db=-0.9)
    assert again("KEEK", gain_db=1.0) == "KEEK" == again("KEEK", gain_db=-1.0)
    assert spans(edit_of("KEEK", gain_db=0.9)[0]) == [(0, 40)]
    assert spans(edit_of("KEEK", gain_db=1.0)[0]) == [(0, 10), (10, 30), (30, 40)]


def test_gains_are_those_of_the_runs_and_not_beyond_the_most():
    gains = [segment.gain_db for segment in edit_of("KEK", gain_db=-3.5)[0].segments]
    assert gains == [0.0, -3.5, 0.0]
    for asked_db in (-99.0, 99.0):
        segments = edit_of("E", gain_db=asked_db)[0].segments
        assert [segment.gain_db for segment in segments] == [np.sign(asked_db) * MOST_GAIN_DB]


def test_loops_are_heard_twice_and_go_on():
    assert spans(edit_of("KLKK")[0]) == [(0, 20), (10, 40)]
    assert spans(edit_of("LK")[0]) == [(0, 10), (0, 20)]
    assert spans(edit_of("KL")[0]) == [(0, 20), (10, 20)]
    assert spans(edit_of("LL")[0]) == [(0, 20), (0, 20)]
    assert spans(edit_of("KLCLK")[0]) == [(0, 20), (10, 20), (30, 40), (30, 50)]


def test_a_transition_is_as_long_as_both_of_its_sides():
    before, after = edit_of("KTTCCTK")[0].segments
    assert (before.fade_in, before.fade_out) == (0, 20 * HOP)
    assert (after.fade_in, after.fade_out) == (10 * HOP, 0)


def test_fades_that_would_overlap_share_the_segment_and_others_fill_it():
    _, middle, _ = edit_of("TCTCT")[0].segments
    assert (middle.fade_in, middle.fade_out) == (5 * HOP, 5 * HOP)
    (rises,), (falls,) = (edit_of(word)[0].segments for word in ("CIIC", "COOC"))
    assert (rises.fade_in, rises.fade_out) == (20 * HOP, 0) == (falls.fade_out, falls.fade_in)


def test_fades_are_no_longer_than_an_edit_may_have():
    minutes = round(3 * LONGEST_FADE_S * RATE_HZ / HOP)
    (segment,) = edit_of("C" + "I" + "C", starts=np.array([0, 10, minutes]), n_frames=minutes + 10)[
        0
    ].segments
    assert segment.fade_in == LONGEST_FADE_S * RATE_HZ < segment.stop - segment.start


def test_beats_begin_where_they_are_said_to():
    labels = labels_of("KCKC")
    assert runs_of(labels, np.array([3, 9, 20]), 31) == [
        Run(EditLabel.KEEP, 0, 3),
        Run(EditLabel.CUT, 3, 9),
        Run(EditLabel.KEEP, 9, 20),
        Run(EditLabel.CUT, 20, 31),
    ]
    assert runs_of(labels_of("K"), np.array([], np.int64), 7) == [Run(EditLabel.KEEP, 0, 7)]
    assert runs_of(labels_of("CK"), np.array([0]), 7) == [Run(EditLabel.KEEP, 0, 7)]
    assert runs_of(labels_of("KC"), np.array([7]), 7) == [Run(EditLabel.KEEP, 0, 7)]
    assert runs_of(labels_of("KKPC"), np.array([2, 4, 6]), 8) == [
        Run(EditLabel.KEEP, 0, 4),
        Run(EditLabel.CUT, 4, 8),
    ]
    assert runs_of(labels_of("K"), np.array([], np.int64), 0) == []
    with pytest.raises(ValueError):
        runs_of(labels, np.array([3, 9]), 31)


def test_a_beat_without_frames_parts_nothing():
    assert runs_of(labels_of("KCK"), np.array([5, 5]), 9) == [Run(EditLabel.KEEP, 0, 9)]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("CCKKCCKKKKCC", "CCCCCCKKKKCC"),  # three beats and fewer are scraps
        ("KKCCEOCCKKKK", "KKCCCCCCKKKK"),
        ("KK", "KK"),
        ("KKCCCC", "KKCCCC"),
        ("CCCCKK", "CCCCKK"),
        ("CKEKC", "CCCCC"),
        ("CKEKOC", "CKEKOC"),
    ],
)
def test_scraps_lie_between_two_cuts(word, wanted):
    """What a recording begins or ends with is kept however short it is."""
    frames = 10 * np.arange(1, len(word))
    kept = without_scraps(runs_of(labels_of(word), frames, 10 * len(word)), shortest=35)
    found = "".join("CKLIOETP"[run.label] * ((run.stop - run.start) // 10) for run in kept)
    assert found == wanted


def test_nothing_kept_is_no_segments():
    for word in ("C", "CCC", "PP"):
        assert edit_of(word)[0].segments == ()
    assert labelled_edit([], FrameGrid(RATE_HZ), source_of(10)).segments == ()


def test_the_last_beat_ends_with_the_recording():
    grid, source = FrameGrid(44100), Source("", "", 44100, 1, 44_101)
    n_frames = int(grid.frames_in(source.frames))
    (segment,) = labelled_edit([Run(EditLabel.FADE_OUT, 0, n_frames)], grid, source).segments
    assert (segment.start, segment.stop, segment.fade_out) == (0, 44_101, 44_101)
    runs = [Run(EditLabel.KEEP, 0, 40), Run(EditLabel.FADE_OUT, 40, n_frames)]
    (segment,) = labelled_edit(runs, grid, source).segments
    assert segment.fade_out == 44_101 - int(grid.sample_of_frame(40))


@st.composite
def labelled(draw):
    """A word, its gain, where its beats begin, how many frames there are, a rate."""
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=14))
    letters = draw(st.lists(st.sampled_from("CKLIOETP"), min_size=len(lengths), max_size=len(lengths)))
    starts = np.cumsum([0, *lengths])
    gain_db = draw(st.sampled_from([-20.0, -1.0, 0.5, 3.0]))
    return "".join(letters), gain_db, starts[:-1], int(starts[-1]), draw(st.sampled_from(RATES_HZ))


@given(labelled())
def test_any_labels_are_an_edit_that_can_be_written_of_what_is_heard(tmp_path_factory, case):
    word, gain_db, starts, n_frames, rate_hz = case
    edit_list, _ = edit_of(word, gain_db, starts, n_frames, rate_hz)
    at = [int(FrameGrid(rate_hz).sample_of_frame(frame)) for frame in [*starts.tolist(), n_frames]]
    heard = np.array(TIMES_HEARD)[labels_of(word)] * np.diff(at)
    assert duration_samples(edit_list) == heard.sum()
    for segment in edit_list.segments:
        assert 0 <= segment.start < segment.stop <= edit_list.source.frames
        assert (segment.nominal_start, segment.nominal_stop) == (segment.start, segment.stop)
        assert min(segment.fade_in, segment.fade_out) >= 0
        assert segment.fade_in + segment.fade_out <= segment.stop - segment.start
    path = tmp_path_factory.getbasetemp() / "any.edits.json"
    write_edits(edit_list, path, overwrite=True)
    assert read_edits(path) == edit_list


@given(labelled())
def test_what_has_been_said_once_is_said_again(case):
    word, _, starts, n_frames, rate_hz = case
    where = {"starts": starts, "n_frames": n_frames, "rate_hz": rate_hz}
    once = again(word, 6.0, **where)
    assert again(once, 6.0, **where) == once
    assert [a in "CP" for a in word] == [b == "C" for b in once]
    assert [a == "L" for a in word] == [b == "L" for b in once]
    assert [a == "E" for a in word] == [b == "E" for b in once]
