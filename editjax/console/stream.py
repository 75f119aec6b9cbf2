"""The console for hours of sound: blocks in, blocks out, in the memory of a few blocks.

What comes out is what `desk.mix` makes of the whole, but for rounding. Filters run as recursions in float64,
which carry their state: exact, whereas of Fourier transforms those of a low bell would have to overlap by
seconds. Detectors carry theirs; the room sounds on into what follows (overlap-add), echoes and the limiter
have a past. The limiter also looks ahead, by which the sound comes later: see `latency`.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal

from editjax.console.desk import Master, Strip, bands, behind_filters, sent
from editjax.console.dynamics import gain_of
from editjax.console.filters import sections
from editjax.console.loudness import (
    HOP_S,
    KNOT,
    KNOTS,
    LOOKAHEAD_S,
    LOW_GAIN,
    TAPS,
    between,
    integrated,
    limited_on,
    spread,
    weighting,
)
from editjax.console.room import echo_history, echoed, rings, sounding_on

BLOCK = 2**16
"""Samples that are rendered at once."""


class _State(NamedTuple):
    """What of the past is still needed: detectors (I,) after release and after attack, what the room sounds
    on, what was sent to the echoes, the sum that the limiter has not done with, and what it holds there."""

    detectors: tuple[jax.Array, jax.Array]
    room_2R: jax.Array
    sent_2H: jax.Array
    sum_2K: jax.Array
    held: jax.Array


def latency(rate_hz: float, block: int = BLOCK) -> int:
    """Samples that must have come in, at most, before the first goes out."""
    return block + _ahead(rate_hz)


def render(
    blocks: Iterable[np.ndarray], strips: Strip, master: Master, rate_hz: float, block: int = BLOCK
) -> Iterator[np.ndarray]:
    """Blocks (I, C, any number) of stems in mono or stereo → blocks (2, any number) of their mix, as long
    together. `strips` holds arrays (I,); `block`, a multiple of `KNOT`, is what is rendered at once.
    """
    assert block % KNOT == 0, f"{block} is no multiple of {KNOT}"
    state, filters, known, made = None, None, 0, -_ahead(rate_hz)
    for x_ICN, n_new in _evenly(blocks, block):
        if filters is None:
            n_stems, channels = x_ICN.shape[:2]
            strips = Strip(*(jnp.broadcast_to(jnp.float32(value), (n_stems,)) for value in strips))
            filters = [_Filter(bands(_strip(strips, i)), rate_hz, channels) for i in range(n_stems)]
            state = _silence(n_stems, rate_hz)
        filtered_ICN = np.stack([one(x_CN) for one, x_CN in zip(filters, x_ICN, strict=True)])
        state, y_2N = _rendered(state, filtered_ICN.astype(np.float32), strips, master, rate_hz)
        known += n_new
        first, last = max(-made, 0), min(known - made, block)
        made += block
        if first < last:
            yield np.asarray(y_2N[:, first:last])
        if n_new < block and made >= known:
            return


class Meter:
    """Loudness, its range and the true peak of blocks (C, any number): what `loudness` has of the whole."""

    def __init__(self, rate_hz: float):
        self._rate_hz, self._hop = rate_hz, round(HOP_S * rate_hz)
        self._weighting: _Filter | None = None
        self._power_S, self._hops = np.zeros(0), [np.zeros(0)]
        self._peak, self._near_CS = 0.0, np.zeros((0, 0), np.float32)

    def add(self, block_CS: np.ndarray) -> None:
        """What follows."""
        if self._weighting is None:
            self._weighting = _Filter(weighting(), self._rate_hz, len(block_CS))
            self._near_CS = np.zeros((len(block_CS), 2 * TAPS), np.float32)
        power_S = ((LOW_GAIN * self._weighting(block_CS)) ** 2).sum(0)
        power_S = np.concatenate([self._power_S, power_S])
        whole = len(power_S) // self._hop * self._hop
        self._hops.append(power_S[:whole].reshape(-1, self._hop).mean(1))
        self._power_S = power_S[whole:]
        self._near_CS = np.concatenate([self._near_CS, block_CS.astype(np.float32)], 1)
        while self._near_CS.shape[1] >= BLOCK + 2 * TAPS:
            self._peak = max(self._peak, float(_highest(self._near_CS[:, : BLOCK + 2 * TAPS])))
            self._near_CS = self._near_CS[:, BLOCK:]

    def loudness(self) -> float:
        """Integrated, in LUFS."""
        return float(integrated(self._powers()))

    def loudness_range(self) -> float:
        """In LU."""
        return float(spread(self._powers()))

    def true_peak(self) -> float:
        """As an amplitude."""
        rest = BLOCK + 2 * TAPS - self._near_CS.shape[1]
        ends_CS = np.pad(self._near_CS, ((0, 0), (0, rest + BLOCK)))  # the filter sounds on
        parts = (ends_CS[:, start : start + BLOCK + 2 * TAPS] for start in (0, BLOCK))
        return max(self._peak, *(float(_highest(part_CS)) for part_CS in parts)) if len(ends_CS) else 0.0

    def _powers(self) -> jax.Array:
        return jnp.asarray(np.concatenate(self._hops), jnp.float32)


class _Filter:
    """Filters as a recursion that goes on where it stopped, of blocks (C, N), in float64."""

    def __init__(self, filters, rate_hz: float, channels: int):
        every_N6 = sections(filters, rate_hz)
        self._sections_N6 = every_N6[(every_N6[:, :3] != every_N6[:, 3:]).any(1)]
        self._state_NC2 = np.zeros((len(self._sections_N6), channels, 2))

    def __call__(self, x_CN: np.ndarray) -> np.ndarray:
        x_CN = x_CN.astype(np.float64)
        if not len(self._sections_N6):
            return x_CN
        y_CN, self._state_NC2 = scipy.signal.sosfilt(self._sections_N6, x_CN, zi=self._state_NC2)
        return y_CN


def _ahead(rate_hz: float) -> int:
    """How far the limiter must look ahead, and back, for what it makes of a sample: whole knots."""
    return (KNOTS + 4 + -(-round(LOOKAHEAD_S * rate_hz) // KNOT) + 1) * KNOT


def _silence(n_stems: int, rate_hz: float) -> _State:
    def zeros(*shape: int):
        return jnp.zeros(shape, jnp.float32)

    history, ahead = echo_history(rate_hz), _ahead(rate_hz)
    return _State(
        detectors=(zeros(n_stems), zeros(n_stems)),
        room_2R=zeros(2, rings(rate_hz)),
        sent_2H=zeros(2, history),
        sum_2K=zeros(2, 2 * ahead),
        held=zeros(),
    )


def _strip(strips: Strip, i: int) -> Strip:
    return Strip(*(float(value_I[i]) for value_I in strips))


def _evenly(blocks: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of `size` samples and how many of these are sound; after the end silence, for ever."""
    rest_ICN = None
    for block_ICN in blocks:
        rest_ICN = block_ICN if rest_ICN is None else np.concatenate([rest_ICN, block_ICN], 2)
        while rest_ICN.shape[2] >= size:
            yield rest_ICN[:, :, :size], size
            rest_ICN = rest_ICN[:, :, size:]
    while rest_ICN is not None:
        n_new = rest_ICN.shape[2]
        yield np.pad(rest_ICN, ((0, 0), (0, 0), (0, size - n_new))), n_new
        rest_ICN = rest_ICN[:, :, n_new:]


