"""Compression, differentiable, and far from a loop over all samples.

The release of a detector is the recursion r ← max(c, a r + b c): the larger of two affine maps of what was
before. Such maps have the same form when one follows the other; so have those of the one-pole filter of the
attack, which are affine alone. So a recursion over S samples is cut into about √S blocks: the map of each as
a whole, all blocks side by side; from these what was before each block; and then the recursion itself, again
side by side, to the rounding of a loop but for what each block begins with. Its gradient is a recursion too,
backwards and affine. An associative scan over all samples takes a minute to compile with its gradient.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

QUIETEST = 1e-6
"""−120 dB of full scale: silence is not quieter."""
SHARPEST_DB = 1e-3
LOWEST = 1e30
"""Less it than any level is the floor of a map that has none; infinity times 0 would be no number."""


def decibel(amplitude):
    """20 log₁₀ of amplitudes, no less than that of `QUIETEST`."""
    return 20.0 * jnp.log10(jnp.maximum(amplitude, QUIETEST))


def gain_of(level_db):
    """The amplitude of a level."""
    return jnp.exp(level_db * (math.log(10.0) / 20.0))


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
    return detected(reduction_S, attack, release)[1]


def detected(reduction_S, attack, release, before=(0.0, 0.0)):
    """`smooth`, and what it makes of it: after the release alone, (S,), and after both; `before` is their
    last of what was before."""
    slow_S = held(reduction_S, release, 1.0 - release, before[0])
    return slow_S, affine(attack, (1.0 - attack) * slow_S, before[1])


def held(x_S, left, new, before=0.0):
    """r ← max(x, left · r + new · x), from `before` on: up at once, down slowly."""
    return _held(x_S, *(jnp.asarray(value, x_S.dtype) for value in (left, new, before)))


def affine(slope, x_S, before=0.0):
    """r ← slope · r + x, from `before` on; the slope is a number or (S,)."""
    return _affine(*(jnp.asarray(value, x_S.dtype) for value in (slope, x_S, before)))


@jax.custom_vjp
def _held(x_S, left, new, before):
    x_LJ = _in_blocks(x_S)
    zero_J = jnp.zeros_like(x_LJ[0])

    def along(maps, x_J):
        floor_J, offset_J = maps
        return (jnp.maximum(x_J, left * floor_J + new * x_J), left * offset_J + new * x_J), None

    def across(r, one):
        floor, offset = one
        return jnp.maximum(floor, left ** len(x_LJ) * r + offset), r

    def recursion(r_J, x_J):
        r_J = jnp.maximum(x_J, left * r_J + new * x_J)
        return r_J, r_J

    maps, _ = jax.lax.scan(along, (zero_J - LOWEST, zero_J), x_LJ)
    _, first_J = jax.lax.scan(across, before, maps)
    return _in_a_row(jax.lax.scan(recursion, first_J, x_LJ)[1], len(x_S))


def _held_forward(x_S, left, new, before):
    r_S = _held(x_S, left, new, before)
    return r_S, (x_S, left, new, before, r_S)


def _held_backward(kept, d_S):
    x_S, left, new, before, r_S = kept
    last_S = jnp.concatenate([before[None], r_S[:-1]])
    falls_S = (left * last_S + new * x_S > x_S).astype(x_S.dtype)
    d_S = _run(_next(left * falls_S), d_S, jnp.zeros_like(before), reverse=True)
    down_S = d_S * falls_S
    d_x_S = d_S - (1.0 - new) * down_S
    return d_x_S, down_S @ last_S, down_S @ x_S, left * down_S[0]


_held.defvjp(_held_forward, _held_backward)


@jax.custom_vjp
def _affine(slope, x_S, before):
    return _run(slope, x_S, before)


def _run(slope, x_S, before, reverse: bool = False):
    """`affine`, from the last to the first if `reverse`."""
    x_LJ = _in_blocks(x_S)
    slope_LJ = _in_blocks(slope) if slope.ndim else None  # None is no array to go along
    scan = partial(jax.lax.scan, reverse=reverse)
    zero_J = jnp.zeros_like(x_LJ[0])

    def along(maps, one):
        (product_J, offset_J), (slope_J, x_J) = maps, one
        slope_J = slope if slope_J is None else slope_J
        return (slope_J * product_J, slope_J * offset_J + x_J), None

    def across(r, one):
        product, offset = one
        return product * r + offset, r

    def recursion(r_J, one):
        slope_J, x_J = one
        r_J = (slope if slope_J is None else slope_J) * r_J + x_J
        return r_J, r_J

    maps, _ = scan(along, (zero_J + 1.0, zero_J), (slope_LJ, x_LJ))
    _, first_J = scan(across, before, maps)
    return _in_a_row(scan(recursion, first_J, (slope_LJ, x_LJ))[1], len(x_S))


def _affine_forward(slope, x_S, before):
    r_S = _run(slope, x_S, before)
    return r_S, (slope, before, r_S)


def _affine_backward(kept, d_S):
    slope, before, r_S = kept
    d_S = _run(_next(slope) if slope.ndim else slope, d_S, jnp.zeros_like(before), reverse=True)
    last_S = jnp.concatenate([before[None], r_S[:-1]])
    first = slope[0] if slope.ndim else slope
    return d_S * last_S if slope.ndim else d_S @ last_S, d_S, first * d_S[0]


_affine.defvjp(_affine_forward, _affine_backward)


def _next(slope_S):
    """The slope from each r to that which follows: by this its gradient comes back."""
    return jnp.concatenate([slope_S[1:], jnp.zeros_like(slope_S[:1])])


def _in_blocks(x_S):
    """(L, J): J blocks of L, zeros behind the last."""
    length = 2 ** round(math.log2(max(len(x_S), 1)) / 2)
    return jnp.pad(x_S, (0, -len(x_S) % length)).reshape(-1, length).T


def _in_a_row(x_LJ, n_samples: int):
    return x_LJ.T.reshape(-1)[:n_samples]


def left_after(time_s, rate_hz: float):
    """What is left a sample later of something that falls to 1/e in `time_s`."""
    return jnp.exp(-1.0 / (time_s * rate_hz))
