"""Damage to what training keeps is never silent; benchmarks/faults.py does the same with more faults."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("faults")


def test_three_hundred_faults_are_all_told_of(faults: ModuleType, tmp_path: Path) -> None:
    rows = faults.campaign(tmp_path, 100)
    assert sum(row["faults"] for row in rows) == 300
    for row in rows:
        assert row["silent"] == 0, row
        assert row["walked back" if row["what"] == "checkpoint" else "refused"] == row["faults"], row
        assert row["named"] + row["pair named"] == row["faults"], row
        assert row["fault"] == "exchange" or row["pair named"] == 0, row


def test_a_fault_nobody_told_of_would_be_seen(faults: ModuleType, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("editjax.manifest.sha256_of", lambda path: "the same for all")
    monkeypatch.setattr(faults, "LOOKS", {"checkpoint": faults.look_at_checkpoints})
    rows = faults.campaign(tmp_path, 8)
    assert sum(row["silent"] for row in rows) > 0
