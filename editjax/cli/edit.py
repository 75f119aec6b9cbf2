"""`editjax edit`: one or many recordings → edited files, edit lists and whatever else is asked for."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from editjax.cli import complain
from editjax.cli.options import named, parse
from editjax.cli.outputs import Outputs, Place, Wanted, check_name, place_of, recordings
from editjax.errors import EditjaxError, UsageError

if TYPE_CHECKING:
    from editjax.audio import Reader
    from editjax.editor import EditSettings
    from editjax.edits import EditList
    from editjax.render import RenderSettings


PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The options that `edit` and `render` share: how it sounds, what else is written, what is said."""

    out: Annotated[str, named("OUT", "-o")] = ""
    """Output file, or a folder for several inputs; default: beside the input."""
    crossfade_ms: Annotated[float, arg(metavar="MS")] = 10.0
    """Length of the crossfade at each join."""
    export: Annotated[str, named("KIND,KIND")] = ""
    """Timelines beside OUT: otio, audacity, csv, rpp, edl, fcpxml, auto-editor."""
    plot: Annotated[str, named("OUT.png")] = ""
    """Picture of what was kept, cut and looped (.png, .svg or .pdf)."""
    preview_joins: Annotated[str, named("FOLDER")] = ""
    """Write two seconds on either side of each join, to hear the cuts."""
    save_removed: Annotated[str, named("FILE")] = ""
    """Write what was cut."""
    overwrite: bool = False
    """Replace outputs that exist; the input is never overwritten."""
    json: bool = False
    """Print the report as one JSON object a recording."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print errors only."""

    def wanted(self, edits: str = "") -> Wanted:
        """The outputs the options name. Raises UsageError for an unknown timeline or kind of picture."""
        from editjax.timeline import SUFFIX_OF_KIND, check_kind

        kinds = [check_kind(kind.strip()) for kind in self.export.split(",") if kind.strip()]
        plot = path_of(self.plot)
        if plot and plot.suffix not in ("", *PICTURES):
            raise UsageError(f"{plot}: pictures are written as {', '.join(PICTURES)}; choose one of these")
        return Wanted(
            path_of(self.out),
            path_of(edits),
            plot,
            path_of(self.save_removed),
            path_of(self.preview_joins),
            {kind: SUFFIX_OF_KIND[kind] for kind in kinds},
        )


@dataclass(frozen=True)
class EditOptions(OutputOptions):
    """Edits recordings: decides what stays, splices it from the original samples, writes it beside the input.

    Times are written 90, 90s, 1:30.5, start, end, or -10 (ten seconds before the end).
    """

    inputs: Positional[Annotated[tuple[str, ...], named("IN...")]] = ()
    """Recordings, or folders of recordings (edits made before are passed over)."""
    editor: Literal["silence"] = "silence"
    """Who decides: 'silence' cuts what is quiet."""
    keep: Annotated[UseAppendAction[tuple[str, ...]], named("A,B")] = ()
    """Keep this range whatever the editor thinks; may be repeated."""
    cut: Annotated[UseAppendAction[tuple[str, ...]], named("A,B")] = ()
    """Cut this range whatever the editor thinks; may be repeated."""
    margin: Annotated[str, named("BEFORE[,AFTER]")] = ""
    """Seconds of the recording to leave before and after each clip; negative for less."""
    min_clip: Annotated[str, named("LENGTH")] = ""
    """Drop clips shorter than this."""
    max_pause: Annotated[str, named("LENGTH")] = ""
    """Shorten pauses to at most this."""
    snap: Literal["none", "beat", "bar"] = "none"
    """Move cuts to the nearest beat or bar, where the recording has a steady one."""
    edits: Annotated[str, named("FILE")] = ""
    """Where the edit list goes; default: OUT's name with .edits.json."""
    dry_run: bool = False
    """Say what would be done and write nothing."""
    max_duration: Annotated[str, arg(metavar="LENGTH")] = "12h"
    """Refuse recordings longer than this."""


def run(arguments: Sequence[str]) -> int:
    """Edits every recording; a bad one is reported and the rest goes on. Returns the first error's code."""
    options = parse(EditOptions, arguments, "editjax edit", spread="inputs")
    if not options.inputs:
        raise UsageError("edit what? name a recording or a folder, as in: editjax edit IN.wav")
    several = len(options.inputs) > 1 or Path(options.inputs[0]).is_dir()
    settings = settings_of(options)
    if not several:
        edit_file(Path(options.inputs[0]), options, settings, several)
        return 0
    return each(options.inputs, lambda source: edit_file(source, options, settings, several))


