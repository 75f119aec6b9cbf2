"""Attention over long recordings: a window of frames plus a fixed number of global tokens, one signature.

`dense` is the reference every other kind is tested against; `block` is O(n) in plain XLA.
"""

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

    q, k, v: (batch, frames, heads, head width); `frames_B` int32 counts the valid frames of each example: what
    lies beyond is padding and may hold anything. Globals: (batch, tokens, heads, head width) with a boolean
    validity (batch, tokens). Returns (batch, frames, heads, head width); a query that sees no key gives zero.
    Raises ValueError for an unknown kind: a kernel is never replaced silently.
    """
    args = (q_BTHK, k_BTHK, v_BTHK, window, frames_B, global_k_BGHK, global_v_BGHK, global_valid_BG)
    match kind:
        case "block":
            return attend_block(*args)
        case "dense":
            return attend_dense(*args)
    raise ValueError(f"attention kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")


__all__ = ["KINDS", "Window", "attend"]
