"""Which recordings are meant, and what their outputs are called."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from editjax.errors import CannotCreateError, NoInputError, UsageError
from editjax.outputs import EDITED, Outputs

EDITS_SUFFIX = ".edits.json"
PREVIEWS = "join_*.wav"


class Wanted(NamedTuple):
    """The outputs a user named, each None where the default name or none is meant."""

    out: Path | None = None
    edits: Path | None = None
    plot: Path | None = None
    removed: Path | None = None
    previews: Path | None = None
    timelines: Mapping[str, str] = {}  # kind → suffix, which is added to the output's stem


class Place(NamedTuple):
    """The files of one edit; those not wanted are None. With `tracks`, `audio` is their folder."""

    audio: Path
    edits: Path | None
    plot: Path | None
    removed: Path | None
    previews: Path | None  # a folder
    timelines: dict[str, Path]
    tracks: tuple[Path, ...] = ()

    @property
    def audios(self) -> tuple[Path, ...]:
        """The edited tracks, or the one edited recording."""
        return self.tracks or (self.audio,)

    def files(self) -> list[Path]:
        """Every file that is known before the edit is."""
        named = (*self.audios, self.edits, self.plot, self.removed, *self.timelines.values())
        return [path for path in named if path is not None]

    def named(self) -> dict[str, str | list[str]]:
        """The files by what they are, for the report."""
        names = {"output": self.audio, "edits": self.edits, "plot": self.plot, "removed": self.removed}
        files: dict[str, str | list[str]] = {name: str(path) for name, path in names.items() if path}
        if self.tracks:
            files["outputs"] = [str(path) for path in self.tracks]
        if self.previews:
            files["previews"] = str(self.previews)
        if self.timelines:
            files["timelines"] = [str(path) for path in self.timelines.values()]
        return files


def recordings(words: Iterable[str]) -> list[Path]:
    """The files named, with every folder replaced by the recordings in it, in order.

    In a folder, hidden files and what was made before (of another recording, as the edit list of its own name
    beside it says; or named NAME_edited… after another recording there) are passed over. A name that does not
    exist stays: whoever opens it says so. Raises NoInputError for a folder without recordings and for one
    that cannot be read, UsageError for an empty name.
    """
    from editjax.formats import CONTAINER_OF_SUFFIX

    found: list[Path] = []
    for word in words:
        if not word:  # as a path this would be the current folder
            raise UsageError("an input's name is empty; name a recording or a folder")
        path = Path(word)
        if not os.path.isdir(path):
            found.append(path)
            continue
        try:
            audio = [child for child in sorted(path.iterdir()) if child.suffix.lower() in CONTAINER_OF_SUFFIX]
        except OSError as error:
            raise NoInputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        stems = {child.stem for child in audio}
        inside = [child for child in audio if _is_raw_recording(child, stems)]
        if not inside:
            known = " ".join(CONTAINER_OF_SUFFIX)
            raise NoInputError(f"{path}: no recordings in this folder; put some there ({known})")
        found += inside
    return found


def tracks_named(words: Sequence[str]) -> tuple[list[Path], Path]:
    """The tracks of one session, and their folder. Raises UsageError for more than one folder."""
    if len(words) > 1 and any(map(os.path.isdir, words)):
        raise UsageError(
            "--multitrack takes one folder of tracks, or the tracks by name; edit folders one by one"
        )
    from editjax.tracks import folder_of

    tracks = recordings(words)
    for track in tracks:
        check_name(track)
    return tracks, Path(words[0]) if os.path.isdir(words[0]) else folder_of(tracks)


def check_name(path: Path) -> None:
    """Raises NoInputError for a name that is not text: neither libsndfile nor an edit list could hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise NoInputError(f"{shown}: the name is not valid UTF-8; rename the file") from None


def place_of(source: Path, wanted: Wanted, several: bool, ending: str = "") -> Place:
    """The outputs of one edit of an input, by default beside it as NAME_edited; see `place_beside`."""
    return place_beside(
        source.with_name(f"{source.stem}{EDITED}{ending}{source.suffix}"), wanted, several, ending
    )


