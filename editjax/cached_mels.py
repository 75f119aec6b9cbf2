"""Mels and labels that the earlier super editor cached → a recording with its edit.

    features/NAME_raw.npz, NAME_edit.npz    `mel`, and `beat_times` in seconds where they were tracked
    labels/NAME_labels.npy                  an `EditLabel` but PAD for every raw frame, or for every raw beat

Three programs cached mels, of 128 bands all:

    (frames, 128)  44.1 kHz, hop 512   ln of BigVGAN's amplitudes, -11.5 to 2.5 as 0 to 1
    (frames, 128)  22.05 kHz, hop 512  dB below the loudest, -80 to 0 as 0 to 1
    (128, frames)  22.05 kHz, hop 256  the same, or -80 to 0 as they are

The order of the axes tells the last from the others, and these are told apart by beats after the end that
44.1 kHz would have, else by a loudest value below 1 or beats up to that end; once for both files of a pair.

Those at 22.05 kHz have our frames, or every other one is ours, and our bands: they and the differences of
level are exact. The level itself is lost, for every file was scaled to its own peak: the loudest value is put
where recordings have it, and an edit to the level of the raw frames that it keeps.

BigVGAN's become ours approximately: power is taken from amplitudes as though bands were flat, on our bands by
their centres, in our frames by the window. Of 51 recordings the median has half its values within 1.5 dB of
the mel of the recording itself and 90 % within 4.6 dB, the worst within 3.3 and 8.7 dB.

Labels say what is played, not where in the edit: nothing for CUT, twice for each run of LOOP, once for the
rest. Each stretch is laid where the edited mel is most like it, near where the one before it ended, so that
neither frames cut in two nor crossfades nor beats, coarse as they are, add up. How much of the edit then is
alike tells labels that are true (of nine recordings with cuts anywhere 95 % and more with a label a frame,
84 % with a label a beat) from labels of other places (at most 49 %) and from those that are drawn at random
(at most 16 %), as that editor did for long recordings.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from editjax.arrays import read_array, read_arrays
from editjax.beats import BeatSettings, beat_phases, track_beats
from editjax.edits import UNALIGNED, EditLabel, labels_of_beats, labels_of_frames
from editjax.errors import DataError, UsageError
from editjax.mel import MelSettings, band_centres_hz, mel_filterbank
from editjax.pairs import RawFiles
from editjax.records import Edit, Recording, half_phases

STYLE = "produced"  # the one whose labels may say more than what is played
OURS = MelSettings()
BIGVGAN = MelSettings(sample_rate_hz=44100)
BIGVGAN_LN = (-11.5, 2.5)
BELOW_LOUDEST_DB = 80.0
LOUDEST_DB = 32.0
"""The loudest value of a recording whose peak is 0.95: the median of 51 (22 to 39)."""
WINDOW_FRAMES = 8
"""BigVGAN's frames that our window is as long as."""
BEAT_LATE_S = 1.0
"""A beat this long after the end is not of this mel."""
BEATS_END_S = (-1.0, 0.1)
"""From the end of a mel to the last beat, where beats go up to it; rounded to frames it may lie after it."""
BELOW_ONE = 1e-3
"""How far below 1 the loudest value of a mel is that is not relative to it."""
FEW_FRAMES = 8
"""Labels that are so many more or fewer than frames are a label a frame."""
REACH_FRAMES = 43
"""How far a stretch may lie from where the one before it ended: a beat; a short one as far as it is long."""
ALIKE = 0.5
"""Likeness of two frames from which they are the same sound."""


class CachedMel(NamedTuple):
    """A mel of ours (T, F) float32, one frame for `every` of the `frames` cached ones; beats in seconds."""

    mel_TF: np.ndarray
    frames: int
    every: int
    beat_times: np.ndarray


class Labels(NamedTuple):
    """The label of each raw frame; `beat_frames` are the beats that the file has labels of, if it has."""

    label_T: np.ndarray
    beat_frames: np.ndarray | None


class Agreement(NamedTuple):
    """The share of an edit that sounds as its labels say, and what else speaks against them, or nothing."""

    share: float
    doubt: str


class Played(NamedTuple):
    """What each edited frame plays, or UNALIGNED, and how alike the two sound: -1 to 1, 0 where unaligned."""

    pointers_N: np.ndarray
    likeness_N: np.ndarray


