"""The silence cutter: the editor every learned one must beat, and the pauses for `--max-pause`.

In comes a mel, out goes an `EditList` without its long quiet spans. The threshold is found, not asked for:
Otsu's (1979) split of the level histogram into quiet and loud frames, held within `SHALLOWEST_DB` and
`DEEPEST_DB` below the loud frames so that music without silence keeps its soft passages.
"""

from __future__ import annotations

import numpy as np

from editjax.edits import EditList, Source, from_pointers
from editjax.mel import FrameGrid, MelSettings

LOUD_PERCENTILE = 95.0
SHALLOWEST_DB = -25.0
DEEPEST_DB = -45.0
MEL = MelSettings()


def silence_edit(
    mel_TF: np.ndarray,
    grid: FrameGrid,
    source: Source,
    threshold_db: float | None = None,
    margin_s: float = 0.2,
    min_silence_s: float = 0.5,
    mel_settings: MelSettings = MEL,
) -> EditList:
    """Cuts what stays at least `min_silence_s` below the threshold, up to `margin_s` from the sound around
    it.

    `threshold_db` counts down from the loud frames of this recording (say −35); None finds it. A recording
    that is equally loud, or equally silent, throughout stays whole. Each segment's score is its level over
    the threshold in dB.
    """
    level_db_T = frame_levels_db(mel_TF, mel_settings)
    below_db = find_threshold_db(level_db_T) if threshold_db is None else threshold_db
    limit_db = _loud_db(level_db_T) + below_db
    kept_T = np.ones(level_db_T.size, bool)
    margin_frames = round(margin_s * mel_settings.frames_per_second)
    for start, stop in _quiet_runs(level_db_T < limit_db, min_silence_s * mel_settings.frames_per_second):
        first = start + margin_frames if start else 0
        last = stop - margin_frames if stop < level_db_T.size else stop
        kept_T[first : max(first, last)] = False
    editor = {
        "name": "silence",
        "threshold_db": round(float(below_db), 1),
        "margin_s": margin_s,
        "min_silence_s": min_silence_s,
    }
    pointers_N = np.flatnonzero(kept_T)
    edit_list = from_pointers(pointers_N, source, grid, reasons=["sound"] * pointers_N.size, editor=editor)
    segments = []
    for segment in edit_list.segments:
        rows = slice(grid.frames_in(segment.start), grid.frames_in(segment.stop))
        segments.append(segment._replace(score=round(float(level_db_T[rows].max() - limit_db), 1)))
    return edit_list._replace(segments=tuple(segments))


def quiet_spans(
    mel_TF: np.ndarray,
    grid: FrameGrid,
    source: Source,
    threshold_db: float | None = None,
    mel_settings: MelSettings = MEL,
) -> list[tuple[int, int]]:
    """Source samples [start, stop) of every run of frames below the threshold, ascending: pauses to
    shorten."""
    level_db_T = frame_levels_db(mel_TF, mel_settings)
    below_db = find_threshold_db(level_db_T) if threshold_db is None else threshold_db
    runs = _quiet_runs(level_db_T < _loud_db(level_db_T) + below_db, 1)
    edges = [(int(grid.sample_of_frame(start)), int(grid.sample_of_frame(stop))) for start, stop in runs]
    return [(start, min(stop, source.frames)) for start, stop in edges]


def frame_levels_db(mel_TF: np.ndarray, mel_settings: MelSettings = MEL) -> np.ndarray:
    """The level of each frame in dB, float32 (T,): its bands' powers added up."""
    span_db = mel_settings.ceiling_db - mel_settings.floor_db
    power_TF = np.exp2(np.asarray(mel_TF, np.float32) * np.float32(span_db * np.log2(10) / 10))
    return 10 * np.log10(power_TF.sum(axis=1)) + mel_settings.floor_db


def find_threshold_db(level_db_T: np.ndarray) -> float:
    """The quiet limit in dB below the loud frames: the split of the levels with the least variance within.

    Levels further than twice `DEEPEST_DB` below the loud ones count as that far, or digital silence would
    pull the split down to itself.
    """
    relative_db_T = np.clip(level_db_T - _loud_db(level_db_T), 2 * DEEPEST_DB, 0)
    counts, edges_db = np.histogram(relative_db_T, bins=np.arange(2 * DEEPEST_DB, 1.5, 1.0))
    centres_db = (edges_db[:-1] + edges_db[1:]) / 2
    below, total = np.cumsum(counts)[:-1], np.cumsum(counts * centres_db)
    above = counts.sum() - below
    mean_below, mean_above = (
        total[:-1] / np.maximum(below, 1),
        (total[-1] - total[:-1]) / np.maximum(above, 1),
    )
    between = below * above * (mean_below - mean_above) ** 2.0
    best = np.flatnonzero(between == between.max())
    return float(np.clip(edges_db[1:-1][best].mean(), DEEPEST_DB, SHALLOWEST_DB))


def _loud_db(level_db_T: np.ndarray) -> float:
    return float(np.percentile(level_db_T, LOUD_PERCENTILE)) if level_db_T.size else 0.0


def _quiet_runs(quiet_T: np.ndarray, min_frames: float) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.r_[False, quiet_T, False].astype(np.int8)))
    return [
        (a, b) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True) if b - a >= min_frames
    ]
