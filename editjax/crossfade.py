"""The sound of one join: which few samples lie between two pieces of a recording so that nothing clicks.

Comes in: the source around the end of the outgoing piece and around the start of the incoming one, float64
(S, C) in the file's own units. Goes out: the samples that replace a little of both pieces.

Law: equal power, generalised to correlated material. With correlation r between the two pieces the gains
obey g_out² + g_in² + 2 r g_out g_in = 1 (Fink, Holters, Zölzer, "Signal-matched power-complementary
cross-fading and dry-wet mixing", DAFx-16): r = 0 is the equal-power fade, r = 1 the equal-gain fade, whose
sum never overshoots. Negative r would amplify both pieces; there the equal-power fade dips instead, and
joins are moved to places where r is positive.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from editjax.errors import UsageError

STEP_LIMIT = 1.1
"""A step inside a join is no click if it is at most this many times the largest step on either side."""

STEP_WANTED = 1.05
"""What the search for a fade is content with: the limit less a margin."""

LONGEST_FACTOR = 4
"""How many times its wanted extent a fade may grow; with 10 ms, a 16 Hz tone still passes the limit."""


@dataclass(frozen=True)
class RenderSettings:
    """How joins are placed and faded.

    A join moves by at most `snap_ms` on either side; its crossfade is centred on it, and where the material
    needs it reaches up to `crossfade_ms` to either side, below 27 Hz twice that. Where the edit begins or
    ends inside the recording it fades in or out over `fade_edges_ms`.
    """

    crossfade_ms: float = 10.0
    snap_ms: float = 4.0
    fade_edges_ms: float = 3.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1000:
                raise UsageError(f"{name} is {value}; give 0 to 1000 milliseconds")


DEFAULT_SETTINGS = RenderSettings()


class Cut(NamedTuple):
    """The source around one end of a piece: row `at` is the first sample after the cut."""

    samples_SC: np.ndarray
    at: int


class Room(NamedTuple):
    """Samples a join may replace before and after its instant."""

    before: int
    after: int


class Fade(NamedTuple):
    """How two pieces meet, whatever they sound like, so that tracks can share it.

    The last `before` samples of one piece and the first `after` of the next are replaced. With a
    `correlation` both pieces are heard all along, at its `crossfade_gains`; without one the outgoing piece
    fades to silence at the cut and the incoming one from silence, which needs no handles.
    """

    before: int
    after: int
    correlation: float | None


class Join(NamedTuple):
    """`samples_SC` replace the last `before` samples of one piece and the first `after` of the next."""

    samples_SC: np.ndarray
    before: int
    after: int


class Quantum(NamedTuple):
    """The grid of a number type: the step between values and the range; a step of 0 is a float's."""

    step: float
    low: float
    high: float

    @classmethod
    def of(cls, dtype: np.dtype, bits: int) -> "Quantum":
        """The grid of integers that use the upper `bits` of a dtype, or none for floats."""
        if dtype.kind == "f":
            return cls(0.0, -np.inf, np.inf)
        step, top = 2.0 ** (8 * dtype.itemsize - bits), 2.0 ** (8 * dtype.itemsize - 1)
        return cls(step, -top, top - step)

    @property
    def smallest_step(self) -> float:
        """Steps up to this may be nothing but rounding, which moves both ends of a step."""
        return 2 * self.step or float(np.finfo(np.float32).eps)

    def round(self, samples: np.ndarray) -> np.ndarray:
        """The nearest values of the type, saturated."""
        if not self.step:
            return samples
        return np.clip(np.rint(samples / self.step) * self.step, self.low, self.high)

    def clips(self, samples: np.ndarray) -> bool:
        """Whether rounding saturates: moves a sample by more than a step."""
        return bool(np.abs(self.round(samples) - samples).max(initial=0) > self.step)


class Meeting(NamedTuple):
    """Two pieces about to be joined, and the grid of the number type that the join is written in."""

    outgoing: Cut
    incoming: Cut
    grid: Quantum


def crossfade_gains(length: int, correlation: float) -> tuple[np.ndarray, np.ndarray]:
    """Gains (S,) of the outgoing and the incoming piece; `correlation` outside [0, 1] is clamped."""
    angle_S = (np.arange(length) + 0.5) * (np.pi / 2 / max(length, 1))
    power_S = 1 + np.clip(correlation, 0.0, 1.0) * np.sin(2 * angle_S)
    return np.cos(angle_S) / np.sqrt(power_S), np.sin(angle_S) / np.sqrt(power_S)


def fade_in_gains(length: int) -> np.ndarray:
    """A raised cosine from 0 to 1, (S,): a fade from silence without a corner."""
    return np.sin((np.arange(length) + 0.5) * (np.pi / 2 / max(length, 1))) ** 2


def correlation_of(out_SC: np.ndarray, in_SC: np.ndarray) -> float:
    """The correlation of two equally long pieces over all channels, in [-1, 1]; 0 beside silence."""
    energy = float(np.vdot(out_SC, out_SC)) * float(np.vdot(in_SC, in_SC))
    return float(np.vdot(out_SC, in_SC)) / energy**0.5 if energy > 0 else 0.0


