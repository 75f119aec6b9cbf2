"""Windowed attention in O(n) time and memory, in plain XLA: runs on every device.

Queries are taken in blocks; a block needs only the keys of its own span widened by the window, one contiguous
slice. `lax.map` under `jax.checkpoint` keeps one block's logits alive at a time, forward and backward.
"""

import jax
import jax.numpy as jnp

from editjax.attention.mask import visible, zero_padding
from editjax.attention.softmax import merged_attention, scores

QUERY_BLOCK = 64


def attend_block(q_BHTK, k_BHTK, v_BHTK, window, frames_B, global_k_BHGK, global_v_BHGK, global_valid_BG):
    """See `editjax.attention.attend`; heads come before frames here, so that products are contiguous."""
    n_frames = q_BHTK.shape[2]
    block = min(QUERY_BLOCK, n_frames)
    n_blocks = -(-n_frames // block)
    tail = n_blocks * block - n_frames
    span = block + window.left + window.right
    around = ((0, 0), (0, 0), (window.left, window.right + tail), (0, 0))
    k_padded = jnp.pad(zero_padding(k_BHTK, frames_B), around)
    v_padded = jnp.pad(zero_padding(v_BHTK, frames_B), around)
    q_padded = jnp.pad(q_BHTK, ((0, 0), (0, 0), (0, tail), (0, 0)))

    @jax.checkpoint
    def one_block(index):
        first = index * block
        q_BHQK = jax.lax.dynamic_slice_in_dim(q_padded, first, block, axis=2)
        k_BHSK = jax.lax.dynamic_slice_in_dim(k_padded, first, span, axis=2)
        v_BHSK = jax.lax.dynamic_slice_in_dim(v_padded, first, span, axis=2)
        query_Q, key_S = first + jnp.arange(block), first - window.left + jnp.arange(span)
        groups = [(scores(q_BHQK, k_BHSK), visible(query_Q, key_S, window, frames_B)[:, None], v_BHSK)]
        if global_k_BHGK is not None:
            groups.append((scores(q_BHQK, global_k_BHGK), global_valid_BG[:, None, None, :], global_v_BHGK))
        return merged_attention(groups)

    out = jax.lax.map(one_block, jnp.arange(n_blocks))
    return jnp.moveaxis(out, 0, 2).reshape(q_padded.shape)[:, :, :n_frames]
