"""Simulated recording sessions with known edits: a seed comes in, raw recordings and their edit lists go out.

`editjax simulate` writes `<id>_raw.flac`, `<id>_edit.flac` and `<id>.edits.json` per session; further styles
of the same session are `<id>~<style>_edit.flac` and `<id>~<style>.edits.json`. With stems, the files in
`<id>_stems` add up to the raw recording, sample for sample. A session is a function of (seed, index) and the
settings alone, whatever the number of workers (another version of NumPy may round a sample otherwise).
`editor["events"]` in the edit list says what every span of the raw recording is.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editjax.audio import ArrayReader, Writer
from editjax.composition import compose
from editjax.edit_list import EditList, Source, write_edits
from editjax.errors import CannotCreateError, UsageError
from editjax.files import sha256_of
from editjax.formats import from_float
from editjax.performance import Stem, SynthMaterial
from editjax.recordings import Library, RecordedSurroundings, scan
from editjax.render import render
from editjax.retakes import RecordedMaterial, draw_material
from editjax.session import (
    ROOM,
    SHORTEST_S,
    Event,
    SimulateSettings,
    Timeline,
    joined,
    plan_lengths,
    record,
    write_script,
)
from editjax.studio import SynthSurroundings, processed
from editjax.styles import STYLES, edit_of
from editjax.workers import results

PIECE_S = 240.0
"""The longest session of one piece of music; longer recordings hold several."""

ADVICE = "run again into an empty folder, with fewer --workers if memory is short"

__all__ = ["Session", "SimulateSettings", "simulate_folder", "simulate_session", "write_sessions"]


class Session(NamedTuple):
    """A simulated session: the raw recording (S,) and one edit list and edited signal (S,) per style.

    `stems`, where they are wanted, add up to the raw recording.

    The edit lists' source has no path and no hash until the recording is written.
    """

    raw_S: np.ndarray
    rate_hz: int
    styles: tuple[str, ...]
    edit_lists: tuple[EditList, ...]
    edited: tuple[np.ndarray, ...]
    events: tuple[Event, ...]
    sources: list[str]
    stems: tuple[Stem, ...] = ()

    @property
    def edit_list(self) -> EditList:
        """The edit in the session's first style."""
        return self.edit_lists[0]


def simulate_session(
    seed: tuple[int, int], settings: SimulateSettings, recordings: Path | None = None
) -> Session:
    """One session from (seed, index); `recordings` is a folder of music, speech and noises, or None."""
    timeline, notes = _record(settings, recordings, np.random.default_rng((*seed, 0)))
    styles = _styles(settings, np.random.default_rng((*seed, len(STYLES) + 1)))
    cuts = [_cut(style, timeline, seed, notes) for style in styles]
    return Session(
        timeline.raw_S,
        timeline.rate_hz,
        styles,
        tuple(edit_list for edit_list, _ in cuts),
        tuple(edited_S for _, edited_S in cuts),
        timeline.events,
        notes["sources"],
        timeline.stems,
    )


