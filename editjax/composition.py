"""Random pieces: a generator comes in, a `Piece` of sections (parts, chords, melody, bass, drums) goes out.

A piece has a key, a tempo, an ensemble (solo, duo, trio or band) and two to five sections. Sections differ in
progression, melody, register and pattern, so that a listener can tell them apart; a repeated chorus keeps its
accompaniment and varies its melody. All times are in beats from the start of the section.
"""

from typing import NamedTuple

import numpy as np

from editjax.instruments import RANGES, Timbre, draw_timbre

SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10), (0, 2, 4, 5, 7, 9, 10))
# Degrees that may follow each degree; common practice with a little freedom.
PROGRESSIONS = {
    0: (3, 4, 5, 1, 2),
    1: (4, 6, 3),
    2: (5, 3),
    3: (4, 0, 1),
    4: (0, 5, 3),
    5: (3, 1, 4),
    6: (0, 4),
}
MELODY_RHYTHMS = ((1, 1, 1, 1), (1.5, 0.5, 1, 1), (0.5,) * 8, (2, 1, 1), (1, 0.5, 0.5, 2), (0.75, 0.25, 1, 2))
MELODY_RHYTHMS_3 = ((1, 1, 1), (2, 1), (1.5, 0.5, 1), (0.5,) * 6, (1, 0.5, 0.5, 1))
LEADS = (
    "piano",
    "guitar",
    "organ",
    "strings",
    "flute",
    "brass",
    "voice",
    "synth",
    "marimba",
    "bell",
    "electric",
)
COMPERS = ("piano", "guitar", "organ", "strings", "synth", "electric", "marimba")
# Families that can play a melody and its chords at once.
POLYPHONIC = ("piano", "guitar", "organ", "marimba", "electric", "synth")
LINEUPS = ("solo", "polyphonic", "duo", "trio", "band")
LINEUP_SHARES = (0.2, 0.25, 0.2, 0.1, 0.25)
CHORUS_SHARE = 0.2
PAUSE_SHARE = 0.4
PAUSE_S = (0.7, 2.0)


class Part(NamedTuple):
    """A player: `role` is lead, chords, bass or drums; `level` its loudness; drums have no timbre."""

    role: str
    timbre: Timbre | None
    level: float


class Note(NamedTuple):
    """A note of a score: beats from the section's start, MIDI pitch (drums: index into DRUMS), force 0–1."""

    beat: float
    beats: float
    pitch: int
    force: float
    part: int


class Section(NamedTuple):
    """The notes of one section, in order of `beat`, with its length and its bar length in beats."""

    notes: tuple[Note, ...]
    beats: float
    beats_per_bar: int


class Piece(NamedTuple):
    """A whole composition; `sections` are in song order."""

    tempo_bpm: float
    parts: tuple[Part, ...]
    sections: tuple[Section, ...]

    @property
    def instruments(self) -> list[str]:
        """The families that play, drums last."""
        return [part.timbre.family if part.timbre else "drums" for part in self.parts]


class _Style(NamedTuple):
    """What all sections of a piece share."""

    tempo_bpm: float
    tonic: int
    scale: tuple[int, ...]
    beats_per_bar: int
    parts: tuple[Part, ...]
    swing: float
    comping: str


def compose(section_lengths_s: list[float], rng: np.random.Generator) -> Piece:
    """A piece whose sections last about the given seconds (rounded to whole bars, at least two)."""
    tempo_bpm = float(rng.uniform(62.0, 152.0))
    beats_per_bar = 3 if rng.random() < 0.2 else 4
    style = _Style(
        tempo_bpm=tempo_bpm,
        tonic=int(rng.integers(0, 12)),
        scale=SCALES[rng.integers(len(SCALES))],
        beats_per_bar=beats_per_bar,
        parts=_draw_parts(rng),
        swing=float(rng.choice((0.0, 0.0, 0.12))),
        comping=str(rng.choice(("block", "arpeggio", "strum", "pad", "offbeat"))),
    )
    sections: list[Section] = []
    chorus = int(rng.integers(len(section_lengths_s))) if rng.random() < CHORUS_SHARE else -1
    for index, length_s in enumerate(section_lengths_s):
        bars = max(2, round(length_s * tempo_bpm / 60.0 / beats_per_bar))
        if 0 <= chorus < index and (index - chorus) == 2:
            sections.append(_vary_melody(sections[chorus], style, rng))
        else:
            sections.append(_compose_section(bars, style, rng))
    return Piece(tempo_bpm, style.parts, tuple(sections))


