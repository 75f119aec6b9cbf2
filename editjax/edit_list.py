"""The edit list as a record and as a file.

In comes a JSON file, written by the package or by hand, or an `EditList`; out goes the other. Positions are
samples of the source. What an edit list means (pointers, operations, labels) is in `edits.py`.
"""

from __future__ import annotations

import difflib
import json
import reprlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from editjax.errors import DataError, NoInputError
from editjax.files import atomic_path

FORMAT = "editjax.edits"
VERSION = 1
LARGEST = sys.float_info.max  # comparing with it refuses NaN, the infinities and integers no float can hold
HAND_MOVED_S = 0.05
"""Joins move by a few milliseconds; a start or stop further than this from its nominal was moved by hand."""


class Segment(NamedTuple):
    """Source samples [start, stop) played once; fades in samples, counted inwards from the two ends.

    `nominal_start` and `nominal_stop` are the editor's, before joins were moved. Where a segment with a
    `fade_out` meets one with a `fade_in` the two are one crossfade (a TRANSITION). `score` is the editor's
    confidence.
    """

    start: int
    stop: int
    nominal_start: int
    nominal_stop: int
    fade_in: int = 0
    fade_out: int = 0
    gain_db: float = 0.0
    score: float | None = None
    reason: str = ""


class Source(NamedTuple):
    """The recording an edit list cuts: `frames` are samples per channel, `sample_rate` is in Hz.

    Where it is the sum of several `tracks`, each of them is played as the edit list says; `path` is then
    their folder, `sha256` that of theirs, `frames` those of the longest.
    """

    path: str
    sha256: str
    sample_rate: int
    channels: int
    frames: int
    tracks: tuple[Source, ...] = ()


class EditList(NamedTuple):
    """Segments of one source in playing order; `editor` says who made them and may hold any JSON.

    `editor["unaligned"]`, if there, lists `[segment, frames]`: so many edited frames sound before that
    segment and exist nowhere in the source (effects, inserts). They are not rendered; they keep the pointers
    complete.
    """

    source: Source
    segments: tuple[Segment, ...]
    editor: dict[str, Any]


def read_edits(path: str | Path) -> EditList:
    """Reads an edit list written by `write_edits` or by hand.

    Missing nominal fields are taken from start and stop, missing fades and gains are 0; where start or stop
    was moved further than a join ever is (`HAND_MOVED_S`), the nominal follows. Raises NoInputError if the
    file cannot be opened and DataError, naming file, field and remedy, if its content cannot be used.
    """
    return parse_edits(read_tree(path), str(path))


