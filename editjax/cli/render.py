"""`editjax render`: a recording and an edit list, changed by hand or not → the edited file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from editjax.cli.edit import OutputOptions, refuse_removed, tell, write_sides
from editjax.cli.options import InputOptions, named, parse
from editjax.cli.outputs import EDITS_SUFFIX, check_name, open_place, place_beside
from editjax.errors import DataError
from editjax.outputs import Outputs

if TYPE_CHECKING:
    from editjax.audio import Reader
    from editjax.edits import EditList


@dataclass(frozen=True, kw_only=True)
class RenderOptions(InputOptions, OutputOptions):
    """Plays an edit list exactly as it stands: the joins are where it says, only crossfaded."""

    recording: Positional[Annotated[Path, arg(metavar="IN")]]
    """The recording the edit list was made from."""
    edits: Positional[Annotated[Path, arg(metavar="EDITS.json")]]
    """The edit list; its segments are samples of IN."""
    out: Annotated[str, named("OUT", "-o")] = ""
    """Output file, or a folder to put it in; default: beside EDITS.json, under its name."""
    force: bool = False
    """Render although IN is not the recording the edit list was made from."""


def run(arguments: Sequence[str]) -> int:
    """Renders and reports what is heard."""
    options = parse(RenderOptions, arguments, "editjax render")
    from editjax.audio import Reader
    from editjax.editor import writer_for
    from editjax.edits import duration_samples, read_edits
    from editjax.render import RenderSettings, render

    check_name(options.recording)
    settings = RenderSettings(crossfade_ms=options.crossfade_ms)
    edit_list = read_edits(options.edits)
    if not duration_samples(edit_list):
        raise DataError(f"{options.edits}: plays nothing; give it at least one segment")
    name = options.edits.name.removesuffix(EDITS_SUFFIX).removesuffix(".json")
    default = options.edits.with_name(name + options.recording.suffix)
    place = place_beside(default, options.wanted())._replace(edits=None)
    with Reader(options.recording, options.limits(), options.allow_truncated) as reader:
        edit_list = _of_this_recording(edit_list, reader, options)
        with Outputs(options.overwrite, [options.recording, options.edits]) as outputs:
            open_place(outputs, place)
            refuse_removed(reader, outputs, place)
            length = duration_samples(edit_list)
            with writer_for(reader, outputs[place.audio], overwrite=True, expected_frames=length) as writer:
                render(edit_list, reader, writer, settings)
            place = write_sides(edit_list, reader, outputs, place, settings)
    tell(edit_list, options.recording, place, {}, options)
    return 0


def _of_this_recording(edit_list: "EditList", reader: "Reader", options: RenderOptions) -> "EditList":
    """The edit list with this recording as its source. Raises DataError for another one, unless forced."""
    from editjax.edits import source_of

    source, found = edit_list.source, source_of(reader)
    if source.sha256 and source.sha256 != found.sha256 and not options.force:
        raise DataError(
            f"{options.recording}: is not the recording {options.edits} was made from (SHA-256 differs); "
            "name that one, or allow it with --force"
        )
    if not options.force:  # whoever renders checks that the rest fits
        found = source._replace(path=found.path, sha256=found.sha256)
    return edit_list._replace(source=found._replace(sample_rate=source.sample_rate))
