"""Records in ArrayRecord files with a signed manifest beside them: written whole, checked, read at random.

The codec was chosen on mels of real recordings (6,460 frames a record, one core):

    codec                  size    write      read
    uncompressed           1.01   709 MB/s  2070 MB/s
    snappy                 0.97   965 MB/s  1586 MB/s
    zstd:1                 0.76   379 MB/s   734 MB/s
    brotli:2               0.77   145 MB/s   172 MB/s
    byte planes, zstd:1    0.62   363 MB/s   986 MB/s   (`records.py` lays float16 out in planes)

Records are read one at a time in random order: `group_size:1`. A file is written under a temporary name,
closed, and renamed, because an ArrayRecord file that was never closed cannot be read.
"""

import json
import math
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editjax import __version__
from editjax.errors import CannotCreateError, DataError, InputOutputError, NoInputError, first_line
from editjax.files import sha256_of
from editjax.manifest import digest_of
from editjax.stores import new_file, place

MANIFEST = "manifest.json"
WRITER_OPTIONS = "group_size:1,zstd:1"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
FILE_BYTES = 512 << 20

Lines = list[dict[str, Any]]


class Kind(NamedTuple):
    """What a folder holds: `format` and `version` in its manifest, `prefix` of its files, `what` it
    is called, how to `make` it, and what to do (`again`) about damage.

    `first_fields` are all that a manifest held before it had a digest, where there were such.
    """

    format: str
    version: int
    prefix: str
    what: str
    make: str
    again: str
    first_fields: frozenset[str] = frozenset()


def pack(facts: dict[str, Any], **arrays: np.ndarray) -> bytes:
    """Facts (JSON) and arrays as a record: `u32 header length · header · arrays`, little-endian."""
    stored = {name: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for name, a in arrays.items()}
    header = {"facts": facts, "arrays": [[name, a.dtype.str, list(a.shape)] for name, a in stored.items()]}
    head = json.dumps(header, sort_keys=True, allow_nan=False).encode()
    return b"".join([struct.pack("<I", len(head)), head, *(a.tobytes() for a in stored.values())])


def unpack(record: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `pack`; arrays share the record's memory. ValueError where it is none."""
    try:
        (length,) = struct.unpack_from("<I", record)
        header, offset, arrays = json.loads(record[4 : 4 + length]), 4 + length, {}
        for name, dtype, shape in header["arrays"]:
            arrays[name] = np.frombuffer(record, dtype, math.prod(shape), offset).reshape(shape)
            offset += arrays[name].nbytes
        return header["facts"], arrays
    except (ValueError, LookupError, TypeError, RecursionError, struct.error) as error:
        raise ValueError(f"no record ({error})") from error


def write_folder(
    named: str | Path,
    records: Iterable[bytes],
    kind: Kind,
    lines_of: Callable[[bytes, int], Iterable[dict[str, Any]]],
    manifest_of: Callable[[Lines, Lines], dict[str, Any]],
    file_bytes: int = FILE_BYTES,
) -> dict[str, Any]:
    """Write records, in their order, to files of about `file_bytes`, and return the manifest.

    `lines_of(record, number)` are the manifest's lines for one record; `manifest_of(files, lines)` makes its
    content of those and of the files' facts. The same records give the same files, byte for byte, in a folder
    of this machine or of an object store. The manifest is removed first and written last: a folder without
    one is unfinished. Raises CannotCreateError, InputOutputError.
    """
    folder = place(named)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot write shards there ({error.strerror})") from error
    files, lines = _write_files(folder, records, kind, lines_of, file_bytes)
    first = {"format": kind.format, "version": kind.version, "editjax": __version__}
    manifest = {**first, **manifest_of(files, lines)}
    manifest["digest"] = digest_of(manifest)
    write_json(folder / MANIFEST, manifest)
    for path in folder.glob(".editjax-*.array_record"):
        path.unlink()
    written = {file["name"] for file in files}
    for path in folder.glob(f"{kind.prefix}-*.array_record"):
        if path.name not in written:
            path.unlink()
    return manifest


def read_manifest(folder: str | Path, kind: Kind) -> dict[str, Any]:
    """The manifest of a folder; raises NoInputError without one, DataError on a foreign or damaged one."""
    path = Path(folder) / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
    except FileNotFoundError:
        raise NoInputError(f"{path}: missing: not a finished folder of {kind.what}; {kind.make}") from None
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); {kind.again}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != kind.format:
        raise DataError(f"{path}: not a manifest of editjax {kind.what}; {kind.make}")
    if manifest.get("version") != kind.version:
        raise DataError(f"{path}: version {manifest.get('version')}, this editjax reads {kind.version}")
    signed = not kind.first_fields or manifest.keys() - kind.first_fields
    if signed and (manifest.get("digest") != digest_of(manifest) or text != _spelled(manifest)):
        raise DataError(f"{path}: changed or damaged since it was written; {kind.again}")
    return manifest


