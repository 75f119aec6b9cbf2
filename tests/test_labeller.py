"""`editjax edit --editor labels`, and what a label policy makes of recordings: labels, levels, figures."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile
from policy_cases import BEAT, CUT, HEARS, JUDGE, KEEP, TINY, WHOLE_MEL, louder, params_of, write_model

from editjax import decision, labeller
from editjax.chunks import encode_in_chunks
from editjax.cli import main
from editjax.edits import EditLabel, Source, beat_of_frames, duration_samples, read_edits
from editjax.errors import DataError
from editjax.labeller import Examined, Labeller, Labels, label_figures, load_labeller, policy_validate
from editjax.labels import Run
from editjax.mel import FrameGrid, MelSettings, mel_spectrogram
from editjax.metrics import macro_f1
from editjax.models.policy import beats_of, label_logits
from editjax.policy_loss import PolicyLossSettings, PolicyPpoSettings
from editjax.reconstruction import Reconstruction, load_reconstruction, reconstruct_validate
from editjax.records import Example

HOP, RATE_HZ = 512, 22050
POLICY, WHOLE_JUDGE = WHOLE_MEL
EFFECT, LOOP, FADE_OUT = EditLabel.EFFECT, EditLabel.LOOP, EditLabel.FADE_OUT
MEL = MelSettings(n_mels=TINY.n_mels)


def saying(params, label: EditLabel, by: float = 30.0):
    """Parameters of a policy to which this label is the likelier by so much, whatever it hears."""
    bias = 0.0 * np.asarray(params["policy"]["tower"]["out"]["bias"])
    bias[label] = by
    out = {**params["policy"]["tower"]["out"], "bias": bias}
    return {**params, "policy": {**params["policy"], "tower": {**params["policy"]["tower"], "out": out}}}


def telling(settings, mel_TF):
    """Parameters of a policy that finds the most different labels for the beats of a recording."""
    params = louder(params_of(settings))
    tower = params["policy"]["tower"]
    kernel = np.random.default_rng(0).normal(size=tower["out"]["kernel"].shape).astype(np.float32)

    def answering(bias):
        out = {"kernel": kernel, "bias": bias}
        return {**params, "policy": {**params["policy"], "tower": {**tower, "out": out}}}

    frames = len(mel_TF)
    beat_1T = (np.arange(frames) // BEAT)[None]
    phase_1T3 = np.zeros((1, frames, 3), np.float32)
    encoded = labeller._hear(settings, params, mel_TF[None], np.array([frames], np.int32), phase_1T3)
    plain = answering(np.zeros(len(EditLabel), np.float32))
    logits_BUC = label_logits(settings, plain, beats_of(settings, encoded, beat_1T))
    mean_C = np.asarray(logits_BUC)[0, : frames // BEAT].mean(0)
    return answering(np.where(np.isfinite(mean_C), -mean_C, 0.0).astype(np.float32))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A folder of bundles: a label policy and its judge by the names they ship with, and others."""
    folder = tmp_path_factory.mktemp("bundled")
    fresh = params_of(POLICY)
    write_model(folder / "labels", POLICY, telling(POLICY, mel_spectrogram(notes(RATE_HZ))))
    write_model(folder / "keeping", POLICY, saying(fresh, KEEP))
    write_model(folder / "cutting", POLICY, saying(fresh, CUT))
    write_model(folder / "reconstruct", WHOLE_JUDGE)
    write_model(folder / "small_judge", JUDGE)
    write_model(folder / "changing", WHOLE_JUDGE, louder(params_of(WHOLE_JUDGE)))
    write_model(folder / "effects", POLICY, saying(fresh, EFFECT))
    write_model(folder / "pointer", HEARS)
    return folder


@pytest.fixture
def models(shipped, monkeypatch):
    """The same, as if they shipped."""
    monkeypatch.setattr("editjax.bundle.BUNDLED", shipped)
    decision._labeller.cache_clear()
    yield shipped
    decision._labeller.cache_clear()


