"""The reference: every query against every key, masked. O(n²) memory, for small n and for tests."""

import jax.numpy as jnp

from editjax.attention.mask import visible, zero_padding
from editjax.attention.softmax import merged_attention, scores


def attend_dense(q_BHTK, k_BHTK, v_BHTK, window, frames_B, global_k_BHGK, global_v_BHGK, global_valid_BG):
    """See `editjax.attention.attend`; heads come before frames here, so that products are contiguous."""
    positions_T = jnp.arange(q_BHTK.shape[2])
    k_BHTK, v_BHTK = zero_padding(k_BHTK, frames_B), zero_padding(v_BHTK, frames_B)
    mask_BHTS = visible(positions_T, positions_T, window, frames_B)[:, None]
    groups = [(scores(q_BHTK, k_BHTK), mask_BHTS, v_BHTK)]
    if global_k_BHGK is not None:
        groups.append((scores(q_BHTK, global_k_BHGK), global_valid_BG[:, None, None, :], global_v_BHGK))
    return merged_attention(groups)
