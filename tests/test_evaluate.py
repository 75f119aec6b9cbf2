"""Evaluation: planted editors get the scores they deserve, intervals draw recordings, errors are one line."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile
from policy_cases import WHOLE_MEL, louder, params_of, write_model

from editjax import evaluate as ours
from editjax.bundle import flatten
from editjax.cli import main
from editjax.config import to_json
from editjax.contest import Contestant, editors_of
from editjax.edits import EditList, Segment, Source, write_edits
from editjax.errors import DataError, NoInputError, UsageError
from editjax.export import write_bundle
from editjax.files import sha256_of
from editjax.losses import LossSettings
from editjax.mel import MelSettings
from editjax.models import pointer
from editjax.models.autoencoder import ScorerSettings
from editjax.models.pointer import PointerSettings
from editjax.network import PointerNetwork
from editjax.prepare import prepare
from editjax.scoreboard import LENGTH, Row, boards, estimates, for_people, for_programs
from editjax.scorer import Calibration, default_weights, figures_of, weights_of

RATE_HZ, HOP = 22050, 512
SMALL = PointerSettings(
    width=16, frame_width=8, landmark_layers=1, landmark_window=6, frame_window=5, matches=1
)
KEPT = {"a": [(40, 90), (160, 220)], "b": [(120, 200)], "b~extended": [(120, 180), (140, 200)]}
FRAMES = {"a": 260, "b": 300}
EVENTS = {
    "a": [("silence", 0, 20), ("talk", 20, 40), ("take", 40, 90), ("spoiled", 90, 150), ("take", 160, 220)],
    "b": [("spoiled", 0, 40), ("spoiled", 60, 130), ("take", 120, 200)],
}


def write_pair(folder: Path, name: str) -> None:
    """A recording of noise, and an edit list in whole frames whose notes say what the recording holds."""
    id, _, style = name.partition("~")
    raw = folder / f"{id}_raw.wav"
    if not raw.exists():
        samples_S = 0.1 * np.random.default_rng(len(id)).standard_normal(FRAMES[id] * HOP)
        soundfile.write(raw, samples_S.clip(-1, 1), RATE_HZ)
    source = Source(raw.name, sha256_of(raw), RATE_HZ, 1, FRAMES[id] * HOP)
    segments = tuple(Segment(a * HOP, b * HOP, a * HOP, b * HOP) for a, b in KEPT[name])
    events = [{"kind": kind, "start": a * HOP, "stop": b * HOP} for kind, a, b in EVENTS[id]]
    target_s = sum(b - a for a, b in KEPT[name]) * HOP / RATE_HZ if style else None
    editor = {"style": style or "final", "events": events, "target_length_s": target_s}
    write_edits(EditList(source, segments, editor), folder / f"{name}.edits.json")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name in KEPT:
        write_pair(folder, name)
    return folder


@pytest.fixture(scope="module")
def tasks(pairs: Path) -> dict[str, ours.Task]:
    return {task.id: task for task in ours.tasks(pairs, ours.EvaluateSettings(), [])}


@pytest.fixture(scope="module")
def network() -> PointerNetwork:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: pointer.init(SMALL, key), jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.3, leaf.shape).astype(leaf.dtype), shapes)
    params["decoder"]["mode"]["bias"] = np.array([3.0, 0.0, -1.0], np.float32)
    return PointerNetwork(SMALL, params)


@pytest.fixture(scope="module")
def model(network: PointerNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = {"step": 0, "checkpoint": "last", "export_command": ""}
    facts = {"family": "pointer", "model": to_json(SMALL), "mel": to_json(MelSettings())}
    facts |= {"training": training, "licence": ""}
    return write_bundle(tmp_path_factory.mktemp("models") / "small", flatten(network.params), facts)


def played(spans: list[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([np.arange(a, b) for a, b in spans])


class Knowing:
    """Stands in for a model: it returns the true pointers, in another order of segments if so told."""

    mel = MelSettings()
    styles = ("final", "extended")

    def __init__(self, backwards: bool = False) -> None:
        self.backwards = backwards

    def edit_pointers(self, mel_TF, phase_T3, target_frames, style, stems_IMF):
        id = next(id for id, frames in FRAMES.items() if frames == len(mel_TF))
        assert (style == "extended") == bool(target_frames)
        spans = KEPT[f"{id}~extended" if target_frames else id]
        return SimpleNamespace(pointers_N=played(spans[::-1] if self.backwards else spans))


def rows_of(evaluation: ours.Evaluation, editor: str) -> dict[str, dict[str, float]]:
    return {row.id: row.figures for row in evaluation.rows if row.editor == editor}


def test_the_true_edit_is_what_training_learns_from(tasks: dict[str, ours.Task]) -> None:
    assert list(tasks) == list(KEPT)
    for id, task in tasks.items():
        np.testing.assert_array_equal(task.true_N, played(KEPT[id]))
    assert [task.style for task in tasks.values()] == ["final", "final", "extended"]
    assert tasks["b"].target_frames is None and tasks["b~extended"].target_frames == pytest.approx(120)


def test_an_editor_that_knows_scores_one_and_the_trivial_ones_what_they_keep(pairs: Path) -> None:
    evaluation = ours.evaluate(pairs, ours.editors_beside(Knowing()))
    for figures in rows_of(evaluation, ours.MODEL).values():
        for name in ("kept_iou", "boundary_f1_half_second", "boundary_f1_3_frames", "order_agreement"):
            assert figures[name] == 1.0
        assert figures["length_error"] == 0.0 and figures["spoiled_takes_found"] == 1.0
    everything = rows_of(evaluation, ours.KEEP_EVERYTHING)
    for figures in everything.values():
        assert figures["kept_iou"] == figures["true_keep_ratio"] < 1.0
        assert figures["spoiled_takes_found"] == 0.0
    assert everything["b~extended"]["loop_recall"] == 0.0
    assert rows_of(evaluation, ours.MODEL)["b~extended"]["loop_recall"] == 1.0
    # Noise without a pause leaves the silence cutter nothing to do.
    assert rows_of(evaluation, ours.SILENCE_CUTTER)["a"]["kept_iou"] == everything["a"]["kept_iou"]


def test_the_wrong_order_lowers_order_agreement_alone(pairs: Path) -> None:
    editors = {ours.MODEL: ours.editors_beside(Knowing(backwards=True))[ours.MODEL]}
    figures = rows_of(ours.evaluate(pairs, editors), ours.MODEL)["a"]
    assert figures["kept_iou"] == 1.0 and figures["boundary_f1_3_frames"] == 1.0
    assert figures["order_agreement"] == pytest.approx(60 / 110)


def test_what_was_found_counts_only_what_the_true_edit_cuts(tasks: dict[str, ours.Task]) -> None:
    task = tasks["b"]._replace(events=(("spoiled", 0, 40), ("spoiled", 80, 140), ("silence", 150, 160)))
    figures = ours.score(task, played([(30, 80), (100, 200)]))  # true: 120 to 200
    assert figures["found_spoiled"] == pytest.approx((30 + 20) / (40 + 40))
    assert figures["spoiled_takes_found"] == 0.5  # 30 of 40 frames, but 20 of 60
    assert math.isnan(figures["found_silence"]) and math.isnan(figures["found_talk"])


def test_the_audit_says_what_the_pairs_are_like(pairs: Path) -> None:
    evaluation = ours.evaluate(pairs, {"all": ours.keep_everything}, ours.EvaluateSettings(("final",)))
    found = ours.audit(evaluation.facts)
    assert (found["recordings"], found["edits"]) == (2, 2)
    assert found["seconds"] == pytest.approx(560 * HOP / RATE_HZ, abs=1e-4)
    assert found["median_keep_ratio"] == pytest.approx((110 / 260 + 80 / 300) / 2, abs=1e-4)
    assert found["spoiled_share_of_cut"] == pytest.approx((60 + 100) / (150 + 220), abs=1e-4)


def test_bad_pairs_are_reported_and_the_rest_is_scored(pairs: Path, tmp_path: Path) -> None:
    for path in pairs.glob("a*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "c_raw.wav").write_text("no audio")
    (tmp_path / "c_edit.wav").write_text("no audio")
    (tmp_path / "d_raw.wav").touch()
    evaluation = ours.evaluate(tmp_path, {"all": ours.keep_everything})
    assert [row.id for row in evaluation.rows] == ["a"]
    assert {row["pair"] for row in evaluation.skipped} == {"c", "d"}
    with pytest.raises(DataError, match="radio"):
        ours.evaluate(tmp_path, {"all": ours.keep_everything}, ours.EvaluateSettings(("radio",)))
    with pytest.raises(NoInputError, match="no such folder"):
        ours.evaluate(tmp_path / "nowhere", {"all": ours.keep_everything})


def test_the_interval_draws_recordings_and_leaves_out_what_is_not_defined() -> None:
    values = np.random.default_rng(0).uniform(size=40)

    def rows(copies: int) -> list[Row]:
        return [
            Row(f"{k}~{c}", str(k), "final", "x", {"f": v, "g": math.nan if k % 2 else v, "h": math.nan})
            for k, v in enumerate(values)
            for c in range(copies)
        ]

    once, thrice = estimates(rows(1)), estimates(rows(3))
    assert once["f"].mean == pytest.approx(values.mean()) and once["f"].edits == 40
    assert once["f"].low < once["f"].mean < once["f"].high
    # The interval of a mean: about ± 1.96 standard errors.
    half = (once["f"].high - once["f"].low) / 2
    assert half == pytest.approx(1.96 * values.std() / math.sqrt(40), rel=0.1)
    np.testing.assert_allclose(thrice["f"][:5], once["f"][:5])  # more edits of the same recordings
    assert once["g"].mean == pytest.approx(values[::2].mean()) and once["g"].edits == 20
    assert once["h"].edits == 0 and math.isnan(once["h"].mean)


def test_the_greedy_edit_is_its_own_teacher_forced_choice(
    network: PointerNetwork, tasks: dict[str, ours.Task]
) -> None:
    task = tasks["a"]._replace(target_frames=300.0)
    decoder = network.params["decoder"]
    restless = {**decoder["mode"], "bias": np.array([0.0, 0.0, -2.0], np.float32)}
    params = {**network.params, "decoder": {**decoder, "mode": restless}}
    network = PointerNetwork(SMALL, params)
    edited = network.edit_pointers(task.mel_TF, task.phase_T3, task.target_frames)
    own_N = edited.pointers_N[:400]
    assert (np.diff(own_N) != 1).any()
    figures = ours.teacher_forced(network, task._replace(true_N=own_N))
    assert figures["forced_accuracy"] == figures["forced_within_5"] == 1.0
    events = 1 + np.count_nonzero(np.diff(own_N, prepend=-1) != 1)
    # What is not in the scores of the steps is the stop.
    assert events <= ours.MAX_JUMPS
    assert figures["sequence_nll"] * events > -edited.score_N[:400].sum()
    assert ours.teacher_forced(network, task)["forced_accuracy"] < 1.0


def test_a_style_is_obeyed_when_its_own_edit_is_nearest(tasks: dict[str, ours.Task]) -> None:
    extended = next(task for task in tasks.values() if task.style == "extended")
    assert set(extended.by_style) == {"final", "extended"}
    assert ours.obedience(Knowing(), extended)["style_obeyed"] == 1.0
    deaf = SimpleNamespace(
        styles=("final", "extended"),
        edit_pointers=lambda *_, **__: SimpleNamespace(pointers_N=extended.by_style["final"]),
    )
    assert ours.obedience(deaf, extended)["style_obeyed"] == 0.0
    deaf.styles = ("final",)
    assert math.isnan(ours.obedience(deaf, extended)["style_obeyed"])
    alone = extended._replace(by_style={"extended": extended.true_N})
    assert math.isnan(ours.obedience(Knowing(), alone)["style_obeyed"])


def test_lengths_asked_for_are_met_with_the_ending(pairs: Path, tasks: dict[str, ours.Task]) -> None:
    figures = ours.at_lengths(Straight(), tasks["b"], (0.5, 1.5))
    for times in ("0.5", "1.5"):
        assert figures[LENGTH.format(times, "error")] <= 0.05
        assert figures[LENGTH.format(times, "met")] == figures[LENGTH.format(times, "ending")] == 1.0


class Straight:
    """Stands in for a model that plays everything and is deaf to wanted lengths."""

    mel = MelSettings()
    beats = ours.BeatSettings()
    styles, style = ("final",), "final"

    def edit_pointers(self, mel_TF, phase_T3, target_frames=None, style=None, stems_IMF=None):
        return SimpleNamespace(pointers_N=np.arange(len(mel_TF)))


def test_tables_and_json_say_every_style_and_null_for_undefined(pairs: Path) -> None:
    evaluation = ours.evaluate(pairs, ours.editors_beside(Knowing()))
    by_style = boards(evaluation.rows)
    assert list(by_style) == ["all", "final", "extended"]
    text = for_people(by_style)
    assert "style extended, 1 edits" in text and "nats" not in text
    tree = for_programs(evaluation.rows, by_style)
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert tree["estimates"]["final"][ours.MODEL]["loop_recall"]["mean"] is None
    assert tree["estimates"]["extended"][ours.MODEL]["loop_recall"]["mean"] == 1.0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*words: str | Path) -> SimpleNamespace:
        code = main(["evaluate", *map(str, words)])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


def test_the_command_prints_tables_and_writes_json_and_picture(run, model: Path, pairs: Path, tmp_path: Path):
    out, plot = tmp_path / "scores.json", tmp_path / "scores.png"
    words = ("--styles", "final", "--limit", 1, "--target-lengths", "0.5,1.5")
    done = run(model, "--data", pairs, "--out", out, "--plot", plot, *words)
    assert (done.code, done.err) == (0, "")
    for text in ("1 edits of 1 recordings", "pointer network", "silence cutter", "previous + 1", "× 1.5"):
        assert text in done.out
    tree = json.loads(out.read_text())
    assert tree["audit"]["edits"] == 1 and len(tree["edits"]) == 3 and len(tree["model_sha256"]) == 64
    own, everything = tree["edits"][0]["figures"], tree["edits"][1]["figures"]
    assert own["sequence_nll"] > 0 and "sequence_nll" not in everything
    assert everything["kept_iou"] == pytest.approx(110 / 260, abs=1e-4)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--data", "EMPTY"], 66, "no pairs found"),
        (["--data", "PAIRS", "--styles", "raidio"], 2, "raidio"),
        (["--data", "PAIRS", "--limit", "-1"], 2, "limit"),
        (["--data", "PAIRS", "--target-lengths", "0.5,x"], 2, "0.5,x"),
        (["--data", "PAIRS", "--plot", "x.gif"], 2, "png, svg, pdf"),
        (["--data", "PAIRS", "--out", "EMPTY/missing/x.json"], 73, "missing"),
        ([], 2, "--data"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, model: Path, pairs: Path, tmp_path: Path, words, code, said):
    places = {"EMPTY": tmp_path, "PAIRS": pairs}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    done = run(model, *words)
    assert done.code == code and said in done.err and done.err.count("\n") == 1 and not done.out


def test_an_unknown_model_is_one_line(run, pairs: Path) -> None:
    done = run("nosuchmodel", "--data", pairs)
    assert done.code == 66 and "nosuchmodel: no such model" in done.err and done.err.count("\n") == 1


@pytest.fixture
def others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scorer, a label policy and the model that judges it, as if they shipped."""
    scorer = ScorerSettings(scales=(1, 4), segment_steps=16, hidden=(8, 8), latent=4)
    calibration = Calibration(weights_of(scorer, default_weights(scorer)), 0.5, 0.4)
    policy, judge = WHOLE_MEL
    folder = tmp_path / "models"
    write_model(folder / "scorer", scorer, scores=figures_of(scorer, calibration))
    write_model(folder / "labels", policy, louder(params_of(policy)))
    write_model(folder / "reconstruct", judge)
    monkeypatch.setattr("editjax.bundle.BUNDLED", folder)
    return folder


