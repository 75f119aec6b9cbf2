"""Caches of the earlier super editor become shards: true to their mels and labels, and to what those lack."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import soxr

from editjax import prepare as prepare_module
from editjax import shards
from editjax.beats import BeatSettings
from editjax.cached_mels import LOUDEST_DB, CachedMel, play, read_labels, read_mels, stretches
from editjax.cli import main
from editjax.data import DataSettings, batches
from editjax.edits import UNALIGNED, EditLabel, labels_of_beats, labels_of_frames
from editjax.errors import DataError
from editjax.mel import MelSettings, mel_spectrogram
from editjax.prepare import PrepareSettings, prepare

CUT, KEEP, LOOP, FADE_OUT, EFFECT = (
    EditLabel.CUT,
    EditLabel.KEEP,
    EditLabel.LOOP,
    EditLabel.FADE_OUT,
    EditLabel.EFFECT,
)
FRAMES, BEAT = 430, 20
FPS = MelSettings().frames_per_second
BEAT_FRAMES = np.arange(5, FRAMES, BEAT)
BEATS = [KEEP, KEEP, CUT, CUT, LOOP, KEEP, FADE_OUT, CUT, EFFECT, EFFECT, KEEP, CUT] * 2
BEATS = np.array(BEATS[: len(BEAT_FRAMES)])
LABELS = np.repeat(BEATS, BEAT)[: FRAMES - 5]
LABELS = np.append(np.full(5, KEEP), LABELS)
SETTINGS = DataSettings(
    styles=("produced",), edited=True, augment=None, batch_frames=512, buckets=((512, 1024),), shuffle=False
)


def values(n_frames: int = FRAMES, seed: int = 0) -> np.ndarray:
    """A mel in the form of dB below the loudest, 0 to 1: no two frames of it are alike."""
    mel_TF = np.random.default_rng(seed).uniform(0.3, 0.9, (n_frames, 128)).astype(np.float32)
    mel_TF[7, 3] = 1.0
    return mel_TF


def as_ours(mel_TF: np.ndarray) -> np.ndarray:
    return ((mel_TF - 1) * 80 + LOUDEST_DB + 80) / 120


def edit_of(raw_TF: np.ndarray, label_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edited values and the raw frames they play, frame by frame from the labels' meaning."""
    mel, pointers, start = [], [], 0
    while start < len(label_T):
        stop = start
        while stop < len(label_T) and label_T[stop] == label_T[start]:
            stop += 1
        played = {CUT: [], LOOP: [*range(start, stop)] * 2}.get(label_T[start], [*range(start, stop)])
        for t in played:
            loss = {FADE_OUT: 0.2 * (t - start) / (stop - start)}.get(label_T[t], 0.0)
            mel.append(
                np.where(np.arange(128) < 20, 0.1, raw_TF[t] - loss)
                if label_T[t] == EFFECT
                else raw_TF[t] - loss
            )
        pointers += played
        start = stop
    return np.array(mel, np.float32), np.array(pointers)


def write_cache(
    folder: Path,
    name: str = "a",
    *,
    raw: dict[str, Any] | None = None,
    edited: dict[str, Any] | None = None,
    labels: Any = BEATS,
) -> Path:
    """A cached pair: a label a beat, mels of 22.05 kHz with beats."""
    (folder / "features").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    edit_mel, _ = edit_of(values(), LABELS)
    raw = {"mel": values(), "beat_times": BEAT_FRAMES / FPS} | (raw or {})
    edited = {"mel": edit_mel, "beat_times": np.arange(0, len(edit_mel), 20) / FPS} | (edited or {})
    np.savez(folder / f"features/{name}_raw.npz", **raw)
    np.savez(folder / f"features/{name}_edit.npz", **edited)
    np.save(folder / f"labels/{name}_labels.npy", labels)
    return folder


def recording(name: str) -> np.ndarray:
    """Three seconds at 22.05 kHz, the peak at 0.95."""
    samples_S, _ = soundfile.read(Path(__file__).parent / f"recordings/{name}.flac", dtype="float32")
    return 0.95 * samples_S / np.abs(samples_S).max()