def best_fade(meeting: Meeting, tracks: Sequence[Meeting], reach: Room, room: Room, side: int) -> Fade:
    """The first fade whose steps and peaks stay within those of its surroundings, else the smoothest of all.

    The surroundings are `side` samples of either piece itself. `reach` is the wanted extent of the
    crossfade, `room` what may be replaced at most. Tried in order: the crossfade at the measured correlation,
    with equal gain, twice as long, wholly before or after the cut (where one handle holds something loud),
    out and in again without any handle, and four times as long (tones below about 27 Hz). Where the meeting
    is that of a sum, none of its `tracks` may leave the range of its own number type either.
    """
    outgoing, incoming, grid = meeting
    out_C = largest_steps(outgoing.samples_SC[max(outgoing.at - side, 0) : outgoing.at])
    in_C = largest_steps(incoming.samples_SC[incoming.at : incoming.at + side])
    limit_C = np.maximum(np.maximum(out_C, in_C), grid.smallest_step)
    best, best_ratio = None, np.inf
    for fade in _candidates(outgoing, incoming, reach, room):
        samples_SC = _mixed(fade, outgoing, incoming)
        rounded_SC = grid.round(samples_SC)
        ratio = float((_steps_across(rounded_SC, fade, outgoing, incoming) / limit_C).max(initial=0))
        if grid.clips(samples_SC) or any(
            track.grid.clips(_mixed(fade, track.outgoing, track.incoming)) for track in tracks
        ):
            ratio = max(ratio, STEP_LIMIT)
        if ratio < best_ratio:
            best, best_ratio = fade, ratio
        if ratio <= STEP_WANTED:
            break
    assert best is not None
    return best


def crossfade(outgoing: Cut, incoming: Cut, extent: Room) -> Fade:
    """The crossfade over `extent` at the correlation that the pieces have there."""
    out_SC = outgoing.samples_SC[outgoing.at - extent.before : outgoing.at + extent.after]
    in_SC = incoming.samples_SC[incoming.at - extent.before : incoming.at + extent.after]
    return Fade(*extent, correlation_of(out_SC, in_SC))


def join(meeting: Meeting, fade: Fade) -> Join:
    """What lies between the two pieces: they, mixed as the fade says, in the values of their number type."""
    samples_SC = _mixed(fade, meeting.outgoing, meeting.incoming)
    return Join(meeting.grid.round(samples_SC), fade.before, fade.after)


def largest_steps(samples_SC: np.ndarray) -> np.ndarray:
    """The largest difference between neighbouring samples of each channel, float64 (C,)."""
    return np.abs(np.diff(samples_SC.astype(np.float64, copy=False), axis=0)).max(axis=0, initial=0)


def _mixed(fade: Fade, outgoing: Cut, incoming: Cut) -> np.ndarray:
    """The samples (S, C) of a fade, `before` + `after` of them, not rounded."""
    if fade.correlation is None:
        out_SC = outgoing.samples_SC[outgoing.at - fade.before : outgoing.at]
        in_SC = incoming.samples_SC[incoming.at : incoming.at + fade.after]
        out_S, in_S = fade_in_gains(fade.before)[::-1], fade_in_gains(fade.after)
        return np.concatenate([out_SC * out_S[:, None], in_SC * in_S[:, None]])
    out_SC = outgoing.samples_SC[outgoing.at - fade.before : outgoing.at + fade.after]
    in_SC = incoming.samples_SC[incoming.at - fade.before : incoming.at + fade.after]
    out_S, in_S = crossfade_gains(len(out_SC), fade.correlation)
    return out_SC * out_S[:, None] + in_SC * in_S[:, None]


def _candidates(outgoing: Cut, incoming: Cut, reach: Room, room: Room) -> Iterator[Fade]:
    handles = Room(incoming.at, len(outgoing.samples_SC) - outgoing.at)
    borrowed = Room(min(room.before, handles.before), min(room.after, handles.after))
    near, wide, longest = (_scaled(reach, factor, borrowed) for factor in (1, 2, LONGEST_FACTOR))
    for extent in dict.fromkeys([near, wide, Room(wide.before, 0), Room(0, wide.after)]):
        if sum(extent):
            yield crossfade(outgoing, incoming, extent)
            yield Fade(*extent, 1.0)
    for factor in (1, 2):
        yield Fade(*_scaled(reach, factor, room), None)
    yield Fade(*longest, 1.0)
    yield Fade(*_scaled(reach, LONGEST_FACTOR, room), None)


def _scaled(reach: Room, factor: int, most: Room) -> Room:
    return Room(min(factor * reach.before, most.before), min(factor * reach.after, most.after))


def _steps_across(samples_SC: np.ndarray, extent: Fade, outgoing: Cut, incoming: Cut) -> np.ndarray:
    """The largest steps (C,) from the last sample before a join to the first after it."""
    first, last = outgoing.at - extent.before, incoming.at + extent.after
    pieces = [
        outgoing.samples_SC[max(first - 1, 0) : first],
        samples_SC,
        incoming.samples_SC[last : last + 1],
    ]
    return largest_steps(np.concatenate(pieces))
