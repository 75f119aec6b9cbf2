"""Attention in O(n) time and memory, in plain XLA: runs on every device, and is tuned for one CPU core.

Queries are taken in blocks, one head at a time: what a step touches stays in the cache, and nothing else is
allocated. The queries of a block share one contiguous slice of keys, their span widened by the window; where
they stand at places of their own, each gathers its window. Frames and tokens stay two products, merged by
their common peak. The backward pass computes the weights again from the saved logarithm of their sum, as
FlashAttention does (Dao et al. 2022).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from editjax.attention.mask import NOBODY, Sight, sees_frames, sees_tokens, sight

QUERY_BLOCK = 128


def attend_block(q_BTHK, k_BSHK, v_BSHK, mask, tokens):
    """See `editjax.attention.attend`."""
    seen = _Seen(sight(mask, q_BTHK.shape[1], k_BSHK.shape[1]), mask.frames_B, mask.place_BT, tokens.owner_BG)
    return _attend(mask.window, q_BTHK, k_BSHK, v_BSHK, tokens.k_BGHK, tokens.v_BGHK, seen)


class _Seen(NamedTuple):
    """The mask as arrays; `place_BT` is None where query t stands at frame t."""

    sight: Sight
    frames_B: Any
    place_BT: Any
    owner_BG: Any


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(window, q_BTHK, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK, seen):
    return _forward(window, q_BTHK, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK, seen)[0]


def _forward(window, q_BTHK, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK, seen):
    wide = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    scale = q_BTHK.shape[-1] ** -0.5

    def step(index, results):
        out_BTHK, lse_BTH1 = results
        at = _Step(index, window, seen, q_BTHK.shape, k_BSHK.shape[1])
        q_BQK = at.rows(q_BTHK)
        groups = at.groups(k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK)
        logits = [jnp.where(g.seen, _dot(g, "bqk,{}->bqs", q_BQK, g.k) * scale, -jnp.inf) for g in groups]
        peaks = [jnp.max(x, axis=-1, keepdims=True, initial=jnp.finfo(wide).min) for x in logits]
        peak_BQ1 = jnp.maximum(*peaks)
        # The barrier keeps XLA from computing every exponential twice, for the sum and for the product.
        weights = jax.lax.optimization_barrier([jnp.exp(x - peak_BQ1) for x in logits])
        total_BQ1 = sum(jnp.sum(x, axis=-1, keepdims=True) for x in weights)
        total_BQ1 = jnp.where(total_BQ1 > 0, total_BQ1, 1.0)
        sums = (_dot(g, "bqs,{}->bqk", x, g.v) for g, x in zip(groups, weights, strict=True))
        return at.put(out_BTHK, sum(sums) / total_BQ1), at.put(lse_BTH1, peak_BQ1 + jnp.log(total_BQ1))

    start = jnp.zeros_like(q_BTHK, v_BSHK.dtype), jnp.zeros((*q_BTHK.shape[:3], 1), wide)
    out_BTHK, lse_BTH1 = jax.lax.fori_loop(0, _Step.count(q_BTHK.shape), step, start)
    return out_BTHK, (q_BTHK, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK, seen, out_BTHK, lse_BTH1)


def _backward(window, saved, d_out_BTHK):
    q_BTHK, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK, seen, out_BTHK, lse_BTH1 = saved
    wide = lse_BTH1.dtype
    scale = q_BTHK.shape[-1] ** -0.5

    def step(index, gradients):
        dq_BTHK, frames, tokens = gradients
        at = _Step(index, window, seen, q_BTHK.shape, k_BSHK.shape[1])
        q_BQK, d_out_BQK, lse_BQ1 = at.rows(q_BTHK), at.rows(d_out_BTHK), at.rows(lse_BTH1)
        delta_BQ1 = jnp.sum(d_out_BQK.astype(wide) * at.rows(out_BTHK).astype(wide), axis=-1, keepdims=True)
        dq_BQK, pairs = at.rows(dq_BTHK), []
        for g in at.groups(k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK):
            weights = jnp.exp(_dot(g, "bqk,{}->bqs", q_BQK, g.k) * scale - lse_BQ1)
            weights = jax.lax.optimization_barrier(jnp.where(g.seen & at.fresh_1Q1, weights, 0.0))
            d_logits = weights * (_dot(g, "bqk,{}->bqs", d_out_BQK, g.v) - delta_BQ1) * scale
            dq_BQK += _dot(g, "bqs,{}->bqk", d_logits, g.k)
            dk, dv = _dot(g, "bqk,bqs->{}", q_BQK, d_logits), _dot(g, "bqk,bqs->{}", d_out_BQK, weights)
            pairs.append((dk, dv))
        near, far = pairs
        frames = tuple(at.add_near(x, d) for x, d in zip(frames, near, strict=True))
        tokens = tuple(at.add_far(x, d) for x, d in zip(tokens, far, strict=True))
        return at.put(dq_BTHK, dq_BQK), frames, tokens

    inputs = q_BTHK, (k_BSHK, v_BSHK), (global_k_BGHK, global_v_BGHK)
    start = jax.tree.map(lambda x: jnp.zeros_like(x, wide), inputs)
    gradients = jax.lax.fori_loop(0, _Step.count(q_BTHK.shape), step, start)
    dq_BTHK, frames, tokens = jax.tree.map(lambda d, x: d.astype(x.dtype), gradients, inputs)
    return dq_BTHK, *frames, *tokens, None


_attend.defvjp(_forward, _backward)


class _Group(NamedTuple):
    """Keys and values of one head, (batch, S, K) or (batch, query, S, K): `axes` has their letters."""

    k: Any
    v: Any
    seen: Any
    axes: str


def _dot(group, pattern, a, b):
    """Einsum over a group's axes: operands as wide as its keys, sums in float32 (float64 stays)."""
    narrow = group.k.dtype
    wide = jnp.promote_types(narrow, jnp.float32)
    operands = a.astype(narrow), b.astype(narrow)
    return jnp.einsum(pattern.format(group.axes), *operands, preferred_element_type=wide)


