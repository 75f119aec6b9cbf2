"""What each part of the creative agent is worth, as the documents ask: the same budget with one part more.

    python launch/ablate_windows.py CONFIG --data SOUNDS --out FOLDER [--seeds 3] [TRAIN OPTIONS]

One window without compression or tonality, then three windows, then compression, then tonality. Figures are
those of recordings held out, at the end of each run. A script that was killed goes on where it stopped, and
FOLDER/table.md has a row for each that is done.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from editjax.array_records import write_json
from editjax.cli import complain
from editjax.config import load_config, override, to_json
from editjax.errors import DataError, EditjaxError
from editjax.export import load_bundle
from editjax.feed import feed_of
from editjax.step import TrainConfig
from editjax.train import train
from editjax.window_quality import window_validate

STAGES = {
    "one window": {"pairs": 1, "compress": False, "tonality": False},
    "three windows": {"pairs": 3, "compress": False, "tonality": False},
    "and compression": {"pairs": 3, "compress": True, "tonality": False},
    "and tonality": {"pairs": 3, "compress": True, "tonality": True},
}
FIGURES = ("loss", "spectral", "rhythm", "matching", "novelty", "ratio", "diversity")
EXAMPLES = 32


def run(config: TrainConfig, stage: str, seed: int, data: Path, folder: Path) -> dict[str, float]:
    """The figures of one run, trained now unless they are there."""
    model, data_settings = replace(config.model, **STAGES[stage]), replace(config.data, seed=seed)
    config = replace(config, model=model, data=data_settings, seed=seed, validate_every=0)
    codec = load_bundle(config.loss.codec).config["digest"]
    about = {"config": to_json(config), "data": str(data), "codec": codec}
    result = folder / "figures.json"
    if result.exists():
        found = json.loads(result.read_text())
        if found["about"] != about:
            raise DataError(f"{result}: made with other settings or data; name another --out")
        return found["figures"]
    feed = feed_of(config, data)
    feed.check(config, "the config")
    stream = feed.batches(data, config.data)
    try:
        state = train(config, stream, folder / "run")
    finally:
        stream.close()
    params = state.params if state.ema_params is None else state.ema_params
    figures = window_validate(config, data, EXAMPLES)(params)
    if "loss" not in figures:
        raise DataError(f"{data}: holds out too few recordings to compare on")
    write_json(result, {"about": about, "figures": figures})
    return figures


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """A row a stage: mean and spread over the seeds of every figure."""
    rows = ["| agent | runs | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    for stage, figures in found.items():
        columns = (np.array([one[name] for one in figures], float) for name in FIGURES)
        cells = (f"{column.mean():.3f} ± {column.std():.3f}" for column in columns)
        rows.append(f"| {stage} | {len(figures)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    chosen, overrides = parser.parse_known_args()
    config = override(load_config(chosen.config), overrides)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(chosen.seeds):
        for stage in STAGES:
            folder = chosen.out / stage.replace(" ", "_") / str(seed)
            found.setdefault(stage, []).append(run(config, stage, seed, chosen.data, folder))
            (chosen.out / "table.md").write_text(table(found))
    print(table(found), end="")


if __name__ == "__main__":
    try:
        main()
    except EditjaxError as error:
        sys.exit(complain(error))
