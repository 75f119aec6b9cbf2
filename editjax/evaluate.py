"""How good are the edits? Free-running, on recordings never trained on, beside the trivial editors.

`validate` scores parameters during training on a few examples of the validation split; `evaluate` prints the table
of a finished model over a folder of pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from editjax import shards
from editjax.metrics import edit_scores
from editjax.network import PointerNetwork

FIGURES = (
    "kept_iou",
    "boundary_f1_half_second",
    "boundary_f1_3_frames",
    "order_agreement",
    "length_error",
    "loop_recall",
)


@dataclass(frozen=True)
class ValidateSettings:
    """Which examples training is watched on; `split` None takes every split."""

    split: str | None = "validation"
    style: str = "final"
    examples: int = 12


def figures(predicted_N: np.ndarray, true_N: np.ndarray, n_frames: int) -> dict[str, float]:
    """The figures of one edit, flat, by name."""
    s = edit_scores(predicted_N, true_N, n_frames)
    return {
        "kept_iou": s.kept_iou,
        "boundary_f1_half_second": s.boundary_half_second.f1,
        "boundary_f1_3_frames": s.boundary_3_frames.f1,
        "order_agreement": s.order_agreement,
        "length_error": s.length_error,
        "loop_recall": s.loop_recall,
        "keep_ratio": s.keep_ratio,
        "true_keep_ratio": s.true_keep_ratio,
        "length_mae_frames": s.length_mae_frames,
        "pointer_accuracy": s.pointer_accuracy,
        "within_5": s.within_5,
        "plus_one_accuracy": s.plus_one_accuracy,
    }


def mean_figures(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the edits where it is defined; NaN where it never is."""
    names = rows[0].keys()
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in names}
    return {
        name: float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")
        for name, column in columns.items()
    }


def make_validate(
    config: Any, shards_dir: str | Path, settings: ValidateSettings = ValidateSettings()
) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: mean free-running figures on the first examples of the validation split.

    `score`, which decides the best checkpoint, is the mean kept-frame IoU.
    """
    source = shards.read(shards_dir)
    chosen = [
        index
        for index, entry in enumerate(source.entries)
        if settings.split in (None, entry.split) and entry.style == settings.style
    ]
    if not chosen:
        return lambda params: {"score": float("nan")}
    examples = [source[index] for index in chosen[: settings.examples]]

    def validate(params: Any) -> dict[str, float]:
        network = PointerNetwork(config.model, params)
        rows = []
        for example in examples:
            mel_TF = np.asarray(example.mel_TF, np.float32)
            phase_T3 = np.asarray(example.phase_T3, np.float32)
            edited = network.edit_pointers(mel_TF, phase_T3)
            row = figures(edited.pointers_N, example.pointers_N, len(mel_TF))
            kept = np.flatnonzero(edited.keep_T > 0.5)
            row["structure_iou"] = figures(kept, example.pointers_N, len(mel_TF))["kept_iou"]
            rows.append(row)
        mean = mean_figures(rows)
        return {"score": mean["kept_iou"], **mean}

    return validate
