"""`editjax render`: a recording or its tracks, and an edit list, changed by hand or not → what is heard."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from editjax.cli.edit import OutputOptions, refuse_removed, tell, track_writers, write_sides
from editjax.cli.options import InputOptions, named, parse
from editjax.cli.outputs import (
    EDITS_SUFFIX,
    Place,
    check_name,
    open_place,
    place_beside,
    place_of_tracks,
    tracks_named,
)
from editjax.errors import DataError
from editjax.outputs import Outputs

if TYPE_CHECKING:
    from editjax.audio import Reader
    from editjax.edits import EditList, Source


@dataclass(frozen=True, kw_only=True)
class RenderOptions(InputOptions, OutputOptions):
    """Plays an edit list exactly as it stands: the joins are where it says, only crossfaded."""

    recording: Positional[Annotated[Path, arg(metavar="IN")]]
    """The recording the edit list was made from; with --multitrack, the folder of its tracks."""
    edits: Positional[Annotated[Path, arg(metavar="EDITS.json")]]
    """The edit list, or its operations (`editjax edit --as-ops --json`); positions are samples of IN."""
    out: Annotated[str, named("OUT", "-o")] = ""
    """Output file, or a folder to put it in; default: beside EDITS.json, under its name (not for tracks)."""
    force: bool = False
    """Render although IN is not the recording the edit list was made from."""


def run(arguments: Sequence[str]) -> int:
    """Renders and reports what is heard."""
    options = parse(RenderOptions, arguments, "editjax render")
    from editjax.audio import Reader
    from editjax.edits import duration_samples
    from editjax.operations import read_edit
    from editjax.tracks import Mix

    edit_list = read_edit(options.edits)
    if not duration_samples(edit_list):
        raise DataError(f"{options.edits}: plays nothing; give it at least one segment")
    name = options.edits.name.removesuffix(EDITS_SUFFIX).removesuffix(".json")
    limits = options.limits(), options.allow_truncated
    if options.multitrack:
        inputs, folder = tracks_named([str(options.recording)])
        inputs = _as_edited(inputs, edit_list.source.tracks)
        reader: Reader = Mix([Reader(track, *limits) for track in inputs], folder)
        place = place_of_tracks(inputs, options.edits.parent, name, options.wanted())
    else:
        check_name(options.recording)
        inputs, reader = [options.recording], Reader(options.recording, *limits)
        place = place_beside(options.edits.with_name(name + options.recording.suffix), options.wanted())
    with reader:
        render_opened(edit_list, reader, inputs, place._replace(edits=None), options)
    return 0


def _as_edited(tracks: list[Path], sources: Sequence["Source"]) -> list[Path]:
    """The tracks in the order of the edit list; as they are where they are not the same ones."""
    by_name = {track.name: track for track in tracks}
    names = [Path(source.path).name for source in sources]
    return [by_name[name] for name in names] if sorted(names) == sorted(by_name) else tracks


def render_opened(
    edit_list: "EditList", reader: "Reader", inputs: list[Path], place: Place, options: RenderOptions
) -> None:
    """Refuses what cannot be rendered or written, renders all, lets all appear, and reports."""
    from editjax.edits import duration_samples
    from editjax.render import RenderSettings, render, render_tracks
    from editjax.tracks import Mix

    settings = RenderSettings(crossfade_ms=options.crossfade_ms)
    edit_list = _of_this_recording(edit_list, reader, options)
    with Outputs(options.overwrite, [*inputs, options.edits]) as outputs:
        open_place(outputs, place, make_folders=options.multitrack)
        refuse_removed(reader, outputs, place)
        length = duration_samples(edit_list)
        with contextlib.ExitStack() as files:
            paths = [outputs[path] for path in place.audios]
            writers = track_writers(reader, paths, files, expected_frames=length)
            if isinstance(reader, Mix):
                render_tracks(edit_list, reader, writers, settings)
            else:
                render(edit_list, reader, writers[0], settings)
        place = write_sides(edit_list, reader, outputs, place, settings)
    tell(edit_list, reader.info.path, place, {}, options)


def _of_this_recording(edit_list: "EditList", reader: "Reader", options: RenderOptions) -> "EditList":
    """The edit list with this recording as its source. Raises DataError for another one, unless forced."""
    from editjax.edits import source_of

    source, found = edit_list.source, source_of(reader)
    if source.sha256 and source.sha256 != found.sha256 and not options.force:
        raise DataError(
            f"{_other_track(source, found) or options.recording}: is not what {options.edits} was made from "
            "(SHA-256 differs); name that, or allow it with --force"
        )
    if not options.force:  # whoever renders checks that the rest fits
        found = source._replace(path=found.path, sha256=found.sha256, tracks=found.tracks)
    return edit_list._replace(source=found._replace(sample_rate=source.sample_rate))


def _other_track(source: "Source", found: "Source") -> str:
    """The first track that is new, changed, or missing."""
    wanted = {Path(track.path).name: track for track in source.tracks}
    for track in found.tracks:
        known = wanted.pop(Path(track.path).name, None)
        if source.tracks and (known is None or known.sha256 != track.sha256):
            return track.path
    return next((track.path for track in wanted.values()), "")