@partial(jax.jit, static_argnames="rate_hz")
def _rendered(state: _State, filtered_ICN, strips: Strip, master: Master, rate_hz: float):
    """The next state, and the block of the mix that it is sure of, so much earlier than what came in."""

    def behind(x_CN, strip, before):
        return behind_filters(x_CN, strip, rate_hz, before)

    heard_I2N, detectors = jax.vmap(behind)(filtered_ICN, strips, state.detectors)
    n_samples = heard_I2N.shape[2]
    room_2R = sounding_on(sent(heard_I2N, strips.room_db), master.room_decay_s, rate_hz)
    room_2R = room_2R.at[:, : state.room_2R.shape[1]].add(state.room_2R)
    sent_2H = jnp.concatenate([state.sent_2H, sent(heard_I2N, strips.echo_db)], 1)
    echo_2H = echoed(sent_2H, master.echo_s, master.echo_feedback, rate_hz)
    sum_2N = heard_I2N.sum(0) + room_2R[:, :n_samples] + echo_2H[:, -n_samples:]
    sum_2K = jnp.concatenate([state.sum_2K, gain_of(master.gain_db) * sum_2N], 1)
    y_2K, held_K = limited_on(sum_2K, master.ceiling_db, rate_hz, state.held)
    sure = slice(_ahead(rate_hz), _ahead(rate_hz) + n_samples)
    after = _State(
        detectors=detectors,
        room_2R=room_2R[:, n_samples:],
        sent_2H=sent_2H[:, n_samples:],
        sum_2K=sum_2K[:, n_samples:],
        held=held_K[n_samples + KNOT - 1],
    )
    return after, y_2K[:, sure]


@jax.jit
def _highest(x_CS):
    """The true peak of what has `TAPS` samples before it and behind it."""
    return between(x_CS)[:, TAPS:-TAPS].max()
