"""`editjax edit`: one or many recordings → edited files, edit lists and whatever else is asked for."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from editjax.cli import complain, complain_internally
from editjax.cli.options import InputOptions, named, parse
from editjax.cli.outputs import (
    Place,
    Wanted,
    check_apart,
    check_name,
    close_place,
    open_place,
    place_of,
    place_of_tracks,
    recordings,
    tracks_named,
)
from editjax.errors import EditjaxError, UsageError
from editjax.outputs import EDITED, Outputs

if TYPE_CHECKING:
    from editjax.audio import Reader, Writer
    from editjax.decision import EditSettings
    from editjax.editor import EditResult
    from editjax.edits import EditList
    from editjax.multitrack import TracksResult
    from editjax.render import RenderSettings

MOST_VARIANTS = 20


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The options that `edit` and `render` share: how it sounds, what else is written, what is said."""

    out: Annotated[str, named("OUT", "-o")] = ""
    """Output file, or a folder for several inputs; default: beside the input."""
    multitrack: bool = False
    """The recordings are tracks of one session: one edit, decided on their sum, for all; OUT is a folder."""
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
    as_ops: bool = False
    """Report the edit as operations: COPY, LOOP, REORDER, CUT, fades; `editjax render` takes their JSON."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print errors only."""

    def wanted(self, edits: str = "") -> Wanted:
        """The outputs the options name. Raises UsageError for a timeline that cannot be written."""
        from editjax.timeline import SUFFIX_OF_KIND, check_kind

        kinds = [check_kind(kind.strip(), self.multitrack) for kind in self.export.split(",") if kind.strip()]
        return Wanted(
            path_of(self.out),
            path_of(edits),
            path_of(self.plot),
            path_of(self.save_removed),
            path_of(self.preview_joins),
            {kind: SUFFIX_OF_KIND[kind] for kind in kinds},
        )


@dataclass(frozen=True)
class EditOptions(InputOptions, OutputOptions):
    """Edits recordings: decides what stays, splices it from the original samples, writes it beside the input.

    Times are written 90, 90s, 1:30.5, start, end, or -10 (ten seconds before the end).
    """

    inputs: Positional[Annotated[tuple[str, ...], named("IN...")]] = ()
    """Recordings, or folders of recordings (edits made before are passed over)."""
    editor: Literal["pointer", "scorer", "labels", "silence"] = "pointer"
    """Who decides: 'pointer' is a trained network, 'scorer' keeps what sounds like edited audio, 'labels'
    cuts, loops and fades beats as a producer would, 'silence' cuts what is quiet."""
    model: Annotated[str, arg(metavar="NAME|FOLDER")] = ""
    """The editor's model: a name that `editjax models` lists, or the folder of an exported one; default:
    'final', for other styles 'styles'; the scorer's is 'scorer', that of labels 'labels'."""
    style: Annotated[str, named("STYLE")] = ""
    """An editing style that the model knows (`editjax models` lists them), or 'any'."""
    style_from: Annotated[str, named("FILE")] = ""
    """Edit like this example, an edited track or edit list; best with NAME_raw.wav beside NAME_edit.wav."""
    target_length: Annotated[str, named("LENGTH")] = ""
    """How long the edit should be, as in 2:30; whole musical spans are dropped or repeated for it."""
    temperature: float = 0.0
    """0 takes the likeliest edit; above, edits are drawn at random (pointer editor)."""
    seed: int = 0
    """Decides what is drawn."""
    variants: int = 1
    """Edits that differ in what they keep, likeliest first, written as OUT, OUT_2 and so on (pointer editor);
    where they are drawn (--temperature, --style any), with seeds counted up."""
    threshold: Annotated[float | None, named("SD")] = None
    """Keep what scores below this, in standard deviations of edited audio (scorer); default: calibrated."""
    keep_ratio: Annotated[float | None, named("SHARE")] = None
    """Keep this share of the recording, as nearly as whole clips allow (scorer)."""
    scores: Annotated[str, named("FILE.npz")] = ""
    """Scores of the recording that `editjax score --out` wrote, instead of new ones (scorer)."""
    effects: Annotated[str, named("griffin-lim|FOLDER")] = ""
    """Give effects their sound, not their level alone, by Griffin–Lim or a vocoder (labels)."""
    reconstruction: Annotated[str, named("MODEL")] = ""
    """The model that says how effects sound, bundled or a folder; reconstruct unless given (labels)."""
    keep: Annotated[UseAppendAction[tuple[str, ...]], named("A,B")] = ()
    """Keep this range whatever the editor thinks; may be repeated."""
    cut: Annotated[UseAppendAction[tuple[str, ...]], named("A,B")] = ()
    """Cut this range whatever the editor thinks; may be repeated."""
    margin: Annotated[str, named("BEFORE[,AFTER]")] = ""
    """Seconds of the recording to leave before and after each clip; negative for less."""
    min_clip: Annotated[str, named("LENGTH")] = ""
    """Drop clips shorter than this; the scorer drops those below 3 s unless told otherwise."""
    max_pause: Annotated[str, named("LENGTH")] = ""
    """Shorten pauses to at most this."""
    snap: Literal["none", "beat", "bar"] = "none"
    """Move cuts to the nearest beat or bar, where the recording has a steady one."""
    edits: Annotated[str, named("FILE")] = ""
    """Where the edit list goes; default: OUT's name with .edits.json."""
    dry_run: bool = False
    """Say what would be done and write nothing."""


