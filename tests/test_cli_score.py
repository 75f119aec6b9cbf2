"""`editjax score` and the scorer as an editor: what they print, write and refuse, with a small model."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from scorer_cases import params_of

from editjax.bundle import flatten
from editjax.cli import main
from editjax.config import to_json
from editjax.edits import duration_samples, identity, read_edits, write_edits
from editjax.errors import DataError
from editjax.export import load_bundle, write_bundle
from editjax.mel import MelSettings
from editjax.models.autoencoder import ScorerSettings
from editjax.score import read_scores, write_scores
from editjax.scorer import Calibration, default_weights, figures_of, load_scorer, weights_of

RATE_HZ = 22050
SETTINGS = ScorerSettings(scales=(1, 4), segment_steps=16, hidden=(8, 8), latent=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A scorer that learned nothing, and judges by levels and other takes alone."""
    weight_QN = weights_of(SETTINGS, default_weights(SETTINGS))
    figures = figures_of(SETTINGS, Calibration(weight_QN, 0.5, 0.4))
    facts = {
        "family": "scorer",
        "model": to_json(SETTINGS),
        "mel": to_json(MelSettings()),
        "training": {"scores": figures, "export_command": "none", "step": 0, "checkpoint": "best"},
        "licence": "none",
    }
    return write_bundle(tmp_path_factory.mktemp("models") / "small", flatten(params_of(SETTINGS)), facts)


