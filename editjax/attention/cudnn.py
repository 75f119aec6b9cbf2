"""cuDNN's flash attention, for the masks that it knows: causal windows of one example per row, no tokens.

cuDNN has no window that looks ahead (a left window without causality would see the whole future, silently).
"""

import jax
import jax.numpy as jnp

from editjax.attention.mask import sight, zero_unseen


def attend_cudnn(q_BTHK, k_BSHK, v_BSHK, mask, tokens):
    """See `editjax.attention.attend`."""
    window, frames_B, segment_BS, place_BT = mask
    n_keys = k_BSHK.shape[1]
    refused = {
        f"a window that looks {window.right} frames ahead": window.right > 0,
        "packed examples": segment_BS is not None,
        "queries at places of their own": place_BT is not None,
        "global tokens": tokens.valid_BG.shape[1] > 0,
        f"{q_BTHK.dtype.name} arrays": q_BTHK.dtype.name not in ("bfloat16", "float16"),
    }
    if any(refused.values()):
        what = " or ".join(reason for reason, true in refused.items() if true)
        raise ValueError(f"cudnn attention cannot do {what}; use kind 'mosaic' or 'block'")
    valid_BS = sight(mask, q_BTHK.shape[1], n_keys).stop_BT > 0
    q_BTHK, k_BSHK, v_BSHK = (zero_unseen(x, valid_BS) for x in (q_BTHK, k_BSHK, v_BSHK))
    lengths_B = jnp.asarray(frames_B, jnp.int32)
    out_BTHK = jax.nn.dot_product_attention(
        q_BTHK,
        k_BSHK,
        v_BSHK,
        is_causal=True,
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        local_window_size=(window.left, 0),
        implementation="cudnn",
    )
    return zero_unseen(out_BTHK, valid_BS)
