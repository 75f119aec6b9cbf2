"""What an audio file says of itself, and what an output will be.

Comes in: a path. Goes out: its container, subtype, rate, channels and claimed length, or one clear error.
Source: libsndfile's formats (https://libsndfile.github.io/libsndfile/) under soundfile's names.

Headers lie: a claimed length is only ever compared with a counted one, never allocated.
"""

import contextlib
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from editjax.errors import CannotCreateError, DataError, NoInputError

CONTAINER_OF_SUFFIX = {
    ".wav": "WAV", ".wave": "WAV", ".bwf": "WAV", ".rf64": "RF64", ".w64": "W64",
    ".aif": "AIFF", ".aiff": "AIFF", ".aifc": "AIFF", ".flac": "FLAC",
    ".ogg": "OGG", ".oga": "OGG", ".opus": "OGG", ".mp3": "MP3", ".caf": "CAF", ".au": "AU", ".snd": "AU",
}  # fmt: skip
RIFF_FAMILY = {"WAV", "WAVEX", "RF64"}
INTEGER_BITS = {
    "PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32,
    "ALAC_16": 16, "ALAC_20": 20, "ALAC_24": 24, "ALAC_32": 32, "ULAW": 16, "ALAW": 16,
}  # fmt: skip
BYTES_PER_SAMPLE = {
    "PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4,
    "ULAW": 1, "ALAW": 1, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
LOSSY_COMPRESSION = {"VORBIS": 0.2, "OPUS": 0.6, "MPEG_LAYER_III": 0.0}
"""libsndfile's 0 (best) to 1 (smallest): Vorbis quality 8, Opus about 100 kbit/s a channel, MP3 V0."""

WRITABLE_SUBTYPES = {*BYTES_PER_SAMPLE, *LOSSY_COMPRESSION, "IMA_ADPCM", "MS_ADPCM"}
"""Not ALAC: libsndfile's encoder overruns its buffer on loud noise in more than two channels."""

STATELESS_SUBTYPES = set(BYTES_PER_SAMPLE)
"""Decoded alike after a seek and in sequence; codecs that carry state from packet to packet are not."""

MISLEADING_REASONS = {
    "File does not exist or is not a regular file (possibly a pipe?)": "too short or damaged",
    "System error": "the medium refuses",
}
"""What libsndfile says of a broken MP3, and of a full disk."""

UNKNOWN_FRAMES = 1 << 62
STREAMED_BYTES = ((1 << 32) - (1 << 16), (1 << 31) - (1 << 16))
"""Programs that write to a pipe claim a length just under 4 GiB or 2 GiB: it means "unknown"."""


@dataclass(frozen=True)
class AudioLimits:
    """What is refused before any work is done."""

    max_duration_s: float = 12 * 3600
    max_channels: int = 64
    max_sample_rate_hz: int = 768_000
    min_sample_rate_hz: int = 1_000


DEFAULT_LIMITS = AudioLimits()
_muting = threading.Lock()


class AudioInfo(NamedTuple):
    """What a file says of itself; `header_frames` is a claim, 0 when the header does not say."""

    path: Path
    container: str
    subtype: str
    sample_rate_hz: int
    channels: int
    header_frames: int


class InOrderFile(soundfile.SoundFile):
    """A file read front to back: soundfile's seek after every read breaks FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


def probe(path: str | os.PathLike[str], limits: AudioLimits = DEFAULT_LIMITS) -> AudioInfo:
    """Reads a file's header. Raises NoInputError (missing, unreadable) or DataError (content, limits)."""
    with open_audio(Path(path)) as file:
        return checked_info(Path(path), file, limits)


def open_audio(path: Path, kind: type[soundfile.SoundFile] = soundfile.SoundFile) -> soundfile.SoundFile:
    """Opens by content, not by name. Raises NoInputError (missing, unreadable) or DataError (not audio)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise NoInputError(
                f"{path}: is {'a folder' if path.is_dir() else 'no ordinary file'}; name an audio file"
            )
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NoInputError(f"{path}: cannot be opened ({reason}); check the name and permissions") from None
    try:
        if not os.fstat(descriptor).st_size:
            raise DataError(f"{path}: is empty (0 bytes); re-export or re-copy it")
        with _muted_mpg123(descriptor):
            return kind(os.dup(descriptor), closefd=True)
    except (soundfile.SoundFileError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read as audio ({reason_of(error)}); check that it is a whole audio file, "
            "or convert it to WAV"
        ) from None
    finally:
        os.close(descriptor)


def checked_info(path: Path, file: soundfile.SoundFile, limits: AudioLimits) -> AudioInfo:
    """The header of an open file. Raises DataError beyond the limits."""
    rate_hz, channels = file.samplerate, file.channels
    if not 0 < channels <= limits.max_channels:
        raise DataError(f"{path}: has {channels} channels; at most {limits.max_channels} are accepted")
    if not limits.min_sample_rate_hz <= rate_hz <= limits.max_sample_rate_hz:
        raise DataError(
            f"{path}: its sample rate is {rate_hz} Hz; {limits.min_sample_rate_hz} to "
            f"{limits.max_sample_rate_hz} are accepted"
        )
    promised = claimed_frames(path, file)
    estimated = file.format == "MP3" and not promised  # from the file's size, easily wrong by a factor of two
    frames = 0 if estimated or file.frames >= UNKNOWN_FRAMES else file.frames
    if frames > limits.max_duration_s * rate_hz:
        raise too_long(path, frames, rate_hz, limits)
    return AudioInfo(path, file.format, file.subtype, rate_hz, channels, max(frames, promised))


def claimed_frames(path: Path, file: soundfile.SoundFile) -> int:
    """Samples the header promises, 0 if it promises none; libsndfile trims its own count to the file."""
    if file.format == "FLAC":
        return file.frames if file.frames < UNKNOWN_FRAMES else 0
    if file.format == "MP3":
        return file.frames if _has_frame_count(path) else 0
    if found := re.search(r"does not match value from 'ds64' chunk of (\d+)", file.extra_info):
        return int(found[1])
    found = re.search(r"(?:data|SSND|Data Size|riff) *: (\d+) \(should be (\d+)\)", file.extra_info)
    if not found or int(found[2]) == 0:
        return 0
    claimed_bytes, held_bytes = int(found[1]), int(found[2])
    missing_bytes = claimed_bytes - held_bytes
    streamed = any(0 <= claimed_bytes - unknown < 1 << 16 for unknown in STREAMED_BYTES)
    if streamed or missing_bytes <= 1:  # chunks of odd length are padded, or not
        return 0
    frame_bytes = file.channels * BYTES_PER_SAMPLE.get(file.subtype, 0) or held_bytes / max(file.frames, 1)
    return file.frames + int(missing_bytes / frame_bytes + 0.5)


def counted_by_size(info: AudioInfo, file: soundfile.SoundFile) -> int | None:
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


def output_format(
    info: AudioInfo, out_path: str | os.PathLike[str], subtype: str | None = None
) -> tuple[str, str]:
    """(container, subtype) for an output: the input's, unless its name or `subtype` says otherwise.

    A lossy input named into a lossless container becomes PCM_16, ALAC becomes PCM in the same CAF.
    Raises CannotCreateError for a name or a combination that cannot be written.
    """
    suffix = Path(out_path).suffix.lower()
    container = CONTAINER_OF_SUFFIX.get(suffix)
    if suffix == info.path.suffix.lower() or (container == "WAV" and info.container in RIFF_FAMILY):
        container = info.container
    if container is None:
        names = " ".join(CONTAINER_OF_SUFFIX)
        raise CannotCreateError(f"{out_path}: cannot write a '{suffix}' file; name it one of {names}")
    chosen = subtype or _nearest_subtype(info.subtype, container, suffix)
    if not _writable(container, chosen):
        possible = " ".join(
            name for name in soundfile.available_subtypes(container) if name in WRITABLE_SUBTYPES
        )
        raise CannotCreateError(f"{out_path}: {container} cannot hold {chosen}; choose one of {possible}")
    return container, chosen


def dtype_of(subtype: str) -> np.dtype:
    """The smallest number type that holds a subtype without loss."""
    if subtype in INTEGER_BITS or "ADPCM" in subtype or subtype.startswith(("GSM", "G72", "DWVW")):
        return np.dtype(np.int16 if INTEGER_BITS.get(subtype, 16) <= 16 else np.int32)
    return np.dtype(np.float64 if subtype == "DOUBLE" else np.float32)


def convert(samples: np.ndarray, dtype: np.dtype | type | str, bits: int = 0) -> np.ndarray:
    """Samples in another number type, rounded to `bits` (0: all it has) and saturated; exact if possible."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return samples.astype(dtype, copy=False) if samples.dtype.kind == "f" else to_float(samples, dtype)
    bits = bits or dtype.itemsize * 8
    low_bits = (1 << (dtype.itemsize * 8 - bits)) - 1
    if samples.dtype == dtype and not np.bitwise_or.reduce(samples, axis=None) & low_bits:
        return samples
    if samples.dtype.kind == "i" and samples.dtype.itemsize * 8 <= bits:
        return samples.astype(dtype) << (8 * (dtype.itemsize - samples.dtype.itemsize))
    return from_float(to_float(samples, np.float64), dtype, bits)


def to_float(samples: np.ndarray, dtype: np.dtype | type | str = np.float32) -> np.ndarray:
    """Integers as floats in [-1, 1) (int16 / 2¹⁵, int32 / 2³¹); floats keep their values."""
    if samples.dtype.kind == "f":
        return samples.astype(dtype, copy=False)
    scale = 2.0 ** (1 - 8 * samples.dtype.itemsize)
    return samples.astype(dtype) * np.dtype(dtype).type(scale)


def from_float(samples: np.ndarray, dtype: np.dtype | type | str, bits: int = 0) -> np.ndarray:
    """Floats in [-1, 1) as `dtype`, rounded to `bits`, saturated; undoes `to_float(…, float64)` exactly."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return samples.astype(dtype, copy=False)
    width = 8 * dtype.itemsize
    bits = bits or width
    top = 2.0 ** (bits - 1)
    scaled = np.asarray(samples, np.float64) * top  # float32 cannot hold the largest int32
    return np.clip(np.rint(scaled), -top, top - 1).astype(dtype) << (width - bits)


def too_long(path: Path, frames: int, rate_hz: int, limits: AudioLimits) -> DataError:
    """The error for a recording beyond `limits.max_duration_s`."""
    limit = clock(limits.max_duration_s * rate_hz, rate_hz)
    return DataError(f"{path}: lasts {clock(frames, rate_hz)} or more; at most {limit} is accepted")


def clock(frames: int | float, rate_hz: int) -> str:
    """A sample position as h:mm:ss.mmm, rounded down."""
    seconds, milliseconds = divmod(int(frames * 1000 // rate_hz), 1000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{milliseconds:03d}"


def reason_of(error: Exception) -> str:
    """A library's reason without its own mention of the file."""
    text = str(getattr(error, "error_string", error)).removeprefix("Error : ").strip().rstrip(".")
    return MISLEADING_REASONS.get(text, text) or type(error).__name__


@contextlib.contextmanager
def _muted_mpg123(descriptor: int) -> Iterator[None]:
    """While an MP3 is opened, what libmpg123 prints about it goes nowhere: the one line shown is ours."""
    head = os.read(descriptor, 2)
    os.lseek(descriptor, 0, os.SEEK_SET)
    is_mp3 = head == b"ID" or (head[:1] == b"\xff" and head[1:] >= b"\xe0")
    if not is_mp3 or sys.stderr is None:  # closed: its number may be the file's
        yield
        return
    with _muting, open(os.devnull, "wb") as nowhere:
        saved = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _has_frame_count(path: Path) -> bool:
    """Whether an MP3 carries a Xing, Info or VBRI header; without one its length is an estimate."""
    with path.open("rb") as file:
        head = file.read(10)
        if head[:3] == b"ID3":  # the tag's length: four bytes of seven bits
            tag_bytes = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            file.seek(10 + tag_bytes)
        else:
            file.seek(0)
        first_packets = file.read(4096)
    return any(mark in first_packets for mark in (b"Xing", b"Info", b"VBRI"))


def _nearest_subtype(subtype: str, container: str, suffix: str) -> str:
    if container == "OGG":
        return "OPUS" if suffix == ".opus" or subtype == "OPUS" else "VORBIS"
    if container == "MP3":
        return "MPEG_LAYER_III"
    if _writable(container, subtype) and not subtype.startswith("MPEG"):  # a WAV could hold MPEG
        return subtype
    bits = INTEGER_BITS.get(subtype, 24 if subtype in {"FLOAT", "DOUBLE"} else 16)
    deep_enough = [
        name for name in ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32") if INTEGER_BITS[name] >= bits
    ]
    possible = [name for name in [*deep_enough, "PCM_24"] if soundfile.check_format(container, name)]
    return possible[0] if possible else soundfile.default_subtype(container)


def _writable(container: str, subtype: str) -> bool:
    return subtype in WRITABLE_SUBTYPES and soundfile.check_format(container, subtype)
