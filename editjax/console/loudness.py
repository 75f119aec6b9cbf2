"""How loud sound is (ITU-R BS.1770-5), how high it rises between its samples, and the limiter for that."""

import jax
import jax.numpy as jnp

from editjax.console.dynamics import decibel, gain_of, held, left_after
from editjax.console.filters import Prototype, filtered, high_pass, response
from editjax.sliding import over_window

SHELF_HZ, SHELF_Q, SHELF_DB, SHELF_BEND = 1681.97445, 0.707175237, 3.99984385, 0.499666774
LOW_HZ, LOW_Q, LOW_GAIN = 38.1354709, 0.500327037, 1.00499487
"""The standard's coefficients at 48 kHz as prototypes; its second filter is not normalised there."""
OFFSET_DB = -0.691
ABSOLUTE_GATE_DB, RELATIVE_GATE_DB = -70.0, -10.0
HOP_S, HOPS = 0.1, 4
"""Blocks of 400 ms, one every 100 ms."""
LEAST_POWER = 1e-12
OVERSAMPLING = 4
LOOKAHEAD_S, RELEASE_S = 0.0015, 0.1


def loudness(x_CS, rate_hz: float):
    """Integrated loudness in LUFS of sound (C, S) in mono or stereo; −inf of less than 400 ms.

    Of silence it is that of `LEAST_POWER`. Gates have no gradients, what they let through has.
    """
    power_J = _block_powers(x_CS, rate_hz)
    if not len(power_J):
        return jnp.array(-jnp.inf)
    loud_J = _lufs(power_J) > ABSOLUTE_GATE_DB
    relative_db = _lufs(_mean(power_J, loud_J)) + RELATIVE_GATE_DB
    return _lufs(_mean(power_J, loud_J & (_lufs(power_J) > relative_db)))


def true_peak(x_CS):
    """The largest amplitude of sound (C, S), between its samples too: four times oversampled."""
    return _between(x_CS).max()


def limited(x_CS, ceiling_db, rate_hz: float):
    """Sound (C, S) whose true peak is `ceiling_db` at most, the channels together.

    The gain goes down as the moving mean, over `LOOKAHEAD_S`, of the least gain that is needed so far ahead:
    at a peak none of these is more than the peak needs. It comes back with `RELEASE_S`. Between samples a
    moving gain may raise a peak by a hair; that is scaled away in the end.
    """
    over_S = jnp.maximum(decibel(_between(x_CS).max(0)) - ceiling_db, 0.0)
    held_S, ahead = held(over_S, left_after(RELEASE_S, rate_hz), 0.0), round(LOOKAHEAD_S * rate_hz)
    most_1S = over_window(jnp.maximum, jnp.pad(held_S, (ahead, 0))[None], 0, ahead, 0.0)
    mean_S = over_window(jnp.add, most_1S, ahead, 0, 0.0)[0, ahead:] / (ahead + 1)
    y_CS = x_CS * gain_of(-mean_S)[None]
    return y_CS * jnp.minimum(1.0, gain_of(ceiling_db) / jnp.maximum(true_peak(y_CS), LEAST_POWER))


def _between(x_CS):
    """The largest amplitude from each sample to the next, (C, S)."""
    n_samples = x_CS.shape[1]
    length = 2 * n_samples + n_samples % 2
    x_CF = jnp.fft.rfft(x_CS, length)

    def at(part: int):
        turn_F = jnp.linspace(0.0, jnp.pi * part / OVERSAMPLING, length // 2 + 1)
        return jnp.fft.irfft(x_CF * jax.lax.complex(jnp.cos(turn_F), jnp.sin(turn_F))[None], length)

    return jnp.abs(jnp.stack([x_CS, *(at(part)[:, :n_samples] for part in range(1, OVERSAMPLING))])).max(0)


def _block_powers(x_CS, rate_hz: float):
    """Power (J,) of blocks after the standard's weighting, the channels' sum."""
    gain, bend = gain_of(SHELF_DB), gain_of(SHELF_DB * SHELF_BEND)
    shelf = Prototype(gain, bend / SHELF_Q, 1.0, 1.0, 1.0 / SHELF_Q, 1.0)

    def weighting(n_bins: int):
        low_F = response(high_pass(LOW_Q), LOW_HZ, rate_hz, n_bins)
        return LOW_GAIN * low_F * response(shelf, SHELF_HZ, rate_hz, n_bins)

    hop = round(HOP_S * rate_hz)
    n_hops = x_CS.shape[1] // hop
    weighted_CS = filtered(x_CS, weighting, rate_hz)[:, : n_hops * hop]
    hops_J = (weighted_CS.reshape(-1, n_hops, hop) ** 2).mean(2).sum(0)
    n_blocks = max(n_hops - HOPS + 1, 0)
    return jnp.stack([hops_J[k : k + n_blocks] for k in range(HOPS)]).mean(0)


def _mean(power_J, counted_J):
    counted_J = counted_J.astype(power_J.dtype)
    return (power_J * counted_J).sum() / jnp.maximum(counted_J.sum(), 1.0)


def _lufs(power):
    return OFFSET_DB + 10.0 * jnp.log10(jnp.maximum(power, LEAST_POWER))