def read_tree(path: str | Path) -> Any:
    """The content of a JSON file. Raises NoInputError and DataError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise NoInputError(
            f"{path}: cannot be read ({error.strerror}); give an edit list (.edits.json)"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; give an edit list (.edits.json)") from error
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({error}); correct it there") from error


def write_edits(edit_list: EditList, path: str | Path, overwrite: bool = False) -> None:
    """Writes an edit list as JSON, one segment a line, complete or not at all.

    Raises CannotCreateError if the file exists and `overwrite` is off or the folder cannot be written, and
    DataError if the list breaks the rules `read_edits` checks.
    """
    rows = [segment._asdict() for segment in edit_list.segments]
    tree = {"format": FORMAT, "version": VERSION, **source_tree(edit_list.source), "segments": rows}
    parse_edits(json.loads(_dumps(tree, path)), str(path))
    lines = [
        f'  "{key}": {_rows(value, path) if isinstance(value, list) else _dumps(value, path)}'
        for key, value in {**tree, "editor": edit_list.editor}.items()
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    with atomic_path(path, overwrite) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def source_tree(source: Source) -> dict[str, Any]:
    """A source as it stands in a file: under `source`, and under `tracks` those it is the sum of, if any."""
    whole, *tracks = (
        {key: value for key, value in one._asdict().items() if key != "tracks"}
        for one in (source, *source.tracks)
    )
    return {"source": whole, "tracks": tracks} if tracks else {"source": whole}


def parse_source(tree: dict, name: str) -> Source:
    """What `source_tree` made; `name` is the file that errors speak of."""
    source = _parse_source(tree.get("source"), "source", name)
    rows = tree.get("tracks", [])
    if not isinstance(rows, list):
        raise DataError(f"{name}: tracks is {type(rows).__name__}; give a list of recordings")
    tracks = tuple(_parse_source(row, f"tracks[{i}]", name) for i, row in enumerate(rows))
    for i, track in enumerate(tracks):
        fits = track.channels in (1, source.channels) and track.frames <= source.frames
        if track.sample_rate != source.sample_rate or not fits:
            raise DataError(f"{name}: tracks[{i}] does not fit the source, which is their sum; correct it")
    return source._replace(tracks=tracks)


def _rows(rows: list[Any], path: str | Path) -> str:
    """A list with an item a line."""
    return "[\n    " + ",\n    ".join(_dumps(row, path) for row in rows) + "\n  ]" if rows else "[]"


def _dumps(value: Any, path: str | Path) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: the edit list cannot be written as JSON ({error})") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def parse_edits(tree: Any, name: str) -> EditList:
    """Checks a decoded JSON tree and builds the edit list; `name` is the file the errors speak of."""
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        found = tree.get("format") if isinstance(tree, dict) else type(tree).__name__
        raise DataError(f'{name}: format is {reprlib.repr(found)}; an edit list says "format": "{FORMAT}"')
    if tree.get("version") != VERSION or isinstance(tree.get("version"), bool):
        raise DataError(
            f"{name}: version is {reprlib.repr(tree.get('version'))}; this editjax reads version {VERSION}"
        )
    refuse_unknown(tree, ("format", "version", "source", "tracks", "segments", "editor"), "the file", name)
    source = parse_source(tree, name)
    rows, editor = tree.get("segments"), tree.get("editor", {})
    if not isinstance(rows, list):
        raise DataError(f"{name}: segments is {type(rows).__name__}; give a list of segments")
    if not isinstance(editor, dict):
        raise DataError(f"{name}: editor is {type(editor).__name__}; give an object, {{}} if there is none")
    segments = tuple(_parse_segment(row, source, f"segments[{i}]", name) for i, row in enumerate(rows))
    _check_unaligned(editor.get("unaligned", []), len(segments), name)
    return EditList(source, segments, editor)


def _parse_source(row: Any, where: str, name: str) -> Source:
    fields = Source._fields[:-1]
    if not isinstance(row, dict):
        raise DataError(f"{name}: {where} is {type(row).__name__}; give {', '.join(fields)}")
    refuse_unknown(row, fields, where, name)
    texts = {key: row.get(key, "") for key in ("path", "sha256")}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{name}: {where}.{key} is {reprlib.repr(text)}; give a text")
    rate = integer(row, "sample_rate", where, name, low=1)
    channels = integer(row, "channels", where, name, low=1)
    return Source(texts["path"], texts["sha256"], rate, channels, integer(row, "frames", where, name, low=0))


def _parse_segment(row: Any, source: Source, where: str, name: str) -> Segment:
    if not isinstance(row, dict):
        raise DataError(f"{name}: {where} is {type(row).__name__}; give an object with start and stop")
    refuse_unknown(row, Segment._fields, where, name)
    start = integer(row, "start", where, name, low=0, high=source.frames)
    stop = integer(row, "stop", where, name, low=start + 1, high=source.frames)
    span = _nominal(row, start, stop, source, where, name)
    fades = [
        integer(row, key, where, name, low=0, high=stop - start, default=0) for key in ("fade_in", "fade_out")
    ]
    gain_db = number(row, "gain_db", where, name, default=0.0)
    score = None if row.get("score") is None else number(row, "score", where, name, default=0.0)
    reason = row.get("reason", "")
    if not isinstance(reason, str):
        raise DataError(f"{name}: {where}.reason is {reprlib.repr(reason)}; give a text")
    return Segment(start, stop, *span, fades[0], fades[1], gain_db, score, reason)


def _nominal(row: dict, start: int, stop: int, source: Source, where: str, name: str) -> tuple[int, int]:
    """The nominal span, or where it is missing or start and stop were moved by hand, start and stop
    themselves."""
    first = integer(row, "nominal_start", where, name, low=0, high=source.frames, default=start)
    last = integer(row, "nominal_stop", where, name, low=0, high=source.frames, default=stop)
    allowed = HAND_MOVED_S * source.sample_rate
    first = start if abs(first - start) > allowed else first
    last = stop if abs(last - stop) > allowed else last
    return (first, last) if first < last else (start, stop)


def _check_unaligned(rows: Any, n_segments: int, name: str) -> None:
    for row in rows if isinstance(rows, list) else [rows]:
        pair = isinstance(row, list) and len(row) == 2 and all(type(value) is int for value in row)
        if not pair or not 0 <= row[0] <= n_segments or row[1] < 1:
            raise DataError(
                f"{name}: editor.unaligned holds {reprlib.repr(row)}; delete it, or give pairs "
                f"[segment, frames] with segment 0 to {n_segments}"
            )


def refuse_unknown(row: dict, known: Sequence[str], where: str, name: str) -> None:
    """Raises DataError, suggesting the nearest, for a field that is not known."""
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"delete it; known are {', '.join(known)}"
            raise DataError(f"{name}: {where} has an unknown field {key!r}; {remedy}")


def integer(
    row: dict, key: str, where: str, name: str, low: int, high: int | None = None, default: int | None = None
) -> int:
    """The whole number in a field, checked. Raises DataError."""
    value = row.get(key, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        problem = "is missing" if key not in row else f"is {reprlib.repr(value)}"
        raise DataError(f"{name}: {where}.{key} {problem}; give a whole number")
    if value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise DataError(f"{name}: {where}.{key} is {value}; give a number {bounds}")
    return value


def number(row: dict, key: str, where: str, name: str, default: float) -> float:
    """The number in a field, checked. Raises DataError."""
    value = row.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
        raise DataError(f"{name}: {where}.{key} is {reprlib.repr(value)}; give a number")
    return float(value)
