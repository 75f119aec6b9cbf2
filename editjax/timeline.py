"""An edit list as a timeline for other programs: the segments on an audio track a recording, none rendered.

In comes an `EditList`, out goes a file: OpenTimelineIO, Audacity labels, LosslessCut CSV, a Reaper project, a
CMX 3600 EDL, FCPXML, or auto-editor's v1 cut list. All but the last can play material twice or out of order.
Sample positions are exact except in EDL and v1, which count picture frames; both say so below. The EDL writer
exists because OpenTimelineIO's own EDL and FCPXML adapters refuse audio-only timelines (tried with 0.18).

An edit of several tracks has the same segments on each of theirs, up to where the track ends. Labels and CSV
name no recording and hold for all; EDL and v1 name one and refuse.

Sources: Audacity manual, "Importing and exporting labels"; LosslessCut, "Import/export"; Reaper's own
projects; SMPTE 258M (EDL); Apple's FCPXML 1.9 DTD; https://auto-editor.com/docs/v1.
"""

from __future__ import annotations

import csv
import difflib
import importlib.util
import io
import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from editjax.edits import EditList, Segment, Source, duration_samples
from editjax.errors import DataError, UsageError
from editjax.files import atomic_path

SUFFIX_OF_KIND = {
    "otio": ".otio",
    "audacity": ".labels.txt",
    "csv": ".csv",
    "rpp": ".rpp",
    "edl": ".edl",
    "fcpxml": ".fcpxml",
    "auto-editor": ".v1.json",
}
EDL_FRAMES_PER_S = 30
EDL_START_S = 3600  # programmes begin at 01:00:00:00 by custom
AUTO_EDITOR_FRAMES_PER_S = 30  # what auto-editor assumes of a source without picture
AUTO_EDITOR_CUT = 99999.0
FCPXML_FRAME = Fraction(1, 25)
ONE_RECORDING = ("edl", "auto-editor")
REAPER_SOURCES = {".mp3": "MP3", ".flac": "FLAC", ".ogg": "VORBIS", ".oga": "VORBIS", ".opus": "OPUS"}


def export(edit_list: EditList, kind: str, path: str | Path, overwrite: bool = False) -> None:
    """Writes the timeline `kind` (a key of `SUFFIX_OF_KIND`) of an edit, complete or not at all.

    Raises UsageError for an unknown kind, DataError if the edit plays nothing or the kind cannot express it,
    and CannotCreateError if the file exists and `overwrite` is off.
    """
    match check_kind(kind, bool(edit_list.source.tracks)):
        case "otio":
            write_otio(edit_list, path, overwrite)
        case "audacity":
            write_audacity(edit_list, path, overwrite)
        case "csv":
            write_csv(edit_list, path, overwrite)
        case "rpp":
            write_rpp(edit_list, path, overwrite)
        case "edl":
            write_edl(edit_list, path, overwrite)
        case "fcpxml":
            write_fcpxml(edit_list, path, overwrite)
        case "auto-editor":
            write_auto_editor_v1(edit_list, path, overwrite)


def check_kind(kind: str, multitrack: bool = False) -> str:
    """The kind itself; raises UsageError, suggesting the nearest, if it is unknown or cannot be written."""
    if kind not in SUFFIX_OF_KIND:
        near = difflib.get_close_matches(kind, SUFFIX_OF_KIND, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(SUFFIX_OF_KIND)}"
        raise UsageError(f"timeline {kind!r}: there is no such kind; {remedy}")
    if kind == "otio" and importlib.util.find_spec("opentimelineio") is None:
        raise UsageError("timeline 'otio': needs OpenTimelineIO; pip install editjax[timeline]")
    if multitrack and kind in ONE_RECORDING:
        raise UsageError(
            f"timeline {kind!r}: names one recording only; for tracks use otio, rpp, fcpxml, audacity or csv"
        )
    return kind


