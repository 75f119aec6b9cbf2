"""Mel frames → tempo, beats, bars and phrases, and every frame's position in them.

Onset strength is the positive flux of the dB mel against a frequency-smoothed earlier frame (Böck & Widmer,
"Maximum filter vibrato suppression", DAFx 2013), levelled by its surroundings in three bands, so that a
hi-hat does not outweigh the drums. A comb over its windowed autocorrelation gives the tempo, a Viterbi path
lets it drift, and dynamic programming places the beats (Ellis, "Beat tracking by dynamic programming", JNMR
2007). Bars and phrases are cyclic Viterbi paths through the novelty at each beat and bar, so that a new take
may begin a new bar anywhere.

Everything is O(frames) NumPy and SciPy: no numba, no warm-up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.fft
from scipy.ndimage import gaussian_filter1d, maximum_filter1d, uniform_filter1d

from editjax.errors import UsageError
from editjax.mel import MelSettings

FRAMES_PER_BEAT = 43  # the documents' fixed grid: 1 s at hop 512, half a second at hop 256
FRAMES_PER_BAR = 172  # 4 s at hop 512, 2 s at hop 256
BARS_PER_PHRASE = 4
CONFIDENT = 0.2
"""At or above this confidence the beats are used instead of the grid.

Of real recordings of 8 s and more it passes 8 of 13 pieces of music (the others: a sax, a cello and a vocal
phrase, a string orchestra, ambient music) and 2 of 13 of speech and noise (a rhythmic speech, a radiator).
"""

# Onset strength. Low, middle and high thirds of the mel bands (to 0.4, 1.9 and 11 kHz) and their weights.
BAND_EDGES = (0.0, 0.125, 0.5, 1.0)
BAND_WEIGHTS = (1.0, 1.0, 0.5)
HEARD_DB = 45.0  # what lies further below the loudest band of its surroundings is not heard
SURROUNDINGS_S = 6.0
QUIET_FLUX_DB = 0.25  # added to the level: keeps hiss and steady tones from being levelled up
BLOCK_FRAMES = 4096

# Tempo: windows of 12 s every 3 s, candidates 2 % apart, a comb of four teeth with counter-teeth in between.
WINDOW_FRAMES = 512
WINDOW_STEP_FRAMES = 128
TEMPO_STEP = 0.02
TEETH = (1, 2, 3, 4)
COUNTER_TOOTH = 0.35  # the halves of a period that is twice too long are as strong as its wholes
STEADINESS = 0.05  # a window's zero-lag power counts this much of white noise's: quiet flux is no rhythm
DRIFT_COST = 0.02  # a tempo step between neighbouring windows, in units of the comb
JUMP_COST = 0.3  # the most a change of tempo costs: another take

LOW_BANDS = 16  # kick and bass: their accents tell 1 and 3 from 2 and 4
RESET_COST = 6.0  # standard deviations of novelty that a bar or phrase begun early must explain
EIGHT_BARS = 0.5  # phrases have eight bars when the middle's novelty is below this part of the start's


@dataclass(frozen=True)
class BeatSettings:
    """How beats are found, and the grid used where there are none.

    `frames_per_beat` and `frames_per_bar` are frames, not seconds: 43 and 172 are 1 s and 4 s at hop 512 and
    half of it at hop 256. `tightness` weighs a steady beat against the onsets under it (Ellis's alpha).
    """

    mel: MelSettings = field(default_factory=MelSettings)
    frames_per_beat: int = FRAMES_PER_BEAT
    frames_per_bar: int = FRAMES_PER_BAR
    beats_per_bar: int = 4
    slowest_bpm: float = 50.0
    fastest_bpm: float = 210.0
    prior_bpm: float = 115.0
    prior_octaves: float = 1.0
    tightness: float = 100.0
    confident: float = CONFIDENT

    def __post_init__(self):
        if not 0 < self.slowest_bpm < self.fastest_bpm < 60 * self.mel.frames_per_second / 4:
            raise UsageError(
                f"tempo range {self.slowest_bpm}-{self.fastest_bpm} BPM does not fit the mel's frames"
            )
        if min(self.frames_per_beat, self.beats_per_bar) < 1 or self.frames_per_bar < self.frames_per_beat:
            raise UsageError(
                f"frames_per_beat {self.frames_per_beat}, frames_per_bar {self.frames_per_bar}: "
                "give positive numbers, a bar no shorter than a beat"
            )


class Beats(NamedTuple):
    """Where the music counts: frames (int64, ascending), each the frame that plays the beat, ± 1.

    Bars are among the beats and phrases among the bars. `confidence` in [0, 1] is the autocorrelation of the
    onset strength one and two beats apart: near 1 for a click, near 0 for noise, speech and held tones.
    """

    tempo_bpm: float
    beat_frames: np.ndarray
    bar_frames: np.ndarray
    phrase_frames: np.ndarray
    confidence: float


def track_beats(mel_TF: np.ndarray, settings: BeatSettings = BeatSettings()) -> Beats:
    """Find the beats of a recording's mel (T, F) in [0, 1].

    Beats go on through silence at the tempo around it. A recording too short for two of the slowest beats
    gets the plain grid with confidence 0.
    """
    tempi = _tempi(settings)
    if len(mel_TF) < 2 * tempi.longest_frames:
        grid = grid_beats(len(mel_TF), settings.frames_per_beat, settings.frames_per_bar)
        tempo_bpm = 60.0 * settings.mel.frames_per_second / settings.frames_per_beat
        return grid._replace(tempo_bpm=tempo_bpm, confidence=0.0)
    onset_T = onset_strength(mel_TF, settings)
    period_T, confidence = _local_periods(onset_T, tempi)
    beat_frames = _place_beats(onset_T, period_T, settings.tightness)
    bar_frames = beat_frames[_bar_starts(mel_TF, beat_frames, settings.beats_per_bar)]
    return Beats(
        tempo_bpm=60.0 * settings.mel.frames_per_second / _typical_gap(beat_frames),
        beat_frames=beat_frames,
        bar_frames=bar_frames,
        phrase_frames=bar_frames[_phrase_starts(mel_TF, bar_frames)],
        confidence=confidence,
    )


def grid_beats(
    n_frames: int, frames_per_beat: int = FRAMES_PER_BEAT, frames_per_bar: int = FRAMES_PER_BAR
) -> Beats:
    """The documents' plain grid from frame 0 on, phrases of four bars; confidence 1, for it is as asked.

    The tempo is counted at the default mel's 43.07 frames a second.
    """
    bar_frames = np.arange(0, n_frames, frames_per_bar, dtype=np.int64)
    return Beats(
        tempo_bpm=60.0 * MelSettings().frames_per_second / frames_per_beat,
        beat_frames=np.arange(0, n_frames, frames_per_beat, dtype=np.int64),
        bar_frames=bar_frames,
        phrase_frames=bar_frames[::BARS_PER_PHRASE],
        confidence=1.0,
    )


def beat_phases(beats: Beats, n_frames: int, settings: BeatSettings = BeatSettings()) -> np.ndarray:
    """Every frame's position in its beat, bar and phrase: (T, 3) float32 in [0, 1), 0 on the mark.

    A phase depends on the two marks around the frame only; before the first and after the last mark the
    nearest gap goes on. Below `settings.confident` the phases are the plain grid's, from frame 0.
    """
    if beats.confidence < settings.confident:
        beats = grid_beats(n_frames, settings.frames_per_beat, settings.frames_per_bar)
    beat_gap = _typical_gap(beats.beat_frames) or settings.frames_per_beat
    bar_gap = _typical_gap(beats.bar_frames) or settings.beats_per_bar * beat_gap
    phases = [
        _phase(beats.beat_frames, beat_gap, n_frames),
        _phase(beats.bar_frames, bar_gap, n_frames),
        _phase(beats.phrase_frames, BARS_PER_PHRASE * bar_gap, n_frames),
    ]
    return np.stack(phases, axis=1)


def snap_to(mark_frames: np.ndarray, frame):
    """The mark (beat, bar) nearest to a frame or to each of an array, the earlier on a tie.

    Without marks nothing moves.
    """
    frames = np.asarray(frame, np.int64)
    if not len(mark_frames):
        return frames if frames.ndim else int(frames)
    after = np.clip(np.searchsorted(mark_frames, frames), 1, max(1, len(mark_frames) - 1))
    earlier, later = mark_frames[after - 1], mark_frames[np.minimum(after, len(mark_frames) - 1)]
    nearest = np.where(frames - earlier <= later - frames, earlier, later)
    return nearest if frames.ndim else int(nearest)


def onset_strength(mel_TF: np.ndarray, settings: BeatSettings = BeatSettings()) -> np.ndarray:
    """How strongly something begins at each frame: (T,) float32 >= 0, of the order of 1 in any music."""
    flux_TG = _flux_db(mel_TF, settings.mel)
    second, surroundings = (round(s * settings.mel.frames_per_second) for s in (1.0, SURROUNDINGS_S))
    flux_TG = np.maximum(flux_TG - uniform_filter1d(flux_TG, second, axis=0, mode="nearest"), 0.0)
    power_TG = uniform_filter1d(flux_TG**2, surroundings, axis=0, mode="nearest")
    level_TG = np.sqrt(np.maximum(power_TG, 0.0)) + QUIET_FLUX_DB
    return (flux_TG / level_TG) @ np.array(BAND_WEIGHTS, np.float32)


class _Tempi(NamedTuple):
    """Candidate tempi (M) and what reads their strength off an autocorrelation of L lags."""

    period_M: np.ndarray
    prior_M: np.ndarray
    comb_LM: np.ndarray
    near_LM: np.ndarray
    longest_frames: int


@lru_cache(maxsize=8)
def _tempi(settings: BeatSettings) -> _Tempi:
    octaves = np.log(settings.fastest_bpm / settings.slowest_bpm)
    bpm_M = settings.slowest_bpm * np.exp(np.arange(0.0, octaves, TEMPO_STEP))
    period_M = 60.0 * settings.mel.frames_per_second / bpm_M
    longest_frames = int(np.ceil(period_M[0]))
    n_lags = TEETH[-1] * longest_frames + 2
    teeth = [
        _tooth(period_M * k, n_lags) - COUNTER_TOOTH * _tooth(period_M * (k - 0.5), n_lags) for k in TEETH
    ]
    near_LM = (_tooth(period_M, n_lags) + _tooth(2 * period_M, n_lags)) / 2
    prior_M = np.exp(-0.5 * (np.log2(bpm_M / settings.prior_bpm) / settings.prior_octaves) ** 2)
    return _Tempi(period_M, prior_M, np.mean(teeth, axis=0), near_LM, longest_frames)


def _tooth(lag_M: np.ndarray, n_lags: int) -> np.ndarray:
    """Weights (L, M) that read a fractional lag by linear interpolation."""
    return np.maximum(0.0, 1.0 - np.abs(np.arange(n_lags)[:, None] - lag_M))


def _flux_db(mel_TF: np.ndarray, mel: MelSettings) -> np.ndarray:
    """Mean rise in dB since the frame before in the low, middle and high bands: (T, 3)."""
    range_db = mel.ceiling_db - mel.floor_db
    surroundings = round(SURROUNDINGS_S * mel.frames_per_second)
    floor_T = maximum_filter1d(mel_TF.max(axis=1), surroundings) - np.float32(HEARD_DB / range_db)
    edges = [round(edge * mel_TF.shape[1]) for edge in BAND_EDGES]
    flux_TG = np.zeros((len(mel_TF), len(BAND_WEIGHTS)), np.float32)
    for first in range(1, len(mel_TF), BLOCK_FRAMES):
        block = slice(first - 1, first + BLOCK_FRAMES)
        heard_TF = np.maximum(mel_TF[block], floor_T[block, None])
        rise_TF = np.maximum(heard_TF[1:] - _neighbours_max(heard_TF[:-1]), 0.0)
        for g, (low, high) in enumerate(pairwise(edges)):
            flux_TG[first : first + BLOCK_FRAMES, g] = rise_TF[:, low:high].mean(axis=1)
    return range_db * flux_TG


def _neighbours_max(mel_TF: np.ndarray) -> np.ndarray:
    """The largest of each band and its two neighbours: a vibrato is no onset."""
    loudest_TF = mel_TF.copy()
    np.maximum(loudest_TF[:, 1:], mel_TF[:, :-1], out=loudest_TF[:, 1:])
    np.maximum(loudest_TF[:, :-1], mel_TF[:, 1:], out=loudest_TF[:, :-1])
    return loudest_TF


def _local_periods(onset_T: np.ndarray, tempi: _Tempi) -> tuple[np.ndarray, float]:
    """Beat period in frames at every frame (T,), and the confidence."""
    acf_WL, power_W, centre_W = _autocorrelation(onset_T, len(tempi.comb_LM))
    score_WM = np.maximum(acf_WL @ tempi.comb_LM, 0.0) * tempi.prior_M
    whole_M = np.average(score_WM, axis=0, weights=power_W)
    path_W = _smooth_path((score_WM + whole_M) / 2)
    near_W = (acf_WL @ tempi.near_LM)[np.arange(len(path_W)), path_W]
    confidence = float(np.clip(np.average(near_W, weights=power_W), 0.0, 1.0))
    return np.interp(np.arange(len(onset_T)), centre_W, tempi.period_M[path_W]), confidence


def _autocorrelation(onset_T: np.ndarray, n_lags: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of overlapping windows: unbiased autocorrelation (W, L), zero-lag power (W,), centre frame (W,)."""
    width = min(WINDOW_FRAMES, len(onset_T))
    smooth_T = gaussian_filter1d(onset_T, 1.0)
    window_WT = np.lib.stride_tricks.sliding_window_view(smooth_T, width)[::WINDOW_STEP_FRAMES]
    taper = np.hanning(width + 2)[1:-1].astype(np.float32)
    window_WT = (window_WT - window_WT.mean(axis=1, keepdims=True)) * taper
    n_fft = scipy.fft.next_fast_len(width + n_lags, real=True)
    raw_WL = _raw_autocorrelation(window_WT, n_fft)[:, :n_lags]
    taper_L = _raw_autocorrelation(taper, n_fft)[:n_lags]
    power_W = raw_WL[:, 0] + STEADINESS * taper_L[0]
    unbiased_WL = raw_WL / np.maximum(taper_L / taper_L[0], STEADINESS)
    return unbiased_WL / power_W[:, None], power_W, np.arange(len(raw_WL)) * WINDOW_STEP_FRAMES + width / 2


def _raw_autocorrelation(signal: np.ndarray, n_fft: int) -> np.ndarray:
    return scipy.fft.irfft(np.abs(scipy.fft.rfft(signal, n_fft)) ** 2, n_fft)


def _smooth_path(score_WM: np.ndarray) -> np.ndarray:
    """The sequence of candidates (W,) with the highest score less the cost of changing (Viterbi)."""
    n_windows, n_tempi = score_WM.shape
    tempo_M = np.arange(n_tempi)
    change_MM = np.minimum(DRIFT_COST * np.abs(tempo_M[:, None] - tempo_M), JUMP_COST)
    best_M = score_WM[0]
    before_WM = np.zeros((n_windows, n_tempi), np.int64)
    for w in range(1, n_windows):
        total_MM = best_M[:, None] - change_MM
        before_WM[w] = total_MM.argmax(axis=0)
        best_M = total_MM[before_WM[w], tempo_M] + score_WM[w]
    path_W = np.full(n_windows, best_M.argmax())
    for w in range(n_windows - 1, 0, -1):
        path_W[w - 1] = before_WM[w, path_W[w]]
    return path_W


def _place_beats(onset_T: np.ndarray, period_T: np.ndarray, tightness: float) -> np.ndarray:
    """Ellis's dynamic programming, as many frames at once as the shortest gap allows."""
    reward_T = gaussian_filter1d(onset_T, 1.0).astype(np.float64)
    reward_T /= reward_T.std() + 1e-9
    lead = int(1.6 * period_T.max()) + 1  # frames of nothing, so that the first beats have a past
    score_T = np.concatenate([np.zeros(lead), reward_T])
    before_T = np.full(len(score_T), -1)
    start = lead
    while start < len(score_T):
        offset_TJ, penalty_J = _gaps(round(float(period_T[start - lead]), 1), tightness)
        offset_TJ = offset_TJ[: len(score_T) - start]
        total_TJ = score_T[start + offset_TJ] + penalty_J
        best_T = total_TJ.argmax(axis=1)
        rows_T = np.arange(len(best_T))
        score_T[start : start + len(best_T)] += total_TJ[rows_T, best_T]
        before_T[start : start + len(best_T)] = start + offset_TJ[rows_T, best_T]
        start += len(best_T)
    last = min(int(np.ceil(period_T[-1])), len(onset_T))
    frame = len(score_T) - last + int(score_T[-last:].argmax())
    beats = []
    while frame >= lead:
        beats.append(frame - lead)
        frame = before_T[frame]
    return np.array(beats[::-1], np.int64)


@lru_cache(maxsize=1024)
def _gaps(period_frames: float, tightness: float) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (T, J) from a run of frames to where their last beat may be, and each gap's penalty (J,)."""
    gap_J = np.arange(int(np.ceil(0.6 * period_frames)), int(1.6 * period_frames) + 1)
    return np.arange(gap_J[0])[:, None] - gap_J, -tightness * np.log(gap_J / period_frames) ** 2


def _bar_starts(mel_TF: np.ndarray, beat_frames: np.ndarray, beats_per_bar: int) -> np.ndarray:
    """Indices of the beats that begin a bar: chord changes from beat to beat and bar to bar, bass accents."""
    timbre_NF = _timbre(mel_TF, beat_frames)
    change_N = _novelty(timbre_NF, 1) + _novelty(timbre_NF, beats_per_bar)
    return _cycle_starts(change_N + _low_accent(mel_TF, beat_frames), beats_per_bar)


def _phrase_starts(mel_TF: np.ndarray, bar_frames: np.ndarray) -> np.ndarray:
    """Indices of the bars that begin a phrase of eight or of four bars."""
    timbre_NF = _timbre(mel_TF, bar_frames)
    novelty_N = _novelty(timbre_NF, 4) + 0.5 * _novelty(timbre_NF, 1)
    eights = _cycle_starts(novelty_N, 2 * BARS_PER_PHRASE)
    middles = eights[eights + BARS_PER_PHRASE < len(novelty_N)] + BARS_PER_PHRASE
    if len(middles) and novelty_N[middles].mean() < EIGHT_BARS * novelty_N[eights].mean():
        return eights
    return _cycle_starts(novelty_N, BARS_PER_PHRASE)


def _timbre(mel_TF: np.ndarray, mark_frames: np.ndarray) -> np.ndarray:
    """Mean mel between marks without its level: (N, F)."""
    counts_N = np.diff(np.append(mark_frames, len(mel_TF)))
    mean_NF = np.add.reduceat(mel_TF, mark_frames, axis=0) / counts_N[:, None]
    return mean_NF - mean_NF.mean(axis=1, keepdims=True)


def _novelty(timbre_NF: np.ndarray, width: int) -> np.ndarray:
    """How far the next `width` spans lie from the last `width`: (N,) in standard deviations."""
    n = len(timbre_NF)
    total_NF = np.concatenate(
        [np.zeros((1, timbre_NF.shape[1])), np.cumsum(timbre_NF, axis=0, dtype=np.float64)]
    )
    here = np.arange(1, n)
    start, stop = np.maximum(here - width, 0), np.minimum(here + width, n)
    after_NF = (total_NF[stop] - total_NF[here]) / (stop - here)[:, None]
    before_NF = (total_NF[here] - total_NF[start]) / (here - start)[:, None]
    distance = np.linalg.norm(after_NF - before_NF, axis=1)
    return _standardised(np.concatenate([[distance.mean() if n > 1 else 0.0], distance]))


def _low_accent(mel_TF: np.ndarray, beat_frames: np.ndarray) -> np.ndarray:
    low_T = mel_TF[:, :LOW_BANDS].mean(axis=1)
    rise_T = np.maximum(np.diff(low_T, prepend=low_T[:1]), 0.0)
    return _standardised(maximum_filter1d(rise_T, 5)[beat_frames])


def _standardised(values_N: np.ndarray) -> np.ndarray:
    return (values_N - values_N.mean()) / (values_N.std() + 1e-9)


def _cycle_starts(novelty_N: np.ndarray, length: int) -> np.ndarray:
    """Indices where cycles of `length` begin: the most novelty on beginnings, RESET_COST for an early one."""
    scores = [float(novelty_N[0])] + [0.0] * (length - 1)  # by position in the cycle
    came_from = [0]
    for novelty in novelty_N[1:].tolist():
        best = max(range(length), key=scores.__getitem__)
        early = scores[best] - RESET_COST > scores[-1]
        came_from.append(best if early else length - 1)
        start = scores[best] - RESET_COST if early else scores[-1]
        scores = [start + novelty, *scores[:-1]]
    position = max(range(length), key=scores.__getitem__)
    starts = []
    for n in range(len(novelty_N) - 1, -1, -1):
        if position == 0:
            starts.append(n)
            position = came_from[n]
        else:
            position -= 1
    return np.array(starts[::-1] or [0], np.int64)


def _typical_gap(mark_frames: np.ndarray) -> float:
    """Mean of the gaps within a tenth of the median, 0 without any: finer than whole frames."""
    gaps = np.diff(mark_frames)
    if not len(gaps):
        return 0.0
    median = np.sort(gaps)[len(gaps) // 2]
    return float(gaps[np.abs(gaps - median) <= 0.1 * median + 1].mean())


def _phase(mark_frames: np.ndarray, lone_gap: float, n_frames: int) -> np.ndarray:
    frames = np.arange(n_frames, dtype=np.float64)
    marks = mark_frames if len(mark_frames) else np.zeros(1)
    first_gap, last_gap = (marks[1] - marks[0], marks[-1] - marks[-2]) if len(marks) > 1 else (lone_gap,) * 2
    position = np.interp(frames, marks, np.arange(len(marks)))
    position += np.minimum(frames - marks[0], 0.0) / first_gap
    position += np.maximum(frames - marks[-1], 0.0) / last_gap
    phase = (position - np.floor(position)).astype(np.float32)
    return np.minimum(phase, np.nextafter(np.float32(1), np.float32(0)))
