"""Anomaly scores of frames → which frames to keep → an edit list: the scorers' door to everything else.

In come scores (T,), higher for worse, in standard deviations above edited audio; out go a keep mask and an
`EditList` of what is kept, in the order of the recording. The threshold is calibrated on pairs, to keep as
much as their editors did; asked for; or found for a wanted share of this recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import label, uniform_filter1d

from editjax.arrays import read_arrays
from editjax.edits import EditList, Source, from_pointers
from editjax.errors import DataError, UsageError
from editjax.files import atomic_path
from editjax.mel import FrameGrid
from editjax.metrics import mask_iou

HALVINGS = 40


@dataclass(frozen=True)
class KeepSettings:
    """How scores become clips.

    What scores below `threshold` is kept, or `keep_ratio` of the recording as nearly as clips allow; the
    ratio counts where both are given. A clip begins where the score is `hysteresis` below the threshold and
    lasts until it is as far above. Clips shorter than `min_clip_s` are cut, cuts shorter than `min_cut_s` are
    not made. Scores are means over `smooth_s`. The defaults are the best of some on validation sessions.
    """

    threshold: float = 0.0
    keep_ratio: float | None = None
    hysteresis: float = 0.3
    min_clip_s: float = 3.0
    min_cut_s: float = 1.0
    smooth_s: float = 2.0

    def __post_init__(self) -> None:
        if self.keep_ratio is not None and not 0.0 < self.keep_ratio <= 1.0:
            raise UsageError(f"keep ratio {self.keep_ratio}: give a share above 0 and at most 1")
        if not np.isfinite(self.threshold):
            raise UsageError(f"threshold {self.threshold}: give a number of standard deviations")
        lengths = self.hysteresis, self.min_clip_s, self.min_cut_s, self.smooth_s
        if not all(0.0 <= length < np.inf for length in lengths):
            raise UsageError("hysteresis, shortest clip and cut, smoothing: give 0 or more of each")


class Scores(NamedTuple):
    """What a scorer said of one recording: the ensemble's score of every frame.

    `sha256` is the recording's, `model` the scorer's name and `model_sha256` its fingerprint
    (`Scorer.sha256`).
    """

    score_T: np.ndarray
    sha256: str
    model: str
    model_sha256: str


class Retention(NamedTuple):
    """What a threshold does to pairs: the mean share that is kept, and the mean kept-frame IoU."""

    threshold: float
    keep_ratio: float
    kept_iou: float


def smoothed(score_T: np.ndarray, settings: KeepSettings, frames_per_second: float) -> np.ndarray:
    """The mean score over `smooth_s` around each frame, float32 (T,)."""
    size = max(1, round(settings.smooth_s * frames_per_second))
    return uniform_filter1d(np.asarray(score_T, np.float32), size, mode="nearest")


def keep_mask(score_T: np.ndarray, settings: KeepSettings, frames_per_second: float) -> np.ndarray:
    """Whether each frame is kept, bool (T,)."""
    smooth_T = smoothed(score_T, settings, frames_per_second)
    if settings.keep_ratio is None:
        return _mask(smooth_T, settings, frames_per_second)
    threshold = threshold_for(smooth_T, settings, frames_per_second)
    return _mask(smooth_T, replace(settings, threshold=threshold), frames_per_second)


def threshold_for(smooth_T: np.ndarray, settings: KeepSettings, frames_per_second: float) -> float:
    """The threshold at which the share of a recording that is kept comes nearest to `keep_ratio`."""
    if not smooth_T.size:
        return settings.threshold
    low, high = (float(f(smooth_T)) for f in (np.min, np.max))
    low, high = low - settings.hysteresis - 1.0, high + settings.hysteresis + 1.0
    tried: list[tuple[float, float]] = []
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        kept = _mask(smooth_T, replace(settings, threshold=middle), frames_per_second).mean()
        tried.append((abs(kept - settings.keep_ratio), middle))
        low, high = (middle, high) if kept < settings.keep_ratio else (low, middle)
    return min(tried)[1]


def scored_edit(
    score_T: np.ndarray,
    grid: FrameGrid,
    source: Source,
    settings: KeepSettings,
    frames_per_second: float,
    editor: dict[str, object] | None = None,
) -> EditList:
    """The kept frames as an edit list; each segment's score is the mean of its frames', the lower the better.

    `editor` are further notes. Nothing is kept where every score is above the threshold.
    """
    kept_T = keep_mask(score_T, settings, frames_per_second)
    notes = {"name": "scorer", "hysteresis": settings.hysteresis, **(editor or {})}
    if settings.keep_ratio is None:
        notes["threshold"] = round(settings.threshold, 4)
    else:
        notes["keep_ratio"] = settings.keep_ratio
    edit_list = from_pointers(np.flatnonzero(kept_T), source, grid, editor=notes)
    segments = []
    for segment in edit_list.segments:
        rows = slice(grid.frames_in(segment.start), grid.frames_in(segment.stop))
        mean = float(np.mean(score_T[rows]))
        segments.append(segment._replace(score=round(mean, 3), reason=f"anomaly {mean:.2f}"))
    return edit_list._replace(segments=tuple(segments))


def retention_curve(
    scores: Sequence[np.ndarray],
    kept: Sequence[np.ndarray],
    settings: KeepSettings,
    frames_per_second: float,
    steps: int = 64,
) -> list[Retention]:
    """Retention and IoU at `steps` thresholds over recordings whose true keep masks (T,) are known."""
    smooth = [smoothed(score_T, settings, frames_per_second) for score_T in scores]
    levels = np.unique(np.quantile(np.concatenate(smooth), np.linspace(0.005, 0.995, steps)))
    curve = []
    for threshold in levels.tolist():
        at = replace(settings, threshold=threshold, keep_ratio=None)
        masks = [_mask(smooth_T, at, frames_per_second) for smooth_T in smooth]
        ious = [mask_iou(mask_T, kept_T) for mask_T, kept_T in zip(masks, kept, strict=True)]
        curve.append(Retention(threshold, float(np.mean([m.mean() for m in masks])), float(np.mean(ious))))
    return curve


def calibrated(curve: Sequence[Retention], keep_ratio: float) -> float:
    """The threshold of a curve at which a share is kept, between its points where need be."""
    ordered = sorted(curve, key=lambda point: point.keep_ratio)
    ratios = [point.keep_ratio for point in ordered]
    return float(np.interp(keep_ratio, ratios, [point.threshold for point in ordered]))


def best(curve: Sequence[Retention]) -> Retention:
    """The point of a curve with the highest IoU."""
    return max(curve, key=lambda point: point.kept_iou)


def write_scores(scores: Scores, path: str | Path, overwrite: bool = False) -> None:
    """Writes scores as `.npz`, without pickles."""
    with atomic_path(path, overwrite) as temporary, open(temporary, "wb") as file:
        np.savez(file, **scores._asdict())


def read_scores(path: str | Path) -> Scores:
    """The inverse of `write_scores`. Raises NoInputError, DataError for what is no such file."""
    remedy = "it holds no scores of frames; make some with `editjax score IN`"
    try:
        score, *names = read_arrays(Path(path), Scores._fields).values()
    except DataError as error:
        raise DataError(f"{error}; {remedy}") from None
    with np.errstate(over="ignore"):  # refused below
        score_T = score.astype(np.float32) if score.dtype.kind in "fiu" else np.zeros(0, np.float32)
    named = all(name.ndim == 0 and name.dtype.kind == "U" for name in names)
    if score_T.ndim != 1 or not score_T.size or not np.isfinite(score_T).all() or not named:
        raise DataError(f"{path}: {remedy}")
    return Scores(score_T, *map(str, names))


def scores_of_source(path: str | Path, sha256: str, n_frames: int, model: str, model_sha256: str) -> Scores:
    """Scores of the recording and by the scorer with these fingerprints. Raises DataError for any others."""
    scores = read_scores(path)
    if scores.sha256 != sha256 or n_frames != len(scores.score_T):
        raise DataError(f"{path}: scores of another recording; make new ones with `editjax score`")
    if scores.model_sha256 != model_sha256:
        made, asked = f"{scores.model} ({scores.model_sha256[:12]})", f"{model} ({model_sha256[:12]})"
        raise DataError(f"{path}: scores by {made}, not by {asked}; make new ones with `editjax score`")
    return scores


def _mask(smooth_T: np.ndarray, settings: KeepSettings, frames_per_second: float) -> np.ndarray:
    surely_T = smooth_T < settings.threshold - settings.hysteresis
    number_T, _ = label(smooth_T < settings.threshold + settings.hysteresis)
    kept_T = np.isin(number_T, np.unique(number_T[surely_T])) & (number_T > 0)
    kept_T = ~_without_short(~kept_T, settings.min_cut_s * frames_per_second)
    return _without_short(kept_T, settings.min_clip_s * frames_per_second)


def _without_short(mask_T: np.ndarray, shortest_frames: float) -> np.ndarray:
    """The mask without its runs that are shorter."""
    number_T, _ = label(mask_T)
    length_R = np.bincount(number_T)
    return mask_T & (length_R[number_T] >= shortest_frames)
