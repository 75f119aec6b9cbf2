"""The fall-back for what was changed too much to match as a waveform (reverb, compression, another codec's
phase).

In come the mels of both tracks and spans of the edit without an explanation; out come runs to the nearest
frame. Short patches of band contours, each band taken relative to its own recent level, are correlated with
the whole raw; what resembles nothing stays unexplained.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft

from editjax.align.explain import Span, cheapest_path, stretches

BANDS = 64
"""Mel bands are averaged to this many."""
RECENT_FRAMES = 65
"""A band's level is taken relative to its mean over so many frames (1.5 s)."""
CLEAR_PEAK = 6.0
"""Height of the peak of the direct sound over what lies around it (RMS)."""
APART_FRAMES = 6
"""Two peaks nearer than this are one."""


@dataclass(frozen=True)
class ResembleSettings:
    """`least_likeness` (correlation of patches, 0 to 1) is what counts as resembling."""

    patch_frames: int = 64
    shortest_frames: int = 17
    least_likeness: float = 0.6
    peaks: int = 6
    local_frames: int = 17
    switch_cost: float = 3.0


def contours_of(mel_TF: np.ndarray) -> np.ndarray:
    """Band contours (T, bands) float32 of a mel (T, F): what moves, whatever the tone and the level."""
    bands_TF = mel_TF.reshape(len(mel_TF), BANDS, -1).mean(axis=2)
    sums = np.concatenate([np.zeros((1, BANDS)), np.cumsum(bands_TF, axis=0, dtype=np.float64)])
    frames = np.arange(len(bands_TF))
    first = np.maximum(frames - RECENT_FRAMES // 2, 0)
    stop = np.minimum(frames + RECENT_FRAMES // 2 + 1, len(bands_TF))
    recent_TF = (sums[stop] - sums[first]) / (stop - first)[:, None]
    contours_TF = bands_TF - recent_TF
    return (contours_TF - contours_TF.mean(axis=1, keepdims=True)).astype(np.float32)


def resembling(
    edit_NF: np.ndarray, raw_TF: np.ndarray, span: slice, settings: ResembleSettings
) -> list[tuple[Span, float]]:
    """Runs of edit frames within `span` that resemble the raw at one frame offset, each with its likeness."""
    patch = min(settings.patch_frames, span.stop - span.start)
    if patch < settings.shortest_frames or len(raw_TF) < patch:
        return []
    offsets: set[int] = set()
    for start in range(span.start, span.stop - patch + 1, max(1, patch // 2)):
        likeness_T = _likeness(edit_NF[start : start + patch], raw_TF)
        offsets.update(int(t) - start for t in _peaks(likeness_T, settings))
    spans, scores = [], []
    for offset in sorted(offsets):
        first, stop = max(span.start, -offset), min(span.stop, len(raw_TF) - offset)
        if stop - first >= settings.shortest_frames:
            spans.append(Span(first - span.start, stop - span.start, offset))
            scores.append(
                _local_likeness(edit_NF[first:stop], raw_TF[first + offset : stop + offset], settings)
            )
    stray_cost_N = np.full(span.stop - span.start, 1.0 - settings.least_likeness)
    path_N = cheapest_path(spans, [1.0 - score for score in scores], stray_cost_N, settings.switch_cost)
    found = []
    for first, stop, k in stretches(path_N):
        likeness = float(scores[k][first - spans[k].first : stop - spans[k].first].mean())
        if stop - first >= settings.shortest_frames and likeness >= settings.least_likeness:
            found.append((Span(first + span.start, stop + span.start, spans[k].offset), likeness))
    return found


def direct_offset(edit_S: np.ndarray, raw_S: np.ndarray, reach: int) -> int | None:
    """Samples by which the edit's direct sound lies later than thought, at most `reach`; None if it has none.

    `raw_S` begins `reach` samples before and ends as many after what `edit_S` is thought to be. Both are
    whitened (generalised cross-correlation with phase transform; C. Knapp, G. Carter, 1976): a room or a
    phase shift then leaves a peak where the sound itself is.
    """
    size = scipy.fft.next_fast_len(len(raw_S) + len(edit_S), real=True)
    cross_F = scipy.fft.rfft(raw_S, size) * np.conj(scipy.fft.rfft(edit_S, size))
    cross_F /= np.maximum(np.abs(cross_F), 1e-9 * np.abs(cross_F).max() + 1e-30)
    lags = np.abs(scipy.fft.irfft(cross_F, size)[: 2 * reach + 1])
    best = int(lags.argmax())
    return best - reach if lags[best] > CLEAR_PEAK * np.sqrt(np.mean(lags**2)) else None


def _likeness(patch_NF: np.ndarray, raw_TF: np.ndarray) -> np.ndarray:
    """Correlation of a patch with the raw from every frame on, (T − N + 1,)."""
    length, places = len(patch_NF), len(raw_TF) - len(patch_NF) + 1
    cross_NT = patch_NF @ raw_TF.T
    row, column = cross_NT.strides
    cross_T = np.lib.stride_tricks.as_strided(cross_NT, (length, places), (row + column, column)).sum(axis=0)
    sums = np.concatenate([[0.0], np.cumsum(np.einsum("tf,tf->t", raw_TF, raw_TF), dtype=np.float64)])
    energy_T = (sums[length:] - sums[:-length]) * float(np.einsum("nf,nf->", patch_NF, patch_NF))
    return cross_T / np.sqrt(np.maximum(energy_T, 1e-12))


def _peaks(likeness_T: np.ndarray, settings: ResembleSettings) -> list[int]:
    """The highest places that resemble enough, apart from one another."""
    peaks: list[int] = []
    left_T = likeness_T.copy()
    for _ in range(settings.peaks):
        top = int(left_T.argmax())
        if left_T[top] < settings.least_likeness:
            break
        peaks.append(top)
        left_T[max(0, top - APART_FRAMES) : top + APART_FRAMES + 1] = -1.0
    return peaks


def _local_likeness(edit_NF: np.ndarray, raw_NF: np.ndarray, settings: ResembleSettings) -> np.ndarray:
    """Correlation of two stretches around each frame, (N,)."""
    kernel = np.ones(min(settings.local_frames, len(edit_NF)))

    def local(a_NF: np.ndarray, b_NF: np.ndarray) -> np.ndarray:
        return np.convolve(np.einsum("nf,nf->n", a_NF, b_NF, dtype=np.float64), kernel, "same")

    power_N = local(edit_NF, edit_NF) * local(raw_NF, raw_NF)
    return local(edit_NF, raw_NF) / np.sqrt(np.maximum(power_N, 1e-12))
