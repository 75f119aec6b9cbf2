"""Compression, differentiable, without a loop over samples.

The release of a detector is the recursion r ← max(c, a r + b c): the larger of two affine maps of what was
before. Such maps have the same form when one follows the other, so a parallel scan (Blelloch 1990) computes
all of them, exactly; so it does with the one-pole filter of the attack, which is affine alone.
"""

import jax
import jax.numpy as jnp

QUIETEST = 1e-6
"""−120 dB of full scale: silence is not quieter."""
SHARPEST_DB = 1e-3


def decibel(amplitude):
    """20 log₁₀ of amplitudes, no less than that of `QUIETEST`."""
    return 20.0 * jnp.log10(jnp.maximum(amplitude, QUIETEST))


def gain_of(level_db):
    """The amplitude of a level."""
    return 10.0 ** (level_db / 20.0)


def reduction(level_db, threshold_db, ratio, knee_db):
    """By how many dB levels are reduced, ≥ 0 (Giannoulis, Massberg and Reiss 2012, equation 4).

    Nothing below the knee, which lies around the threshold; above it what is over is divided by `ratio` ≥ 1.
    """
    over, half = level_db - threshold_db, jnp.maximum(knee_db, SHARPEST_DB) / 2.0
    bent = jnp.clip(over + half, 0.0, 2.0 * half) ** 2 / (4.0 * half) + jnp.maximum(over - half, 0.0)
    return (1.0 - 1.0 / ratio) * bent


def smooth(reduction_S, attack, release):
    """Reductions (S,) after a detector with attack and release, at rest before the first.

    The smooth decoupled peak detector (the same, equation 17); `attack` and `release` are how much is left a
    sample later: see `left_after`.
    """
    slow_S = held(reduction_S, release, 1.0 - release)

    def then(first, second):
        return second[0] * first[0], second[0] * first[1] + second[1]

    left_S = jnp.full_like(slow_S, attack)
    return jax.lax.associative_scan(then, (left_S, (1.0 - left_S) * slow_S))[1]


def held(x_S, left, new):
    """r ← max(x, left · r + new · x), from 0 on: up at once, down slowly."""

    def then(first, second):
        floor, slope, offset = second
        return jnp.maximum(floor, slope * first[0] + offset), slope * first[1], slope * first[2] + offset

    maps = x_S, jnp.full_like(x_S, left), new * x_S
    floor_S, _, offset_S = jax.lax.associative_scan(then, maps)
    return jnp.maximum(floor_S, offset_S)


def left_after(time_s, rate_hz: float):
    """What is left a sample later of something that falls to 1/e in `time_s`."""
    return jnp.exp(-1.0 / (time_s * rate_hz))
