"""The reference: every query against every key, masked. O(n²) memory, for small n and for tests."""

import jax.numpy as jnp

from editjax.attention.mask import visible, zero_padding
from editjax.attention.softmax import merged_attention, scores


def attend_dense(q_BTHK, k_BTHK, v_BTHK, window, frames_B, global_k_BGHK, global_v_BGHK, global_valid_BG):
    """See `editjax.attention.attend`."""
    positions_T = jnp.arange(q_BTHK.shape[1])
    k_BTHK, v_BTHK = zero_padding(k_BTHK, frames_B), zero_padding(v_BTHK, frames_B)
    mask_BHTS = visible(positions_T, positions_T, window, frames_B)[:, None]
    groups = [(scores(q_BTHK, k_BTHK), mask_BHTS, v_BTHK)]
    if global_k_BGHK is not None:
        groups.append((scores(q_BTHK, global_k_BGHK), global_valid_BG[:, None, None, :], global_v_BGHK))
    return merged_attention(groups)
