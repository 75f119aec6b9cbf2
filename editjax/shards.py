"""Mel shards on disk: records in, ArrayRecord files and a manifest out, random access back."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from editjax.array_records import FILE_BYTES, MANIFEST, Kind, Lines, RecordFiles, write_folder
from editjax.array_records import read_manifest as read_manifest_of
from editjax.errors import DataError
from editjax.records import Example, Recording, decode, example, read_header

SHARDS = Kind(
    "editjax.shards",
    1,
    prefix="mel",
    what="shards",
    make="make one with `editjax prepare PAIRS SHARDS`",
    again="build the shards again",
    first_fields=frozenset(
        ("format", "version", "editjax", "mel", "settings", "counts", "shards", "examples")
    ),
)


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
    shard_bytes: int = FILE_BYTES,
) -> dict[str, Any]:
    """Write records, in their order, as shards of about `shard_bytes` and return the manifest.

    See `array_records.write_folder`.
    """

    def manifest_of(shards: Lines, examples: Lines) -> dict[str, Any]:
        facts = {"mel": mel, "settings": settings, "counts": _counts(shards, examples)}
        return facts | {"shards": shards, "examples": examples}

    return write_folder(shards_dir, records, SHARDS, _entries, manifest_of, shard_bytes)


def read_manifest(shards_dir: str | Path) -> dict[str, Any]:
    """The manifest of a folder of shards; raises NoInputError without one, DataError on a foreign one."""
    return read_manifest_of(shards_dir, SHARDS)


class Source:
    """Random access to the examples of a folder of shards: `len(source)`, `source[i]`, `source.entries`."""

    def __init__(self, shards_dir: str | Path):
        self.folder = Path(shards_dir)
        self.manifest = read_manifest(self.folder)
        try:
            self.entries = tuple(_entry(fields) for fields in self.manifest["examples"])
            self.files = RecordFiles(self.folder, self.manifest["shards"], SHARDS)
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.folder / MANIFEST}: incomplete ({error}); {SHARDS.again}") from error

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        entry = self.entries[index]
        recording = self.recording(entry.record, [entry.edit])
        return example(recording, recording.edits[0])

    def recording(self, record: int, edits: Sequence[int] | None = None) -> Recording:
        """Record number `record`, with all its edits or those numbered in `edits`."""
        return decode(self.files.read(record), edits)

    def close(self) -> None:
        """Close the open shards; they open again on the next read."""
        self.files.close()

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


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
        source.files.check()
        by_record: dict[int, list[Entry]] = {}
        for entry in source.entries:
            by_record.setdefault(entry.record, []).append(entry)
        for record, entries in by_record.items():
            recording = source.recording(record)
            for entry in entries:
                _verify_entry(source.folder, entry, recording)
        return source.manifest["counts"]


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
        raise DataError(f"{folder}: example {entry.id} differs from the manifest; {SHARDS.again}")


def _counts(shards: list[dict[str, Any]], examples: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "shards": len(shards),
        "records": sum(shard["records"] for shard in shards),
        "examples": len(examples),
        "bytes": sum(shard["bytes"] for shard in shards),
        "styles": dict(sorted(Counter(entry["style"] for entry in examples).items())),
        "splits": dict(sorted(Counter(entry["split"] for entry in examples).items())),
    }
