"""A run saved on one topology goes on alike on another; benchmarks/resharding.py does the same with more."""

import contextlib
import importlib
import itertools
import json
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from tiny_family import FAMILY, TinyBatches, TinyData, tiny_config

from editjax.checkpoint import Checkpoints

NAMES = "1 device", "2 data", "2 fsdp × 2 tensor"


@pytest.fixture
def resharding(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("resharding")


@pytest.fixture
def tiny(resharding: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """The stand-in family; small as its parameters are, they are split."""
    monkeypatch.setattr("editjax.mesh.SMALLEST_SPLIT", 1)
    family = FAMILY._replace(rules=((r"hidden/kernel", P(None, "tensor")),))
    return resharding.Job(tiny_config(16), family, lambda: contextlib.nullcontext(TinyBatches(TinyData())))


def test_a_run_goes_on_alike_wherever_it_is_restored(resharding: ModuleType, tiny, tmp_path: Path) -> None:
    rows, totals = resharding.campaign(tmp_path, tiny, NAMES, 3, 8)
    assert totals["pairs"] == len(rows) == len(NAMES) ** 2
    assert totals["unlike"] == 0 and resharding.within(totals)
    assert totals["tensors compared"] == 9 * 17
    stayed = [row for row in rows if row["saved on"] == row["restored on"]]
    assert len(stayed) == len(NAMES) and all(row["losses"] == 0 for row in stayed)


def test_what_is_committed_is_of_every_pair_and_near(resharding: ModuleType) -> None:
    path = Path(resharding.__file__).parent / "results" / "resharding.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    pairs = [(row["saved on"], row["restored on"]) for row in found["rows"]]
    assert pairs == list(itertools.product(resharding.TOPOLOGIES, repeat=2))
    assert found["ratios"]["unlike"] == 0 and resharding.within(found["ratios"])
    assert found["ratios"]["batches and losses compared"] == len(pairs) * 200
    assert all(row["losses"] == 0 for row in found["rows"] if row["saved on"] == row["restored on"])


@pytest.mark.slow
def test_so_does_the_pointer_network(resharding: ModuleType, tmp_path: Path) -> None:
    job = resharding.pointer_job(tmp_path / "shards")
    _, totals = resharding.campaign(tmp_path, job, resharding.QUICK, 2, 5)
    assert totals["unlike"] == 0 and resharding.within(totals)


def test_a_lost_moment_would_be_seen(resharding: ModuleType, tiny, tmp_path: Path, monkeypatch) -> None:
    whole = Checkpoints.restore

    def without_second_moments(self, step, abstract_parts):
        def kept(path, leaf):
            return leaf * 0 if "/nu/" in jax.tree_util.keystr(path, simple=True, separator="/") else leaf

        return jax.tree_util.tree_map_with_path(kept, whole(self, step, abstract_parts))

    monkeypatch.setattr(Checkpoints, "restore", without_second_moments)
    rows, totals = resharding.campaign(tmp_path, tiny, NAMES[:1], 3, 4)
    assert totals["unlike"] > 0 and not resharding.within(totals) and rows[0]["first loss"] == 0


def test_a_lost_batch_would_be_seen(resharding: ModuleType, tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        TinyBatches, "set_state", lambda self, state: setattr(self, "position", state["next"] + 1)
    )
    rows, totals = resharding.campaign(tmp_path, tiny, NAMES[:1], 3, 4)
    assert totals["unlike"] > 4 and rows[0]["first loss"] > resharding.FIRST_TOLERANCE


def test_a_copy_on_every_device_proves_nothing(
    resharding: ModuleType, tiny, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("editjax.mesh.SMALLEST_SPLIT", 1 << 16)
    with pytest.raises(SystemExit, match="2 fsdp: no parameter lies in 2 pieces"):
        resharding.campaign(tmp_path, tiny, ["2 fsdp"], 1, 1)


def test_a_loss_that_is_no_number_is_not_near(resharding: ModuleType) -> None:
    near = {"first loss, at most": 0.0, "losses, at most": 1e-5}
    assert resharding.within(near)
    assert not resharding.within({**near, "losses, at most": np.nan})
