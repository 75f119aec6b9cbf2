"""Edits with a known answer: raw recordings, cuts, loops and reorders of them, and what a studio does to the
result.

In come a seed and, if there is one, a folder of recordings; out come raw samples, edited samples, and for
each frame of the edit the raw sample it plays.
"""

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.signal
import soundfile

from editjax import recordings
from editjax.mel import FrameGrid

RATE_HZ = 44100
CROSSFADE_S = 0.01
SPLICE_S = (4.0, 30.0)
"""Shortest and longest excerpt that a raw is put together from."""
PIECE_S = (0.3, 2.8, 20.0)
"""Shortest, median and longest piece of an edit: what editors' regions measure, the shortest left out."""
QUIET = 3e-3
"""Level (RMS) below which a piece is not planted: it would be silence."""
CODEC_BLOCK = 1 << 14
KINDS = ("cut", "loop", "reorder")


class Planted(NamedTuple):
    """An edit of `raw_S`: pieces of it (start, stop) one after the other, crossfaded at the joins."""

    raw_S: np.ndarray
    edit_S: np.ndarray
    pieces: tuple[tuple[int, int], ...]
    kinds: tuple[str, ...]


def raw_of(rng: np.random.Generator, seconds: float, folder: Path | None) -> np.ndarray:
    """Excerpts one after the other: of music and speech in the folder, or of what a synthesiser plays."""
    parts, left = [], round(seconds * RATE_HZ)
    while left > 0:
        source_S = _recording(rng, folder) if folder else _synthetic(rng, SPLICE_S[1])
        length = min(len(source_S), left, round(rng.uniform(*SPLICE_S) * RATE_HZ))
        start = int(rng.integers(0, len(source_S) - length + 1))
        parts.append(source_S[start : start + length])
        left -= length
    return np.concatenate(parts).astype(np.float32)


def plant(rng: np.random.Generator, raw_S: np.ndarray, n_pieces: int) -> Planted:
    """An edit of `n_pieces` pieces; each piece was reached by a cut, a loop or a reorder."""
    pieces: list[tuple[int, int]] = []
    kinds = []
    position = 0
    for _ in range(n_pieces):
        length = round(
            float(np.clip(rng.lognormal(np.log(PIECE_S[1]), 1.0), PIECE_S[0], PIECE_S[2])) * RATE_HZ
        )
        kind = KINDS[rng.integers(len(KINDS))] if pieces else "cut"
        if kind == "loop":
            start, length = pieces[-1][0], pieces[-1][1] - pieces[-1][0]
        elif kind == "cut":
            start = position + round(float(rng.lognormal(np.log(4.0), 1.0)) * RATE_HZ)
        else:
            start = int(rng.integers(0, max(1, len(raw_S) - length)))
        if not _audible(raw_S[start : start + length], length):
            kind, start = "reorder", _audible_start(rng, raw_S, length)
        pieces.append((start, start + length))
        kinds.append(kind)
        position = start + length
    return Planted(raw_S, _spliced(raw_S, pieces), tuple(pieces), tuple(kinds))


def right_frames(planted: Planted, pointers_N: np.ndarray) -> np.ndarray:
    """Which frames of the edit point to what they play, bool (N,).

    Right is within one frame, or another place whose samples correlate at 0.999 or more: a true repeat.
    """
    grid = FrameGrid(RATE_HZ)
    raw_S, n_frames = planted.raw_S, grid.frames_in(len(planted.edit_S))
    starts = np.array([start for start, _ in planted.pieces])
    ends = np.cumsum([stop - start for start, stop in planted.pieces])
    samples_N = grid.sample_of_frame(np.arange(n_frames))
    piece_N = np.searchsorted(ends, samples_N, side="right")
    true_N = samples_N - np.concatenate([[0], ends[:-1]])[piece_N] + starts[piece_N]
    found_N = np.full(n_frames, -1, np.int64)
    found_N[: len(pointers_N)] = pointers_N[:n_frames]
    frame = int(grid.sample_of_frame(1))
    right_N = (found_N >= 0) & (np.abs(found_N * frame - true_N) <= 1.5 * frame)
    for n in np.flatnonzero(~right_N & (found_N >= 0)):
        right_N[n] = _repeats(raw_S, int(true_N[n]), int(found_N[n]) * frame, frame)
    return right_N


def processes() -> dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]]:
    """What is done to an edit after it was cut, by name."""
    return {
        "gain": lambda rng, edit_S: edit_S * 10 ** (rng.uniform(-18, 0) / 20),
        "EQ tilt": lambda rng, edit_S: shelved(edit_S, float(rng.choice([-6.0, 6.0]))),
        "noise at -40 dB": lambda rng, edit_S: noisy(rng, edit_S, -40.0),
        "OGG": lambda _, edit_S: coded(edit_S, "OGG", "VORBIS"),
        "MP3": lambda _, edit_S: coded(edit_S, "MP3", "MPEG_LAYER_III"),
    }


def shelved(samples_S: np.ndarray, gain_db: float, corner_hz: float = 1000.0) -> np.ndarray:
    """A high shelf of `gain_db` above `corner_hz` (R. Bristow-Johnson's audio EQ cookbook, slope 1)."""
    a = 10 ** (gain_db / 40)
    angle = 2 * np.pi * corner_hz / RATE_HZ
    cos, root = np.cos(angle), 2 * np.sqrt(a) * np.sin(angle) / np.sqrt(2)
    b = [
        a * ((a + 1) + (a - 1) * cos + root),
        -2 * a * ((a - 1) + (a + 1) * cos),
        a * ((a + 1) + (a - 1) * cos - root),
    ]
    d = [(a + 1) - (a - 1) * cos + root, 2 * ((a - 1) - (a + 1) * cos), (a + 1) - (a - 1) * cos - root]
    return scipy.signal.lfilter(b, d, samples_S).astype(np.float32)


