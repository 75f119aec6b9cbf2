"""Takes of recorded music: excerpts come in, attempts that differ as performances do go out.

A section is an excerpt of a song between two onsets, or a few short phrases of one instrument in a row.
Playing it again bends its tempo (waveform-similarity overlap-add: Verhelst and Roelands, ICASSP 1993),
tuning, dynamics, tone and distance; faults are made from the sound itself: a span at a wrong pitch, a foreign
note, a stumble that goes back and repeats, an uneven pulse, notes that fail to sound.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from editjax.excerpts import Excerpt, damped, sections_from_phrases, sections_from_song
from editjax.instruments import PITCHED_FAMILIES, draw_timbre, render_note
from editjax.performance import (
    LEAD_IN_S,
    Room,
    Take,
    TakePlan,
    finish_take,
    loudness,
    phrase_bars,
    smooth_curve,
)
from editjax.recordings import Library

PHRASE_SHARE = 0.35
WSOLA_HOP_S = 0.046
WSOLA_REACH_S = 0.012


class RecordedMaterial:
    """A piece made of excerpts; its tempo is unknown, count-ins are given at an ordinary one."""

    def __init__(self, excerpts: list[Excerpt], sources: list[str], tempo_bpm: float, rate_hz: int):
        self._excerpts = excerpts
        self.rate_hz = rate_hz
        self.sources = sources
        self.tempo_bpm = tempo_bpm
        self.instruments: list[str] = []

    @property
    def section_lengths_s(self) -> list[float]:
        """Length of each section as recorded."""
        return [len(excerpt.samples_S) / self.rate_hz for excerpt in self._excerpts]

    def play(self, section: int, plan: TakePlan, room: Room, rng: np.random.Generator) -> Take:
        """One attempt at a section."""
        excerpt = self._excerpts[section]
        faults = [(int(share * len(excerpt.samples_S)), name) for name, share in plan.faults]
        samples_S = excerpt.samples_S
        for at, name in faults:
            samples_S = _spoil(samples_S, at, name, self.rate_hz, rng)
        samples_S, faults = self._read(samples_S, plan, faults, rng)
        samples_S, map_time = _bend_tempo(samples_S, faults, self.rate_hz, rng)
        swell_S = np.interp(
            np.arange(len(samples_S)), np.linspace(0, len(samples_S), 12), smooth_curve(12, 3, rng)
        )
        samples_S = samples_S * (10 ** (0.07 * swell_S)).astype(np.float32)
        lead = int(LEAD_IN_S * self.rate_hz)
        tail = np.zeros(int(1.2 * self.rate_hz), np.float32)
        bars = lead + map_time(excerpt.bars)
        take = Take(
            np.concatenate((np.zeros(lead, np.float32), samples_S, tail)),
            bars,
            bars[:: phrase_bars(len(bars))],
            tuple((lead + int(map_time(at)), name) for at, name in faults),
        )
        return finish_take(take, room, self.rate_hz, rng)

    def noodle(self, room: Room, rng: np.random.Generator) -> Take:
        """A second or so out of the middle of some section, tried out alone."""
        samples_S = self._excerpts[rng.integers(len(self._excerpts))].samples_S
        length = min(len(samples_S), int(rng.uniform(0.4, 1.8) * self.rate_hz))
        start = int(rng.integers(0, len(samples_S) - length + 1))
        piece_S = damped(samples_S[start : start + length], self.rate_hz, rng)
        tail_S = np.zeros(self.rate_hz // 2, np.float32)
        nothing = np.zeros(0, np.int64)
        take = Take(np.concatenate((piece_S, tail_S)), nothing, nothing, ())
        return finish_take(take, room, self.rate_hz, rng)

    def _read(
        self, samples_S: np.ndarray, plan: TakePlan, faults: list[tuple[int, str]], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Plays through, going back after each stumble and stopping where the plan breaks off."""
        stop_at = len(samples_S) if plan.break_share is None else int(plan.break_share * len(samples_S))
        stop_at = max(stop_at, int(0.25 * self.rate_hz))
        pieces: list[np.ndarray] = []
        placed: list[tuple[int, str]] = []
        start, written = 0, 0
        for stop in [*(at for at, name in faults if name == "stumble" and at < stop_at), stop_at]:
            start = min(start, max(0, stop - 1))
            placed += [(written + at - start, n) for at, n in faults if start <= at < stop and n != "stumble"]
            piece_S = samples_S[start:stop]
            if stop < len(samples_S):
                piece_S = damped(piece_S, self.rate_hz, rng)
            pieces.append(piece_S)
            written += len(piece_S)
            if stop < stop_at:
                placed.append((written, "stumble"))
                gap_S = np.zeros(int(rng.uniform(0.1, 0.55) * self.rate_hz), np.float32)
                pieces.append(gap_S)
                written += len(gap_S)
                start = max(0, stop - int(rng.uniform(0.5, 2.0) * self.rate_hz))
        return np.concatenate(pieces), sorted(placed)


def draw_material(
    library: Library, section_lengths_s: list[float], rate_hz: int, rng: np.random.Generator
) -> RecordedMaterial | None:
    """A piece from a song or from phrases of the library; None where it has no music."""
    tempo_bpm = float(rng.uniform(80.0, 140.0))
    if library.phrases and (not library.songs or rng.random() < PHRASE_SHARE):
        group = library.phrases[rng.integers(len(library.phrases))]
        excerpts = sections_from_phrases(group, section_lengths_s, rate_hz, rng)
        return RecordedMaterial(excerpts, [recording.name for recording in group], tempo_bpm, rate_hz)
    if not library.songs:
        return None
    song = library.songs[rng.integers(len(library.songs))]
    if len(song) > 1:
        chosen = rng.permutation(len(song))[: int(rng.integers(2, len(song) + 1))]
        song = tuple(song[i] for i in sorted(chosen))
    excerpts = sections_from_song(song, section_lengths_s, rate_hz, rng)
    return RecordedMaterial(excerpts, [recording.name for recording in song], tempo_bpm, rate_hz)


