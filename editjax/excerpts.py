"""Sections of a piece out of recorded music: recordings come in, distinct excerpts between onsets come out.

A song is cut into stretches that do not overlap and, as far as it allows, do not sound alike: where a song
repeats itself a listener could not tell two sections from two takes. Short recordings are cut into fragments
and put together to new phrases.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from editjax.performance import block_power, loudness
from editjax.recordings import Recording, load

MIN_SECTION_S = 6.0
DRAWS = 16
MAX_LIKENESS = 0.66
"""Sections of one piece at most this alike (see `likeness`); two takes of one section measure 0.7 to 0.98."""
MIN_ACTIVITY = 0.6
ONSET_REACH_S = 1.0
FLUX_BLOCK_S = 0.01
LIKENESS_RATE_HZ = 10
LIKENESS_SPAN_S = 3.0
LIKENESS_BANDS = 32
LIKENESS_FFT = 2048
TRANSPOSITIONS = (-5, -3, -1, 0, 2, 4, 6)


class Excerpt(NamedTuple):
    """A section's sound (S,), first onset at sample 0, with bar-like onsets about every two seconds."""

    samples_S: np.ndarray
    bars: np.ndarray


def sections_from_song(
    song: tuple[Recording, ...], lengths_s: list[float], rate_hz: int, rng: np.random.Generator
) -> list[Excerpt]:
    """Stretches in song order (several recordings are stems, and summed): of DRAWS draws the least alike.

    Fewer or shorter ones than asked for where the song is too short or repeats itself, but at least one.
    """
    song_S = _mix(song, rate_hz)
    song_s = len(song_S) / rate_hz
    lengths_s = _fit([length_s + ONSET_REACH_S for length_s in lengths_s], 0.85 * song_s)
    power = block_power(song_S, int(0.1 * rate_hz))
    loud = power > np.percentile(power, 90) * 1e-3
    features_TF = spectral_features(song_S, rate_hz)
    best: tuple[float, list[tuple[float, float]]] = (np.inf, [])
    for _ in range(DRAWS):
        spans = _draw_spans(lengths_s, song_s, rng)
        activity = min(float(loud[int(a * 10) : max(int(a * 10) + 1, int(b * 10))].mean()) for a, b in spans)
        highest = max((score for _, score in _likenesses(features_TF, spans)), default=0.0)
        cost = highest + 2.0 * max(0.0, MIN_ACTIVITY - activity)
        if cost < best[0]:
            best = (cost, spans)
    spans = best[1]
    while len(spans) > 2:
        later, alike = max(_likenesses(features_TF, spans), key=lambda pair: pair[1])
        if alike <= MAX_LIKENESS:
            break
        del spans[later]
    return [_cut_on_onsets(song_S, a, b, rate_hz) for a, b in spans]


def sections_from_phrases(
    group: tuple[Recording, ...], lengths_s: list[float], rate_hz: int, rng: np.random.Generator
) -> list[Excerpt]:
    """Sections of fragments in orders of their own, each in another transposition, with short rests.

    Fewer than asked for where the fragments do not suffice for sections that differ, but at least one.
    """
    fragments = [f for recording in group for f in _fragments(load(recording, rate_hz), rate_hz)]
    sections: list[Excerpt] = []
    features: list[np.ndarray] = []
    steps = list(rng.permutation(TRANSPOSITIONS))
    for length_s in lengths_s:
        for step in steps:
            section = _string_together(fragments, min(length_s, 16.0), float(step), rate_hz, rng)
            features_TF = spectral_features(section.samples_S, rate_hz)
            if all(likeness(features_TF, other_TF) <= MAX_LIKENESS for other_TF in features):
                sections.append(section)
                features.append(features_TF)
                steps.remove(step)
                break
    return sections


