"""How near one edit comes to another: a function a metric, each stating its convention.

In come pointer sequences (raw frame per edited frame; everything from the first STOP on is dropped, PAD and
UNALIGNED are not played) of a predicted and a true edit of the same recording of `n_frames` raw frames; out
come shares in [0, 1], 1 best, unless said otherwise. NaN means that there was nothing to measure: leave it
out of means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from editjax.edits import PAD, STOP, UNALIGNED, kept_mask_frames

FRAMES_PER_SECOND = 22050 / 512


class Boundaries(NamedTuple):
    """Precision, recall and F1 of cut points."""

    precision: float
    recall: float
    f1: float


class Joins(NamedTuple):
    """Share of the true joins that were found, and how many frames off those lead, on average."""

    found: float
    target_error_frames: float


class EditScores(NamedTuple):
    """The figures of one free-running edit against the true one."""

    kept_iou: float
    played_iou: float
    boundary_3_frames: Boundaries
    boundary_half_second: Boundaries
    order_agreement: float
    order_in_common: float
    joins: Joins
    loop_recall: float
    length_error: float
    length_mae_frames: float
    pointer_accuracy: float
    within_5: float
    plus_one_accuracy: float
    keep_ratio: float
    true_keep_ratio: float


def edit_scores(
    predicted_N: np.ndarray,
    true_N: np.ndarray,
    n_frames: int,
    frames_per_second: float = FRAMES_PER_SECOND,
) -> EditScores:
    """Every metric of an edit in one tuple, with the `+1` baseline beside the pointer accuracy."""
    return EditScores(
        kept_iou=kept_iou(predicted_N, true_N, n_frames),
        played_iou=played_iou(predicted_N, true_N, n_frames),
        boundary_3_frames=boundary_scores(predicted_N, true_N, n_frames, 3),
        boundary_half_second=boundary_scores(predicted_N, true_N, n_frames, 0.5 * frames_per_second),
        order_agreement=order_agreement(predicted_N, true_N),
        order_in_common=order_in_common(predicted_N, true_N),
        joins=join_scores(predicted_N, true_N, 0.5 * frames_per_second),
        loop_recall=loop_recall(predicted_N, true_N, n_frames),
        length_error=length_error(predicted_N, true_N),
        length_mae_frames=length_mae_frames(predicted_N, true_N),
        pointer_accuracy=pointer_accuracy(predicted_N, true_N),
        within_5=pointer_accuracy(predicted_N, true_N, within_frames=5),
        plus_one_accuracy=pointer_accuracy(plus_one_baseline(true_N), true_N),
        keep_ratio=keep_ratio(predicted_N, n_frames),
        true_keep_ratio=keep_ratio(true_N, n_frames),
    )


def keep_ratio(pointers_N: np.ndarray, n_frames: int) -> float:
    """Share of the raw frames that are played at least once; NaN for an empty recording."""
    return float(kept_mask_frames(pointers_N, n_frames).mean()) if n_frames else float("nan")


def kept_iou(predicted_N: np.ndarray, true_N: np.ndarray, n_frames: int) -> float:
    """Raw frames both edits play, over raw frames either plays; 1 when neither plays any."""
    predicted_T, true_T = kept_mask_frames(predicted_N, n_frames), kept_mask_frames(true_N, n_frames)
    return mask_iou(predicted_T, true_T)


def mask_iou(mask_T: np.ndarray, true_T: np.ndarray) -> float:
    """`kept_iou` of two masks of raw frames, bool (T,)."""
    either = np.count_nonzero(mask_T | true_T)
    return float(np.count_nonzero(mask_T & true_T) / either) if either else 1.0


def played_iou(predicted_N: np.ndarray, true_N: np.ndarray, n_frames: int) -> float:
    """As `kept_iou`, but every playing of a frame counts: a loop played once is half a loop.

    The Jaccard index of multisets; 1 when neither edit plays anything.
    """
    times = [np.bincount(_played(pointers_N), minlength=n_frames) for pointers_N in (predicted_N, true_N)]
    either = int(np.maximum(*times).sum())
    return int(np.minimum(*times).sum()) / either if either else 1.0


def joins_of(pointers_N: np.ndarray) -> np.ndarray:
    """Every join of an edit, in playing order: the frame it leaves from and the one it leads to, (J, 2).

    The beginning is a join from −1. UNALIGNED frames are passed over.
    """
    played_N = _played(pointers_N)
    before_N = np.append(-1, played_N[:-1])[: played_N.size]
    joins = played_N != before_N + 1
    return np.stack([before_N[joins], played_N[joins]], axis=1)


def join_scores(predicted_N: np.ndarray, true_N: np.ndarray, tolerance_frames: float) -> Joins:
    """Joins of two edits matched in order, as many as can be (their longest common subsequence).

    Two joins match when both ends are at most `tolerance_frames` apart. `found` is NaN where the true edit
    has no join, the error where none matches.
    """
    predicted, true = joins_of(predicted_N), joins_of(true_N)
    apart = np.abs(predicted[:, None] - true[None, :])
    alike = (apart <= tolerance_frames).all(-1)
    matched = np.zeros((len(predicted) + 1, len(true) + 1), np.int64)
    error = np.zeros(matched.shape, np.int64)
    for i, j in np.ndindex(alike.shape):
        ways = [(matched[i, j + 1], -error[i, j + 1]), (matched[i + 1, j], -error[i + 1, j])]
        if alike[i, j]:
            ways.append((matched[i, j] + 1, -error[i, j] - apart[i, j, 1]))
        matched[i + 1, j + 1], lost = max(ways)
        error[i + 1, j + 1] = -lost
    count = int(matched[-1, -1])
    found = count / len(true) if len(true) else float("nan")
    return Joins(found, int(error[-1, -1]) / count if count else float("nan"))


def boundaries(pointers_N: np.ndarray, n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Raw frames where runs of consecutive pointers start and stop (one past the last), each ascending.

    A boundary entered twice (a loop) counts twice. The recording's own ends are not cuts: a run's start at
    frame 0 and its stop at `n_frames` are left out.
    """
    pointers_N = _sequence(pointers_N)
    aligned = pointers_N >= 0
    follows = aligned[1:] & aligned[:-1] & (np.diff(pointers_N) == 1)
    starts = pointers_N[aligned & np.append(True, ~follows)[: pointers_N.size]]
    stops = pointers_N[aligned & np.append(~follows, True)[: pointers_N.size]] + 1
    return np.sort(starts[starts > 0]), np.sort(stops[stops < n_frames])