def _draw_parts(rng: np.random.Generator) -> tuple[Part, ...]:
    lineup = str(rng.choice(LINEUPS, p=LINEUP_SHARES))
    if lineup == "polyphonic":
        timbre = draw_timbre(str(rng.choice(POLYPHONIC)), rng)
        return (Part("lead", timbre, 1.0), Part("chords", timbre, float(rng.uniform(0.35, 0.7))))
    parts = [Part("lead", draw_timbre(str(rng.choice(LEADS)), rng), 1.0)]
    if lineup != "solo":
        parts.append(Part("chords", draw_timbre(str(rng.choice(COMPERS)), rng), float(rng.uniform(0.3, 0.6))))
    if lineup in ("trio", "band"):
        parts.append(Part("bass", draw_timbre("bass", rng), float(rng.uniform(0.6, 1.0))))
    if lineup == "band":
        parts.append(Part("drums", None, float(rng.uniform(0.4, 0.9))))
    return tuple(parts)


def _compose_section(bars: int, style: _Style, rng: np.random.Generator) -> Section:
    degrees = _progression(bars, rng)
    notes: list[Note] = []
    for index, part in enumerate(style.parts):
        match part.role:
            case "lead":
                notes += _melody(degrees, index, style, rng)
            case "chords":
                notes += _chords(degrees, index, style, rng)
            case "bass":
                notes += _bass(degrees, index, style, rng)
            case _:
                notes += _drums(bars, index, style, rng)
    beats = float(bars * style.beats_per_bar)
    if rng.random() < PAUSE_SHARE:
        notes = _with_pause(notes, beats, style, rng)
    return Section(tuple(sorted(notes)), beats, style.beats_per_bar)


def _vary_melody(section: Section, style: _Style, rng: np.random.Generator) -> Section:
    """The same accompaniment under a new melody: a chorus that comes back with other words."""
    bars = round(section.beats / section.beats_per_bar)
    lead = next(i for i, part in enumerate(style.parts) if part.role == "lead")
    others = [note for note in section.notes if note.part != lead]
    melody = _melody(_progression(bars, rng), lead, style, rng)
    return Section(tuple(sorted(others + melody)), section.beats, section.beats_per_bar)


def _progression(bars: int, rng: np.random.Generator) -> list[int]:
    degree = int(rng.choice((0, 0, 3, 5)))
    degrees = []
    for _ in range(bars):
        degrees.append(degree)
        degree = int(rng.choice(PROGRESSIONS[degree]))
    degrees[-1] = int(rng.choice((0, 0, 4)))
    return degrees


def _scale_pitch(style: _Style, step: int) -> int:
    """MIDI pitch of a scale step counted from the tonic near middle C."""
    octave, degree = divmod(step, 7)
    return 60 + style.tonic - 6 + 12 * octave + style.scale[degree]


def _into_range(pitch: int, family: str, centre: float = 0.5) -> int:
    low, high = RANGES[family]
    middle = low + centre * (high - low)
    pitch += 12 * round((middle - pitch) / 12)
    return int(np.clip(pitch, low, high))


def _melody(degrees: list[int], part: int, style: _Style, rng: np.random.Generator) -> list[Note]:
    """A walk over the scale, drawn to chord tones on strong beats, in phrases of motif, answer, variation."""
    timbre = style.parts[part].timbre
    assert timbre is not None
    rhythms = MELODY_RHYTHMS_3 if style.beats_per_bar == 3 else MELODY_RHYTHMS
    motif = [rhythms[rng.integers(len(rhythms))] for _ in range(3)]
    centre = float(rng.uniform(0.35, 0.7))
    base = _into_range(_scale_pitch(style, 0), timbre.family, centre) - _scale_pitch(style, 0)
    step = int(rng.integers(-2, 5))
    rest_share = float(rng.uniform(0.0, 0.15))
    notes = []
    for bar, degree in enumerate(degrees):
        beat = 0.0
        rhythm = (style.beats_per_bar,) if bar == len(degrees) - 1 else motif[rng.choice((0, 0, 1, 2))]
        for beats in rhythm:
            step += int(rng.choice((-2, -1, -1, 0, 1, 1, 2, 3 if step < 2 else -3)))
            step = int(np.clip(step, -5, 8))
            if beat in (0.0, 2.0):
                step = min(
                    (degree + d + 7 * o for d in (0, 2, 4) for o in (-1, 0, 1)), key=lambda s: abs(s - step)
                )
            if beat == 0.0 or rng.random() > rest_share:
                pitch = int(np.clip(_scale_pitch(style, step) + base, *RANGES[timbre.family]))
                swung = style.swing if beat % 1 == 0.5 else 0.0
                force = 0.72 - 0.1 * (beat % 1 > 0) + 0.08 * (beat == 0.0)
                notes.append(Note(bar * style.beats_per_bar + beat + swung, beats * 0.95, pitch, force, part))
            beat += beats
    return notes


