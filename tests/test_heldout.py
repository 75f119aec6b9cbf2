"""On ten frozen sessions the bundled model edits far better than editors without a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_bundled_model_on_ten_held_out_sessions(tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    command = [
        sys.executable,
        str(ROOT / "benchmarks/quality.py"),
        "--quick",
        "--workers",
        "2",
        "--out",
        str(out),
    ]
    # As a user runs it: tests compile for speed of compilation, and pretend to several devices.
    users = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    users["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=users, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["figure"]: row for row in json.loads(out.read_text())["rows"]}
    iou = rows["kept_iou"]
    assert iou["edits"] == 10
    assert iou["pointer network"] > max(iou["keep everything"], iou["silence cutter"]) + 0.25
    assert iou["pointer network"] >= 0.93
    assert rows["boundary_f1_half_second"]["pointer network"] >= 0.9
    assert rows["order_agreement"]["pointer network"] >= 0.95
    assert rows["length_error"]["pointer network"] <= 0.08  # one wrong take of the ten sessions' is 0.05
    assert rows["spoiled_takes_found"]["pointer network"] > 0.7
    assert rows["spoiled_takes_found"]["silence cutter"] <= 0.1
    assert rows["length_0.5_met"]["pointer network"] >= 0.8 <= rows["length_1.5_met"]["pointer network"]