def bigvgan(samples_S: np.ndarray) -> np.ndarray:
    """The mel of the vocoder's paper, 0 to 1, (T, 128), by its definition."""
    padded_S = np.pad(samples_S, (2048 - 512) // 2, mode="reflect")
    spectrum = librosa.stft(padded_S, n_fft=2048, hop_length=512, center=False)
    mel = librosa.filters.mel(sr=44100, n_fft=2048, n_mels=128) @ np.sqrt(np.abs(spectrum) ** 2 + 1e-9)
    return np.clip((np.log(np.maximum(mel, 1e-5)).T + 11.5) / 14, 0, 1).astype(np.float32)


def below_loudest(samples_S: np.ndarray, hop: int) -> np.ndarray:
    """dB of a recording at 22.05 kHz, (T, 128), -80 to 0."""
    power = librosa.feature.melspectrogram(y=samples_S, sr=22050, n_fft=2048, hop_length=hop, n_mels=128)
    return librosa.power_to_db(power, ref=np.max).T


def test_labels_play_nothing_for_cut_twice_for_loop_once_for_the_rest() -> None:
    assert stretches(np.array([1, 1, 0, 2, 2, 1, 0, 0, 5, 3])) == [(0, 2), (3, 5), (3, 6), (8, 10)]
    assert stretches(np.array([2, 2])) == [(0, 2), (0, 2)]
    assert stretches(np.array([0, 0])) == []


@pytest.mark.parametrize("kind", ["hop 256", "hop 256 in dB", "hop 512"])
def test_mels_of_our_rate_are_ours_but_for_the_level(tmp_path: Path, kind: str) -> None:
    samples_S, every = recording("piano"), 1 if kind == "hop 512" else 2
    level_db = below_loudest(samples_S, 512 // every)
    if kind == "hop 512":
        np.savez(tmp_path / "m.npz", mel=level_db / 80 + 1, beat_times=np.array([1.0, 2.9]))
    else:
        np.savez(tmp_path / "m.npz", mel=(level_db if kind == "hop 256 in dB" else level_db / 80 + 1).T)
    found_TF, ours_TF = read_mels(tmp_path / "m.npz")[0].mel_TF, mel_spectrogram(samples_S)
    assert found_TF.shape == ours_TF.shape
    apart = (found_TF - ours_TF)[level_db[::every] > -79.9] * 120
    np.testing.assert_allclose(apart, np.median(apart), atol=2e-3)
    assert (found_TF.max() - ours_TF.max()) * 120 == pytest.approx(np.median(apart), abs=2)
    assert LOUDEST_DB - 2 < found_TF.max() * 120 - 80 <= LOUDEST_DB + 1e-3


@pytest.mark.parametrize("name", ["band", "guitar", "piano"])
def test_bigvgan_mels_become_ours_as_nearly_as_the_docstring_says(tmp_path: Path, name: str) -> None:
    samples_S = soxr.resample(recording(name), 22050, 44100)
    np.savez(tmp_path / "m.npz", mel=bigvgan(samples_S), beat_times=np.array([1.0, 2.9]))
    (found,), ours_TF = read_mels(tmp_path / "m.npz"), mel_spectrogram(recording(name))
    assert (found.frames, found.every) == (len(samples_S) // 512, 2)
    assert len(found.mel_TF) == -(-found.frames // 2)
    ours_TF = ours_TF[: len(found.mel_TF)]
    apart = np.abs(found.mel_TF - ours_TF)[ours_TF > 20 / 120] * 120
    assert np.median(apart) < 3.3 and np.quantile(apart, 0.9) < 8.7
    rises = [np.diff(mel_TF.mean(axis=1))[4:-4] for mel_TF in (found.mel_TF, ours_TF)]
    early, there, late = (np.corrcoef(np.roll(rises[0], shift), rises[1])[0, 1] for shift in (-1, 0, 1))
    assert there > 0.98 and abs(early - late) < 0.1  # nor half a frame off


def test_axes_beats_and_the_loudest_value_tell_what_a_mel_is(tmp_path: Path) -> None:
    def read(**arrays: Any) -> CachedMel:
        np.savez(tmp_path / "m.npz", **arrays)
        return read_mels(tmp_path / "m.npz")[0]

    late, early, soft = np.array([1.0, 9.0]), np.array([1.0, 4.9]), values() - 0.01
    assert len(read(mel=values(), beat_times=early).mel_TF) == 215
    assert len(read(mel=soft).mel_TF) == len(read(mel=soft, beat_times=early[:1]).mel_TF) == 215
    assert len(read(mel=values(), beat_times=late).mel_TF) == 430
    assert len(read(mel=values().T).mel_TF) == len(read(mel=values().T, beat_times=early).mel_TF) == 215
    assert len(read(mel=values(128), beat_times=np.array([0.5])).mel_TF) == 64
    np.testing.assert_array_equal(read(mel=values().T).mel_TF, read(mel=values()[::2].T.repeat(2, 1)).mel_TF)
    assert len(read(mel=values().astype(np.float16), beat_times=late).mel_TF) == 430
    assert len(read(mel=(values() - 1) * 80).mel_TF) == 430
    assert read(mel=soft, beat_times=np.zeros(0)).every == 2


UNSURE = [0.01, 0.25, 0.54]
"""Shares of a mel of 22.05 kHz that beats go up to: not to the end that 44.1 kHz has, nor long after it."""


def unsure(n_frames: int, share: float) -> dict[str, Any]:
    return {"beat_times": np.linspace(0, share * n_frames / FPS, 12) if share else np.zeros(0)}


@pytest.mark.parametrize("share", [*UNSURE, 0.49])
@pytest.mark.parametrize("role", ["raw", "edited"])
def test_a_mel_that_might_be_of_either_rate_is_of_its_counterparts(
    tmp_path: Path, role: str, share: float
) -> None:
    n_frames = {"raw": FRAMES, "edited": len(edit_of(values(), LABELS)[0])}[role]
    write_cache(tmp_path / "cache", **{role: unsure(n_frames, share)}, labels=LABELS)
    prepare(tmp_path / "cache", tmp_path / "out", workers=1)
    with shards.read(tmp_path / "out") as source:
        assert len(source[0].mel_TF) == FRAMES
        assert (source[0].pointers_N >= 0).all()


@pytest.mark.parametrize("share", [0, *UNSURE])
def test_a_pair_that_might_be_of_either_rate_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    raw, edited = unsure(FRAMES, share), unsure(len(edit_of(values(), LABELS)[0]), share)
    cache = write_cache(tmp_path / "cache", raw=raw, edited=edited, labels=LABELS)
    said = refused(cache, tmp_path / "out", capsys)
    assert "features/a_raw.npz, " in said and "features/a_edit.npz: " in said
    assert "22.05 kHz" in said and "44.1 kHz" in said and "prepare the recordings themselves" in said


def test_labels_a_beat_and_a_frame_say_the_same_of_frames(tmp_path: Path) -> None:
    raw = CachedMel(values(), FRAMES, 1, BEAT_FRAMES / FPS)
    finer = raw._replace(frames=2 * FRAMES - 1, every=2)
    for labels, mel in ((BEATS, raw), (LABELS, raw), (LABELS[:-3], raw), (LABELS.repeat(2), finer)):
        np.save(tmp_path / "l.npy", labels)
        np.testing.assert_array_equal(read_labels(tmp_path / "l.npy", mel).label_T, LABELS)
    np.save(tmp_path / "l.npy", np.append(LABELS, [0] * 5))
    np.testing.assert_array_equal(read_labels(tmp_path / "l.npy", raw).label_T, LABELS)
    np.save(tmp_path / "l.npy", BEATS)
    np.testing.assert_array_equal(read_labels(tmp_path / "l.npy", raw).beat_frames, BEAT_FRAMES)
    np.save(tmp_path / "l.npy", np.roll(BEATS, -2))
    lead_in = read_labels(tmp_path / "l.npy", raw).label_T[:10]
    np.testing.assert_array_equal(lead_in, CUT)  # as the first beat


def test_what_joins_lose_or_gain_does_not_add_up() -> None:
    label_T = np.tile(np.repeat([KEEP, CUT], [30, 13]), 10)
    raw_TF = as_ours(values())
    edited, true = [], []
    for join, start in enumerate(range(0, 430, 43)):
        more = 3 if join % 4 == 3 else -6
        true += range(start, min(start + 30 + more, 430))
    edited = raw_TF[true]
    played = play(raw_TF, edited, label_T)
    labelled = label_T[true] == KEEP
    assert (played.pointers_N == true)[labelled].mean() > 0.98
    assert (played.likeness_N[labelled] > 0.99).mean() > 0.98
    assert set(played.pointers_N[~labelled]) <= {UNALIGNED, *np.array(true)[~labelled] + 1}


def test_frames_that_are_only_as_loud_are_not_alike() -> None:
    loudness_T1 = np.random.default_rng(0).uniform(0.2, 0.7, (FRAMES, 1))
    raw_TF, other_TF = (loudness_T1 + 0.1 * values(seed=seed) for seed in (1, 2))
    assert np.median(play(raw_TF, other_TF, np.ones(FRAMES)).likeness_N) < 0.2


def test_an_edit_longer_than_its_labels_is_unaligned_where_they_end() -> None:
    raw_TF = as_ours(values())
    played = play(raw_TF, np.concatenate([raw_TF[:100], as_ours(values(9, seed=1))]), np.arange(430) < 100)
    np.testing.assert_array_equal(played.pointers_N, [*range(100), *[UNALIGNED] * 9])
    assert not played.likeness_N[100:].any()


@pytest.mark.parametrize("labels", [BEATS, LABELS], ids=["a label a beat", "a label a frame"])
def test_a_cache_is_trained_on_as_its_labels_and_mels_say(
    tmp_path: Path, labels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cache(tmp_path / "cache", labels=labels)
    assert main(["prepare", str(tmp_path / "cache"), str(tmp_path / "out"), "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == f"1 pairs in {tmp_path / 'out'}, 0 skipped\n" and not err
    assert shards.verify(tmp_path / "out")["styles"] == {"produced": 1}
    assert shards.read_manifest(tmp_path / "out")["mel"] == asdict(MelSettings())
    with closing(batches(tmp_path / "out", SETTINGS, epochs=1)) as stream:
        (batch,) = stream
    with shards.read(tmp_path / "out") as source:
        example = source[0]
    edit_mel, pointers = edit_of(values(), LABELS)
    raw_TF, edited_NF = as_ours(values()), as_ours(edit_mel)
    np.testing.assert_array_equal(batch.pointers_BN[0, : len(pointers)], pointers)
    np.testing.assert_allclose(batch.mel_BTF[0, :FRAMES], raw_TF, atol=5e-4)
    expected_TF = np.zeros_like(raw_TF)
    for n, t in reversed([*enumerate(pointers)]):
        expected_TF[t] = edited_NF[n]
    np.testing.assert_allclose(batch.edited_BTF[0, :FRAMES], expected_TF, atol=5e-4)
    assert not batch.edited_BTF[0, FRAMES:].any()
    if labels is BEATS:
        expected_T = LABELS
        np.testing.assert_array_equal(example.labels, BEATS)
    else:
        ours = labels_of_beats(LABELS, example.beat_frames)
        expected_T = labels_of_frames(ours, example.beat_frames, pointers, FRAMES)
    np.testing.assert_array_equal(batch.label_BT[0, :FRAMES], expected_T)
    np.testing.assert_array_equal(batch.structure_BT[0, :FRAMES], [(0, 1, 2, 1, 1, 1)[k] for k in LABELS])
    assert set(batch.label_BT[0, FRAMES:]) == {EditLabel.PAD}
    assert example.meta["pointers"] == "labels" and example.meta["split"] == "train"


def test_what_is_kept_is_as_loud_in_the_edit_as_in_the_recording(tmp_path: Path) -> None:
    mel_TF = np.where(np.arange(128) < 50, values(), 0)  # most bands are silent in both
    edit_mel, _ = edit_of(mel_TF, np.where(LABELS == EFFECT, KEEP, LABELS))
    edit_mel = np.maximum(edit_mel, 0)
    quieter = np.maximum(edit_mel - 0.05, 0)
    write_cache(tmp_path / "cache", raw={"mel": mel_TF}, edited={"mel": quieter})
    prepare(tmp_path / "cache", tmp_path / "out", workers=1)
    with shards.read(tmp_path / "out") as source:
        example = source[0]
    np.testing.assert_allclose(example.edit_mel_NF[:, :50], as_ours(edit_mel[:, :50]), atol=5e-4)
    assert example.meta["levelled_db"] == pytest.approx(4.0, abs=0.01)


@pytest.fixture
def random_labels() -> np.ndarray:
    """As many frames kept as the edit has, any of them: 2 frames in a row."""
    labels = np.zeros(FRAMES, np.int64)
    kept = len(edit_of(values(), LABELS)[0])
    labels[np.random.default_rng(0).choice(FRAMES, kept, replace=False)] = KEEP
    return labels


def test_labels_drawn_at_random_are_refused(tmp_path: Path, random_labels: np.ndarray) -> None:
    write_cache(tmp_path / "cache", labels=random_labels)
    why = r"a_labels\.npy: only \d+% of a_edit\.npz sounds as .* change every [12]\.\d frames, as if drawn at"
    with pytest.raises(DataError, match=why):
        prepare(tmp_path / "cache", tmp_path / "out", workers=1)


def test_labels_that_look_random_are_taken_with_a_warning_if_one_insists(
    tmp_path: Path, random_labels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cache(tmp_path / "cache", labels=random_labels)
    words = ["prepare", str(tmp_path / "cache"), str(tmp_path / "out"), "--least-aligned", "0"]
    assert main([*words, "--workers", "1"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: a: its labels change every ") and said.count("\n") == 1
    assert shards.verify(tmp_path / "out")["examples"] == 1


def test_labels_of_another_edit_are_refused(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", labels=np.where(np.arange(FRAMES) < 300, KEEP, CUT))
    with pytest.raises(
        DataError, match=r"a_labels\.npy: only \d+% of a_edit\.npz sounds as these labels say; p"
    ):
        prepare(tmp_path / "cache", tmp_path / "out", workers=1)


def test_what_lacks_its_counterpart_is_named_and_the_rest_is_good(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in ("good", "mute", "lost", "bare", "plain"):
        write_cache(cache, name)
    (cache / "labels/mute_labels.npy").unlink()
    (cache / "features/lost_edit.npz").unlink()
    (cache / "features/bare_raw.npz").unlink()
    (cache / "features/plain_edit.npz").rename(cache / "features/plain.npz")
    report = prepare(cache, tmp_path / "out", workers=1)
    assert report["good"] == ["good", "plain"]
    assert {row["pair"]: row["reason"].partition(";")[0] for row in report["skipped"]} == {
        "mute": "no labels/mute_labels.npy",
        "lost": "no features/lost_edit.npz",
        "features/bare_edit.npz": "no features/bare_raw.npz",
        "labels/bare_labels.npy": "no features/bare_raw.npz",
    }
    assert report["aligned"] == [{"pair": name, "alignment_ratio": 1.0} for name in ("good", "plain")]


def test_recordings_are_held_out_as_those_of_audio_are(tmp_path: Path) -> None:
    for k in range(8):
        write_cache(tmp_path / "cache", f"r{k}")
    prepare(tmp_path / "cache", tmp_path / "out", PrepareSettings(validation=0.5), workers=1)
    with shards.read(tmp_path / "out") as source:
        splits = {entry.id: entry.split for entry in source.entries}
    settings = PrepareSettings(validation=0.5)
    assert splits == {f"r{k}": prepare_module._split_of(f"r{k}", settings) for k in range(8)}
    assert set(splits.values()) == {"train", "validation"}


class Malice:
    """What a pickle would run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (self.path,)


def with_value(value: float) -> np.ndarray:
    mel_TF = values()
    mel_TF[3, 5] = value
    return mel_TF


BAD_MELS = {
    "NaN": ({"mel": with_value(np.nan)}, "holds NaN or infinity 1 times"),
    "infinity": ({"mel": with_value(-np.inf)}, "holds NaN or infinity 1 times"),
    "too large": ({"mel": with_value(1.5)}, "wanted 0 to 1"),
    "not so low in dB": ({"mel": with_value(-11.5)}, "wanted -80 to 0"),
    "log of BigVGAN": ({"mel": values() * 14 - 11.5, "beat_times": np.zeros(0)}, "wanted -80 to 0"),
    "80 bands": ({"mel": values()[:, :80]}, "mel of shape (430, 80), wanted (frames, 128)"),
    "three axes": ({"mel": values()[None]}, "mel of shape (1, 430, 128)"),
    "no frames": ({"mel": values()[:0]}, "mel of shape (0, 128)"),
    "integers": ({"mel": np.zeros((430, 128), int)}, "mel of int64"),
    "a square": ({"mel": values(128), "beat_times": np.zeros(0)}, "nothing tells the axes apart"),
    "beats in disorder": ({"beat_times": np.array([2.0, 1.0])}, "not seconds in ascending order"),
    "beats that are NaN": ({"beat_times": np.array([2.0, np.nan])}, "not seconds in ascending order"),
    "beats after the end": ({"beat_times": np.array([1.0, 12.0])}, "a beat at 12.0 s"),
}
BAD_LABELS = {
    "PAD": (np.where(BEATS == FADE_OUT, 7, BEATS), "2 labels such as 7"),
    "negative": (-BEATS, "labels such as -"),
    "floats": (BEATS.astype(float), "wanted one row of integers"),
    "two axes": (BEATS[None], "wanted one row of integers"),
    "none": (BEATS[:0], "wanted one row of integers"),
    "another length": (np.append(LABELS, LABELS), "860 labels for 430 raw frames and 22 raw beats"),
    "CUT alone": (0 * BEATS, "CUT alone"),
}


def refused(cache: Path, out: Path, capsys: pytest.CaptureFixture[str], code: int = 65) -> str:
    """The one line on stderr; nothing but the report may have been written, nothing of the cache changed."""
    before = {path: path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}
    assert main(["prepare", str(cache), str(out), "--workers", "1"]) == code
    said = capsys.readouterr().err
    assert said.startswith("editjax: ") and said.count("\n") == 1, said
    assert "internal error" not in said and "Traceback" not in said
    assert {path: path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()} == before
    assert not out.exists() or [path.name for path in out.iterdir()] == ["report.json"]
    return said


@pytest.mark.parametrize("role", ["raw", "edited"])
@pytest.mark.parametrize(("arrays", "why"), BAD_MELS.values(), ids=BAD_MELS)
def test_a_mel_that_cannot_be_used_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, Any], why: str, role: str
) -> None:
    cache = write_cache(tmp_path / "cache", **{role: arrays})
    said = refused(cache, tmp_path / "out", capsys)
    assert why in said and f"features/a_{role.removesuffix('ed')}.npz: " in said


@pytest.mark.parametrize(("labels", "why"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_cannot_be_used_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: np.ndarray, why: str
) -> None:
    said = refused(write_cache(tmp_path / "cache", labels=labels), tmp_path / "out", capsys)
    assert why in said and "labels/a_labels.npy: " in said


@pytest.mark.parametrize("role", ["raw", "labels"])
def test_python_objects_are_refused_and_nothing_of_them_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], role: str
) -> None:
    objects = np.array([Malice(tmp_path / "ran")] * 3, object)
    cache = write_cache(
        tmp_path / "cache", **({"labels": objects} if role == "labels" else {"raw": {"mel": objects}})
    )
    assert "Python objects, which are refused" in refused(cache, tmp_path / "out", capsys)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["features/a_raw.npz", "features/a_edit.npz", "labels/a_labels.npy"])
@pytest.mark.parametrize("damage", ["cut short", "empty", "text", "the other kind", "flipped"])
def test_a_damaged_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    cache = write_cache(tmp_path / "cache")
    whole = (cache / name).read_bytes()
    other = cache / ("labels/a_labels.npy" if name.endswith("npz") else "features/a_raw.npz")
    flipped = bytearray(whole)
    flipped[len(whole) // 2 if name.endswith("npz") else 1] ^= 0xFF
    content = {
        "cut short": whole[:60],
        "empty": b"",
        "text": b"not numbers",
        "the other kind": other.read_bytes(),
    }
    (cache / name).write_bytes({**content, "flipped": bytes(flipped)}[damage])
    assert f"{name}: " in refused(cache, tmp_path / "out", capsys)


def test_an_archive_without_a_mel_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = write_cache(tmp_path / "cache")
    np.savez(cache / "features/a_raw.npz", beat_features=np.zeros(3))
    assert "holds no array mel, but beat_features" in refused(cache, tmp_path / "out", capsys)


@pytest.mark.parametrize("folders", [(), ("features", "labels")])
def test_an_empty_folder_is_no_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: tuple[str, ...]
) -> None:
    (tmp_path / "cache").mkdir()
    for folder in folders:
        (tmp_path / "cache" / folder).mkdir()
    assert "features/NAME_raw.npz" in refused(tmp_path / "cache", tmp_path / "out", capsys, code=66)


def test_other_mel_settings_are_refused(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache")
    settings = PrepareSettings(beats=BeatSettings(mel=MelSettings(hop=256)))
    with pytest.raises(DataError, match="only become mels of the default settings"):
        prepare(tmp_path / "cache", tmp_path / "out", settings, workers=1)
