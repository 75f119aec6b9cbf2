"""One recording and its edit, varied: gain, noise, mix, time-stretch, pitch, masks, and crops, on mel frames.

In come mel frames in [0, 1] (a fixed dB scale), phases and pointers; out come the same for a slightly
different recording. Pointers follow every change of time, so that they still name the frames that are played.
Every function is pure given its NumPy generator. SpecAugment: arXiv 1904.08779.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from editjax.edits import UNALIGNED, structure_of
from editjax.errors import UsageError
from editjax.events import UNKNOWN
from editjax.mel import STEM_FRAMES, MelSettings, band_centres_hz
from editjax.records import Edited

SHORTEST_CROP = 0.9
"""A crop whose edit is still too long is shortened by this factor until it fits."""


@dataclass(frozen=True)
class AugmentSettings:
    """How far a recording is varied; probabilities are per example. Zeros, stretch (1, 1): no change.

    `stemless_probability` is that of losing all stems, `lost_stem_probability` that of losing each;
    `steady_probability` is that of a hum or noise in place of something that is cut (`plant_steady`), of so
    many frames and so many dB above what is kept.
    """

    gain_db: float = 20.0
    stretch: tuple[float, float] = (0.95, 1.05)
    pitch_semitones: float = 2.0
    noise_probability: float = 0.5
    noise_snr_db: tuple[float, float] = (20.0, 60.0)
    noise_tilt_db: float = 20.0
    steady_probability: float = 0.0
    steady_frames: tuple[int, int] = (64, 1024)
    steady_db: tuple[float, float] = (-20.0, 6.0)
    mix_probability: float = 0.1
    mix_db: tuple[float, float] = (-40.0, -20.0)
    time_masks: int = 2
    time_mask_frames: int = 20
    mel_masks: int = 2
    mel_mask_bins: int = 12
    stemless_probability: float = 0.25
    lost_stem_probability: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.stretch
        if not 0.5 <= low <= high <= 2.0:
            raise UsageError(f"stretch {self.stretch}: give (low, high) between 0.5 and 2")
        if self.mix_db[1] > -20.0:
            raise UsageError(f"mix_db {self.mix_db}: above -20 dB the labels would no longer be true")


class Piece(NamedTuple):
    """A recording and its edit while they are varied; pointers without STOP and PAD, None for no stems.

    `kind_T` is what every frame is (`events.kinds_of`). `edited` is None where nobody asked for it; gain,
    tempo and pitch change it as they change the recording, noise and masks do not.
    """

    mel_TF: np.ndarray
    phase_T3: np.ndarray
    pointers_N: np.ndarray
    kind_T: np.ndarray
    stems_IMF: np.ndarray | None = None
    edited: Edited | None = None


def augment(
    piece: Piece,
    settings: AugmentSettings,
    mel: MelSettings,
    rng: np.random.Generator,
    *,
    other_mel: Callable[[], np.ndarray],
    max_frames: int,
    max_steps: int,
) -> Piece:
    """Vary a piece; stretching never makes it longer than `max_frames` or its edit than `max_steps`.

    `other_mel` gives the mel of another recording, called only when one is mixed in: no stem holds it.
    """
    ratio = _stretch_ratio(piece, settings, rng, max_frames, max_steps)
    piece = stretch(piece, ratio)
    if settings.steady_probability:
        (apart,) = rng.spawn(1)  # all else is as without
        if apart.random() < settings.steady_probability:
            piece = plant_steady(piece, settings, mel, apart)
    semitones = rng.uniform(-1.0, 1.0) * settings.pitch_semitones
    mel_TF = shift_pitch(piece.mel_TF, semitones, mel)
    noisy, mixed = rng.random(2) < (settings.noise_probability, settings.mix_probability)
    if noisy:
        mel_TF = add_noise(mel_TF, settings, mel, rng)
    if mixed:
        mel_TF = mix(mel_TF, other_mel(), rng.uniform(*settings.mix_db), mel, rng)
    gain_db = rng.uniform(-1.0, 1.0) * settings.gain_db
    mel_TF = mask(change_gain(mel_TF, gain_db, mel), settings, rng)
    stems_IMF = piece.stems_IMF
    if stems_IMF is not None:
        (apart,) = rng.spawn(1)  # with stems, all else is as without
        stems_IMF = shift_pitch(lose_stems(stems_IMF, settings, apart), semitones, mel)
        for stem_MF in stems_IMF if noisy else ():
            stem_MF[:] = add_noise(stem_MF, settings, mel, apart)
        stems_IMF = change_gain(stems_IMF, gain_db, mel)
    edited = piece.edited
    if edited is not None:
        edited = edited._replace(mel_TF=change_gain(shift_pitch(edited.mel_TF, semitones, mel), gain_db, mel))
    return piece._replace(mel_TF=mel_TF, stems_IMF=stems_IMF, edited=edited)


def stretch(piece: Piece, ratio: float) -> Piece:
    """The same performance `ratio` times as long, at the same pitch.

    Frame t' of the result is frame t' / ratio of the input. A run of pointers [a, b) becomes
    [round(a ratio), round(b ratio)), so that what was kept stays kept and runs that met still meet.
    """
    if ratio == 1.0:
        return piece
    n_frames = len(piece.mel_TF)
    stretched = max(1, _round(n_frames * ratio))
    at_T = np.minimum(np.arange(stretched, dtype=np.float32) / np.float32(ratio), n_frames - 1)
    before_T = at_T.astype(np.int64)
    after_T = np.minimum(before_T + 1, n_frames - 1)
    weight_T1 = (at_T - before_T)[:, None]

    def between(mel_TF: np.ndarray) -> np.ndarray:
        out_TF = mel_TF[after_T]
        out_TF -= mel_TF[before_T]
        out_TF *= weight_T1
        out_TF += mel_TF[before_T]
        return out_TF

    nearest_T = np.minimum(np.rint(at_T).astype(np.int64), n_frames - 1)
    pointers_N = _stretch_pointers(piece.pointers_N, ratio, stretched)
    stems_IMF = stems_of_span(piece.stems_IMF, 0, stretched, ratio)
    edited = piece.edited
    if edited is not None:
        played_T = structure_of(piece.pointers_N, n_frames) > 0
        still_T = structure_of(pointers_N, stretched) > 0
        # Beside what is cut there is no edit to look at between two frames: the recording stands in.
        heard_TF = np.where(played_T[:, None], edited.mel_TF, piece.mel_TF)
        edited_TF = np.where(still_T[:, None], between(heard_TF), np.float32(0.0))
        edited = Edited(edited_TF, edited.label_T[nearest_T], edited.beat_T[nearest_T])
    heard = between(piece.mel_TF), piece.phase_T3[nearest_T]
    return Piece(*heard, pointers_N, piece.kind_T[nearest_T], stems_IMF, edited)


def plant_steady(
    piece: Piece, settings: AugmentSettings, mel: MelSettings, rng: np.random.Generator
) -> Piece:
    """A hum or noise that never changes in place of some of what is cut, about as loud as what is kept.

    However loud, it is no music; in sessions nothing else is that steady. Stems do not hold it.
    """
    kept_T = structure_of(piece.pointers_N, len(piece.mel_TF)) > 0
    if kept_T.all() or not kept_T.any():
        return piece
    edges = np.flatnonzero(np.diff(np.r_[True, kept_T, True]))
    starts, stops = edges[::2], edges[1::2]
    run = rng.choice(len(starts), p=(stops - starts) / (stops - starts).sum())
    length = min(int(rng.integers(*settings.steady_frames, endpoint=True)), int(stops[run] - starts[run]))
    start = int(rng.integers(starts[run], stops[run] - length, endpoint=True))
    power_TF = _noise(length, mel, rng)
    if rng.random() < 0.5:
        hum_F = _hum(mel, rng)
        power_TF += hum_F * power_TF.sum(-1).mean() / hum_F.sum() * 10.0 ** rng.uniform(2.0, 5.0)
    music = _power(piece.mel_TF[kept_T], mel).sum(-1).mean(dtype=np.float64)
    power_TF *= music * 10.0 ** (rng.uniform(*settings.steady_db) / 10.0) / power_TF.sum(-1).mean()
    mel_TF, kind_T = piece.mel_TF.copy(), piece.kind_T.copy()
    mel_TF[start : start + length] = _mel(np.maximum(power_TF, 1.0).astype(np.float32), mel)
    kind_T[start : start + length] = UNKNOWN
    return piece._replace(mel_TF=mel_TF, kind_T=kind_T)


def _hum(mel: MelSettings, rng: np.random.Generator) -> np.ndarray:
    """Power of a tone from 40 to 1,000 Hz and its harmonics, each a little narrower than two bands."""
    centres_hz = band_centres_hz(mel)
    tone_hz, fall = np.exp(rng.uniform(np.log(40.0), np.log(1000.0))), rng.uniform(0.5, 3.0)
    number_K = np.arange(1, 17)
    band_K = np.interp(number_K * tone_hz, centres_hz, np.arange(mel.n_mels), right=np.inf)
    near_KF = np.exp(-((np.arange(mel.n_mels) - band_K[:, None]) ** 2))
    return (number_K[:, None] ** -fall * near_KF).sum(0)


def _noise(n_frames: int, mel: MelSettings, rng: np.random.Generator) -> np.ndarray:
    """Power of noise that falls by up to 9 dB an octave, or rises by up to 3; wide bands waver less."""
    centres_hz = band_centres_hz(mel)
    colour_F = (centres_hz / centres_hz[-1]) ** (-rng.uniform(-3.0, 9.0) / 10.0 / np.log10(2.0))
    bins_F = np.maximum(np.gradient(centres_hz) * mel.n_fft / mel.sample_rate_hz, 1.0)
    return colour_F * rng.standard_gamma(bins_F, (n_frames, mel.n_mels)) / bins_F


def shift_pitch(mel_TF: np.ndarray, semitones: float, mel: MelSettings) -> np.ndarray:
    """Move everything up by `semitones`, interpolating between mel bands; the outermost bands repeat."""
    if semitones == 0.0:
        return mel_TF
    centres_hz = band_centres_hz(mel)
    source_F = np.interp(centres_hz * 2.0 ** (-semitones / 12.0), centres_hz, np.arange(mel.n_mels))
    low_F = np.minimum(source_F.astype(np.int64), mel.n_mels - 2)
    weight_F = (source_F - low_F).astype(np.float32)
    warp_FF = np.zeros((mel.n_mels, mel.n_mels), np.float32)
    bands = np.arange(mel.n_mels)
    warp_FF[low_F, bands] = 1.0 - weight_F
    warp_FF[low_F + 1, bands] += weight_F
    return mel_TF @ warp_FF


def add_noise(
    mel_TF: np.ndarray, settings: AugmentSettings, mel: MelSettings, rng: np.random.Generator
) -> np.ndarray:
    """Add steady noise of a random spectral tilt, so and so many dB below the recording's mean power."""
    tilt_F = np.linspace(-0.5, 0.5, mel_TF.shape[1]) * rng.uniform(-1.0, 1.0) * settings.noise_tilt_db
    colour_F = (10.0 ** (tilt_F / 10.0)).astype(np.float32)
    power_TF = rng.standard_exponential(mel_TF.shape, dtype=np.float32)
    power_TF *= colour_F / colour_F.mean()
    return _add_power(mel_TF, power_TF, -rng.uniform(*settings.noise_snr_db), mel)


