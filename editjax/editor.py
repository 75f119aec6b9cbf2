"""One recording → an edit list → the edited recording: what `editjax edit` and `editjax.edit` do.

    listen (read ‖ mel) → choose (an editor's edit list) → adjust (what the user asked for) → place joins →
    render

Every editor returns an edit list, so that all of them share the adjustments, the renderer and the files.
"""

import contextlib
import difflib
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from editjax.adjust import (
    cut_ranges,
    keep_ranges,
    limit_pauses,
    parse_ranges,
    snap_joins,
    with_margin,
    without_short_clips,
)
from editjax.audio import ArrayReader, Reader, Writer
from editjax.beats import BeatSettings, track_beats
from editjax.crossfade import DEFAULT_SETTINGS
from editjax.edits import (
    EditList,
    Segment,
    Source,
    Summary,
    duration_samples,
    from_pointers,
    source_of,
    summary,
)
from editjax.errors import DataError, UsageError
from editjax.events import events_of
from editjax.formats import DEFAULT_LIMITS, AudioLimits, output_format
from editjax.mel import FrameGrid, MelSettings, mel_of, stem_mel
from editjax.render import RenderSettings, place_joins, render
from editjax.retarget import PROMISE, RetargetSettings, retarget_edit_list
from editjax.silence import quiet_spans, silence_edit
from editjax.styles import STYLES
from editjax.tracks import Mix

if TYPE_CHECKING:
    from editjax.network import EditedPointers, PointerNetwork

EDITORS = ("pointer", "silence")
Watch = Callable[[int], None]
SNAPS = ("none", "beat", "bar")
SEEDS = 1 << 32
ANY = "any"
MODEL, MODEL_OF_STYLES = "final", "styles"


@dataclass(frozen=True)
class EditSettings:
    """What is asked of an edit. Times and lengths are seconds; `keep` and `cut` are texts such as "1:00,end".

    `model` is the name of a bundled model or a model's folder, left empty the bundled one for the style asked
    for (`model_of`); it, the style and sampling (`seed` with a `temperature` above 0) are the pointer
    editor's. `style` is one the model knows, or "any" for one drawn by the seed; `style_from` names an
    example of a style instead, an edited track or an edit list. `target_s` is the length the edit should
    have, met within 5 %.
    `margin_s` is (before, after) each clip, None the editor's own. `allow_truncated` edits what a damaged
    file still holds.
    """

    editor: str = "pointer"
    model: str = ""
    style: str = ""
    style_from: str = ""
    target_s: float | None = None
    temperature: float = 0.0
    seed: int = 0
    margin_s: tuple[float, float] | None = None
    min_clip_s: float = 0.0
    max_pause_s: float | None = None
    snap: str = "none"
    keep: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    render: RenderSettings = DEFAULT_SETTINGS
    mel: MelSettings = MelSettings()
    limits: AudioLimits = DEFAULT_LIMITS
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        if self.editor not in EDITORS:
            raise UsageError(f"unknown editor {self.editor!r}; use one of {', '.join(EDITORS)}")
        if self.snap not in SNAPS:
            raise UsageError(f"unknown snap {self.snap!r}; use one of {', '.join(SNAPS)}")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature {self.temperature}: give 0 (always the likeliest edit) or more")
        if not 0 <= self.seed < SEEDS:
            raise UsageError(f"seed {self.seed}: give a number from 0 to below 2**32")
        if isinstance(self.keep, str) or isinstance(self.cut, str):
            raise UsageError('keep and cut are lists of ranges, such as ["1:00,1:30"]')
        if self.target_s is not None and not 0 < self.target_s < math.inf:
            raise UsageError(f"target length {self.target_s} s: give a length above 0")
        if self.editor != "pointer" and self.temperature:
            raise UsageError("a temperature needs the pointer editor: --editor pointer")
        if self.editor != "pointer" and self.model:
            raise UsageError("a model needs the pointer editor: --editor pointer")
        if self.editor != "pointer" and (self.style or self.style_from):
            raise UsageError("a style needs the pointer editor: --editor pointer")
        if self.style and self.style_from:
            raise UsageError("give a style or an example of one: --style or --style-from")


