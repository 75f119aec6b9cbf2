"""How loud sound is (ITU-R BS.1770-5, EBU Tech 3342), how high it rises between its samples, and the limiter
for that."""

from functools import cache, reduce

import jax.numpy as jnp
import numpy as np

from editjax.console.dynamics import decibel, gain_of, held, left_after
from editjax.console.filters import Prototype, cascade, filtered, high_pass
from editjax.sliding import over_window

SHELF_HZ, SHELF_Q, SHELF_DB, SHELF_BEND = 1681.97445, 0.707175237, 3.99984385, 0.499666774
LOW_HZ, LOW_Q, LOW_GAIN = 38.1354709, 0.500327037, 1.00499487
"""The standard's coefficients at 48 kHz as prototypes; its second filter is not normalised there."""
OFFSET_DB = -0.691
ABSOLUTE_GATE_DB, RELATIVE_GATE_DB = -70.0, -10.0
HOP_S, HOPS, SHORT_TERM_HOPS = 0.1, 4, 30
"""Blocks of 400 ms, and of 3 s, one every 100 ms."""
RANGE_GATE_DB, RANGE = -20.0, (0.10, 0.95)
LEAST_POWER = 1e-12
OVERSAMPLING, TAPS, KAISER = 4, 64, 8.0
"""Of the filter for what lies between samples: flat to 1e-4 up to 0.45 of the rate."""
LOOKAHEAD_S, RELEASE_S = 0.0015, 0.1
KNOT, KNOTS = 64, 128
"""The limiter's second gain has so many samples from knot to knot; each knot is a mean of so many."""


def loudness(x_CS, rate_hz: float):
    """Integrated loudness in LUFS of sound (C, S) in mono or stereo; −inf of less than 400 ms.

    Of silence it is that of `LEAST_POWER`. Gates have no gradients, what they let through has.
    """
    return integrated(hop_powers(weighted(x_CS, rate_hz), rate_hz))


def loudness_range(x_CS, rate_hz: float):
    """Loudness range in LU (EBU Tech 3342) of sound (C, S); 0 of less than three seconds."""
    return spread(hop_powers(weighted(x_CS, rate_hz), rate_hz))


def momentary(x_CS, rate_hz: float):
    """LUFS (J,) of 400 ms each, one every 100 ms."""
    return lufs(of_blocks(hop_powers(weighted(x_CS, rate_hz), rate_hz), HOPS))


def short_term(x_CS, rate_hz: float):
    """LUFS (J,) of three seconds each, one every 100 ms."""
    return lufs(of_blocks(hop_powers(weighted(x_CS, rate_hz), rate_hz), SHORT_TERM_HOPS))


def weighting() -> list[tuple[Prototype, float]]:
    """The standard's two filters, without `LOW_GAIN`."""
    gain, bend = 10.0 ** (SHELF_DB / 20.0), 10.0 ** (SHELF_DB * SHELF_BEND / 20.0)
    shelf = Prototype(gain, bend / SHELF_Q, 1.0, 1.0, 1.0 / SHELF_Q, 1.0)
    return [(high_pass(LOW_Q), LOW_HZ), (shelf, SHELF_HZ)]


def weighted(x_CS, rate_hz: float):
    """Sound (C, S) as the standard hears it."""
    return filtered(x_CS, lambda n_bins: LOW_GAIN * cascade(weighting(), rate_hz, n_bins), rate_hz)


def hop_powers(weighted_CS, rate_hz: float):
    """Power (J,) of every 100 ms, the channels' sum; what is left in the end does not count."""
    hop = round(HOP_S * rate_hz)
    n_hops = weighted_CS.shape[1] // hop
    return (weighted_CS[:, : n_hops * hop].reshape(-1, n_hops, hop) ** 2).mean(2).sum(0)