def write_otio(edit_list: EditList, path: str | Path, overwrite: bool = False) -> None:
    """OpenTimelineIO: a clip a segment, sample-exact; fades, gain, score and reason are metadata `editjax`.

    Where a track has ended there is a gap.
    """
    import opentimelineio as otio

    rate = float(edit_list.source.sample_rate)

    def span(start: int, length: int) -> Any:
        return otio.opentime.TimeRange(
            otio.opentime.RationalTime(start, rate), otio.opentime.RationalTime(length, rate)
        )

    tracks = []
    for source in _recordings(edit_list):
        name = _absolute(source).stem if edit_list.source.tracks else "editjax"
        track = otio.schema.Track(name=name, kind=otio.schema.TrackKind.Audio)
        tracks.append(track)
        for number, segment in enumerate(edit_list.segments, 1):
            media = otio.schema.ExternalReference(_absolute(source).as_uri(), span(0, source.frames))
            extra = {key: value for key, value in segment._asdict().items() if key not in ("start", "stop")}
            length = _sounding(segment, source)
            clip = span(segment.start, length)
            silence = segment.stop - segment.start - length
            if length:
                track.append(
                    otio.schema.Clip(_label(segment, number), media, clip, metadata={"editjax": extra})
                )
            if silence:
                track.append(otio.schema.Gap(source_range=span(0, silence)))
    timeline = otio.schema.Timeline(name=_absolute(edit_list.source).stem, tracks=tracks)
    _save(edit_list, path, overwrite, timeline.to_json_string(indent=2))


def write_audacity(edit_list: EditList, path: str | Path, overwrite: bool = False) -> None:
    """Audacity labels over the source: `start TAB end TAB text` in seconds, a label a segment, in playing
    order.

    Audacity sorts labels by time; their text begins with the playing order, so loops and reorders can be
    read.
    """
    rate = edit_list.source.sample_rate
    rows = [
        f"{segment.start / rate:.6f}\t{segment.stop / rate:.6f}\t{_label(segment, number)}\n"
        for number, segment in enumerate(edit_list.segments, 1)
    ]
    _save(edit_list, path, overwrite, "".join(rows))


def write_csv(edit_list: EditList, path: str | Path, overwrite: bool = False) -> None:
    """LosslessCut's segment list: `start,end,label` in seconds of the source, no heading, in playing
    order."""
    rate = edit_list.source.sample_rate
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for number, segment in enumerate(edit_list.segments, 1):
        rows.writerow([f"{segment.start / rate:.6f}", f"{segment.stop / rate:.6f}", _label(segment, number)])
    _save(edit_list, path, overwrite, text.getvalue())


def write_rpp(edit_list: EditList, path: str | Path, overwrite: bool = False) -> None:
    """A Reaper project: a track a recording, an item a segment with its fades and gain.

    The items of one segment on several tracks are grouped: Reaper moves and trims them together. A recording
    is named relative to the project where it lies in or below the project's folder, so that both can be moved
    together; absolutely elsewhere.
    """
    folder = Path(os.path.abspath(path)).parent
    tracks = [line for source in _recordings(edit_list) for line in _rpp_track(edit_list, source, folder)]
    head = ['<REAPER_PROJECT 0.1 "7.0" 0', f"  SAMPLERATE {edit_list.source.sample_rate} 0 0"]
    _save(edit_list, path, overwrite, "\n".join([*head, *tracks, ">", ""]))


def _rpp_track(edit_list: EditList, source: Source, folder: Path) -> list[str]:
    recording, rate = _absolute(source), source.sample_rate
    lines = ["  <TRACK", f"    NAME {reaper_name(recording.stem)}"]
    lines.append(f"    NCHAN {max(2, source.channels + source.channels % 2)}")
    at = 0
    for number, segment in enumerate(edit_list.segments, 1):
        length = segment.stop - segment.start
        details = [
            f"FADEIN 1 {segment.fade_in / rate:.12f} 0 1 0 0 0",
            f"FADEOUT 1 {segment.fade_out / rate:.12f} 0 1 0 0 0",
            *([f"GROUP {number}"] if edit_list.source.tracks else []),
            f"NAME {reaper_name(_label(segment, number))}",
            f"VOLPAN {10 ** (segment.gain_db / 20):.12f} 0 1 -1",
            f"SOFFS {segment.start / rate:.12f}",
        ]
        lines += reaper_item(recording, folder, at / rate, length / rate, details)
        at += length
    return [*lines, "  >"]


def reaper_item(
    recording: Path, folder: Path, at_s: float, length_s: float, details: Sequence[str] = ()
) -> list[str]:
    """The lines of an item that plays a recording; a project in `folder` names what lies below relatively."""
    recording = Path(os.path.abspath(recording))
    inside = recording.is_relative_to(folder)
    named = recording.relative_to(folder).as_posix() if inside else str(recording)
    return [
        "    <ITEM",
        f"      POSITION {at_s:.12f}",
        f"      LENGTH {length_s:.12f}",
        "      LOOP 0",
        *(f"      {line}" for line in details),
        f"      <SOURCE {REAPER_SOURCES.get(recording.suffix.lower(), 'WAVE')}",
        f"        FILE {reaper_name(named)}",
        "      >",
        "    >",
    ]


