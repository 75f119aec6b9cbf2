"""Windowed attention in O(n) time and memory, in plain XLA: runs on every device.

Queries are taken in blocks; a block needs only the keys of its own span widened by the window, one contiguous
slice. `lax.map` under `jax.checkpoint` keeps one block's logits alive at a time, forward and backward.
"""

import jax
import jax.numpy as jnp

from editjax.attention.mask import visible, zero_padding
from editjax.attention.softmax import merged_attention, scores

QUERY_BLOCK = 128


def attend_block(q_BTHK, k_BTHK, v_BTHK, window, frames_B, global_k_BGHK, global_v_BGHK, global_valid_BG):
    """See `editjax.attention.attend`."""
    n_frames = q_BTHK.shape[1]
    block = min(QUERY_BLOCK, n_frames)
    n_blocks = -(-n_frames // block)
    tail = n_blocks * block - n_frames
    span = block + window.left + window.right
    around = ((0, 0), (window.left, window.right + tail), (0, 0), (0, 0))
    k_padded = jnp.pad(zero_padding(k_BTHK, frames_B), around)
    v_padded = jnp.pad(zero_padding(v_BTHK, frames_B), around)
    q_padded = jnp.pad(q_BTHK, ((0, 0), (0, tail), (0, 0), (0, 0)))

    @jax.checkpoint
    def one_block(index):
        first = index * block
        q_BQHK = jax.lax.dynamic_slice_in_dim(q_padded, first, block, axis=1)
        k_BSHK = jax.lax.dynamic_slice_in_dim(k_padded, first, span, axis=1)
        v_BSHK = jax.lax.dynamic_slice_in_dim(v_padded, first, span, axis=1)
        query_Q, key_S = first + jnp.arange(block), first - window.left + jnp.arange(span)
        groups = [(scores(q_BQHK, k_BSHK), visible(query_Q, key_S, window, frames_B)[:, None], v_BSHK)]
        if global_k_BGHK is not None:
            groups.append((scores(q_BQHK, global_k_BGHK), global_valid_BG[:, None, None, :], global_v_BGHK))
        return merged_attention(groups)

    out = jax.lax.map(one_block, jnp.arange(n_blocks))
    return jnp.moveaxis(out, 0, 1).reshape(q_padded.shape)[:, :n_frames]