def _chord_pitches(degree: int, family: str, style: _Style) -> list[int]:
    pitches = {_into_range(_scale_pitch(style, degree + d), family, 0.35) for d in (0, 2, 4)}
    return sorted(pitches)


def _chords(degrees: list[int], part: int, style: _Style, rng: np.random.Generator) -> list[Note]:
    timbre = style.parts[part].timbre
    assert timbre is not None
    comping = style.comping if rng.random() < 0.6 else str(rng.choice(("block", "arpeggio", "strum", "pad")))
    notes = []
    for bar, degree in enumerate(degrees):
        pitches = _chord_pitches(degree, timbre.family, style)
        start, length = float(bar * style.beats_per_bar), float(style.beats_per_bar)
        if comping == "arpeggio":
            order = pitches + pitches[-2:0:-1]
            for i in range(int(length * 2)):
                notes.append(Note(start + i / 2, 0.9, order[i % len(order)], 0.55, part))
            continue
        hits: tuple[tuple[float, float], ...]
        if comping == "pad":
            hits = ((0.0, length),)
        elif comping == "offbeat":
            hits = tuple((b + 0.5, 0.4) for b in range(style.beats_per_bar))
        else:
            hits = tuple(
                (float(b), 0.9) for b in range(0, style.beats_per_bar, 1 if comping == "strum" else 2)
            )
        spread = 0.03 if comping == "strum" else 0.0
        for beat, beats in hits:
            force = 0.66 if beat == 0.0 else 0.52
            notes += [Note(start + beat + spread * i, beats, p, force, part) for i, p in enumerate(pitches)]
    return notes


def _bass(degrees: list[int], part: int, style: _Style, rng: np.random.Generator) -> list[Note]:
    pattern = str(rng.choice(("root", "fifth", "walk", "eighths")))
    notes = []
    for bar, degree in enumerate(degrees):
        start = float(bar * style.beats_per_bar)
        root = _into_range(_scale_pitch(style, degree), "bass", 0.4)
        fifth = _into_range(_scale_pitch(style, degree + 4), "bass", 0.4)
        match pattern:
            case "root":
                notes.append(Note(start, style.beats_per_bar * 0.9, root, 0.7, part))
            case "fifth":
                notes.append(Note(start, 1.4, root, 0.72, part))
                notes.append(Note(start + style.beats_per_bar / 2, 1.2, fifth, 0.62, part))
            case "walk":
                walk = [_into_range(_scale_pitch(style, degree + d), "bass", 0.4) for d in (0, 2, 4, 5)]
                notes += [Note(start + i, 0.9, walk[i % 4], 0.66, part) for i in range(style.beats_per_bar)]
            case _:
                notes += [Note(start + i / 2, 0.45, root, 0.62, part) for i in range(style.beats_per_bar * 2)]
    return notes


def _drums(bars: int, part: int, style: _Style, rng: np.random.Generator) -> list[Note]:
    """A one-bar groove with a fill at the end of every fourth bar; pitches index `instruments.DRUMS`."""
    kick, snare, hat, tom, rim, cymbal = range(6)
    per_bar = style.beats_per_bar
    steps = per_bar * 2
    kicks = [0.0] + [i / 2 for i in range(1, steps) if rng.random() < 0.22]
    snares = [float(b) for b in range(1, per_bar, 2)]
    back = snare if rng.random() < 0.75 else rim
    hat_step = float(rng.choice((0.5, 1.0)))
    notes = []
    for bar in range(bars):
        start = float(bar * per_bar)
        if bar % 4 == 0 and rng.random() < 0.4:
            notes.append(Note(start, 1.0, cymbal, 0.6, part))
        notes += [Note(start + b, 0.4, kick, 0.8, part) for b in kicks]
        notes += [Note(start + b, 0.4, back, 0.72, part) for b in snares]
        notes += [Note(start + i * hat_step, 0.2, hat, 0.5, part) for i in range(int(per_bar / hat_step))]
        if bar % 4 == 3 and bar < bars - 1:
            notes += [Note(start + per_bar - 1 + i / 4, 0.3, tom, 0.6 + 0.05 * i, part) for i in range(4)]
    return notes


def _with_pause(notes: list[Note], beats: float, style: _Style, rng: np.random.Generator) -> list[Note]:
    """Everybody rests for PAUSE_S before a bar line in the middle: a pause that is music."""
    bars = int(beats / style.beats_per_bar)
    if bars < 4:
        return notes
    line = float(style.beats_per_bar * rng.integers(bars // 3, 2 * bars // 3 + 1))
    gap = float(rng.uniform(*PAUSE_S)) * style.tempo_bpm / 60.0
    kept = []
    for note in notes:
        if line - gap <= note.beat < line:
            continue
        if note.beat < line - gap < note.beat + note.beats:
            note = note._replace(beats=line - gap - note.beat)
        kept.append(note)
    return kept
