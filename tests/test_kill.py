"""Kill a training run at random moments, start it again with the same command, and lose nothing.

benchmarks/kills.py does the same with more kills.
"""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
CHECKPOINT_EVERY = 3
SHA256 = "5a" * 32


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("kills")


@pytest.mark.slow
def test_runs_killed_twenty_times_end_as_the_uninterrupted_one(kills: ModuleType, tmp_path: Path) -> None:
    rows, totals = kills.campaign(tmp_path, 2, 10)
    assert totals["kills"] == sum(row["kills"] for row in rows) == 20
    assert totals["unlike the unkilled"] == 0
    assert totals["redone at most"] <= CHECKPOINT_EVERY == kills.CHECKPOINT_EVERY
    assert totals["losses compared"] >= 40 * totals["runs"] <= totals["batches compared"]


@pytest.fixture
def whole(kills: ModuleType, tmp_path: Path):
    """A run as nobody killed it, to be told in other ways."""
    return told(kills, tmp_path / "whole", [(1, step) for step in range(40)])


def told(kills: ModuleType, folder: Path, drawn: list[tuple[int, int]], changed: str = "", loss: float = 0.5):
    """A run's files: batches (process, step), one step's of which may have changed, and a journal."""
    for name in ("best/40", "last/39", "last/40"):
        (folder / name).mkdir(parents=True)
    lines = [f"{pid} {step} {changed if changed and step == 7 else SHA256}\n" for pid, step in drawn]
    folder.with_suffix(".batches").write_text("".join(lines))
    losses = [(step, loss if step == 9 else 0.5) for step in range(1, 41)]
    rows = [f'{{"step": {step}, "loss": {value}}}\n' for step, value in losses]
    (folder / "metrics.jsonl").write_text("".join(rows))
    return kills.Run(folder, [], losses, "the same")


def test_what_was_redone_is_counted_for_each_kill(kills: ModuleType, tmp_path: Path) -> None:
    drawn = [
        *((1, step) for step in range(9)),
        (2, 6),
        (4, 6),
        (4, 7),
        (4, 8),
        (4, 9),
        (5, 10),
        (6, 9),
        (6, 10),
    ]
    run = told(kills, tmp_path / "run", drawn)
    assert [run.redone(pid) for pid in (1, 2, 3, 4, 5, 6)] == [3, 1, 0, 0, 2, 0]
    assert sum(run.redone(pid) for pid in range(1, 7)) == len(drawn) - 11  # 0 to 10, each once


def test_what_differs_from_the_uninterrupted_run_is_seen(kills: ModuleType, whole, tmp_path: Path) -> None:
    every = [(1, step) for step in range(40)]
    assert kills.difference(told(kills, tmp_path / "same", [*every, (2, 38), (2, 39)]), whole) == ""
    assert "batch differs" in kills.difference(told(kills, tmp_path / "batch", every, "6b" * 32), whole)
    assert "loss differs" in kills.difference(told(kills, tmp_path / "loss", every, loss=0.25), whole)
    assert "other batches" in kills.difference(told(kills, tmp_path / "lost", every[:-1]), whole)
    other = told(kills, tmp_path / "other", every)._replace(state="another")
    assert "final state differs" in kills.difference(other, whole)
    (tmp_path / "other" / "last" / ".new-9").mkdir()
    assert "it left" in kills.difference(other._replace(state="the same"), whole)
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    assert "not every step once" in kills.difference(other, whole)