def notes(rate_hz: int) -> np.ndarray:
    """Ten seconds of notes at two a second."""
    rng, time_s = np.random.default_rng(0), np.arange(rate_hz // 2) / rate_hz
    hz = 220 * 2 ** (rng.integers(0, 24, 20) / 12)
    played = [0.3 * np.sin(2 * np.pi * f * time_s) * np.exp(-6 * time_s) for f in hz]
    return np.concatenate(played).astype(np.float32)


@pytest.fixture
def take(tmp_path: Path) -> Path:
    """Notes at a rate of which frames are no whole samples."""
    soundfile.write(tmp_path / "take.wav", notes(48_000), 48_000)
    return tmp_path / "take.wav"


def run(*words: object) -> int:
    return main([str(word) for word in words])


def recording(frames: int, seed: int = 0) -> np.ndarray:
    """Mels whose notes change every beat of twelve frames."""
    notes = np.random.default_rng(seed).uniform(0.1, 0.9, (frames // BEAT + 1, TINY.n_mels))
    attack_T = 0.3 * (np.arange(frames) % BEAT == 0)
    return np.clip(notes.repeat(BEAT, axis=0)[:frames] + attack_T[:, None], 0, 1).astype(np.float32)


def test_labels_edit_by_the_same_door(models, take, capsys):
    assert run("edit", take, "--editor", "labels", "--model", models / "labels", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    edit_list = read_edits(take.with_name("take_edited.edits.json"))
    editor = edit_list.editor
    assert editor["name"] == "labels" and editor["model"] == str(models / "labels")
    assert len(editor["labels"]) > 2 and set(editor["labels"]) <= {label.name.lower() for label in EditLabel}
    written = soundfile.info(take.with_name("take_edited.wav"))
    assert written.frames == duration_samples(edit_list) and written.samplerate == 48_000
    assert report["output_s"] == pytest.approx(written.frames / 48_000, abs=0.01)
    assert run("edit", take, "--editor", "labels", "--dry-run", "--json") == 0  # the one that ships
    again = json.loads(capsys.readouterr().out)
    assert again["output_s"] == report["output_s"]


def test_effects_sound_as_the_reconstruction_model_that_is_named_expects(models, take):
    def sound_of(*words: str) -> np.ndarray:
        assert (
            run(
                "edit", take, "-q", "--overwrite", "--editor", "labels", "--model", models / "effects", *words
            )
            == 0
        )
        return soundfile.read(take.with_name("take_edited.wav"))[0]

    raw = soundfile.read(take)[0]
    np.testing.assert_array_equal(sound_of(), raw)  # a fresh model hears no change of level
    sounding = sound_of("--effects", "griffin-lim", "--reconstruction", str(models / "changing"))
    assert read_edits(take.with_name("take_edited.edits.json")).editor["sound"] == "griffin-lim"
    assert len(sounding) == len(raw) and np.abs(sounding - raw).max() > 0.01


def test_whoever_keeps_every_beat_keeps_every_sample_and_whoever_cuts_them_makes_nothing(
    models, take, capsys
):
    assert run("edit", take, "--editor", "labels", "--model", models / "keeping", "-q") == 0
    ours, raw = (soundfile.read(take.with_name(f"{name}.wav"))[0] for name in ("take_edited", "take"))
    np.testing.assert_array_equal(ours, raw)
    assert set(read_edits(take.with_name("take_edited.edits.json")).editor["labels"]) == {"keep"}
    out = take.with_name("none.wav")
    code = run("edit", take, "--editor", "labels", "--model", models / "cutting", "-o", out)
    assert code != 0 and not out.exists()
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--editor", "labels", "--model", "pointer"], 65, "not a label policy"),
        (["--editor", "labels", "--model", "reconstruct"], 65, "not a label policy"),
        (["--editor", "labels", "--model", "nowhere"], 66, "no such model"),
        (["--editor", "pointer", "--model", "labels"], 65, "not a pointer network"),
        (["--editor", "scorer", "--model", "labels"], 65, "not a scorer"),
        (["--editor", "labels", "--temperature", "0.5"], 2, "--editor pointer"),
        (["--editor", "labels", "--style", "final"], 2, "--editor pointer"),
        (["--editor", "labels", "--style-from", "x.wav"], 2, "--editor pointer"),
        (["--editor", "labels", "--variants", "2"], 2, "--editor pointer"),
        (["--editor", "labels", "--threshold", "1"], 2, "--editor scorer"),
        (["--editor", "labels", "--reconstruction", "pointer"], 65, "not a reconstruction model"),
        (["--editor", "labels", "--reconstruction", "small_judge"], 65, "made for another mel"),
        (["--editor", "pointer", "--reconstruction", "reconstruct"], 2, "--editor labels"),
        (["--editor", "labels", "--keep-ratio", "0.5"], 2, "--editor scorer"),
        (["--editor", "labels", "--scores", "s.npz"], 2, "--editor scorer"),
    ],
)
def test_other_models_and_the_options_of_other_editors_are_one_line(models, take, words, code, said, capsys):
    assert run("edit", take, *words) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert list(take.parent.iterdir()) == [take]


def test_what_says_how_effects_sound_must_be_a_reconstruction_of_the_same_mel(models):
    labeller_of = load_labeller("labels")
    assert labeller_of.reconstruction.settings == WHOLE_JUDGE
    with pytest.raises(DataError, match="not a reconstruction model"):
        load_labeller("labels", "pointer")
    with pytest.raises(DataError, match="made for another mel"):
        load_labeller("labels", "small_judge")
    with pytest.raises(DataError, match="not a reconstruction model"):
        load_reconstruction(models / "labels")


@pytest.fixture(scope="module")
def teller():
    return Labeller(TINY, telling(TINY, recording(1200)), None, MEL)


def test_a_long_recording_is_labelled_in_chunks_as_the_whole(teller, monkeypatch):
    mel_TF = recording(7000)
    whole = teller.labels(mel_TF)
    seen = []

    def in_small_chunks(settings, params, mel_TF, phase_T3, asked, length, stems):
        seen.append(length)
        return encode_in_chunks(
            settings, params, mel_TF, phase_T3, asked, length, stems, chunk_frames=2 * 344
        )

    monkeypatch.setattr(labeller, "WHOLE_FRAMES", 1000)
    monkeypatch.setattr(labeller, "encode_in_chunks", in_small_chunks)
    found = teller.labels(mel_TF)
    assert len(seen) == 1 and seen[0] % 344 == 0
    np.testing.assert_array_equal(found.beat_frames, whole.beat_frames)
    np.testing.assert_array_equal(found.label_U, whole.label_U)
    np.testing.assert_allclose(found.p_U, whole.p_U, atol=1e-4)
    assert len(np.unique(whole.label_U)) > 2


@pytest.mark.parametrize("frames", [0, 1, 7, 200])
def test_every_frame_of_a_short_recording_has_a_label(teller, frames):
    labels = teller.labels(recording(frames))
    assert len(labels.label_U) == len(labels.p_U) == len(labels.beat_frames) + 1
    assert (labels.beat_frames > 0).all() and (np.diff(labels.beat_frames) > 0).all()
    assert np.isfinite(labels.p_U).all() and labels.label_U.max() < EditLabel.PAD
    source = Source("", "", RATE_HZ, 1, frames * HOP)
    edit_list = teller.edit(recording(frames), FrameGrid(RATE_HZ), source)
    assert sum(edit_list.editor["labels"].values()) == (len(labels.label_U) if frames else 0)


def stub(labels: str, beat_frames, judge=None) -> Labeller:
    """A labeller that has made up its mind, of letters as in the tests of labels."""
    labeller_of = Labeller(TINY, None, judge, MEL)
    label_U = np.array(["CKLIOETP".index(letter) for letter in labels])
    labeller_of.labels = lambda mel_TF: Labels(label_U, np.ones(len(label_U)), np.asarray(beat_frames))
    return labeller_of


def test_effects_are_as_loud_as_the_judge_hears_them(monkeypatch):
    monkeypatch.setattr(labeller, "SHORTEST_S", 0.0)
    heard = []

    def edited_mel(mel_TF, label_T):
        heard.append(label_T)
        changed_db = np.where(np.arange(60) < 30, -6.0, 0.5)
        return mel_TF + (changed_db[:, None] / 120).astype(np.float32)

    mel_TF, source = recording(60), Source("", "", RATE_HZ, 1, 60 * HOP)
    args = mel_TF, FrameGrid(RATE_HZ), source, {"model": "m"}
    judge = SimpleNamespace(edited_mel=edited_mel)
    edit_list = stub("KEKECK", [10, 20, 30, 40, 50], judge).edit(*args)
    wanted = [(0, 10, 0.0), (10, 20, -6.0), (20, 40, 0.0), (50, 60, 0.0)]
    assert [(s.start // HOP, s.stop // HOP, s.gain_db) for s in edit_list.segments] == wanted
    (label_T,) = heard
    np.testing.assert_array_equal(label_T, np.array([1, 5, 1, 5, 0, 1]).repeat(10))
    counts = {"cut": 1, "keep": 3, "effect": 2}
    assert edit_list.editor == {"name": "labels", "model": "m", "labels": counts}
    alone = stub("KEKECK", [10, 20, 30, 40, 50], judge).edit(*args, levels=False)
    assert [s.gain_db for s in alone.segments] == [0.0, 0.0]
    stub("KKKKCK", [10, 20, 30, 40, 50], judge).edit(*args)
    assert len(heard) == 1  # without effects nobody is asked


def test_levels_are_medians_over_the_frames_of_an_effect():
    change_db = np.zeros(30)
    change_db[10:20] = [3.0] * 6 + [40.0] * 4
    judge = SimpleNamespace(edited_mel=lambda mel_TF, _: mel_TF * 0 + 0.5 + change_db[:, None] / 120)
    mel_TF = np.full((30, TINY.n_mels), 0.5, np.float32)
    levelled = stub("KEK", [10, 20], judge)._with_levels(
        [Run(KEEP, 0, 10), Run(EFFECT, 10, 20), Run(KEEP, 20, 30)],
        mel_TF,
        Labels(np.array([KEEP, EFFECT, KEEP]), np.ones(3), np.array([10, 20])),
    )
    assert [run.gain_db for run in levelled] == [0.0, 3.0, 0.0]


def examined(true, found, frames, reward=0.0) -> Examined:
    arrays = (np.array(a) for a in (true, found, frames))
    return Examined(*arrays, 1.5, reward, 0.25, -1.0, -2.0)


def test_figures_by_hand():
    """Padded beats are of no frames; 5 of 8 beats are right; the edits are 10 and 40 frames too long."""
    pad = EditLabel.PAD
    rows = [
        examined([CUT, KEEP, KEEP, CUT, pad], [KEEP, KEEP, KEEP, CUT, KEEP], [10, 20, 20, 10, 0], 4.0),
        examined([KEEP, LOOP, KEEP, CUT], [LOOP, FADE_OUT, KEEP, KEEP], [40, 20, 10, 10], 2.0),
    ]
    found = label_figures(rows)
    assert found["accuracy"] == 4 / 8
    f1 = {CUT: 2 * 1 / (1 + 3), KEEP: 2 * 3 / (5 + 4), LOOP: 0.0, FADE_OUT: 0.0}
    assert found["macro_f1"] == pytest.approx(sum(f1.values()) / 4)
    assert found["majority_accuracy"] == 4 / 8
    assert found["majority_macro_f1"] == pytest.approx((2 * 4 / (8 + 4)) / 3)
    # 50 for 40 frames; 80 + 20 + 10 + 10 for 40 + 40 + 10.
    assert found["duration_error"] == pytest.approx((10 / 40 + 30 / 90) / 2)
    assert found["reward"] == 3.0 and found["entropy"] == 1.5 and found["drawn"] == 0.25
    assert found["all_keep"] == -1.0 and found["all_cut"] == -2.0


def test_macro_f1_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    assert macro_f1(np.array([0, 1, 1]), np.array([0, 1, 1])) == 1.0
    # Of 0: one of two found, none wrong. Of 1: one right of two. 2 is never found, 3 never true.
    found_N, true_N = np.array([0, 1, 1, 3]), np.array([0, 1, 0, 2])
    assert macro_f1(found_N, true_N) == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)
    assert np.isnan(macro_f1(np.array([]), np.array([])))
    rng = np.random.default_rng(0)
    for classes in (2, 7):
        found_N, true_N = rng.integers(classes, size=(2, 40))
        wanted = f1_score(true_N, found_N, average="macro", zero_division=0)
        assert macro_f1(found_N, true_N) == pytest.approx(wanted)


class Shards(list):
    """Stands in for shards on disk: examples, and entries that say of what style and split they are."""

    @property
    def entries(self):
        return [SimpleNamespace(style=example.style, split=example.id) for example in self]


def an_example(split: str, style: str, seed: int) -> Example:
    """A recording of ten beats, the first at frame 0, every second one cut and the rest as it was."""
    frames, mel_TF = 10 * BEAT, recording(10 * BEAT, seed)
    labels = np.tile([KEEP, CUT], 5)
    pointers_N = np.flatnonzero(labels.repeat(BEAT) == KEEP)
    values = {
        "id": split,
        "style": style,
        "mel_TF": mel_TF.astype(np.float16),
        "phase_T3": np.zeros((frames, 3), np.float16),
        "pointers_N": pointers_N.astype(np.int32),
        "edit_mel_NF": mel_TF[pointers_N].astype(np.float16),
        "labels": labels.astype(np.uint8),
        "beat_frames": np.arange(0, frames, BEAT),
    }
    rest = dict.fromkeys(set(Example._fields) - set(values))
    return Example(**values, **rest)


def changed_example(changed: bool) -> Example:
    """The same, every second beat kept as it is or, where something changes, louder by 12 dB."""
    one = an_example("validation", "produced", 3)
    edited_NF = np.clip(one.edit_mel_NF.astype(np.float32) * 0.5 + 0.1 * changed, 0, 1)
    mel_TF = one.mel_TF.astype(np.float32) * 0.5
    labels = np.where(one.labels == KEEP, EFFECT if changed else KEEP, one.labels).astype(np.uint8)
    halves = {"mel_TF": mel_TF.astype(np.float16), "edit_mel_NF": edited_NF.astype(np.float16)}
    return one._replace(labels=labels, **halves)


def test_reconstructions_are_watched_where_something_changes(monkeypatch, capsys):
    """A fresh model copies: it is as far off as the raw mel is, 0.1 where a beat is louder by 12 dB."""
    shards = Shards([changed_example(True), changed_example(False)])
    monkeypatch.setattr(labeller.shards, "read", lambda _: contextlib.nullcontext(shards))
    config = SimpleNamespace(model=JUDGE, data=SimpleNamespace(styles=()))
    params = params_of(JUDGE)
    found = reconstruct_validate(config, "shards", "validation", 8)(params)
    assert found["l1_changed"] == found["l1_changed_copied"] == pytest.approx(0.1, abs=1e-3)
    assert found["score"] == 1 - found["l1_changed"] and found["saved"] == 0.0
    assert found["l1"] == pytest.approx(0.05, abs=1e-3) and found["kept_right"] == 0.5  # 0 where none is kept
    del shards[0]
    found = reconstruct_validate(config, "shards", "validation", 8)(params)
    assert np.isnan(found["l1_changed"]) and found["score"] == pytest.approx(1.0, abs=1e-3)
    assert np.isnan(reconstruct_validate(config, "shards", "test", 8)(params)["score"])
    assert "nothing to choose the best checkpoint by" in capsys.readouterr().err


def test_what_is_heard_of_a_recording_does_not_depend_on_how_far_it_is_padded():
    params, mel_TF = louder(params_of(JUDGE)), recording(300)
    label_T = np.repeat([KEEP, EFFECT, CUT], 100)
    heard = Reconstruction(JUDGE, params, MEL)
    whole_TF, cut_TF = heard.edited_mel(mel_TF, label_T), heard.edited_mel(mel_TF[:200], label_T[:200])
    assert whole_TF.shape == mel_TF.shape and np.abs(whole_TF - mel_TF).max() > 0.01
    np.testing.assert_allclose(whole_TF[:150], cut_TF[:150], atol=1e-5)


def test_policies_are_watched_on_pairs_of_their_own(tmp_path, monkeypatch, capsys):
    shards = Shards([an_example("validation", "produced", 1), an_example("train", "produced", 2)])
    monkeypatch.setattr(labeller.shards, "read", lambda _: contextlib.nullcontext(shards))
    judge = write_model(tmp_path / "judge", JUDGE)
    config = SimpleNamespace(
        model=TINY,
        loss=PolicyPpoSettings(reconstruction=str(judge)),
        data=SimpleNamespace(styles=("produced",)),
    )
    keeping = saying(params_of(TINY), KEEP)
    found = policy_validate(config, "shards", "validation", 8)(keeping)
    # Half of the beats are right, the edit is twice as long as it should be, nothing changes.
    assert found["accuracy"] == found["majority_accuracy"] == 0.5 and found["duration_error"] == 1.0
    assert found["score"] == found["reward"] == pytest.approx(5 * 0.5 + 3 * (1 - 0.5), abs=1e-3)
    assert found["all_keep"] == pytest.approx(found["reward"], abs=1e-5)
    assert found["all_cut"] == pytest.approx(found["reward"], abs=1e-2)  # half as long: as wrong
    assert found["drawn"] == pytest.approx(found["reward"], abs=1e-5) and abs(found["entropy"]) < 1e-5
    assert np.isnan(policy_validate(config, "shards", "test", 8)(keeping)["score"])
    assert "nothing to choose the best checkpoint by" in capsys.readouterr().err
    monkeypatch.setattr(
        labeller, "load_reconstruction", lambda name: (asked.append(name), load_reconstruction(judge))[1]
    )
    asked: list[str] = []
    config.loss = PolicyLossSettings()
    assert policy_validate(config, "shards", None, 1)(keeping)["accuracy"] == 0.5
    assert asked == ["reconstruct"]


def test_beats_of_pairs_are_counted_from_0_whether_or_not_the_first_is_at_0():
    from editjax.reconstruction import judged_pair

    example = an_example("train", "produced", 0)
    frames = len(example.mel_TF)
    beat_1T = judged_pair(example).beat_BT
    np.testing.assert_array_equal(beat_1T[0, :frames], np.arange(frames) // BEAT)
    later = example._replace(beat_frames=example.beat_frames + 5, labels=example.labels)
    wanted = beat_of_frames(later.beat_frames, frames)
    np.testing.assert_array_equal(judged_pair(later).beat_BT[0, :frames], wanted)
    assert (
        wanted[0] == 0
        and not jax.tree.leaves(judged_pair(later).label_BT)[0][0, frames:].min() < EditLabel.PAD
    )