def run(arguments: Sequence[str]) -> int:
    """Edits every recording; a bad one is reported and the rest goes on. Returns the first error's code."""
    options = parse(EditOptions, arguments, "editjax edit", spread="inputs")
    from editjax.decision import ready

    if not options.inputs:
        raise UsageError("edit what? name a recording or a folder, as in: editjax edit IN.wav")
    settings = ready(settings_of(options))
    if options.multitrack:
        edit_session(options, settings)
        return 0
    several = len(options.inputs) > 1 or os.path.isdir(options.inputs[0])
    if not several:
        (source,) = recordings(options.inputs)
        edit_file(source, options, settings, places_of(source, options, several))
        return 0
    sources: list[Path] = []
    codes: list[int] = []
    for word in options.inputs:
        with complaining(codes):
            sources += recordings([word])
    places = {source: places_of(source, options, several) for source in sources}
    check_apart(places)
    total = len(places) + len(codes)
    for source, spots in places.items():
        with complaining(codes):
            edit_file(source, options, settings, spots, make_folders=True)
    if codes and total > 1:
        print(f"editjax: {total - len(codes)} done, {len(codes)} failed", file=sys.stderr)
    return codes[0] if codes else 0


@contextlib.contextmanager
def complaining(codes: list[int]) -> Iterator[None]:
    """Prints an error and notes its exit code, so that a batch can go on."""
    try:
        yield
    except EditjaxError as error:
        codes.append(complain(error))
    except BrokenPipeError:  # nobody reads the report any more
        raise
    except Exception as error:
        codes.append(complain_internally(error))


def places_of(source: Path, options: EditOptions, several: bool) -> list[Place]:
    """Where each variant of a recording's edit goes."""
    wanted = options.wanted(options.edits)
    return [place_of(source, wanted, several, ending) for ending in endings(options)]


def endings(options: EditOptions) -> list[str]:
    """What tells the names of variants apart."""
    return ["", *(f"_{k}" for k in range(2, options.variants + 1))]