def each(words: Sequence[str], work: Callable[[Path], None]) -> int:
    """Runs `work` for every recording meant; errors are printed as they come, and counted at the end."""
    sources: list[Path] = []
    codes: list[int] = []
    done = 0
    for word in words:
        try:
            sources += recordings([word])
        except EditjaxError as error:
            codes.append(complain(error))
    for source in sources:
        try:
            work(source)
            done += 1
        except EditjaxError as error:
            codes.append(complain(error))
    if codes and done + len(codes) > 1:
        print(f"editjax: {done} done, {len(codes)} failed", file=sys.stderr)
    return codes[0] if codes else 0


def settings_of(options: EditOptions) -> "EditSettings":
    """The options as the editor's settings. Raises UsageError for lengths and margins that cannot be read."""
    from editjax.adjust import parse_length, parse_margin
    from editjax.editor import EditSettings
    from editjax.formats import AudioLimits
    from editjax.render import RenderSettings

    return EditSettings(
        editor=options.editor,
        margin_s=parse_margin(options.margin) if options.margin else None,
        min_clip_s=parse_length(options.min_clip) if options.min_clip else 0.0,
        max_pause_s=parse_length(options.max_pause) if options.max_pause else None,
        snap=options.snap,
        keep=options.keep,
        cut=options.cut,
        render=RenderSettings(crossfade_ms=options.crossfade_ms),
        limits=AudioLimits(max_duration_s=parse_length(options.max_duration)),
    )


def edit_file(source: Path, options: EditOptions, settings: "EditSettings", several: bool) -> None:
    """One recording: outputs that cannot be written are refused, then all is computed, then all appears."""
    from editjax.audio import Reader
    from editjax.editor import decide, listen, render_edit, writer_for

    check_name(source)
    wanted = options.wanted(options.edits)
    with Reader(source, settings.limits) as reader, progress(reader, options.quiet) as bar:
        if options.dry_run:
            heard = listen(reader, settings, bar.update)
            tell(decide(heard, reader, settings), source, None, heard.timings_s, options)
            return
        place = place_of(source, wanted, several)
        with Outputs(options.overwrite, [source]) as outputs:
            outputs.open(place, make_folders=several)
            with writer_for(reader, outputs[place.audio], overwrite=True) as writer:
                heard = listen(reader, settings, bar.update)
                result = render_edit(decide(heard, reader, settings), heard, reader, writer, settings)
            write_sides(result.edit_list, reader, outputs, place, settings.render)
    tell(result.edit_list, source, place, result.timings_s, options)


def write_sides(
    edit_list: "EditList", reader: "Reader", outputs: Outputs, place: Place, settings: "RenderSettings"
) -> None:
    """Writes what goes with the audio: edit list, timelines, picture, what was cut, joins to listen to."""
    from editjax.edits import write_edits
    from editjax.render import preview_joins, write_removed
    from editjax.timeline import export

    if place.edits:
        write_edits(edit_list, outputs[place.edits], overwrite=True)
    for kind, path in place.timelines.items():
        export(edit_list, kind, outputs[path], overwrite=True)
    if place.plot:
        from editjax.picture import draw_edit, overview

        draw_edit(outputs[place.plot], *overview(reader), edit_list, overwrite=True)
    if place.removed:
        from editjax.editor import writer_for

        with writer_for(reader, outputs[place.removed], overwrite=True) as writer:
            write_removed(edit_list, reader, writer, settings)
    if place.previews:
        with tempfile.TemporaryDirectory(prefix=".editjax-", dir=place.previews) as folder:
            for path in preview_joins(edit_list, reader, folder, settings=settings):
                path.replace(outputs.add(place.previews / path.name))


def tell(
    edit_list: "EditList",
    source: Path,
    place: Place | None,
    timings_s: dict[str, float],
    options: OutputOptions,
) -> None:
    """Prints the report in the form asked for; without a place nothing was written."""
    from editjax.cli import report

    if options.json:
        report.say(report.for_programs(edit_list, source, place.named() if place else {}, timings_s))
    elif not options.quiet:
        report.say(report.for_people(edit_list, source, place.audio if place else None))


def progress(reader: "Reader", quiet: bool) -> Any:
    """A bar over the samples read, on stderr and only where that is a terminal."""
    from tqdm import tqdm

    info = reader.info
    return tqdm(
        total=info.header_frames or None,
        desc=info.path.name,
        unit="sample",
        unit_scale=True,
        leave=False,
        disable=quiet or not sys.stderr.isatty(),
    )


def path_of(word: str) -> Path | None:
    """The path an option names, if it is given."""
    return Path(word) if word else None
