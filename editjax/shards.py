"""Mel shards on disk: records in, ArrayRecord files and a manifest out, random access back.

The codec was chosen on mels of real recordings (6,460 frames a record, one core):

    codec                  size    write      read
    uncompressed           1.01   709 MB/s  2070 MB/s
    snappy                 0.97   965 MB/s  1586 MB/s
    zstd:1                 0.76   379 MB/s   734 MB/s
    brotli:2               0.77   145 MB/s   172 MB/s
    byte planes, zstd:1    0.62   363 MB/s   986 MB/s   (`records.py` lays float16 out in planes)

Records are read one at a time in random order: `group_size:1`. A shard is written under a temporary name,
closed, and renamed, because an ArrayRecord file that was never closed cannot be read.
"""

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editjax import __version__
from editjax.errors import CannotCreateError, DataError, InputOutputError, NoInputError, first_line
from editjax.files import sha256_of
from editjax.manifest import digest_of
from editjax.records import Example, Recording, decode, example, read_header
from editjax.stores import new_file, place

FORMAT = "editjax.shards"
VERSION = 1
MANIFEST = "manifest.json"
WRITER_OPTIONS = "group_size:1,zstd:1"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
SHARD_BYTES = 512 << 20
FIELDS = {"format", "version", "editjax", "mel", "settings", "counts", "shards", "examples"}
"""All that a manifest held before it had a `digest`; such manifests are read still."""

_AGAIN = "build the shards again"


class Entry(NamedTuple):
    """What the manifest says about one example, so that batches are planned without reading records."""

    id: str
    record: int
    edit: int
    frames: int
    steps: int
    style: str
    natural: bool
    sources: tuple[str, ...]
    split: str
    stems: int = 0


