"""Stretches of a sequence at places and rates that gradients reach: cubic, free of aliases.

Frame k of a window that begins at `start` and is compressed by `ratio` stands at `start + k · ratio`. It is
read with the cubic kernel of Keys (1981), as wide as the ratio, which is a low-pass filter where frames are
skipped. The kernel and its slope are continuous, hence so are the gradients to start and ratio; at ratio 1
and whole frames the kernel is 1 there and 0 at the others, and the frames come out as they are.
"""

import math

import jax.numpy as jnp


def keys_cubic(x):
    """The interpolating kernel of Keys (1981), with a = −1/2; 0 from 2 on."""
    x = jnp.abs(x)
    square, cube = x**2, x**3
    near = 1.5 * cube - 2.5 * square + 1.0
    far = -0.5 * cube + 2.5 * square - 4.0 * x + 2.0
    return jnp.where(x <= 1.0, near, jnp.where(x < 2.0, far, 0.0))


def compressed(x_BTD, start_BP, ratio_BP, n_frames: int, most_ratio: float):
    """Windows of `n_frames` frames, (B, P, n_frames, D), P of each sequence.

    Starts and ratios are in frames of x, the ratios from 1 to `most_ratio`. Beyond the ends of x lies its
    first or last frame.
    """
    batch, total, channels = x_BTD.shape
    pairs, reach = start_BP.shape[1], math.ceil(2 * most_ratio)
    step_11W = jnp.arange(n_frames, dtype=jnp.float32)[None, None]
    ratio_BP1 = ratio_BP[..., None]
    place_BPW = start_BP[..., None] + step_11W * ratio_BP1
    below_BPW = jnp.floor(place_BPW).astype(jnp.int32)
    sum_BPWD, weights_BPW = (
        jnp.zeros((batch, pairs, n_frames, channels), x_BTD.dtype),
        jnp.zeros(place_BPW.shape),
    )
    for tap in range(1 - reach, reach + 1):
        at_BPW = below_BPW + tap
        weight_BPW = keys_cubic((place_BPW - at_BPW.astype(jnp.float32)) / ratio_BP1)
        row_BN1 = jnp.clip(at_BPW, 0, total - 1).reshape(batch, -1, 1)
        rows_BPWD = jnp.take_along_axis(x_BTD, row_BN1, axis=1).reshape(sum_BPWD.shape)
        sum_BPWD += weight_BPW[..., None].astype(x_BTD.dtype) * rows_BPWD
        weights_BPW += weight_BPW
    return sum_BPWD / weights_BPW[..., None].astype(x_BTD.dtype)