def write_edl(edit_list: EditList, path: str | Path, overwrite: bool = False) -> None:
    """A CMX 3600 edit decision list in non-drop timecode, an audio event a segment.

    Joins are rounded to the nearest picture frame of the programme, so that rounding does not add up: each is
    at most half a frame off. Source times are at most one frame off, and never beyond the recording's end.
    Segments that round to nothing are left out and counted in a comment.
    """
    source, rate = edit_list.source, edit_list.source.sample_rate
    channels = {1: "A", 2: "AA"}.get(source.channels, "AA")
    name = " ".join(_absolute(source).name.split())  # a line break would end the comment
    last = source.frames * EDL_FRAMES_PER_S // rate
    events, at, number, dropped = [], 0, 0, 0
    for segment in edit_list.segments:
        first = _rounded(at, rate, EDL_FRAMES_PER_S)
        at += segment.stop - segment.start
        length = _rounded(at, rate, EDL_FRAMES_PER_S) - first
        if not length:
            dropped += 1
            continue
        number += 1
        start = max(0, min(_rounded(segment.start, rate, EDL_FRAMES_PER_S), last - length))
        times = [
            start,
            start + length,
            *(EDL_START_S * EDL_FRAMES_PER_S + t for t in (first, first + length)),
        ]
        codes = " ".join(_timecode(t, EDL_FRAMES_PER_S) for t in times)
        events.append(f"{number:03d}  AX       {channels:<5} C        {codes}")
        events += (
            [f"AUD  {'  '.join(map(str, range(3, min(source.channels, 4) + 1)))}"]
            if source.channels > 2
            else []
        )
        events.append(f"* FROM CLIP NAME: {name}")
    head = [
        f"TITLE: {Path(name).stem[:70]}",
        "FCM: NON-DROP FRAME",
        f"* TIMES ARE ROUNDED TO 1/{EDL_FRAMES_PER_S} S; {dropped} SHORTER SEGMENTS ARE LEFT OUT",
    ]
    _save(edit_list, path, overwrite, "\n".join([*head, *events, ""]))


