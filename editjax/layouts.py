"""Folders of recordings as people have them → what each file is: its group, its split, its labels.

`folder`  any folder; groups and splits as `recordings` makes them; a manifest.csv may say kinds and genres
`gtzan`   GENRE/GENRE.00000.wav
`fma`     000/000002.mp3 beside fma_metadata/tracks.csv: genre, artist, the set's own split
`nsynth`  nsynth-train/audio/*.wav beside examples.json: instrument, the set's own split
`musdb`   train/SONG/{mixture,drums,bass,other,vocals}.wav, the layout of MUSDB18-HQ

Files of a group (a song, an artist, an instrument) are never on both sides of a split.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from editjax.errors import DataError, NoInputError, UsageError
from editjax.formats import CONTAINER_OF_SUFFIX
from editjax.recordings import family_of, kind_of, manifest_rows, split_of, split_of_family

Layout = Literal["folder", "gtzan", "fma", "nsynth", "musdb"]
MIXTURE = "mixture"
FMA_SPLITS = {"training": "train", "validation": "valid", "test": "test"}
FMA_HEADER = 3
"""Rows above the tracks: the group of a column, its name, and `track_id`."""
LARGEST_TABLE_BYTES = 1 << 30


class Found(NamedTuple):
    """A file of a set: `name` is its path inside the folder; labels are such as genre, instrument, kind."""

    path: Path
    name: str
    group: str
    split: str
    labels: dict[str, str]


def find(folder: Path, layout: Layout = "folder") -> list[Found]:
    """The audio files of a folder, by name.

    Raises NoInputError where there is no such folder or no audio file of the layout, DataError for tables
    that cannot be understood.
    """
    if layout not in get_args(Layout):
        raise UsageError(f"layout {layout!r} is unknown: choose from {', '.join(get_args(Layout))}")
    if not folder.is_dir():
        raise NoInputError(f"{folder}: no such folder of recordings")
    finders = {"folder": _folder, "gtzan": _gtzan, "fma": _fma, "nsynth": _nsynth, "musdb": _musdb}
    found = sorted(finders[layout](folder), key=lambda one: one.name)
    if not found:
        raise NoInputError(f"{folder}: holds no audio file in the layout {layout!r}; see --layout")
    return found


def _audio(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in CONTAINER_OF_SUFFIX and p.is_file())


def _folder(folder: Path) -> Iterator[Found]:
    rows = manifest_rows(folder)
    for path in _audio(folder):
        name = path.relative_to(folder).as_posix()
        genre = rows.get(name, {}).get("genre")
        labels = {"kind": kind_of(name, rows), **({"genre": genre} if genre else {})}
        yield Found(path, name, family_of(name), split_of(name), labels)


def _gtzan(folder: Path) -> Iterator[Found]:
    """The genre is in the name; nobody says which excerpts are of one artist, so each is its own group."""
    for path in _audio(folder):
        genre, _, number = path.stem.partition(".")
        if number.isdigit() and genre == path.parent.name:
            yield Found(path, f"{genre}/{path.name}", path.stem, split_of_family(path.stem), {"genre": genre})


def _fma(folder: Path) -> Iterator[Found]:
    tables = sorted(folder.rglob("tracks.csv"))
    if not tables:
        raise NoInputError(f"{folder}: no tracks.csv in it; unpack fma_metadata.zip there")
    facts = _fma_tracks(tables[0])
    for path in _audio(folder):
        if not path.stem.isdigit() or int(path.stem) not in facts:
            continue
        artist, split, genre = facts[int(path.stem)]
        labels = {"genre": genre} if genre else {}
        group = f"artist {artist}" if artist else path.stem
        yield Found(path, f"{path.stem[:3]}/{path.name}", group, split or split_of_family(group), labels)


def _fma_tracks(table: Path) -> dict[int, tuple[str, str, str]]:
    """Artist, split and genre of every track."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = [next(rows) for _ in range(FMA_HEADER)]
            named = {pair: column for column, pair in enumerate(zip(*header[:2], strict=True))}
            artist, split, genre = (
                named[pair] for pair in (("artist", "id"), ("set", "split"), ("track", "genre_top"))
            )
            return {int(row[0]): (row[artist], FMA_SPLITS.get(row[split], ""), row[genre]) for row in rows}
    except (KeyError, ValueError, IndexError, StopIteration, csv.Error, OSError) as error:
        raise DataError(f"{table}: not the tracks.csv of fma_metadata ({error!r})") from error


def _nsynth(folder: Path) -> Iterator[Found]:
    for table in sorted(folder.rglob("examples.json")):
        split = table.parent.name.removeprefix("nsynth-")
        if split not in ("train", "valid", "test"):
            raise DataError(f"{table}: lies in no folder nsynth-train, nsynth-valid or nsynth-test")
        try:
            notes = json.loads(table.read_text(encoding="utf-8"))
            for name, note in notes.items():
                path = table.parent / "audio" / f"{name}.wav"
                if path.is_file():
                    labels = {"instrument": str(note["instrument_family_str"])}
                    yield Found(path, f"{split}/{path.name}", str(note["instrument_str"]), split, labels)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{table}: not the examples.json of NSynth ({error!r})") from error


def _musdb(folder: Path) -> Iterator[Found]:
    if packed := sorted(folder.rglob("*.stem.mp4")):
        raise DataError(f"{packed[0]}: stems in one MP4; unpack them to WAV, or take MUSDB18-HQ")
    for path in _audio(folder):
        song, part = path.parent.name, path.parent.parent.name
        if part in ("train", "test"):
            split = part if part == "test" else "valid" if split_of_family(song) == "valid" else "train"
            labels = {"instrument": path.stem}
            yield Found(path, f"{part}/{song}/{path.name}", song, split, labels)
