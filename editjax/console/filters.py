"""Filters of second order, and what they do to sound: differentiable, and in float32 down to 20 Hz.

A digital filter made by the bilinear transform answers at the frequency ω as its analog prototype does at
s = i tan(ω/2) / tan(ω₀/2). So it is computed here: the coefficients of the difference equation, of which
little is left between large numbers where ω₀ is low, never appear. Prototypes are those of Bristow-Johnson's
*Audio EQ Cookbook*. All filters of a strip are one product of answers and one pair of Fourier transforms.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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


def high_pass_or_none(frequency_hz) -> tuple[Prototype, Any]:
    """`high_pass` and its frequency; where that is 0, what changes nothing, exactly."""
    on = frequency_hz > 0.0
    same = Prototype(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    chosen = (jnp.where(on, a, b) for a, b in zip(high_pass(), same, strict=True))
    return Prototype(*chosen), jnp.where(on, frequency_hz, 1000.0)


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
    return cascade([(prototype, frequency_hz)], rate_hz, n_bins)


def cascade(filters: Sequence[tuple[Prototype, Any]], rate_hz: float, n_bins: int):
    """The answer (F,) complex64 of prototypes at their frequencies, one after the other: see `response`.

    With s = i sine / cosine, all times cosine², so that nothing is infinite at half the rate.
    """
    rows = []
    for prototype, frequency_hz in filters:
        t = jnp.tan(jnp.pi * frequency_hz / rate_hz)
        n2, n1, n0, d2, d1, d0 = prototype
        rows.append([n0 * t * t, n2, n1 * t, d0 * t * t, d2, d1 * t])
    terms_K6 = jnp.stack([jnp.stack([jnp.asarray(term, jnp.float32) for term in row]) for row in rows])
    return jax.lax.complex(*_product(terms_K6, n_bins))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _product(terms_K6, n_bins: int):
    """Of all (a cosine² − b sine² + i c sine cosine) / (d … e … f …) the product: real and imaginary, (F,).

    In real numbers, for XLA divides complex ones slowly on a CPU, and with a gradient of its own: of 30 sums
    over all frequencies XLA makes 30 times the whole, or nearly.
    """
    waves_3F = _waves(n_bins)
    found = None
    for terms_6 in terms_K6:
        one = _times(_terms(terms_6[:3], waves_3F), _inverse(_terms(terms_6[3:], waves_3F)))
        found = one if found is None else _times(found, one)
    return found


def _product_forward(terms_K6, n_bins: int):
    found = _product(terms_K6, n_bins)
    return found, (terms_K6, found)


def _product_backward(n_bins: int, kept, d):
    """By the derivative of the logarithm: of the product divided by each polynomial."""
    terms_K6, found = kept
    waves_3F = _waves(n_bins)
    whole_F, turned_F = jax.lax.optimization_barrier(_times((d[0], -d[1]), found))
    terms_N31 = terms_K6.reshape(-1, 3)[:, :, None]
    real_NF = terms_N31[:, 0] * waves_3F[:1] - terms_N31[:, 1] * waves_3F[1:2]
    imaginary_NF = terms_N31[:, 2] * waves_3F[2:]
    size_NF = real_NF**2 + imaginary_NF**2
    inverse_NF = jnp.where(size_NF > 0.0, 1.0, 0.0) / jnp.where(
        size_NF > 0.0, size_NF, 1.0
    )  # 0 of a high-pass at 0 Hz
    of_real_NF = (whole_F[None] * real_NF + turned_F[None] * imaginary_NF) * inverse_NF
    of_imaginary_NF = (turned_F[None] * real_NF - whole_F[None] * imaginary_NF) * inverse_NF
    a_N, b_N = jnp.einsum("nf,jf->jn", of_real_NF, waves_3F[:2], precision="highest")
    c_N = jnp.einsum("nf,f->n", of_imaginary_NF, waves_3F[2], precision="highest")
    return (
        (jnp.stack([a_N, -b_N, -c_N], 1).reshape(-1, 2, 3) * jnp.array([1.0, -1.0])[None, :, None]).reshape(
            -1, 6
        ),
    )


_product.defvjp(_product_forward, _product_backward)


def _waves(n_bins: int):
    """cosine², sine² and their product at half of each angle, (3, F)."""
    half_F = jnp.linspace(0.0, jnp.pi / 2, n_bins, dtype=jnp.float32)
    sine_F, cosine_F = jnp.sin(half_F), jnp.cos(half_F)
    return jax.lax.optimization_barrier(jnp.stack([cosine_F**2, sine_F**2, sine_F * cosine_F]))


def _terms(terms_3, waves_3F):
    a, b, c = terms_3
    return a * waves_3F[0] - b * waves_3F[1], c * waves_3F[2]


def _times(a, b):
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _inverse(a):
    size = a[0] ** 2 + a[1] ** 2
    return a[0] / size, -a[1] / size


def filtered(x_CS, answer_of: Callable[[int], jax.Array], rate_hz: float):
    """Sound (C, S) through a filter, of which `answer_of` gives the answer (F,) at so many frequencies."""
    n_samples = x_CS.shape[1]
    length = scipy.fft.next_fast_len(n_samples + round(TAIL_S * rate_hz), real=True)
    length += length % 2  # of odd ones half the rate is no bin
    y_CF = jnp.fft.rfft(x_CS, length) * answer_of(length // 2 + 1)[None]
    return jnp.fft.irfft(y_CF, length)[:, :n_samples]


def sections(filters: Sequence[tuple[Prototype, Any]], rate_hz: float) -> np.ndarray:
    """The same filters as second-order sections (N, 6) in float64, for `scipy.signal.sosfilt`."""
    made = []
    for prototype, frequency_hz in filters:
        t = np.tan(np.pi * float(frequency_hz) / rate_hz)
        n2, n1, n0, d2, d1, d0 = (float(value) for value in prototype)
        above = np.array([n0 * t * t + n1 * t + n2, 2.0 * (n0 * t * t - n2), n0 * t * t - n1 * t + n2])
        below = np.array([d0 * t * t + d1 * t + d2, 2.0 * (d0 * t * t - d2), d0 * t * t - d1 * t + d2])
        made.append(np.concatenate([above, below]) / below[0])
    return np.array(made)


def _amplitude(gain_db):
    """The square root of the gain."""
    return 10.0 ** (gain_db / 40.0)
