"""A folder or a table of (raw, edited) files → recordings with their edits, found by name.

    NAME_raw.wav, NAME_edit.wav, NAME.edits.json              in one folder, or
    input/NAME_raw.wav, desired_output/NAME_edit.wav          the older layout, and
    NAME~STYLE_edit.wav, NAME~STYLE.edits.json                further edits of NAME_raw.wav
    NAME_stems/                                               the tracks that NAME_raw.wav is the sum of
    raw,edited[,edits][,style][,id][,stems]                   a CSV; paths are relative to it

An edit needs its edited file or its edit list; with both, the edit list says what was done. What cannot be
paired is returned with the reason, never dropped silently.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable
from glob import escape
from pathlib import Path
from typing import NamedTuple

from editjax.errors import DataError, NoInputError
from editjax.formats import CONTAINER_OF_SUFFIX
from editjax.stores import place

ROLE_FOLDERS = ("input", "desired_output")
CACHE_FOLDERS = ("features", "labels")
CSV_COLUMNS = ("raw", "edited", "edits", "style", "id", "stems")
STEMS = "_stems"

_AUDIO_NAME = re.compile(r"(?P<name>.+?)(?:~(?P<style>[^~_.]+))?_(?P<role>raw|edit)", re.IGNORECASE)
_EDITS_NAME = re.compile(r"(?P<name>.+?)(?:~(?P<style>[^~_.]+))?(?:_edit)?\.edits\.json", re.IGNORECASE)


class EditFiles(NamedTuple):
    """One edit: the edited audio, the edit list, or both; `style` is None where no name or table tells."""

    id: str
    style: str | None
    edited: Path | None
    edits: Path | None


class RawFiles(NamedTuple):
    """One raw recording, every edit of it and its stems, if they are known.

    Of `cached` ones there are only mels, and labels in the place of an edit list: see `find_cached`.
    """

    id: str
    raw: Path
    edits: tuple[EditFiles, ...]
    stems: tuple[Path, ...] = ()
    cached: bool = False

    def moved(self, to: Callable[[Path], Path]) -> "RawFiles":
        """The same recording with every file in another place."""
        edits = tuple(
            edit._replace(edited=edit.edited and to(edit.edited), edits=edit.edits and to(edit.edits))
            for edit in self.edits
        )
        return self._replace(raw=to(self.raw), edits=edits, stems=tuple(to(stem) for stem in self.stems))


class Found(NamedTuple):
    """Recordings by ascending id, and (name, reason) of what has no counterpart."""

    recordings: tuple[RawFiles, ...]
    skipped: tuple[tuple[str, str], ...]


def find_pairs(pairs: str | Path) -> Found:
    """The pairs in a folder (and the folders in it) or in a CSV.

    Raises NoInputError when there is no such folder or file or no pair in it, DataError for an unusable CSV.
    """
    pairs = place(pairs)
    if pairs.is_dir():
        found = _in_folder(pairs)
    elif pairs.is_file():
        found = _in_table(pairs)
    else:
        raise NoInputError(f"{pairs}: no such folder or CSV file")
    if not found.recordings and not found.skipped:
        raise NoInputError(
            f"{pairs}: no pairs found; name them NAME_raw.wav and NAME_edit.wav, or give a CSV "
            "or the folder that holds features/NAME_raw.npz"
        )
    return found


def find_cached(folder: str | Path) -> Found | None:
    """The pairs in a cache of the earlier super editor; None where the folder is none, for want of a raw mel.

    features/NAME_raw.npz, features/NAME_edit.npz (or NAME.npz) and labels/NAME_labels.npy.
    """
    folder = place(folder)
    mels = {path.stem: path for path in sorted(folder.glob(f"{CACHE_FOLDERS[0]}/*.npz"))}
    if not any(stem.endswith("_raw") for stem in mels):
        return None
    labels = {path.stem: path for path in sorted(folder.glob(f"{CACHE_FOLDERS[1]}/*.npy"))}
    recordings, skipped = [], []
    for name in sorted(stem.removesuffix("_raw") for stem in mels if stem.endswith("_raw")):
        raw = mels.pop(f"{name}_raw")
        edited = mels.pop(f"{name}_edit", None) or mels.pop(name, None)
        label = labels.pop(f"{name}_labels", None)
        if edited is None or label is None:
            missing = f"features/{name}_edit.npz" if edited is None else f"labels/{name}_labels.npy"
            skipped.append((name, f"no {missing}; a cached pair needs both mels and its labels"))
        else:
            recordings.append(RawFiles(name, raw, (EditFiles(name, None, edited, label),), cached=True))
    for path in [*mels.values(), *labels.values()]:
        name = path.stem.removesuffix("_edit").removesuffix("_labels")
        skipped.append((f"{path.parent.name}/{path.name}", f"no features/{name}_raw.npz"))
    return Found(tuple(recordings), tuple(skipped))


def edit_with_raw(path: Path) -> RawFiles | None:
    """The recording of one edited file or edit list, found by name beside it, and that edit alone.

    None where no name says so, or no recording is there. DataError where several are.
    """
    named = _parse_name(path)
    if named is None or named[2] == "raw":
        return None
    name, style, role = named
    folders = [path.parent]
    if path.parent.name == ROLE_FOLDERS[1]:
        folders.append(path.parent.parent / ROLE_FOLDERS[0])
    there = (
        file for folder in folders if folder.is_dir() for file in sorted(folder.glob(f"{escape(name)}_*"))
    )
    raws = [file for file in there if _parse_name(file) == (name, None, "raw")]
    if not raws:
        return None
    if len(raws) > 1:
        raise DataError(f"{path}: several raw recordings: {', '.join(raw.name for raw in raws)}; keep one")
    edited, edits = (path, None) if role == "edited" else (None, path)
    return RawFiles(name, raws[0], (EditFiles(_edit_id(name, style), style, edited, edits),))


def _in_folder(folder: Path) -> Found:
    raws: dict[str, list[Path]] = {}
    edits: dict[str, dict[str | None, EditFiles]] = {}
    skipped: list[tuple[str, str]] = []
    there = sorted(p for p in folder.rglob("*") if not _hidden(p, folder) and p.is_file())
    named = [(path, parsed) for path in there if (parsed := _parse_name(path))]
    stem_folders = {_stem_folder(path, name) for path, (name, _, role) in named if role == "raw"}
    for path, (name, style, role) in named:
        if not stem_folders.isdisjoint(path.parents):
            continue
        key = (_without_role_folder(path.parent.relative_to(folder)) / name).as_posix()
        if role == "raw":
            raws.setdefault(key, []).append(path)
            continue
        files = edits.setdefault(key, {}).setdefault(
            style, EditFiles(_edit_id(key, style), style, None, None)
        )
        taken = files.edits if role == "edits" else files.edited
        if taken is not None:
            skipped.append((str(path), f"{taken.name} is the same edit in another file"))
        elif role == "edits":
            edits[key][style] = files._replace(edits=path)
        else:
            edits[key][style] = files._replace(edited=path)
    return _pair_up(raws, edits, skipped)


def _pair_up(
    raws: dict[str, list[Path]],
    edits: dict[str, dict[str | None, EditFiles]],
    skipped: list[tuple[str, str]],
) -> Found:
    recordings = []
    for key in sorted(raws.keys() | edits.keys()):
        paths, found = raws.get(key, []), edits.get(key, {})
        if not paths:
            skipped += [(files.id, f"no raw recording {Path(key).name}_raw.*") for files in found.values()]
        elif len(paths) > 1:
            skipped.append(
                (key, f"several raw recordings: {', '.join(path.name for path in paths)}; keep one")
            )
        elif not found:
            skipped.append((key, f"no edit {Path(key).name}_edit.* or {Path(key).name}.edits.json"))
        else:
            ordered = sorted(found.values(), key=lambda files: files.id)
            stems = _stems_in(_stem_folder(paths[0], Path(key).name))
            recordings.append(RawFiles(key, paths[0], tuple(ordered), stems))
    return Found(tuple(recordings), tuple(skipped))


def _in_table(table: Path) -> Found:
    try:
        text = table.read_bytes().decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as CSV ({error})") from error
    columns = {column for row in rows for column in row if column is not None}
    if "raw" not in columns or not columns & {"edited", "edits"}:
        raise DataError(
            f"{table}: needs columns raw and edited (or edits); known are {', '.join(CSV_COLUMNS)}"
        )
    if unknown := columns - set(CSV_COLUMNS):
        raise DataError(f"{table}: unknown columns {', '.join(sorted(unknown))}; known are {CSV_COLUMNS}")
    raws: dict[str, Path] = {}
    stems: dict[str, tuple[Path, ...]] = {}
    edits: dict[str, list[EditFiles]] = {}
    skipped: list[tuple[str, str]] = []
    for line, row in enumerate(rows, start=2):
        cells = {column: (row.get(column) or "").strip() for column in CSV_COLUMNS}
        place = f"{table.name} line {line}"
        if not cells["raw"] or not (cells["edited"] or cells["edits"]):
            skipped.append((place, "a line needs a raw recording and an edited file or an edit list"))
            continue
        missing = [cells[c] for c in CSV_COLUMNS[:3] if cells[c] and not (table.parent / cells[c]).is_file()]
        if cells["stems"] and not (table.parent / cells["stems"]).is_dir():
            missing.append(cells["stems"])
        if missing:
            skipped.append((place, f"no such file or folder: {', '.join(missing)}"))
            continue
        key = cells["id"] or _table_id(cells["raw"])
        raw = table.parent / cells["raw"]
        if raws.setdefault(key, raw) != raw:
            skipped.append((place, f"id {key} already names {raws[key].name}; add a column id"))
            continue
        if cells["stems"]:
            stems[key] = _stems_in(table.parent / cells["stems"])
        edits.setdefault(key, []).append(_table_edit(key, cells, table.parent, edits.get(key, [])))
    recordings = (RawFiles(key, raws[key], tuple(edits[key]), stems.get(key, ())) for key in sorted(raws))
    return Found(tuple(recordings), tuple(skipped))


def _table_edit(key: str, cells: dict[str, str], folder: Path, before: Iterable[EditFiles]) -> EditFiles:
    taken = {files.id for files in before}
    style = cells["style"] or None
    candidates = (
        _edit_id(key, style if n == 1 else f"{style or 'edit'}{n}") for n in range(1, len(taken) + 2)
    )
    edited, edits = (folder / cells[column] if cells[column] else None for column in ("edited", "edits"))
    return EditFiles(next(id for id in candidates if id not in taken), style, edited, edits)


def _table_id(raw: str) -> str:
    path = Path(raw)
    return path.with_name(path.stem.removesuffix("_raw")).as_posix()


def _parse_name(path: Path) -> tuple[str, str | None, str] | None:
    """(name, style, role: raw, edited or edits) of a file, None for a file of another kind."""
    if match := _EDITS_NAME.fullmatch(path.name):
        return match["name"], match["style"], "edits"
    match = _AUDIO_NAME.fullmatch(path.stem)
    if match is None or path.suffix.lower() not in CONTAINER_OF_SUFFIX:
        return None
    if match["role"].lower() == "raw":
        return match["name"], None, "raw"
    return match["name"], match["style"], "edited"


def _stem_folder(raw: Path, name: str) -> Path:
    """Where the stems of a raw recording lie, if they are known."""
    return raw.parent / f"{name}{STEMS}"


def _stems_in(folder: Path) -> tuple[Path, ...]:
    """The recordings in a folder, by name; none where it is not there."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    audible = (path for path in there if path.suffix.lower() in CONTAINER_OF_SUFFIX)
    return tuple(path for path in audible if path.is_file() and not path.name.startswith("."))


def _edit_id(key: str, style: str | None) -> str:
    return key if style is None else f"{key}~{style}"


def _without_role_folder(folder: Path) -> Path:
    return folder.parent if folder.name in ROLE_FOLDERS else folder


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
