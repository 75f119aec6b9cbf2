"""One softmax over several groups of keys, without concatenating them."""

import jax.numpy as jnp


def merged_attention(groups):
    """Attention output over the union of key groups; rows that see no key give zero.

    `groups` is a list of (logits_BHQS, mask_BHQS, v_BSHK); masks broadcast against the logits. Products stay
    separate per group because concatenated rows of 1,024 floats alias in the cache. The weights are float32; the
    result (B, Q, H, K) has the dtype of the values.
    """
    peak_BHQ1 = jnp.max(
        jnp.stack([jnp.max(jnp.where(m, s, -jnp.inf), axis=-1) for s, m, _ in groups]), axis=0
    )[..., None]
    peak_BHQ1 = jnp.where(jnp.isfinite(peak_BHQ1), peak_BHQ1, jnp.zeros_like(peak_BHQ1))
    weights = [jnp.where(m, jnp.exp(jnp.where(m, s, peak_BHQ1) - peak_BHQ1), 0.0) for s, m, _ in groups]
    total_BHQ = sum(jnp.sum(w, axis=-1) for w in weights)
    out_BQHK = sum(
        jnp.einsum("bhqs,bshk->bqhk", w.astype(v.dtype), v, preferred_element_type=jnp.float32)
        for w, (_, _, v) in zip(weights, groups, strict=True)
    )
    total_BQH1 = jnp.swapaxes(total_BHQ, 1, 2)[..., None]
    out_BQHK = jnp.where(total_BQH1 > 0, out_BQHK / jnp.where(total_BQH1 > 0, total_BQH1, 1.0), 0.0)
    return out_BQHK.astype(groups[0][2].dtype)


def scores(q_BQHK, k_BSHK):
    """Scaled dot products in float32, (B, H, Q, S)."""
    scale = q_BQHK.shape[-1] ** -0.5
    return jnp.einsum("bqhk,bshk->bhqs", q_BQHK, k_BSHK, preferred_element_type=jnp.float32) * scale
