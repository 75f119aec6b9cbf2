"""Regressors of mixes in the training loop: they learn, go on, begin from each other; what does not fit."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from mixer_cases import KINDS, KNOBS, PICTURE, tiny

from editjax import mixes, sounds
from editjax.array_records import MANIFEST, read_manifest, write_json
from editjax.cli import main
from editjax.console.knobs import IDENTIFIABLE, NAMES
from editjax.errors import DataError, UsageError
from editjax.evaluate import make_validate
from editjax.export import export_run, load_bundle
from editjax.family import family_of
from editjax.feed import feed_of
from editjax.layouts import find
from editjax.manifest import digest_of
from editjax.mixer import Mixer, load_mixer, mixer_validate, predicted
from editjax.mixer_loss import MixerLossSettings
from editjax.mixes import MakeSettings, Mixes, MixSettings
from editjax.models import mixer
from editjax.optim import OptimSettings
from editjax.sounds import chosen, fold_of
from editjax.step import TrainConfig
from editjax.train import train

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda my"
COUNT = 24
KNOBS_ALONE = MixerLossSettings()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sound shards of twelve short pieces in takes of two, and `mixes` of them, with the stems' sound."""
    raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for name in WORDS.split():
        for take in (1, 2):
            beats_S1 = 0.2 + (np.arange(44_100) % 9000 < 900)[:, None]
            x_S2 = 0.1 * beats_S1 * (rng.standard_normal((44_100, 2)) + rng.standard_normal((44_100, 1)))
            soundfile.write(raw / f"{name} {take}.wav", x_S2.clip(-1, 1), 44_100)
    sounds.write(folder / "sounds", find(raw))
    make = MakeSettings(count=COUNT, seconds=1.0, sound=True, picture=PICTURE)
    mixes.write(folder / "sounds", folder / "mixes", make)
    return folder