def mix(
    mel_TF: np.ndarray, other_TF: np.ndarray, level_db: float, mel: MelSettings, rng: np.random.Generator
) -> np.ndarray:
    """Add another recording, from a random place on and repeated as needed, `level_db` above this one."""
    rows = (rng.integers(len(other_TF)) + np.arange(len(mel_TF))) % len(other_TF)
    power_TF = _power(other_TF.astype(np.float32), mel) - np.float32(1.0)  # the floor is silence
    return _add_power(mel_TF, power_TF[rows], level_db, mel)


def lose_stems(stems_IMF: np.ndarray, settings: AugmentSettings, rng: np.random.Generator) -> np.ndarray:
    """Those of the stems that are left: at times none, as where nobody has any."""
    if rng.random() < settings.stemless_probability:
        return stems_IMF[:0]
    return stems_IMF[rng.random(len(stems_IMF)) >= settings.lost_stem_probability]


def stems_of_span(
    stems_IMF: np.ndarray | None, first_frame: int, n_frames: int, ratio: float = 1.0
) -> np.ndarray | None:
    """The stems of `n_frames` frames from one on, `ratio` times as slow, interpolated between steps."""
    if stems_IMF is None:
        return None
    middle_M = (np.arange(0, n_frames, STEM_FRAMES) + STEM_FRAMES / 2) / ratio + first_frame
    last = stems_IMF.shape[1] - 1
    at_M = np.clip(middle_M / STEM_FRAMES - 0.5, 0, last)
    before_M = at_M.astype(np.int64)
    weight_M1 = (at_M - before_M).astype(np.float32)[:, None]
    before_IMF, after_IMF = stems_IMF[:, before_M], stems_IMF[:, np.minimum(before_M + 1, last)]
    return before_IMF + weight_M1 * (after_IMF - before_IMF)


