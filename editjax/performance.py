"""Human takes of a score: a section and a plan come in, a `Take` (samples and landmarks) goes out.

Two takes of the same section differ in what a player changes: tempo and its drift, rubato, micro-timing,
force, articulation, ornaments, tuning, distance to the microphone. What a plan calls a fault is played as
one: wrong notes, a stumble (stop, go back a beat or two, repeat), uneven timing, missing notes, a dropout. A
faulty take is as loud and as clean as a good one: nothing but the music tells them apart.
"""

from typing import NamedTuple

import numpy as np
from scipy import signal

from editjax.composition import Note, Piece, Section
from editjax.instruments import DRUMS, LENGTH_CLASSES_S, RANGES, VARIANTS, NoteBank

FAULTS = ("wrong_notes", "stumble", "timing", "missing_notes", "dropout")
FAULT_SHARES = (0.34, 0.26, 0.18, 0.14, 0.08)
LEAD_IN_S = 0.05
"""Silence before the first onset of every take: where the *final* style cuts in."""
TAKE_LEVEL = 0.1
"""Root mean square of the loud half of every take; faulty takes get the same."""
DECAY_DB = -40.0
MAX_DECAY_S = 1.6


class TakePlan(NamedTuple):
    """What shall happen in an attempt: faults as (name, share of the section), and where it breaks off.

    `break_share` is None for a take that reaches the end of its section.
    """

    faults: tuple[tuple[str, float], ...] = ()
    break_share: float | None = None


class Stem(NamedTuple):
    """What one player, or one kind of sound, adds to a recording."""

    name: str
    samples_S: np.ndarray


class Take(NamedTuple):
    """A played attempt: samples (S,), bar lines and phrase starts in samples, faults as (sample, name).

    The first onset lies LEAD_IN_S after the first sample; `samples_S` ends when the sound has decayed. Where
    `stems` were asked for and there are several players, theirs add up to it.
    """

    samples_S: np.ndarray
    bars: np.ndarray
    phrases: np.ndarray
    faults: tuple[tuple[int, str], ...]
    stems: tuple[Stem, ...] = ()


class Room(NamedTuple):
    """The place a session is recorded in: its reflections, an impulse response without direct sound."""

    response_S: np.ndarray
    wet: float


class _Played(NamedTuple):
    """A note as a hand plays it: seconds from the take's first sample."""

    time_s: float
    length_s: float
    pitch: int
    force: float
    part: int


class _Hand(NamedTuple):
    """How a player plays one take: length of notes, spread of their starts, dynamics per beat."""

    legato: float
    jitter_s: float
    dynamics: np.ndarray


