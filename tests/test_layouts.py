"""Folders as public sets have them: what is found, under which group, split and labels."""

import json

import pytest

from editjax.errors import DataError, NoInputError, UsageError
from editjax.layouts import find
from editjax.recordings import split_of_family


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_any_folder_groups_by_song_and_reads_its_manifest(tmp_path):
    touch(tmp_path, "a/song__bass.wav", "a/song__drums.wav", "b/other.flac", "speech/talk.ogg", "notes.txt")
    (tmp_path / "manifest.csv").write_text("file,kind,genre\nb/other.flac,noise,field\n")
    found = {one.name: one for one in find(tmp_path)}
    assert sorted(found) == ["a/song__bass.wav", "a/song__drums.wav", "b/other.flac", "speech/talk.ogg"]
    assert found["a/song__bass.wav"].group == found["a/song__drums.wav"].group == "song"
    assert found["a/song__bass.wav"].split == found["a/song__drums.wav"].split == split_of_family("song")
    assert found["b/other.flac"].labels == {"kind": "noise", "genre": "field"}
    assert found["speech/talk.ogg"].labels == {"kind": "speech"}


def test_gtzan_has_genres_and_every_excerpt_its_own_split(tmp_path):
    touch(tmp_path, *(f"genres_original/blues/blues.{k:05d}.wav" for k in range(40)), "genres_original/x.wav")
    found = find(tmp_path, "gtzan")
    assert len(found) == 40 and all(one.labels == {"genre": "blues"} for one in found)
    assert {one.split for one in found} == {"train", "valid", "test"}


def test_fma_reads_artists_genres_and_its_own_split(tmp_path):
    touch(tmp_path, "fma_small/000/000002.mp3", "fma_small/000/000005.mp3", "fma_small/000/000007.mp3")
    rows = [
        ",artist,set,track,track",
        ",id,split,genre_top,title",
        "track_id,,,,",
        "2,1,training,Hip-Hop,Food",
        '5,1,training,Hip-Hop,"This, World"',
        "9,3,test,Rock,Gone",
    ]
    touch(tmp_path, "fma_metadata/tracks.csv")
    (tmp_path / "fma_metadata/tracks.csv").write_text("\n".join(rows) + "\n")
    found = find(tmp_path, "fma")
    assert [one.name for one in found] == ["000/000002.mp3", "000/000005.mp3"]  # of 7 nobody says anything
    assert {one.group for one in found} == {"artist 1"} and {one.split for one in found} == {"train"}
    assert found[0].labels == {"genre": "Hip-Hop"}
    (tmp_path / "fma_metadata/tracks.csv").write_text("track_id,title\n2,Food\n")
    with pytest.raises(DataError, match=r"tracks\.csv: not the tracks\.csv of fma_metadata"):
        find(tmp_path, "fma")
    (tmp_path / "fma_metadata/tracks.csv").unlink()
    with pytest.raises(NoInputError, match=r"fma_metadata\.zip"):
        find(tmp_path, "fma")


def test_nsynth_has_instruments_and_its_own_split(tmp_path):
    touch(tmp_path, "nsynth-valid/audio/bass_1-050-075.wav", "nsynth-valid/examples.json")
    notes = {
        "bass_1-050-075": {"instrument_str": "bass_1", "instrument_family_str": "bass"},
        "bass_1-051-075": {"instrument_str": "bass_1", "instrument_family_str": "bass"},  # not downloaded
    }
    (tmp_path / "nsynth-valid/examples.json").write_text(json.dumps(notes))
    (one,) = find(tmp_path, "nsynth")
    assert (one.group, one.split, one.labels) == ("bass_1", "valid", {"instrument": "bass"})
    (tmp_path / "nsynth-valid/examples.json").write_text('{"bass_1-050-075": 1}')
    with pytest.raises(DataError, match=r"examples\.json: not the examples\.json of NSynth"):
        find(tmp_path, "nsynth")


def test_musdb_keeps_the_stems_of_a_song_together(tmp_path):
    touch(tmp_path, "train/Song A/drums.wav", "train/Song A/mixture.wav", "test/Song B/vocals.wav")
    found = {one.name: one for one in find(tmp_path, "musdb")}
    assert found["train/Song A/drums.wav"].labels == {"instrument": "drums"}
    assert found["train/Song A/drums.wav"].group == found["train/Song A/mixture.wav"].group == "Song A"
    assert found["train/Song A/drums.wav"].split in ("train", "valid")
    assert found["test/Song B/vocals.wav"].split == "test"
    touch(tmp_path, "train/Song C.stem.mp4")
    with pytest.raises(DataError, match=r"Song C\.stem\.mp4: stems in one MP4"):
        find(tmp_path, "musdb")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(NoInputError, match="no such folder"):
        find(tmp_path / "gone")
    with pytest.raises(NoInputError, match="no audio file in the layout 'gtzan'"):
        find(tmp_path, "gtzan")
    with pytest.raises(UsageError, match="layout 'cd' is unknown"):
        find(tmp_path, "cd")