def boundary_scores(
    predicted_N: np.ndarray, true_N: np.ndarray, n_frames: int, tolerance_frames: float
) -> Boundaries:
    """Precision, recall and F1 of the cut points of `boundaries`.

    Starts are matched with starts and stops with stops, one to one, at most `tolerance_frames` apart, as many
    as can be. All three are 1 when neither edit has a cut point, 0 when only one has.
    """
    predicted, true = boundaries(predicted_N, n_frames), boundaries(true_N, n_frames)
    hits = sum(_matches(p, t, tolerance_frames) for p, t in zip(predicted, true, strict=True))
    n_predicted, n_true = sum(map(len, predicted)), sum(map(len, true))
    if not n_predicted and not n_true:
        return Boundaries(1.0, 1.0, 1.0)
    precision = hits / n_predicted if n_predicted else 0.0
    recall = hits / n_true if n_true else 0.0
    return Boundaries(precision, recall, 2 * hits / (n_predicted + n_true))


def order_agreement(predicted_N: np.ndarray, true_N: np.ndarray) -> float:
    """Longest common subsequence of the played pointers, over the longer length; 1 when both are empty."""
    predicted_N, true_N = _played(predicted_N), _played(true_N)
    longer = max(predicted_N.size, true_N.size)
    return longest_common_subsequence(predicted_N, true_N) / longer if longer else 1.0


def order_in_common(predicted_N: np.ndarray, true_N: np.ndarray) -> float:
    """Longest common subsequence of the played pointers, over the frames both edits play.

    The order alone: `order_agreement` also falls with every frame that only one of the edits plays. NaN when
    they play nothing in common.
    """
    predicted_N, true_N = _played(predicted_N), _played(true_N)
    (frames, plays), (true_frames, true_plays) = (
        np.unique(pointers_N, return_counts=True) for pointers_N in (predicted_N, true_N)
    )
    _, here, there = np.intersect1d(frames, true_frames, assume_unique=True, return_indices=True)
    common = int(np.minimum(plays[here], true_plays[there]).sum())
    return longest_common_subsequence(predicted_N, true_N) / common if common else float("nan")


