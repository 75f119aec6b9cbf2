"""Prepare: the same pairs give the same shards however they are built; bad pairs are named, never dropped."""

import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import editjax.align
from editjax import prepare as module
from editjax import shards, workers
from editjax.array_records import MANIFEST
from editjax.audio import Reader
from editjax.edits import UNALIGNED, EditList, Segment, Source, from_pointers, to_pointers, write_edits
from editjax.errors import CannotCreateError, DataError, EditjaxError, TryAgainError, UsageError
from editjax.files import sha256_of
from editjax.mel import STEM_FRAMES, FrameGrid, mel_of, mel_of_span
from editjax.prepare import PrepareSettings, prepare

RATE_HZ = 16000
SPANS = ((4000, 20000), (30000, 44000))
"""What every edit keeps, in samples: 30,000 of 48,000."""
PATIENCE_S = 120
"""For processes on a busy machine; a worker that outlives its parent would take for ever."""


def write_pair(folder, name, *, seed=0, style=None, edits=True, edited=True, **segment):
    """Three seconds of noise in bursts and an edit of it; `<name>~<style>` where a style is given."""
    rng = np.random.default_rng(seed)
    burst = np.repeat(rng.uniform(0.02, 0.3, 24), 2000)
    raw_S = (burst * rng.standard_normal(48000)).clip(-1, 1).astype(np.float32)
    raw_path = folder / f"{name}_raw.flac"
    folder.mkdir(parents=True, exist_ok=True)
    if not raw_path.exists():
        soundfile.write(raw_path, raw_S, RATE_HZ)
    raw_S, _ = soundfile.read(raw_path)
    stem = f"{name}~{style}" if style else name
    if edited:
        soundfile.write(folder / f"{stem}_edit.flac", np.concatenate([raw_S[a:b] for a, b in SPANS]), RATE_HZ)
    if edits:
        editor = {
            "name": "simulator",
            "style": style or "final",
            "target_length_s": 1.875 if style == "radio" else None,
            "sources": [f"song {name}"],
            "events": [{"start": 0, "stop": 4000, "kind": "talk"}],
            "effects": [[4000, 20000, "gain"]] if style == "produced" else [],
        }
        source = Source(raw_path.name, sha256_of(raw_path), RATE_HZ, 1, 48000)
        segments = tuple(Segment(a, b, a, b, **segment) for a, b in SPANS)
        write_edits(EditList(source, segments, editor), folder / f"{stem}.edits.json")
    return raw_path


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    for k in range(3):
        write_pair(folder, f"s{k}", seed=k)
    write_pair(folder, "s1", seed=1, style="radio")
    write_pair(folder, "s1", seed=1, style="produced")
    return folder


def fingerprints(folder):
    return {path.name: sha256_of(path) for path in folder.iterdir() if path.suffix == ".array_record"}


def test_an_example_holds_the_mel_the_pointers_and_the_labels_of_its_pair(pairs, tmp_path):
    report = prepare(pairs, tmp_path / "out", workers=1)
    assert report["good"] == ["s0", "s1", "s1~produced", "s1~radio", "s2"] and not report["skipped"]
    grid = FrameGrid(RATE_HZ)
    with shards.read(tmp_path / "out") as source, Reader(pairs / "s1_raw.flac") as reader:
        by_id = {entry.id: source[k] for k, entry in enumerate(source.entries)}
        mel_TF, _ = mel_of(reader)
        got = by_id["s1"]
        np.testing.assert_array_equal(got.mel_TF, mel_TF.astype(np.float16))
        expected = np.r_[tuple(slice(grid.frames_in(a), grid.frames_in(b)) for a, b in SPANS)]
        np.testing.assert_array_equal(got.pointers_N, expected)
        np.testing.assert_array_equal(got.edit_mel_NF, got.mel_TF[expected])
        assert len(got.labels) == len(got.beat_frames) and set(got.labels) <= set(range(8))
        assert 0 <= got.phase_T3.min() <= got.phase_T3.max() < 1
        assert got.meta["sources"] == ["song s1"]
        assert got.meta["events"] == [[0, int(grid.frames_in(4000)), "talk"]]
        assert [e.natural for e in source.entries if e.id.startswith("s1")] == [True, True, False]
        assert by_id["s1~radio"].meta["target_s"] == 1.875


