"""Shards: what is written is what is read, bit for bit, and damage is found."""

import json
import pickle
import resource
import signal
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from editjax import shards
from editjax.array_records import MANIFEST
from editjax.edits import UNALIGNED
from editjax.errors import DataError, InputOutputError, NoInputError
from editjax.records import Edit, Recording, decode, encode, example

MEL = {"n_mels": 4}


def make_recording(name, n_frames=40, n_edits=1, seed=0):
    rng = np.random.default_rng([seed, n_frames, n_edits])
    edits = tuple(
        Edit(
            id=name if k == 0 else f"{name}~radio",
            style="final" if k == 0 else "radio",
            pointers_N=np.arange(3 + k, 20, dtype=np.int32),
            labels=np.arange(5, dtype=np.uint8),
            edit_mel_NF=None if k == 0 else rng.random((17 - k, 4)).astype(np.float16),
            meta={"natural": k == 0},
        )
        for k in range(n_edits)
    )
    return Recording(
        id=name,
        mel_TF=rng.random((n_frames, 4)).astype(np.float16),
        phase_T3=rng.random((n_frames, 3)).astype(np.float16),
        beat_frames=np.arange(0, n_frames, 8, dtype=np.int32),
        edits=edits,
        meta={"sources": [f"song of {name}"], "split": "train"},
    )


def make_shards(folder, count=7, shard_bytes=1000):
    recordings = [make_recording(f"r{k}", 30 + k, 1 + k % 2, seed=k) for k in range(count)]
    shards.write(folder, map(encode, recordings), mel=MEL, settings={}, shard_bytes=shard_bytes)
    return recordings


def assert_same_recording(a, b):
    assert (a.id, a.meta) == (b.id, b.meta)
    for name in ("mel_TF", "phase_T3", "beat_frames"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
    for x, y in zip(a.edits, b.edits, strict=True):
        assert (x.id, x.style, x.meta) == (y.id, y.style, y.meta)
        np.testing.assert_array_equal(x.pointers_N, y.pointers_N, strict=True)
        np.testing.assert_array_equal(x.labels, y.labels, strict=True)
        assert (x.edit_mel_NF is None) == (y.edit_mel_NF is None)
        if x.edit_mel_NF is not None:
            np.testing.assert_array_equal(x.edit_mel_NF, y.edit_mel_NF, strict=True)


@given(
    mel_TF=hnp.arrays(
        np.float16, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.floats(0, 1, width=16)
    ),
    pointers_N=hnp.arrays(np.int32, st.integers(0, 9), elements=st.integers(-3, 2**31 - 1)),
    name=st.text(min_size=1, max_size=8),
)
def test_a_record_gives_back_what_went_in_bit_for_bit(mel_TF, pointers_N, name):
    edit = Edit(name, "final", pointers_N, np.zeros(2, np.uint8), None, {"natural": True})
    phase_T3 = np.full((len(mel_TF), 3), 0.25, np.float16)
    recording = Recording(name, mel_TF, phase_T3, np.zeros(2, np.int32), (edit,), {"note": name})
    assert_same_recording(decode(encode(recording)), recording)


def test_an_edit_of_raw_frames_is_gathered_by_its_pointers():
    recording = make_recording("a")
    pointers_N = np.array([5, 6, UNALIGNED, 2], np.int32)
    got = example(recording, recording.edits[0]._replace(pointers_N=pointers_N))
    np.testing.assert_array_equal(got.edit_mel_NF[[0, 1, 3]], recording.mel_TF[[5, 6, 2]])
    assert not got.edit_mel_NF[2].any()


@given(cut=st.integers(0, 10_000), at=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_damaged_record_raises_one_clear_error_or_decodes(cut, at, value):
    record = bytearray(encode(make_recording("a", n_edits=2)))
    record[at % len(record)] = value
    for damaged in (bytes(record), bytes(record[: cut % len(record)])):
        try:
            decode(damaged)
        except DataError as error:
            assert "\n" not in str(error)


def test_a_record_with_bytes_left_over_is_damaged():
    with pytest.raises(DataError, match="header promises"):
        decode(encode(make_recording("a")) + b"\0")


def test_examples_are_read_in_any_order_from_several_shards(tmp_path):
    recordings = make_shards(tmp_path)
    wanted = [(recording, edit) for recording in recordings for edit in recording.edits]
    with shards.read(tmp_path) as source:
        assert len(source.manifest["shards"]) > 2
        assert len(source) == len(wanted) == 10
        for index in np.random.default_rng(0).permutation(len(source)):
            recording, edit = wanted[index]
            got, entry = source[index], source.entries[index]
            np.testing.assert_array_equal(got.mel_TF, recording.mel_TF)
            np.testing.assert_array_equal(got.pointers_N, edit.pointers_N)
            assert (entry.id, entry.frames, entry.steps) == (edit.id, len(got.mel_TF), len(got.pointers_N))
            assert (entry.style, entry.natural) == (edit.style, edit.style == "final")
            assert entry.sources == tuple(recording.meta["sources"])


def test_threads_and_pickled_copies_read_the_same(tmp_path):
    make_shards(tmp_path)
    with shards.read(tmp_path) as source:
        alone = [source[k].mel_TF for k in range(len(source))]
        with pickle.loads(pickle.dumps(source)) as copy, ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda k: copy[k].mel_TF, list(range(len(copy))) * 3))
    for k, mel_TF in enumerate(together):
        np.testing.assert_array_equal(mel_TF, alone[k % len(alone)])