class Heard(NamedTuple):
    """A recording as the editors see it; `timings_s` as in `EditResult`.

    `stems_IMF` are the mels of its tracks (`mel.stem_mel`), where it is a sum and the editor hears them.
    """

    source: Source
    grid: FrameGrid
    mel_TF: np.ndarray
    timings_s: dict[str, float]
    stems_IMF: np.ndarray | None = None


class EditResult(NamedTuple):
    """An edit made: its list, and the samples (S, C) or the file they were written to.

    `timings_s` are seconds of wall clock a stage: `read` (decoding, in its own thread beside the mel), `mel`
    (the whole pass over the file, reading included), `decide` (for the pointer editor with `beats` and
    `network`, its encoding and decoding), `place` (joins), `render`.
    """

    edit_list: EditList
    summary: Summary
    sample_rate_hz: int
    samples_SC: np.ndarray | None
    path: Path | None
    timings_s: dict[str, float]


def edit(
    source: str | Path | np.ndarray,
    sample_rate_hz: int | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    settings: EditSettings = EditSettings(),
    **changes: Any,
) -> EditResult:
    """Edits a recording: a path, or samples (S,) or (S, C) with their rate.

    With `out` the edit is streamed to that file and `samples_SC` is None. `changes` are fields of
    `EditSettings`, as in `edit("session.wav", max_pause_s=0.5)`. Raises the errors of `errors.py`; nothing
    half-written is left.
    """
    settings = ready(changed(settings, changes))
    reader = reader_of(source, sample_rate_hz, settings)
    with reader, contextlib.ExitStack() as stack:
        writer = None
        if out is not None:  # opened first: what cannot be written is refused before the work
            writer = stack.enter_context(writer_for(reader, Path(out), overwrite=overwrite))
        heard = listen(reader, settings)
        edit_list = decide(heard, reader, settings)
        return render_edit(edit_list, heard, reader, writer, settings)


def model_of(settings: EditSettings) -> str:
    """The model that edits: the one named, else the bundled one for *final* or that for all other styles."""
    plain = settings.style in ("", STYLES[0]) and not settings.style_from
    return settings.model or (MODEL if plain else MODEL_OF_STYLES)


def ready(settings: EditSettings) -> EditSettings:
    """The settings with their model's mel: an unusable model, style or example is refused before the work."""
    if settings.editor != "pointer":
        return settings
    _style(settings)
    return replace(settings, mel=_network_of(settings).mel)


def listen(reader: Reader, settings: EditSettings = EditSettings(), watch: Watch | None = None) -> Heard:
    """Reads a recording and computes its mel; `watch` is told the samples of every block read.

    It is read once; the tracks of a sum once more, each by itself, for a model that hears stems.
    """
    timings_s = {"read": 0.0}
    with timed(timings_s, "mel"):
        mel_TF, _ = mel_of(_Watched(reader, timings_s, watch), settings.mel)
        stems_IMF = None
        if isinstance(reader, Mix) and settings.editor == "pointer" and _network_of(settings).hears_stems:
            stems = [stem_mel(track, len(mel_TF), settings.mel) for track in reader.readers]
            stems_IMF = np.stack(stems)
    with timed(timings_s, "read"):
        source = source_of(reader)
    return Heard(source, settings.mel.grid(source.sample_rate), mel_TF, timings_s, stems_IMF)


def heard_again(heard: Heard) -> Heard:
    """The same recording with timings of its own, for one of several edits."""
    return heard._replace(timings_s=dict(heard.timings_s))


def decide(heard: Heard, reader: Reader, settings: EditSettings = EditSettings()) -> EditList:
    """The chosen editor's edit of a recording, adjusted to what the user asked for, its joins placed.

    Raises UsageError for times that make no sense for this recording and DataError when nothing would be
    left or the edit cannot have the wanted length.
    """
    with timed(heard.timings_s, "decide"):
        edit_list = choose(heard, settings)
    return fulfil(edit_list, heard, reader, settings)


