"""A search over settings: counted over calls and processes, resumed after a kill, the best as options."""

import argparse
import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from editjax.array_records import pack, write_folder
from editjax.config import load_config, override
from editjax.console.compared import HEARD
from editjax.console.knobs import KNOBS
from editjax.errors import DataError, UsageError
from editjax.mixes import MIXES, MakeSettings, _lines
from editjax.models.mixer import MixerSettings
from editjax.models.pointer import PointerSettings
from editjax.step import TrainConfig

optuna = pytest.importorskip("optuna")
tiny = pytest.importorskip("tiny_search")
search = tiny.search

CONFIG = """
from editjax.mixer_loss import MixerLossSettings
from editjax.mixes import MixSettings
from editjax.models.mixer import MixerSettings
from editjax.optim import OptimSettings
from editjax.step import TrainConfig

def config():
    return TrainConfig(
        model=MixerSettings(kind="baseline", width=4),
        loss=MixerLossSettings(),
        data=MixSettings(batch_size=4, folds=3, threads=1),
        optim=OptimSettings(warmup_steps=1, steps=12),
        validate_every=3,
        checkpoint_every=1,
    )
"""
TRIAL = {"optim.learning_rate", "data.batch_size"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config, and mixes of noise to run it on."""
    path, rng = tmp_path_factory.mktemp("search"), np.random.default_rng(0)
    (path / "tiny.py").write_text(CONFIG)

    def records():
        for k in range(12):
            facts = {"id": str(k), "group": str(k % 6), "split": "train", "labels": {}}
            shown = rng.random((24, 96, 6)).astype(np.float16)
            heard = rng.random(HEARD).astype(np.float32)
            yield pack(facts, picture=shown, figures=heard, knobs=rng.random(len(KNOBS)).astype(np.float32))

    def manifest_of(files, lines):
        made = asdict(MakeSettings(count=12, seconds=24 / 21))
        return {
            "settings": made,
            "counts": {"mixes": 12},
            "knobs": [knob._asdict() for knob in KNOBS],
            "shards": files,
            "mixes": lines,
        }

    write_folder(path / "mixes", records(), MIXES, _lines, manifest_of)
    return path


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(search, "SPACES", {"mixer baseline": tiny.SPACE})


def asked(folder: Path, out: Path, **changes) -> argparse.Namespace:
    facts = {"config": folder / "tiny.py", "data": folder / "mixes", "out": out, "trials": 4, "steps": None}
    return argparse.Namespace(**{**facts, "seed": 0, **changes})


def scored(trial, config, data, folder) -> float:
    """In place of a run: the best rate is 1e-2."""
    return -abs(np.log10(trial.params["optim.learning_rate"]) + 2.0)


def trials_of(out: Path) -> list:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "journal.log"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="search", storage=storage).get_trials()


def test_a_second_call_goes_on_and_the_best_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "run", scored)
    whole = search.search(asked(folder, tmp_path / "whole", trials=14), [])
    search.search(asked(folder, tmp_path / "parts", trials=5), [])
    parts = search.search(asked(folder, tmp_path / "parts", trials=14), [])
    assert parts == whole == json.loads((tmp_path / "parts" / "best.json").read_text())
    assert whole["trials"] == {"complete": 14} and set(whole["params"]) == TRIAL
    drawn = [trial.params for trial in trials_of(tmp_path / "parts")]
    assert drawn == [trial.params for trial in trials_of(tmp_path / "whole")]
    assert len({params["optim.learning_rate"] for params in drawn}) == 14
    assert whole["score"] == max(trial.value for trial in trials_of(tmp_path / "parts")) > -0.3
    again = search.search(asked(folder, tmp_path / "parts", trials=14), [])
    assert again == whole and len(trials_of(tmp_path / "parts")) == 14


def test_the_best_settings_are_options_that_train_takes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "run", scored)
    best = search.search(asked(folder, tmp_path, trials=2), ["--seed", "7"])
    config = override(load_config(folder / "tiny.py"), best["options"])
    assert config.data.batch_size == best["params"]["data.batch_size"]
    assert config.optim.learning_rate == pytest.approx(best["params"]["optim.learning_rate"], rel=1e-5)
    assert (
        best["command"].startswith(f"editjax train {folder / 'tiny.py'} --data")
        and "--seed 7" in best["command"]
    )


def test_an_interrupted_trial_is_made_again_in_its_folder_and_not_for_ever(folder, tmp_path, monkeypatch):
    seen = []

    def interrupted(trial, config, data, run_dir):
        seen.append((trial.number, run_dir.name, dict(trial.params)))
        if trial.params == seen[0][2]:
            raise KeyboardInterrupt
        return scored(trial, config, data, run_dir)

    monkeypatch.setattr(search, "run", interrupted)
    for _ in range(search.MOST_TRIES):
        with pytest.raises(KeyboardInterrupt):
            search.search(asked(folder, tmp_path, trials=3), [])
    assert [name for _, name, _ in seen] == ["0", "0", "0"]
    best = search.search(asked(folder, tmp_path, trials=3), [])
    assert best["trials"] == {"complete": 2, "fail": 1} and len(trials_of(tmp_path)) == 5
    monkeypatch.setattr(search, "run", scored)
    assert search.search(asked(folder, tmp_path, trials=4), [])["trials"] == {"complete": 3, "fail": 1}


def test_failed_and_pruned_trials_are_counted_and_do_not_end_the_search(folder, tmp_path, monkeypatch):
    def mixed(trial, config, data, run_dir):
        match trial.number:
            case 0:
                raise DataError("10 updates in a row were not finite")
            case 1:
                raise optuna.TrialPruned
        return scored(trial, config, data, run_dir)

    monkeypatch.setattr(search, "run", mixed)
    with pytest.raises(DataError, match="no trial of 2 was completed"):
        search.search(asked(folder, tmp_path, trials=2), [])
    assert not (tmp_path / "best.json").exists()
    found = search.search(asked(folder, tmp_path, trials=3), [])
    assert found["trials"] == {"complete": 1, "fail": 1, "pruned": 1}
    assert trials_of(tmp_path)[0].user_attrs["failed"] == "10 updates in a row were not finite"


def test_other_settings_need_another_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "run", scored)
    search.search(asked(folder, tmp_path, trials=1), [])
    with pytest.raises(
        UsageError, match=r"begun with another config\.optim\.warmup_steps; use that or a new folder"
    ):
        search.search(asked(folder, tmp_path, trials=1, steps=8), [])
    with pytest.raises(UsageError, match="begun with another seed"):
        search.search(asked(folder, tmp_path, trials=1, seed=1), [])
    with pytest.raises(UsageError, match="give at least 4"):
        search.search(asked(folder, tmp_path / "new", steps=2), [])


def test_the_spaces_are_of_settings_that_there_are(monkeypatch):
    monkeypatch.undo()
    module = tiny.search
    for kind in ("baseline", "enhanced", "ast"):
        config = TrainConfig(model=MixerSettings(kind=kind))
        space = module.SPACES[f"mixer {kind}"]
        assert {"optim.learning_rate", "data.batch_size", "model.dropout", "model.width"} <= space.keys()
        for name, (scale, *values) in space.items():
            for value in values:
                part, field = name.split(".")
                if part == "model":
                    assert getattr(replace(config.model, **{field: value}), field) == value
            assert scale in ("log", "even", "one of")
    assert module.space_of(TrainConfig(model=PointerSettings())).keys() == module.ANY.keys()


class Behind:
    """A trial of which all others are ahead."""

    def __init__(self):
        self.params, self.told = {"data.batch_size": 4}, []

    def report(self, score, step):
        self.told.append((step, score))

    def should_prune(self):
        return len(self.told) == 2


@pytest.mark.slow
def test_a_trial_that_falls_behind_ends_in_the_middle_of_its_run(folder, tmp_path):
    config, trial = search.shortened(load_config(folder / "tiny.py"), None), Behind()
    with pytest.raises(optuna.TrialPruned):
        search.run(trial, config, folder / "mixes", tmp_path)
    assert [step for step, _ in trial.told] == [3, 6] and all(0 < score < 1 for _, score in trial.told)
    assert not list((tmp_path / "run").glob("trainer-*.lock"))
    assert (tmp_path / "run" / "last" / "5").is_dir() and not (tmp_path / "run" / "last" / "6").exists()


def started(folder: Path, out: Path, *words: str) -> subprocess.Popen:
    program = str(Path(__file__).parent / "tiny_search.py")
    named = [str(folder / "tiny.py"), "--data", str(folder / "mixes"), "--out", str(out), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, program, *named], **pipes)


@pytest.mark.slow
def test_a_killed_search_goes_on_by_two_processes_at_once(folder, tmp_path):
    first, saved = started(folder, tmp_path, "--trials", "4"), tmp_path / "trials" / "0" / "run" / "last"
    until = time.monotonic() + 300
    while not any(saved.glob("[4-9]")) and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "best.json").exists()
    both = [started(folder, tmp_path, "--trials", "4") for _ in range(2)]
    told = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    trials = trials_of(tmp_path)
    assert [trial.state.name for trial in trials] == ["FAIL", *["COMPLETE"] * 4]
    assert trials[1].params == trials[0].params or trials[2].params == trials[0].params
    again = next(trial for trial in trials if trial.user_attrs.get("again") == 0)
    assert set(again.intermediate_values) <= {3, 6, 9, 12} and 12 in again.intermediate_values
    assert any("going on from step" in words[1] for words in told)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["score"] == max(trial.value for trial in trials[1:])
    assert (tmp_path / best["run"] / "best").is_dir()
    assert sum(words[0].count("trial ") for words in told) == 4
    assert all(best["command"] in words[0] for words in told)
