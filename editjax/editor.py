"""One recording → an edit list → the edited recording: what `editjax edit` and `editjax.edit` do.

    listen (read ‖ mel) → decide (`decision`) → adjust (what the user asked for) → place joins → render

Every editor returns an edit list, so that all of them share the adjustments, the renderer and the files.
"""

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

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
from editjax.decision import EditSettings, Heard, choose, hears_stems, ready, sounding, timed
from editjax.edits import EditList, Summary, duration_samples, source_of, summary
from editjax.errors import DataError, UsageError
from editjax.formats import output_format
from editjax.mel import mel_of, stem_mel
from editjax.render import place_joins, render
from editjax.retarget import PROMISE, RetargetSettings, retarget_edit_list
from editjax.silence import quiet_spans
from editjax.tracks import Mix

Watch = Callable[[int], None]


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


def listen(reader: Reader, settings: EditSettings = EditSettings(), watch: Watch | None = None) -> Heard:
    """Reads a recording and computes its mel; `watch` is told the samples of every block read.

    It is read once; the tracks of a sum once more, each by itself, for a model that hears stems.
    """
    if isinstance(reader, Mix) and settings.effects:
        raise UsageError("effects have one sound, which tracks cannot share: edit them without --effects")
    timings_s = {"read": 0.0}
    with timed(timings_s, "mel"):
        mel_TF, _ = mel_of(_Watched(reader, timings_s, watch), settings.mel)
        stems_IMF = None
        if isinstance(reader, Mix) and hears_stems(settings):
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
        samples_SC = render(edit_list, sounding(heard, reader, settings), writer, settings.render)
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


def _musical_samples(heard: Heard, settings: EditSettings) -> np.ndarray:
    """Where beats or bars begin, in source samples; none where the recording has no steady beat."""
    beat_settings = BeatSettings(mel=settings.mel)
    beats = track_beats(heard.mel_TF, beat_settings)
    if beats.confidence < beat_settings.confident:
        return np.zeros(0, np.int64)
    return heard.grid.sample_of_frame(beats.bar_frames if settings.snap == "bar" else beats.beat_frames)


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