@pytest.fixture
def take(tmp_path: Path) -> Path:
    """Eight seconds of notes, six of near silence, eight of notes."""
    rng, time_s = np.random.default_rng(0), np.arange(RATE_HZ // 2) / RATE_HZ

    def notes() -> np.ndarray:
        hz = 220 * 2 ** (rng.integers(0, 24, 16) / 12)
        return np.concatenate([0.3 * np.sin(2 * np.pi * f * time_s) * np.exp(-3 * time_s) for f in hz])

    gap_S = 1e-4 * rng.standard_normal(6 * RATE_HZ)
    soundfile.write(tmp_path / "take.wav", np.concatenate([notes(), gap_S, notes()]), RATE_HZ)
    return tmp_path / "take.wav"


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_scores_are_printed_kept_and_drawn(take, model, capsys):
    npz, png = take.with_name("s.npz"), take.with_name("s.png")
    assert run("score", take, "--model", model, "-o", npz, "--plot", png) == 0
    said = capsys.readouterr().out
    assert "score" in said and "threshold 0.500 keeps" in said and said.count("\n") == 26
    assert png.read_bytes().startswith(b"\x89PNG")
    assert run("score", take, "--model", model, "--json") == 0
    fresh = json.loads(capsys.readouterr().out)
    assert run("score", take, "--model", model, "--scores", npz, "--json") == 0
    assert json.loads(capsys.readouterr().out) == fresh
    assert run("score", take, "--model", model, "-o", npz) == 73


def test_another_threshold_needs_no_scoring(take, model, capsys, monkeypatch):
    npz = take.with_name("s.npz")
    assert run("score", take, "--model", model, "-o", npz) == 0
    monkeypatch.setattr("editjax.scorer.Scorer.scores", lambda *_: pytest.fail("scored again"))
    kept = []
    for ratio in (0.3, 0.6):
        capsys.readouterr()
        assert run("score", take, "--model", model, "--scores", npz, "--keep-ratio", ratio, "--json") == 0
        kept.append(json.loads(capsys.readouterr().out)["keep_ratio"])
    assert kept[0] < kept[1]
    np.testing.assert_allclose(kept, (0.3, 0.6), atol=4 / 22)  # whole clips: half of eight seconds of 22
    words = ["--editor", "scorer", "--model", model, "--scores", npz, "--keep-ratio", "0.5", "-q"]
    assert run("edit", take, *words) == 0
    assert read_edits(take.with_name("take_edited.edits.json")).editor["keep_ratio"] == 0.5


def test_the_curve_of_a_known_edit_has_a_best_threshold(take, model, capsys):
    edits = take.with_name("known.edits.json")
    assert run("edit", take, "--editor", "silence", "--edits", edits, "-q") == 0
    assert run("score", take, "--model", model, "--known", edits, "--json") == 0
    curve = json.loads(capsys.readouterr().out)["curve"]
    assert max(point["kept_iou"] for point in curve) > 0.5
    assert run("score", take, "--model", model, "--known", edits) == 0
    assert "best: threshold" in capsys.readouterr().out


def test_the_scorer_edits_by_the_same_door(take, model, capsys):
    assert run("edit", take, "--editor", "scorer", "--model", model, "--keep-ratio", "0.7", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    edit_list = read_edits(take.with_name("take_edited.edits.json"))
    assert edit_list.editor["name"] == "scorer" and edit_list.editor["model"] == str(model)
    assert soundfile.info(take.with_name("take_edited.wav")).frames == duration_samples(edit_list)
    assert report["output_s"] < 22.0
    assert all(segment.score is not None for segment in edit_list.segments)


def test_scores_by_another_scorer_are_refused(take, model, capsys):
    """Its threshold is in other units; a new calibration makes another scorer."""
    npz, other = take.with_name("s.npz"), take.with_name("other")
    assert run("score", take, "--model", model, "-o", npz) == 0
    bundle = load_bundle(model)
    facts = {name: bundle.config[name] for name in ("family", "model", "mel", "training", "licence")}
    figures = figures_of(SETTINGS, Calibration(weights_of(SETTINGS, {"latent": 1.0}), 0.5, 0.4))
    facts["training"] = facts["training"] | {"scores": figures}
    write_bundle(other, flatten(bundle.params), facts)
    capsys.readouterr()
    for words in (["score", take], ["edit", take, "--editor", "scorer"]):
        assert run(*words, "--model", other, "--scores", npz) == 65
        err = capsys.readouterr().err
        assert str(model) in err and str(other) in err and err.count("\n") == 1
    assert not take.with_name("take_edited.wav").exists()


def test_scores_of_another_length_are_refused(take, model, capsys):
    npz = take.with_name("s.npz")
    assert run("score", take, "--model", model, "-o", npz) == 0
    scores = read_scores(npz)
    write_scores(scores._replace(score_T=scores.score_T[:-1]), npz, overwrite=True)
    assert run("score", take, "--model", model, "--scores", npz) == 65
    assert "another recording" in capsys.readouterr().err


def test_an_unusable_known_edit_is_refused_before_the_work(take, model, capsys, monkeypatch):
    other = take.with_name("other.wav")
    soundfile.write(other, np.zeros(RATE_HZ), RATE_HZ)
    write_edits(identity(read_edits_source(other)), take.with_name("b.edits.json"))
    monkeypatch.setattr("editjax.scorer.Scorer.scores", lambda *_: pytest.fail("scored"))
    npz, png = take.with_name("s.npz"), take.with_name("s.png")
    words = ["-o", npz, "--plot", png, "--known", take.with_name("b.edits.json")]
    assert run("score", take, "--model", model, *words) == 65
    assert "another recording" in capsys.readouterr().err
    assert not npz.exists() and not png.exists()


def test_a_curve_that_fails_leaves_no_outputs(take, model, monkeypatch):
    npz, edits = take.with_name("s.npz"), take.with_name("k.edits.json")
    write_edits(identity(read_edits_source(take)), edits)

    def fails(*_: object, **__: object) -> None:
        raise DataError("no curve")

    monkeypatch.setattr("editjax.score.retention_curve", fails)
    assert run("score", take, "--model", model, "-o", npz, "--known", edits) == 65
    assert not npz.exists()


@pytest.mark.parametrize("words", [["score"], ["edit", "--editor", "scorer"]])
def test_a_threshold_and_a_ratio_exclude_each_other(take, model, words, capsys):
    assert run(*words, take, "--model", model, "--threshold", "1", "--keep-ratio", "0.5") == 2
    err = capsys.readouterr().err
    assert "--threshold or --keep-ratio" in err and err.count("\n") == 1


def test_the_shortest_clip_asked_for_replaces_the_scorer_s(take, model):
    """Scores below the threshold for a second, of which the scorer alone makes no clip."""
    npz = take.with_name("s.npz")
    assert run("score", take, "--model", model, "-o", npz) == 0
    scores, words = read_scores(npz), ["--editor", "scorer", "--model", model, "--scores", npz, "-q"]
    score_T = np.full_like(scores.score_T, 2.0)
    score_T[300:600], score_T[700:790] = -2.0, -2.0
    write_scores(scores._replace(score_T=score_T), npz, overwrite=True)
    for asked, clips in (([], 1), (["--min-clip", "0.5"], 2), (["--min-clip", "5"], 1)):
        assert run("edit", take, *words, *asked, "--overwrite") == 0
        assert len(read_edits(take.with_name("take_edited.edits.json")).segments) == clips


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "final"], 65, "not a scorer"),
        (["--model", "nowhere"], 66, "no such model"),
        (["--keep-ratio", "0"], 2, "keep ratio"),
        (["--threshold", "nan"], 2, "threshold"),
        (["--scores", "take.wav"], 65, "holds no scores"),
        (["--plot", "p.gif"], 2, "png"),
        (["--known", "none.edits.json"], 66, "none.edits.json"),
    ],
)
def test_bad_input_is_one_line(take, model, words, code, said, capsys, monkeypatch):
    monkeypatch.chdir(take.parent)
    chosen = [] if "--model" in words else ["--model", model]
    assert run("score", take, *chosen, *words) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert list(take.parent.iterdir()) == [take]