def noisy(rng: np.random.Generator, samples_S: np.ndarray, level_db: float) -> np.ndarray:
    """White noise added at `level_db` relative to the level (RMS) of the whole."""
    level = float(np.sqrt(np.mean(samples_S**2))) * 10 ** (level_db / 20)
    return samples_S + level * rng.standard_normal(len(samples_S)).astype(np.float32)


def coded(samples_S: np.ndarray, container: str, subtype: str) -> np.ndarray:
    """Encoded and decoded again with libsndfile's default quality."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE_HZ, 1, format=container, subtype=subtype) as encoder:
        for start in range(0, len(samples_S), CODEC_BLOCK):
            encoder.write(np.clip(samples_S[start : start + CODEC_BLOCK], -1, 1))
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0][: len(samples_S)]


def _recording(rng: np.random.Generator, folder: Path) -> np.ndarray:
    library = recordings.scan(folder)
    music = [recording for group in (*library.songs, *library.phrases) for recording in group]
    choice = [*music, *library.speech]
    return recordings.load(choice[rng.integers(len(choice))], RATE_HZ)


def _synthetic(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A drum loop that repeats to the sample under a melody that does not, or the melody alone."""
    n_samples = round(seconds * RATE_HZ)
    beat = round(60 / rng.uniform(80, 140) * RATE_HZ)
    clock_S = np.arange(n_samples) / RATE_HZ
    melody_S = np.zeros(n_samples)
    for start in range(0, n_samples, beat):
        note = slice(start, min(start + beat, n_samples))
        pitch_hz = 110 * 2 ** (rng.integers(0, 36) / 12) * rng.uniform(0.997, 1.003)
        decay_S = np.exp(-4 * (clock_S[note] - clock_S[start]))
        for harmonic in range(1, 8):
            phase = rng.uniform(0, 2 * np.pi)
            melody_S[note] += (
                decay_S * np.sin(2 * np.pi * harmonic * pitch_hz * clock_S[note] + phase) / harmonic
            )
    breath_S = scipy.signal.lfilter([0.05], [1, -0.95], rng.standard_normal(n_samples)) * (
        1 + np.sin(3 * clock_S)
    )
    bar_S = _drum_bar(rng, beat)
    drums_S = np.tile(bar_S, -(-n_samples // len(bar_S)))[:n_samples] * rng.integers(0, 2)
    mix_S = melody_S + 0.5 * breath_S + drums_S
    return (0.3 * mix_S / np.abs(mix_S).max()).astype(np.float32)


def _drum_bar(rng: np.random.Generator, beat: int) -> np.ndarray:
    bar_S = np.zeros(4 * beat)
    for step in range(8):
        hit_S = rng.standard_normal(beat // 2) * np.exp(
            -np.arange(beat // 2) / (rng.uniform(0.01, 0.06) * RATE_HZ)
        )
        low, high = ((60, 200), (400, 4000), (4000, 12000))[rng.integers(3)]
        band = scipy.signal.butter(2, (low, high), "band", fs=RATE_HZ, output="sos")
        bar_S[step * (beat // 2) :][: beat // 2] += 3 * scipy.signal.sosfilt(band, hit_S)
    return bar_S


def _audible(piece_S: np.ndarray, length: int) -> bool:
    return len(piece_S) == length and bool(np.sqrt(np.mean(piece_S**2)) > QUIET)


def _audible_start(rng: np.random.Generator, raw_S: np.ndarray, length: int) -> int:
    for _ in range(100):
        start = int(rng.integers(0, len(raw_S) - length + 1))
        if _audible(raw_S[start : start + length], length):
            break
    return start


def _spliced(raw_S: np.ndarray, pieces: list[tuple[int, int]]) -> np.ndarray:
    """The pieces one after the other, equal-power crossfades centred on the joins."""
    edit_S = np.concatenate([raw_S[start:stop] for start, stop in pieces])
    at, half = 0, round(CROSSFADE_S * RATE_HZ / 2)
    turn_S = (np.arange(2 * half) + 0.5) / (2 * half) * np.pi / 2
    for (start, stop), (following, _) in pairwise(pieces):
        at += stop - start
        if following >= half and stop + half <= len(raw_S):
            leaving_S, entering_S = (
                raw_S[stop - half : stop + half],
                raw_S[following - half : following + half],
            )
            edit_S[at - half : at + half] = np.cos(turn_S) * leaving_S + np.sin(turn_S) * entering_S
    return edit_S


def _repeats(raw_S: np.ndarray, true: int, found: int, length: int) -> bool:
    """Whether the raw at the two places is the same sound, give or take the frame grid."""
    true_S = raw_S[true : true + length]
    reach = length // 2 + 1
    around_S = raw_S[max(0, found - reach) : found + length + reach]
    if len(true_S) < length or len(around_S) < length:
        return False
    if not true_S.any():
        return not raw_S[found : found + length].any()
    windows_LS = np.lib.stride_tricks.sliding_window_view(around_S, length)
    norms = np.linalg.norm(windows_LS, axis=1) * np.linalg.norm(true_S)
    return bool((windows_LS @ true_S >= 0.999 * np.maximum(norms, 1e-12)).any())
