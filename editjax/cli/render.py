"""`editjax render`: a recording and an edit list, changed by hand or not → the edited file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from editjax.cli.edit import OutputOptions, tell, write_sides
from editjax.cli.options import parse
from editjax.cli.outputs import EDITS_SUFFIX, Outputs, place_beside
from editjax.errors import DataError

if TYPE_CHECKING:
    from editjax.audio import Reader
    from editjax.edits import EditList


@dataclass(frozen=True)
class RenderOptions(OutputOptions):
    """Plays an edit list exactly as it stands: the joins are where it says, only crossfaded."""

    recording: Positional[Annotated[Path, arg(metavar="IN")]]
    """The recording the edit list was made from."""
    edits: Positional[Annotated[Path, arg(metavar="EDITS.json")]]
    """The edit list; its segments are samples of IN."""
    force: bool = False
    """Render although IN is not the recording the edit list was made from."""


def run(arguments: Sequence[str]) -> int:
    """Renders and reports what is heard."""
    options = parse(RenderOptions, arguments, "editjax render")
    from editjax.audio import Reader
    from editjax.editor import writer_for
    from editjax.edits import duration_samples, read_edits
    from editjax.render import RenderSettings, render

    settings = RenderSettings(crossfade_ms=options.crossfade_ms)
    edit_list = read_edits(options.edits)
    default = options.edits.with_name(
        options.edits.name.removesuffix(EDITS_SUFFIX) + options.recording.suffix
    )
    place = place_beside(default, options.wanted())._replace(edits=None)
    with Reader(options.recording, allow_truncated=options.allow_truncated) as reader:
        edit_list = _of_this_recording(edit_list, reader, options)
        with Outputs(options.overwrite, [options.recording, options.edits]) as outputs:
            outputs.open(place)
            length = duration_samples(edit_list)
            with writer_for(reader, outputs[place.audio], overwrite=True, expected_frames=length) as writer:
                render(edit_list, reader, writer, settings)
            place = write_sides(edit_list, reader, outputs, place, settings)
    tell(edit_list, options.recording, place, {}, options)
    return 0


def _of_this_recording(edit_list: "EditList", reader: "Reader", options: RenderOptions) -> "EditList":
    """The edit list with this recording as its source. Raises DataError for another one, unless forced."""
    from editjax.files import sha256_of

    source = edit_list.source
    sha256 = sha256_of(options.recording)
    if source.sha256 and source.sha256 != sha256 and not options.force:
        raise DataError(
            f"{options.recording}: is not the recording {options.edits} was made from (SHA-256 differs); "
            "name that one, or allow it with --force"
        )
    here = source._replace(path=str(options.recording.absolute()), sha256=sha256)
    if options.force:
        here = here._replace(frames=reader.frames, channels=reader.info.channels)
    return edit_list._replace(source=here)
