"""Stems and settings → a mix.

strip    gain, high-pass, four bands, compressor, width, pan; a send to the room and one to the echoes
master   the sum of strips, room and echoes, its gain, and a limiter that no true peak passes
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from editjax.console.dynamics import decibel, detected, gain_of, left_after, reduction
from editjax.console.filters import (
    Prototype,
    cascade,
    filtered,
    high_pass_or_none,
    high_shelf,
    low_shelf,
    peak,
)
from editjax.console.loudness import limited
from editjax.console.room import echoed, reverberated

OFF_DB = -120.0


class Strip(NamedTuple):
    """Settings of a stem: levels in dB, `pan` −1 (left) to 1, `width` 0 (mono) to 2, `ratio` ≥ 1; a low cut
    at 0 Hz is none.

    Those of several stems are arrays (I,). As it stands it changes nothing that is heard.
    """

    gain_db: Any = 0.0
    low_cut_hz: Any = 0.0
    low_hz: Any = 100.0
    low_db: Any = 0.0
    low_mid_hz: Any = 400.0
    low_mid_db: Any = 0.0
    low_mid_q: Any = 1.0
    high_mid_hz: Any = 2500.0
    high_mid_db: Any = 0.0
    high_mid_q: Any = 1.0
    high_hz: Any = 8000.0
    high_db: Any = 0.0
    threshold_db: Any = 0.0
    ratio: Any = 1.0
    knee_db: Any = 6.0
    attack_s: Any = 0.01
    release_s: Any = 0.1
    makeup_db: Any = 0.0
    width: Any = 1.0
    pan: Any = 0.0
    room_db: Any = OFF_DB
    echo_db: Any = OFF_DB


class Master(NamedTuple):
    """Settings of the sum: `ceiling_db` holds true peaks; the room's decay is that by 60 dB."""

    gain_db: Any = 0.0
    room_decay_s: Any = 1.2
    echo_s: Any = 0.35
    echo_feedback: Any = 0.3
    ceiling_db: Any = -1.0


def mix(stems_ICS, strips: Strip, master: Master, rate_hz: float):
    """Stems (I, C, S) in mono or stereo → their mix (2, S). `strips` holds arrays (I,)."""
    heard_I2S = jax.vmap(lambda x_CS, strip: channel(x_CS, strip, rate_hz))(stems_ICS, strips)
    room_2S = reverberated(sent(heard_I2S, strips.room_db), master.room_decay_s, rate_hz)
    echo_2S = echoed(sent(heard_I2S, strips.echo_db), master.echo_s, master.echo_feedback, rate_hz)
    sum_2S = heard_I2S.sum(0) + room_2S + echo_2S
    return limited(gain_of(master.gain_db) * sum_2S, master.ceiling_db, rate_hz)


def sent(heard_I2S, level_db_I):
    """What strips send, by these levels, to the room or to the echoes."""
    return jnp.einsum("i,ics->cs", gain_of(level_db_I), heard_I2S, precision="highest")


def channel(x_CS, strip: Strip, rate_hz: float):
    """One stem (C, S), one channel or two, after its strip: (2, S)."""
    x_CS = filtered(x_CS, lambda n_bins: equaliser(strip, rate_hz, n_bins), rate_hz)
    return behind_filters(x_CS, strip, rate_hz)[0]


def behind_filters(x_CS, strip: Strip, rate_hz: float, before=(0.0, 0.0)):
    """What a strip's filters let through of a stem (C, S), after the rest of the strip: (2, S), and where its
    detector has come to from `before`, which makes of two parts, one after the other, what the whole is."""
    left_S, right_S = (gain_of(strip.gain_db) * x_CS[c] for c in (0, -1))  # XLA is slow at sums of two
    level_S = decibel(jnp.maximum(jnp.abs(left_S), jnp.abs(right_S)))
    asked_S = reduction(level_S, strip.threshold_db, strip.ratio, strip.knee_db)
    attack, release = left_after(strip.attack_s, rate_hz), left_after(strip.release_s, rate_hz)
    slow_S, quick_S = detected(asked_S, attack, release, before)
    gain_S = gain_of(strip.makeup_db - quick_S)
    mid_S, side_S = gain_S * (left_S + right_S) / 2.0, gain_S * strip.width * (left_S - right_S) / 2.0
    angle = (strip.pan + 1.0) * jnp.pi / 4.0
    left, right = 2.0**0.5 * jnp.cos(angle), 2.0**0.5 * jnp.sin(angle)  # as loud in the middle as before
    return jnp.stack([left * (mid_S + side_S), right * (mid_S - side_S)]), (slow_S[-1], quick_S[-1])


def equaliser(strip: Strip, rate_hz: float, n_bins: int):
    """The answer (F,) of a strip's filters together."""
    return cascade(bands(strip), rate_hz, n_bins)


def bands(strip: Strip) -> list[tuple[Prototype, Any]]:
    """A strip's filters, with their frequencies."""
    return [
        high_pass_or_none(strip.low_cut_hz),
        (low_shelf(strip.low_db), strip.low_hz),
        (peak(strip.low_mid_db, strip.low_mid_q), strip.low_mid_hz),
        (peak(strip.high_mid_db, strip.high_mid_q), strip.high_mid_hz),
        (high_shelf(strip.high_db), strip.high_hz),
    ]


def of_ten(p_10) -> tuple[Strip, Master]:
    """The console set as the earlier system's ten numbers, 0 to 1 each, of one stereo sound; strips (1,).

    Input gain × 0.1 to 1.6; compression above −6 dB to 1 − p of what is over; high, mid and low bands of
    ± 6 dB at 8 kHz, 980 Hz and 100 Hz; presence of up to 3.5 dB at 12 kHz; room and one echo of 250 ms; sides
    × 0.5 to 1.5; output × 0.3 to 1, below 0.95.
    """
    gain, compression, high, mid, low, presence, room, echo, width, output = p_10
    strip = Strip(
        gain_db=decibel(0.1 + 1.5 * gain),
        low_db=12.0 * (low - 0.5),
        low_mid_hz=980.0,
        low_mid_db=12.0 * (mid - 0.5),
        low_mid_q=2.4,
        high_mid_hz=12_000.0,
        high_mid_db=decibel(1.0 + presence / 2.0),
        high_db=12.0 * (high - 0.5),
        threshold_db=-6.0,
        ratio=1.0 / jnp.maximum(1.0 - compression, 0.05),
        knee_db=0.0,
        attack_s=1e-4,
        release_s=0.05,
        width=0.5 + width,
        room_db=decibel(0.48 * room),
        echo_db=decibel(0.4 * echo),
    )
    master = Master(decibel(0.3 + 0.7 * output), echo_s=0.25, echo_feedback=0.0, ceiling_db=-0.45)
    return Strip(*(jnp.full((1,), value, jnp.float32) for value in strip)), master