def settings_of(options: EditOptions) -> "EditSettings":
    """The options as the editor's settings. Raises UsageError for lengths and margins that cannot be read."""
    from editjax.adjust import parse_length, parse_margin
    from editjax.decision import EditSettings
    from editjax.render import RenderSettings

    if not 1 <= options.variants <= MOST_VARIANTS:
        raise UsageError(f"--variants {options.variants}: give a number of edits from 1 to {MOST_VARIANTS}")
    if options.variants > 1 and options.editor != "pointer":
        raise UsageError(
            f"--variants {options.variants}: only the pointer editor has several: --editor pointer"
        )
    return EditSettings(
        editor=options.editor,
        model=options.model,
        style=options.style,
        style_from=options.style_from,
        target_s=parse_length(options.target_length) if options.target_length else None,
        temperature=options.temperature,
        seed=options.seed,
        threshold=options.threshold,
        keep_ratio=options.keep_ratio,
        scores=options.scores,
        effects=options.effects,
        reconstruction=options.reconstruction,
        margin_s=parse_margin(options.margin) if options.margin else None,
        min_clip_s=parse_length(options.min_clip) if options.min_clip else None,
        max_pause_s=parse_length(options.max_pause) if options.max_pause else None,
        snap=options.snap,
        keep=options.keep,
        cut=options.cut,
        render=RenderSettings(crossfade_ms=options.crossfade_ms),
        limits=options.limits(),
        allow_truncated=options.allow_truncated,
    )


def edit_file(
    source: Path,
    options: EditOptions,
    settings: "EditSettings",
    spots: Sequence[Place],
    make_folders: bool = False,
) -> None:
    """One recording; see `edit_opened`."""
    from editjax.audio import Reader

    check_name(source)
    with Reader(source, settings.limits, settings.allow_truncated) as reader:
        edit_opened(reader, [source], options, settings, spots, make_folders)


def edit_session(options: EditOptions, settings: "EditSettings") -> None:
    """The tracks of one session, edited alike; see `edit_opened`."""
    from editjax.audio import Reader
    from editjax.tracks import Mix

    tracks, folder = tracks_named(options.inputs)
    shared, wanted = Path(os.path.abspath(folder)), options.wanted(options.edits)
    if not shared.name and wanted.out is None:
        raise UsageError(
            f"{tracks[0]}: shares no folder with the other tracks; name one for the edit (--out)"
        )
    name = f"{shared.name}{EDITED}"
    default = shared.parent / name
    spots = [place_of_tracks(tracks, default, name, wanted, ending) for ending in endings(options)]
    readers = [Reader(track, settings.limits, settings.allow_truncated) for track in tracks]
    with Mix(readers, folder) as mix:
        edit_opened(mix, tracks, options, settings, spots, make_folders=True)


def edit_opened(
    reader: "Reader",
    inputs: Sequence[Path],
    options: EditOptions,
    settings: "EditSettings",
    spots: Sequence[Place],
    make_folders: bool,
) -> None:
    """One edit: outputs that cannot be written are refused, then all is computed, then all appears."""
    from editjax.decision import choose_several
    from editjax.editor import fulfil, heard_again, listen

    source = reader.info.path
    with progress(reader, options.quiet) as bar:
        if options.dry_run:
            heard = listen(reader, settings, bar.update)
            chosen = choose_several(heard, settings, options.variants)
            say_how_many(source, len(chosen), options)
            for edit_list in chosen:
                alone = heard_again(heard)
                tell(fulfil(edit_list, alone, reader, settings), source, None, alone.timings_s, options)
            return
        with Outputs(options.overwrite, inputs) as outputs:
            for spot in spots:
                open_place(outputs, spot, make_folders)
                refuse_removed(reader, outputs, spot)
            paths = [[outputs[path] for path in spot.audios] for spot in spots]
            results = write_audio(reader, settings, paths, bar.update)
            for spot in spots[len(results) :]:
                close_place(outputs, spot)
            written = [
                write_sides(result.edit_list, reader, outputs, spot, settings.render)
                for result, spot in zip(results, spots, strict=False)
            ]
    say_how_many(source, len(results), options)
    for result, spot in zip(results, written, strict=True):
        tell(result.edit_list, source, spot, result.timings_s, options)