def of_blocks(hops_J, width: int):
    """Mean power of `width` hops from each on, fewer by `width` − 1."""
    n_blocks = max(len(hops_J) - width + 1, 0)
    return jnp.stack([hops_J[k : k + n_blocks] for k in range(width)]).mean(0)


def integrated(hops_J):
    """`loudness` by what `hop_powers` gives."""
    power_J = of_blocks(hops_J, HOPS)
    if not len(power_J):
        return jnp.array(-jnp.inf)
    return lufs(_mean(power_J, _heard(power_J, RELATIVE_GATE_DB)))


def spread(hops_J):
    """`loudness_range` by the same: from the 10th percentile to the 95th of what is heard."""
    power_J = of_blocks(hops_J, SHORT_TERM_HOPS)
    if not len(power_J):
        return jnp.array(0.0)
    heard_J = _heard(power_J, RANGE_GATE_DB)
    sorted_J = jnp.sort(jnp.where(heard_J, lufs(power_J), jnp.inf))
    last = jnp.maximum(heard_J.sum() - 1, 0).astype(jnp.float32)
    low, high = (sorted_J[jnp.round(last * part).astype(jnp.int32)] for part in RANGE)
    return jnp.where(heard_J.any(), high - low, 0.0)


def lufs(power):
    return OFFSET_DB + 10.0 * jnp.log10(jnp.maximum(power, LEAST_POWER))