def change_gain(mel_TF: np.ndarray, gain_db: float, mel: MelSettings) -> np.ndarray:
    """The mel of the same recording `gain_db` louder; frames of digital silence stay silent."""
    if gain_db == 0.0:
        return mel_TF
    silent_T = ~mel_TF.any(axis=-1)
    mel_TF = np.clip(mel_TF + np.float32(gain_db / (mel.ceiling_db - mel.floor_db)), 0.0, 1.0)
    mel_TF[silent_T] = 0.0
    return mel_TF


def mask(mel_TF: np.ndarray, settings: AugmentSettings, rng: np.random.Generator) -> np.ndarray:
    """SpecAugment: a few short spans of time and of bands take the recording's mean level."""
    n_frames, n_bands = mel_TF.shape
    if settings.time_masks == settings.mel_masks == 0:
        return mel_TF
    level = mel_TF.mean()
    mel_TF = mel_TF.copy()
    for start, stop in _spans(n_frames, settings.time_masks, settings.time_mask_frames, rng):
        mel_TF[start:stop] = level
    for start, stop in _spans(n_bands, settings.mel_masks, settings.mel_mask_bins, rng):
        mel_TF[:, start:stop] = level
    return mel_TF


def crop(piece: Piece, max_frames: int, max_steps: int, rng: np.random.Generator) -> Piece:
    """A window of at most `max_frames` whose edit has at most `max_steps`, with the pointers inside it.

    What is cut as superseded is cut because of a take that comes *later*; a window that ends between the two
    would teach that the first take is wrong. Windows therefore end where a kept run ends, or where the
    recording does: every take of the last section in the window has its replacement there. Sections recorded
    in interleaved order can still lose theirs, and a take that the window's start divides looks incomplete.
    """
    n_frames = len(piece.mel_TF)
    ends = _run_stops(piece.pointers_N)
    ends = ends[ends >= min(max_frames, n_frames) // 2]
    end = int(rng.choice(np.append(ends, n_frames)))
    length = min(max_frames, end)
    while True:
        pointers_N = _pointers_inside(piece.pointers_N, end - length, end)
        if len(pointers_N) <= max_steps or length == 1:
            break
        length = max(1, int(length * SHORTEST_CROP))
    window = slice(end - length, end)
    return Piece(
        piece.mel_TF[window],
        piece.phase_T3[window],
        pointers_N[:max_steps],
        piece.kind_T[window],
        stems_of_span(piece.stems_IMF, window.start, length),
        piece.edited and Edited(*(array[window] for array in piece.edited)),
    )


def _stretch_ratio(
    piece: Piece, settings: AugmentSettings, rng: np.random.Generator, max_frames: int, max_steps: int
) -> float:
    ratio = rng.uniform(*settings.stretch)
    n_steps = len(piece.pointers_N)
    n_runs = sum(1 for _ in _runs(piece.pointers_N))
    longest = min(max_frames / len(piece.mel_TF), (max_steps - n_runs) / max(n_steps, 1))
    ratio = min(ratio, longest)
    return ratio if ratio >= settings.stretch[0] else 1.0


def _stretch_pointers(pointers_N: np.ndarray, ratio: float, n_frames: int) -> np.ndarray:
    parts = [np.zeros(0, np.int32)]
    for first, count in _runs(pointers_N):
        if first == UNALIGNED:
            parts.append(np.full(max(1, _round(count * ratio)), UNALIGNED, np.int32))
            continue
        start = min(_round(first * ratio), n_frames - 1)
        stop = min(max(_round((first + count) * ratio), start + 1), n_frames)
        parts.append(np.arange(start, stop, dtype=np.int32))
    return np.concatenate(parts)


def _runs(pointers_N: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first pointer, length) of each run that advances by one, or of UNALIGNED frames."""
    if not len(pointers_N):
        return
    step_N = np.diff(pointers_N)
    lost_N = pointers_N == UNALIGNED
    joined_N = np.where(lost_N[1:] | lost_N[:-1], lost_N[1:] & lost_N[:-1], step_N == 1)
    starts = np.append(0, np.flatnonzero(~joined_N) + 1)
    for start, stop in zip(starts, np.append(starts[1:], len(pointers_N)), strict=True):
        yield int(pointers_N[start]), int(stop - start)


def _run_stops(pointers_N: np.ndarray) -> np.ndarray:
    stops = {first + count for first, count in _runs(pointers_N) if first != UNALIGNED}
    return np.array(sorted(stops), np.int64)


def _pointers_inside(pointers_N: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The edit of a window: pointers counted from its start; UNALIGNED frames go with the one before."""
    inside_N = (pointers_N >= start) & (pointers_N < stop)
    lost_N = pointers_N == UNALIGNED
    neighbour_N = np.maximum.accumulate(np.where(lost_N, 0, np.arange(len(pointers_N))))
    kept_N = pointers_N[inside_N[neighbour_N]]
    return np.where(kept_N == UNALIGNED, UNALIGNED, kept_N - start).astype(np.int32)


def _power(mel_TF: np.ndarray, mel: MelSettings) -> np.ndarray:
    """Power of mel frames in units of the floor's."""
    return np.exp(mel_TF * np.float32((mel.ceiling_db - mel.floor_db) * np.log(10.0) / 10.0))


def _add_power(mel_TF: np.ndarray, added_TF: np.ndarray, level_db: float, mel: MelSettings) -> np.ndarray:
    """The mel of a sum of independent signals: powers add. `level_db`: the mean power of the added one."""
    power_TF = _power(mel_TF, mel)
    added_mean = float(added_TF.mean(dtype=np.float64))
    if added_mean > 0.0:
        share = float(power_TF.mean(dtype=np.float64)) * 10.0 ** (level_db / 10.0) / added_mean
        power_TF += added_TF * np.float32(share)
    return _mel(power_TF, mel)


def _mel(power_TF: np.ndarray, mel: MelSettings) -> np.ndarray:
    """Mel frames of a power in units of the floor's, in its place."""
    np.log(power_TF, out=power_TF)
    power_TF *= np.float32(10.0 / np.log(10.0) / (mel.ceiling_db - mel.floor_db))
    return np.clip(power_TF, 0.0, 1.0, out=power_TF)


def _spans(size: int, count: int, longest: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    for _ in range(count):
        length = int(rng.integers(min(longest, size) + 1))
        start = int(rng.integers(size - length + 1))
        yield start, start + length


def _round(value: float) -> int:
    return int(np.floor(value + 0.5))