def longest_common_subsequence(left_N: np.ndarray, right_N: np.ndarray) -> int:
    """Length of the longest common subsequence of two integer sequences.

    Bit-parallel (Hyyrö 2004): a row of the dynamic programme is one big integer, so that n × m costs m
    additions of n bits. Common ends are stripped first.
    """
    left, right = np.asarray(left_N), np.asarray(right_N)
    head = _common_prefix(left, right)
    left, right = left[head:], right[head:]
    tail = _common_prefix(left[::-1], right[::-1])
    left, right = left[: left.size - tail], right[: right.size - tail]
    places: dict[int, list[int]] = {}
    for i, value in enumerate(left.tolist()):
        places.setdefault(value, []).append(i)
    row = full = (1 << left.size) - 1
    for value in right.tolist():
        if value in places:
            hits = row & sum(1 << i for i in places[value])
            row = ((row + hits) | (row - hits)) & full
    return head + tail + left.size - row.bit_count()


def loop_recall(predicted_N: np.ndarray, true_N: np.ndarray, n_frames: int) -> float:
    """Share of the true edit's repeated playings that the prediction repeats as often; NaN if it has none."""
    extra_predicted_T, extra_true_T = _repeats(predicted_N, n_frames), _repeats(true_N, n_frames)
    wanted = int(extra_true_T.sum())
    return int(np.minimum(extra_predicted_T, extra_true_T).sum()) / wanted if wanted else float("nan")


def length_error(predicted_N: np.ndarray, true_N: np.ndarray) -> float:
    """|predicted − true length| over the true length, 0 best; 1 when only the true edit is empty."""
    n_true = _played(true_N).size
    return length_mae_frames(predicted_N, true_N) / n_true if n_true else float(_played(predicted_N).size > 0)


def length_mae_frames(predicted_N: np.ndarray, true_N: np.ndarray) -> float:
    """|predicted − true length| in frames, 0 best: over a set, its mean is the length MAE."""
    return float(abs(_played(predicted_N).size - _played(true_N).size))


def pointer_accuracy(predicted_N: np.ndarray, true_N: np.ndarray, within_frames: int = 0) -> float:
    """Share of the true edit's frames whose prediction at the same place is at most `within_frames` off.

    Frames the prediction does not reach are wrong, UNALIGNED ones are left out; NaN if none remain. Most
    frames follow their predecessor: print `plus_one_baseline` beside it.
    """
    true_N, predicted_N = _sequence(true_N), _sequence(predicted_N)[: _sequence(true_N).size]
    padded_N = np.full(true_N.size, PAD, np.int64)
    padded_N[: predicted_N.size] = predicted_N
    aligned = true_N != UNALIGNED
    if not aligned.any():
        return float("nan")
    near = (np.abs(padded_N - true_N) <= within_frames) & (padded_N >= 0)
    return float(near[aligned].mean())


def plus_one_baseline(true_N: np.ndarray) -> np.ndarray:
    """The trivial teacher-forced prediction, int64 (N,): the true pointer before, plus one; it never edits.

    The first is frame 0; over UNALIGNED frames it goes on counting from the last aligned one.
    """
    true_N = _sequence(true_N)
    rows = np.arange(true_N.size)
    last = np.maximum.accumulate(np.where(true_N >= 0, rows, -1))
    before = np.append(-1, last[:-1])[: true_N.size]
    return np.where(before >= 0, true_N[before] + rows - before, rows)


def stop_precision(predicted_stop_N: np.ndarray, true_stop_N: np.ndarray) -> float:
    """Share of the predicted stops (bool, any shape) that are true ones; NaN if none is predicted."""
    predicted, true = np.asarray(predicted_stop_N, bool), np.asarray(true_stop_N, bool)
    return float(true[predicted].mean()) if predicted.any() else float("nan")


def cut_share(kept_T: np.ndarray, spans: Iterable[tuple[int, int]]) -> float:
    """Share of the frames in `spans` (start, stop; say of spoiled takes) that an edit cuts; NaN without
    frames.

    `kept_T` is the edit's `kept_mask_frames`. Frames in several spans count once.
    """
    inside_T = np.zeros(len(kept_T), bool)
    for start, stop in spans:
        inside_T[start:stop] = True
    return float(1 - np.asarray(kept_T)[inside_T].mean()) if inside_T.any() else float("nan")


