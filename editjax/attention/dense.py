"""The reference: every query against every key and token, masked. O(n²) memory, for small n and for tests."""

import jax.numpy as jnp

from editjax.attention.mask import NOBODY, sees_frames, sees_tokens, sight, wide, zero_unseen


def attend_dense(q_BTHK, k_BSHK, v_BSHK, mask, tokens):
    """See `editjax.attention.attend`."""
    n_keys = k_BSHK.shape[1]
    view = sight(mask, q_BTHK.shape[1], n_keys)
    place_S, owner_BG = jnp.arange(n_keys), tokens.owner_BG
    seen_BTL = jnp.concatenate(
        [sees_frames(view, place_S[None, None, :]), sees_tokens(view, owner_BG)], axis=-1
    )
    valid_BL = jnp.concatenate([place_S[None, :] < mask.frames_B[:, None], owner_BG != NOBODY], axis=1)
    k_BLHK = zero_unseen(jnp.concatenate([k_BSHK, tokens.k_BGHK], axis=1), valid_BL)
    v_BLHK = zero_unseen(jnp.concatenate([v_BSHK, tokens.v_BGHK], axis=1), valid_BL)
    q_BTHK = zero_unseen(q_BTHK, view.stop_BT > 0)
    sums = wide(q_BTHK.dtype)
    logits_BHTL = jnp.einsum("bthk,blhk->bhtl", q_BTHK, k_BLHK, preferred_element_type=sums)
    logits_BHTL = jnp.where(seen_BTL[:, None], logits_BHTL * q_BTHK.shape[-1] ** -0.5, -jnp.inf)
    peak_BHT1 = jnp.max(logits_BHTL, axis=-1, keepdims=True, initial=jnp.finfo(sums).min)
    weights_BHTL = jnp.exp(logits_BHTL - peak_BHT1)
    total_BHT1 = jnp.sum(weights_BHTL, axis=-1, keepdims=True)
    weights_BHTL = weights_BHTL / jnp.where(total_BHT1 > 0, total_BHT1, 1.0)
    out_BTHK = jnp.einsum(
        "bhtl,blhk->bthk", weights_BHTL.astype(v_BLHK.dtype), v_BLHK, preferred_element_type=sums
    )
    return out_BTHK.astype(v_BLHK.dtype)
