"""Several recordings of one session, sample-locked, heard as their sum.

Comes in: the readers of the tracks. Goes out: a `Reader` of their sum, and each track as long as the longest.
So one edit list can be decided on the sum and played on every track. Memory: one block a track.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np

from editjax.audio import BLOCK_SAMPLES, Reader
from editjax.errors import DataError, UsageError
from editjax.formats import AudioInfo, to_float


class Mix(Reader):
    """The sum of several recordings in float64, ±1 being full scale of each; it may go beyond without harm.

    As long as the longest, the others being silent from their end on. A mono track is heard on every channel
    of the sum, unscaled. Raises DataError naming the track whose rate or channels do not fit the others'.
    `path` is what errors and reports call the sum.
    """

    def __init__(self, readers: Sequence[Reader], path: Path) -> None:
        if not readers:
            raise UsageError("no tracks: give at least one recording")
        self.readers = tuple(readers)
        infos = [reader.info for reader in readers]
        rate_hz = _agreed(infos, [info.sample_rate_hz for info in infos], "sample rate", "Hz")
        wide = [info for info in infos if info.channels > 1]
        channels = _agreed(wide, [info.channels for info in wide], "number of channels", "(or mono)")
        self.info = AudioInfo(
            path, "WAV", "FLOAT", rate_hz or 0, channels or 1, max(info.header_frames for info in infos)
        )
        self.dtype, self.tags = np.dtype(np.float64), {}

    @property
    def frames(self) -> int:
        """The number of samples a channel: those of the longest track."""
        return max(reader.frames for reader in self.readers)

    @cached_property
    def tracks(self) -> tuple[Reader, ...]:
        """Each track in its own number type and channels, as long as the sum."""
        return tuple(_Lengthened(reader, self.frames) for reader in self.readers)

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        """Samples [start, stop) of the sum, float64 (S, C). Raises as the tracks' readers do."""
        return self._sum(track.read(start_sample, stop_sample) for track in self.tracks)

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """The whole sum in order as (≤ block_samples, C) arrays; every track is read once."""
        streams = [_even(reader.blocks(block_samples), block_samples) for reader in self.readers]
        for parts in zip_longest(*streams):
            yield self._sum(part for part in parts if part is not None)

    def close(self) -> None:
        """Releases the tracks' files."""
        for reader in self.readers:
            reader.close()

    def _sum(self, parts: Iterable[np.ndarray]) -> np.ndarray:
        """The sum of a stretch of all tracks, each (≤ S, C or 1)."""
        sum_SC = np.zeros((0, self.info.channels))
        for part_SC in parts:
            if len(part_SC) > len(sum_SC):
                sum_SC = np.pad(sum_SC, ((0, len(part_SC) - len(sum_SC)), (0, 0)))
            sum_SC[: len(part_SC)] += to_float(part_SC, np.float64)
        return sum_SC


def folder_of(paths: Iterable[Path]) -> Path:
    """The folder that recordings lie in, or the nearest that all lie below."""
    return Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))


class _Lengthened(Reader):
    """A recording with silence after it, to a length."""

    def __init__(self, reader: Reader, frames: int) -> None:
        self.info, self.dtype, self.tags = reader.info, reader.dtype, reader.tags
        self._reader, self._frames = reader, frames

    @property
    def frames(self) -> int:
        """The number of samples a channel, silence included."""
        return self._frames

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        """Samples [start, stop) as (S, C) in `dtype`, zeros beyond the recording."""
        last = self._reader.frames
        samples_SC = self._reader.read(min(start_sample, last), min(stop_sample, last))
        return np.pad(samples_SC, ((0, stop_sample - start_sample - len(samples_SC)), (0, 0)))

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """The recording and its silence in order."""
        for start in range(0, self.frames, block_samples):
            yield self.read(start, min(start + block_samples, self.frames))

    def close(self) -> None:
        """Releases the recording's file."""
        self._reader.close()


def _agreed(infos: Sequence[AudioInfo], values: Sequence[int], what: str, unit: str) -> int | None:
    """The value all have, None without any. Raises DataError naming the first that most others contradict."""
    if not values:
        return None
    usual = Counter(values).most_common(1)[0][0]
    for info, value in zip(infos, values, strict=True):
        if value != usual:
            raise DataError(
                f"{info.path}: its {what} is {value}, the other tracks' is {usual} {unit}; "
                "convert it, or move it to another folder"
            )
    return usual


def _even(blocks: Iterable[np.ndarray], block_samples: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of exactly that length, but for the last."""
    kept: list[np.ndarray] = []
    for samples_SC in blocks:
        kept.append(samples_SC)
        while sum(map(len, kept)) >= block_samples:
            joined_SC = np.concatenate(kept)
            yield joined_SC[:block_samples]
            kept = [joined_SC[block_samples:]]
    if any(map(len, kept)):
        yield np.concatenate(kept)