def test_phases_stay_below_one_in_half_precision(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "beat_phases", lambda beats, n_frames, *_: np.full((n_frames, 3), 0.99999))
    prepare(pairs, tmp_path / "out", workers=1)
    with shards.read(tmp_path / "out") as source:
        assert 0.999 < source[0].phase_T3.max() < 1


def test_edits_of_one_raw_share_one_record(pairs, tmp_path):
    prepare(pairs, tmp_path / "out", workers=1)
    with shards.read(tmp_path / "out") as source:
        assert [entry.record for entry in source.entries] == [0, 1, 1, 1, 2]
        assert [edit.style for edit in source.recording(1).edits] == ["final", "produced", "radio"]


def test_a_processed_edit_keeps_the_mel_of_its_own_file_where_each_frame_is_heard(pairs, tmp_path):
    prepare(pairs, tmp_path / "out", workers=1)
    with shards.read(tmp_path / "out") as source, Reader(pairs / "s1~produced_edit.flac") as reader:
        recording = source.recording(1)
        on_its_own_grid_NF, _ = mel_of(reader)
    edits = {edit.id: edit for edit in recording.edits}
    assert edits["s1~radio"].edit_mel_NF is None
    stored_NF, pointers_N = edits["s1~produced"].edit_mel_NF, edits["s1~produced"].pointers_N
    assert len(stored_NF) == len(pointers_N)
    assert 5 in edits["s1~produced"].labels
    joined = np.flatnonzero(np.diff(pointers_N) != 1)
    away_N = np.abs(np.arange(len(pointers_N))[:, None] - np.array([-1, *joined, len(pointers_N)])).min(1) > 4
    played_NF = recording.mel_TF[pointers_N].astype(np.float32)
    off, off_grid = (
        np.abs(mel_NF[: len(played_NF)] - played_NF)[away_N] for mel_NF in (stored_NF, on_its_own_grid_NF)
    )
    assert away_N.sum() > 10 and off.max() < 0.01  # it was copied
    assert off.mean() < off_grid.mean() / 10


def test_the_mel_of_a_span_is_the_mel_of_the_whole_at_the_frames_of_its_grid(tmp_path):
    samples_S = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples_S, 22050, subtype="FLOAT")
    with Reader(tmp_path / "a.wav") as reader:
        whole_TF, _ = mel_of(reader)
        np.testing.assert_allclose(mel_of_span(reader, 0, len(whole_TF)), whole_TF, atol=1e-5)
        np.testing.assert_allclose(mel_of_span(reader, 5 * 512, 20), whole_TF[5:25], atol=1e-5)
        assert not mel_of_span(reader, 60_000, 3).any() and not len(mel_of_span(reader, 0, 0))


def test_frames_without_a_place_in_the_recording_are_heard_between_the_others():
    source, grid = Source("", "", 22050, 1, 512 * 40), FrameGrid(22050)
    pointers_N = np.array([*range(3, 9), *[UNALIGNED] * 4, *range(20, 30), UNALIGNED])
    edit_list = from_pointers(pointers_N, source, grid)
    found = list(module._heard_at(edit_list, grid, 512 * len(pointers_N)))
    assert found == [(0, 6), (6 * 512, 4), (10 * 512, 10), (20 * 512, 1)]
    assert found == list(module._heard_at(edit_list, grid, 512 * 21))


