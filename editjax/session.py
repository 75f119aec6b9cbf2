"""A recording session on a time line: material and settings come in, the raw recording and its log go out.

A musician records the sections of one piece, each in one to five attempts: false starts, spoiled takes
(complete or broken off), superseded good takes, and the good take that counts. In some sections a failed
attempt comes after it, so that "the last thing played" is not the answer. Between attempts there is dead air,
talk, noise, noodling, count-ins and, where sections are recorded out of order, slates (k beeps before every
attempt at section k). The spread of takes follows real editing sessions: most of what is recorded is never
used, and attempts often follow each other without a silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from editjax import studio
from editjax.performance import (
    FAULT_SHARES,
    FAULTS,
    LEAD_IN_S,
    Room,
    Stem,
    Take,
    TakePlan,
    block_power,
    loudness,
)

PAUSE_DB = -27.0
MIN_PAUSE_S = 0.3
MAX_ATTEMPTS = 5
SHORTEST_S = 20.0
BREATH_SHARE = 0.15
ROOM, MUSIC = "room", "music"
STEM_OF_KIND = {"talk": "talk", "slate": "talk", "count_in": "talk", "noise": "noise", "breath": "noise"}
"""Where a kind of event is heard; all else is music, on the stems of its players where they have any."""


@dataclass(frozen=True)
class SimulateSettings:
    """What sessions are like; shares are probabilities, lengths are of the raw recording.

    A session is padded with silence to `min_length_s` and may pass `max_length_s` by about one take.

    `styles` are the edits made of every session; with `style_weights` (one per style) each session gets one
    of them. `split` restricts a folder of recordings to train, valid or test ("" takes all); `recorded_share`
    of the sessions play recordings where there are any, the rest are synthesised. `stems` also keeps what the
    session is the sum of; it changes nothing else.
    """

    sample_rate_hz: int = 22050
    min_length_s: float = 60.0
    max_length_s: float = 240.0
    keep_ratio: float = 0.4
    keep_ratio_spread: float = 0.09
    recorded_share: float = 0.5
    split: str = ""
    styles: tuple[str, ...] = ("final",)
    style_weights: tuple[float, ...] = ()
    slate_share: float = 0.12
    failed_last_share: float = 0.15
    stems: bool = False

    def __post_init__(self) -> None:
        if not SHORTEST_S <= self.min_length_s <= self.max_length_s:
            raise ValueError(f"min_length_s must be at least {SHORTEST_S:g} and at most max_length_s")
        if self.style_weights and len(self.style_weights) != len(self.styles):
            raise ValueError("style_weights must have one number per style")


class Event(NamedTuple):
    """A span of the raw recording and what it is; `faults` are (sample, name) of what went wrong, in order.

    `section` is the song's section (0 is the first) or -1; `complete` whether an attempt reached its end.
    """

    start: int
    stop: int
    kind: str
    section: int = -1
    complete: bool = False
    faults: tuple[tuple[int, str], ...] = ()


class KeptTake(NamedTuple):
    """The attempt of a section that counts: span, bar lines, phrase starts and pauses in raw samples.

    `room_before` are the samples of breath and silence before it, `room_after` those of silence after it.
    """

    section: int
    start: int
    stop: int
    bars: np.ndarray
    phrases: np.ndarray
    pauses: tuple[tuple[int, int], ...]
    room_before: int
    room_after: int


class Timeline(NamedTuple):
    """A whole session: samples (S,), events in time order (pauses lie inside takes), kept takes.

    `stems`, where they are wanted, are as long and add up to it: players, music, talk, noise and the room.
    """

    raw_S: np.ndarray
    rate_hz: int
    events: tuple[Event, ...]
    kept: tuple[KeptTake, ...]
    stems: tuple[Stem, ...] = ()


def joined(timelines: Sequence[Timeline]) -> Timeline:
    """Several pieces recorded one after the other, their sections numbered through."""
    at, sections = 0, 0
    raw, events, kept = [], [], []
    for timeline in timelines:
        raw.append(timeline.raw_S)
        for event in timeline.events:
            section = event.section + sections if event.section >= 0 else -1
            faults = tuple((sample + at, name) for sample, name in event.faults)
            events.append(
                event._replace(start=event.start + at, stop=event.stop + at, section=section, faults=faults)
            )
        kept += [_later(take, at, sections) for take in timeline.kept]
        at, sections = at + len(timeline.raw_S), sections + len(timeline.kept)
    names = dict.fromkeys(stem.name for timeline in timelines for stem in timeline.stems)
    stems = tuple(Stem(name, np.concatenate([_heard(name, t) for t in timelines])) for name in names)
    return Timeline(np.concatenate(raw), timelines[0].rate_hz, tuple(events), tuple(kept), stems)


def _heard(name: str, timeline: Timeline) -> np.ndarray:
    """A stem of a session, silent where it has none of the name."""
    found = (stem.samples_S for stem in timeline.stems if stem.name == name)
    return next(found, np.zeros_like(timeline.raw_S))


def _later(take: KeptTake, samples: int, sections: int) -> KeptTake:
    return take._replace(
        section=take.section + sections,
        start=take.start + samples,
        stop=take.stop + samples,
        bars=take.bars + samples,
        phrases=take.phrases + samples,
        pauses=tuple((start + samples, stop + samples) for start, stop in take.pauses),
    )


class Material(Protocol):
    """Something that can be played section by section, again and again."""

    tempo_bpm: float
    instruments: list[str]
    sources: list[str]

    @property
    def section_lengths_s(self) -> list[float]: ...

    def play(self, section: int, plan: TakePlan, room: Room, rng: np.random.Generator) -> Take: ...

    def noodle(self, room: Room, rng: np.random.Generator) -> Take: ...


class Attempt(NamedTuple):
    """One entry of the session's plan."""

    section: int
    kind: str
    plan: TakePlan