def write_fcpxml(edit_list: EditList, path: str | Path, overwrite: bool = False) -> None:
    """FCPXML 1.9, sample-exact in rational seconds, with gain and fades.

    Final Cut Pro wants primary clips on picture frames; audio attached to a gap may lie between them, so the
    clips hang below one gap as long as the edit, those of the first recording in lane −1, of the next in −2.
    """
    source, rate = edit_list.source, edit_list.source.sample_rate
    name, total = _absolute(source).stem, duration_samples(edit_list)
    pictures = -(-Fraction(total, rate) // FCPXML_FRAME) * FCPXML_FRAME
    root = ElementTree.Element("fcpxml", version="1.9")
    resources = ElementTree.SubElement(root, "resources")
    ElementTree.SubElement(
        resources,
        "format",
        id="r1",
        name="FFVideoFormat1080p25",
        frameDuration=_rational(FCPXML_FRAME),
        width="1920",
        height="1080",
    )
    for lane, recording in enumerate(_recordings(edit_list), 1):
        asset = ElementTree.SubElement(
            resources,
            "asset",
            id=f"r{lane + 1}",
            name=_absolute(recording).stem,
            start="0s",
            duration=_rational(Fraction(recording.frames, rate)),
            hasAudio="1",
            audioSources="1",
            audioChannels=str(recording.channels),
            audioRate=str(rate),
        )
        ElementTree.SubElement(asset, "media-rep", kind="original-media", src=_absolute(recording).as_uri())
    event = ElementTree.SubElement(ElementTree.SubElement(root, "library"), "event", name="editjax")
    project = ElementTree.SubElement(event, "project", name=f"{name} edited")
    sequence = ElementTree.SubElement(
        project,
        "sequence",
        format="r1",
        duration=_rational(pictures),
        tcStart="0s",
        tcFormat="NDF",
        audioLayout="mono" if source.channels == 1 else "stereo",
        audioRate="44.1k" if rate in (11025, 22050, 44100) else "48k",
    )
    spine = ElementTree.SubElement(sequence, "spine")
    gap = ElementTree.SubElement(
        spine, "gap", name="Gap", offset="0s", start="0s", duration=_rational(pictures)
    )
    for lane, recording in enumerate(_recordings(edit_list), 1):
        at = 0
        for number, segment in enumerate(edit_list.segments, 1):
            length = _sounding(segment, recording)
            if length:
                gap.append(_fcpxml_clip(segment, number, at, length, rate, lane))
            at += segment.stop - segment.start
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    _save(edit_list, path, overwrite, f'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n{body}\n')


def write_auto_editor_v1(edit_list: EditList, path: str | Path, overwrite: bool = False) -> None:
    """auto-editor's v1 cut list: `[start, end, speed]` chunks of the whole source, in 1/30 s for audio.

    Speed 1 plays, 99999 cuts; edges are rounded to the nearest 1/30 s. Raises DataError if the edit plays
    anything twice or out of order: v1 only goes forward.
    """
    rate, fps = edit_list.source.sample_rate, AUTO_EDITOR_FRAMES_PER_S
    chunks: list[list[float]] = []

    def add(stop: int, speed: float) -> None:
        start = chunks[-1][1] if chunks else 0
        if stop > start and chunks and chunks[-1][2] == speed:
            chunks[-1][1] = stop
        elif stop > start:
            chunks.append([start, stop, speed])

    furthest = 0
    for segment in edit_list.segments:
        if segment.nominal_start < furthest:
            raise DataError(
                f"{path}: auto-editor's v1 cannot play material twice or out of order, and this edit does; "
                "export otio, rpp, fcpxml, edl, csv or audacity"
            )
        furthest = segment.nominal_stop
        add(_rounded(segment.start, rate, fps), AUTO_EDITOR_CUT)
        add(_rounded(segment.stop, rate, fps), 1.0)
    add(_rounded(edit_list.source.frames, rate, fps), AUTO_EDITOR_CUT)
    tree = {"version": "1", "source": str(_absolute(edit_list.source)), "chunks": chunks}
    _save(edit_list, path, overwrite, json.dumps(tree, ensure_ascii=False, indent=1) + "\n")


def _save(edit_list: EditList, path: str | Path, overwrite: bool, text: str) -> None:
    if not edit_list.segments:
        raise DataError(f"{path}: the edit keeps nothing; a timeline needs at least one segment")
    sources = [source.path for source in _recordings(edit_list) if source.path]
    with atomic_path(path, overwrite, sources) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _recordings(edit_list: EditList) -> tuple[Source, ...]:
    """The recording, or the tracks it is the sum of."""
    return edit_list.source.tracks or (edit_list.source,)


def _sounding(segment: Segment, source: Source) -> int:
    """How many samples of a segment come before the end of a track."""
    return max(0, min(segment.stop, source.frames) - segment.start)


def _absolute(source: Source) -> Path:
    """The recording's place, absolute, without following links: the name its user knows it by."""
    return Path(os.path.abspath(source.path or "recording"))


def _label(segment: Segment, number: int) -> str:
    reason = " ".join(segment.reason.split())
    return f"{number:03d} {reason}".strip()


def reaper_name(text: str) -> str:
    """A Reaper string: it has three quotation marks and no escape, so a text with all three loses the last.

    Raises DataError for a text of several lines.
    """
    if len(text.splitlines()) > 1:
        raise DataError(f"{text}: a Reaper project cannot name a file with a line break; rename it")
    for mark in "\"'`":
        if mark not in text:
            return f"{mark}{text}{mark}"
    return "`" + text.replace("`", "'") + "`"


def _rounded(samples: int, rate_hz: int, frames_per_s: int) -> int:
    """Samples in picture frames, halves rounded up, exactly."""
    return (2 * samples * frames_per_s + rate_hz) // (2 * rate_hz)


def _timecode(frames: int, frames_per_s: int) -> str:
    seconds, frames = divmod(frames, frames_per_s)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frames:02d}"


def _rational(seconds: Fraction) -> str:
    return (
        f"{seconds.numerator}s" if seconds.denominator == 1 else f"{seconds.numerator}/{seconds.denominator}s"
    )


def _fcpxml_clip(
    segment: Segment, number: int, at: int, length: int, rate_hz: int, lane: int
) -> ElementTree.Element:
    clip = ElementTree.Element(
        "asset-clip",
        ref=f"r{lane + 1}",
        lane=str(-lane),
        offset=_rational(Fraction(at, rate_hz)),
        name=_label(segment, number),
        start=_rational(Fraction(segment.start, rate_hz)),
        duration=_rational(Fraction(length, rate_hz)),
        audioRole="dialogue",
    )
    if segment.gain_db or segment.fade_in or segment.fade_out:
        volume = ElementTree.SubElement(clip, "adjust-volume", amount=f"{segment.gain_db:g}dB")
        fades = [("fadeIn", segment.fade_in), ("fadeOut", segment.fade_out)]
        if segment.fade_in or segment.fade_out:
            amount = ElementTree.SubElement(volume, "param", name="amount")
            for tag, samples in fades:
                if samples:
                    ElementTree.SubElement(
                        amount, tag, type="linear", duration=_rational(Fraction(samples, rate_hz))
                    )
    return clip