def fulfil(edit_list: EditList, heard: Heard, reader: Reader, settings: EditSettings) -> EditList:
    """An editor's edit list adjusted to what the user asked for, its joins placed; raises as `decide`."""
    with timed(heard.timings_s, "decide"):
        edit_list = adjust(edit_list, heard, settings)
    if not edit_list.segments:
        raise DataError(
            f"{reader.info.path}: the edit would be empty; say what must stay (--keep) or try another editor"
        )
    if settings.target_s is not None:
        with timed(heard.timings_s, "decide"):
            edit_list = bring_to_length(edit_list, heard, settings.target_s, settings)
    with timed(heard.timings_s, "place"):
        return place_joins(edit_list, reader, settings.render)


def choose(heard: Heard, settings: EditSettings) -> EditList:
    """What the editor itself wants, before any adjustment."""
    if settings.editor == "pointer":
        return _pointer_edit(heard, settings)
    own = {} if settings.margin_s is None else {"margin_s": 0.0}  # the margin asked for replaces its own
    return silence_edit(heard.mel_TF, heard.grid, heard.source, mel_settings=settings.mel, **own)


def choose_several(heard: Heard, settings: EditSettings, count: int) -> list[EditList]:
    """At most `count` edits that differ: the likeliest, or where edits are drawn those of seeds counted up.

    The likeliest differ in what they keep (see `PointerNetwork.variants`), and there may be fewer.
    """
    with timed(heard.timings_s, "decide"):
        if count == 1:
            return [choose(heard, settings)]
        if settings.temperature or settings.style == ANY:
            seeds = ((settings.seed + k) % SEEDS for k in range(count))
            return [choose(heard, replace(settings, seed=seed)) for seed in seeds]
        return _pointer_variants(heard, settings, count)


def adjust(edit_list: EditList, heard: Heard, settings: EditSettings) -> EditList:
    """Margin, short clips, pauses, snapping; then `keep` and, last of all, `cut`."""
    duration_s = heard.source.frames / heard.source.sample_rate
    keep_s = parse_ranges(settings.keep, duration_s)
    cut_s = parse_ranges(settings.cut, duration_s, ignore_beyond=True)
    if settings.margin_s is not None:
        edit_list = with_margin(edit_list, *settings.margin_s)
    if settings.min_clip_s:
        edit_list = without_short_clips(edit_list, settings.min_clip_s)
    if settings.max_pause_s is not None:
        pauses = quiet_spans(heard.mel_TF, heard.grid, heard.source, mel_settings=settings.mel)
        edit_list = limit_pauses(edit_list, pauses, settings.max_pause_s)
    if settings.snap != "none":
        edit_list = snap_joins(edit_list, _musical_samples(heard, settings))
    if keep_s:
        edit_list = keep_ranges(edit_list, keep_s)
    return cut_ranges(edit_list, cut_s) if cut_s else edit_list


def bring_to_length(edit_list: EditList, heard: Heard, target_s: float, settings: EditSettings) -> EditList:
    """The edit with whole musical spans dropped or repeated for a length; what `keep` names is not dropped.

    Raises DataError when that gives no length within 5 %.
    """
    rate_hz, beat_settings = heard.source.sample_rate, BeatSettings(mel=settings.mel)
    held_T = np.zeros(len(heard.mel_TF), bool)
    for start_s, stop_s in parse_ranges(settings.keep, heard.source.frames / rate_hz):
        held_T[heard.grid.frame_of_seconds(start_s) : heard.grid.frame_of_seconds(stop_s)] = True
    natural_s = duration_samples(edit_list) / rate_hz
    fitted, _ = retarget_edit_list(
        edit_list,
        heard.grid,
        heard.mel_TF,
        track_beats(heard.mel_TF, beat_settings),
        target_s * settings.mel.frames_per_second,
        RetargetSettings(beats=beat_settings),
        held_T=held_T,
    )
    fitted_s = duration_samples(fitted) / rate_hz
    if abs(fitted_s / target_s - 1.0) > PROMISE:
        raise DataError(
            f"{heard.source.path or 'samples'}: an edit of {natural_s:.1f} s cannot be made {target_s:.1f} s "
            f"long by dropping or repeating whole spans ({fitted_s:.1f} s comes nearest); ask for that"
        )
    notes = {"target_s": target_s, "natural_s": round(natural_s, 3)}
    return fitted._replace(editor=fitted.editor | notes)