def test_models_of_every_family_are_rows_of_one_table(run, others, model: Path, pairs: Path, tmp_path: Path):
    out = tmp_path / "scores.json"
    beside = ("--beside", f"scorer, {model},labels", "--styles", "final", "--limit", 1)
    done = run("labels", "--data", pairs, "--out", out, *beside)
    assert (done.code, done.err) == (0, "")
    tree = json.loads(out.read_text())
    names = ["label policy", "anomaly scorer", ours.MODEL, "label policy (2)"]
    names += [ours.KEEP_EVERYTHING, ours.SILENCE_CUTTER]
    assert [row["editor"] for row in tree["edits"]] == names == list(tree["estimates"]["final"])
    assert all(name in done.out for name in names)
    first, *_, again, _, _ = (row["figures"] for row in tree["edits"])
    assert first == again and 0 <= first["kept_iou"] <= 1
    # What only the model that is asked first tells is not told of those beside it.
    assert not any("sequence_nll" in row["figures"] for row in tree["edits"])
    places = {"labels": others / "labels", "scorer": others / "scorer", str(model): model}
    sha256 = {
        name: json.loads((place / "config.json").read_text())["sha256"] for name, place in places.items()
    }
    assert tree["model_sha256"] == sha256.pop("labels") and tree["beside_sha256"] == sha256


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["labels", "--target-lengths", "0.5"], 2, "only pointer networks are asked for lengths"),
        (["scorer", "--target-lengths", "0.5"], 2, "only pointer networks are asked for lengths"),
        (["reconstruct"], 65, "a model of the family 'reconstruct', which does not edit"),
        (["labels", "--beside", "reconstruct"], 65, "which does not edit"),
        (["labels", "--beside", "scorer,nowhere"], 66, "nowhere: no such model"),
    ],
)
def test_what_others_cannot_do_is_one_line(run, others, pairs: Path, words, code, said):
    done = run(*words, "--data", pairs)
    assert done.code == code and said in done.err and done.err.count("\n") == 1 and not done.out