def changed(source: Path, target: Path, **facts: object) -> Path:
    """The same shards under a manifest that says something else, and is signed."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).symlink_to(path)
    manifest = read_manifest(source, mixes.MIXES) | facts
    (target / MANIFEST).unlink()
    write_json(target / MANIFEST, manifest | {"digest": digest_of(manifest)})
    return target


def config(kind: str = "ast", steps: int = 4, loss=KNOBS_ALONE, **model: object) -> TrainConfig:
    return TrainConfig(
        model=tiny(kind, **model),
        loss=loss,
        data=MixSettings(batch_size=4, threads=1, prefetch_batches=1),
        optim=OptimSettings(learning_rate=3e-3, warmup_steps=1, steps=steps, weight_decay=0.0),
        validate_every=0,
        checkpoint_every=2,
    )


class Stream:
    """Batches of mixes, a function of their number, to be interrupted before one of them."""

    def __init__(self, folder: Path, settings: MixSettings, ends: int = 1 << 62):
        self._read, self._ends, self.drawn = mixes.batches(folder, settings), ends, 0

    def __next__(self):
        if self.drawn == self._ends:
            raise Interrupted
        self.drawn += 1
        return next(self._read)

    def get_state(self):
        return self._read.get_state()

    def set_state(self, state):
        self._read.set_state(state)

    def close(self):
        self._read.close()


class Interrupted(Exception):
    pass


def rows_of(run: Path) -> Iterator[dict]:
    for path in sorted(run.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            yield json.loads(line)


def logged(run: Path, name: str) -> list[float]:
    return [row[name] for row in rows_of(run) if name in row]


def trained(folder: Path, run: Path, settings: TrainConfig, ends: int = 1 << 62, **more):
    stream = Stream(folder, settings.data, ends)
    try:
        return train(settings, stream, run, **more)
    finally:
        stream.close()


def same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_they_learn_what_they_are_shown(kind, folder, tmp_path):
    """A score of mixes by heart, which who always says the middle has an error of 0.25 on."""
    settings = replace(config(kind, steps=120, width=16, dropout=0.0), checkpoint_every=0)
    state = trained(folder / "mixes", tmp_path, settings)
    errors = logged(tmp_path, "knobs")
    assert len(errors) == 120 and np.mean(errors[-10:]) < 0.7 * np.mean(errors[:3])
    assert int(state.total_skipped) == 0
    assert {f"error_{name}" for name in NAMES} <= next(rows_of(tmp_path)).keys()


@pytest.mark.slow
def test_masked_patches_are_learned(folder, tmp_path):
    settings = replace(config(steps=80, loss=MixerLossSettings(masked=0.5)), checkpoint_every=0)
    trained(folder / "mixes", tmp_path, settings)
    left = logged(tmp_path, "filled_in")
    assert np.mean(left[-10:]) < 0.8 * np.mean(left[:3])


@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])]
)
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(kind, folder, tmp_path):
    settings = replace(config(kind, steps=4), ema_decay=0.9)
    whole = trained(folder / "mixes", tmp_path / "whole", settings)
    with pytest.raises(Interrupted):
        trained(folder / "mixes", tmp_path / "halves", settings, ends=3)
    again = trained(folder / "mixes", tmp_path / "halves", settings)
    assert int(again.step) == 4
    same(whole, again)
    with pytest.raises(UsageError, match="begun with another"):
        trained(folder / "mixes", tmp_path / "halves", config(kind, steps=4, dropout=0.2))


@pytest.mark.slow
def test_they_learn_by_ear(folder, tmp_path):
    loss = MixerLossSettings(spectral=1.0, loudness=1.0, heard=1)
    settings = replace(config("baseline", steps=2, loss=loss))
    state = trained(folder / "mixes", tmp_path, settings)
    assert int(state.total_skipped) == 0 and np.isfinite(logged(tmp_path, "spectral")).all()
    assert min(logged(tmp_path, "spectral")) > 0.0 < min(logged(tmp_path, "loudness"))


def test_what_is_watched_is_held_out(folder):
    every = Mixes(folder / "mixes")
    settings = config()
    settings = replace(settings, data=replace(settings.data, folds=3, fold=1))
    params = jax.jit(mixer.init, static_argnums=0)(settings.model, jax.random.key(0))
    held = chosen(every.entries, settings.data, held_out=True)
    assert len(held) > 2
    found = make_validate(settings, folder / "mixes")(params)
    knobs_NP = predicted(settings.model, params, every, held)
    true_NP = np.stack([every[k]["knobs"] for k in held])
    assert knobs_NP.shape == true_NP.shape == (len(held), KNOBS)
    assert found["error"] == pytest.approx(np.abs(knobs_NP - true_NP).mean(), rel=1e-5)
    known = [k for k, name in enumerate(NAMES) if name in IDENTIFIABLE]
    assert found["score"] == pytest.approx(1.0 - np.abs(knobs_NP - true_NP)[:, known].mean(), rel=1e-5)
    assert found["constant"] == pytest.approx(np.abs(true_NP - 0.5).mean(), rel=1e-5)
    fewer = mixer_validate(settings, folder / "mixes", 2)(params)
    assert fewer["error"] == pytest.approx(np.abs(knobs_NP - true_NP)[:2].mean(), rel=1e-5)
    masked = replace(settings, loss=MixerLossSettings(masked=0.5))
    blank = mixer_validate(masked, folder / "mixes", 4)(params)
    assert blank["score"] == -blank["filled_in"] < -0.5 and blank.keys() == {"score", "filled_in"}
    assert mixer_validate(masked, folder / "mixes", 4)(params) == blank


def test_without_held_out_mixes_there_is_no_score(folder, tmp_path):
    lines = [line | {"split": "train"} for line in read_manifest(folder / "mixes", mixes.MIXES)["mixes"]]
    target = changed(folder / "mixes", tmp_path / "mixes", mixes=lines)
    assert np.isnan(mixer_validate(config(), target, 8)(None)["score"])
    settings = replace(config("baseline"), ema_decay=0.9, validate_every=2)
    validate = make_validate(settings, target)
    trained(target, tmp_path / "run", settings, validate=validate)
    load_bundle(export_run(tmp_path / "run", tmp_path / "model", which="last"))


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_share_no_recording(folds, folder):
    every = Mixes(folder / "mixes")
    seen: list[int] = []
    for fold in range(folds):
        settings = MixSettings(batch_size=8, folds=folds, fold=fold, threads=1)
        learned, held = chosen(every.entries, settings), chosen(every.entries, settings, held_out=True)
        groups = [{every.entries[k].group for k in part} for part in (learned, held)]
        ids = [{every.entries[k].id for k in part} for part in (learned, held)]
        assert not groups[0] & groups[1] and not ids[0] & ids[1] and groups[0]
        assert all(fold_of(group, folds) == fold for group in groups[1])
        seen += list(held)
        if len(held):
            stream = mixes.batches(folder / "mixes", settings)
            drawn = {int(k) for _ in range(3) for k in next(stream).ids_B}
            stream.close()
            assert drawn <= set(learned)
    rest = [k for k, entry in enumerate(every.entries) if entry.split != "test"]
    assert sorted(seen) == rest  # every mix is held out once, but those of the test split never


def test_takes_of_one_piece_are_one_group(folder):
    entries = Mixes(folder / "mixes").entries
    assert {entry.group for entry in entries} <= set(WORDS.split())
    assert len({entry.id for entry in entries}) > len({entry.group for entry in entries})


# --- the command line -------------------------------------------------------------------------------------

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from test_mixer_train import config as tiny_config


def config():
    return tiny_config()
"""


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """`run(words…)` → exit code and what is said, of `editjax train` on `mixes` unless `data` is given."""
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(tests=str(Path(__file__).parent)))

    def call(*words: object, data: Path = folder / "mixes", out: Path = tmp_path / "run"):
        fixed = ["train", path, "--data", data, "--out", out, "--hang-after", "0"]
        code = main([str(word) for word in (*fixed, *words)])
        return code, capsys.readouterr().err.strip()

    return call


