"""Audio files ↔ samples: probe, read in blocks or at random, write safely, resample.

Comes in: a path to WAV, RF64, W64, AIFF, FLAC, OGG (Vorbis, Opus), MP3, CAF or AU, any rate and channel count.
Goes out: `samples_SC` in the file's own number type, bit for bit, and files that appear whole or not at all.
Sources: libsndfile (https://libsndfile.github.io/libsndfile/), soxr (https://github.com/dofuuz/python-soxr).

Headers lie: lengths are counted while reading, and nothing is ever allocated by what a header claims.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import soundfile
import soxr

from editjax.errors import CannotCreateError, DataError, InputOutputError, NoInputError

BLOCK_SAMPLES = 1 << 18
WAV_LIMIT_BYTES = (1 << 32) - (1 << 20)
"""Largest WAV body we write before turning to RF64: 4 GiB less room for the header and tags."""

CODEC_BLOCK_SAMPLES = 1 << 15
"""libsndfile's Vorbis encoder keeps a whole write on the stack: larger writes crash it."""

UNKNOWN_FRAMES = 1 << 62
STREAMED_BYTES = ((1 << 32) - (1 << 16), (1 << 31) - (1 << 16))
"""Programs that write to a pipe put a length just under 4 GiB or 2 GiB into the header: it means "unknown"."""

CONTAINER_OF_SUFFIX = {
    ".wav": "WAV", ".wave": "WAV", ".bwf": "WAV", ".rf64": "RF64", ".w64": "W64",
    ".aif": "AIFF", ".aiff": "AIFF", ".aifc": "AIFF", ".flac": "FLAC",
    ".ogg": "OGG", ".oga": "OGG", ".opus": "OGG", ".mp3": "MP3", ".caf": "CAF", ".au": "AU", ".snd": "AU",
}  # fmt: skip
INTEGER_BITS = {
    "PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32,
    "ALAC_16": 16, "ALAC_20": 20, "ALAC_24": 24, "ALAC_32": 32, "ULAW": 16, "ALAW": 16,
}  # fmt: skip
BYTES_PER_SAMPLE = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}
STATELESS_SUBTYPES = {*(s for s in INTEGER_BITS if not s.startswith("ALAC")), "FLOAT", "DOUBLE"}
RIFF_FAMILY = {"WAV", "WAVEX", "RF64"}
LOSSY_COMPRESSION = {"VORBIS": 0.2, "OPUS": 0.6, "MPEG_LAYER_III": 0.0}
"""libsndfile's 0 (best) … 1 (smallest): Vorbis quality 8, Opus about 106 kbit/s a channel, MP3's best setting."""

WRITABLE_SUBTYPES = {*INTEGER_BITS, *LOSSY_COMPRESSION, "FLOAT", "DOUBLE"}
TAG_NAMES = ("title", "artist", "album", "tracknumber", "date", "genre", "comment", "copyright", "license")
MEDIUM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@dataclass(frozen=True)
class AudioLimits:
    """What is refused before any work is done."""

    max_duration_s: float = 12 * 3600
    max_channels: int = 64
    max_sample_rate_hz: int = 768_000


class AudioInfo(NamedTuple):
    """What a file says of itself; `header_frames` is a claim, 0 when the header does not say."""

    path: Path
    container: str
    subtype: str
    sample_rate_hz: int
    channels: int
    header_frames: int


def probe(path: str | os.PathLike[str], limits: AudioLimits = AudioLimits()) -> AudioInfo:
    """Reads a file's header. Raises NoInputError (missing, unreadable) or DataError (content, limits)."""
    with _open(Path(path)) as file:
        return _checked_info(Path(path), file, limits)


