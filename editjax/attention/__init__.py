"""Attention over long recordings: a window of frames plus a fixed number of global tokens, one signature.

`dense` is the reference every other kind is tested against; `block` is O(n) in plain XLA.
"""

import jax.numpy as jnp

from editjax.attention.block import attend_block
from editjax.attention.dense import attend_dense
from editjax.attention.mask import Window

KINDS = ("block", "dense")


def attend(
    q_BTHK,
    k_BTHK,
    v_BTHK,
    *,
    window: Window,
    frames_B,
    global_k_BGHK=None,
    global_v_BGHK=None,
    global_valid_BG=None,
    kind: str = "block",
):
    """Scaled dot-product attention of every frame to its window and to all valid global tokens.

    q, k, v: (batch, frames, heads, head width); `frames_B` int32 counts each example's valid frames, what
    lies beyond is padding and may hold anything. Globals: (batch, tokens, heads, head width) with a boolean
    validity (batch, tokens). Returns (batch, frames, heads, head width); a query that sees no key gives zero.
    Raises ValueError for an unknown kind: a kernel is never replaced silently.
    """
    q, k, v, global_k, global_v = (
        None if a is None else jnp.swapaxes(a, 1, 2)
        for a in (q_BTHK, k_BTHK, v_BTHK, global_k_BGHK, global_v_BGHK)
    )
    args = (q, k, v, window, frames_B, global_k, global_v, global_valid_BG)
    match kind:
        case "block":
            out_BHTK = attend_block(*args)
        case "dense":
            out_BHTK = attend_dense(*args)
        case _:
            raise ValueError(f"attention kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    return jnp.swapaxes(out_BHTK, 1, 2)


__all__ = ["KINDS", "Window", "attend"]