def true_peak(x_CS):
    """The largest amplitude of sound (C, S), between its samples too: four times oversampled.

    Before the first sample and behind the last, where it is silent, the filter still sounds: that counts.
    """
    return between(jnp.pad(x_CS, ((0, 0), (TAPS // 2, TAPS // 2)))).max()


def limited(x_CS, ceiling_db, rate_hz: float):
    """Sound (C, S) whose true peak is `ceiling_db` at most, the channels together; `limited_on` says how."""
    return limited_on(jnp.pad(x_CS, ((0, 0), (KNOT, KNOT))), ceiling_db, rate_hz)[0][:, KNOT:-KNOT]


def limited_on(x_CS, ceiling_db, rate_hz: float, before=0.0):
    """The limiter within a longer sound, and the dB (S,) it holds, which are `before` at sample `KNOT` − 1.

    A first gain goes down as the moving mean, over `LOOKAHEAD_S`, of the least gain that is needed so far
    ahead: at a peak none of these is more than the peak needs. It comes back with `RELEASE_S`. Between
    samples a gain that moves may raise a peak by a hair. A second one, of the same form, takes that away. It
    moves by 1 / (KNOT · KNOTS) a sample at most. Of samples that are below the ceiling each, it can raise a
    peak by `hair()` of the ceiling no more, and so much lower both gains aim. What stays below that is not
    changed.
    """
    aim_db = ceiling_db + 20.0 * np.log10(1.0 - hair())
    over_S = jnp.maximum(decibel(_highest(between(x_CS))) - aim_db, 0.0)[KNOT:]
    held_S = jnp.pad(held(over_S, left_after(RELEASE_S, rate_hz), 0.0, before), (KNOT, 0))
    y_CS = _times(x_CS, gain_of(-_led(jnp.maximum, held_S, round(LOOKAHEAD_S * rate_hz), 0.0)))
    return _times(y_CS, _second_gain(_highest(between(y_CS)), gain_of(aim_db))), held_S


def _highest(x_CS):
    """`max(0)` and what follows are written out: where so few are summed, backwards, XLA is slow."""
    return reduce(jnp.maximum, list(x_CS))


def _times(x_CS, gain_S):
    return jnp.stack([x_S * gain_S for x_S in x_CS])


def _second_gain(peak_S, aim):
    """A gain (S,), of straight lines between knots, that lowers all of `peak_S` to `aim`."""
    n_samples, n_knots = len(peak_S), -(-len(peak_S) // KNOT)
    peak_JN = jnp.pad(peak_S, (0, n_knots * KNOT - n_samples)).reshape(n_knots, KNOT)
    needed_J = jnp.pad(aim / jnp.maximum(peak_JN.max(1), aim), 1, constant_values=1.0)
    knot_J = _led(jnp.minimum, jnp.minimum(needed_J[:-1], needed_J[1:]), KNOTS - 1, 1.0)
    way_N = jnp.arange(KNOT, dtype=jnp.float32) / KNOT
    gain_JN = knot_J[:-1, None] + (knot_J[1:] - knot_J[:-1])[:, None] * way_N[None]
    return gain_JN.reshape(-1)[:n_samples]


def _led(most, x_S, ahead: int, outside: float):
    """The mean of the last `ahead` + 1 of the `most` (maximum or minimum) of as many from each on."""
    x_1S = jnp.pad(x_S, (ahead, 0), constant_values=outside)[None]
    most_1S = over_window(most, x_1S, 0, ahead, outside)
    return over_window(jnp.add, most_1S, ahead, 0, 0.0)[0, ahead:] / (ahead + 1)


def between(x_CS):
    """The largest amplitude from each sample to the next, (C, S), silence being around: as a product with
    every `TAPS` samples and as many that follow, which takes a fifth of the time of Fourier transforms."""
    channels, n_samples = x_CS.shape
    n_blocks = -(-n_samples // TAPS) + 1
    x_CS = jnp.pad(x_CS, ((0, 0), (TAPS // 2 - 1, n_blocks * TAPS - n_samples - TAPS // 2 + 1)))
    x_CJT = x_CS.reshape(channels, n_blocks, TAPS)
    pairs_CJT = jnp.concatenate([x_CJT[:, :-1], x_CJT[:, 1:]], 2)
    parts_CJPT = jnp.matmul(pairs_CJT, _shifted(), precision="highest").reshape(
        channels, -1, OVERSAMPLING, TAPS
    )
    parts = jnp.abs(parts_CJPT)
    return reduce(jnp.maximum, [parts[:, :, p] for p in range(OVERSAMPLING)]).reshape(channels, -1)[
        :, :n_samples
    ]


@cache
def hair() -> float:
    """By which part of the ceiling the second gain can raise what lies between samples that are not above."""
    distance_T = np.abs(np.arange(TAPS) - (TAPS // 2 - 1))
    return float((np.abs(_filters()) * distance_T).sum(1).max() / (KNOT * KNOTS))


def _filters() -> np.ndarray:
    """The value so many quarters behind sample `TAPS` / 2 − 1 of `TAPS`: (OVERSAMPLING, TAPS), the first that
    sample itself."""
    late_PT = np.arange(OVERSAMPLING)[:, None] / OVERSAMPLING + TAPS // 2 - 1 - np.arange(TAPS)
    taps_PT = np.sinc(late_PT) * np.i0(KAISER * np.sqrt(np.maximum(0, 1 - (late_PT / (TAPS / 2)) ** 2)))
    return taps_PT / taps_PT.sum(1, keepdims=True)


@cache
def _shifted() -> np.ndarray:
    """`_filters` for each of `TAPS` samples, of twice as many: (2 TAPS, OVERSAMPLING · TAPS)."""
    made = np.zeros((2 * TAPS, OVERSAMPLING, TAPS), np.float32)
    for first in range(TAPS):
        made[first : first + TAPS, :, first] = _filters().T
    return made.reshape(2 * TAPS, -1)


def _heard(power_J, gate_db: float):
    """Which blocks pass the absolute gate, and that so far from the mean of what does."""
    loud_J = lufs(power_J) > ABSOLUTE_GATE_DB
    return loud_J & (lufs(power_J) > lufs(_mean(power_J, loud_J)) + gate_db)


def _mean(power_J, counted_J):
    counted_J = counted_J.astype(power_J.dtype)
    return (power_J * counted_J).sum() / jnp.maximum(counted_J.sum(), 1.0)