class SynthMaterial:
    """A composed piece, played on synthesised instruments; takes have a stem a role if `stems` are wanted."""

    def __init__(self, piece: Piece, rate_hz: int, seed: int, stems: bool = False):
        self.piece = piece
        self._roles = list(dict.fromkeys(part.role for part in piece.parts)) if stems else []
        self.rate_hz = rate_hz
        self._bank = NoteBank(rate_hz, seed)
        self.tempo_bpm = piece.tempo_bpm
        self.instruments = piece.instruments
        self.sources: list[str] = []

    @property
    def section_lengths_s(self) -> list[float]:
        """Nominal length of each section at the piece's tempo."""
        return [section.beats * 60.0 / self.tempo_bpm for section in self.piece.sections]

    def play(self, section: int, plan: TakePlan, room: Room, rng: np.random.Generator) -> Take:
        """One attempt at a section."""
        score = self.piece.sections[section]
        clock = _TempoCurve(score, self.tempo_bpm, rng)
        notes, faults = _perform(score, plan, clock, rng)
        dry_S, stems = self._mix(notes, rng)
        bars_s = [clock.seconds(beat) for beat in np.arange(0, score.beats, score.beats_per_bar)]
        bars = ((np.array(bars_s) + LEAD_IN_S) * self.rate_hz).astype(np.int64)
        fault_samples = tuple((int((time_s + LEAD_IN_S) * self.rate_hz), name) for time_s, name in faults)
        take = Take(dry_S, bars, bars[:: phrase_bars(len(bars))], fault_samples, stems)
        return finish_take(take, room, self.rate_hz, rng)

    def noodle(self, room: Room, rng: np.random.Generator) -> Take:
        """Tuning up or trying fingers: a held fifth, a run or a few stray notes on the lead instrument."""
        timbre = self.piece.parts[0].timbre
        low, high = RANGES[timbre.family] if timbre else (48, 72)
        pitch, time_s = int(rng.integers(low, high - 7)), 0.0
        notes = []
        shape, step_s = int(rng.integers(3)), float(rng.uniform(0.12, 0.5))
        for i in range(int(rng.integers(2, 7))):
            interval = ((0, 7)[i % 2], (0, 2, 4, 5, 7, 9)[i], int(rng.integers(0, 8)))[shape]
            notes.append(
                _Played(time_s, step_s * rng.uniform(0.5, 1.5), pitch + interval, rng.uniform(0.3, 0.7), 0)
            )
            time_s += step_s * rng.uniform(0.8, 2.0)
        dry_S, stems = self._mix(notes, rng)
        take = Take(dry_S, np.zeros(0, np.int64), np.zeros(0, np.int64), (), stems)
        return finish_take(take, room, self.rate_hz, rng)

    def _mix(self, notes: list[_Played], rng: np.random.Generator) -> tuple[np.ndarray, tuple[Stem, ...]]:
        """All notes in a buffer that leaves room for the last release, and those of each role in its own."""
        end_s = max((note.time_s + note.length_s for note in notes), default=0.0) + MAX_DECAY_S
        n_samples = int((end_s + LEAD_IN_S) * self.rate_hz) + 1
        played = list(zip(notes, rng.integers(0, VARIANTS, len(notes)).tolist(), strict=True))
        of_role = {
            role: [p for p in played if self.piece.parts[p[0].part].role == role] for role in self._roles
        }
        stems = tuple(Stem(role, self._added(n_samples, part)) for role, part in of_role.items())
        return self._added(n_samples, played), stems

    def _added(self, n_samples: int, played: list[tuple[_Played, int]]) -> np.ndarray:
        """Notes, each with the number of its variant, added up."""
        mixed_S = np.zeros(n_samples, np.float32)
        for note, variant in played:
            start = int((note.time_s + LEAD_IN_S) * self.rate_hz)
            wave_S, hold, release = self._note(note, variant)
            level = np.float32(note.force**1.5 * self.piece.parts[note.part].level)
            stop = min(len(mixed_S) - start, hold)
            mixed_S[start : start + stop] += level * wave_S[:stop]
            tail_S = wave_S[hold : hold + release]
            tail_S = tail_S[: max(0, len(mixed_S) - start - hold)]
            if len(tail_S):
                fade_S = np.linspace(level, 0.0, len(tail_S), dtype=np.float32)
                mixed_S[start + hold : start + hold + len(tail_S)] += fade_S * tail_S
        return mixed_S

    def _note(self, note: _Played, variant: int) -> tuple[np.ndarray, int, int]:
        """The samples of a note, how many to play at full strength and how many to fade over."""
        timbre = self.piece.parts[note.part].timbre
        if timbre is None:
            wave_S = self._bank.drum(note.part, DRUMS[note.pitch], variant)
            return wave_S, len(wave_S), 0
        hold_s = min(note.length_s, LENGTH_CLASSES_S[-1])
        wave_S = self._bank.pitched(note.part, timbre, note.pitch, hold_s, note.force, variant)
        hold = int(hold_s * self.rate_hz)
        return wave_S, hold, min(len(wave_S) - hold, int(timbre.release_s * self.rate_hz))


