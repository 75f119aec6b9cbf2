"""Pairs are found by name in every layout, and what has no counterpart is reported by name."""

import pytest

from editjax.errors import DataError, NoInputError
from editjax.pairs import EditFiles, RawFiles, find_cached, find_pairs


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_one_folder_with_several_edits_of_one_raw(tmp_path):
    touch(tmp_path, "a_raw.flac", "a_edit.flac", "a.edits.json", "a~radio_edit.flac", "a~tight.edits.json")
    (found,) = find_pairs(tmp_path).recordings
    assert found == RawFiles(
        "a",
        tmp_path / "a_raw.flac",
        (
            EditFiles("a", None, tmp_path / "a_edit.flac", tmp_path / "a.edits.json"),
            EditFiles("a~radio", "radio", tmp_path / "a~radio_edit.flac", None),
            EditFiles("a~tight", "tight", None, tmp_path / "a~tight.edits.json"),
        ),
    )


@pytest.mark.parametrize("root", ["", "training_data"])
def test_the_older_layout_of_two_folders(tmp_path, root):
    touch(tmp_path / root, "input/My song_raw.wav", "desired_output/My song_edit.wav", "input/notes.txt")
    (found,) = find_pairs(tmp_path).recordings
    assert found.id == f"{root}/My song".lstrip("/")
    assert (found.raw.name, found.edits[0].edited.name) == ("My song_raw.wav", "My song_edit.wav")


def test_names_may_hold_anything_and_raw_and_edit_may_differ_in_format(tmp_path):
    touch(
        tmp_path,
        "b/Ünï_raw_2_raw.WAV",
        "b/Ünï_raw_2_EDIT.mp3",
        "b/.hidden_raw.wav",
        "a/x_raw.wav",
        "a/x_edit.wav",
    )
    assert [files.id for files in find_pairs(tmp_path).recordings] == ["a/x", "b/Ünï_raw_2"]


def test_features_of_another_program_are_no_cache(tmp_path):
    touch(tmp_path, "a_raw.wav", "a_edit.wav", "features/stats.npz", "labels/stats.npy")
    assert find_cached(tmp_path) is None
    touch(tmp_path, "features/b_raw.npz")
    found = find_cached(tmp_path)
    assert not found.recordings and [name for name, _ in found.skipped] == [
        "b",
        "features/stats.npz",
        "labels/stats.npy",
    ]


def test_what_cannot_be_paired_is_reported_by_name(tmp_path):
    touch(
        tmp_path,
        "a_raw.wav",
        "b_edit.wav",
        "c_raw.wav",
        "c_raw.flac",
        "c_edit.wav",
        "d_raw.wav",
        "d_edit.wav",
    )
    touch(tmp_path, "d_edit.flac")
    found = find_pairs(tmp_path)
    assert [files.id for files in found.recordings] == ["d"]
    reasons = dict(found.skipped)
    assert "no edit a_edit" in reasons["a"]
    assert "no raw recording b_raw" in reasons["b"]
    assert "c_raw.flac, c_raw.wav; keep one" in reasons["c"]
    assert "d_edit.flac is the same edit" in reasons[str(tmp_path / "d_edit.wav")]


def test_a_table_names_files_relative_to_itself(tmp_path):
    touch(tmp_path, "songs/a_raw.wav", "songs/b.wav", "e1.wav", "e2.wav", "e3.edits.json", "e4.wav")
    rows = [
        "raw,edited,edits,style",
        "songs/a_raw.wav,e1.wav,,",
        "songs/a_raw.wav,e2.wav,e3.edits.json,radio",
        "songs/a_raw.wav,e4.wav,,radio",
        "songs/b.wav,,e3.edits.json,",
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(rows), encoding="utf-8-sig")
    found = find_pairs(tmp_path / "pairs.csv")
    assert not found.skipped
    assert [files.id for files in found.recordings] == ["songs/a", "songs/b"]
    edits = found.recordings[0].edits
    assert [edit.id for edit in edits] == ["songs/a", "songs/a~radio", "songs/a~radio2"]
    assert [edit.style for edit in edits] == [None, "radio", "radio"]
    assert edits[1].edits == tmp_path / "e3.edits.json"


def test_bad_lines_of_a_table_are_reported_by_number(tmp_path):
    touch(tmp_path, "a.wav", "b.wav", "a.flac")
    (tmp_path / "p.csv").write_text("raw,edited\na.wav,\nmissing.wav,b.wav\na.wav,b.wav\na.flac,b.wav\n")
    found = find_pairs(tmp_path / "p.csv")
    assert [files.id for files in found.recordings] == ["a"]
    assert [name for name, _ in found.skipped] == ["p.csv line 2", "p.csv line 3", "p.csv line 5"]
    assert "missing.wav" in found.skipped[1][1]
    assert "add a column id" in found.skipped[2][1]


@pytest.mark.parametrize(
    "text", ["", "left,right\na,b\n", "raw,edited,colour\na,b,c\n", b"raw,edited\n\xff\xfe,b\n"]
)
def test_an_unusable_table_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "p.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"p\.csv") as caught:
        find_pairs(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_empty_folder_is_one_clear_error(tmp_path):
    with pytest.raises(NoInputError, match="no such folder"):
        find_pairs(tmp_path / "nowhere")
    touch(tmp_path, "notes.txt", "song.wav")
    with pytest.raises(NoInputError, match="NAME_raw"):
        find_pairs(tmp_path)


def test_stems_lie_in_a_folder_of_their_own_beside_the_raw_file(tmp_path):
    """They are no pairs themselves, whatever their names; a folder of that name without its recording is."""
    touch(tmp_path, "a_raw.wav", "a_edit.wav", "a_stems/b.flac", "a_stems/voice_raw.wav", "a_stems/notes.txt")
    touch(
        tmp_path,
        "a_stems/voice_edit.wav",
        "a_stems/.hidden.wav",
        "drum_stems/c_raw.wav",
        "drum_stems/c_edit.wav",
    )
    touch(tmp_path, "input/d_raw.wav", "desired_output/d_edit.wav", "input/d_stems/bass.wav")
    found = find_pairs(tmp_path)
    stems = {files.id: [path.name for path in files.stems] for files in found.recordings}
    assert not found.skipped
    assert stems == {
        "a": ["b.flac", "voice_edit.wav", "voice_raw.wav"],
        "d": ["bass.wav"],
        "drum_stems/c": [],
    }


def test_a_table_names_folders_of_stems(tmp_path):
    touch(tmp_path, "x.wav", "y.wav", "tracks/1.wav", "tracks/2.wav")
    (tmp_path / "p.csv").write_text("raw,edited,stems\nx.wav,y.wav,tracks\ny.wav,x.wav,nowhere\n")
    found = find_pairs(tmp_path / "p.csv")
    assert [path.name for path in found.recordings[0].stems] == ["1.wav", "2.wav"]
    assert found.skipped == (("p.csv line 3", "no such file or folder: nowhere"),)
