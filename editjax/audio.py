"""Audio files ↔ samples: read in blocks or at random, write safely, convert, resample.

Comes in: a path to WAV, RF64, W64, AIFF, FLAC, OGG (Vorbis, Opus), MP3, CAF or AU, any rate and channels.
Goes out: `samples_SC` in the file's own number type, bit for bit; files that appear whole or not at all.
Sources: libsndfile (https://libsndfile.github.io/libsndfile/), soxr (https://github.com/dofuuz/python-soxr).

Number types: int16 for up to 16 bits, int32 above, float32 and float64 for floats, float32 for lossy codecs.
Tags are kept where libsndfile knows them (not: W64, AU, cue points, pictures, broadcast-wave chunks).
"""

import contextlib
import os
import shutil
import struct
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soundfile
import soxr

from editjax.errors import CannotCreateError, DataError, InputOutputError
from editjax.files import atomic_path, scratch_errors
from editjax.formats import (
    BYTES_PER_SAMPLE,
    DEFAULT_LIMITS,
    INTEGER_BITS,
    LOSSY_COMPRESSION,
    RIFF_FAMILY,
    STATELESS_SUBTYPES,
    AudioInfo,
    AudioLimits,
    InOrderFile,
    checked_info,
    claimed_frames,
    clock,
    convert,
    counted_by_size,
    dtype_of,
    open_audio,
    reason_of,
    to_float,
    too_long,
)

BLOCK_SAMPLES = 1 << 18
SALVAGE_SAMPLES = 256
WAV_LIMIT_BYTES = (1 << 32) - (1 << 20)
"""Largest WAV body written before turning to RF64: 4 GiB less room for the header and tags."""

MP3_SLACK_SAMPLES = 2 * 1152
"""Some encoders count a packet too many in the header: two packets are not missed."""

CODEC_BLOCK_SAMPLES = 1 << 15
"""libsndfile's Vorbis encoder keeps a whole write on the stack: writes of millions of samples crash it."""

TAG_NAMES = ("title", "artist", "album", "tracknumber", "date", "genre", "comment", "copyright", "license")