def cached_recording(
    files: RawFiles, least_aligned: float, settings: BeatSettings
) -> tuple[Recording, Agreement]:
    """The record of a cached recording with its edit, and how well they agree.

    Raises NoInputError and DataError for files that cannot be used, DataError for labels that less than
    `least_aligned` of the edit agrees with.
    """
    if settings.mel != OURS:
        raise UsageError("cached mels can only become mels of the default settings")
    (edit,) = files.edits
    if edit.edited is None or edit.edits is None:
        raise DataError(f"{files.id}: neither an edited mel nor labels")
    raw, edited = read_mels(files.raw, edit.edited)
    labels = read_labels(edit.edits, raw)
    played = play(raw.mel_TF, edited.mel_TF, labels.label_T)
    agreement = _agreement(played, labels, settings)
    if agreement.share < least_aligned:
        raise DataError(
            f"{edit.edits}: only {agreement.share:.0%} of {edit.edited.name} sounds as these labels say"
            f"{agreement.doubt and f'; they {agreement.doubt}'}; prepare the recordings themselves, "
            "or take them all the same with --least-aligned 0"
        )
    beats = track_beats(raw.mel_TF, settings)
    beat_frames = np.asarray(beats.beat_frames) if labels.beat_frames is None else labels.beat_frames
    labels_of_its_beats = labels_of_beats(labels.label_T, beat_frames)
    mel_NF, gain_db = levelled(edited.mel_TF, raw.mel_TF, played, labels.label_T)
    notes = {"natural": True, "pointers": "labels", "levelled_db": round(gain_db, 2)}
    made = Edit(edit.id, STYLE, played.pointers_N, labels_of_its_beats, mel_NF.astype(np.float16), notes)
    phase_T3 = half_phases(beat_phases(beats, len(raw.mel_TF), settings))
    meta = {
        "sources": [],
        "tempo_bpm": round(float(beats.tempo_bpm), 2),
        "beat_confidence": round(float(beats.confidence), 3),
    }
    mel_TF = raw.mel_TF.astype(np.float16)
    return Recording(files.id, mel_TF, phase_T3, beat_frames, (made,), meta), agreement


def read_mels(*paths: Path) -> list[CachedMel]:
    """The mels of one recording and its edit as ours; DataError where they are none of the three kinds.

    One program cached them: what tells its kind in one file counts for the others.
    """
    found = [_read(path) for path in paths]
    unsure = [file for file in found if not file.transposed]
    told = [_rate_told(file) for file in unsure]
    surest_first = (kind for kind in (OURS, BIGVGAN) if kind in told)  # no other mel has beats so late
    theirs = next(surest_first, None)
    if unsure and theirs is None:
        names = ", ".join(str(file.path) for file in unsure)
        raise DataError(
            f"{names}: neither beats nor values tell if this is of 22.05 kHz or, by BigVGAN, of 44.1 kHz; "
            "prepare the recordings themselves, or cache mels again with beat_times up to their end"
        )
    return [_as_ours(file, MelSettings(hop=256) if file.transposed else theirs or OURS) for file in found]


def read_labels(path: Path, raw: CachedMel) -> Labels:
    """The labels of a raw mel; DataError where they are of another one, or no labels."""
    label = read_array(path)
    if label.ndim != 1 or label.dtype.kind not in "iu" or not label.size:
        raise DataError(f"{path}: not labels; wanted one row of integers, one a raw frame or one a raw beat")
    wrong = label[(label < 0) | (label >= EditLabel.PAD)]
    if wrong.size:
        raise DataError(
            f"{path}: {wrong.size} labels such as {wrong[0]}; they go from 0, CUT, to 6, TRANSITION"
        )
    if not label.any():
        raise DataError(f"{path}: CUT alone; the edit keeps nothing of the recording")
    n_frames = len(raw.mel_TF)
    if abs(len(label) - raw.frames) <= FEW_FRAMES:
        rows = np.minimum(np.arange(0, raw.frames, raw.every), len(label) - 1)
        return Labels(label[rows].astype(np.uint8), None)
    if len(label) != len(raw.beat_times):
        raise DataError(
            f"{path}: {len(label)} labels for {raw.frames} raw frames and {len(raw.beat_times)} raw beats; "
            "make them again"
        )
    beat_frames = np.minimum(np.round(raw.beat_times * OURS.frames_per_second).astype(np.int64), n_frames - 1)
    before = np.arange(0 if label[0] == EditLabel.CUT else n_frames)  # a lead-in goes with the first beat
    return Labels(labels_of_frames(label.astype(np.uint8), beat_frames, before, n_frames), beat_frames)


