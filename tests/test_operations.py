"""Operations are a view of an edit list that loses nothing, in memory and as JSON."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax.edit_list import EditList, Segment, Source, write_edits
from editjax.errors import DataError
from editjax.operations import Operation, from_operations, operations, operations_tree, read_edit

RATE_HZ, FRAMES = 8_000, 9_000
SOURCE = Source("take.wav", "0" * 64, RATE_HZ, 2, FRAMES)
MIX = SOURCE._replace(path="stems", tracks=(SOURCE._replace(channels=1, frames=500), SOURCE))


@st.composite
def edit_lists(draw) -> EditList:
    """Cuts, loops, reorders, contiguous segments, moved joins, fades, gains, scores and reasons."""
    segments: list[Segment] = []
    for _ in range(draw(st.integers(0, 8))):
        contiguous = segments and segments[-1].nominal_stop < FRAMES - 1 and draw(st.booleans())
        first = segments[-1].nominal_stop if contiguous else draw(st.integers(0, FRAMES - 2))
        last = draw(st.integers(first + 1, min(first + 2_000, FRAMES)))
        start = min(max(0, first + draw(st.integers(-30, 30))), FRAMES - 1)
        stop = min(max(start + 1, last + draw(st.integers(-30, 30))), FRAMES)
        fades = (draw(st.sampled_from([0, 0, 1, stop - start])) for _ in range(2))
        gain_db = draw(st.sampled_from([0.0, 0.0, -3.1]))
        score = draw(st.none() | st.floats(0, 1))
        segments.append(Segment(start, stop, first, last, *fades, gain_db, score, draw(st.text(max_size=3))))
    editor = draw(st.sampled_from([{}, {"name": "pointer", "unaligned": [[0, 7]]}]))
    return EditList(draw(st.sampled_from([SOURCE, MIX])), tuple(segments), editor)


@settings(max_examples=300)
@given(edit_lists())
def test_operations_lose_nothing_in_memory(edit_list):
    assert from_operations(operations(edit_list), edit_list.source, edit_list.editor) == edit_list


@settings(max_examples=100)
@given(edit_lists())
def test_operations_lose_nothing_as_json(tmp_path_factory, edit_list):
    path = tmp_path_factory.mktemp("ops") / "ops.json"
    path.write_text(json.dumps(operations_tree(edit_list)), encoding="utf-8")
    assert read_edit(path) == edit_list
    write_edits(edit_list, path, overwrite=True)
    assert read_edit(path) == edit_list, "an edit list's own file is read as well"


@settings(max_examples=100)
@given(edit_lists())
def test_operations_say_once_of_every_sample_what_becomes_of_it(edit_list):
    first_heard = [step for step in operations(edit_list) if step.kind in ("COPY", "REORDER", "CUT")]
    spans = sorted((step.start, step.stop) for step in first_heard)
    assert spans[0][0] == 0 and spans[-1][1] == FRAMES
    assert all(left[1] == right[0] for left, right in pairwise(spans))


def edit_of(*spans: tuple[int, int], **fields) -> EditList:
    return EditList(SOURCE._replace(frames=500), tuple(Segment(*s, *s, **fields) for s in spans), {})


def test_operations_name_the_loop_the_reorder_and_the_cut():
    steps = operations(edit_of((0, 100), (50, 150), (300, 400), (200, 250)))
    assert steps == [
        Operation("COPY", 0, 100, 0, 0),
        Operation("LOOP", 50, 100, 100, 1),
        Operation("COPY", 100, 150, 150, 1),
        Operation("CUT", 150, 200, 200),
        Operation("COPY", 300, 400, 200, 2),
        Operation("CUT", 400, 500, 300),
        Operation("REORDER", 200, 250, 300, 3),
        Operation("CUT", 250, 300, 350),
    ]


def test_operations_derive_fades_and_transitions():
    segments = (
        Segment(0, 100, 0, 100, fade_in=10, fade_out=20),
        Segment(200, 300, 200, 300, fade_in=25, fade_out=30),
    )
    steps = operations(edit_of()._replace(segments=segments))
    assert [step for step in steps if step.kind not in ("COPY", "CUT")] == [
        Operation("FADE_IN", 0, 10, 0),
        Operation("TRANSITION", 100, 200, 100, fade_out=20, fade_in=25),
        Operation("FADE_OUT", 270, 300, 170),
    ]


def test_an_edit_that_plays_nothing_is_one_cut():
    assert operations(edit_of()) == [Operation("CUT", 0, 500, 0)]


def test_operations_written_by_hand_need_no_more_than_what_they_do(tmp_path):
    steps = [("COPY", 0, 100, 0), ("COPY", 100, 120, 100), ("LOOP", 50, 100, 120), ("FADE_OUT", 90, 100, 160)]
    rows = [dict(zip(("kind", "start", "stop", "at"), step, strict=True)) for step in steps]
    tree = operations_tree(edit_of()) | {"operations": rows}
    (tmp_path / "ops.json").write_text(json.dumps(tree))
    segments = read_edit(tmp_path / "ops.json").segments
    assert segments == (Segment(0, 120, 0, 120), Segment(50, 100, 50, 100, fade_out=10))


@pytest.mark.parametrize(("row", "words"), [
    ({"kind": "COPI"}, "did you mean 'COPY'"), ({"kind": None}, "use one of"), ({"reason": 3}, "give a text"),
    ({"stop": 0}, "stop is 0"), ({"stop": 501}, "segments[0].stop is 501"), ({"start": 2.5}, "start is 2.5"),
    ({"kind": "FADE_IN", "at": 3}, "FADE_IN is at output sample 3"), ({"at": "x"}, "at is 'x'"),
    ({"moved_start": -1}, "start is -1"), ({"strat": 1}, "did you mean 'start'"),
])  # fmt: skip
def test_operations_that_make_no_sense_are_refused_in_one_line(tmp_path, row, words):
    plain = {"kind": "COPY", "start": 0, "stop": 100, "at": 0}
    tree = operations_tree(edit_of()) | {"operations": [plain | row]}
    path = tmp_path / "ops.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError) as error:
        read_edit(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
