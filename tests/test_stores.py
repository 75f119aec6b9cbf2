"""Object stores: recordings are prepared out of one and into one, to the bytes of a local folder."""

import errno
import json
import pickle
from pathlib import Path

import fsspec
import pytest
from test_prepare import fingerprints, write_pair, write_stems

from editjax import prepare as module
from editjax import shards, stores
from editjax.array_records import write_json
from editjax.cli import main
from editjax.errors import CannotCreateError, InputOutputError, NoInputError, UsageError
from editjax.pairs import find_pairs
from editjax.prepare import PrepareSettings, prepare
from editjax.stores import StorePath, place


@pytest.fixture
def store():
    """A store in memory, empty; files are put into it and got out of it."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def pairs(tmp_path, store):
    """Good and bad pairs, in a folder and in the store alike."""
    folder = tmp_path / "pairs"
    for k in range(2):
        write_pair(folder / "album", f"s{k}", seed=k)
    write_pair(folder / "album", "s1", seed=1, style="radio")
    write_stems(folder / "album", "s0")
    (folder / "broken_raw.wav").write_bytes(b"no audio at all")
    (folder / "broken_edit.wav").write_bytes(b"neither")
    (folder / "lonely_raw.wav").touch()
    store.put(str(folder), "/bucket/pairs", recursive=True)
    return folder


def test_shards_out_of_a_store_and_in_one_are_those_of_a_folder(pairs, store, tmp_path):
    report = prepare(pairs, tmp_path / "here", workers=1)
    stored = prepare("memory://bucket/pairs", "memory://bucket/shards", workers=1)
    assert report["good"] == ["album/s0", "album/s1", "album/s1~radio"]
    assert stored["good"] == report["good"] and len(report["skipped"]) == 2
    reasons = json.dumps(report["skipped"]).replace(str(pairs), "memory://bucket/pairs")
    assert json.dumps(stored["skipped"]) == reasons
    assert sorted(store.find("/bucket/shards")) == [
        f"/bucket/shards/{name}" for name in ("manifest.json", "mel-00000.array_record", "report.json")
    ]
    store.get("/bucket/shards", str(tmp_path / "there"), recursive=True)
    assert fingerprints(tmp_path / "there") == fingerprints(tmp_path / "here")
    manifests = {(tmp_path / name / "manifest.json").read_bytes() for name in ("here", "there")}
    assert len(manifests) == 1
    assert shards.verify(tmp_path / "there")["examples"] == 3


def test_one_end_may_be_a_store_and_the_other_a_folder(pairs, store, tmp_path):
    prepare(pairs, tmp_path / "here", workers=1)
    prepare("memory://bucket/pairs", tmp_path / "mixed", workers=1)
    assert fingerprints(tmp_path / "mixed") == fingerprints(tmp_path / "here")


def test_a_table_in_a_store_names_files_beside_it(pairs, store, tmp_path):
    rows = "\ufeffraw,edited,stems\nalbum/s0_raw.flac,album/s0_edit.flac,album/s0_stems\nno.wav,no2.wav,\n"
    for table in (pairs / "table.csv", place("memory://bucket/pairs/table.csv")):
        with stores.new_file(table) as file:
            file.write_text(rows, encoding="utf-8")
    here, there = find_pairs(pairs / "table.csv"), find_pairs("memory://bucket/pairs/table.csv")
    assert here.skipped == there.skipped and len(here.skipped) == 1
    moved = [
        files.moved(lambda path: pairs / path.relative_to("memory://bucket/pairs"))
        for files in there.recordings
    ]
    assert moved == list(here.recordings) and len(moved[0].stems) == 2


def test_an_interrupted_run_in_a_store_goes_on_where_it_was(pairs, store, tmp_path, monkeypatch):
    prepare(pairs, tmp_path / "here", workers=1)
    real, asked = module.prepare_recording, []
    monkeypatch.setattr(module, "prepare_recording", lambda f, s: asked.append(f.id) or real(f, s))
    with monkeypatch.context() as patch:
        patch.setattr(module.shards, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare("memory://bucket/pairs", "memory://bucket/shards", workers=1)
    assert not store.exists("/bucket/shards/manifest.json")
    prepare("memory://bucket/pairs", "memory://bucket/shards", workers=1)
    assert sorted(asked) == ["album/s0", "album/s1", "broken", "broken"]  # the bad one is tried again
    store.get("/bucket/shards", str(tmp_path / "there"), recursive=True)
    assert fingerprints(tmp_path / "there") == fingerprints(tmp_path / "here")


def test_shards_in_a_store_are_not_overwritten_unasked(pairs, store):
    report = prepare("memory://bucket/pairs", "memory://bucket/shards", workers=1)
    assert prepare("memory://bucket/pairs", "memory://bucket/shards", workers=1) == report
    other = PrepareSettings(split="validation", shard_bytes=1)
    with pytest.raises(CannotCreateError, match="memory://bucket/shards: holds other shards"):
        prepare("memory://bucket/pairs", "memory://bucket/shards", other, workers=1)
    prepare("memory://bucket/pairs", "memory://bucket/shards", other, workers=1, overwrite=True)
    assert len(store.glob("/bucket/shards/mel-*")) == 2
    store.rm("/bucket/pairs/album/s1~radio_edit.flac")
    prepare("memory://bucket/pairs", "memory://bucket/shards", workers=1, overwrite=True)
    assert len(store.glob("/bucket/shards/mel-*")) == 1  # what the manifest does not name is gone


def test_a_changed_object_of_the_same_size_is_another_one(store):
    path = place("memory://bucket/a_raw.wav")
    store.pipe("/bucket/a_raw.wav", b"abc")
    before = stores.stamp(path)
    store.pipe("/bucket/a_raw.wav", b"abd")
    assert before[0] == stores.stamp(path)[0] == 3 and before != stores.stamp(path)


def test_a_path_in_a_store_keeps_its_spelling(store):
    path = StorePath("gs://bucket/pairs")
    assert str(path / "a b" / "x_raw.wav") == "gs://bucket/pairs/a b/x_raw.wav"
    assert (path / "sub" / "x").relative_to(path).as_posix() == "sub/x"
    assert str(path.parent) == "gs://bucket" and pickle.loads(pickle.dumps(path)) == path
    assert path.with_name("y") == StorePath("gs://bucket/y")
    assert str(place("memory://bucket/x/")) == "memory://bucket/x" and isinstance(place("x"), Path)


@pytest.mark.parametrize("named", ["memory:///user/pairs", "memory://", "memory://bucket//pairs", "file://"])
def test_a_name_that_a_path_would_turn_into_another_one_is_refused(named):
    with pytest.raises(UsageError, match=f"^{named}: give a bucket"):
        place(named)


def test_a_url_of_a_file_is_a_path_of_this_machine(pairs, tmp_path):
    assert place(f"file://{tmp_path}") == tmp_path and not stores.in_store(place(f"file://{tmp_path}"))
    assert find_pairs(f"file://{pairs}") == find_pairs(pairs)


def test_a_store_that_cannot_be_used_is_one_line(store, tmp_path, monkeypatch, capsys):
    with pytest.raises(UsageError, match="no store nowhere:// is known"):
        prepare("nowhere://bucket/pairs", tmp_path / "out")
    with pytest.raises(NoInputError, match="memory://bucket/none: no such folder or CSV file"):
        prepare("memory://bucket/none", tmp_path / "out")

    def missing(scheme):
        raise ImportError("\nInstall s3fs to access S3\nor else")

    with monkeypatch.context() as patch:
        patch.setattr(fsspec, "get_filesystem_class", missing)
        assert main(["prepare", "s3://bucket/pairs", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err == "editjax: s3://bucket/pairs: Install s3fs to access S3\n"

    def refuse(*_, **__):
        raise RuntimeError("\n403 Forbidden\n<xml>")

    monkeypatch.setattr(type(store), "isdir", refuse)
    with pytest.raises(InputOutputError, match=r"memory://bucket/pairs: 403 Forbidden; check the name"):
        find_pairs("memory://bucket/pairs")
    assert not (tmp_path / "out").exists()


def test_a_missing_bucket_and_an_object_that_has_gone_are_one_line(store, tmp_path, monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError("bucket")

    for method in ("put_file", "get_file"):
        monkeypatch.setattr(type(store), method, gone)
    with pytest.raises(CannotCreateError, match="memory://bucket/a: there is no such bucket"):
        write_json(place("memory://bucket/a"), {})
    with pytest.raises(NoInputError, match="memory://bucket/a: is there no longer"):
        StorePath("memory://bucket/a").download(tmp_path / "a")


def failing(monkeypatch, store, name, *errors):
    """Let the store fail with these errors, one after the other, when the object of this name is fetched."""
    real, left = type(store).get_file, list(errors)

    def get_file(self, key, local, **options):
        if key.endswith(name) and left:
            raise left.pop(0)
        real(self, key, local, **options)

    monkeypatch.setattr(type(store), "get_file", get_file)


@pytest.mark.parametrize(
    "errors, reason",
    [
        ([FileNotFoundError("s1")], "s1_edit.flac: is there no longer"),
        ([OSError("reset by peer")] * 2, "s1_edit.flac: reset by peer; check the name and your access"),
    ],
)
def test_an_object_that_cannot_be_fetched_costs_its_recording_alone(
    pairs, store, monkeypatch, errors, reason
):
    failing(monkeypatch, store, "/s1_edit.flac", *errors)
    report = prepare("memory://bucket/pairs", "memory://bucket/shards", workers=1)
    assert report["good"] == ["album/s0"]
    missed = {bad["pair"]: bad["reason"] for bad in report["skipped"]}
    for pair in ("album/s1", "album/s1~radio"):
        assert missed[pair].startswith(f"memory://bucket/pairs/album/{reason}")


def test_a_store_that_fails_once_is_asked_again(pairs, store, monkeypatch):
    failing(monkeypatch, store, "/s1_edit.flac", OSError("reset by peer"))
    report = prepare("memory://bucket/pairs", "memory://bucket/shards", workers=1)
    assert report["good"] == ["album/s0", "album/s1", "album/s1~radio"]


def test_a_full_temporary_folder_is_not_taken_for_a_refusal_of_the_store(store, tmp_path, monkeypatch):
    failing(monkeypatch, store, "/a", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(InputOutputError, match=f"^{tmp_path}: no room for memory://bucket/a .*set TMPDIR"):
        StorePath("memory://bucket/a").download(tmp_path / "a")


def test_an_object_appears_whole_or_not_at_all(store):
    path = place("memory://bucket/report.json")
    with pytest.raises(KeyboardInterrupt), stores.new_file(path) as file:
        file.write_text("half")
        raise KeyboardInterrupt
    assert not path.exists()
