"""Attention over long recordings: a window of frames plus global tokens, one signature, masks as data.

`dense` is the reference every other kind is tested against; `block` is O(n) in plain XLA; `mosaic` is our
kernel for Hopper GPUs, `cudnn` and `splash` are NVIDIA's and the TPU's, for the masks which they know.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from editjax.attention.block import attend_block
from editjax.attention.dense import attend_dense
from editjax.attention.mask import Mask, Tokens, Window

KINDS = ("block", "cudnn", "dense", "mosaic", "splash")


def attend(q_BTHK, k_BSHK, v_BSHK, mask: Mask, tokens: Tokens | None = None, *, kind: str = "block"):
    """Scaled dot-product attention of every query to the frames around its place and to the global tokens.

    q: (batch, queries, heads, head width), one query at least; k, v: (batch, keys, …). Returns what q is; a
    query that sees nothing, padding for example, gives zero, and NaN in the padding reaches neither results
    nor gradients. Raises ValueError for an unknown kind, and for a mask, type or shape which the kind cannot
    do: a kernel is never replaced silently.
    """
    tokens = _no_tokens(k_BSHK) if tokens is None else tokens
    arrays = (q_BTHK, k_BSHK, v_BSHK), mask[1:], tokens
    qkv, who, tokens = jax.tree.map(jnp.asarray, arrays)
    match kind:
        case "block":
            body: Callable[..., Any] = attend_block
        case "dense":
            body = attend_dense
        case "cudnn":
            from editjax.attention.cudnn import attend_cudnn as body
        case "mosaic":
            from editjax.attention.mosaic import attend_mosaic as body
        case "splash":
            from editjax.attention.splash import attend_splash as body
        case _:
            raise ValueError(f"attention kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    return body(*qkv, Mask(mask.window, *who), tokens)


def _no_tokens(k_BSHK) -> Tokens:
    nothing_B0HK = k_BSHK[:, :0]
    return Tokens(nothing_B0HK, nothing_B0HK, jnp.zeros(nothing_B0HK.shape[:2], bool))


__all__ = ["KINDS", "Mask", "Tokens", "Window", "attend"]