class _ReaderSurface:
    """What file and array readers share: the context manager, and blocks of a number type."""

    info: AudioInfo
    dtype: np.dtype
    tags: Mapping[str, str]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the file; reading again opens it again."""


class Reader(_ReaderSurface):
    """A file's samples in its own number type, in order (`blocks`) or at random (`read`), bit for bit.

    Formats whose decoders carry state from packet to packet (Vorbis, Opus, MP3, ADPCM, ALAC) do not give the
    same samples after a seek as in sequence. `read` therefore decodes them once, in order, into an unlinked
    temporary file ($TMPDIR, 4 bytes a sample) that grows only as far as is asked for.
    `blocks` and `read` share nothing and may run in two threads.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        limits: AudioLimits = AudioLimits(),
        allow_truncated: bool = False,
    ) -> None:
        self._path, self._limits, self._allow_truncated = Path(path), limits, allow_truncated
        with _open(self._path) as file:
            self.info = _checked_info(self._path, file, limits)
            self.tags = {name: value for name in TAG_NAMES if (value := getattr(file, name))}
            self._claimed_frames = _claimed_frames(self._path, file)
            self._counted = _counted_by_size(self.info, file)
        self._seek_is_exact = self._counted is not None
        self.dtype = _dtype_of(self.info.subtype)
        self._file: soundfile.SoundFile | None = None
        self._spool: _Spool | None = None
        if self._counted is not None:
            self._check_count(self._counted)

    @property
    def frames(self) -> int:
        """The true number of samples a channel; a format that cannot be counted by size is decoded once."""
        if self._counted is None:
            for _ in self.blocks():
                pass
        assert self._counted is not None
        return self._counted

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        """Samples [start, stop) as (S, C) in `dtype`. Raises ValueError outside the file, DataError on content."""
        if not 0 <= start_sample <= stop_sample <= self.frames:
            raise ValueError(f"samples {start_sample} to {stop_sample} are not inside 0 to {self.frames}")
        if self._seek_is_exact:
            samples_SC = self._read_by_seeking(start_sample, stop_sample)
        else:
            if self._spool is None:
                self._spool = _Spool(self._decode(BLOCK_SAMPLES), self.info.channels, self.dtype)
            samples_SC = self._spool.read(start_sample, stop_sample)
        if len(samples_SC) != stop_sample - start_sample:
            raise DataError(f"{self._path}: the file became shorter while it was read; try again")
        _refuse_non_finite(samples_SC, start_sample, self._path, self.info.sample_rate_hz)
        return samples_SC

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """The whole file in order as (≤ block_samples, C) arrays in `dtype`; counts as it goes.

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
            self._file = _open(self._path)
        try:
            self._file.seek(start_sample)
            return self._file.read(stop_sample - start_sample, dtype=self.dtype.name, always_2d=True)
        except soundfile.SoundFileError as error:
            raise DataError(
                f"{self._path}: cannot be decoded at sample {start_sample} ({_text(error)})"
            ) from None

    def _decode(self, block_samples: int) -> Iterator[np.ndarray]:
        """Blocks in order, up to the end or to the first place that cannot be decoded."""
        position, limit = 0, int(self._limits.max_duration_s * self.info.sample_rate_hz)
        with _open(self._path, _InOrderFile) as file:
            while True:
                try:
                    samples_SC = file.read(block_samples, dtype=self.dtype.name, always_2d=True)
                except soundfile.SoundFileError as error:
                    yield from self._decode_last_good(position, _text(error))
                    return
                if not len(samples_SC):
                    return
                position += len(samples_SC)
                if position > limit:
                    raise _too_long(self._path, position, self.info.sample_rate_hz, self._limits)
                yield samples_SC

    def _decode_last_good(self, position: int, reason: str) -> Iterator[np.ndarray]:
        """What can be had after `position`, in small pieces; DataError unless truncated files are allowed."""
        if not self._allow_truncated:
            self._refuse_damage(position, reason)
        with _open(self._path, _InOrderFile) as file, contextlib.suppress(soundfile.SoundFileError):
            for skipped in range(0, position, BLOCK_SAMPLES):
                file.read(min(BLOCK_SAMPLES, position - skipped), dtype=self.dtype.name)
            while len(samples_SC := file.read(256, dtype=self.dtype.name, always_2d=True)):
                yield samples_SC

    def _refuse_damage(self, position: int, reason: str) -> None:
        rate_hz, claimed = self.info.sample_rate_hz, self._claimed_frames
        promised = f" of the {_clock(claimed, rate_hz)} its header promises" if claimed else ""
        raise DataError(
            f"{self._path}: the file is truncated or damaged; it cannot be decoded beyond about "
            f"{_clock(position, rate_hz)}{promised} ({reason}); re-export or re-copy it"
        )

    def _check_count(self, counted: int) -> None:
        """Refuses an empty file and one shorter than its header promises."""
        if counted == 0:
            raise DataError(f"{self._path}: holds no samples")
        if counted < self._claimed_frames and not self._allow_truncated:
            rate_hz = self.info.sample_rate_hz
            raise DataError(
                f"{self._path}: the file is truncated; it holds {_clock(counted, rate_hz)} of the "
                f"{_clock(self._claimed_frames, rate_hz)} its header promises; re-export or re-copy it"
            )


class ArrayReader(_ReaderSurface):
    """The same surface over samples in memory: (S,) or (S, C), int16, int32, float32 or float64."""

    def __init__(self, samples: np.ndarray, sample_rate_hz: int) -> None:
        samples_SC = np.asarray(samples)
        samples_SC = samples_SC[:, None] if samples_SC.ndim == 1 else samples_SC
        subtypes = {"int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT", "float64": "DOUBLE"}
        if samples_SC.ndim != 2 or samples_SC.dtype.name not in subtypes or not samples_SC.size:
            raise DataError(
                f"samples of shape {np.shape(samples)} and type {samples_SC.dtype}: need a non-empty (samples,) or "
                f"(samples, channels) array of {', '.join(subtypes)}"
            )
        if sample_rate_hz <= 0:
            raise DataError(f"samples: a sample rate of {sample_rate_hz} Hz is not possible")
        self._samples_SC, self.dtype, self.tags = samples_SC, samples_SC.dtype, {}
        self.frames = len(samples_SC)
        self.info = AudioInfo(
            Path("<samples>"),
            "WAV",
            subtypes[self.dtype.name],
            int(sample_rate_hz),
            samples_SC.shape[1],
            self.frames,
        )

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        """Samples [start, stop) as (S, C), a copy. Raises ValueError outside the array, DataError on NaN or Inf."""
        if not 0 <= start_sample <= stop_sample <= self.frames:
            raise ValueError(f"samples {start_sample} to {stop_sample} are not inside 0 to {self.frames}")
        samples_SC = self._samples_SC[start_sample:stop_sample].copy()
        _refuse_non_finite(samples_SC, start_sample, self.info.path, self.info.sample_rate_hz)
        return samples_SC

    def blocks(self, block_samples: int = BLOCK_SAMPLES) -> Iterator[np.ndarray]:
        """The whole array in order."""
        for start in range(0, self.frames, block_samples):
            yield self.read(start, min(start + block_samples, self.frames))


class _Spool:
    """Decoded samples in an unlinked temporary file that grows as far as is read."""

    def __init__(self, blocks: Iterator[np.ndarray], channels: int, dtype: np.dtype) -> None:
        self._blocks, self._channels, self._dtype = blocks, channels, dtype
        self._file = tempfile.TemporaryFile(prefix="editjax-")
        self._frame_bytes = channels * dtype.itemsize
        self._filled = 0

    def read(self, start_sample: int, stop_sample: int) -> np.ndarray:
        try:
            while self._filled < stop_sample and (block := next(self._blocks, None)) is not None:
                self._file.seek(self._filled * self._frame_bytes)
                self._file.write(block.tobytes())
                self._filled += len(block)
            self._file.seek(start_sample * self._frame_bytes)
            data = self._file.read((stop_sample - start_sample) * self._frame_bytes)
        except OSError as error:
            raise InputOutputError(
                f"{tempfile.gettempdir()}: no room for the decoded samples ({error.strerror}); "
                "set TMPDIR to a folder with more space"
            ) from error
        return np.frombuffer(data, self._dtype).reshape(-1, self._channels).copy()

    def close(self) -> None:
        self._file.close()


class Writer:
    """Writes one audio file that appears under its name only when it is complete. A context manager.

    `write` takes (S, C) or, for one channel, (S,): the file's own number type passes bit for bit, others are
    converted (rounded, saturated). A WAV that outgrows 4 GiB becomes an RF64; `expected_frames`, where the length
    is known before, saves copying it over. Lossy formats use LOSSY_COMPRESSION. Entering raises CannotCreateError
    (exists, is an input, no such folder, rate or channels the format cannot hold); writing and leaving raise
    InputOutputError (disk full) and DataError (NaN, Inf).
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
        self.path, self.dtype, self.frames = Path(path), _dtype_of(subtype), 0
        self._rate_hz, self._channels, self._subtype = sample_rate_hz, channels, subtype
        self._overwrite, self._inputs, self._tags = overwrite, tuple(inputs), dict(tags or {})
        self._frame_bytes = channels * BYTES_PER_SAMPLE.get(subtype, 4)
        outgrows = container in RIFF_FAMILY and expected_frames * self._frame_bytes > WAV_LIMIT_BYTES
        self._container = "RF64" if outgrows else container

    def __enter__(self) -> Self:
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
                f"{self._rate_hz} Hz ({_text(error)}); name the output .wav or .flac"
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
            raise self._write_failed(_text(error)) from None

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
            if kind is None and self.frames and soundfile.info(str(self._temporary)).frames < self.frames:
                raise self._write_failed("less arrived than was written")
        except soundfile.SoundFileError as close_error:
            if kind is None:
                raise self._write_failed(_text(close_error)) from None

    def _write_failed(self, reason: str) -> InputOutputError:
        free_mb = shutil.disk_usage(self.path.parent).free / 1e6
        return InputOutputError(
            f"{self.path}: writing failed after {_clock(self.frames, self._rate_hz)} ({reason}, "
            f"{free_mb:.0f} MB free); free space or choose another folder"
        )