def damped(samples_S: np.ndarray, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """The samples with a short fade at the end: a hand on the strings."""
    fade = min(len(samples_S), int(rng.uniform(0.03, 0.12) * rate_hz))
    damped_S = samples_S.copy()
    damped_S[-fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32) ** 2
    return damped_S


def spectral_features(samples_S: np.ndarray, rate_hz: int) -> np.ndarray:
    """Unit vectors (T, F) of the spectrum in dB less its two-second mean, LIKENESS_RATE_HZ a second."""
    hop = rate_hz // LIKENESS_RATE_HZ
    padded_S = np.append(samples_S, np.zeros(LIKENESS_FFT, np.float32))
    frames = np.lib.stride_tricks.sliding_window_view(padded_S, LIKENESS_FFT)[: len(samples_S) : hop]
    window = np.hanning(LIKENESS_FFT).astype(np.float32)
    power_TK = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    edges = np.unique(np.geomspace(4, LIKENESS_FFT // 2, LIKENESS_BANDS + 1).astype(int))
    level_TF = 10.0 * np.log10(np.add.reduceat(power_TK, edges[:-1], axis=1) + 1e-8)
    total_TF = np.cumsum(np.vstack([np.zeros((1, level_TF.shape[1])), level_TF]), axis=0)
    index = np.arange(len(level_TF))
    low, high = np.maximum(0, index - LIKENESS_RATE_HZ), np.minimum(len(index), index + LIKENESS_RATE_HZ + 1)
    level_TF = level_TF - (total_TF[high] - total_TF[low]) / (high - low)[:, None]
    return level_TF / (np.linalg.norm(level_TF, axis=1, keepdims=True) + 1e-3)


def likeness(left_TF: np.ndarray, right_TF: np.ndarray) -> float:
    """Best mean cosine along any diagonal of LIKENESS_SPAN_S between two stretches of `spectral_features`."""
    span = min(int(LIKENESS_SPAN_S * LIKENESS_RATE_HZ), len(left_TF), len(right_TF))
    cosine = left_TF @ right_TF.T
    rows, columns = len(left_TF) - span + 1, len(right_TF) - span + 1
    return float(sum(cosine[k : k + rows, k : k + columns] for k in range(span)).max()) / span


def onset_flux(samples_S: np.ndarray, rate_hz: int) -> np.ndarray:
    """Rise of the level in decibels, brightened by pre-emphasis, per block of FLUX_BLOCK_S."""
    bright_S = np.diff(samples_S, prepend=samples_S[:1]) + 0.1 * samples_S
    level_db = 10.0 * np.log10(block_power(bright_S, int(FLUX_BLOCK_S * rate_hz)) + 1e-7)
    smooth = np.convolve(level_db, np.ones(3) / 3.0, mode="same")
    return np.maximum(0.0, np.diff(smooth, n=1, prepend=smooth[:1]))


def _fit(lengths_s: list[float], most_s: float) -> list[float]:
    """Shorter sections, then fewer, until they fit; the last one may be cut short."""
    while sum(lengths_s) > most_s and max(lengths_s) > MIN_SECTION_S:
        lengths_s = [max(MIN_SECTION_S, 0.9 * length_s) for length_s in lengths_s]
    while len(lengths_s) > 1 and sum(lengths_s) > most_s:
        lengths_s = lengths_s[1:]
    return [min(length_s, most_s) for length_s in lengths_s]


def _string_together(
    fragments: list[np.ndarray], length_s: float, step: float, rate_hz: int, rng: np.random.Generator
) -> Excerpt:
    """Fragments in random order, each played once before any comes again, `step` semitones higher."""
    pieces: list[np.ndarray] = []
    order: list[int] = []
    while sum(len(piece) for piece in pieces) < length_s * rate_hz:
        order = order or [int(i) for i in rng.permutation(len(fragments))]
        fragment_S = fragments[order.pop()]
        position = np.arange(0.0, len(fragment_S) - 1, 2.0 ** (step / 12.0))
        phrase_S = np.interp(position, np.arange(len(fragment_S)), fragment_S).astype(np.float32)
        phrase_S *= np.float32(0.1 / max(loudness(phrase_S, rate_hz), 1e-6))
        rest_s = float(rng.choice((0.0, 0.0, 0.15, 0.4, 0.9)))
        pieces += [damped(phrase_S, rate_hz, rng), np.zeros(int(rest_s * rate_hz), np.float32)]
    return _excerpt(np.concatenate(pieces[:-1]), rate_hz)


def _draw_spans(lengths_s: list[float], song_s: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    gaps_s = rng.dirichlet(np.ones(len(lengths_s) + 1)) * max(0.0, song_s - sum(lengths_s))
    starts_s = np.cumsum(gaps_s[:-1]) + np.cumsum([0.0, *lengths_s[:-1]])
    return [(float(a), min(song_s, float(a + s))) for a, s in zip(starts_s, lengths_s, strict=True)]


def _likenesses(features_TF: np.ndarray, spans: list[tuple[float, float]]) -> list[tuple[int, float]]:
    """The index of the later and the likeness of every two spans."""
    parts = [features_TF[int(a * LIKENESS_RATE_HZ) : int(b * LIKENESS_RATE_HZ)] for a, b in spans]
    return [(j, likeness(parts[i], parts[j])) for j in range(len(parts)) for i in range(j)]


def _mix(song: tuple[Recording, ...], rate_hz: int) -> np.ndarray:
    """A song's samples: one file, or the sum of the chosen stems."""
    stems = [load(recording, rate_hz) for recording in song]
    shortest = min(len(stem_S) for stem_S in stems)
    return np.stack([stem_S[:shortest] for stem_S in stems]).sum(axis=0)


def _cut_on_onsets(song_S: np.ndarray, start_s: float, stop_s: float, rate_hz: int) -> Excerpt:
    """Moves both ends inwards, by up to ONSET_REACH_S, to the strongest onset, and ends before it."""
    piece_S = song_S[int(start_s * rate_hz) : int(stop_s * rate_hz)]
    flux = onset_flux(piece_S, rate_hz)
    reach = int(ONSET_REACH_S / FLUX_BLOCK_S)
    block = int(FLUX_BLOCK_S * rate_hz)
    first = max(0, int(flux[:reach].argmax()) - 2)
    last = len(flux) - reach + int(flux[-reach:].argmax()) - 3
    return _excerpt(piece_S[first * block : last * block], rate_hz)


def _excerpt(samples_S: np.ndarray, rate_hz: int) -> Excerpt:
    """Adds ramps at the ends and finds the strongest onset in every stretch of 1.4–2.6 s after the last."""
    samples_S = samples_S.copy()
    rise, fall = int(0.004 * rate_hz), min(len(samples_S) // 2, int(0.12 * rate_hz))
    samples_S[:rise] *= np.linspace(0.0, 1.0, rise, dtype=np.float32)
    samples_S[-fall:] *= np.linspace(1.0, 0.0, fall, dtype=np.float32)
    flux = onset_flux(samples_S, rate_hz)
    bars, near, far = [0], int(1.4 / FLUX_BLOCK_S), int(2.6 / FLUX_BLOCK_S)
    while bars[-1] + far < len(flux):
        bars.append(bars[-1] + near + int(flux[bars[-1] + near : bars[-1] + far].argmax()))
    block = int(FLUX_BLOCK_S * rate_hz)
    return Excerpt(samples_S.astype(np.float32), np.maximum(0, np.array(bars) - 1) * block)


def _fragments(samples_S: np.ndarray, rate_hz: int) -> list[np.ndarray]:
    """A short recording without its silent ends, cut on onsets into stretches of about two seconds."""
    block = int(FLUX_BLOCK_S * rate_hz)
    power = block_power(samples_S, block)
    active = np.flatnonzero(power > 1e-3 * loudness(samples_S, rate_hz) ** 2)
    first, last = (int(active[0]), int(active[-1]) + 1) if len(active) else (0, len(power))
    samples_S = samples_S[max(0, first - 1) * block : last * block]
    flux = onset_flux(samples_S, rate_hz)
    edges, near, far = [0], int(1.3 / FLUX_BLOCK_S), int(3.5 / FLUX_BLOCK_S)
    while edges[-1] + far < len(flux):
        edges.append(edges[-1] + near + int(flux[edges[-1] + near : edges[-1] + far].argmax()))
    edges.append(len(flux))
    return [samples_S[max(0, a - 1) * block : b * block] for a, b in pairwise(edges) if b - a > 20]