class Reader:
    """A file's samples in its own number type, in order (`blocks`) or at random (`read`), bit for bit.

    Decoders that carry state from packet to packet (Vorbis, Opus, MP3, ADPCM, ALAC) may give other samples
    after a seek than in sequence (Vorbis is wrong for up to 1,000). `read` decodes such files once,
    in order, into an unlinked temporary file (in $TMPDIR) that grows only as far as is asked for.
    `blocks` and `read` share no file and may run in two threads.

    `allow_truncated` takes what a damaged file still holds instead of raising DataError.
    """

    info: AudioInfo
    dtype: np.dtype
    tags: Mapping[str, str]

    def __init__(
        self,
        path: str | os.PathLike[str],
        limits: AudioLimits = DEFAULT_LIMITS,
        allow_truncated: bool = False,
    ) -> None:
        self._path, self._limits, self._allow_truncated = Path(path), limits, allow_truncated
        with open_audio(self._path) as file:
            self.info = checked_info(self._path, file, limits)
            self.tags = {name: value for name in TAG_NAMES if (value := getattr(file, name))}
            self._claimed_frames = claimed_frames(self._path, file)
            self._counted = counted_by_size(self.info, file)
        self.dtype = dtype_of(self.info.subtype)
        self._seek_is_exact = self._counted is not None
        self._file: soundfile.SoundFile | None = None
        self._spool: _Spool | None = None
        if self._counted is not None:
            self._check_count(self._counted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def frames(self) -> int:
        """The true number of samples a channel; a format that cannot be counted by size is decoded once."""
        if self._counted is None:
            for _ in self.blocks():
                pass
        assert self._counted is not None
        return self._counted

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        """Samples [start, stop) as (S, C) in `dtype`. ValueError beyond the end, DataError on bad content."""
        _check_range(start_sample, stop_sample, self.frames)
        if self._seek_is_exact:
            samples_SC = self._read_by_seeking(start_sample, stop_sample)
        else:
            if self._spool is None:
                self._spool = _Spool(self._decode(BLOCK_SAMPLES), self.info.channels, self.dtype)
            samples_SC = self._spool.read(start_sample, stop_sample)
        if len(samples_SC) != stop_sample - start_sample:
            raise DataError(f"{self._path}: became shorter while it was read; run again")
        _refuse_non_finite(samples_SC, start_sample, self._path, self.info.sample_rate_hz)
        return samples_SC

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """The whole file in order as (≤ block_samples, C) arrays in `dtype`, counted as it goes.

        Raises DataError on NaN or Inf, on a file shorter than its header promises, and beyond the limits.
        """
        position = 0
        for samples_SC in self._decode(block_samples):
            _refuse_non_finite(samples_SC, position, self._path, self.info.sample_rate_hz)
            position += len(samples_SC)
            yield samples_SC
        self._check_count(position)
        self._counted = position

    def close(self) -> None:
        """Releases the file and the temporary decode; reading again opens them again."""
        if self._file is not None:
            self._file.close()
        if self._spool is not None:
            self._spool.close()
        self._file = self._spool = None

    def _read_by_seeking(self, start_sample: int, stop_sample: int) -> np.ndarray:
        if self._file is None:
            self._file = open_audio(self._path)
        try:
            self._file.seek(start_sample)
            return self._file.read(stop_sample - start_sample, dtype=self.dtype.name, always_2d=True)
        except soundfile.SoundFileError as error:
            raise self._damaged(start_sample, error) from None

    def _decode(self, block_samples: int) -> Generator[np.ndarray, None, None]:
        """Blocks in order up to the end, or up to the last sample before damage."""
        position, limit = 0, int(self._limits.max_duration_s * self.info.sample_rate_hz)
        with open_audio(self._path, InOrderFile) as file:
            while True:
                try:
                    samples_SC = file.read(block_samples, dtype=self.dtype.name, always_2d=True)
                except soundfile.SoundFileError as error:
                    yield from self._salvage(position, error)
                    return
                if not len(samples_SC):
                    return
                position += len(samples_SC)
                if position > limit:
                    raise too_long(self._path, position, self.info.sample_rate_hz, self._limits)
                yield samples_SC

    def _salvage(self, position: int, cause: Exception) -> Iterator[np.ndarray]:
        """What can be had from `position` to the damage, in small pieces; then DataError unless allowed."""
        with open_audio(self._path, InOrderFile) as file, contextlib.suppress(soundfile.SoundFileError):
            for skipped in range(0, position, BLOCK_SAMPLES):
                file.read(min(BLOCK_SAMPLES, position - skipped), dtype=self.dtype.name)
            while len(samples_SC := file.read(SALVAGE_SAMPLES, dtype=self.dtype.name, always_2d=True)):
                position += len(samples_SC)
                yield samples_SC
        if not self._allow_truncated:
            raise self._damaged(position, cause)

    def _damaged(self, position: int, cause: Exception) -> DataError:
        rate_hz, claimed = self.info.sample_rate_hz, self._claimed_frames
        promised = f" of the {clock(claimed, rate_hz)} its header promises" if claimed else ""
        return DataError(
            f"{self._path}: the file is truncated or damaged; it can be decoded up to "
            f"{clock(position, rate_hz)}{promised} ({reason_of(cause)}); "
            "re-copy it, or take what is there with --allow-truncated"
        )

    def _check_count(self, counted: int) -> None:
        """Refuses an empty file and one shorter than its header promises."""
        if counted == 0:
            raise DataError(f"{self._path}: holds no samples; re-export or re-copy it")
        slack = MP3_SLACK_SAMPLES if self.info.container == "MP3" else 0
        if counted < self._claimed_frames - slack and not self._allow_truncated:
            rate_hz = self.info.sample_rate_hz
            raise DataError(
                f"{self._path}: the file is truncated; it holds {clock(counted, rate_hz)} of the "
                f"{clock(self._claimed_frames, rate_hz)} its header promises; "
                "re-copy it, or take what is there with --allow-truncated"
            )


class ArrayReader(Reader):
    """The same surface over samples in memory: (S,) or (S, C), int16, int32, float32 or float64."""

    def __init__(self, samples: np.ndarray, sample_rate_hz: int) -> None:
        samples = np.asarray(samples)
        samples_SC = samples[:, None] if samples.ndim == 1 else samples
        subtypes = {"int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT", "float64": "DOUBLE"}
        if samples_SC.ndim != 2 or samples_SC.dtype.name not in subtypes or not samples_SC.size:
            raise DataError(
                f"samples of shape {samples.shape} and type {samples.dtype}: give a non-empty (samples,) or "
                f"(samples, channels) array of {', '.join(subtypes)}"
            )
        if samples_SC.shape[1] > DEFAULT_LIMITS.max_channels:
            raise DataError(
                f"samples of shape {samples.shape}: at most {DEFAULT_LIMITS.max_channels} channels are "
                "accepted; is it (channels, samples)? transpose it"
            )
        if sample_rate_hz < DEFAULT_LIMITS.min_sample_rate_hz:
            raise DataError(
                f"samples: a sample rate of {sample_rate_hz} Hz; at least "
                f"{DEFAULT_LIMITS.min_sample_rate_hz} is accepted"
            )
        self._samples_SC, self.dtype, self.tags = samples_SC, samples_SC.dtype, {}
        frames, channels = samples_SC.shape
        subtype = subtypes[self.dtype.name]
        self.info = AudioInfo(Path("<samples>"), "WAV", subtype, int(sample_rate_hz), channels, frames)

    @property
    def frames(self) -> int:
        """The number of samples a channel."""
        return len(self._samples_SC)

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        """Samples [start, stop) as (S, C), copied. Raises ValueError beyond the end, DataError on NaN."""
        _check_range(start_sample, stop_sample, self.frames)
        samples_SC = self._samples_SC[start_sample:stop_sample].copy()
        _refuse_non_finite(samples_SC, start_sample, self.info.path, self.info.sample_rate_hz)
        return samples_SC

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """The whole array in order."""
        for start in range(0, self.frames, block_samples):
            yield self.read(start, min(start + block_samples, self.frames))

    def close(self) -> None:
        """Nothing to release."""


class _Spool:
    """Decoded samples in an unlinked temporary file that grows as far as is read."""

    def __init__(self, blocks: Generator[np.ndarray, None, None], channels: int, dtype: np.dtype) -> None:
        self._blocks, self._channels, self._dtype = blocks, channels, dtype
        with scratch_errors():
            self._file = tempfile.TemporaryFile(prefix="editjax-")  # noqa: SIM115 (closed with the reader)
        self._frame_bytes = channels * dtype.itemsize
        self._filled = 0

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        with scratch_errors():
            while self._filled < stop_sample and (block := next(self._blocks, None)) is not None:
                self._file.seek(self._filled * self._frame_bytes)
                self._file.write(block.tobytes())
                self._filled += len(block)
            self._file.seek(start_sample * self._frame_bytes)
            data = self._file.read((stop_sample - start_sample) * self._frame_bytes)
        return np.frombuffer(data, self._dtype).reshape(-1, self._channels).copy()

    def close(self) -> None:
        self._blocks.close()
        self._file.close()


class Writer:
    """Writes one audio file that appears under its name only when it is complete. A context manager.

    `write` takes (S, C) or, for one channel, (S,): the file's own number type passes bit for bit, others are
    converted (rounded, saturated). A WAV that outgrows 4 GiB becomes an RF64; `expected_frames`, where the
    length is known before, saves copying it over. Lossy formats use LOSSY_COMPRESSION.
    Entering raises CannotCreateError (exists, is an input, no such folder, a rate or channel count the format
    cannot hold); writing and leaving raise InputOutputError (disk full) and DataError (NaN, Inf).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sample_rate_hz: int,
        channels: int,
        container: str,
        subtype: str,
        overwrite: bool = False,
        inputs: Iterable[str | os.PathLike[str]] = (),
        tags: Mapping[str, str] | None = None,
        expected_frames: int = 0,
    ) -> None:
        self.path, self.dtype, self.frames = Path(path), dtype_of(subtype), 0
        self._rate_hz, self._channels, self._subtype = sample_rate_hz, channels, subtype
        self._overwrite, self._inputs, self._tags = overwrite, tuple(inputs), dict(tags or {})
        self._frame_bytes = channels * BYTES_PER_SAMPLE.get(subtype, 4)
        outgrows = container in RIFF_FAMILY and expected_frames * self._frame_bytes > WAV_LIMIT_BYTES
        self._container = "RF64" if outgrows else container

    def __enter__(self) -> "Writer":
        with contextlib.ExitStack() as stack:
            self._temporary = stack.enter_context(atomic_path(self.path, self._overwrite, self._inputs))
            self._file = self._create(self._temporary)
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, samples_SC: np.ndarray) -> None:
        """Appends samples."""
        samples_SC = samples_SC[:, None] if samples_SC.ndim == 1 else samples_SC
        _refuse_non_finite(samples_SC, self.frames, self.path, self._rate_hz)
        samples_SC = convert(samples_SC, self.dtype, INTEGER_BITS.get(self._subtype, 0))
        end_bytes = (self.frames + len(samples_SC)) * self._frame_bytes
        if self._container in {"WAV", "WAVEX"} and end_bytes > WAV_LIMIT_BYTES:
            self._continue_as_rf64()
        self._append(samples_SC)
        self.frames += len(samples_SC)

    def _create(self, path: Path) -> soundfile.SoundFile:
        try:
            file = soundfile.SoundFile(
                str(path), "w", self._rate_hz, self._channels, self._subtype,
                format=self._container, compression_level=LOSSY_COMPRESSION.get(self._subtype),
            )  # fmt: skip
        except (soundfile.SoundFileError, ValueError, TypeError) as error:
            raise CannotCreateError(
                f"{self.path}: {self._container} {self._subtype} cannot hold {self._channels} channel(s) at "
                f"{self._rate_hz} Hz ({reason_of(error)}); name the output .wav or .flac"
            ) from None
        for name, value in self._tags.items():
            with contextlib.suppress(soundfile.SoundFileError):  # the container has no place for this tag
                setattr(file, name, value)
        return file

    def _append(self, samples_SC: np.ndarray) -> None:
        step = BLOCK_SAMPLES if self._subtype in STATELESS_SUBTYPES else CODEC_BLOCK_SAMPLES
        try:
            for start in range(0, len(samples_SC), step):
                self._file.write(np.ascontiguousarray(samples_SC[start : start + step]))
        except (soundfile.SoundFileError, AssertionError) as error:  # soundfile asserts that all was written
            raise self._write_failed(reason_of(error)) from None

    def _continue_as_rf64(self) -> None:
        """Closes the WAV, copies it into an RF64 under the same temporary name and goes on there."""
        self._container = "RF64"
        self._file.close()
        outgrown = self._temporary.with_name(self._temporary.name + ".outgrown")
        os.replace(self._temporary, outgrown)
        try:
            self._file = self._create(self._temporary)
            with soundfile.SoundFile(str(outgrown)) as source:
                while len(samples_SC := source.read(BLOCK_SAMPLES, dtype=self.dtype.name, always_2d=True)):
                    self._append(samples_SC)
        finally:
            outgrown.unlink()

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file and counts what arrived: encoders report a full disk late or not at all."""
        try:
            self._file.close()
            if self._container == "AIFF" and self._frame_bytes * self.frames % 2:
                _uncount_pad_byte(self._temporary, self.frames, self._frame_bytes)
            if kind is None and self.frames and soundfile.info(str(self._temporary)).frames < self.frames:
                raise self._write_failed("less arrived than was written")
        except soundfile.SoundFileError as close_error:
            if kind is None:
                raise self._write_failed(reason_of(close_error)) from None

    def _write_failed(self, reason: str) -> InputOutputError:
        free_mb = shutil.disk_usage(self.path.parent).free / 1e6
        return InputOutputError(
            f"{self.path}: writing failed after {clock(self.frames, self._rate_hz)} ({reason}, "
            f"{free_mb:.0f} MB free); free space or choose another folder"
        )


def to_mono_float(samples_SC: np.ndarray) -> np.ndarray:
    """The mean over channels as float32 (S,)."""
    samples_SC = to_float(samples_SC)
    return samples_SC if samples_SC.ndim == 1 else samples_SC.mean(axis=1, dtype=np.float32)


def resample_stream(
    blocks: Iterable[np.ndarray], rate_in_hz: int, rate_out_hz: int, channels: int = 1
) -> Iterator[np.ndarray]:
    """Blocks (S, C) or (S,) of any type, resampled (soxr HQ), as float32: mixed to mono (S,), or with all
    `channels` (S, C)."""
    parts = (to_mono_float(block) if channels == 1 else to_float(block) for block in blocks)
    if rate_in_hz == rate_out_hz:
        yield from parts
        return
    stream = soxr.ResampleStream(rate_in_hz, rate_out_hz, channels, dtype="float32", quality="HQ")
    for part in parts:
        if len(resampled := stream.resample_chunk(part)):
            yield resampled
    nothing = np.empty((0,) if channels == 1 else (0, channels), np.float32)
    if len(resampled := stream.resample_chunk(nothing, last=True)):
        yield resampled


def _uncount_pad_byte(aiff_path: Path, frames: int, frame_bytes: int) -> None:
    """Puts right an AIFF of odd length: libsndfile counts the byte it pads with as an 8-bit sample."""
    with aiff_path.open("r+b") as file:
        head = file.read(1 << 16)
        for chunk, offset, count in ((b"COMM", 10, frames), (b"SSND", 4, frames * frame_bytes + 8)):
            if (at := head.find(chunk)) >= 0:
                file.seek(at + offset)
                file.write(struct.pack(">I", count))


def _check_range(start_sample: int, stop_sample: int, frames: int) -> None:
    if not 0 <= start_sample <= stop_sample <= frames:
        raise ValueError(f"samples {start_sample} to {stop_sample} are not inside 0 to {frames}")


def _refuse_non_finite(samples_SC: np.ndarray, first_sample: int, path: Path, rate_hz: int) -> None:
    if samples_SC.dtype.kind != "f" or np.isfinite(samples_SC).all():
        return
    at, channel = np.argwhere(~np.isfinite(samples_SC))[0]
    value = "NaN" if np.isnan(samples_SC[at, channel]) else "infinite"
    sample = first_sample + int(at)
    raise DataError(
        f"{path}: sample {sample} of channel {channel + 1} (at {clock(sample, rate_hz)}) is {value}; "
        "repair or re-export the file"
    )
