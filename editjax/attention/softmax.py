"""One softmax over several groups of keys, without concatenating them."""

import jax.numpy as jnp


def merged_attention(groups):
    """Attention output over the union of key groups; rows that see no key give zero.

    `groups` is a list of (logits_BHQS, mask_BHQS, v_BHSK); masks broadcast against the logits. Products stay
    separate per group because concatenated rows of 1,024 floats alias in the cache. Weights are float32; the
    result (B, H, Q, K) has the dtype of the values.
    """
    peaks = [jnp.max(jnp.where(m, s, -jnp.inf), axis=-1, keepdims=True) for s, m, _ in groups]
    peak_BHQ1 = jnp.max(jnp.stack(peaks), axis=0)
    peak_BHQ1 = jnp.where(jnp.isfinite(peak_BHQ1), peak_BHQ1, jnp.zeros_like(peak_BHQ1))
    weights = [jnp.where(m, jnp.exp(jnp.where(m, s, peak_BHQ1) - peak_BHQ1), 0.0) for s, m, _ in groups]
    total_BHQ1 = sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)
    out_BHQK = sum(
        jnp.einsum("bhqs,bhsk->bhqk", w.astype(v.dtype), v, preferred_element_type=jnp.float32)
        for w, (_, _, v) in zip(weights, groups, strict=True)
    )
    out_BHQK = jnp.where(total_BHQ1 > 0, out_BHQK / jnp.where(total_BHQ1 > 0, total_BHQ1, 1.0), 0.0)
    return out_BHQK.astype(groups[0][2].dtype)


def scores(q_BHQK, k_BHSK):
    """Scaled dot products in float32, (B, H, Q, S)."""
    scale = q_BHQK.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bhsk->bhqs", q_BHQK, k_BHSK, preferred_element_type=jnp.float32) * scale
