"""A trained scorer to call: mel in, how far every frame is from edited audio out, and the edit that follows.

Scores of one recording are (T, scales, scores), standardised (`models.anomaly`). What an ensemble makes of
them, and where it cuts, was calibrated on validation pairs and comes with the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.optimize import minimize

from editjax.chunks import windows
from editjax.edits import EditList, Source
from editjax.errors import DataError, UsageError
from editjax.mel import FrameGrid, MelSettings
from editjax.models.anomaly import score_heard
from editjax.models.autoencoder import ScorerSettings, reaches
from editjax.models.relations import heard
from editjax.network import padded_length
from editjax.score import KeepSettings, Retention, Scores, calibrated, retention_curve, scored_edit

DOCUMENTS = {"cycle": 0.3, "latent": 0.3, "discriminator": 0.4}
"""The documents' ensemble; it needs two decoders."""
CHUNK_FRAMES = 1 << 15
DECAY = 1e-3
FITTED_FRAMES = 50_000
MOST_DEVIATIONS = 10.0
"""Scores count up to this many standard deviations: one that is far out must not outweigh all others."""


class Calibration(NamedTuple):
    """Weights (scales, scores) of the ensemble, the threshold of its edits, and what the pairs keep."""

    weight_QN: np.ndarray
    threshold: float = 0.0
    keep_ratio: float = float("nan")