def write(
    shards_dir: str | Path,
    records: Iterable[bytes],
    *,
    mel: dict[str, Any],
    settings: dict[str, Any],
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write records, in their order, as shards of about `shard_bytes` and return the manifest.

    The same records give the same files, byte for byte, in a folder of this machine or of an object store.
    The manifest is removed first and written last: a folder without one is unfinished. Raises
    CannotCreateError, InputOutputError.
    """
    folder = place(shards_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot write shards there ({error.strerror})") from error
    shards, examples = _write_shards(folder, records, shard_bytes)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "editjax": __version__,
        "mel": mel,
        "settings": settings,
        "counts": _counts(shards, examples),
        "shards": shards,
        "examples": examples,
    }
    manifest["digest"] = digest_of(manifest)
    write_json(folder / MANIFEST, manifest)
    for path in folder.glob(".editjax-*.array_record"):
        path.unlink()
    written = {shard["name"] for shard in shards}
    for path in folder.glob("mel-*.array_record"):
        if path.name not in written:
            path.unlink()
    return manifest


def read_manifest(shards_dir: str | Path) -> dict[str, Any]:
    """The manifest of a folder of shards; raises NoInputError without one, DataError on a foreign one."""
    path = Path(shards_dir) / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
    except FileNotFoundError:
        advice = "not a finished folder of shards; make one with `editjax prepare PAIRS SHARDS`"
        raise NoInputError(f"{path}: missing: {advice}") from None
    except OSError as error:
        raise NoInputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); {_AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: not a manifest of editjax shards")
    if manifest.get("version") != VERSION:
        raise DataError(f"{path}: version {manifest.get('version')}, this editjax reads {VERSION}")
    signed = manifest.keys() - FIELDS
    if signed and (manifest.get("digest") != digest_of(manifest) or text != _spelled(manifest)):
        raise DataError(f"{path}: changed or damaged since it was written; {_AGAIN}")
    return manifest


class Source:
    """Random access to the examples of a folder of shards: `len(source)`, `source[i]`, `source.entries`.

    Safe to read from several threads; pickles without its open files.
    """

    def __init__(self, shards_dir: str | Path):
        self.folder = Path(shards_dir)
        self.manifest = read_manifest(self.folder)
        try:
            self.entries = tuple(_entry(fields) for fields in self.manifest["examples"])
            self._paths = [self.folder / shard["name"] for shard in self.manifest["shards"]]
            counts = [shard["records"] for shard in self.manifest["shards"]]
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.folder / MANIFEST}: incomplete ({error}); {_AGAIN}") from error
        self._first_record = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._open_readers()

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        entry = self.entries[index]
        recording = self.recording(entry.record, [entry.edit])
        return example(recording, recording.edits[0])

    def recording(self, record: int, edits: Sequence[int] | None = None) -> Recording:
        """Record number `record`, with all its edits or those numbered in `edits`."""
        shard = int(np.searchsorted(self._first_record, record, side="right")) - 1
        if not 0 <= shard < len(self._paths):
            raise IndexError(f"record {record} of {self._first_record[-1]}")
        try:
            (data,) = self._reader(shard).read([int(record - self._first_record[shard])])
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"{self._paths[shard]}: cannot be read ({_said(error)})") from error
        return decode(data, edits)

    def close(self) -> None:
        """Close the open shards; they open again on the next read."""
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_readers()

    def _open_readers(self) -> None:
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if shard not in self._readers:
                self._readers[shard] = _open_shard(self._paths[shard])
            return self._readers[shard]


def read(shards_dir: str | Path) -> Source:
    """The examples of a folder of shards, by number."""
    return Source(shards_dir)


def watched(
    shards_dir: str | Path, split: str | None, styles: Sequence[str], most: int | None = None
) -> list[Example]:
    """The examples that training is watched on: the first of a split and of some styles (none: of any).

    Without any of the split it is empty, and stderr says so. Without a split (None) every one will do, and
    DataError is raised when there is none.
    """
    with read(shards_dir) as source:
        chosen = [
            index
            for index, entry in enumerate(source.entries)
            if split in (None, entry.split) and (not styles or entry.style in styles)
        ]
        style = " or ".join(map(repr, styles)) or "any"
        if not chosen and split is None:
            raise DataError(f"{shards_dir}: no example of style {style} to validate on")
        if not chosen:
            missing = f"{shards_dir}: no example of split {split!r} and style {style}"
            print(f"{missing}: nothing to choose the best checkpoint by", file=sys.stderr)
        return [source[index] for index in chosen[:most]]


def verify(shards_dir: str | Path) -> dict[str, Any]:
    """Check every shard against the manifest (size, SHA-256, every record) and return its counts.

    Raises DataError naming the first shard that does not agree, NoInputError for a missing one.
    """
    with Source(shards_dir) as source:
        for path, shard in zip(source._paths, source.manifest["shards"], strict=True):
            if not path.is_file():
                raise NoInputError(f"{path}: missing, though the manifest names it; {_AGAIN}")
            if not _file_facts(path).items() <= shard.items():
                raise DataError(f"{path}: SHA-256 differs from the manifest; {_AGAIN}")
            with closing(_open_shard(path)) as reader:
                records = reader.num_records()
            if records != shard["records"]:
                raise DataError(f"{path}: number of records differs from the manifest; {_AGAIN}")
        by_record: dict[int, list[Entry]] = {}
        for entry in source.entries:
            by_record.setdefault(entry.record, []).append(entry)
        for record, entries in by_record.items():
            recording = source.recording(record)
            for entry in entries:
                _verify_entry(source.folder, entry, recording)
        return source.manifest["counts"]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all; the same content gives the same bytes."""
    text = _spelled(content)
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _spelled(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _entries(record: bytes, number: int) -> Iterator[dict[str, Any]]:
    """The manifest's lines for one record, one an edit."""
    header, _ = read_header(record)
    shapes = {name: shape for name, _, shape in header["arrays"]}
    for k, edit in enumerate(header["edits"]):
        yield Entry(
            id=edit["id"],
            record=number,
            edit=k,
            frames=shapes["mel"][0],
            steps=shapes[f"pointers/{k}"][0],
            style=edit["style"],
            natural=bool(edit["meta"].get("natural", True)),
            sources=tuple(header["meta"].get("sources", ())),
            split=header["meta"].get("split", "train"),
            stems=shapes["stems"][0] if "stems" in shapes else 0,
        )._asdict()


def _entry(fields: dict[str, Any]) -> Entry:
    return Entry(**{**fields, "sources": tuple(fields["sources"])})


def _verify_entry(folder: Path, entry: Entry, recording: Recording) -> None:
    edit = recording.edits[entry.edit] if entry.edit < len(recording.edits) else None
    if (
        edit is None
        or (edit.id, edit.style) != (entry.id, entry.style)
        or (len(recording.mel_TF), len(edit.pointers_N)) != (entry.frames, entry.steps)
        or edit.pointers_N.max(initial=-1) >= entry.frames
        or (0 if recording.stems_IMF is None else len(recording.stems_IMF)) != entry.stems
    ):
        raise DataError(f"{folder}: example {entry.id} differs from the manifest; {_AGAIN}")


def _write_shards(
    folder: Path, records: Iterable[bytes], shard_bytes: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write records to numbered shards; the manifest's lines for the shards and for the examples."""
    shards: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    number = 0
    stream = iter(records)
    record = next(stream, None)
    while record is not None:
        path = folder / f"mel-{len(shards):05d}.array_record"
        first, size = number, 0
        with _new_shard(path) as (append, facts):
            while record is not None and (number == first or size + len(record) <= shard_bytes):
                append(record)
                examples += _entries(record, number)
                number, size = number + 1, size + len(record)
                record = next(stream, None)
        shards.append({"name": path.name, "records": number - first, **facts})
    return shards, examples


@contextmanager
def _new_shard(path: Path) -> Iterator[tuple[Callable[[bytes], Any], dict[str, Any]]]:
    """A shard to append to, and its facts once it is closed.

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


def _open_shard(path: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise NoInputError(f"{path}: missing, though the manifest names it; {_AGAIN}")
    try:
        reader = ArrayRecordReader(str(path), READER_OPTIONS, file_reader_buffer_size=1 << 15)
        if not reader.ok():
            reader.close()  # raises what is wrong
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path}: not a readable ArrayRecord file ({_said(error)})") from error
    return reader


def _file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _counts(shards: list[dict[str, Any]], examples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "shards": len(shards),
        "records": sum(shard["records"] for shard in shards),
        "examples": len(examples),
        "bytes": sum(shard["bytes"] for shard in shards),
        "styles": dict(sorted(Counter(entry["style"] for entry in examples).items())),
        "splits": dict(sorted(Counter(entry["split"] for entry in examples).items())),
    }


def _said(error: BaseException) -> str:
    """What ArrayRecord says, without where in its own code."""
    return first_line(error).partition(";")[0][:160]