def output_format(
    info: AudioInfo, out_path: str | os.PathLike[str], subtype: str | None = None
) -> tuple[str, str]:
    """(container, subtype) for an output: the input's, unless its name or `subtype` says otherwise.

    A lossy input named into a lossless container becomes PCM_16. Raises CannotCreateError for a name or a
    combination that cannot be written.
    """
    suffix = Path(out_path).suffix.lower()
    container = CONTAINER_OF_SUFFIX.get(suffix)
    if suffix == info.path.suffix.lower() or {container, info.container} <= RIFF_FAMILY:
        container = info.container
    if container is None:
        raise CannotCreateError(
            f"{out_path}: cannot write a '{suffix}' file; name it one of {' '.join(CONTAINER_OF_SUFFIX)}"
        )
    chosen = subtype or _nearest_subtype(info.subtype, container, suffix)
    if not soundfile.check_format(container, chosen):
        possible = [name for name in soundfile.available_subtypes(container) if name in WRITABLE_SUBTYPES]
        raise CannotCreateError(
            f"{out_path}: {container} cannot hold {chosen}; choose one of {' '.join(possible)}"
        )
    return container, chosen


def convert(samples: np.ndarray, dtype: np.dtype | type, bits: int = 0) -> np.ndarray:
    """Samples in another number type, rounded to `bits` (0: the type's own) and saturated; exact where it can be."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return samples.astype(dtype, copy=False) if samples.dtype.kind == "f" else to_float(samples, dtype)
    bits = bits or dtype.itemsize * 8
    if samples.dtype == dtype and bits == dtype.itemsize * 8:
        return samples
    if samples.dtype.kind == "i" and samples.dtype.itemsize * 8 <= bits:
        return samples.astype(dtype) << (8 * (dtype.itemsize - samples.dtype.itemsize))
    return from_float(to_float(samples, np.float64), dtype, bits)


def to_float(samples: np.ndarray, dtype: type | np.dtype = np.float32) -> np.ndarray:
    """Integers as floats in [-1, 1) (int16 / 2¹⁵, int32 / 2³¹); floats keep their values."""
    if samples.dtype.kind == "f":
        return samples.astype(dtype, copy=False)
    scale = 2.0 ** (1 - 8 * samples.dtype.itemsize)
    return samples.astype(dtype) * np.dtype(dtype).type(scale)


def from_float(samples: np.ndarray, dtype: np.dtype | type, bits: int = 0) -> np.ndarray:
    """Floats in [-1, 1) as `dtype`, rounded to `bits` and saturated; undoes `to_float(…, float64)` exactly."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return samples.astype(dtype, copy=False)
    width = 8 * dtype.itemsize
    bits = bits or width
    top = 2.0 ** (bits - 1)
    return np.clip(np.rint(samples * top), -top, top - 1).astype(dtype) << (width - bits)


