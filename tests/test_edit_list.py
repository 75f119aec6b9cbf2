"""The edit list's file: what is written is read back, hand changes are understood, mistakes are named."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editjax.edit_list import EditList, Segment, Source, read_edits, source_tree, write_edits
from editjax.errors import CannotCreateError, DataError, NoInputError

SOURCE = Source("Aufnähme «1».wav", "ab" * 32, 44_100, 2, 441_000)
TRACK = source_tree(SOURCE)["source"]
EDITS = EditList(
    SOURCE,
    (
        Segment(100, 44_100, 90, 44_110, 441, 0, -1.5, 0.75, "kept: last take"),
        Segment(88_200, 132_300, 88_200, 132_300),
    ),
    {"name": "pointer", "unaligned": [[1, 12]]},
)


def tree_of(**changes) -> dict:
    tree = {
        "format": "editjax.edits",
        "version": 1,
        **source_tree(SOURCE),
        "segments": [segment._asdict() for segment in EDITS.segments],
        "editor": EDITS.editor,
    }
    return {**tree, **changes}


def written(folder, tree):
    path = folder / "edit.edits.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
    return path


def segments_of(**changes) -> list:
    return [{"start": 100, "stop": 44_100, **changes}]


def test_a_list_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "ö.edits.json"
    write_edits(EDITS, path)
    assert read_edits(path) == EDITS
    assert json.loads(path.read_text(encoding="utf-8")) == tree_of()


@st.composite
def segments(draw):
    start = draw(st.integers(0, SOURCE.frames - 1))
    stop = draw(st.integers(start + 1, SOURCE.frames))
    nominal_start = draw(st.integers(max(0, start - 100), start))
    nominal_stop = draw(st.integers(stop, min(SOURCE.frames, stop + 100)))
    fades = draw(st.tuples(st.integers(0, stop - start), st.integers(0, stop - start)))
    gain_db = draw(st.floats(-60, 20))
    score = draw(st.none() | st.floats(allow_nan=False, allow_infinity=False))
    return Segment(start, stop, nominal_start, nominal_stop, *fades, gain_db, score, draw(st.text()))


@given(st.lists(segments(), max_size=6))
@settings(max_examples=50, deadline=None)
def test_any_list_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("edits") / "a.edits.json"
    edit_list = EditList(SOURCE, tuple(rows), {"name": "any"})
    write_edits(edit_list, path)
    assert read_edits(path) == edit_list


def test_a_list_for_several_tracks_names_each_on_a_line(tmp_path):
    tracks = (SOURCE._replace(path="bass.wav", channels=1, frames=99_000), SOURCE._replace(path="keys.wav"))
    edit_list = EDITS._replace(source=SOURCE._replace(path="stems", tracks=tracks))
    write_edits(edit_list, tmp_path / "a.edits.json")
    assert read_edits(tmp_path / "a.edits.json") == edit_list
    lines = (tmp_path / "a.edits.json").read_text(encoding="utf-8").splitlines()
    assert [sum(name in line for line in lines) for name in ("bass.wav", "keys.wav", "stems")] == [1, 1, 1]


def test_a_segment_is_a_line_for_those_who_edit_by_hand(tmp_path):
    path = tmp_path / "a.edits.json"
    write_edits(EDITS, path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum('"nominal_start"' in line for line in lines) == len(EDITS.segments)


def test_an_existing_file_stays_unless_overwritten(tmp_path):
    path = written(tmp_path, "mine")
    with pytest.raises(CannotCreateError):
        write_edits(EDITS, path)
    assert path.read_text() == "mine"
    write_edits(EDITS, path, overwrite=True)
    assert read_edits(path) == EDITS


def test_a_list_that_could_not_be_read_back_is_not_written(tmp_path):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for broken in (
        EDITS._replace(editor={"deep": deep}),
        EDITS._replace(editor={"file": tmp_path}),
        EDITS._replace(editor={"score": math.nan}),
        EDITS._replace(segments=(Segment(0, 441_001, 0, 441_001),)),
    ):
        with pytest.raises(DataError):
            write_edits(broken, tmp_path / "a.edits.json")
    assert not list(tmp_path.iterdir())


def test_missing_fields_take_their_defaults(tmp_path):
    path = written(tmp_path, tree_of(segments=segments_of()) | {"editor": {}})
    assert read_edits(path).segments == (Segment(100, 44_100, 100, 44_100),)


def test_the_editor_may_be_missing_and_whole_floats_are_numbers(tmp_path):
    tree = tree_of(segments=segments_of(start=100.0, score=None))
    del tree["editor"]
    assert read_edits(written(tmp_path, tree)) == EditList(SOURCE, (Segment(100, 44_100, 100, 44_100),), {})


def test_the_nominal_follows_a_hand_but_not_a_placed_join(tmp_path):
    placed, late, early = (
        {"start": 100_000, "stop": 144_100},
        {"nominal_stop": 300_000},
        {"nominal_start": 2_000},
    )
    rows = [{**placed, "nominal_start": 100_150, **late}, {**placed, **early, "nominal_stop": 144_000}]
    path = written(tmp_path, tree_of(segments=rows, editor={}))
    assert [segment[:4] for segment in read_edits(path).segments] == [
        (100_000, 144_100, 100_150, 144_100),
        (100_000, 144_100, 100_000, 144_000),
    ]


@pytest.mark.parametrize(
    ("tree", "field", "remedy"),
    [
        ("{", "JSON", "correct"),
        ('{"format": NaN}', "JSON", "NaN"),
        ("[" * 100_000, "JSON", "correct"),
        ([], "format", '"format": "editjax.edits"'),
        (tree_of(format="otio"), "format", '"format": "editjax.edits"'),
        (tree_of(version=2), "version", "version 1"),
        (tree_of(version=True), "version", "version 1"),
        (tree_of(segmets=[]), "'segmets'", "'segments'"),
        (tree_of(segments=None), "segments", "list"),
        (tree_of(segments=[7]), "segments[0]", "start and stop"),
        (tree_of(editor=[]), "editor", "{}"),
        (tree_of(editor={"unaligned": [[3, 1]]}), "editor.unaligned", "segment 0 to 2"),
        (tree_of(editor={"unaligned": 5}), "editor.unaligned", "delete"),
        (tree_of(source=[]), "source", "sample_rate"),
        (tree_of(tracks=3), "tracks is int", "list"),
        (tree_of(tracks=[TRACK, {**TRACK, "sample_rate": 8_000}]), "tracks[1]", "correct"),
        (tree_of(tracks=[{**TRACK, "channels": 3}]), "tracks[0]", "correct"),
        (tree_of(tracks=[{**TRACK, "frames": 441_001}]), "tracks[0]", "correct"),
        (tree_of(tracks=[{**TRACK, "tracks": []}]), "tracks[0]", "known"),
        (tree_of(source={**TRACK, "path": 3}), "source.path", "text"),
        (tree_of(source={**TRACK, "sample_rate": 0}), "source.sample_rate", "at least 1"),
        (tree_of(source={"path": "a.wav", "sample_rate": 1, "channels": 1}), "source.frames", "whole number"),
        (tree_of(segments=segments_of(start=-1)), "segments[0].start", "from 0"),
        (tree_of(segments=segments_of(start="1:30")), "segments[0].start", "whole number"),
        (tree_of(segments=segments_of(start=0.5)), "segments[0].start", "whole number"),
        (tree_of(segments=segments_of(start=True)), "segments[0].start", "whole number"),
        (tree_of(segments=segments_of(stop=100)), "segments[0].stop", "from 101 to 441000"),
        (tree_of(segments=segments_of(stop=441_001)), "segments[0].stop", "from 101 to 441000"),
        (tree_of(segments=segments_of(fade_in=44_001)), "segments[0].fade_in", "from 0 to 44000"),
        (tree_of(segments=segments_of(fadein=3)), "segments[0]", "'fade_in'"),
        (tree_of(segments=segments_of(gain_db="loud")), "segments[0].gain_db", "number"),
        (tree_of(segments=segments_of(gain_db=10**400)), "segments[0].gain_db", "number"),
        (tree_of(segments=segments_of(reason=1)), "segments[0].reason", "text"),
        (tree_of(segments=segments_of(nominal_stop=-4)), "segments[0].nominal_stop", "from 0"),
    ],
)
def test_a_mistake_is_named_with_its_file_field_and_remedy(tmp_path, tree, field, remedy):
    path = written(tmp_path, tree)
    with pytest.raises(DataError) as caught:
        read_edits(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert field in message and remedy in message


def test_a_file_that_cannot_be_opened_is_no_input(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(NoInputError):
            read_edits(path)


def test_audio_given_as_an_edit_list_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF\xff\xfe\x00\x80")
    with pytest.raises(DataError, match=r"not UTF-8 text"):
        read_edits(path)
