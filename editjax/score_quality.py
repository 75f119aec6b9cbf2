"""How well scores tell kept from cut frames: detection and edits, beside what needs no model.

`validate` scores parameters during training and calibrates them; `detection` is the table of a folder of
recordings whose edits are known. Every score is higher for worse, so that cut frames are the positives.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter1d

from editjax import shards
from editjax.edits import kept_mask_frames
from editjax.errors import DataError
from editjax.mel import MelSettings
from editjax.metrics import auroc, average_precision
from editjax.models.autoencoder import ScorerSettings
from editjax.records import Example
from editjax.score import KeepSettings, best, keep_mask
from editjax.scorer import Scorer, calibrate, combined, figures_of, weights_of
from editjax.silence import frame_levels_db

ENSEMBLE = "ensemble"
FLATNESS_FLOOR = 1e-10


def scorer_validate(
    config: Any, shards_dir: str | Path, split: str | None, style: str, examples: int
) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: detection, retention and IoU on validation pairs, with the calibration.

    `score`, which decides the best checkpoint, is the area under the ROC of the calibrated ensemble.
    """
    pairs = known_pairs(shards_dir, split, style, examples)
    if pairs is None and split is None:
        raise DataError(f"{shards_dir}: no example of style {style!r} to validate on")
    if pairs is None:
        missing = f"{shards_dir}: no example of split {split!r} and style {style!r}"
        print(f"{missing}: nothing to choose the best checkpoint by, nor to calibrate on", file=sys.stderr)
        return lambda params: {"score": float("nan")}
    found, kept, mel = pairs

    def validate(params: Any) -> dict[str, float]:
        scorer = Scorer(config.model, params, mel)
        scores = [scorer.scores(np.asarray(example.mel_TF, np.float32)) for example in found]
        return validation_figures(config.model, scores, kept, mel.frames_per_second)

    return validate


def known_pairs(
    shards_dir: str | Path, split: str | None, style: str, examples: int | None = None
) -> tuple[list[Example], list[np.ndarray], MelSettings] | None:
    """The first examples of a split (None: of all) and style, and what their edits keep; None without any."""
    with shards.read(shards_dir) as source:
        chosen = [
            index
            for index, entry in enumerate(source.entries)
            if split in (None, entry.split) and entry.style == style
        ]
        found = [source[index] for index in chosen[:examples]]
    kept = [kept_mask_frames(example.pointers_N, len(example.mel_TF)) for example in found]
    return (found, kept, MelSettings(**source.manifest["mel"])) if found else None


def validation_figures(
    settings: ScorerSettings,
    scores: Sequence[np.ndarray],
    kept: Sequence[np.ndarray],
    frames_per_second: float,
    wanted: float | None = None,
) -> dict[str, float]:
    """Figures of scores (T, scales, scores) of recordings whose true keep masks (T,) are known.

    They are calibrated to keep the share that is wanted, or as much as the true edits.
    """
    calibration, curve = calibrate(settings, scores, kept, frames_per_second, wanted)
    keep = KeepSettings(threshold=calibration.threshold)
    ensembles = [combined(score_TQN, calibration.weight_QN) for score_TQN in scores]
    masks = [keep_mask(score_T, keep, frames_per_second) for score_T in ensembles]
    cut_T = ~np.concatenate(list(kept))
    each = {
        name: np.concatenate([combined(score_TQN, weights_of(settings, {name: 1.0})) for score_TQN in scores])
        for name in settings.scores
    }
    each[ENSEMBLE] = np.concatenate(ensembles)
    figures = {f"auroc_{name}": auroc(score_T, cut_T) for name, score_T in each.items()}
    highest = best(curve)
    return {
        "score": figures[f"auroc_{ENSEMBLE}"],
        "average_precision": average_precision(each[ENSEMBLE], cut_T),
        "kept_iou": _mean_iou(masks, kept),
        "keep_ratio": float(np.mean([mask_T.mean() for mask_T in masks])),
        "best_iou": highest.kept_iou,
        "best_threshold": highest.threshold,
        **figures,
        **figures_of(settings, calibration),
    }


def trivial_scores(mel_TF: np.ndarray, mel: MelSettings, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores that need no model, (T,) each: how quiet, how noise-like, and noise as slow as an edit."""
    power_TF = 10.0 ** (
        (np.asarray(mel_TF, np.float32) * (mel.ceiling_db - mel.floor_db) + mel.floor_db) / 10.0
    )
    power_TF = np.maximum(power_TF, FLATNESS_FLOOR)
    flatness_T = np.exp(np.log(power_TF).mean(1)) / power_TF.mean(1)
    slow = round(4.0 * mel.frames_per_second)
    noise_T = np.sqrt(slow) * np.random.default_rng(seed).standard_normal(len(mel_TF))
    return {
        "energy": -frame_levels_db(mel_TF, mel),
        "spectral flatness": flatness_T,
        "random": uniform_filter1d(noise_T, slow, mode="wrap"),
    }


def detection(scores: Mapping[str, np.ndarray], cut_T: np.ndarray) -> dict[str, dict[str, float]]:
    """Area under the ROC and average precision of every score of the same frames."""
    return {
        name: {"auroc": auroc(score_T, cut_T), "average_precision": average_precision(score_T, cut_T)}
        for name, score_T in scores.items()
    }


def _mean_iou(masks: Sequence[np.ndarray], kept: Sequence[np.ndarray]) -> float:
    ious = []
    for mask_T, kept_T in zip(masks, kept, strict=True):
        either = (mask_T | kept_T).sum()
        ious.append((mask_T & kept_T).sum() / either if either else 1.0)
    return float(np.mean(ious))