def to_mono_float(samples_SC: np.ndarray) -> np.ndarray:
    """The mean over channels as float32 (S,)."""
    samples_SC = to_float(samples_SC)
    return samples_SC if samples_SC.ndim == 1 else samples_SC.mean(axis=1, dtype=np.float32)


def resample_stream(blocks: Iterable[np.ndarray], rate_in_hz: int, rate_out_hz: int) -> Iterator[np.ndarray]:
    """Blocks (S, C) or (S,) of any type, mixed to mono and resampled (soxr HQ) as float32 (S,) blocks."""
    monos = (to_mono_float(block) for block in blocks)
    if rate_in_hz == rate_out_hz:
        yield from monos
        return
    stream = soxr.ResampleStream(rate_in_hz, rate_out_hz, 1, dtype="float32", quality="HQ")
    for mono_S in monos:
        if len(resampled_S := stream.resample_chunk(mono_S)):
            yield resampled_S
    if len(resampled_S := stream.resample_chunk(np.empty(0, np.float32), last=True)):
        yield resampled_S


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hex. Raises NoInputError when it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read ({error.strerror}); check the name") from None


@contextlib.contextmanager
def atomic_path(
    path: str | os.PathLike[str],
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[Path]:
    """Yields a temporary path in the target's folder; on a clean exit it is synced and renamed to `path`.

    The temporary file keeps the suffix and is removed on any error or interrupt. Raises CannotCreateError when
    `path` exists and may not be overwritten, is one of `inputs` (by inode), or its folder cannot be written, and
    InputOutputError when the medium refuses.
    """
    path = Path(path)
    _check_target(path, overwrite, inputs)
    temporary = path.parent / f".editjax-{secrets.token_hex(8)}{path.suffix}"
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        yield temporary
        _check_target(path, overwrite, inputs)
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
        if os.name == "posix":
            _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        if error.errno in MEDIUM_ERRORS:
            raise _cannot_write(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _check_target(path: Path, overwrite: bool, inputs: Iterable[str | os.PathLike[str]]) -> None:
    for source in inputs:
        if path.exists() and os.path.exists(source) and path.samefile(source):
            raise CannotCreateError(f"{path}: is the input {source}; choose another output name")
    if path.is_dir():
        raise CannotCreateError(f"{path}: is a folder; name a file in it")
    if os.path.lexists(path) and not overwrite:
        raise CannotCreateError(f"{path}: exists already; choose another name or overwrite it (--overwrite)")
    if not path.parent.is_dir():
        raise CannotCreateError(f"{path}: there is no folder {path.parent}; create it first")


def _cannot_write(path: Path, error: OSError) -> InputOutputError | CannotCreateError:
    if error.errno in MEDIUM_ERRORS:
        return InputOutputError(
            f"{path}: writing failed ({error.strerror}); free space or choose another folder"
        )
    return CannotCreateError(f"{path}: cannot be created ({error.strerror}); choose another folder or name")


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _InOrderFile(soundfile.SoundFile):
    """A file read front to back: soundfile's seek after every read breaks FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


def _open(path: Path, kind: type[soundfile.SoundFile] = soundfile.SoundFile) -> soundfile.SoundFile:
    """Opens by content, not by name. Raises NoInputError (missing, unreadable) or DataError (not audio)."""
    try:
        if path.is_dir():
            raise NoInputError(f"{path}: is a folder, not an audio file; name a file")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NoInputError(f"{path}: cannot be opened ({reason}); check the name and permissions") from None
    try:
        if not os.fstat(descriptor).st_size:
            raise DataError(f"{path}: is empty (0 bytes); re-export or re-copy it")
        return kind(descriptor, closefd=True)
    except (soundfile.SoundFileError, TypeError) as error:
        raise DataError(
            f"{path}: is not audio that can be read ({_text(error)}); convert it to WAV or FLAC"
        ) from None


def _checked_info(path: Path, file: soundfile.SoundFile, limits: AudioLimits) -> AudioInfo:
    rate_hz, channels = file.samplerate, file.channels
    if not 0 < channels <= limits.max_channels:
        raise DataError(f"{path}: has {channels} channels; at most {limits.max_channels} are accepted")
    if not 0 < rate_hz <= limits.max_sample_rate_hz:
        raise DataError(
            f"{path}: has a sample rate of {rate_hz} Hz; at most {limits.max_sample_rate_hz} is accepted"
        )
    frames = file.frames if file.frames < UNKNOWN_FRAMES else 0
    if frames > limits.max_duration_s * rate_hz:
        raise _too_long(path, frames, rate_hz, limits)
    return AudioInfo(
        path, file.format, file.subtype, rate_hz, channels, max(frames, _claimed_frames(path, file))
    )


def _claimed_frames(path: Path, file: soundfile.SoundFile) -> int:
    """Samples the header promises, where it binds (0 where it does not): libsndfile trims its count to the file."""
    if file.format == "FLAC":
        return file.frames if file.frames < UNKNOWN_FRAMES else 0
    if file.format == "MP3":
        return file.frames if _has_frame_count(path) else 0
    if found := re.search(
        r"frame count \d+ does not match value from 'ds64' chunk of (\d+)", file.extra_info
    ):
        return int(found[1])
    found = re.search(r"(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", file.extra_info)
    if not found or int(found[2]) == 0:
        return 0
    claimed_bytes, held_bytes = int(found[1]), int(found[2])
    if any(0 <= claimed_bytes - unknown < 1 << 16 for unknown in STREAMED_BYTES):
        return 0
    return file.frames + max(0, (claimed_bytes - held_bytes) * file.frames // held_bytes)


def _has_frame_count(path: Path) -> bool:
    """Whether an MP3 carries a Xing, Info or VBRI header; without one its length is an estimate."""
    with path.open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # four bytes of seven bits: the tag's length
            file.seek(10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)))
        else:
            file.seek(0)
        return any(mark in file.read(4096) for mark in (b"Xing", b"Info", b"VBRI"))


def _counted_by_size(info: AudioInfo, file: soundfile.SoundFile) -> int | None:
    """The true length where the file's size (or, for FLAC, its last sample) proves it, else None."""
    if info.subtype not in STATELESS_SUBTYPES or file.frames >= UNKNOWN_FRAMES:
        return None
    if info.container == "FLAC":
        try:
            file.seek(max(file.frames - 1, 0))
            if len(file.read(2)) != 1:
                return None
        except soundfile.SoundFileError:
            return None
    return file.frames


def _nearest_subtype(subtype: str, container: str, suffix: str) -> str:
    if container == "OGG":
        return "OPUS" if suffix == ".opus" or subtype == "OPUS" else "VORBIS"
    if container == "MP3":
        return "MPEG_LAYER_III"
    if subtype.startswith("MPEG") or not soundfile.check_format(container, subtype):
        deep = INTEGER_BITS.get(subtype, 24 if subtype in {"FLOAT", "DOUBLE"} else 16)
        names = {
            8: ("PCM_S8", "PCM_U8"),
            16: ("PCM_16",),
            20: ("PCM_24",),
            24: ("PCM_24",),
            32: ("PCM_32", "PCM_24"),
        }
        fits = [name for name in names[deep] if soundfile.check_format(container, name)]
        return fits[0] if fits else soundfile.default_subtype(container)
    return subtype


def _dtype_of(subtype: str) -> np.dtype:
    """The smallest number type that holds a subtype without loss."""
    if subtype in INTEGER_BITS or "ADPCM" in subtype or subtype.startswith(("GSM", "G72", "DWVW")):
        return np.dtype(np.int16 if INTEGER_BITS.get(subtype, 16) <= 16 else np.int32)
    return np.dtype(np.float64 if subtype == "DOUBLE" else np.float32)


def _refuse_non_finite(samples_SC: np.ndarray, first_sample: int, path: Path, rate_hz: int) -> None:
    if samples_SC.dtype.kind != "f" or np.isfinite(samples_SC).all():
        return
    at, channel = np.argwhere(~np.isfinite(samples_SC))[0]
    value = "NaN" if np.isnan(samples_SC[at, channel]) else "infinite"
    sample = first_sample + int(at)
    raise DataError(
        f"{path}: sample {sample} of channel {channel + 1} (at {_clock(sample, rate_hz)}) is {value}; "
        "repair or re-export the file"
    )


def _too_long(path: Path, frames: int, rate_hz: int, limits: AudioLimits) -> DataError:
    limit = _clock(limits.max_duration_s * rate_hz, rate_hz)
    return DataError(f"{path}: lasts {_clock(frames, rate_hz)} or more; at most {limit} is accepted")


def _clock(frames: float, rate_hz: int) -> str:
    """h:mm:ss.mmm"""
    milliseconds = int(frames * 1000 // rate_hz)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{milliseconds:03d}"


def _text(error: Exception) -> str:
    """A library's reason without its own mention of the file."""
    return getattr(error, "error_string", str(error)).strip().rstrip(".") or type(error).__name__