class Script(NamedTuple):
    """The session as planned: attempts in recording order, seconds of filler between them, and its habits."""

    attempts: tuple[Attempt, ...]
    filler_s: float
    slated: bool
    counts_in: bool


class Surroundings(Protocol):
    """Where talk, noises and the noise floor come from."""

    def talk(self, length_s: float, rng: np.random.Generator) -> np.ndarray: ...

    def noise(self, rng: np.random.Generator) -> np.ndarray: ...

    def room_tone(self, n_samples: int, rng: np.random.Generator) -> np.ndarray: ...


def plan_lengths(settings: SimulateSettings, rng: np.random.Generator) -> tuple[list[float], float]:
    """Section lengths in seconds and the keep ratio a session aims for."""
    ratio = float(np.clip(rng.normal(settings.keep_ratio, settings.keep_ratio_spread), 0.22, 0.56))
    shortest_s, longest_s = settings.min_length_s * 1.08, settings.max_length_s * 0.9
    raw_s = rng.uniform(min(shortest_s, longest_s), longest_s)
    kept_s = float(np.clip(raw_s * ratio, 12.0, 5 * 23.0))
    fewest = max(2, int(np.ceil(kept_s / 23.0)))
    count = int(rng.integers(fewest, max(fewest, min(5, int(kept_s // 6.5))) + 1))
    weights = rng.uniform(0.65, 1.35, count)
    return [float(np.clip(kept_s * w / weights.sum(), 6.0, 25.0)) for w in weights], ratio


def write_script(
    section_lengths_s: list[float], ratio: float, settings: SimulateSettings, rng: np.random.Generator
) -> Script:
    """Draws attempts until the planned share of the recording is music that will be cut."""
    kept_s = sum(section_lengths_s)
    raw_s = float(np.clip(kept_s / ratio, settings.min_length_s * 1.05, settings.max_length_s * 0.92))
    cut_s = max(0.0, raw_s - kept_s)
    filler_s = cut_s * float(rng.uniform(0.12, 0.28))
    count = len(section_lengths_s)
    before: list[list[Attempt]] = [[] for _ in range(count)]
    after: list[list[Attempt]] = [[] for _ in range(count)]
    left_s = cut_s - filler_s
    for section, length_s in enumerate(section_lengths_s):
        if rng.random() < settings.failed_last_share:
            kind = "false_start" if rng.random() < 0.5 else "broken"
            after[section].append(draw_attempt(section, kind, length_s, rng))
            left_s -= _attempt_length_s(after[section][-1], length_s)
    for _ in range(8 * count):
        section = int(rng.integers(count))
        if len(before[section]) + len(after[section]) >= MAX_ATTEMPTS - 1 or left_s < 1.0:
            continue
        kind = str(rng.choice(("false_start", "broken", "spoiled", "superseded"), p=(0.2, 0.24, 0.34, 0.22)))
        attempt = draw_attempt(section, kind, section_lengths_s[section], rng)
        length_s = _attempt_length_s(attempt, section_lengths_s[section])
        if length_s <= left_s * 1.15:
            before[section].append(attempt)
            left_s -= length_s
    slated = rng.random() < settings.slate_share * 1.3
    order = np.arange(count)
    if slated and rng.random() < 1.0 / 1.3:
        while count > 1 and bool((order == np.arange(count)).all()):
            order = rng.permutation(count)
    attempts = [
        attempt
        for section in order
        for attempt in (*before[section], Attempt(int(section), "take", TakePlan()), *after[section])
    ]
    return Script(tuple(attempts), filler_s + max(0.0, 0.5 * left_s), bool(slated), bool(rng.random() < 0.4))


def record(
    script: Script,
    material: Material,
    surroundings: Surroundings,
    settings: SimulateSettings,
    rng: np.random.Generator,
) -> Timeline:
    """Plays a script: every attempt and everything between, one after the other, over one room tone."""
    rate_hz = settings.sample_rate_hz
    place = _Place(material, surroundings, studio.draw_room(rate_hz, rng))
    tape = _Tape(rate_hz)
    weights = rng.exponential(1.0, len(script.attempts) + 1) + 0.15
    fillers_s = script.filler_s * weights / weights.sum()
    takes: dict[int, tuple[Event, Take]] = {}
    for attempt, filler_s in zip(script.attempts, fillers_s, strict=False):
        _fill(tape, float(filler_s), place, rng)
        _announce(tape, attempt, script, place, rng)
        take = material.play(attempt.section, attempt.plan, place.room, rng)
        event = tape.add(_kind(attempt), take.samples_S, attempt, take.faults, take.stems)
        if attempt.kind == "take":
            takes[attempt.section] = (event, take)
        if event.complete:
            tape.silence(rng.uniform(0.05, 0.3))
    tape.silence(max(rng.uniform(0.2, 1.0) + float(fillers_s[-1]), settings.min_length_s - tape.length_s))
    raw_S = tape.samples()
    tone_S = surroundings.room_tone(len(raw_S), rng)
    raw_S += tone_S
    gain = np.float32(10 ** (rng.uniform(-20.0, -3.0) / 20) / max(float(np.abs(raw_S).max()), 1e-9))
    raw_S *= gain
    stems = (*tape.stems(), Stem(ROOM, tone_S)) if settings.stems else ()
    stems = tuple(stem._replace(samples_S=stem.samples_S * gain) for stem in stems)
    kept = tuple(_kept(*takes[section], tape, rate_hz) for section in sorted(takes))
    pauses = [Event(a, b, "pause", take.section) for take in kept for a, b in take.pauses]
    return Timeline(raw_S, rate_hz, tuple(sorted([*tape.events, *pauses])), kept, stems)


class _Place(NamedTuple):
    """Who and what is heard in a session."""

    material: Material
    surroundings: Surroundings
    room: Room


class _Tape:
    """Grows by one event after another."""

    def __init__(self, rate_hz: int):
        self.rate_hz = rate_hz
        self.events: list[Event] = []
        self._pieces: list[np.ndarray] = []
        self._stems: list[tuple[int, Stem]] = []
        self._at = 0

    def add(
        self,
        kind: str,
        samples_S: np.ndarray,
        attempt: Attempt | None = None,
        faults: tuple[tuple[int, str], ...] = (),
        stems: tuple[Stem, ...] = (),
    ) -> Event:
        """Appends an event and returns it; neighbouring silences become one."""
        section = attempt.section if attempt else -1
        complete = attempt is not None and attempt.plan.break_share is None
        placed = tuple((self._at + int(at), name) for at, name in faults if at < len(samples_S))
        event = Event(self._at, self._at + len(samples_S), kind, section, complete, placed)
        if kind == "silence" and self.events and self.events[-1].kind == "silence":
            event = self.events.pop()._replace(stop=event.stop)
        self.events.append(event)
        self._pieces.append(samples_S)
        if kind != "silence":
            whole = Stem(STEM_OF_KIND.get(kind, MUSIC), samples_S)
            self._stems += [(self._at, stem) for stem in stems or (whole,)]
        self._at = event.stop
        return event

    @property
    def length_s(self) -> float:
        """Seconds recorded so far."""
        return self._at / self.rate_hz

    def silence(self, length_s: float) -> None:
        n_samples = int(length_s * self.rate_hz)
        if n_samples > 0:
            self.add("silence", np.zeros(n_samples, np.float32))

    def samples(self) -> np.ndarray:
        return np.concatenate(self._pieces)

    def stems(self) -> tuple[Stem, ...]:
        """What was recorded, each kind for itself and as long as all."""
        recorded = {stem.name: np.zeros(self._at, np.float32) for _, stem in self._stems}
        for at, (name, samples_S) in self._stems:
            recorded[name][at : at + len(samples_S)] = samples_S
        return tuple(Stem(name, samples_S) for name, samples_S in recorded.items())

    def quiet_around(self, event: Event) -> tuple[int, int]:
        """Samples of silence and breath directly before an event, and of silence directly after it."""
        index = self.events.index(event)
        before, after = event.start, event.stop
        for earlier in reversed(self.events[:index]):
            if earlier.kind not in ("silence", "breath"):
                break
            before = earlier.start
        for later in self.events[index + 1 : index + 2]:
            after = later.stop if later.kind == "silence" else after
        return event.start - before, after - event.stop


def _kind(attempt: Attempt) -> str:
    return "spoiled" if attempt.kind == "broken" else attempt.kind


def draw_attempt(section: int, kind: str, length_s: float, rng: np.random.Generator) -> Attempt:
    match kind:
        case "false_start":
            short = rng.uniform(0.5, 5.0) / length_s if rng.random() < 0.7 else rng.uniform(0.2, 0.6)
            return Attempt(section, kind, TakePlan((), float(min(0.6, short))))
        case "broken":
            stop = float(rng.uniform(0.35, 0.9))
            shares = [stop - rng.uniform(0.3, 1.2) / length_s]
            shares += list(rng.uniform(0.08, 0.7 * stop, int(rng.integers(0, 2))))
            return Attempt(section, kind, TakePlan(_draw_faults(shares, rng), stop))
        case "spoiled":
            shares = list(rng.uniform(0.08, 0.92, int(rng.integers(2, 5))))
            return Attempt(section, kind, TakePlan(_draw_faults(shares, rng)))
        case _:
            return Attempt(section, kind, TakePlan())


def _draw_faults(shares: list[float], rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    """Faults at the given shares of the section; a session's musician tends to repeat the same kind."""
    usual = str(rng.choice(FAULTS, p=FAULT_SHARES))
    names = [usual if rng.random() < 0.5 else str(rng.choice(FAULTS, p=FAULT_SHARES)) for _ in shares]
    return tuple(sorted(zip(names, (max(0.03, float(s)) for s in shares), strict=True), key=lambda f: f[1]))


def _attempt_length_s(attempt: Attempt, length_s: float) -> float:
    share = 1.0 if attempt.plan.break_share is None else attempt.plan.break_share
    return length_s * share + 0.8 + 1.2 * sum(name == "stumble" for name, _ in attempt.plan.faults)


def _fill(tape: _Tape, filler_s: float, place: _Place, rng: np.random.Generator) -> None:
    """Talk, noise, noodling and silence for about `filler_s`, or nothing but the shortest of them."""
    start_s = tape.length_s
    if rng.random() < 0.4 and filler_s > 0.8:
        tape.silence(rng.uniform(0.0, 0.8))
        tape.add("talk", place.surroundings.talk(min(filler_s, float(rng.uniform(0.6, 5.0))), rng))
    if rng.random() < 0.35 and filler_s > 0.4:
        tape.silence(rng.uniform(0.0, 0.8))
        tape.add("noise", place.surroundings.noise(rng))
    if rng.random() < 0.1 and filler_s > 1.5:
        tape.silence(rng.uniform(0.2, 0.8))
        take = place.material.noodle(place.room, rng)
        tape.add("noodling", take.samples_S, stems=take.stems)
    left_s = filler_s - (tape.length_s - start_s)
    tape.silence(left_s if rng.random() < 0.85 else 0.0)


def _announce(tape: _Tape, attempt: Attempt, script: Script, place: _Place, rng: np.random.Generator) -> None:
    """What comes right before an attempt: the slate, then a count-in or a breath."""
    if script.slated:
        tape.add("slate", studio.slate(attempt.section + 1, tape.rate_hz))
        tape.silence(rng.uniform(0.3, 0.7))
    if script.counts_in and rng.random() < 0.7:
        beats = int(rng.choice((3, 4)))
        tape.add("count_in", studio.count_in(place.material.tempo_bpm, beats, tape.rate_hz, rng))
    elif rng.random() < BREATH_SHARE:
        tape.add("breath", studio.breath(tape.rate_hz, rng))


def _kept(event: Event, take: Take, tape: _Tape, rate_hz: int) -> KeptTake:
    before, after = tape.quiet_around(event)
    return KeptTake(
        event.section,
        event.start,
        event.stop,
        event.start + take.bars,
        event.start + take.phrases,
        tuple((event.start + a, event.start + b) for a, b in _pauses(take.samples_S, rate_hz)),
        before,
        after,
    )


def _pauses(samples_S: np.ndarray, rate_hz: int) -> list[tuple[int, int]]:
    """Spans inside a take that stay PAUSE_DB below its loudness for MIN_PAUSE_S, its ends left out."""
    block = int(0.02 * rate_hz)
    quiet = block_power(samples_S, block) < loudness(samples_S, rate_hz) ** 2 * 10 ** (PAUSE_DB / 10)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], quiet, [False])).astype(np.int8)))
    last = len(samples_S) - int(0.3 * rate_hz)
    spans = [(int(a) * block, int(b) * block) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    shortest = MIN_PAUSE_S * rate_hz
    return [(a, b) for a, b in spans if b - a >= shortest and a > 2 * LEAD_IN_S * rate_hz and b < last]