def wsola(samples_S: np.ndarray, position_K: np.ndarray, hop: int, reach: int) -> np.ndarray:
    """Plays frames from `position_K`, one every `hop` samples, each moved by up to `reach` to fit.

    Frames are `2 · hop` long and overlap by half; the fit is the correlation with the natural continuation of
    the frame before, searched at a quarter of the rate and refined at full rate. Returns (K + 1) · hop
    samples.
    """
    frame = 2 * hop
    padded_S = np.concatenate(
        (np.zeros(reach, np.float32), samples_S, np.zeros(frame + 2 * reach + hop + 8, np.float32))
    )
    coarse_S = padded_S[: len(padded_S) // 4 * 4].reshape(-1, 4).mean(axis=1)
    window_S = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frame) / frame)).astype(np.float32)
    out_S = np.zeros((len(position_K) + 1) * hop, np.float32)
    last = len(padded_S) - frame - hop - 8
    at = reach + int(position_K[0])
    for k, wanted in enumerate(np.minimum(reach + position_K.astype(np.int64), last - reach)):
        if k:
            at = _best_fit(padded_S, coarse_S, at + hop, int(wanted), hop, reach)
        out_S[k * hop : k * hop + frame] += window_S * padded_S[at : at + frame]
    out_S[:hop] += (1.0 - window_S[:hop]) * padded_S[reach + int(position_K[0]) :][:hop]
    return out_S


def _best_fit(
    padded_S: np.ndarray, coarse_S: np.ndarray, natural: int, wanted: int, hop: int, reach: int
) -> int:
    """The position within `reach` of `wanted` that best continues what would follow naturally."""
    template = coarse_S[natural // 4 : natural // 4 + hop // 4]
    first = (wanted - reach) // 4
    score = np.correlate(coarse_S[first : first + 2 * reach // 4 + len(template)], template, mode="valid")
    coarse = max(4, 4 * (first + int(score.argmax())))
    fine = np.correlate(
        padded_S[coarse - 4 : coarse + 4 + hop], padded_S[natural : natural + hop], mode="valid"
    )
    return coarse - 4 + int(fine.argmax())


def _bend_tempo(
    samples_S: np.ndarray, faults: list[tuple[int, str]], rate_hz: int, rng: np.random.Generator
) -> tuple[np.ndarray, Callable[[Any], Any]]:
    """Changes the tempo by a few per cent, more around timing faults; also returns the time map."""
    n_points = max(8, int(len(samples_S) / rate_hz * 10))
    grid = np.linspace(0.0, len(samples_S), n_points)
    speed = np.exp(np.clip(rng.normal(0.0, 0.015), -0.04, 0.04) + 0.012 * smooth_curve(n_points, 30, rng))
    for at, name in faults:
        if name == "timing":
            span = (grid >= at) & (grid < at + rng.uniform(1.2, 2.6) * rate_hz)
            lurch = np.where(np.arange(n_points) // int(rng.integers(3, 7)) % 2, 1.35, 0.72)
            speed = np.where(span, speed * lurch, speed)
    step = np.diff(grid) / (0.5 * (speed[1:] + speed[:-1]))
    played = np.concatenate(([0.0], np.cumsum(step)))
    hop = int(WSOLA_HOP_S * rate_hz)
    position_K = np.interp(np.arange(0.0, played[-1], hop), played, grid)
    bent_S = wsola(samples_S, position_K, hop, int(WSOLA_REACH_S * rate_hz))[: int(played[-1])]
    return bent_S, lambda at: np.interp(at, grid, played).astype(np.int64)


def _spoil(samples_S: np.ndarray, at: int, name: str, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """Faults that keep the length: a wrong pitch or a foreign note, and notes that fail to sound."""
    length = min(int(rng.uniform(0.3, 0.9) * rate_hz), len(samples_S) - at)
    if length < 0.05 * rate_hz or name not in ("wrong_notes", "missing_notes"):
        return samples_S
    spoiled_S = samples_S.copy()
    ramp = int(0.01 * rate_hz)
    mask_S = np.clip(np.minimum(np.arange(length), np.arange(length)[::-1]) / ramp, 0.0, 1.0).astype(
        np.float32
    )
    span = slice(at, at + length)
    if name == "missing_notes":
        spoiled_S[span] *= 1.0 - mask_S * np.float32(1.0 - 10 ** (-rng.uniform(15.0, 30.0) / 20))
    elif rng.random() < 0.65:
        ratio = 2.0 ** (float(rng.choice((-3, -2, -1, 1, 2, 3))) / 12.0)
        position = np.minimum(at + np.arange(length) * ratio, len(samples_S) - 1.0)
        shifted_S = np.interp(position, np.arange(len(samples_S)), samples_S).astype(np.float32)
        spoiled_S[span] += mask_S * (shifted_S - samples_S[span])
    else:
        timbre = draw_timbre(str(rng.choice(PITCHED_FAMILIES)), rng)
        note_S = render_note(timbre, int(rng.integers(50, 80)), length / rate_hz, 0.7, rate_hz, rng)[:length]
        level = 1.4 * loudness(samples_S[max(0, at - rate_hz) : at + rate_hz], rate_hz)
        spoiled_S[span] += mask_S * note_S * np.float32(level / max(loudness(note_S, rate_hz), 1e-6))
    return spoiled_S