class _TempoCurve:
    """Beats → seconds of one take: its own tempo, a drift, rubato and (in some) a slower last bar."""

    def __init__(self, score: Section, tempo_bpm: float, rng: np.random.Generator):
        self._beats = np.arange(0.0, score.beats + 8.25, 0.25)
        tempo = tempo_bpm * np.exp(np.clip(rng.normal(0.0, 0.02), -0.04, 0.04))
        rubato = smooth_curve(len(self._beats), 4 * score.beats_per_bar * 2, rng) * rng.uniform(0.005, 0.035)
        slowing = np.clip((self._beats - score.beats + score.beats_per_bar) / score.beats_per_bar, 0.0, 1.0)
        local = tempo * (1.0 + rubato) * (1.0 - slowing * rng.choice((0.0, 0.0, 0.08, 0.18)))
        steps_s = 0.25 * 60.0 / local
        self._seconds = np.concatenate(([0.0], np.cumsum(steps_s)[:-1]))

    def seconds(self, beat: float) -> float:
        """Seconds from the first beat."""
        return float(np.interp(beat, self._beats, self._seconds))


def smooth_curve(n: int, period: int, rng: np.random.Generator) -> np.ndarray:
    """A random curve (n,) of unit size that changes over about `period` points."""
    knots = rng.normal(0.0, 1.0, max(2, n // max(1, period) + 2))
    return np.interp(np.linspace(0.0, len(knots) - 1, n), np.arange(len(knots)), np.clip(knots, -2.0, 2.0))


def phrase_bars(bars: int) -> int:
    """Bars per phrase: four, or two in a section too short to have two phrases of four."""
    return 4 if bars >= 8 else 2


def finish_take(take: Take, room: Room, rate_hz: int, rng: np.random.Generator) -> Take:
    """Tuning, dropouts, distance, tone and level of one take, and the trim at the end of its decay.

    All of it is linear once it is drawn, and what is drawn for the take holds for its stems.
    """
    ratio = float(2.0 ** (np.clip(rng.normal(0.0, 3.0), -10.0, 10.0) / 1200.0))
    dry = [_resample_linear(dry_S, ratio) for dry_S in (take.samples_S, *(s.samples_S for s in take.stems))]
    faults = tuple((int(at / ratio), name) for at, name in take.faults)
    gates = [_gate(len(dry[0]), at, rate_hz, rng) for at, name in faults if name == "dropout"]
    response_S = _response(room, rng)
    heard = [_through(dry_S, gates, response_S) for dry_S in dry]
    end = _decay_end(heard[0], rate_hz)
    gain = np.float32(TAKE_LEVEL / max(loudness(heard[0][:end], rate_hz), 1e-9)) * 10 ** (
        rng.normal(0, 0.8) / 20
    )
    samples_S, *stems = (_ended(heard_S[:end] * gain, rate_hz) for heard_S in heard)
    bars = (take.bars / ratio).astype(np.int64)
    phrases = (take.phrases / ratio).astype(np.int64)
    return Take(
        samples_S,
        bars[bars < len(samples_S)],
        phrases[phrases < len(samples_S)],
        faults,
        tuple(stem._replace(samples_S=s) for stem, s in zip(take.stems, stems, strict=True)),
    )


def loudness(samples_S: np.ndarray, rate_hz: int) -> float:
    """Root mean square of the louder half of 50 ms blocks: pauses and decays do not count."""
    power = block_power(samples_S, int(0.05 * rate_hz))
    return float(np.sqrt(np.sort(power)[len(power) // 2 :].mean()))


def block_power(samples_S: np.ndarray, block: int) -> np.ndarray:
    """Mean square of consecutive blocks of `block` samples; a rest shorter than a block is left out."""
    blocks = max(1, len(samples_S) // block)
    return np.square(samples_S[: blocks * block].reshape(blocks, -1)).mean(axis=1)


def _perform(
    score: Section, plan: TakePlan, clock: _TempoCurve, rng: np.random.Generator
) -> tuple[list[_Played], list[tuple[float, str]]]:
    """The notes as played (seconds) and the seconds at which faults happened."""
    fault_beats = sorted((_next_lead_beat(score, share * score.beats), name) for name, share in plan.faults)
    notes = list(score.notes)
    for beat, name in fault_beats:
        notes = _spoil_notes(notes, beat, name, rng)
    stop_beat = score.beats if plan.break_share is None else plan.break_share * score.beats
    played, faults, end_s = _play_spans(notes, fault_beats, stop_beat, clock, _draw_hand(score, rng), rng)
    for time_s, name in faults:
        if name == "timing":
            played = _unsettle(played, time_s, rng)
    if plan.break_share is not None:
        played = _let_go(played, end_s, rng)
    return played, faults


def _next_lead_beat(score: Section, beat: float) -> float:
    """The first note of the lead at or after a beat, or its last: where a fault is heard."""
    lead = [note.beat for note in score.notes if note.part == 0]
    return next((at for at in lead if at >= beat), lead[-1])


def _draw_hand(score: Section, rng: np.random.Generator) -> _Hand:
    return _Hand(
        legato=rng.uniform(0.75, 1.08),
        jitter_s=rng.uniform(0.004, 0.011),
        dynamics=smooth_curve(int(score.beats) + 2, score.beats_per_bar * 2, rng) * 0.05,
    )


def _spoil_notes(notes: list[Note], beat: float, name: str, rng: np.random.Generator) -> list[Note]:
    """Wrong and missing notes: changes of the score around a beat."""
    inside = [beat <= note.beat < beat + span for note, span in ((n, 1.0 + (n.part == 0)) for n in notes)]
    match name:
        case "wrong_notes":
            shift = int(rng.choice((-2, -1, 1, 1, 2, 3)))
            others = rng.random() < 0.5
            return [
                note._replace(pitch=note.pitch + shift)
                if hit and _is_pitched(note) and (note.part == 0 or others)
                else note
                for note, hit in zip(notes, inside, strict=True)
            ]
        case "missing_notes":
            all_parts = rng.random() < 0.5
            left = [
                n for n, hit in zip(notes, inside, strict=True) if not (hit and (n.part == 0 or all_parts))
            ]
            return left or notes
        case _:
            return notes


def _is_pitched(note: Note) -> bool:
    return note.pitch >= len(DRUMS)


def _play_spans(
    notes: list[Note],
    fault_beats: list[tuple[float, str]],
    stop_beat: float,
    clock: _TempoCurve,
    hand: _Hand,
    rng: np.random.Generator,
) -> tuple[list[_Played], list[tuple[float, str]], float]:
    """Plays up to a beat, going back after each stumble; also returns the faults and the end in seconds."""
    stumbles = [beat for beat, name in fault_beats if name == "stumble" and 0.0 < beat < stop_beat]
    others = [(beat, name) for beat, name in fault_beats if name != "stumble"]
    played: list[_Played] = []
    faults: list[tuple[float, str]] = []
    shift_s, start, end_s = 0.0, 0.0, 0.0
    for stop in [*stumbles, stop_beat]:
        for note in notes:
            if start <= note.beat < stop:
                played += _play_note(note, clock, shift_s, hand, rng)
        faults += [(clock.seconds(beat) + shift_s, name) for beat, name in others if start <= beat < stop]
        end_s = clock.seconds(stop) + shift_s
        if stop < stop_beat:
            played = _let_go(played, end_s, rng)
            faults.append((end_s, "stumble"))
            start = max(start, stop - float(rng.choice((1.0, 2.0, 2.0, 4.0))))
            shift_s = end_s + rng.uniform(0.12, 0.6) - clock.seconds(start)
    return played, sorted(faults), end_s


def _play_note(
    note: Note, clock: _TempoCurve, shift_s: float, hand: _Hand, rng: np.random.Generator
) -> list[_Played]:
    """A note with micro-timing, dynamics and articulation, now and then with a grace note before it."""
    time_s = max(0.0, clock.seconds(note.beat) + shift_s + rng.normal(0.0, hand.jitter_s))
    length_s = clock.seconds(note.beat + note.beats) + shift_s - time_s
    force = float(np.clip(note.force + hand.dynamics[int(note.beat)] + rng.normal(0.0, 0.05), 0.2, 1.0))
    main = _Played(time_s, max(0.06, length_s * hand.legato), note.pitch, force, note.part)
    if note.part == 0 and _is_pitched(note) and note.beat >= 1.0 and rng.random() < 0.02:
        grace_s = rng.uniform(0.05, 0.09)
        pitch = note.pitch + int(rng.choice((1, 2)))
        return [_Played(time_s - grace_s, grace_s, pitch, force * 0.8, note.part), main]
    return [main]


def _unsettle(played: list[_Played], time_s: float, rng: np.random.Generator) -> list[_Played]:
    """Uneven timing for about two seconds: every note a tenth of a second off, nobody together."""
    spread_s = rng.uniform(0.07, 0.14)
    span_s = rng.uniform(1.2, 2.8)
    return [
        note._replace(time_s=max(0.0, note.time_s + rng.normal(0.0, spread_s)))
        if time_s <= note.time_s < time_s + span_s
        else note
        for note in played
    ]


def _let_go(played: list[_Played], stop_s: float, rng: np.random.Generator) -> list[_Played]:
    """Everybody stops at `stop_s`, each within a tenth of a second."""
    return [
        note._replace(length_s=min(note.length_s, max(0.06, stop_s + rng.uniform(0.0, 0.1) - note.time_s)))
        for note in played
    ]


def _resample_linear(samples_S: np.ndarray, ratio: float) -> np.ndarray:
    """Plays `ratio` times as fast (a few cents): pitch and tempo together, as a tape would."""
    position_S = np.arange(0.0, len(samples_S) - 1, ratio)
    index_S = position_S.astype(np.int64)
    low_S = samples_S[index_S]
    return low_S + (samples_S[index_S + 1] - low_S) * (position_S - index_S).astype(np.float32)


def _gate(n_samples: int, at: int, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """What mutes 0.15–0.5 s (a loose plug), with ramps of 3 ms."""
    length, ramp = int(rng.uniform(0.15, 0.5) * rate_hz), int(0.003 * rate_hz)
    gate_S = np.ones(n_samples, np.float32)
    gate_S[at : at + length] = 0.0
    return np.convolve(gate_S, np.ones(ramp, np.float32) / ramp, mode="same")


def _response(room: Room, rng: np.random.Generator) -> np.ndarray:
    """Distance (how wet) and tone (a tilt), which change a little from take to take."""
    response_S = room.response_S * np.float32(room.wet * 10 ** (rng.normal(0.0, 1.2) / 20))
    response_S[0] += 1.0
    tilt = np.clip(rng.normal(0.0, 0.12), -0.3, 0.3)
    return signal.lfilter((1.0, tilt), (1.0,), response_S).astype(np.float32)


def _through(samples_S: np.ndarray, gates: list[np.ndarray], response_S: np.ndarray) -> np.ndarray:
    """Samples through dropouts and the room."""
    for gate_S in gates:
        samples_S = samples_S * gate_S
    return signal.oaconvolve(samples_S, response_S)[: len(samples_S)].astype(np.float32)


def _ended(samples_S: np.ndarray, rate_hz: int) -> np.ndarray:
    """Samples faded out over their last 40 ms."""
    fade = min(len(samples_S), int(0.04 * rate_hz))
    samples_S[-fade:] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return samples_S


def _decay_end(samples_S: np.ndarray, rate_hz: int) -> int:
    """The sample after which the take stays DECAY_DB below its own loudness."""
    block = int(0.02 * rate_hz)
    power = block_power(samples_S, block)
    audible = np.flatnonzero(power > (loudness(samples_S, rate_hz) ** 2) * 10 ** (DECAY_DB / 10))
    last = audible[-1] + 1 if len(audible) else 1
    return min(len(samples_S), (int(last) + 2) * block)