def test_scores_and_edits_of_another_recording_are_refused(take, model, capsys):
    npz, other = take.with_name("s.npz"), take.with_name("other.wav")
    assert run("score", take, "--model", model, "-o", npz) == 0
    soundfile.write(other, np.zeros(RATE_HZ), RATE_HZ)
    assert run("score", other, "--model", model, "--scores", npz) == 65
    assert run("edit", other, "--editor", "scorer", "--model", model, "--scores", npz) == 65
    edit_list = identity(read_edits_source(take))
    write_edits(edit_list, take.with_name("k.edits.json"))
    assert run("score", other, "--model", model, "--known", take.with_name("k.edits.json")) == 65
    assert capsys.readouterr().err.count("another recording") == 3


def read_edits_source(take: Path):
    from editjax.audio import Reader
    from editjax.edits import source_of

    with Reader(take) as reader:
        return source_of(reader)


@pytest.mark.parametrize("words", [["--threshold", "1"], ["--keep-ratio", "0.5"], ["--scores", "s.npz"]])
def test_other_editors_have_no_scores(take, words, capsys):
    assert run("edit", take, "--editor", "silence", *words) == 2
    assert "--editor scorer" in capsys.readouterr().err


def test_a_long_recording_is_scored_in_chunks_as_the_whole(model, monkeypatch):
    scorer = load_scorer(model)
    mel_TF = np.random.default_rng(0).uniform(0.2, 0.8, (3000, 128)).astype(np.float32)
    whole = scorer.scores(mel_TF)
    monkeypatch.setattr("editjax.scorer.CHUNK_FRAMES", 512)
    jax.clear_caches()
    np.testing.assert_allclose(scorer.scores(mel_TF), whole, atol=1e-4)


def test_nothing_and_silence_have_scores_too(model):
    scorer = load_scorer(model)
    for frames in (0, 1, 7):
        score_T = scorer.anomaly(np.zeros((frames, 128), np.float32))
        assert score_T.shape == (frames,) and np.isfinite(score_T).all()
