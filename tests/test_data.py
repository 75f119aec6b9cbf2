"""Batches: a pure function of the step, padded to static shapes, truthful about the edit."""

import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pytest

from editjax import shards
from editjax.augment import AugmentSettings
from editjax.data import IGNORE, Batch, DataSettings, Plan, batches
from editjax.edits import PAD, STOP, UNALIGNED, EditLabel, labels_of_frames
from editjax.errors import DataError, UsageError
from editjax.mel import STEM_FRAMES, MelSettings
from editjax.records import Edit, Recording, encode, scatter_frames
from editjax.styles import STYLES

MEL = MelSettings(n_mels=16)
LENGTHS = (90, 180, 95, 60, 200, 150, 99, 240, 30, 170, 390)
SETTINGS = DataSettings(
    batch_frames=400, buckets=((100, 64), (200, 128), (256, 160)), threads=2, prefetch_batches=2, seed=3
)
PLAIN = replace(SETTINGS, augment=None)
"""The recording of 390 frames fits no bucket; the others fit theirs without stretching."""


def plan_of(folder, settings):
    with shards.read(folder) as source:
        return Plan(source.entries, settings)


def make_recording(number, n_frames):
    rng = np.random.default_rng(number)
    thirds = n_frames // 6
    final = np.r_[thirds : 2 * thirds, 3 * thirds : 4 * thirds]
    extended = np.r_[final, thirds : 2 * thirds].astype(np.int32)
    extended[0] = UNALIGNED
    labels = np.zeros(len(range(0, n_frames, 43)), np.uint8)
    edits = (
        Edit(f"r{number}", "final", final.astype(np.int32), labels, None, {"natural": True}),
        Edit(f"r{number}~extended", "extended", extended, labels, None, {"natural": False}),
    )
    return Recording(
        id=f"r{number}",
        mel_TF=rng.random((n_frames, MEL.n_mels)).astype(np.float16),
        phase_T3=rng.random((n_frames, 3)).astype(np.float16),
        beat_frames=np.arange(0, n_frames, 43),
        edits=edits,
        meta={"sources": ["song"], "split": "validation" if number % 5 == 4 else "train"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    records = (encode(make_recording(k, length)) for k, length in enumerate(LENGTHS))
    shards.write(path, records, mel=asdict(MEL), settings={}, shard_bytes=40_000)
    return path


def take(folder, settings, count, start=0, **options):
    with closing(batches(folder, settings, **options)) as iterator:
        if start:
            iterator.set_state({"next_index": start})
        return list(islice(iterator, count))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name, x, y in zip(Batch._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name, strict=True)


def test_a_restored_iterator_goes_on_with_the_same_batches(folder):
    whole = take(folder, SETTINGS, 20)
    with closing(batches(folder, SETTINGS)) as iterator:
        head = list(islice(iterator, 7))
        state = iterator.get_state()
    assert state == {"next_index": 7}
    with closing(batches(folder, SETTINGS)) as iterator:
        iterator.set_state(state)
        tail = list(islice(iterator, 13))
    assert_same(whole, head + tail)


def test_a_batch_deep_in_the_run_can_be_made_alone(folder):
    assert_same(take(folder, SETTINGS, 1, start=123_456_789), take(folder, SETTINGS, 1, start=123_456_789))
    assert_same(take(folder, SETTINGS, 40)[39:], take(folder, SETTINGS, 1, start=39))


def test_threads_change_nothing(folder):
    alone = replace(SETTINGS, threads=1, prefetch_batches=1)
    many = replace(SETTINGS, threads=8, prefetch_batches=16)
    assert_same(take(folder, alone, 12), take(folder, many, 12))


def test_another_seed_and_another_epoch_give_other_batches(folder):
    size = plan_of(folder, SETTINGS).batches_per_epoch
    first = take(folder, SETTINGS, 2 * size)
    ids = [tuple(batch.ids_B) for batch in first]
    assert ids[:size] != ids[size:]
    assert ids != [tuple(batch.ids_B) for batch in take(folder, replace(SETTINGS, seed=4), 2 * size)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_example(folder, shuffle):
    got = take(folder, replace(PLAIN, shuffle=shuffle), 1000, epochs=1)
    assert len(got) == plan_of(folder, PLAIN).batches_per_epoch
    assert set(np.concatenate([batch.ids_B for batch in got])) == set(range(2 * len(LENGTHS)))


def test_a_few_long_examples_do_not_fill_whole_batches(folder):
    settings = replace(PLAIN, batch_frames=4000)
    plan = plan_of(folder, settings)
    counts = np.bincount(np.concatenate([plan[k].examples for k in range(30 * plan.batches_per_epoch)])) / 30
    assert counts.min() >= 1
    assert counts[plan.members[2]].max() < 2 < settings.batch_size(256) / len(plan.members[2])


def test_shapes_are_the_buckets_and_nothing_else(folder):
    for batch in take(folder, SETTINGS, 25):
        size, frames, bands = batch.mel_BTF.shape
        steps = batch.pointers_BN.shape[1]
        assert (frames, steps) in SETTINGS.buckets
        assert (size, bands) == (SETTINGS.batch_size(frames), 16)
        assert batch.phase_BT3.shape == (size, frames, 3)
        assert batch.structure_BT.shape == (size, frames)
        for name in ("frames_B", "steps_B", "target_B", "style_B", "ids_B"):
            assert getattr(batch, name).shape == (size,)
        kinds = "f4 i4 f4 i4 i4 i4 i4 f4 i4 i4 f4 b1 f4 i4 i4"
        assert " ".join(array.dtype.str[1:] for array in batch) == kinds


def test_examples_fit_their_bucket_and_batches_are_about_equally_large(folder):
    for batch in take(folder, SETTINGS, 25):
        assert (batch.frames_B <= batch.mel_BTF.shape[1]).all()
        assert (batch.steps_B <= batch.pointers_BN.shape[1]).all()
    assert [SETTINGS.batch_size(frames) for frames, _ in SETTINGS.buckets] == [4, 2, 1]
    assert replace(SETTINGS, batch_multiple=4).batch_size(256) == 4


def test_padding_is_empty_and_says_so(folder):
    for batch in take(folder, SETTINGS, 12):
        for row, (frames, steps) in enumerate(zip(batch.frames_B, batch.steps_B, strict=True)):
            assert not batch.mel_BTF[row, frames:].any()
            assert not batch.phase_BT3[row, frames:].any()
            assert (batch.structure_BT[row, frames:] == IGNORE).all()
            assert (batch.structure_BT[row, :frames] >= 0).all()
            assert batch.pointers_BN[row, steps - 1] == STOP
            assert (batch.pointers_BN[row, steps:] == PAD).all()
            assert (batch.pointers_BN[row] == STOP).sum() == 1
            assert batch.pointers_BN[row, : steps - 1].max() < frames


def test_without_augmentation_a_batch_holds_what_the_shards_hold(folder):
    with shards.read(folder) as source:
        for batch in take(folder, PLAIN, 25):
            for row, number in enumerate(batch.ids_B):
                example, frames, steps = source[number], batch.frames_B[row], batch.steps_B[row] - 1
                if len(example.mel_TF) > frames:
                    continue
                np.testing.assert_array_equal(batch.mel_BTF[row, :frames], example.mel_TF.astype(np.float32))
                np.testing.assert_array_equal(batch.phase_BT3[row, :frames], example.phase_T3)
                np.testing.assert_array_equal(batch.pointers_BN[row, :steps], example.pointers_N)
                assert STYLES[batch.style_B[row]] == example.style
                expected = np.zeros(frames, np.int32)
                for pointer in example.pointers_N[example.pointers_N >= 0]:
                    expected[pointer] = min(expected[pointer] + 1, 2)
                np.testing.assert_array_equal(batch.structure_BT[row, :frames], expected)


def test_a_recording_too_long_for_every_bucket_is_cropped_with_its_pointers(folder):
    with shards.read(folder) as source:
        number = next(k for k, entry in enumerate(source.entries) if entry.frames == 390)
        example = source[number]
    rows = [
        (batch.mel_BTF[0], batch.frames_B[0], batch.pointers_BN[0, : batch.steps_B[0] - 1])
        for batch in take(folder, PLAIN, 60)
        if batch.ids_B[0] == number
    ]
    assert rows
    for mel_TF, frames, pointers_N in rows:
        assert frames <= 256
        places = example.pointers_N[np.isin(example.pointers_N, np.arange(390))]
        np.testing.assert_array_equal(
            mel_TF[pointers_N], example.mel_TF[places[-len(pointers_N) :]].astype(np.float32)
        )


def test_lengths_are_asked_for_always_where_they_are_not_natural_and_sometimes_where_they_are(folder):
    def shares(probability):
        asked = {True: [], False: []}
        for batch in take(folder, replace(PLAIN, target_ask_probability=probability), 60):
            for target, steps, style in zip(batch.target_B, batch.steps_B, batch.style_B, strict=True):
                assert target in (0, steps - 1)
                asked[STYLES[style] == "final"].append(target > 0)
        return np.mean(asked[True]), np.mean(asked[False])

    assert shares(0.0) == (0.0, 1.0)
    assert shares(1.0) == (1.0, 1.0)
    assert shares(0.5)[0] == pytest.approx(0.5, abs=0.2)


def test_styles_and_splits_choose_the_examples(folder):
    chosen = replace(PLAIN, styles=("extended",), split="validation")
    got = np.concatenate([batch.ids_B for batch in take(folder, chosen, 20)])
    with shards.read(folder) as source:
        assert {(source.entries[k].style, source.entries[k].split) for k in got} == {
            ("extended", "validation")
        }
    with pytest.raises(DataError, match="none of its 22 examples"):
        batches(folder, replace(PLAIN, styles=("produced",)))


def test_nothing_of_another_split_is_mixed_in(folder, monkeypatch, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "shards")  # readers that were left behind read the other
    touched = set()
    real = shards.Source.recording

    def recording(self, number, edits):
        if self.folder == folder:
            touched.add(number)
        return real(self, number, edits)

    monkeypatch.setattr(shards.Source, "recording", recording)
    take(folder, replace(SETTINGS, split="train", augment=AugmentSettings(mix_probability=1.0)), 40)
    with shards.read(folder) as source:
        assert touched == {entry.record for entry in source.entries if entry.split == "train"}


def test_processes_share_every_batch_without_overlap(folder):
    settings = replace(SETTINGS, batch_multiple=2)
    whole = take(folder, settings, 6)
    halves = [take(folder, settings, 6, process_index=k, process_count=2) for k in range(2)]
    joined = [Batch(*map(np.concatenate, zip(a, b, strict=True))) for a, b in zip(*halves, strict=True)]
    assert_same(whole, joined)
    with pytest.raises(UsageError, match="3 processes"):
        batches(folder, settings, process_count=3)


IMPOSSIBLE_BUCKETS = ((), ((200, 9), (100, 9)), ((100, 9), (200, 8)), ((1, 1),))


@pytest.mark.parametrize("wrong", [{"styles": ("loud",)}, *({"buckets": b} for b in IMPOSSIBLE_BUCKETS)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UsageError):
        DataSettings(**wrong)


def test_importing_data_imports_neither_jax_nor_grain():
    code = "import sys, editjax.data, editjax.prepare; print({'jax', 'grain', 'librosa'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


STEMS = (0, 3, 1, 5, 0, 2, 12, 0, 1, 4)
KEPT = AugmentSettings(stemless_probability=0.0, lost_stem_probability=0.0)


@pytest.fixture(scope="module")
def stem_folder(tmp_path_factory):
    """The same recordings with so many stems, whose first value is their number."""
    path = tmp_path_factory.mktemp("stems")
    records = []
    for k, length in enumerate(LENGTHS):
        recording, count = make_recording(k, length), STEMS[k % len(STEMS)]
        stems_IMF = np.random.default_rng(k).random((count, -(-length // STEM_FRAMES), 16)).astype(np.float16)
        records.append(encode(recording._replace(stems_IMF=stems_IMF if count else None)))
    shards.write(path, records, mel=asdict(MEL), settings={}, shard_bytes=40_000)
    return path


def test_without_stems_there_are_arrays_of_none(folder):
    for batch in take(folder, SETTINGS, 8):
        size, frames, bands = batch.mel_BTF.shape
        assert batch.stems_BIMF.shape == (size, 0, -(-frames // STEM_FRAMES), bands)
        assert batch.present_BI.shape == (size, 0)


def test_stems_change_nothing_else_of_a_batch(folder, stem_folder):
    for settings in (PLAIN, SETTINGS):
        for a, b in zip(take(folder, settings, 12), take(stem_folder, settings, 12), strict=True):
            for name in set(Batch._fields) - {"stems_BIMF", "present_BI"}:
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_a_batch_holds_the_stems_of_its_examples_and_says_which_there_are(stem_folder):
    rows_seen = set()
    with shards.read(stem_folder) as source:
        for batch in take(stem_folder, PLAIN, 40):
            counts = [source.entries[number].stems for number in batch.ids_B]
            rows = batch.stems_BIMF.shape[1]
            rows_seen.add(rows)
            assert rows == (1 << (min(max(counts), 8) - 1).bit_length() if max(counts) else 0)
            for row, (number, count) in enumerate(zip(batch.ids_B, counts, strict=True)):
                assert batch.present_BI[row].tolist() == [k < min(count, 8) for k in range(rows)]
                assert not batch.stems_BIMF[row, ~batch.present_BI[row]].any()
                stems_IMF = source[number].stems_IMF
                if 0 < count <= 8 and batch.frames_B[row] == source.entries[number].frames:
                    held_IMF = batch.stems_BIMF[row, :count, : stems_IMF.shape[1]]
                    np.testing.assert_array_equal(held_IMF, stems_IMF.astype(np.float32))
    assert {2, 4, 8} <= rows_seen


def test_stems_go_missing_the_same_way_whenever_a_batch_is_made(stem_folder):
    losing = replace(SETTINGS, augment=AugmentSettings(stemless_probability=0.3, lost_stem_probability=0.3))
    whole = take(stem_folder, losing, 20)
    assert_same(whole[13:], take(stem_folder, replace(losing, threads=7), 7, start=13))
    kept = take(stem_folder, replace(SETTINGS, augment=KEPT), 20)
    left = [sum(int(batch.present_BI.sum()) for batch in some) for some in (whole, kept)]
    assert 0.3 < left[0] / left[1] < 0.7
    assert [b.stems_BIMF.shape for b in whole] == [b.stems_BIMF.shape for b in kept]
    none = take(stem_folder, replace(SETTINGS, most_stems=0), 5)
    assert all(batch.present_BI.size == batch.stems_BIMF.size == 0 for batch in none)


def test_what_becomes_of_every_raw_frame_is_in_the_batch_where_it_is_asked_for(folder):
    for batch in take(folder, replace(PLAIN, edited=True), 8):
        for row, (mel_TF, edited_TF) in enumerate(zip(batch.mel_BTF, batch.edited_BTF, strict=True)):
            played_T = batch.structure_BT[row] > 0
            np.testing.assert_array_equal(edited_TF[played_T], mel_TF[played_T])  # nothing was processed
            assert not edited_TF[~played_T].any()
            frames = int(batch.frames_B[row])
            assert set(batch.label_BT[row, frames:]) <= {EditLabel.PAD}
            assert set(batch.label_BT[row, :frames]) == {EditLabel.CUT}  # as all their beats say
    assert take(folder, PLAIN, 1)[0].edited_BTF.shape[1] == 0


def test_gain_tempo_and_pitch_change_the_edit_as_they_change_the_recording(folder):
    quiet = AugmentSettings(noise_probability=0.0, mix_probability=0.0, time_masks=0, mel_masks=0)
    for batch in take(folder, replace(SETTINGS, edited=True, augment=quiet), 8):
        for row, (mel_TF, edited_TF) in enumerate(zip(batch.mel_BTF, batch.edited_BTF, strict=True)):
            played_T = batch.structure_BT[row] > 0
            np.testing.assert_allclose(edited_TF[played_T], mel_TF[played_T], atol=1e-6)
            assert not edited_TF[~played_T].any()


def test_a_looped_frame_is_as_it_is_heard_first():
    edit_mel_NF = np.arange(5, dtype=np.float32)[:, None] + 1
    mel_TF = scatter_frames(edit_mel_NF, np.array([2, 3, UNALIGNED, 2, 0]), 5)
    np.testing.assert_array_equal(mel_TF[:, 0], [5, 0, 1, 2, 0])


def test_frames_have_the_label_of_their_beat():
    labels = labels_of_frames(np.array([1, 0, 2], np.uint8), np.array([2, 4, 6]), np.array([0, 2, 3]), 8)
    np.testing.assert_array_equal(labels, [1, 0, 1, 1, 0, 0, 2, 2])
    assert len(labels_of_frames(np.zeros(0, np.uint8), np.zeros(0, int), np.array([0]), 3)) == 3
