"""What the edits of a tuned pointer network earn, and how well it edits, beside the one it was begun from.

    python launch/earned.py TUNED final --data PAIRS [--limit 40]

Edits of style *final*, decoded freely, by the reward's default weights and the hearing of each network. The
difference is that of the first to the last, edit by edit, with its standard error over the recordings.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from editjax.cli import complain
from editjax.errors import EditjaxError
from editjax.evaluate import EvaluateSettings, score, tasks
from editjax.join_reward import RewardSettings
from editjax.network import load_model
from editjax.tune_quality import earned

EARNED = ("reward", "continuity", "beats", "duration", "coverage")
FIGURES = (*EARNED, "kept_iou", "boundary_f1_half_second", "order_agreement", "length_error", "keep_ratio")
STYLE = "final"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=0)
    chosen = parser.parse_args()
    figures_RMF = rows(chosen.models, chosen.data, chosen.limit)
    print(f"{len(figures_RMF)} edits", *chosen.models, "difference", sep=" | ")
    for name, figure_RM in zip(FIGURES, np.moveaxis(figures_RMF, -1, 0), strict=True):
        apart_R = figure_RM[:, 0] - figure_RM[:, -1]
        apart_R = apart_R[np.isfinite(apart_R)]
        error = apart_R.std(ddof=1) / len(apart_R) ** 0.5
        means = [f"{mean:.4f}" for mean in np.nanmean(figure_RM, axis=0)]
        print(name, *means, f"{apart_R.mean():+.4f} ± {error:.4f}", sep=" | ")


def rows(models: list[str], data: Path, limit: int) -> np.ndarray:
    """FIGURES of every edit by every model, (edits, models, figures)."""
    networks, found = [load_model(model) for model in models], []
    for task in tasks(data, EvaluateSettings((STYLE,), limit, networks[0].beats), []):
        mel_TF, phase_T3 = task.mel_TF, task.phase_T3
        each = []
        for network in networks:
            pointers_N = network.edit_pointers(mel_TF, phase_T3, style=STYLE).pointers_N
            told = earned(network, RewardSettings(), mel_TF, phase_T3, STYLE, pointers_N)
            each.append([(told | score(task, pointers_N))[name] for name in FIGURES])
        found.append(each)
    return np.array(found)


if __name__ == "__main__":
    try:
        main()
    except EditjaxError as error:
        sys.exit(complain(error))
