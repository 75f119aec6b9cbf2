"""Attention in O(n) time and memory, in plain XLA: runs on every device, and is tuned for one CPU core.

One head after the other, its queries in blocks: what a step touches stays in the cache, and nothing larger
than one head is ever copied. The queries of a block share one contiguous slice of keys, their span widened by
the window; where they stand at places of their own, each gathers its window. Frames and tokens stay two
products, merged by their common peak. The backward pass computes the weights again from the saved logarithm
of their sum, as FlashAttention does (Dao et al. 2022).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from editjax.attention.mask import NOBODY, Sight, sees_frames, sees_tokens, sight, wide

NARROW_BLOCK, BLOCK = 64, 128  # queries of a step, below and from NARROW_FRAMES seen; measured on one core
NARROW_FRAMES = 256


def attend_block(q_BTHK, k_BSHK, v_BSHK, mask, tokens):
    """See `editjax.attention.attend`."""
    n_keys = k_BSHK.shape[1]
    view, owner_BG = sight(mask, q_BTHK.shape[1], n_keys), tokens.owner_BG
    valid_BS = jnp.arange(n_keys)[None, :] < mask.frames_B[:, None]
    seen = _Seen(view, valid_BS, mask.place_BT, owner_BG)
    return _attend(mask.window, q_BTHK, k_BSHK, v_BSHK, tokens.k_BGHK, tokens.v_BGHK, seen)


class _Seen(NamedTuple):
    """The mask as arrays; `place_BT` is None where query t stands at frame t."""

    sight: Sight
    valid_BS: Any
    place_BT: Any
    owner_BG: Any


class _Head(NamedTuple):
    """Arrays of one head, (batch, rows, K); what nobody sees is zero, for it may be NaN."""

    q: Any
    k: Any
    v: Any
    global_k: Any
    global_v: Any


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window, q_BTHK, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK, seen):
    return _forward(window, q_BTHK, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK, seen)[0]


def _forward(window, q_BTHK, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK, seen):
    arrays = q_BTHK, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK

    def one_head(head, results):
        out_BTHK, lse_BTH = results
        out_BTK, lse_BT1 = _forward_head(window, _head(arrays, seen, head), seen)
        return out_BTHK.at[:, :, head].set(out_BTK), lse_BTH.at[:, :, head].set(lse_BT1[..., 0])

    start = jnp.zeros_like(q_BTHK), jnp.zeros(q_BTHK.shape[:3], wide(q_BTHK.dtype))
    out_BTHK, lse_BTH = jax.lax.fori_loop(0, q_BTHK.shape[2], one_head, start)
    return out_BTHK, (*arrays, seen, out_BTHK, lse_BTH)


def _backward(window, saved, d_out_BTHK):
    *arrays, seen, out_BTHK, lse_BTH = saved
    delta_BTH = jnp.einsum("bthk,bthk->bth", out_BTHK, d_out_BTHK, preferred_element_type=lse_BTH.dtype)

    def one_head(head, gradients):
        rows_BT = seen.sight.stop_BT > 0
        d_out_BTK, lse_BT1, delta_BT1 = (
            jnp.where(rows_BT[..., None], x[:, :, head], 0)
            for x in (d_out_BTHK, lse_BTH[..., None], delta_BTH[..., None])
        )
        found = _backward_head(window, _head(arrays, seen, head), seen, d_out_BTK, lse_BT1, delta_BT1)
        return tuple(x.at[:, :, head].set(d.astype(x.dtype)) for x, d in zip(gradients, found, strict=True))

    start = tuple(jnp.zeros_like(x) for x in arrays)
    return *jax.lax.fori_loop(0, d_out_BTHK.shape[2], one_head, start), None


_attend.defvjp(_forward, _backward)


def _head(arrays, seen: _Seen, head) -> _Head:
    token_BG = seen.owner_BG != NOBODY
    kept = (seen.sight.stop_BT > 0, seen.valid_BS, seen.valid_BS, token_BG, token_BG)
    return _Head(
        *(jnp.where(rows[..., None], x[:, :, head], 0) for x, rows in zip(arrays, kept, strict=True))
    )


def _forward_head(window, head: _Head, seen: _Seen):
    """Attention of one head, (batch, query, K), and the logarithm of each query's sum, (batch, query, 1)."""
    sums, scale = wide(head.q.dtype), head.q.shape[-1] ** -0.5

    def step(index, results):
        out_BTK, lse_BT1 = results
        at = _Step(index, window, seen)
        q_BQK, groups = at.rows(head.q), at.groups(head)
        logits = [jnp.where(g.seen, _dot(f"bqk,{g.axes}->bqs", q_BQK, g.k) * scale, -jnp.inf) for g in groups]
        peaks = [jnp.max(x, axis=-1, keepdims=True, initial=jnp.finfo(sums).min) for x in logits]
        peak_BQ1 = jnp.maximum(*peaks)
        # The barrier keeps XLA from computing every exponential twice, for the sum and for the product.
        weights = jax.lax.optimization_barrier([jnp.exp(x - peak_BQ1) for x in logits])
        total_BQ1 = sum(jnp.sum(x, axis=-1, keepdims=True) for x in weights)
        total_BQ1 = jnp.where(total_BQ1 > 0, total_BQ1, 1.0)
        out_BQK = sum(_dot(f"bqs,{g.axes}->bqk", x, g.v) for g, x in zip(groups, weights, strict=True))
        return at.put(out_BTK, out_BQK / total_BQ1), at.put(lse_BT1, peak_BQ1 + jnp.log(total_BQ1))

    start = jnp.zeros_like(head.q), jnp.zeros((*head.q.shape[:2], 1), sums)
    return jax.lax.fori_loop(0, -(-head.q.shape[1] // _block(window, head.q.shape[1])), step, start)


def _backward_head(window, head: _Head, seen: _Seen, d_out_BTK, lse_BT1, delta_BT1):
    """Gradients of one head's arrays; those of keys and values are summed with frames last, for speed."""
    sums, scale = lse_BT1.dtype, head.q.shape[-1] ** -0.5

    def step(index, gradients):
        dq_BTK, *d_keys = gradients
        at = _Step(index, window, seen)
        q_BQK, d_out_BQK = at.rows(head.q), at.rows(d_out_BTK)
        dq_BQK, found = at.rows(dq_BTK), []
        for g in at.groups(head):
            weights = jnp.exp(_dot(f"bqk,{g.axes}->bqs", q_BQK, g.k) * scale - at.rows(lse_BT1))
            weights = jax.lax.optimization_barrier(jnp.where(g.seen & at.fresh_1Q1, weights, 0.0))
            d_weights = _dot(f"bqk,{g.axes}->bqs", d_out_BQK, g.v)
            d_logits = weights * (d_weights - at.rows(delta_BT1)) * scale
            dq_BQK += _dot(f"bqs,{g.axes}->bqk", d_logits, g.k)
            found += [
                _dot(f"bqk,bqs->{g.sums}", rows, x) for rows, x in ((q_BQK, d_logits), (d_out_BQK, weights))
            ]
        dk, dv, d_global_k, d_global_v = d_keys
        near_k, near_v, far_k, far_v = found
        d_keys = at.add(dk, near_k), at.add(dv, near_v), d_global_k + far_k, d_global_v + far_v
        return at.put(dq_BTK, dq_BQK), *d_keys

    start = (head.q, *(jnp.swapaxes(x, 1, 2) for x in head[1:]))
    start = tuple(jnp.zeros_like(x, sums) for x in start)
    dq_BTK, *d_keys = jax.lax.fori_loop(
        0, -(-head.q.shape[1] // _block(window, head.q.shape[1])), step, start
    )
    return dq_BTK, *(jnp.swapaxes(x, 1, 2) for x in d_keys)


def _block(window, n_queries: int) -> int:
    return min(NARROW_BLOCK if window.left + window.right < NARROW_FRAMES else BLOCK, n_queries)


def _dot(pattern, a, b):
    """Einsum of operands as wide as the narrower, with float32 sums (float64 stays)."""
    narrow = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.einsum(pattern, a.astype(narrow), b.astype(narrow), preferred_element_type=wide(narrow))


class _Group(NamedTuple):
    """Keys and values that a block sees, and which query sees which.

    Einsum letters: `axes` of the keys, (batch, S, K) or (batch, query, S, K); `sums` of their gradients.
    """

    k: Any
    v: Any
    seen: Any
    axes: str
    sums: str


class _Step:
    """Where one step reads and writes: a block of queries and what it sees.

    The last block is moved back so that it ends with the queries; rows which the block before has taken are
    not `fresh`: they add nothing to gradients.
    """

    def __init__(self, index, window, seen: _Seen):
        n_queries, n_keys = seen.sight.stop_BT.shape[1], seen.valid_BS.shape[1]
        self.size = _block(window, n_queries)
        self.first = jnp.minimum(index * self.size, n_queries - self.size)
        self.fresh_1Q1 = (self.first + jnp.arange(self.size) >= index * self.size)[None, :, None]
        self.sight, self.owner_BG = Sight(*(self.rows(x) for x in seen.sight)), seen.owner_BG
        self.own_places = seen.place_BT is not None
        if self.own_places:
            around_W = jnp.arange(-window.left, window.right + 1)
            self.place = self.rows(seen.place_BT)[..., None] + around_W[None, None, :]
        else:
            span = min(self.size + window.left + window.right, n_keys)
            self.start = jnp.clip(self.first - window.left, 0, n_keys - span)
            self.place = (self.start + jnp.arange(span))[None, None, :]

    def rows(self, x_BT):
        """The block's rows of an array."""
        return jax.lax.dynamic_slice_in_dim(x_BT, self.first, self.size, axis=1)

    def put(self, x_BTK, rows_BQK):
        """The array with the block's rows replaced."""
        return jax.lax.dynamic_update_slice_in_dim(x_BTK, rows_BQK.astype(x_BTK.dtype), self.first, axis=1)

    def groups(self, head: _Head) -> tuple[_Group, _Group]:
        """What the block sees: frames, and tokens."""
        letters = ("bqsk", "bqsk") if self.own_places else ("bsk", "bks")
        return (
            _Group(self._near(head.k), self._near(head.v), sees_frames(self.sight, self.place), *letters),
            _Group(head.global_k, head.global_v, sees_tokens(self.sight, self.owner_BG), "bsk", "bks"),
        )

    def add(self, x_BKS, d):
        """The array with `d` added at the frames that the block sees."""
        if self.own_places:
            example, place = self._gathered(x_BKS.shape[2])
            return x_BKS.at[example, :, place].add(d)
        old = jax.lax.dynamic_slice_in_dim(x_BKS, self.start, d.shape[2], axis=2)
        return jax.lax.dynamic_update_slice_in_dim(x_BKS, old + d, self.start, axis=2)

    def _near(self, x_BSK):
        if self.own_places:
            return x_BSK[self._gathered(x_BSK.shape[1])]
        return jax.lax.dynamic_slice_in_dim(x_BSK, self.start, self.place.shape[2], axis=1)

    def _gathered(self, n_keys: int):
        return jnp.arange(self.place.shape[0])[:, None, None], jnp.clip(self.place, 0, n_keys - 1)
