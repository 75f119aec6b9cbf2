"""The documents' ablation of the creative agent, and their use cases: what there is to run."""

import importlib.util
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_stage_adds_one_part():
    from editjax.models.window import WindowSettings

    stages = list(load(ROOT / "launch" / "ablate_windows.py").STAGES.values())
    assert len(stages) == 4
    for before, after in pairwise(stages):
        assert sum(before[name] != after[name] for name in before) == 1
    assert replace(WindowSettings(), **stages[-1]) == WindowSettings()


def test_the_table_has_a_row_a_stage():
    ablate = load(ROOT / "launch" / "ablate_windows.py")
    figures = dict.fromkeys(ablate.FIGURES, 1.0)
    text = ablate.table({"one window": [figures, figures], "three windows": [figures]})
    assert len(text.splitlines()) == 4 and "1.000 ± 0.000" in text


def test_the_use_cases_are_made_here():
    cases = load(ROOT / "examples" / "windows.py").cases()
    assert set(cases) == {"rhythm", "harmony", "structure"}
    for sounds in cases.values():
        for sound_S in sounds:
            assert len(sound_S) >= 24 * 24_000 and np.isfinite(sound_S).all() and sound_S.std() > 0.01


def test_the_config_is_one_of_the_families():
    from editjax.config import load_config
    from editjax.family import family_of

    config = load_config(ROOT / "configs" / "window_tiny.py")
    assert family_of(config.model, config.loss).name == "window"
    assert config.data.seconds == config.model.total_s and not config.data.batch_size % 2


@pytest.mark.slow
def test_the_use_cases_run(tmp_path, monkeypatch, capsys):
    from test_remix import AGENT, CODEC, write_model

    from editjax.models import codec, window

    write_model(tmp_path / "window", window, AGENT)
    write_model(tmp_path / "codec", codec, CODEC)
    words = ["windows.py", str(tmp_path / "out"), "--model", str(tmp_path / "window")]
    monkeypatch.setattr(sys, "argv", [*words, "--codec", str(tmp_path / "codec")])
    assert load(ROOT / "examples" / "windows.py").main() == 0
    assert len(list((tmp_path / "out").glob("*_piece.png"))) == 3
    assert capsys.readouterr().out.count("of the pairs marked *") == 3
