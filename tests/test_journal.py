"""The record of a run: whole rows, each step once, figures as JSON and in TensorBoard."""

import json

import numpy as np
import pytest

from editjax.errors import DataError
from editjax.journal import Journal, Rows, read_journal


def losses(folder):
    return [(row["step"], row["loss"]) for row in read_journal(folder / "metrics.jsonl")]


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
    with Journal(tmp_path) as journal, Rows(journal, 0, 3, max_skipped=2) as rows:
        rows.add(1, metrics(0.5), None, 0.0, 0.25)
        assert losses(tmp_path) == []
        rows.add(2, metrics(0.25), None, 0.0, 0.25)
        assert losses(tmp_path) == [(1, 0.5)]
        rows.flush()
        assert losses(tmp_path) == [(1, 0.5), (2, 0.25)]
    assert read_journal(tmp_path / "metrics.jsonl")[0]["data_s"] == 0.25


def test_too_many_bad_updates_in_a_row_end_the_run(tmp_path):
    with Journal(tmp_path) as journal, Rows(journal, 0, 9, max_skipped=2) as rows:
        rows.add(1, metrics(1.0, skipped=1), None, 0.0, 0.0)
        rows.add(2, metrics(1.0, skipped=2), None, 0.0, 0.0)
        with pytest.raises(DataError, match="step 2: loss or gradient not finite 2 times in a row"):
            rows.flush()
