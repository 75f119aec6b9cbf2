"""What a query may see: a window of frames around it, plus every valid global token."""

from typing import NamedTuple

import jax.numpy as jnp


class Window(NamedTuple):
    """Frames visible from frame t: t − left … t + right, both included (static)."""

    left: int
    right: int


def visible(query_T, key_S, window: Window, frames_B):
    """Mask of (batch, query, key): inside the window and inside the valid frames.

    `query_T` and `key_S` are positions (int32); keys at negative positions or at `frames_B` and beyond are
    padding and never visible.
    """
    offset_TS = key_S[None, :] - query_T[:, None]
    inside_TS = (offset_TS >= -window.left) & (offset_TS <= window.right)
    valid_BS = (key_S[None, :] >= 0) & (key_S[None, :] < frames_B[:, None])
    return inside_TS[None, :, :] & valid_BS[:, None, :]


def zero_padding(x_BHTK, frames_B):
    """Zero the frames at `frames_B` and beyond, so that NaN in the padding cannot leak through 0 · NaN."""
    valid_BT = jnp.arange(x_BHTK.shape[2])[None, :] < frames_B[:, None]
    return jnp.where(valid_BT[:, None, :, None], x_BHTK, jnp.zeros((), x_BHTK.dtype))