def play(raw_TF: np.ndarray, edited_NF: np.ndarray, label_T: np.ndarray) -> Played:
    """What the edit plays where, by the labels of the raw frames and by likeness."""
    raw, edited = _outlines(raw_TF), _outlines(edited_NF)
    pointers_N, likeness_N = np.full(len(edited), UNALIGNED, np.int32), np.zeros(len(edited), np.float32)
    end = 0
    for first, stop in stretches(label_T):
        reach = min(REACH_FRAMES, stop - first)
        starts = sorted(range(end - reach, end + reach + 1), key=lambda start: abs(start - end))
        laid = [_laid(start, stop - first, len(edited)) for start in starts]
        fits = [
            float(np.vdot(edited[there], raw[first + there.start - start : first + there.stop - start]))
            for start, there in zip(starts, laid, strict=True)
        ]
        best = int(np.argmax(fits))  # the nearest of several
        start, there = starts[best], laid[best]
        pointers_N[there] = np.arange(there.start, there.stop) - start + first
        end = start + stop - first
    heard = pointers_N >= 0
    likeness_N[heard] = np.einsum("nf,nf->n", edited[heard], raw[pointers_N[heard]])
    return Played(pointers_N, likeness_N)


def stretches(label_T: np.ndarray) -> list[tuple[int, int]]:
    """The spans of raw frames that labels play, in the order of playing."""
    edges = np.flatnonzero(np.diff(label_T.astype(np.int64), prepend=-1, append=-1))
    spans: list[tuple[int, int]] = []
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if label_T[first] == EditLabel.CUT:
            continue
        if spans and spans[-1][1] == first:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((first, stop))
        if label_T[first] == EditLabel.LOOP:
            spans.append((first, stop))
    return spans


def levelled(
    edited_NF: np.ndarray, raw_TF: np.ndarray, played: Played, label_T: np.ndarray
) -> tuple[np.ndarray, float]:
    """The edited mel, as loud in the median of what is kept as the raw one, and the change in dB."""
    same = played.likeness_N >= ALIKE
    same[same] = label_T[played.pointers_N[same]] == EditLabel.KEEP
    before, after = raw_TF[played.pointers_N[same]], edited_NF[same]
    audible = (before > raw_TF.min()) & (after > edited_NF.min())
    gain = float(np.median((before - after)[audible])) if audible.any() else 0.0
    return np.clip(edited_NF + gain, 0.0, 1.0), gain * (OURS.ceiling_db - OURS.floor_db)


class _File(NamedTuple):
    """What lies in a file: a mel (J, F), which it may hold transposed, and beats in seconds."""

    path: Path
    mel_JF: np.ndarray
    transposed: bool
    beat_times: np.ndarray

    @property
    def last_s(self) -> float:
        """The last beat, or the beginning."""
        return float(self.beat_times[-1]) if self.beat_times.size else 0.0


def _read(path: Path) -> _File:
    arrays = read_arrays(path, ["mel"], ["beat_times"])
    mel, beat_times = arrays["mel"], arrays.get("beat_times", np.zeros(0))
    _check_mel(path, mel)
    _check_beats(path, beat_times)
    if mel.shape == (OURS.n_mels, OURS.n_mels) and not beat_times.size:
        raise DataError(f"{path}: {OURS.n_mels} frames of as many bands: nothing tells the axes apart")
    transposed = mel.shape[1] != OURS.n_mels
    return _File(path, mel.T if transposed else mel, transposed, beat_times)


def _rate_told(file: _File) -> MelSettings | None:
    """The kind of a mel (frames, 128) as far as the file itself tells."""
    beyond_s = file.last_s - len(file.mel_JF) / BIGVGAN.frames_per_second
    if beyond_s > BEAT_LATE_S or file.mel_JF.min() < -BELOW_ONE:
        return OURS
    first_s, last_s = BEATS_END_S
    up_to_the_end = file.beat_times.size > 0 and beyond_s >= first_s
    if beyond_s <= last_s and (up_to_the_end or file.mel_JF.max() < 1.0 - BELOW_ONE):
        return BIGVGAN
    return None


def _as_ours(file: _File, theirs: MelSettings) -> CachedMel:
    """The mel, which is of the kind `theirs`."""
    path, cached, last_s = file.path, file.mel_JF, file.last_s
    if last_s > len(cached) / theirs.frames_per_second + BEAT_LATE_S:
        raise DataError(f"{path}: a beat at {last_s:.1f} s, long after the mel's end; cache it again")
    every = round(theirs.frames_per_second / OURS.frames_per_second)
    level_db = _from_bigvgan(path, cached) if theirs is BIGVGAN else _from_loudest(path, cached)[::every]
    mel_TF = np.clip((level_db - OURS.floor_db) / (OURS.ceiling_db - OURS.floor_db), 0.0, 1.0)
    return CachedMel(mel_TF.astype(np.float32), len(cached), every, file.beat_times)