def write_sessions(
    out_dir: Path,
    count: int,
    seed: int,
    settings: SimulateSettings,
    workers: int = 1,
    recordings: Path | None = None,
) -> Iterator[str]:
    """Writes `count` sessions into `out_dir` and yields each one's id as it is done.

    Raises CannotCreateError where the folder cannot be made or holds one of them, TryAgainError when a worker
    died.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in out_dir.iterdir()}
    except OSError as error:
        raise CannotCreateError(
            f"{out_dir}: cannot hold sessions ({error.strerror}); name another folder"
        ) from None
    jobs = [(out_dir, seed, index, settings, recordings) for index in range(count)]
    if old := next((name for job in jobs if (name := f"{_name(*job[1:3])}_raw.flac") in there), None):
        raise CannotCreateError(f"{out_dir / old}: exists already; name an empty folder or another --seed")
    yield from results(_write_session, jobs, workers, ADVICE)


def simulate_folder(
    out_dir: Path,
    count: int,
    seed: int,
    settings: SimulateSettings,
    recordings: Path | None = None,
    workers: int = 1,
) -> int:
    """Writes sessions with a progress bar; returns how many.

    Raises UsageError for settings that cannot be met.
    """
    from tqdm import tqdm

    if count < 1:
        raise UsageError(f"--count {count}: give a number of sessions of at least 1")
    unknown = [style for style in settings.styles if style not in STYLES]
    if unknown:
        raise UsageError(f"--styles {unknown[0]}: unknown; choose from {', '.join(STYLES)}")
    sessions = write_sessions(out_dir, count, seed, settings, workers, recordings)
    return sum(1 for _ in tqdm(sessions, total=count, unit="session", disable=not sys.stderr.isatty()))


def _record(
    settings: SimulateSettings, recordings: Path | None, rng: np.random.Generator
) -> tuple[Timeline, dict[str, Any]]:
    """Records as many pieces as the length holds, one after the other, and notes what was played."""
    library = scan(recordings, settings.split) if recordings else None
    pieces = max(1, math.ceil(settings.max_length_s / PIECE_S))
    of_each = replace(
        settings,
        min_length_s=max(SHORTEST_S, settings.min_length_s / pieces),
        max_length_s=settings.max_length_s / pieces,
    )
    timelines, notes = zip(*(_record_piece(of_each, library, rng) for _ in range(pieces)), strict=True)
    timeline = joined(timelines)
    return timeline, {
        "events": [_event_json(event) for event in timeline.events],
        "sources": list(dict.fromkeys(name for note in notes for name in note["sources"])),
        "instruments": [name for note in notes for name in note["instruments"]],
        "tempo_bpm": [note["tempo_bpm"] for note in notes] if pieces > 1 else notes[0]["tempo_bpm"],
        "sections": len(timeline.kept),
    }


def _record_piece(
    settings: SimulateSettings, library: Library | None, rng: np.random.Generator
) -> tuple[Timeline, dict[str, Any]]:
    """Draws a piece and plays its session."""
    lengths_s, ratio = plan_lengths(settings, rng)
    material = _material(library, lengths_s, settings, rng)
    surroundings = _surroundings(library, settings)
    script = write_script(material.section_lengths_s, ratio, settings, rng)
    timeline = record(script, material, surroundings, settings, rng)
    return timeline, {
        "sources": [*material.sources, *surroundings.used],
        "instruments": material.instruments,
        "tempo_bpm": round(material.tempo_bpm, 2),
    }


def _material(
    library: Library | None, lengths_s: list[float], settings: SimulateSettings, rng: np.random.Generator
) -> SynthMaterial | RecordedMaterial:
    if library and rng.random() < settings.recorded_share:
        recorded = draw_material(library, lengths_s, settings.sample_rate_hz, rng)
        if recorded:
            return recorded
    piece, seed = compose(lengths_s, rng), int(rng.integers(1 << 31))
    return SynthMaterial(piece, settings.sample_rate_hz, seed, settings.stems)


def _surroundings(
    library: Library | None, settings: SimulateSettings
) -> SynthSurroundings | RecordedSurroundings:
    if library:
        return RecordedSurroundings(library, settings.sample_rate_hz)
    return SynthSurroundings(settings.sample_rate_hz)


def _styles(settings: SimulateSettings, rng: np.random.Generator) -> tuple[str, ...]:
    if not settings.style_weights:
        return settings.styles
    weights = np.array(settings.style_weights, float)
    return (str(rng.choice(settings.styles, p=weights / weights.sum())),)


def _cut(
    style: str, timeline: Timeline, seed: tuple[int, int], notes: dict[str, Any]
) -> tuple[EditList, np.ndarray]:
    """The edit of a session in a style, as a list and as sound (S,): processed, then rendered."""
    rng = np.random.default_rng((*seed, 1 + STYLES.index(style)))
    edit = edit_of(style, timeline, rng)
    head = {"name": "simulator", "style": style, "seed": list(seed), "target_length_s": edit.target_length_s}
    editor = {**head, "effects": [list(effect) for effect in edit.effects], **notes}
    source = Source("", "", timeline.rate_hz, 1, len(timeline.raw_S))
    edit_list = EditList(source, edit.segments, editor)
    raw_S = timeline.raw_S.copy() if edit.effects else timeline.raw_S
    for start, stop, name in edit.effects:
        raw_S[start:stop] = processed(raw_S[start:stop], name, timeline.rate_hz, rng)
    rendered_SC = render(edit_list, ArrayReader(raw_S, timeline.rate_hz))
    assert rendered_SC is not None
    return edit_list, np.clip(rendered_SC[:, 0], -1.0, 1.0)


def _event_json(event: Event) -> dict[str, Any]:
    row: dict[str, Any] = {"start": event.start, "stop": event.stop, "kind": event.kind}
    if event.section >= 0:
        row |= {"section": event.section, "complete": event.complete}
    if event.faults:
        row |= {
            "spoil": event.faults[0][1],
            "at": event.faults[0][0],
            "faults": [list(f) for f in event.faults],
        }
    return row


def _write_session(job: tuple[Path, int, int, SimulateSettings, Path | None]) -> str:
    out_dir, seed, index, settings, recordings = job
    session = simulate_session((seed, index), settings, recordings)
    name = _name(seed, index)
    raw_path = out_dir / f"{name}_raw.flac"
    _write_flac(raw_path, session.raw_S, session.rate_hz)
    digest = sha256_of(raw_path)
    if session.stems:
        _write_stems(out_dir / f"{name}_stems", session)
    for position, (style, edit_list) in enumerate(zip(session.styles, session.edit_lists, strict=True)):
        stem = name if position == 0 else f"{name}~{style}"
        source = edit_list.source._replace(path=raw_path.name, sha256=digest)
        _write_flac(out_dir / f"{stem}_edit.flac", session.edited[position], session.rate_hz)
        write_edits(edit_list._replace(source=source), out_dir / f"{stem}.edits.json")
    return name


def _write_stems(folder: Path, session: Session) -> None:
    """Writes a file a stem; the room's holds what is left of the recording, rounding included."""
    folder.mkdir(exist_ok=True)
    left_S = from_float(session.raw_S, np.int16).astype(np.int64)
    for stem in session.stems:
        if stem.name != ROOM:
            rounded_S = from_float(stem.samples_S, np.int16)
            left_S -= rounded_S
            _write_flac(folder / f"{stem.name}.flac", rounded_S, session.rate_hz)
    top = np.iinfo(np.int16)
    _write_flac(folder / f"{ROOM}.flac", left_S.clip(top.min, top.max).astype(np.int16), session.rate_hz)


def _name(seed: int, index: int) -> str:
    return f"s{seed}_{index:05d}"


def _write_flac(path: Path, samples_S: np.ndarray, rate_hz: int) -> None:
    with Writer(path, sample_rate_hz=rate_hz, channels=1, container="FLAC", subtype="PCM_16") as writer:
        writer.write(samples_S)