def place_of_tracks(
    tracks: Sequence[Path], folder: Path, name: str, wanted: Wanted, ending: str = ""
) -> Place:
    """The outputs of one edit of several tracks: each as NAME_edited in a folder, the rest there as `name`.

    The folder is `folder` unless another is wanted. Raises as `place_beside`.
    """
    folder = folder if wanted.out is None else _folder(wanted.out)
    beside = place_beside(folder / f"{name}{ending}.wav", wanted._replace(out=None), ending=ending)
    edited = (folder / f"{track.stem}{EDITED}{ending}{track.suffix}" for track in tracks)
    return beside._replace(audio=folder, tracks=tuple(edited))


def check_apart(places: Mapping[Path, Sequence[Place]]) -> None:
    """Raises UsageError where two inputs of a batch would write the same file, or one would write another."""
    owners = {os.path.abspath(source): source for source in places}
    for source, spots in places.items():
        for path in (path for spot in spots for path in spot.files()):
            owner = owners.setdefault(os.path.abspath(path), source)
            if owner != source:
                raise UsageError(
                    f"{path}: belongs to {owner} and would be written for {source}; edit the two one by one, "
                    "each with its own --out"
                )


def place_beside(default: Path, wanted: Wanted, several: bool = False, ending: str = "") -> Place:
    """The outputs of one edit whose audio is `default` unless another name is wanted.

    With `several` inputs the wanted outputs are folders. `ending` tells variants apart and goes before the
    suffix. Raises UsageError where a name can only be a file but a folder is needed, and for a picture of
    another kind than are drawn.
    """
    from editjax.picture import check_suffix

    audio = _named(wanted.out, default.name, ending, several) or default

    def side(path: Path | None, suffix: str) -> Path | None:
        return _named(path, audio.stem + suffix, ending, several)

    plot = side(wanted.plot, ".png")
    if plot:
        check_suffix(plot)
    return Place(
        audio,
        side(wanted.edits, EDITS_SUFFIX) or audio.with_name(audio.stem + EDITS_SUFFIX),
        plot,
        side(wanted.removed, f"_removed{audio.suffix}"),
        wanted.previews / audio.stem if wanted.previews and (several or ending) else wanted.previews,
        {kind: audio.with_name(audio.stem + suffix) for kind, suffix in wanted.timelines.items()},
    )


def open_place(outputs: Outputs, place: Place, make_folders: bool = False) -> None:
    """Adds every file of a place; with `make_folders` also the folders they lie in."""
    for path in place.files():
        if make_folders:
            outputs.make_folder(path.parent)
        outputs.add(path)
    if place.previews:
        outputs.make_folder(place.previews)
        outputs.make_scratch(place.previews)  # refuses a folder that cannot be written before the work
        for old in place.previews.glob(PREVIEWS):
            if not outputs.overwrite:
                raise CannotCreateError(f"{old}: exists already; choose another folder or allow --overwrite")
            outputs.outdate(old)


def close_place(outputs: Outputs, place: Place) -> None:
    """Takes back the files of a place that turned out to have no edit; what was there before stays whole."""
    for path in place.files():
        outputs.drop(path)
    for old in place.previews.glob(PREVIEWS) if place.previews else ():
        outputs.keep(old)


def _is_raw_recording(path: Path, stems: set[str]) -> bool:
    edited = _is_of_another(path.with_name(path.stem + EDITS_SUFFIX), path)
    by_product = EDITED in path.stem and path.stem.rpartition(EDITED)[0] in stems
    return path.is_file() and not path.name.startswith(".") and not edited and not by_product


def _is_of_another(edits: Path, audio: Path) -> bool:
    """Whether there is an edit list, and not one that was made from this recording."""
    if not os.path.exists(edits):
        return False
    try:
        return Path(json.loads(edits.read_text(encoding="utf-8"))["source"]["path"]).name != audio.name
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return True


def _named(path: Path | None, name: str, ending: str, several: bool) -> Path | None:
    """The file meant by a wanted path: inside it where that is a folder, else with the variant's number."""
    if path is None:
        return None
    if several or os.path.isdir(path):
        return _folder(path) / name
    return path.with_name(f"{path.stem.removesuffix('.edits')}{ending}{_suffix(path)}") if ending else path


def _folder(path: Path) -> Path:
    if path.suffix and not os.path.isdir(path):
        raise UsageError(f"{path}: with several inputs this names a folder; use a name without {path.suffix}")
    return path


def _suffix(path: Path) -> str:
    return EDITS_SUFFIX if path.name.endswith(EDITS_SUFFIX) else path.suffix
