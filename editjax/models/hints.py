"""What the dense heads tell the pointers: where kept stretches start, and in which order they are played.

A dense head learns which frames to keep long before a decoder learns when to jump: hints are the short way
from one to the other. No gradient flows back through them but that of the places to `Announce`, so that the
structure head stays an honest estimate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from editjax.models.layers import frame_mask
from editjax.models.spans import over_spans
from editjax.sliding import over_window

HINT_LIMIT = 8.0
HINT_NEVER = -30.0
START_FLOOR = 1e-3
AS_RECORDED_BIAS = 3.0
PLACE_BARS = 8
"""A step from place to place: the loss of the order is about one where the recording is a step off."""
COUNTED_FRAMES, ANNOUNCED_FRAMES = 52, 258
"""An announcement takes 1.2 s at most, and speaks of what begins within 6 s."""
BEEP_FRAMES = 4.0
QUIET_KEEP = 0.1
"""Keep probabilities below this start nothing: the noise of many cut frames would add up."""
LOOP, LOOPED_SHARE = 2, 0.1
"""Frames less likely to be looped than this are played once."""
DIP_FRAMES, STRETCH_FRAMES = 13, 129
"""A dip of 0.3 s ends no stretch, and what lasts less than 3 s is none: flickers would count as starts."""
SURE_START, SURE_KEPT = 0.5, 0.8
"""A stretch is sure where so many are expected to start in a bar, and its frames are kept as probably."""


class Hints(NamedTuple):
    """The dense heads' word on every place.

    `kept_BT`: the log-odds that a frame is kept, and one entry more for the follower of the last. The log of
    how many kept stretches are expected to start in each frame, beat and bar; how many up to each frame
    (`starts_BT`), in each bar, and before each bar in the order of the recording and of the edit. `place_BV`:
    where in the edit a bar belongs, in bars; only the order matters. `looped_BT`: frames that may be played
    more than once. `sure_start_BV`: where in a bar a stretch starts that is surely kept, −1 where none does.
    """

    kept_BT: jax.Array
    frame_start_BT: jax.Array
    beat_start_BU: jax.Array
    bar_start_BV: jax.Array
    starts_BT: jax.Array
    starts_BV: jax.Array
    recorded_before_BV: jax.Array
    played_before_BV: jax.Array
    place_BV: jax.Array
    looped_BT: jax.Array
    sure_start_BV: jax.Array


def hints_of(structure_BTS, announced_BT, n_frames_B, frames_per_beat: int, beats_per_bar: int) -> Hints:
    """Starts of kept stretches, wherever the probability to keep rises, from frames to beats to bars."""
    structure_BTS = jax.lax.stop_gradient(structure_BTS)
    mask_BT = frame_mask(n_frames_B, structure_BTS.shape[1])
    odds_BT = jax.nn.logsumexp(structure_BTS[..., 1:], axis=-1) - structure_BTS[..., 0]
    p_BT = jnp.where(mask_BT, jax.nn.sigmoid(odds_BT), 0.0)
    keep_BT = jax.nn.relu(p_BT - QUIET_KEEP) / (1 - QUIET_KEEP)
    odds_BT = jnp.where(mask_BT, jnp.clip(odds_BT, -HINT_LIMIT, HINT_LIMIT), -HINT_LIMIT)
    steady_BT = _steady(keep_BT)
    rise_BT = jax.nn.relu(steady_BT - jnp.pad(steady_BT, ((0, 0), (1, 0)))[:, :-1])
    frames_per_bar = frames_per_beat * beats_per_bar
    rise_BU, rise_BV = (_sums(rise_BT, size) for size in (frames_per_beat, frames_per_bar))
    start_BV = _likeliest(rise_BT, frames_per_bar)
    kept_BV = jnp.take_along_axis(_kept_onwards(p_BT, steady_BT), start_BV, axis=1)
    place_BV = _places(announced_BT, jnp.where(mask_BT, rise_BT + START_FLOOR, 0.0), frames_per_bar)
    return Hints(
        jnp.pad(odds_BT, ((0, 0), (0, 1)), constant_values=-HINT_LIMIT),
        jnp.where(mask_BT, jnp.log(rise_BT + START_FLOOR), HINT_NEVER),
        jnp.log(rise_BU + START_FLOOR),
        jnp.log(rise_BV + START_FLOOR),
        jnp.cumsum(rise_BT, axis=1),
        rise_BV,
        jnp.cumsum(rise_BV, axis=1) - rise_BV,
        _before_in_order(rise_BV, place_BV),
        place_BV,
        mask_BT & (jax.nn.softmax(structure_BTS, -1)[..., LOOP] > LOOPED_SHARE),
        jnp.where((rise_BV > SURE_START) & (kept_BV > SURE_KEPT), start_BV, -1),
    )


def _steady(keep_BT):
    """Keep probabilities without short dips and short stretches; edges that stay do not move.

    Grey-scale closing, then opening (Serra 1982); nothing is kept outside the recording.
    """
    padded_BT = jnp.pad(keep_BT, ((0, 0), (STRETCH_FRAMES, STRETCH_FRAMES)))
    closed_BT = _least_around(_most_around(padded_BT, DIP_FRAMES), DIP_FRAMES)
    opened_BT = _most_around(_least_around(closed_BT, STRETCH_FRAMES), STRETCH_FRAMES)
    return opened_BT[:, STRETCH_FRAMES:-STRETCH_FRAMES]


def _kept_onwards(p_BT, steady_BT):
    """From each frame to the end of its stretch the mean probability of being kept; zero outside of any."""
    frame_T = jnp.arange(p_BT.shape[1])[None]
    stop_BT = jnp.where(steady_BT > 0.5, p_BT.shape[1], frame_T)
    stop_BT = jax.lax.cummin(stop_BT, axis=1, reverse=True)
    before_BT = jnp.pad(jnp.cumsum(p_BT, axis=1), ((0, 0), (1, 0)))
    sum_BT = jnp.take_along_axis(before_BT, stop_BT, axis=1) - before_BT[:, :-1]
    return sum_BT / jnp.maximum(stop_BT - frame_T, 1).astype(sum_BT.dtype)


def _most_around(x_BT, size: int):
    return over_window(jnp.maximum, x_BT, (size - 1) // 2, size // 2, -jnp.inf)


def _least_around(x_BT, size: int):
    return over_window(jnp.minimum, x_BT, (size - 1) // 2, size // 2, jnp.inf)


def _places(announced_BT, weight_BT, frames_per_bar: int):
    """Places of bars in the edit, (B, V): those in the recording, unless they are announced by a number.

    A number is counted: what is heard of announcements within a second, the most of it in the last few.
    """
    count_BT = over_window(jnp.add, announced_BT, COUNTED_FRAMES - 1, 0, 0.0) / BEEP_FRAMES
    number_BT = over_window(jnp.maximum, count_BT, ANNOUNCED_FRAMES - 1, 0, -jnp.inf)
    recorded_BT = jnp.arange(number_BT.shape[1], dtype=jnp.float32)[None] / (PLACE_BARS * frames_per_bar)
    place_BT = recorded_BT * jax.nn.sigmoid(AS_RECORDED_BIAS - number_BT) + number_BT
    total_BV = jnp.maximum(_sums(weight_BT, frames_per_bar), START_FLOOR)
    return _sums(place_BT * weight_BT, frames_per_bar) / total_BV


def _before_in_order(count_BV, place_BV):
    """Sum of the counts of all bars whose place is earlier, (B, V)."""
    order_BV = jnp.argsort(place_BV, axis=1)
    sorted_BV = jnp.take_along_axis(count_BV, order_BV, axis=1)
    before_BV = jnp.cumsum(sorted_BV, axis=1) - sorted_BV
    return jnp.take_along_axis(before_BV, jnp.argsort(order_BV, axis=1), axis=1)


def _sums(x_BT, size: int):
    return over_spans(lambda x_BVS: x_BVS.sum(-1), size, x_BT)


def _likeliest(x_BT, size: int):
    """Of each span the frame with the largest number, counted from the first of all."""
    in_span_BV = over_spans(lambda x_BVS: jnp.argmax(x_BVS, -1), size, x_BT)
    return jnp.arange(in_span_BV.shape[1])[None] * size + in_span_BV
