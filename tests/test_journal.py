"""The record of a run: whole rows, each step once, figures as JSON and in TensorBoard."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from editjax.badput import Badput
from editjax.cli import main
from editjax.errors import DataError
from editjax.flops import Call
from editjax.journal import Journal, Rows, read_journal

CALL = Call(began=0.0, compile_s=0.0, flops=None)


class Clock:
    """Stands still until it is moved."""

    at = 0.0

    def __call__(self) -> float:
        return self.at


class Lengths(NamedTuple):
    frames_B: np.ndarray
    ids_B: np.ndarray


def rows_of(journal: Journal, step: int = 0, clock: Clock | None = None, **options) -> Rows:
    options = {"steps": 9, "max_skipped": 2, **options}
    return Rows(journal, step, spent=Badput(clock) if clock else Badput(), **options)


def losses(folder):
    return [(row["step"], row["loss"]) for row in read_journal(folder / "metrics.jsonl")]


def badput_of(folder) -> list[dict]:
    """The rows of where the time went, without what is zero."""
    rows = [row for row in read_journal(folder / "metrics.jsonl") if "badput/start" in row]
    return [{name.removeprefix("badput/"): value for name, value in row.items() if value} for row in rows]


def metrics(loss: float, skipped: int = 0) -> dict[str, np.ndarray]:
    return {"loss": np.float32(loss), "skipped": np.int32(skipped)}


def test_rows_after_the_restored_step_are_cut_and_written_again(tmp_path):
    with Journal(tmp_path) as journal:
        for step in (1, 2, 3, 4):
            journal.write(step, {"loss": step})
    with Journal(tmp_path, 2) as journal:
        journal.write(3, {"loss": 30})
    assert losses(tmp_path) == [(1, 1), (2, 2), (3, 30)]


def test_a_row_cut_short_by_a_kill_is_dropped(tmp_path):
    with Journal(tmp_path) as journal:
        journal.write(1, {"loss": 1})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "lo')
    with Journal(tmp_path, 9) as journal:
        journal.write(3, {"loss": 3})
    assert losses(tmp_path) == [(1, 1), (3, 3)]


def test_figures_that_json_has_no_word_for_become_null(tmp_path):
    with Journal(tmp_path) as journal:
        journal.write(1, {"loss": float("nan"), "other": -float("inf"), "ids": [1, 2]}, prefix="v/")
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "v/loss": None, "v/other": None, "v/ids": [1, 2]}


def test_tensorboard_gets_the_figures(tmp_path):
    with Journal(tmp_path) as journal:
        journal.write(1, {"planted_figure": 0.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"planted_figure" in events.read_bytes()


def test_a_step_is_written_when_the_next_one_is_on_its_way(tmp_path):
    with Journal(tmp_path) as journal, rows_of(journal, steps=3) as rows:
        rows.add(1, metrics(0.5), None, None, 0.0, 0.25, CALL)
        assert losses(tmp_path) == []
        rows.add(2, metrics(0.25), None, None, 0.0, 0.25, CALL)
        assert losses(tmp_path) == [(1, 0.5)]
        rows.flush()
        assert losses(tmp_path) == [(1, 0.5), (2, 0.25)]
    assert read_journal(tmp_path / "metrics.jsonl")[0]["data_s"] == 0.25


def test_too_many_bad_updates_in_a_row_end_the_run(tmp_path):
    with Journal(tmp_path) as journal, rows_of(journal) as rows:
        rows.add(1, metrics(1.0, skipped=1), None, None, 0.0, 0.0, CALL)
        rows.add(2, metrics(1.0, skipped=2), None, None, 0.0, 0.0, CALL)
        assert not rows.hopeless
        rows.flush()
        assert rows.hopeless.startswith("step 2: loss or gradient not finite 2 times in a row")


def test_rates_are_those_of_the_time_from_one_step_to_the_next(tmp_path, monkeypatch):
    """Batches are asked for at 10 and 14; the steps end at 16, of which 3 s are compiled, and at 18."""
    monkeypatch.setattr("editjax.journal.peak_flops_s", lambda: 1000.0)
    clock, batch = Clock(), Lengths(np.array([30, 10]), np.array([0, 1]))
    with Journal(tmp_path) as journal, rows_of(journal, clock=clock) as rows:
        clock.at = 16
        rows.add(1, metrics(0.5), batch, batch, 10.0, 1.0, Call(14.0, 3.0, 500.0))
        rows.settle()
        clock.at = 18
        rows.add(2, metrics(0.5), batch, batch, 14.0, 1.0, Call(15.0, 0.0, 500.0))
        rows.settle()
    first, second = read_journal(tmp_path / "metrics.jsonl")
    assert (first["step_s"], first["compile_s"], first["frames_s"], first["mfu"]) == (6, 3, 20, 0.25)
    assert (second["step_s"], second["frames_s"], second["flops_s"], second["mfu"]) == (2, 20, 250, 0.25)
    assert "compile_s" not in second


def test_without_a_known_peak_or_count_there_is_no_utilisation(tmp_path):
    clock = Clock()
    with Journal(tmp_path) as journal, rows_of(journal, clock=clock) as rows:
        for step, call in ((1, CALL._replace(flops=1e9)), (2, CALL)):
            clock.at += 1
            rows.add(step, metrics(0.5), None, None, clock.at - 1, 0.0, call)
            rows.settle()
    first, second = read_journal(tmp_path / "metrics.jsonl")
    assert first["flops_s"] == 1e9 and "mfu" not in first
    assert not {"flops_s", "mfu", "frames_s"} & second.keys()


def start(folder: Path, step: int, to: int, saved: int) -> None:
    """One start of a run: a second to begin, a second a step, and a checkpoint at the step `saved`."""
    clock = Clock()
    with Journal(folder, step) as journal, rows_of(journal, step, clock) as rows:
        clock.at += 1
        for number in range(step + 1, to + 1):
            clock.at += 1
            rows.add(number, metrics(0.5), None, None, clock.at - 1, 0.0, CALL._replace(began=clock.at - 1))
            rows.settle()
            if number == saved:
                rows.write_badput()


def test_where_the_time_went_is_kept_over_starts_and_redone_steps_are_told_apart(tmp_path, capsys):
    """Saved at 2 and killed at 5; from there to 7, of which 3, 4 and 5 are made again."""
    start(tmp_path, 0, 5, saved=2)
    said = capsys.readouterr().err
    assert "time: 0:00:06 h: steps 83.3 %, redo 0.0 %, init 16.7 %" in said and "starts" not in said
    start(tmp_path, 2, 7, saved=7)
    said = capsys.readouterr().err
    assert "time: 0:00:06 h: steps 33.3 %, redo 50.0 %, init 16.7 %" in said
    assert "time of all 2 starts: 0:00:09 h: steps 44.4 %, redo 33.3 %, init 22.2 %" in said
    assert badput_of(tmp_path) == [
        {"step": 2, "start": 1, "steps": 2, "init": 1},
        {"step": 7, "start": 2, "steps": 2, "redo": 3, "init": 1},
    ]
    start(tmp_path, 1, 2, saved=2)  # a damaged checkpoint: what went into the others stays
    assert [row["start"] for row in badput_of(tmp_path)] == [1, 2, 3]


def test_a_start_without_a_step_leaves_no_trace(tmp_path, capsys):
    with Journal(tmp_path) as journal, rows_of(journal) as rows:
        rows.flush()
        rows.write_badput()
    assert (tmp_path / "metrics.jsonl").read_text() == "" and capsys.readouterr().err == ""


def stand_in(monkeypatch, **broken) -> tuple[list, dict]:
    """A wandb that notes what it is told; those of its functions in `broken` raise."""
    told: list = []
    begun: dict = {}

    def tell(name):
        def call(*args, **options):
            if name in broken:
                raise broken[name]
            told.append((name, *args, options) if options else (name, *args))
            return run

        return call

    run = SimpleNamespace(**{name: tell(name) for name in ("log", "finish", "define_metric")})

    def init(**options):
        begun.update(options)
        return tell("init")()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return told, begun


def test_wandb_gets_every_row_under_one_name_over_starts(tmp_path, monkeypatch):
    told, begun = stand_in(monkeypatch)
    (tmp_path / "config.json").write_text('{"seed": 3}')
    with Journal(tmp_path, wandb="project") as journal:
        journal.write(1, {"loss": float("nan")}, prefix="v/")
    first = dict(begun)
    for error in (KeyboardInterrupt(), DataError("hopeless")):  # stopped in order; failed
        with pytest.raises(type(error)), Journal(tmp_path, 1, wandb="project"):
            raise error
    assert begun == first
    assert (begun["project"], begun["resume"], begun["config"]) == ("project", "allow", {"seed": 3})
    assert [call for call in told if call[0] in ("log", "finish")] == [
        ("log", {"step": 1, "v/loss": None}),
        ("finish", {"exit_code": 0}),
        ("finish", {"exit_code": 0}),
        ("finish", {"exit_code": 1}),
    ]
    (tmp_path / "other").mkdir()
    with Journal(tmp_path / "other", wandb="project"):
        pass
    assert begun["id"] != first["id"]


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_wandb_that_fails_is_one_line_and_no_end(tmp_path, monkeypatch, capsys, broken):
    stand_in(monkeypatch, **{broken: OSError("no network\nat all")})
    with Journal(tmp_path, wandb="project") as journal:
        for step in (1, 2, 3):
            journal.write(step, {"loss": step})
    assert len(losses(tmp_path)) == 3
    assert capsys.readouterr().err == "W&B does not work, and the run goes on without it: no network\n"


def test_wandb_that_is_not_installed_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["train", "none.py", "--data", "none", "--out", str(tmp_path / "run"), "--wandb", "project"]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "editjax: --wandb: W&B is not installed; pip install 'editjax[wandb]', or leave it out\n"
    )