def format_of(folder: str | Path) -> str:
    """What a folder's manifest says it is of; nothing where there is no manifest to be read."""
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
        return str(manifest["format"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


class RecordFiles:
    """Random access to the records of a folder by their numbers: `files.read(number)`.

    `files` are the manifest's lines. Safe to read from several threads; pickles without its open files.
    """

    def __init__(self, folder: Path, files: Lines, kind: Kind):
        self.folder, self.kind, self._lines = folder, kind, files
        try:
            self._paths = [folder / file["name"] for file in files]
            counts = [file["records"] for file in files]
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder / MANIFEST}: incomplete ({error}); {kind.again}") from error
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._open_readers()

    def read(self, number: int) -> bytes:
        """The bytes of one record; IndexError where there is none of this number, DataError on damage."""
        file = int(np.searchsorted(self._first, number, side="right")) - 1
        if not 0 <= file < len(self._paths):
            raise IndexError(f"record {number} of {self._first[-1]}")
        try:
            (data,) = self._reader(file).read([int(number - self._first[file])])
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"{self._paths[file]}: cannot be read ({_said(error)})") from error
        return data

    def check(self) -> None:
        """DataError naming the first file that is not as the manifest says, NoInputError a missing one."""
        for path, line in zip(self._paths, self._lines, strict=True):
            if not path.is_file():
                raise NoInputError(f"{path}: missing, though the manifest names it; {self.kind.again}")
            if not _file_facts(path).items() <= line.items():
                raise DataError(f"{path}: SHA-256 differs from the manifest; {self.kind.again}")
            with closing(_open_file(path, self.kind)) as reader:
                records = reader.num_records()
            if records != line["records"]:
                raise DataError(f"{path}: number of records differs from the manifest; {self.kind.again}")

    def close(self) -> None:
        """Close the open files; they open again on the next read."""
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_readers()

    def _open_readers(self) -> None:
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def _reader(self, file: int) -> Any:
        with self._lock:
            if file not in self._readers:
                self._readers[file] = _open_file(self._paths[file], self.kind)
            return self._readers[file]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all; the same content gives the same bytes."""
    text = _spelled(content)
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _spelled(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _write_files(
    folder: Path,
    records: Iterable[bytes],
    kind: Kind,
    lines_of: Callable[[bytes, int], Iterable[dict[str, Any]]],
    file_bytes: int,
) -> tuple[Lines, Lines]:
    """Write records to numbered files; the manifest's lines for the files and for what they hold."""
    files: Lines = []
    lines: Lines = []
    number = 0
    stream = iter(records)
    record = next(stream, None)
    while record is not None:
        path = folder / f"{kind.prefix}-{len(files):05d}.array_record"
        first, size = number, 0
        with _new_file(path) as (append, facts):
            while record is not None and (number == first or size + len(record) <= file_bytes):
                append(record)
                lines += lines_of(record, number)
                number, size = number + 1, size + len(record)
                record = next(stream, None)
        files.append({"name": path.name, "records": number - first, **facts})
    return files, lines


@contextmanager
def _new_file(path: Path) -> Iterator[tuple[Callable[[bytes], Any], dict[str, Any]]]:
    """A file to append to, and its facts once it is closed.

    It takes its name when the block ends well, and is removed when it does not.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    facts: dict[str, Any] = {}
    with new_file(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
            try:
                yield writer.write, facts
            finally:
                writer.close()
        except (RuntimeError, ValueError) as error:
            raise InputOutputError(f"{path}: writing failed ({_said(error)})") from error
        facts.update(_file_facts(temporary))


def _open_file(path: Path, kind: Kind) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise NoInputError(f"{path}: missing, though the manifest names it; {kind.again}")
    try:
        reader = ArrayRecordReader(str(path), READER_OPTIONS, file_reader_buffer_size=1 << 15)
        if not reader.ok():
            reader.close()  # raises what is wrong
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path}: not a readable ArrayRecord file ({_said(error)})") from error
    return reader


def _file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _said(error: BaseException) -> str:
    """What ArrayRecord says, without where in its own code."""
    return first_line(error).partition(";")[0][:160]
