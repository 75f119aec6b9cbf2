"""Attention over long recordings: a window of frames plus global tokens, one signature, masks as data.

`dense` is the reference every other kind is tested against; `block` is O(n) in plain XLA; `mosaic` is our
kernel for Hopper GPUs, `cudnn` and `splash` are NVIDIA's and the TPU's, for the masks which they know.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from editjax.attention.across import attend_across, splits
from editjax.attention.block import attend_block
from editjax.attention.dense import attend_dense
from editjax.attention.mask import Mask, Tokens, Window

KINDS = ("block", "cudnn", "dense", "mosaic", "splash")
FORWARD, BACKWARD = "windowed_attention", "windowed_attention_gradient"
"""What results and their gradients are named in a jaxpr, each with `:` and how many keys a query sees."""


def attend(q_BTHK, k_BSHK, v_BSHK, mask: Mask, tokens: Tokens | None = None, *, kind: str = "block"):
    """Scaled dot-product attention of every query to the frames around its place and to the global tokens.

    q: (batch, queries, heads, head width), one query at least; k, v: (batch, keys, …). Returns what q is; a
    query that sees nothing, padding for example, gives zero, and NaN in the padding reaches neither results
    nor gradients. Raises ValueError for an unknown kind, and for a mask, type or shape which the kind cannot
    do: a kernel is never replaced silently. Where a mesh splits heads or time, so is this.
    """
    tokens = _no_tokens(k_BSHK) if tokens is None else tokens
    arrays = (q_BTHK, k_BSHK, v_BSHK), mask[1:], tokens
    (q, k, v), who, tokens = jax.tree.map(jnp.asarray, arrays)
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
    mask, mesh = Mask(mask.window, *who), jax.sharding.get_abstract_mesh()
    if splits(mesh):
        body = partial(attend_across, body, mesh)
    sees = min(sum(mask.window) + 1, k.shape[1]) + tokens.k_BGHK.shape[1]
    with jax.named_scope(FORWARD):
        out_BTHK = body(q, k, v, mask, tokens)
    return _named(out_BTHK, sees)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _named(out_BTHK, sees: int):
    """The same: names are for those who read the program, such as `flops`, and compile to nothing."""
    return checkpoint_name(out_BTHK, f"{FORWARD}:{sees}")


_named.defvjp(
    lambda out_BTHK, sees: (_named(out_BTHK, sees), None),
    lambda sees, _, d_out_BTHK: (checkpoint_name(d_out_BTHK, f"{BACKWARD}:{sees}"),),
)


def _no_tokens(k_BSHK) -> Tokens:
    nothing_B0HK = k_BSHK[:, :0]
    return Tokens(nothing_B0HK, nothing_B0HK, jnp.zeros(nothing_B0HK.shape[:2], bool))


__all__ = ["BACKWARD", "FORWARD", "KINDS", "Mask", "Tokens", "Window", "attend"]
