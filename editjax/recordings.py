"""A folder of recordings goes in, a library of music, speech and noises for sessions comes out.

What a file is follows from the folder's `manifest.csv` (columns `file` and `kind`) if there is one, else from
the name of the folder it lies in; what is neither speech nor noise is music. Files of one song or series (a
*family*) always fall into the same split, so that training, validation and held-out recordings are disjoint.
"""

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from editjax.audio import Reader, resample_stream, to_mono_float
from editjax.errors import DataError, NoInputError, UsageError
from editjax.formats import CONTAINER_OF_SUFFIX
from editjax.performance import TAKE_LEVEL
from editjax.studio import levelled, noise, room_tone, talk

SPLITS = ("train", "valid", "test")
SPLIT_PERCENT = (70, 10, 20)
SPLIT_SALT = "454"
"""Chosen before any training so that each split of our recordings has songs, phrases, speech and noises."""
SONG_S = 30.0
"""Music at least this long is cut into sections; shorter pieces are phrases to build sections from."""
MIN_PHRASES_S = 5.0
MAX_READ_S = 600.0
KEPT_IN_MEMORY = 64
REAL_TALK_SHARE = 0.75
REAL_NOISE_SHARE = 0.6
REAL_AMBIENCE_SHARE = 0.35
_KIND_WORDS = {
    "speech": ("speech", "voice", "talk", "spoken"),
    "noise": ("noise", "noises", "sfx", "fx", "ambience", "foley"),
}


class Recording(NamedTuple):
    """A file of the library: `name` is its path inside the folder, with forward slashes."""

    path: Path
    name: str
    kind: str
    seconds: float


class Library(NamedTuple):
    """The recordings of one split by use; `songs` are lists of one file, or of the stems of one song."""

    songs: tuple[tuple[Recording, ...], ...]
    phrases: tuple[tuple[Recording, ...], ...]
    speech: tuple[Recording, ...]
    noises: tuple[Recording, ...]


def family_of(name: str) -> str:
    """The song or series of a file: its name up to `__`, else its words before the first with a digit."""
    stem = re.sub(r"\.[^.]*$", "", name.rsplit("/", 1)[-1]).lower()
    if stems := re.match(r"(.+?)__.", stem):
        return stems[1]
    first, *words = [word for word in re.split(r"[\s_\-]+", stem) if word] or [stem]
    kept = [first.rstrip("0123456789") or first]
    for word in words:
        if any(letter.isdigit() for letter in word):
            break
        kept.append(word)
    return "-".join(kept)


def split_of(name: str) -> str:
    """`train` (70 %), `valid` (10 %) or `test` (20 % of families), by a hash of the family's name."""
    return split_of_family(family_of(name))


def split_of_family(family: str) -> str:
    """The split of all files of a family."""
    digest = hashlib.sha256(f"{SPLIT_SALT}:{family}".encode()).digest()
    percent = int.from_bytes(digest[:4], "big") % 100
    for split, edge in zip(SPLITS, np.cumsum(SPLIT_PERCENT), strict=True):
        if percent < edge:
            return split
    raise AssertionError("the percentages of the splits add up to 100")


@lru_cache(maxsize=8)
def scan(folder: Path, split: str = "") -> Library:
    """The library in a folder and its subfolders; `split` "" takes every file.

    Raises NoInputError when there is no such folder or no audio file in it, UsageError for an unknown split.
    """
    if split and split not in SPLITS:
        raise UsageError(f"split {split!r} is unknown: choose from {', '.join(SPLITS)}")
    if not folder.is_dir():
        raise NoInputError(f"{folder}: no such folder of recordings; check --recordings")
    rows = manifest_rows(folder)
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in CONTAINER_OF_SUFFIX and p.is_file())
    if not paths:
        raise NoInputError(f"{folder}: holds no audio file; give a folder of recordings")
    names = [path.relative_to(folder).as_posix() for path in paths]
    found = [
        Recording(path, name, kind_of(name, rows), _seconds(path))
        for path, name in zip(paths, names, strict=True)
        if not split or split_of(name) == split
    ]
    music = [recording for recording in found if recording.kind == "music"]
    families: dict[str, list[Recording]] = {}
    for recording in music:
        families.setdefault(family_of(recording.name), []).append(recording)
    songs: list[tuple[Recording, ...]] = []
    phrases: list[tuple[Recording, ...]] = []
    for members in families.values():
        long = [recording for recording in members if recording.seconds >= SONG_S]
        if long and all("__" in recording.path.stem for recording in long):
            songs.append(tuple(long))
        else:
            songs += [(recording,) for recording in long]
        short = tuple(recording for recording in members if 1.0 <= recording.seconds < SONG_S)
        if sum(recording.seconds for recording in short) >= MIN_PHRASES_S:
            phrases.append(short)
    return Library(
        tuple(songs),
        tuple(phrases),
        tuple(recording for recording in found if recording.kind == "speech"),
        tuple(recording for recording in found if recording.kind == "noise"),
    )


def load(recording: Recording, rate_hz: int) -> np.ndarray:
    """Mono float32 samples (S,) of a recording's first MAX_READ_S at a rate, kept for the next call."""
    return _load(os.fspath(recording.path), rate_hz).astype(np.float32) / np.float32(32767.0)