def test_editors_of_other_mels_are_not_compared() -> None:
    def nothing(task: ours.Task) -> np.ndarray:
        return np.zeros(0, np.int32)

    one, other = (Contestant(name, nothing, MelSettings(hop=hop)) for name, hop in (("a", 512), ("b", 256)))
    assert list(editors_of([one, one, one])) == [
        "a",
        "a (2)",
        "a (3)",
        ours.KEEP_EVERYTHING,
        ours.SILENCE_CUTTER,
    ]
    with pytest.raises(UsageError, match="b: hears another mel than a"):
        editors_of([one, other])


def test_training_is_watched_on_shards_of_its_own(
    network: PointerNetwork, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(pairs, tmp_path / "shards", workers=1)  # all in the split "train"
    config = SimpleNamespace(model=SMALL, loss=LossSettings())
    watched = ours.make_validate(config, tmp_path / "shards", ours.ValidateSettings(split=None, examples=1))
    scores = watched(network.params)
    assert scores["score"] == scores["kept_iou"] and 0 < scores["true_keep_ratio"] < 1
    unwatched = ours.make_validate(config, tmp_path / "shards")
    assert math.isnan(unwatched(network.params)["score"])
    assert "nothing to choose the best checkpoint by" in capsys.readouterr().err
    with pytest.raises(DataError, match="radio"):
        ours.make_validate(config, tmp_path / "shards", ours.ValidateSettings(split=None, style="radio"))


def test_train_validates_on_the_shards_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def train_command(config, data, out, overrides, make_validate, start_from, **_):
        make_validate("config", data)

    def make_validate(config, shards, settings=None):
        asked.append((config, str(shards), settings))

    monkeypatch.setattr("editjax.train.train_command", train_command)
    monkeypatch.setattr(ours, "make_validate", make_validate)
    words = ["train", "config.py", "--data", "shards", "--out", "run", "--hang-after", "0"]
    assert main(words) == main([*words, "--validation", "other"]) == 0
    assert asked == [("config", "shards", None), ("config", "other", ours.ValidateSettings(split=None))]