def writer_for(reader: Reader, path: Path, *, overwrite: bool = False, expected_frames: int = 0) -> Writer:
    """A writer in the reader's own format unless the suffix says otherwise; refuses the input itself."""
    info = reader.info
    container, subtype = output_format(info, path)
    return Writer(
        path,
        sample_rate_hz=info.sample_rate_hz,
        channels=info.channels,
        container=container,
        subtype=subtype,
        overwrite=overwrite,
        inputs=(info.path,),
        tags=reader.tags,
        expected_frames=expected_frames,
    )


def render_edit(
    edit_list: EditList, heard: Heard, reader: Reader, writer: Writer | None, settings: EditSettings
) -> EditResult:
    """Renders a decided edit into a writer, or into memory without one."""
    timings_s = dict(heard.timings_s)
    with timed(timings_s, "render"):
        samples_SC = render(edit_list, reader, writer, settings.render)
    path = writer.path if writer else None
    return EditResult(edit_list, summary(edit_list), reader.info.sample_rate_hz, samples_SC, path, timings_s)


def reader_of(source: str | Path | np.ndarray, sample_rate_hz: int | None, settings: EditSettings) -> Reader:
    """Opens a path, or samples with their rate."""
    if not isinstance(source, np.ndarray):
        return Reader(source, settings.limits, settings.allow_truncated)
    if sample_rate_hz is None:
        raise UsageError("samples need their sample_rate_hz")
    return ArrayReader(source, sample_rate_hz)


def changed(settings: EditSettings, changes: dict[str, Any]) -> EditSettings:
    """The settings with some fields changed. Raises UsageError, suggesting the nearest, for unknown ones."""
    known = [field.name for field in fields(settings)]
    for name in changes:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"unknown setting {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"use {known}")
            )
    return replace(settings, **changes)


def _pointer_edit(heard: Heard, settings: EditSettings) -> EditList:
    """The network's edit.

    A wanted length is left to `bring_to_length`: a network asked for one could stop early, and what it never
    played cannot be brought back.
    """
    network, phase_T3 = _network_of(settings), _phases(heard, settings)
    with timed(heard.timings_s, "network"):
        edited = network.edit_pointers(
            heard.mel_TF,
            phase_T3,
            temperature=settings.temperature,
            seed=settings.seed,
            style=_style(settings),
            stems_IMF=heard.stems_IMF,
        )
    drawn = settings.temperature or settings.style == ANY
    notes = {"temperature": settings.temperature, "seed": settings.seed} if drawn else {}
    return _listed(edited, heard, settings, notes)


def _pointer_variants(heard: Heard, settings: EditSettings, count: int) -> list[EditList]:
    """The likeliest edits of the network that differ."""
    network, phase_T3 = _network_of(settings), _phases(heard, settings)
    with timed(heard.timings_s, "network"):
        found = network.variants(
            heard.mel_TF, phase_T3, count, style=_style(settings), stems_IMF=heard.stems_IMF
        )
    listed = [_listed(edited, heard, settings, {"variant": k}) for k, edited in enumerate(found, 1)]
    return listed or [_pointer_edit(heard, settings)]  # an edit that keeps nothing is refused as one alone is


def _phases(heard: Heard, settings: EditSettings) -> np.ndarray:
    with timed(heard.timings_s, "beats"):
        return _network_of(settings).phases(heard.mel_TF)