def write_audio(
    reader: "Reader",
    settings: "EditSettings",
    paths: Sequence[Sequence[Path]],
    watch: Callable[[int], Any],
) -> list["EditResult | TracksResult"]:
    """Listens once, then decides on an edit for each item of `paths`, or on fewer, and renders them, a path a
    track.

    Formats are refused first.
    """
    from editjax.decision import choose_several
    from editjax.editor import fulfil, heard_again, listen, render_edit
    from editjax.multitrack import render_track_edits
    from editjax.tracks import Mix

    results: list[EditResult | TracksResult] = []
    with contextlib.ExitStack() as files:
        writers = [track_writers(reader, tracks, files) for tracks in paths]
        heard = listen(reader, settings, watch)
        for edit_list, tracks in zip(choose_several(heard, settings, len(paths)), writers, strict=False):
            alone = heard_again(heard)
            edit_list = fulfil(edit_list, alone, reader, settings)
            if isinstance(reader, Mix):
                results.append(render_track_edits(edit_list, alone, reader, tracks, settings))
            else:
                results.append(render_edit(edit_list, alone, reader, tracks[0], settings))
    return results


def track_writers(
    reader: "Reader", paths: Sequence[Path], files: contextlib.ExitStack, expected_frames: int = 0
) -> list["Writer"]:
    """Opens a writer a track, or the one of a single recording, each in its own format."""
    from editjax.editor import writer_for
    from editjax.tracks import Mix

    readers = reader.readers if isinstance(reader, Mix) else (reader,)
    return [
        files.enter_context(writer_for(track, path, overwrite=True, expected_frames=expected_frames))
        for track, path in zip(readers, paths, strict=True)
    ]


def say_how_many(source: Path, count: int, options: EditOptions) -> None:
    """Says where there are fewer variants than were asked for."""
    if count < options.variants and not options.quiet:
        only = "only 1 variant" if count == 1 else f"only {count} variants"
        print(f"editjax: {source}: {only}; other likely edits keep the same parts", file=sys.stderr)


def refuse_removed(reader: "Reader", outputs: Outputs, place: Place) -> None:
    """Raises CannotCreateError where what was cut could not be written in the format its name asks for."""
    from editjax.editor import writer_for

    if place.removed:
        with writer_for(reader, outputs[place.removed], overwrite=True):
            pass


def write_sides(
    edit_list: "EditList", reader: "Reader", outputs: Outputs, place: Place, settings: "RenderSettings"
) -> Place:
    """Writes what goes with the audio: edit list, timelines, picture, what was cut, joins to listen to.

    Returns what was written: where nothing was cut there is no file of it.
    """
    from editjax.edits import cut_spans, write_edits
    from editjax.render import preview_joins, write_removed
    from editjax.timeline import export

    if place.edits:
        write_edits(edit_list, outputs[place.edits], overwrite=True)
    for kind, path in place.timelines.items():
        export(edit_list, kind, outputs[path], overwrite=True)
    if place.plot:
        from editjax.picture import draw_edit, overview

        draw_edit(outputs[place.plot], *overview(reader), edit_list, overwrite=True)
    if place.removed and not cut_spans(edit_list):
        outputs.drop(place.removed)
        place = place._replace(removed=None)
    if place.removed:
        from editjax.editor import writer_for

        with writer_for(reader, outputs[place.removed], overwrite=True) as writer:
            write_removed(edit_list, reader, writer, settings)
    if place.previews:
        for path in preview_joins(edit_list, reader, outputs.make_scratch(place.previews), settings):
            path.replace(outputs.add(place.previews / path.name))
    return place


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
        files = place.named() if place else {}
        report.say(report.for_programs(edit_list, source, files, timings_s, options.as_ops))
    elif not options.quiet:
        report.say(report.for_people(edit_list, source, place.audio if place else None, options.as_ops))


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