class RecordedSurroundings:
    """Talk and noises from a library, mixed with synthetic ones; `used` names the files played."""

    def __init__(self, library: Library, rate_hz: int):
        self._library = library
        self._rate_hz = rate_hz
        self.used: list[str] = []

    def talk(self, length_s: float, rng: np.random.Generator) -> np.ndarray:
        """A stretch of real speech (its speed and pitch varied), or babble."""
        if not self._library.speech or rng.random() > REAL_TALK_SHARE:
            return talk(length_s, self._rate_hz, rng)
        speech_S = self._excerpt(self._library.speech, length_s * 1.15, rng)
        ratio = rng.uniform(0.88, 1.14)
        position_S = np.arange(0.0, len(speech_S) - 1, ratio)
        voice_S = np.interp(position_S, np.arange(len(speech_S)), speech_S).astype(np.float32)
        return levelled(_faded(voice_S, int(0.03 * self._rate_hz)), rng.uniform(-13.0, 1.0))

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """A real noise of up to three seconds, or a synthetic one."""
        if not self._library.noises or rng.random() > REAL_NOISE_SHARE:
            return noise(self._rate_hz, rng)
        noise_S = self._excerpt(self._library.noises, float(rng.uniform(0.3, 3.0)), rng)
        return levelled(_faded(noise_S, int(0.01 * self._rate_hz)), rng.uniform(-16.0, 2.0))

    def room_tone(self, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        """A synthetic noise floor, in some sessions with a long noise recording looped under it."""
        tone_S = room_tone(n_samples, self._rate_hz, rng)
        long = [recording for recording in self._library.noises if recording.seconds >= 8.0]
        if not long or rng.random() > REAL_AMBIENCE_SHARE:
            return tone_S
        chosen = long[rng.integers(len(long))]
        self.used.append(chosen.name)
        tile_S = load(chosen, self._rate_hz)
        fade = int(0.5 * self._rate_hz)
        ramp_S = np.linspace(0.0, 1.0, fade, dtype=np.float32)
        looped_S = tile_S[fade:].copy()
        looped_S[-fade:] = looped_S[-fade:] * np.sqrt(1.0 - ramp_S) + tile_S[:fade] * np.sqrt(ramp_S)
        level = TAKE_LEVEL * 10 ** (rng.uniform(-62.0, -42.0) / 20) / max(float(looped_S.std()), 1e-9)
        return tone_S + np.resize(looped_S, n_samples) * np.float32(level)

    def _excerpt(
        self, choices: tuple[Recording, ...], length_s: float, rng: np.random.Generator
    ) -> np.ndarray:
        """A stretch that holds the loudest of four random places, so that it is seldom a pause."""
        chosen = choices[rng.integers(len(choices))]
        if chosen.name not in self.used:
            self.used.append(chosen.name)
        samples_S = load(chosen, self._rate_hz)
        length = min(len(samples_S), int(length_s * self._rate_hz))
        starts = rng.integers(0, len(samples_S) - length + 1, 4)
        start = max(starts, key=lambda at: float(np.square(samples_S[at : at + length]).sum()))
        return samples_S[start : start + length]


def _faded(samples_S: np.ndarray, ramp: int) -> np.ndarray:
    """The samples with ramps at both ends."""
    ramp = max(1, min(ramp, len(samples_S) // 2))
    faded_S = samples_S.copy()
    edge_S = np.linspace(0.0, 1.0, ramp, dtype=np.float32)
    faded_S[:ramp] *= edge_S
    faded_S[-ramp:] *= edge_S[::-1]
    return faded_S


@lru_cache(maxsize=KEPT_IN_MEMORY)
def _load(path: str, rate_hz: int) -> np.ndarray:
    """Samples as int16: half the memory of float32, and finer than the simulated noise floors."""
    with Reader(path) as reader:
        most = int(MAX_READ_S * reader.info.sample_rate_hz)
        mono = (to_mono_float(block_SC) for block_SC in _first(reader.blocks(), most))
        pieces = list(resample_stream(mono, reader.info.sample_rate_hz, rate_hz))
    samples_S = np.concatenate(pieces) if pieces else np.zeros(1, np.float32)
    return np.round(np.clip(samples_S, -1.0, 1.0) * 32767.0).astype(np.int16)


def _first(blocks: Iterable[np.ndarray], most: int) -> Iterator[np.ndarray]:
    """The blocks that begin within the first `most` samples."""
    read = 0
    for block_SC in blocks:
        yield block_SC
        read += len(block_SC)
        if read >= most:
            return


def manifest_rows(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of a folder's manifest.csv by file; none where there is none. DataError for no table."""
    path = folder / "manifest.csv"
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["file"]: row for row in csv.DictReader(file) if row.get("file")}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is not a table of text in UTF-8 ({error}); save it as one") from None


def kind_of(name: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    """One of music, speech, noise: from what the manifest calls a file, or else from its folder's name."""
    if name in rows:
        return _kind(rows[name].get("kind") or "")
    return _kind(name.rsplit("/", 2)[-2] if "/" in name else "")


def _kind(word: str) -> str:
    for kind, words in _KIND_WORDS.items():
        if word.lower() in words:
            return kind
    return "music"


def _seconds(path: Path) -> float:
    with Reader(path) as reader:
        header = reader.info.header_frames
        return (header or reader.frames) / reader.info.sample_rate_hz
