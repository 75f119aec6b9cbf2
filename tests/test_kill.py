"""Kill a training run at random moments, start it again with the same command, and lose nothing."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from editjax.journal import read_journal

KILLS = 20
PROGRAM = Path(__file__).parent / "tiny_family.py"


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent), "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """The digest of the final state that a run prints."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


def wait_for_training(folder: Path, process: subprocess.Popen) -> None:
    """Until this process has written a step: imports and compilation are the dull part of a run."""
    board = len(list((folder / "tensorboard").glob("*")))
    while process.poll() is None and len(list((folder / "tensorboard").glob("*"))) == board:
        time.sleep(0.02)
    size = (folder / "metrics.jsonl").stat().st_size
    while process.poll() is None and (folder / "metrics.jsonl").stat().st_size == size:
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_the_uninterrupted_one(tmp_path):
    whole = finish(start(tmp_path / "whole"))
    rng = np.random.default_rng(0)
    killed = runs = 0
    while killed < KILLS:
        folder, runs = tmp_path / f"run{runs}", runs + 1
        while True:
            process = start(folder)
            if killed < KILLS:
                if killed % 4:
                    wait_for_training(folder, process)
                time.sleep(rng.uniform(0, 3))
                if process.poll() is None:
                    process.kill()
                    process.communicate()
                    killed += 1
                    continue
            assert finish(process) == whole
            break
        steps = [row["step"] for row in read_journal(folder / "metrics.jsonl") if "loss" in row]
        assert steps == list(range(1, 41))
        assert not list(folder.glob("*/*tmp*"))
    assert losses(tmp_path / "run0") == losses(tmp_path / "whole")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_journal(folder / "metrics.jsonl") if "loss" in row]