def _check_mel(path: Path, mel: np.ndarray) -> None:
    if mel.ndim != 2 or OURS.n_mels not in mel.shape or not mel.size:
        raise DataError(f"{path}: mel of shape {mel.shape}, wanted (frames, 128) or (128, frames)")
    if mel.dtype.kind != "f":
        raise DataError(f"{path}: mel of {mel.dtype}, wanted floating point numbers")
    if bad := int((~np.isfinite(mel)).sum()):
        raise DataError(f"{path}: mel holds NaN or infinity {bad} times; cache it again")


def _check_beats(path: Path, beat_times: np.ndarray) -> None:
    numbers = beat_times.ndim == 1 and beat_times.dtype.kind in "fiu"
    if not numbers or not np.isfinite(beat_times).all() or (np.diff(beat_times, prepend=0) < 0).any():
        raise DataError(f"{path}: beat_times are not seconds in ascending order; cache it again")


def _check_range(path: Path, mel: np.ndarray, low: float, high: float) -> None:
    margin = 1e-3 * (high - low)
    if mel.min() < low - margin or mel.max() > high + margin:
        raise DataError(
            f"{path}: mel from {mel.min():.4g} to {mel.max():.4g}, wanted {low:g} to {high:g}; cache it again"
        )


def _from_loudest(path: Path, mel_JF: np.ndarray) -> np.ndarray:
    """Values that are relative to the loudest, in dB."""
    if mel_JF.min() < -1.0:
        _check_range(path, mel_JF, -BELOW_LOUDEST_DB, 0.0)
        return mel_JF + LOUDEST_DB
    _check_range(path, mel_JF, 0.0, 1.0)
    return (mel_JF - 1.0) * BELOW_LOUDEST_DB + LOUDEST_DB


def _from_bigvgan(path: Path, mel_JF: np.ndarray) -> np.ndarray:
    """BigVGAN's values as dB of our bands and frames (T, F).

    Their frame j is centred half a hop after ours, number j / 2: of eight frames under our window the fourth
    and the fifth are as near to its middle. Beyond the ends is silence.
    """
    _check_range(path, mel_JF, 0.0, 1.0)
    low, high = BIGVGAN_LN
    amplitude_db = 20.0 / np.log(10.0) * (low + (high - low) * mel_JF.astype(np.float32))
    flat_db = 10.0 * np.log10(mel_filterbank(BIGVGAN).sum(axis=0))  # from a flat band's power to its A²
    theirs_hz, ours_hz = band_centres_hz(BIGVGAN), band_centres_hz(OURS)
    between_FF = np.stack([np.interp(ours_hz, theirs_hz, band) for band in np.eye(OURS.n_mels)])
    power_JF = 10.0 ** (((amplitude_db - flat_db) @ between_FF.astype(np.float32)) / 10.0)
    hann_K = np.sin(np.pi * (np.arange(WINDOW_FRAMES) + 0.5) / WINDOW_FRAMES) ** 2
    weight_K = hann_K**2 / np.square(hann_K).sum()
    around = WINDOW_FRAMES // 2
    padded_JF = np.pad(power_JF, ((around, around - 1), (0, 0)))
    power_TF = sum(w * padded_JF[k : k + len(power_JF) : 2] for k, w in enumerate(weight_K.tolist()))
    return 10.0 * np.log10(np.maximum(power_TF, 1e-10))


def _outlines(mel_TF: np.ndarray) -> np.ndarray:
    """What tells frames apart, of length 1: neither their levels nor what all of them have."""
    outline_TF = mel_TF - mel_TF.mean(axis=0)
    outline_TF -= outline_TF.mean(axis=1, keepdims=True)
    return outline_TF / np.maximum(np.linalg.norm(outline_TF, axis=1, keepdims=True), 1e-9)


def _laid(start: int, length: int, n_frames: int) -> slice:
    """The frames of the edit that a stretch covers which begins at `start`."""
    first = min(max(start, 0), n_frames)
    return slice(first, min(max(start + length, first), n_frames))


def _agreement(played: Played, labels: Labels, settings: BeatSettings) -> Agreement:
    n_played = sum(stop - first for first, stop in stretches(labels.label_T))
    alike = int((played.likeness_N >= ALIKE).sum())
    run_frames = len(labels.label_T) / (1 + np.count_nonzero(np.diff(labels.label_T)))
    random = run_frames < 60.0 / settings.fastest_bpm * OURS.frames_per_second and labels.beat_frames is None
    return Agreement(
        alike / max(n_played, len(played.pointers_N)),
        f"change every {run_frames:.1f} frames, as if drawn at random" if random else "",
    )