@pytest.mark.slow
def test_from_masked_patches_to_knobs(run, folder, tmp_path):
    """Pretrained, exported, gone on from: what was learned is where it begins, and is kept."""
    every = ("--validate-every", "2", "--data.folds", "3", "--data.fold", "1")
    assert run("--loss.masked", "0.5", *every, out=tmp_path / "pre")[0] == 0
    assert min(logged(tmp_path / "pre", "filled_in")) > 0
    export_run(tmp_path / "pre", tmp_path / "filled")
    first = load_bundle(tmp_path / "filled")
    assert first.config["training"]["scores"].keys() == {"score", "filled_in"}
    code, said = run("--start-from", tmp_path / "filled", *every, "--optim.learning-rate", "0.0")
    assert code == 0, said
    export_run(tmp_path / "run", tmp_path / "model", which="last")
    same(load_bundle(tmp_path / "model").params, first.params)  # nothing is learned at a rate of 0
    training = load_bundle(tmp_path / "model").config["training"]
    assert training["start_from"] == str(tmp_path / "filled") and "error" in training["scores"]
    both = load_mixer(tmp_path / "filled", tmp_path / "model")
    assert isinstance(both, Mixer) and [s for s, _ in both.members] == [config().model] * 2
    code, said = run("--start-from", tmp_path / "filled", "--model.width", "12", out=tmp_path / "other")
    assert code == 2 and "has model.width 8, but the config wants 12" in said
    assert run("--start-from", "scorer", out=tmp_path / "other")[0] == 2


def test_an_exported_run_says_what_the_run_says(folder, tmp_path):
    settings = replace(config("baseline", steps=4), ema_decay=0.9)
    state = trained(
        folder / "mixes", tmp_path / "run", settings, origin=feed_of(settings, folder / "mixes").facts
    )
    bundle = load_bundle(export_run(tmp_path / "run", tmp_path / "model", which="last"))
    assert bundle.settings == settings.model
    same(bundle.params, state.ema_params)
    every, numbers = Mixes(folder / "mixes"), np.arange(3)
    same(*(predicted(settings.model, p, every, numbers) for p in (bundle.params, state.ema_params)))
    ((ours, params),) = load_mixer(tmp_path / "model").members
    assert ours == settings.model
    same(params, state.ema_params)


