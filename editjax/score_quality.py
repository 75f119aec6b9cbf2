"""How well scores tell kept from cut frames: detection and edits, beside what needs no model.

`scorer_validate` scores parameters during training and calibrates them. Every score is higher for
worse, so that cut frames are the positives.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter1d

from editjax import shards
from editjax.edits import kept_mask_frames
from editjax.mel import MelSettings
from editjax.metrics import auroc, average_precision, mask_iou
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
    found, kept, mel = known_pairs(shards_dir, split, style, examples)
    if not found:
        return lambda params: {"score": float("nan")}

    def validate(params: Any) -> dict[str, float]:
        scorer = Scorer(config.model, params, mel)
        scores = [scorer.scores(np.asarray(example.mel_TF, np.float32)) for example in found]
        return validation_figures(config.model, scores, kept, mel.frames_per_second)

    return validate


def known_pairs(
    shards_dir: str | Path, split: str | None, style: str, examples: int | None = None
) -> tuple[list[Example], list[np.ndarray], MelSettings]:
    """The examples to watch (`shards.watched`), what their edits keep, and of which mel they are."""
    found = shards.watched(shards_dir, split, [style], examples)
    kept = [kept_mask_frames(example.pointers_N, len(example.mel_TF)) for example in found]
    return found, kept, MelSettings(**shards.read_manifest(shards_dir)["mel"])


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
        "kept_iou": float(np.mean([mask_iou(*pair) for pair in zip(masks, kept, strict=True)])),
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
