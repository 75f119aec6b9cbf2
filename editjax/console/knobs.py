"""What a mixing engineer turns, as numbers from 0 to 1: the settings that regressors predict.

One stem, one room, one kind of echo. Levels, frequencies and places are spread evenly between the ends that
an engineer uses, frequencies by octaves.
"""

from typing import NamedTuple

import jax.numpy as jnp

from editjax.console.desk import Master, Strip, channel
from editjax.console.dynamics import decibel, gain_of
from editjax.console.room import echoed, reverberated


class Knob(NamedTuple):
    """A setting from `low` (0) to `high` (1), in its unit; `octaves` spreads its logarithm evenly."""

    name: str
    low: float
    high: float
    octaves: bool = False


KNOBS = (
    Knob("gain_db", -18.0, 6.0),
    Knob("low_cut_hz", 20.0, 320.0, octaves=True),
    Knob("low_db", -9.0, 9.0),
    Knob("low_mid_db", -9.0, 9.0),
    Knob("high_mid_db", -9.0, 9.0),
    Knob("high_db", -9.0, 9.0),
    Knob("squeeze_db", 0.0, 24.0),
    Knob("pan", -1.0, 1.0),
    Knob("width", 0.0, 2.0),
    Knob("room_db", -36.0, -6.0),
    Knob("echo_db", -36.0, -6.0),
)
"""All but one are fields of `Strip`; `squeeze_db` is how far below the stem's own peaks compression, 4 to 1,
begins: it says how much is compressed however loud the stem is."""
NAMES = tuple(knob.name for knob in KNOBS)
IDENTIFIABLE = ("gain_db", "low_mid_db", "high_mid_db", "high_db", "squeeze_db", "pan", "room_db", "echo_db")
"""Those that a gradient fit through the console, with the stem known, finds within 0.02 (mean of 32 excerpts,
`benchmarks/identifiable.py`). Where a stem has no bass, the low band and the low cut say the same or nothing;
where it has no sides, its width says nothing."""
RATIO = 4.0
ROOM = Master()


def values(p_K):
    """Settings in their units (K,) of numbers from 0 to 1."""
    return jnp.stack(
        [
            knob.low * (knob.high / knob.low) ** p if knob.octaves else knob.low + (knob.high - knob.low) * p
            for knob, p in zip(KNOBS, p_K, strict=True)
        ]
    )


def strip_of(p_K, peak_db) -> Strip:
    """The strip that knobs set for a stem whose largest sample is `peak_db`."""
    named = dict(zip(NAMES, values(p_K), strict=True))
    threshold_db = peak_db + named["gain_db"] - named.pop("squeeze_db")
    return Strip(**named, threshold_db=threshold_db, ratio=RATIO)


def turned(x_CS, p_K, rate_hz: float):
    """A stem (C, S) as knobs make it sound, with its room and echoes: (2, S). No limiter is in the way."""
    strip = strip_of(p_K, decibel(jnp.abs(x_CS).max()))
    dry_2S = channel(x_CS, strip, rate_hz)
    room_2S = reverberated(gain_of(strip.room_db) * dry_2S, ROOM.room_decay_s, rate_hz)
    echo_2S = echoed(gain_of(strip.echo_db) * dry_2S, ROOM.echo_s, ROOM.echo_feedback, rate_hz)
    return dry_2S + room_2S + echo_2S