def _listed(
    edited: "EditedPointers", heard: Heard, settings: EditSettings, notes: dict[str, Any]
) -> EditList:
    """Pointers as an edit list: scores are the probability of each jump, reasons the mean to keep a frame.

    What was heard is noted, so that every cut has a reason (`operations`).
    """
    heard_as = events_of(edited.kind_T, heard.grid, heard.source.frames)
    editor = {
        "name": "pointer",
        "model": model_of(settings),
        **_style_notes(settings),
        "stopped": edited.stopped,
        "expected_length_s": round(edited.length_frames / settings.mel.frames_per_second, 2),
        **({"heard": heard_as} if heard_as else {}),
    }
    probability_N = np.exp(edited.score_N.astype(np.float64))
    edit_list = from_pointers(
        edited.pointers_N, heard.source, heard.grid, probability_N.round(4), editor=editor | notes
    )
    return edit_list._replace(
        segments=tuple(_with_reason(s, heard.grid, edited.keep_T) for s in edit_list.segments)
    )


def _style(settings: EditSettings) -> np.ndarray:
    """The point of the style asked for; where edits are drawn, so is what the style leaves open."""
    network = _network_of(settings)
    if settings.style_from:
        decoding = settings.limits, settings.allow_truncated
        return _example_style(*_version_of(settings.style_from), model_of(settings), *decoding)
    style = settings.style or network.style
    if settings.temperature or style == ANY:
        return network.some_style(style, settings.seed)
    return network.point_of(style)


def _style_notes(settings: EditSettings) -> dict[str, Any]:
    """What an edit list says of the style it was made in: a name only where a name was asked for."""
    if settings.style_from:
        return {"style_from": settings.style_from}
    if settings.style == ANY:
        return {"style_drawn": settings.seed}
    return {"style": settings.style or _network_of(settings).style}


def _version_of(path: str) -> tuple[str, int, int]:
    """A file as it is now: another path, size or time is another example."""
    place = Path(path).resolve()
    found = place.stat() if place.is_file() else None
    return str(place), found.st_size if found else 0, found.st_mtime_ns if found else 0


@functools.lru_cache(maxsize=8)
def _example_style(
    path: str, size: int, time_ns: int, model: str, limits: AudioLimits, allow_truncated: bool
) -> np.ndarray:
    from editjax.reference import style_of_example

    return style_of_example(path, _network(model), limits, allow_truncated)


def _with_reason(segment: Segment, grid: FrameGrid, keep_T: np.ndarray) -> Segment:
    keep = keep_T[grid.frames_in(segment.start) : grid.frames_in(segment.stop)].mean()
    return segment._replace(reason=f"keep {keep:.2f}")


def _network_of(settings: EditSettings) -> "PointerNetwork":
    return _network(model_of(settings))


@functools.lru_cache(maxsize=2)
def _network(model: str) -> "PointerNetwork":
    from editjax.network import load_model

    return load_model(model)


def _musical_samples(heard: Heard, settings: EditSettings) -> np.ndarray:
    """Where beats or bars begin, in source samples; none where the recording has no steady beat."""
    beat_settings = BeatSettings(mel=settings.mel)
    beats = track_beats(heard.mel_TF, beat_settings)
    if beats.confidence < beat_settings.confident:
        return np.zeros(0, np.int64)
    return heard.grid.sample_of_frame(beats.bar_frames if settings.snap == "bar" else beats.beat_frames)


@contextlib.contextmanager
def timed(timings_s: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the wall clock of a block to a stage's."""
    began = time.perf_counter()
    yield
    timings_s[stage] = timings_s.get(stage, 0.0) + time.perf_counter() - began


class _Watched:
    """A reader whose blocks are timed and told to a watcher while the mel is computed from them."""

    def __init__(self, reader: Reader, timings_s: dict[str, float], watch: Watch | None) -> None:
        self.info, self._reader, self._timings_s, self._watch = reader.info, reader, timings_s, watch

    def blocks(self) -> Iterator[np.ndarray]:
        blocks = self._reader.blocks()
        while True:
            with timed(self._timings_s, "read"):
                samples_SC = next(blocks, None)
            if samples_SC is None:
                return
            if self._watch:
                self._watch(len(samples_SC))
            yield samples_SC