def test_workers_and_interruptions_change_no_byte(pairs, tmp_path, monkeypatch):
    prepare(pairs, tmp_path / "one", workers=1)
    prepare(pairs, tmp_path / "two", workers=2)
    prepared, real = [], module.prepare_recording

    def interrupted(files, settings):
        if len(prepared) == 2:
            raise KeyboardInterrupt
        prepared.append(files.id)
        return real(files, settings)

    monkeypatch.setattr(module, "prepare_recording", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(pairs, tmp_path / "three", workers=1)
    assert not (tmp_path / "three" / "manifest.json").exists()
    resumed = []
    monkeypatch.setattr(module, "prepare_recording", lambda f, s: resumed.append(f.id) or real(f, s))
    prepare(pairs, tmp_path / "three", workers=1)
    assert sorted(prepared + resumed) == ["s0", "s1", "s2"]
    assert (
        fingerprints(tmp_path / "one") == fingerprints(tmp_path / "two") == fingerprints(tmp_path / "three")
    )
    manifests = {(tmp_path / name / "manifest.json").read_text() for name in ("one", "two", "three")}
    assert len(manifests) == 1
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == [
        "manifest.json",
        "mel-00000.array_record",
        "report.json",
    ]


def test_bad_pairs_are_named_with_their_reason_and_the_good_ones_used(pairs, tmp_path):
    (pairs / "broken_raw.wav").write_bytes(b"no audio at all")
    (pairs / "broken_edit.wav").write_bytes(b"neither")
    write_pair(pairs, "foreign", seed=7)
    shutil.copy(pairs / "s0.edits.json", pairs / "foreign.edits.json")
    write_pair(pairs, "short", seed=8)
    soundfile.write(pairs / "short_edit.flac", np.zeros(9000), RATE_HZ)
    write_pair(pairs, "strange", seed=9, style="loud")
    (pairs / "text_raw.wav").write_text("renamed")
    (pairs / "text.edits.json").write_text("{}")
    (pairs / "lonely_raw.wav").touch()
    write_pair(pairs, "odd", seed=10)
    edits = json.loads((pairs / "odd.edits.json").read_text())
    edits["editor"]["events"] = [{"start": 0, "stop": 100}]
    (pairs / "odd.edits.json").write_text(json.dumps(edits))
    report = prepare(pairs, tmp_path / "out", workers=1)
    reasons = {bad["pair"]: bad["reason"] for bad in report["skipped"]}
    assert set(reasons) == {"broken", "foreign", "short", "strange~loud", "text", "lonely", "odd"}
    assert "broken_raw.wav" in reasons["broken"]
    assert "SHA-256" in reasons["foreign"]
    assert "lasts 0.56 s, its edit list makes 1.88 s" in reasons["short"]
    assert "'loud' is none of" in reasons["strange~loud"]
    assert all("\n" not in reason for reason in reasons.values())
    assert report["good"] == ["s0", "s1", "s1~produced", "s1~radio", "s2"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert shards.verify(tmp_path / "out")["examples"] == 5


def test_without_a_good_pair_the_error_names_the_first_and_no_shards_appear(tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "a_raw.wav").touch()
    (tmp_path / "pairs" / "a_edit.wav").touch()
    with pytest.raises(DataError, match=r"none of 1 pairs is good; a: .*a_raw\.wav"):
        prepare(tmp_path / "pairs", tmp_path / "out", workers=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["skipped"][0]["pair"] == "a"


def test_finished_shards_are_left_alone_and_others_not_overwritten_unasked(pairs, tmp_path):
    report = prepare(pairs, tmp_path / "out", workers=1)
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert prepare(pairs, tmp_path / "out", workers=1) == report
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(CannotCreateError, match="--overwrite"):
        prepare(pairs, tmp_path / "out", PrepareSettings(split="validation"), workers=1)
    prepare(pairs, tmp_path / "out", PrepareSettings(split="validation"), workers=1, overwrite=True)
    with shards.read(tmp_path / "out") as source:
        assert {entry.split for entry in source.entries} == {"validation"}


@pytest.mark.parametrize("report", ["[" * 200_000, "[]", "{}", "no"])
def test_shards_whose_report_cannot_be_read_are_others(pairs, tmp_path, report):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).touch()
    (tmp_path / "out" / "report.json").write_text(report)
    with pytest.raises(CannotCreateError, match="holds other shards"):
        prepare(pairs, tmp_path / "out", workers=1)


def test_a_run_without_a_good_pair_does_not_pass_off_other_shards_as_its_own(pairs, tmp_path):
    prepare(pairs, tmp_path / "out", workers=1)
    write_pair(tmp_path / "bad", "a")
    (tmp_path / "bad" / "a_edit.flac").write_bytes(b"no audio")
    with pytest.raises(DataError, match="none of 1 pairs is good"):
        prepare(tmp_path / "bad", tmp_path / "out", workers=1, overwrite=True)
    with pytest.raises(CannotCreateError, match="holds other shards"):
        prepare(tmp_path / "bad", tmp_path / "out", workers=1)


def test_a_run_cut_short_while_writing_does_not_pass_off_other_shards_as_its_own(
    pairs, tmp_path, monkeypatch
):
    prepare(pairs, tmp_path / "out", workers=1)
    write_pair(tmp_path / "other", "a")
    with monkeypatch.context() as patch:
        patch.setattr(module.shards, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "other", tmp_path / "out", workers=1, overwrite=True)
    prepare(tmp_path / "other", tmp_path / "out", workers=1)
    assert [entry.id for entry in shards.read(tmp_path / "out").entries] == ["a"]


def test_a_changed_file_is_prepared_again(pairs, tmp_path, monkeypatch):
    real, asked = module.prepare_recording, []
    monkeypatch.setattr(module, "prepare_recording", lambda f, s: asked.append(f.id) or real(f, s))
    monkeypatch.setattr(module.shards, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(pairs, tmp_path / "out", workers=1)
    assert sorted(asked) == ["s0", "s1", "s2"]
    os.utime(pairs / "s2.edits.json", ns=(1, 1))
    with pytest.raises(KeyboardInterrupt):
        prepare(pairs, tmp_path / "out", workers=1)
    assert asked[3:] == ["s2"]


def aligned(pointers_N, raw_path, ratio):
    grid = FrameGrid(RATE_HZ)
    source = Source(raw_path.name, sha256_of(raw_path), RATE_HZ, 1, 48000)
    edit_list = from_pointers(pointers_N, source, grid)
    return SimpleNamespace(pointers_N=pointers_N, edit_list=edit_list, alignment_ratio=ratio)


def test_without_an_edit_list_pointers_come_from_alignment(tmp_path, monkeypatch):
    raw_path = write_pair(tmp_path / "pairs", "a", edits=False)
    pointers_N = np.r_[np.arange(5, 30), [UNALIGNED] * 3, np.arange(40, 70)].astype(np.int32)
    monkeypatch.setattr(editjax.align, "align", lambda *_: aligned(pointers_N, raw_path, 0.95))
    report = prepare(tmp_path / "pairs", tmp_path / "out", workers=1)
    assert report["aligned"] == [{"pair": "a", "alignment_ratio": 0.95}]
    with shards.read(tmp_path / "out") as source:
        np.testing.assert_array_equal(source[0].pointers_N, pointers_N)
        assert source[0].meta["pointers"] == "alignment"
        assert source[0].edit_mel_NF.shape == (58, 128)


def test_alignment_finds_what_the_edit_list_says(tmp_path):
    write_pair(tmp_path / "pairs", "a")
    write_pair(tmp_path / "pairs", "b", seed=1, edits=False)
    report = prepare(tmp_path / "pairs", tmp_path / "out", PrepareSettings(check_alignment=True), workers=1)
    rows = {row["pair"]: row for row in report["aligned"]}
    assert rows["a"]["within_1_frame"] > 0.99
    assert min(row["alignment_ratio"] for row in rows.values()) > 0.95
    with shards.read(tmp_path / "out") as source:
        assert len(source[1].pointers_N) == pytest.approx(len(source[0].pointers_N), abs=2)
        assert np.abs(source[1].pointers_N[:40] - source[0].pointers_N[:40]).max() <= 1


def test_a_pair_that_does_not_belong_together_is_refused(tmp_path, monkeypatch):
    raw_path = write_pair(tmp_path / "pairs", "a", edits=False)
    monkeypatch.setattr(editjax.align, "align", lambda *_: aligned(np.arange(9), raw_path, 0.12))
    with pytest.raises(DataError, match=r"only 12% of it was found in a_raw\.flac"):
        prepare(tmp_path / "pairs", tmp_path / "out", workers=1)


def test_alignment_is_compared_with_the_edit_list_when_asked(tmp_path, monkeypatch):
    raw_path = write_pair(tmp_path / "pairs", "a")
    with Reader(raw_path) as reader:
        true_N = to_pointers(
            module.read_edits(tmp_path / "pairs" / "a.edits.json"), FrameGrid(reader.info.sample_rate_hz)
        )
    off_N = true_N + 1
    off_N[:10] = 0
    off_N[10:12] = UNALIGNED
    monkeypatch.setattr(editjax.align, "align", lambda *_: aligned(off_N, raw_path, 0.97))
    report = prepare(tmp_path / "pairs", tmp_path / "out", PrepareSettings(check_alignment=True), workers=1)
    (row,) = report["aligned"]
    assert row["pair"] == "a" and row["alignment_ratio"] == 0.97
    assert row["within_1_frame"] == pytest.approx(1 - 12 / len(true_N), abs=0.02)
    with shards.read(tmp_path / "out") as source:
        np.testing.assert_array_equal(source[0].pointers_N, true_N)


def test_a_share_of_the_recordings_goes_to_validation_with_all_their_edits():
    settings = PrepareSettings(validation=0.3)
    splits = [module._split_of(f"s{k}", settings) for k in range(2000)]
    assert np.mean([split == "validation" for split in splits]) == pytest.approx(0.3, abs=0.03)
    with pytest.raises(UsageError, match="validation"):
        PrepareSettings(validation=1.5)


def test_a_killed_run_leaves_no_workers_behind_and_goes_on_to_the_same_shards(pairs, tmp_path):
    prepare(pairs, tmp_path / "whole", workers=1)
    command = (
        f"from editjax.prepare import prepare; prepare({str(pairs)!r}, {str(tmp_path / 'out')!r}, workers=2)"
    )
    with subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.PIPE) as run:
        try:
            wait_until(lambda: any(tmp_path.glob("out/.staging/*.record")) or run.poll() is not None)
        finally:
            run.kill()
        run.communicate(
            timeout=PATIENCE_S
        )  # standard error closes when the last worker, which shares it, is gone
    prepare(pairs, tmp_path / "out", workers=1)
    assert fingerprints(tmp_path / "out") == fingerprints(tmp_path / "whole")


def wait_until(happened):
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_dies_is_one_clear_error_that_says_to_go_on():
    with pytest.raises(TryAgainError, match="run again") as caught:
        list(workers.results(module._stage, [_DEADLY, _DEADLY], 2, module.ADVICE))
    assert isinstance(caught.value, EditjaxError)


class _Deadly:
    """A job that kills the worker which unpacks it."""

    def __reduce__(self):
        return os._exit, (1,)


_DEADLY = _Deadly()


def write_stems(folder, name, *, rate_hz=RATE_HZ, seconds=3):
    """Two tracks, the second half as long as the first."""
    for k, track in enumerate(("a", "b"), 1):
        samples_S = 0.1 * np.random.default_rng(k).standard_normal(seconds * rate_hz // k)
        path = folder / f"{name}_stems" / f"{track}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, samples_S, rate_hz)


def test_stems_are_kept_in_steps_on_the_recording_s_frames(pairs, tmp_path):
    write_stems(pairs, "s1")
    prepare(pairs, tmp_path / "out", workers=1)
    with shards.read(tmp_path / "out") as source, Reader(pairs / "s1_stems" / "b.wav") as reader:
        assert [entry.stems for entry in source.entries] == [0, 2, 2, 2, 0]
        example = source[1]
        n_steps = -(-len(example.mel_TF) // STEM_FRAMES)
        assert example.stems_IMF.shape == (2, n_steps, example.mel_TF.shape[1])
        short_TF, _ = mel_of(reader)
        np.testing.assert_array_equal(example.stems_IMF[1, 2], short_TF[16:24].mean(0).astype(np.float16))
        assert example.stems_IMF[0].any(axis=1).all() and not example.stems_IMF[1, n_steps // 2 + 1 :].any()
        assert source[0].stems_IMF is None
    shards.verify(tmp_path / "out")


@pytest.mark.parametrize("other", [{"rate_hz": 22_050}, {"seconds": 4}])
def test_stems_of_another_recording_are_refused_by_name(pairs, tmp_path, other):
    write_stems(pairs, "s0", **other)
    report = prepare(pairs, tmp_path / "out", workers=1)
    (skipped,) = report["skipped"]
    assert (
        skipped["pair"] == "s0" and "a.wav" in skipped["reason"] and "no stem of s0_raw" in skipped["reason"]
    )


def test_a_changed_stem_is_prepared_again(pairs, tmp_path):
    prepare(pairs, tmp_path / "out", workers=1)
    write_stems(pairs, "s1")
    with pytest.raises(CannotCreateError, match="other shards"):
        prepare(pairs, tmp_path / "out", workers=1)