def test_mixes_that_do_not_fit_are_refused_in_one_line(run, folder, tmp_path):
    plain, quiet = folder / "mixes", tmp_path / "quiet"
    made = read_manifest(plain, mixes.MIXES)
    knobs = made["knobs"]
    changed(plain, quiet, settings=made["settings"] | {"sound": False})
    changed(plain, tmp_path / "knobs", knobs=[*knobs[:-1], knobs[-1] | {"name": "tape_db"}])
    changed(plain, tmp_path / "fewer", knobs=knobs[1:])
    changed(plain, tmp_path / "split", mixes=[line | {"split": "test"} for line in made["mixes"]])
    refused = (
        (("--model.picture.hop", "1024"), plain, 2, "mixes with other pictures than"),
        (("--loss.spectral", "1"), quiet, 2, "holds no sound to hear"),
        (("--loss.loudness", "1"), quiet, 2, "holds no sound to hear"),
        ((), tmp_path / "knobs", 65, "mixes of other settings than gain_db"),
        ((), tmp_path / "fewer", 65, "mixes of other settings than gain_db"),
        ((), tmp_path / "split", 65, "none of its 24 mixes is of the wanted split"),
        ((), tmp_path / "nothing", 66, "not a finished folder of mixes; make one with `editjax mixes"),
        ((), folder / "sounds", 65, "not a manifest of editjax mixes"),
        (("--data.folds", "5", "--data.fold", "5"), plain, 2, "a fold below the number of folds"),
        (("--data.folds", "5", "--data.fold", "-1"), plain, 2, "a fold below the number of folds"),
        (("--data.folds", "-2"), plain, 2, "a fold below the number of folds"),
        (("--data.batch-size", "0"), plain, 2, "a batch size of at least 1"),
        (("--data.balance", "mood"), plain, 2, "no labels of the kind 'mood'"),
        (("--data.label", "mood"), plain, 2, "no labels of the kind 'mood'"),
        (("--data.label", "kind"), plain, 2, "1 labels of the kind 'kind', but model.classes is 0"),
        (("--model.classes", "2", "--data.label", "genre"), plain, 2, "0 labels of the kind 'genre'"),
        (("--model.classes", "2"), plain, 2, "0 labels asked for by data.label"),
        (("--loss.masked", "0.5", "--model.kind", "enhanced"), plain, 2, "masked for an ast alone"),
        (("--loss.masked", "1.0"), plain, 2, "give a share from 0 to below 1"),
        (("--loss.heard", "0"), plain, 2, "`heard` of at least 1"),
        (("--model.patch", "4", "7"), plain, 2, "do not divide"),
        (("--model.picture.n-mels", "0"), plain, 2, "pictures of 0 bands"),
        (("--optim.accumulate", "3"), plain, 2, "do not divide over"),
    )
    for words, data, wanted, part in refused:
        code, said = run(*words, data=data)
        assert code == wanted and part in said and "\n" not in said, (words, code, said)
        assert "internal" not in said and not list((tmp_path / "run").glob("*/*")), words
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / MANIFEST).write_text(
        (plain / MANIFEST).read_text().replace('"train"', '"test"', 1)
    )
    code, said = run(data=tmp_path / "damaged")
    assert code == 65 and "changed or damaged" in said


def test_the_folder_of_mixes_is_for_regressors_alone(folder):
    from editjax.models.pointer import PointerSettings

    settings = replace(config(), model=PointerSettings())
    with pytest.raises(UsageError, match="which it does not learn from"):
        feed_of(settings, folder / "mixes").check(settings, "it")
    assert family_of(config().model).name == "mixer" and not family_of(config().model).goes_on


@pytest.mark.slow
def test_labels_are_learned_and_noted(folder, tmp_path):
    """Half of the mixes are said to be rock: the head learns that, and a model knows its classes' names."""
    lines = read_manifest(folder / "mixes", mixes.MIXES)["mixes"]
    for at, line in enumerate(lines):
        line["labels"] = {"genre": ("rock", "folk")[at % 2]} if at % 3 else {}
    target = changed(folder / "mixes", tmp_path / "mixes", mixes=lines)
    settings = config("baseline", steps=60, classes=2, width=16, dropout=0.0)
    settings = replace(settings, data=replace(settings.data, label="genre", batch_size=8), checkpoint_every=0)
    feed = feed_of(settings, target)
    feed.check(settings, "tiny.py")
    assert feed.facts["labels"] == ["folk", "rock"]
    trained(target, tmp_path / "run", settings)
    nats = logged(tmp_path / "run", "labels")
    assert np.mean(nats[-5:]) < 0.7 * np.mean(nats[:5])


def test_damaged_records_are_named(folder, tmp_path):
    target = changed(folder / "mixes", tmp_path / "mixes")
    (shard,) = target.glob("*.array_record")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    shard.unlink()
    shard.write_bytes(content)
    every = Mixes(target)
    with pytest.raises(DataError, match=r"cannot be read|damaged"):
        for k in range(COUNT):
            every[k]
