"""Sums, maxima and minima over windows that slide."""

import jax.numpy as jnp


def over_window(combine, x_BT, before: int, after: int, outside: float):
    """`combine` of what lies from `before` places before each to `after` behind it, along the second axis;
    beyond the ends all is `outside`.

    By doubling: `combine` is associative and called about log₂ of the window's width times. A `reduce_window`
    over hundreds keeps the compiler of TPUs busy for minutes.
    """
    n_frames, width = x_BT.shape[1], before + 1 + after
    around = ((0, 0), (before, after), *((0, 0) for _ in x_BT.shape[2:]))
    x_BT = jnp.pad(x_BT, around, constant_values=outside)  # of `span` from each on
    found, at, span = None, 0, 1
    while True:
        if width & span:
            part = x_BT[:, at : at + n_frames]
            found, at = part if found is None else combine(found, part), at + span
        if 2 * span > width:
            return found
        x_BT, span = combine(x_BT[:, :-span], x_BT[:, span:]), 2 * span