def cut_share_by_kind(kept_T: np.ndarray, events: Iterable[tuple[str, int, int]]) -> dict[str, float]:
    """`cut_share` of each kind of event (kind, start, stop) in frames, by kind in order of appearance."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for kind, start, stop in events:
        spans.setdefault(kind, []).append((start, stop))
    return {kind: cut_share(kept_T, of_kind) for kind, of_kind in spans.items()}


def spans_found(kept_T: np.ndarray, spans: Sequence[tuple[int, int]], at_least: float = 0.5) -> float:
    """Share of `spans` (start, stop in frames) of each of which an edit cuts `at_least` that share; NaN if
    none."""
    shares = [cut_share(kept_T, [span]) for span in spans]
    counted = [share >= at_least for share in shares if not np.isnan(share)]
    return float(np.mean(counted)) if counted else float("nan")


def auroc(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    """The probability that a positive scores higher than a negative, ties counting half.

    The area under the receiver operating characteristic, by ranks (Mann and Whitney 1947); 0.5 is chance, NaN
    where there are only positives or none.
    """
    positive_N = np.asarray(positive_N, bool)
    positives, negatives = positive_N.sum(), (~positive_N).sum()
    if not positives or not negatives:
        return math.nan
    _, level_N, count_L = np.unique(score_N, return_inverse=True, return_counts=True)
    rank_L = np.cumsum(count_L) - (count_L - 1) / 2  # of equal scores the mean
    above = rank_L[level_N][positive_N].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def average_precision(score_N: np.ndarray, positive_N: np.ndarray) -> float:
    """The mean precision at every positive, highest scores first; equal scores are taken together.

    Chance is the share of positives; NaN where there are none.
    """
    positive_N = np.asarray(positive_N, bool)
    if not positive_N.any():
        return math.nan
    _, level_N = np.unique(-np.asarray(score_N, np.float64), return_inverse=True)
    taken_L = np.cumsum(np.bincount(level_N))
    found_L = np.bincount(level_N, weights=positive_N)
    return float((found_L * np.cumsum(found_L) / taken_L).sum() / positive_N.sum())


def _sequence(pointers_N: np.ndarray) -> np.ndarray:
    """Pointers before the first STOP, without PAD, int64."""
    pointers_N = np.asarray(pointers_N, np.int64)
    stops = np.flatnonzero(pointers_N == STOP)
    pointers_N = pointers_N[: stops[0] if stops.size else None]
    return pointers_N[pointers_N != PAD]


def _played(pointers_N: np.ndarray) -> np.ndarray:
    pointers_N = _sequence(pointers_N)
    return pointers_N[pointers_N >= 0]


def _repeats(pointers_N: np.ndarray, n_frames: int) -> np.ndarray:
    """How often each raw frame is played beyond the first time, int64 (T,)."""
    return np.maximum(np.bincount(_played(pointers_N), minlength=n_frames) - 1, 0)[:n_frames]


def _matches(left: np.ndarray, right: np.ndarray, tolerance: float) -> int:
    """Size of the largest one-to-one matching of two ascending lists; greedy is optimal for one tolerance."""
    i = j = hits = 0
    while i < left.size and j < right.size:
        if abs(left[i] - right[j]) <= tolerance:
            hits, i, j = hits + 1, i + 1, j + 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    return hits


def _common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    shorter = min(left.size, right.size)
    differ = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(differ[0]) if differ.size else shorter


def macro_f1(predicted_N: np.ndarray, true_N: np.ndarray) -> float:
    """The mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur in either, NaN without any."""
    classes = np.union1d(predicted_N, true_N)
    if not len(classes):
        return math.nan
    found_CN, wanted_CN = (a_N[None] == classes[:, None] for a_N in (predicted_N, true_N))
    both_C = (found_CN & wanted_CN).sum(1)
    return float((2 * both_C / (found_CN.sum(1) + wanted_CN.sum(1))).mean())


def mean_figures(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the edits where it is defined; NaN where it never is."""
    names = rows[0].keys()
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in names}
    return {
        name: float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")
        for name, column in columns.items()
    }