class _Step:
    """Where one step reads and writes: one head of one block of queries.

    The last block is moved back so that it ends with the queries; rows which the block before has taken are
    not `fresh`: they add nothing to gradients.
    """

    def __init__(self, index, window, seen: _Seen, shape, n_keys: int):
        _, n_queries, heads, _ = shape
        self.size = min(QUERY_BLOCK, n_queries)
        block, self.head = index // heads, index % heads
        self.first = jnp.minimum(block * self.size, n_queries - self.size)
        self.fresh_1Q1 = (self.first + jnp.arange(self.size) >= block * self.size)[None, :, None]
        self.seen = seen
        self.sight = Sight(*(self._block(x) for x in seen.sight))
        if seen.place_BT is None:
            span = min(self.size + window.left + window.right, n_keys)
            self.start, self.axes = jnp.clip(self.first - window.left, 0, n_keys - span), "bsk"
            self.place = (self.start + jnp.arange(span))[None, None, :]
            self.valid = self.place[:, 0] < seen.frames_B[:, None]
        else:
            around_W = jnp.arange(-window.left, window.right + 1)
            self.place, self.axes = self._block(seen.place_BT)[..., None] + around_W[None, None, :], "bqsk"
            self.valid = (self.place >= 0) & (self.place < seen.frames_B[:, None, None])

    @staticmethod
    def count(shape) -> int:
        """Steps that cover all queries and heads of this shape."""
        return -(-shape[1] // min(QUERY_BLOCK, shape[1])) * shape[2]

    def rows(self, x_BTHK):
        """The block's rows of one head, (batch, query, K); zero where a query sees nothing: it may be NaN."""
        return jnp.where(
            self.sight.stop_BT[..., None] > 0, _slice(x_BTHK, self.first, self.size, self.head), 0
        )

    def put(self, x_BTHK, rows_BQK):
        """The array with the block's rows of one head replaced."""
        return _update(x_BTHK, rows_BQK, self.first, self.head)

    def groups(self, k_BSHK, v_BSHK, global_k_BGHK, global_v_BGHK):
        """What the block sees, frames and tokens; the invalid ones are zero, for they may be NaN."""
        owner_BG = self.seen.owner_BG
        valid, n_tokens = (owner_BG != NOBODY)[..., None], owner_BG.shape[1]
        near = (jnp.where(self.valid[..., None], self._near(x), 0) for x in (k_BSHK, v_BSHK))
        far = (_slice(x, 0, n_tokens, self.head) for x in (global_k_BGHK, global_v_BGHK))
        return (
            _Group(*near, sees_frames(self.sight, self.place), self.axes),
            _Group(*(jnp.where(valid, x, 0) for x in far), sees_tokens(self.sight, owner_BG), "bsk"),
        )

    def add_near(self, x_BSHK, d):
        """The array with `d` added to the frames that the block sees."""
        if self.axes == "bsk":
            return _update(x_BSHK, self._near(x_BSHK) + d, self.start, self.head)
        return x_BSHK.at[*self._gathered(x_BSHK), self.head].add(d)

    def add_far(self, x_BGHK, d_BGK):
        """The array with `d` added to the tokens of one head."""
        return _update(x_BGHK, _slice(x_BGHK, 0, x_BGHK.shape[1], self.head) + d_BGK, 0, self.head)

    def _near(self, x_BSHK):
        if self.axes == "bsk":
            return _slice(x_BSHK, self.start, self.place.shape[-1], self.head)
        return x_BSHK[*self._gathered(x_BSHK), self.head]

    def _gathered(self, x_BSHK):
        batch, n_keys = x_BSHK.shape[:2]
        return jnp.arange(batch)[:, None, None], jnp.clip(self.place, 0, n_keys - 1)

    def _block(self, x_BT):
        return jax.lax.dynamic_slice_in_dim(x_BT, self.first, self.size, axis=1)


def _slice(x_BTHK, first, size: int, head):
    """Rows of one head, (batch, size, K)."""
    batch, _, _, width = x_BTHK.shape
    return jax.lax.dynamic_slice(x_BTHK, (0, first, head, 0), (batch, size, 1, width))[:, :, 0]


def _update(x_BTHK, rows_BQK, first, head):
    """The array with rows of one head replaced."""
    return jax.lax.dynamic_update_slice(
        x_BTHK, rows_BQK[:, :, None].astype(x_BTHK.dtype), (0, first, head, 0)
    )