class Scorer:
    """Settings and parameters of a trained scorer, its calibration, and the fingerprint of both."""

    def __init__(
        self,
        settings: ScorerSettings,
        params: Any,
        mel: MelSettings = MelSettings(),
        calibration: Calibration | None = None,
        keep: KeepSettings = KeepSettings(),
        sha256: str = "",
    ):
        self.settings, self.params, self.mel, self.sha256 = settings, params, mel, sha256
        self.calibration = calibration or Calibration(weights_of(settings, default_weights(settings)))
        self.keep = replace(keep, threshold=self.calibration.threshold)

    def scores(self, mel_TF: np.ndarray) -> np.ndarray:
        """Every score of every frame, float32 (T, scales, scores)."""
        n_frames = len(mel_TF)
        span = max(self.settings.scales) * self.settings.reduction
        length = -(-padded_length(n_frames) // span) * span
        mel_1TF = np.zeros((1, length, self.settings.n_mels), np.float32)
        mel_1TF[0, :n_frames] = mel_TF
        x_TF, context_TC = (np.asarray(a[0]) for a in _heard(self.settings, mel_1TF, _one(n_frames)))
        found = np.zeros((n_frames, len(self.settings.scales), len(self.settings.scores)), np.float32)
        chunk, halo = (-(-frames // span) * span for frames in (CHUNK_FRAMES, reaches(self.settings)))
        for window, inner in windows(n_frames, length, chunk, halo):
            parts = x_TF[None, window], context_TC[None, window]
            valid_1 = _one(int(np.clip(n_frames - window.start, 0, window.stop - window.start)))
            chunk = np.asarray(_score_heard(self.settings, self.params, *parts, valid_1))[0]
            inner = slice(inner.start, min(inner.stop, n_frames))
            found[inner] = chunk[inner.start - window.start : inner.stop - window.start]
        return found

    def anomaly(self, mel_TF: np.ndarray) -> np.ndarray:
        """The ensemble's score of every frame, float32 (T,), higher for worse."""
        return combined(self.scores(mel_TF), self.calibration.weight_QN)

    def scored(self, mel_TF: np.ndarray, source_sha256: str, model: str) -> Scores:
        """The same with what it was made from and by, to be written."""
        return Scores(self.anomaly(mel_TF), source_sha256, model, self.sha256)

    def asked(
        self,
        threshold: float | None = None,
        keep_ratio: float | None = None,
        min_clip_s: float | None = None,
    ) -> KeepSettings:
        """Its own way to make clips, but for what is asked. Raises UsageError for what makes no sense."""
        wanted = {"threshold": threshold, "keep_ratio": keep_ratio, "min_clip_s": min_clip_s}
        return replace(self.keep, **{name: value for name, value in wanted.items() if value is not None})

    def edit(
        self,
        score_T: np.ndarray,
        grid: FrameGrid,
        source: Source,
        keep: KeepSettings | None = None,
        editor: dict[str, object] | None = None,
    ) -> EditList:
        """The edit that follows from the scores, as calibrated or as `keep` asks; `editor` are its notes."""
        return scored_edit(score_T, grid, source, keep or self.keep, self.mel.frames_per_second, editor)


@partial(jax.jit, static_argnums=0)
def _heard(settings, mel_BTF, frames_B):
    return heard(settings, mel_BTF, frames_B)


@partial(jax.jit, static_argnums=0)
def _score_heard(settings, params, x_BTF, context_BTC, frames_B):
    return score_heard(settings, params, x_BTF, context_BTC, frames_B)


def load_scorer(model: str | Path) -> Scorer:
    """The bundled scorer of that name, or a folder written by `editjax export`.

    Raises NoInputError when there is none, DataError when it is damaged or not a scorer.
    """
    from editjax.export import load_bundle

    bundle = load_bundle(model)
    if not isinstance(bundle.settings, ScorerSettings):
        raise DataError(f"{model}: is a model of the family {bundle.config['family']}, not a scorer")
    figures = bundle.config["training"].get("scores") or {}
    try:
        calibration = calibration_of(bundle.settings, figures)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{bundle.path}: its calibration lacks a figure ({error}); calibrate it again"
        ) from None
    return Scorer(bundle.settings, bundle.params, bundle.mel, calibration, sha256=bundle.config["digest"])


def combined(score_TQN: np.ndarray, weight_QN: np.ndarray) -> np.ndarray:
    """The weighted sum of all scores, float32 (T,)."""
    return np.einsum("tqn,qn->t", _clipped(score_TQN), weight_QN.astype(np.float32))


def default_weights(settings: ScorerSettings) -> dict[str, float]:
    """The documents' ensemble where there are two decoders, else what hears other takes and levels."""
    return DOCUMENTS if settings.dual else {"context": 0.5, "relative": 0.5}


def weights_of(settings: ScorerSettings, weights: Mapping[str, float]) -> np.ndarray:
    """Weights a score, as (scales, scores): the mean over all scales. UsageError for a score it has not."""
    if unknown := [name for name in weights if name not in settings.scores]:
        raise UsageError(f"score {unknown[0]!r}: this scorer has {', '.join(settings.scores)}")
    row_N = np.array([weights.get(name, 0.0) for name in settings.scores], np.float32)
    return np.tile(row_N / len(settings.scales), (len(settings.scales), 1))


def calibrate(
    settings: ScorerSettings,
    scores: Sequence[np.ndarray],
    kept: Sequence[np.ndarray],
    frames_per_second: float,
    wanted: float | None = None,
    keep: KeepSettings = KeepSettings(),
) -> tuple[Calibration, list[Retention]]:
    """Weights that tell kept from cut frames best, and the threshold that keeps a share, or as much as the
    pairs do.

    The weights are those of a logistic regression, scaled so that the ensemble is in standard deviations of
    kept frames; `scores` and `kept` are those of whole recordings. Also returns retention and IoU at every
    threshold.
    """
    weight_QN = _fitted(scores, kept).reshape(len(settings.scales), -1)
    ensembles = [combined(score_TQN, weight_QN) for score_TQN in scores]
    on_kept_N = np.concatenate([e_T[kept_T] for e_T, kept_T in zip(ensembles, kept, strict=True)])
    scale = float(on_kept_N.std()) or 1.0
    curve = retention_curve([e_T / scale for e_T in ensembles], kept, keep, frames_per_second)
    if wanted is None:
        wanted = float(np.mean([kept_T.mean() for kept_T in kept]))
    return Calibration(weight_QN / scale, calibrated(curve, wanted), wanted), curve


def _fitted(scores: Sequence[np.ndarray], kept: Sequence[np.ndarray]) -> np.ndarray:
    """Logistic regression of "cut" on all scores, without its constant, from at most FITTED_FRAMES frames.

    No weight is negative: nothing is kept because it is an anomaly.
    """
    x_TD = np.concatenate([s.reshape(len(s), -1) for s in scores]).astype(np.float64)
    cut_T = ~np.concatenate(list(kept))
    every = -(-len(cut_T) // FITTED_FRAMES)
    x_TD, sign_T = x_TD[::every], np.where(cut_T[::every], 1.0, -1.0)
    x_TE = np.concatenate([_clipped(x_TD), np.ones((len(x_TD), 1))], 1)

    def loss(w_E: np.ndarray) -> tuple[float, np.ndarray]:
        margin_T = sign_T * (x_TE @ w_E)
        wrong_T = np.exp(-np.logaddexp(0.0, margin_T))
        value = np.logaddexp(0.0, -margin_T).mean() + 0.5 * DECAY * (w_E[:-1] ** 2).sum()
        return value, -(wrong_T * sign_T) @ x_TE / len(sign_T) + DECAY * np.append(w_E[:-1], 0.0)

    start_E = np.zeros(x_TE.shape[1])
    bounds = [(0.0, None)] * (len(start_E) - 1) + [(None, None)]
    return minimize(loss, start_E, jac=True, method="L-BFGS-B", bounds=bounds).x[:-1]


def figures_of(settings: ScorerSettings, calibration: Calibration) -> dict[str, float]:
    """A calibration as figures of a validation, which a model keeps."""
    weights = {
        f"weight_{name}_{scale}": float(calibration.weight_QN[q, n])
        for q, scale in enumerate(settings.scales)
        for n, name in enumerate(settings.scores)
    }
    return {"threshold": calibration.threshold, "calibrated_to": calibration.keep_ratio, **weights}


def calibration_of(settings: ScorerSettings, figures: Mapping[str, float | None]) -> Calibration | None:
    """The inverse of `figures_of`; None where a model was never calibrated."""
    if figures.get("threshold") is None:
        return None
    weight_QN = np.array(
        [[figures[f"weight_{name}_{scale}"] for name in settings.scores] for scale in settings.scales],
        np.float32,
    )
    return Calibration(weight_QN, float(figures["threshold"] or 0.0), float(figures["calibrated_to"] or 0.0))


def _clipped(score: np.ndarray) -> np.ndarray:
    return np.clip(score, -MOST_DEVIATIONS, MOST_DEVIATIONS)


def _one(number: int) -> np.ndarray:
    return np.array([number], np.int32)
