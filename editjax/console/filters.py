"""Filters of second order, and what they do to sound: differentiable, and in float32 down to 20 Hz.

A digital filter made by the bilinear transform answers at the frequency ω as its analog prototype does at
s = i tan(ω/2) / tan(ω₀/2). So it is computed here: the coefficients of the difference equation, of which
little is left between large numbers where ω₀ is low, never appear. Prototypes are those of Bristow-Johnson's
*Audio EQ Cookbook*. All filters of a strip are one product of answers and one pair of Fourier transforms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import scipy.fft

TAIL_S = 1.0
"""Silence that is appended, in which what rings dies away: else it would be heard at the beginning."""
BUTTERWORTH = 0.5**0.5


class Prototype(NamedTuple):
    """(n₂ s² + n₁ s + n₀) / (d₂ s² + d₁ s + d₀), its frequency being 1; scalars."""

    n2: Any
    n1: Any
    n0: Any
    d2: Any
    d1: Any
    d0: Any


def high_pass(q=BUTTERWORTH) -> Prototype:
    """12 dB an octave below the frequency."""
    return Prototype(1.0, 0.0, 0.0, 1.0, 1.0 / q, 1.0)


def peak(gain_db, q) -> Prototype:
    """A bell: `gain_db` at the frequency, nothing far from it."""
    a = _amplitude(gain_db)
    return Prototype(1.0, a / q, 1.0, 1.0, 1.0 / (a * q), 1.0)


def low_shelf(gain_db, q=BUTTERWORTH) -> Prototype:
    """`gain_db` below the frequency, half of it there, nothing above."""
    a = _amplitude(gain_db)
    slope = jnp.sqrt(a) / q
    return Prototype(a, a * slope, a * a, a, slope, 1.0)


def high_shelf(gain_db, q=BUTTERWORTH) -> Prototype:
    """`gain_db` above the frequency, half of it there, nothing below."""
    a = _amplitude(gain_db)
    slope = jnp.sqrt(a) / q
    return Prototype(a * a, a * slope, a, 1.0, slope, a)


def response(prototype: Prototype, frequency_hz, rate_hz: float, n_bins: int):
    """The answer (F,) complex64 at `n_bins` frequencies from 0 to half the rate, both included.

    `frequency_hz` lies between them.
    """
    half_F = jnp.linspace(0.0, jnp.pi / 2, n_bins, dtype=jnp.float32)
    s_F, one_F = jnp.sin(half_F), jnp.tan(jnp.pi * frequency_hz / rate_hz) * jnp.cos(half_F)

    def polynomial(c2, c1, c0):  # times one², which is 0 at half the rate, where s is infinite
        return jax.lax.complex(c0 * one_F**2 - c2 * s_F**2, c1 * s_F * one_F)

    return polynomial(*prototype[:3]) / polynomial(*prototype[3:])


def filtered(x_CS, answer_of: Callable[[int], jax.Array], rate_hz: float):
    """Sound (C, S) through a filter, of which `answer_of` gives the answer (F,) at so many frequencies."""
    n_samples = x_CS.shape[1]
    length = scipy.fft.next_fast_len(n_samples + round(TAIL_S * rate_hz), real=True)
    length += length % 2  # of odd ones half the rate is no bin
    y_CF = jnp.fft.rfft(x_CS, length) * answer_of(length // 2 + 1)[None]
    return jnp.fft.irfft(y_CF, length)[:, :n_samples]


def _amplitude(gain_db):
    """The square root of the gain."""
    return 10.0 ** (gain_db / 40.0)