def test_the_same_records_give_the_same_bytes(tmp_path):
    make_shards(tmp_path / "a")
    make_shards(tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_training_is_watched_on_the_first_examples_of_a_split_and_of_its_styles(tmp_path, capsys):
    make_shards(tmp_path)
    every = [one.id for one in shards.watched(tmp_path, None, ())]
    assert len(every) == 10 and [one.id for one in shards.watched(tmp_path, None, (), 2)] == every[:2]
    (entry, *_) = shards.read(tmp_path).entries
    assert len(shards.watched(tmp_path, entry.split, [entry.style])) > 0
    assert not capsys.readouterr().err
    assert shards.watched(tmp_path, "nowhere", ["final"]) == []
    err = capsys.readouterr().err
    assert "no example of split 'nowhere' and style 'final'" in err and err.count("\n") == 1
    with pytest.raises(DataError, match="no example of style 'loose' or 'tight' to validate on"):
        shards.watched(tmp_path, None, ["loose", "tight"])


def test_verify_passes_whole_shards_and_counts_them(tmp_path):
    make_shards(tmp_path)
    counts = shards.verify(tmp_path)
    assert (counts["records"], counts["examples"]) == (7, 10)
    assert counts["styles"] == {"final": 7, "radio": 3}


def test_verify_names_the_shard_with_a_changed_byte(tmp_path):
    make_shards(tmp_path)
    path = sorted(tmp_path.glob("*.array_record"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name}.*SHA-256"):
        shards.verify(tmp_path)


def test_verify_names_a_missing_shard(tmp_path):
    make_shards(tmp_path)
    path = sorted(tmp_path.glob("*.array_record"))[1]
    path.unlink()
    with pytest.raises(NoInputError, match=path.name):
        shards.verify(tmp_path)


@pytest.mark.parametrize(
    "change", [{"id": "x"}, {"steps": 3}, {"frames": 3}, {"style": "tight"}, {"edit": 5}]
)
def test_verify_finds_a_manifest_that_disagrees_with_its_records(tmp_path, change):
    make_shards(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["digest"]
    manifest["examples"][4].update(change)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="differs from the manifest"):
        shards.verify(tmp_path)


def test_a_manifest_that_was_changed_is_refused_and_one_of_before_digests_read(tmp_path):
    make_shards(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    for text in (json.dumps({**manifest, "mel": {"n_mels": 5}}), path.read_text()[:-1]):
        path.write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json: changed or damaged"):
            shards.read(tmp_path)
    del manifest["digest"]
    path.write_text(json.dumps(manifest))
    shards.read(tmp_path).close()


def test_a_folder_without_a_manifest_is_no_folder_of_shards(tmp_path):
    with pytest.raises(NoInputError, match="editjax prepare"):
        shards.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 200_000, "{}", {"format": "other"}, {"version": 99}, {"version": 1}]
)
def test_a_foreign_manifest_is_refused_in_one_line(tmp_path, text):
    text = text if isinstance(text, str) else json.dumps({"format": "editjax.shards", **text})
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError) as caught:
        shards.read(tmp_path)
    assert "manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_of_brackets_alone_is_damaged():
    with pytest.raises(DataError, match="damaged shard record"):
        decode(struct.pack("<I", 200_000) + b"[" * 200_000)


def test_a_shard_that_is_no_array_record_is_named(tmp_path):
    make_shards(tmp_path)
    (tmp_path / "mel-00000.array_record").write_bytes(b"nothing like it")
    with shards.read(tmp_path) as source, pytest.raises(DataError, match="mel-00000"):
        source[0]


def test_an_interrupted_write_leaves_no_manifest_and_no_half_shard(tmp_path):
    make_shards(tmp_path)

    def interrupted():
        yield encode(make_recording("a"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(tmp_path, interrupted(), mel=MEL, settings={})
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_writing_again_removes_shards_that_are_no_longer_named(tmp_path):
    make_shards(tmp_path)
    before = len(list(tmp_path.glob("*.array_record")))
    make_shards(tmp_path, count=1)
    assert len(list(tmp_path.glob("*.array_record"))) == 1 < before
    shards.verify(tmp_path)


def test_a_full_disk_is_one_error_and_leaves_nothing_half_written(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputOutputError, match="mel-00000"):
            make_shards(tmp_path, shard_bytes=1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_stems_are_read_as_written_and_shards_from_before_there_were_any_still_are(tmp_path):
    stems_IMF = np.random.default_rng(0).random((3, 5, 4)).astype(np.float16)
    recordings = [make_recording("a")._replace(stems_IMF=stems_IMF), make_recording("b")]
    shards.write(tmp_path, map(encode, recordings), mel=MEL, settings={})
    with shards.read(tmp_path) as source:
        assert [entry.stems for entry in source.entries] == [3, 0]
        np.testing.assert_array_equal(source[0].stems_IMF, stems_IMF, strict=True)
        assert source[1].stems_IMF is None
    assert encode(recordings[1]) == encode(recordings[0]._replace(id="b", edits=recordings[1].edits,
        mel_TF=recordings[1].mel_TF, meta=recordings[1].meta, stems_IMF=None))  # fmt: skip
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["digest"]
    for stems in (None, 2):
        manifest["examples"][0]["stems"] = stems
        (tmp_path / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(DataError, match="example a differs"):
            shards.verify(tmp_path)
    for fields in manifest["examples"]:
        del fields["stems"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with shards.read(tmp_path) as source:
        assert [entry.stems for entry in source.entries] == [0, 0]
