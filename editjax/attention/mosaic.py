"""Our kernel for Hopper GPUs: a window of frames and gathered tokens, through Mosaic GPU, with backward.

FlashAttention's arithmetic (Dao et al. 2022; Shah et al. 2024): a tile of queries visits the tiles of keys
that it sees and keeps a running peak and sum; one number a row, the logarithm of that sum, is saved, from
which the backward kernels compute the weights again. Keys are the frames followed by the tokens; which tiles
a tile of queries visits is a table made from the mask, so that windows, packed examples and
cross-attention around places are one kernel.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from editjax.attention.hopper import (
    BLOCK,
    ROWS,
    STAGES,
    WARPGROUPS,
    kernel,
    product,
    share,
    visit_all,
    where_am_i,
)
from editjax.attention.mask import NOBODY, NOWHERE, sight, zero_unseen

FORWARD_TILE, BACKWARD_TILE = 128, 64  # rows of what is visited; two products at once leave fewer registers
CHUNK = 16  # query tiles that one program visits for the gradient of a tile of tokens, which all queries see
HEAD_WIDTHS = (64, 128)
DTYPES = ("bfloat16", "float16")
LOG2_E = math.log2(math.e)  # the GPU has the exponential of base 2
NEVER = -1e30
START = NEVER / 2  # the first peak: above it, so that what is masked has weight 2^(NEVER − START) = 0


def attend_mosaic(q_BTHK, k_BSHK, v_BSHK, mask, tokens, interpret: Any = False):
    """See `editjax.attention.attend`. `interpret`: Pallas' parameters to run it on the CPU, for tests."""
    width, dtype = q_BTHK.shape[-1], q_BTHK.dtype.name
    if width not in HEAD_WIDTHS:
        raise ValueError(
            f"mosaic attention takes heads of width {HEAD_WIDTHS}, not {width}; use kind 'block'"
        )
    if dtype not in DTYPES:
        raise ValueError(f"mosaic attention takes {' or '.join(DTYPES)}, not {dtype}; use kind 'block'")
    n_queries, n_keys = q_BTHK.shape[1], k_BSHK.shape[1]
    view, owner_BG = sight(mask, n_queries, n_keys), tokens.owner_BG
    valid_BS = jnp.arange(n_keys)[None, :] < mask.frames_B[:, None]
    k_BLHK, v_BLHK = (
        jnp.concatenate(
            [_padded(zero_unseen(near, valid_BS)), _padded(zero_unseen(far, owner_BG != NOBODY))], 1
        )
        for near, far in ((k_BSHK, tokens.k_BGHK), (v_BSHK, tokens.v_BGHK))
    )
    nobody_BS = jnp.full((len(owner_BG), -(-n_keys // BLOCK) * BLOCK), NOBODY, jnp.int32)
    owner_BL = jnp.concatenate([nobody_BS, _padded(owner_BG, NOBODY)], axis=1)
    seen_B3T = jnp.stack(
        [_padded(view.first_BT), _padded(view.stop_BT), _padded(view.segment_BT, NOWHERE)], 1
    )
    q_BTHK = _padded(zero_unseen(q_BTHK, view.stop_BT > 0))
    seen = _Seen(seen_B3T.astype(jnp.int32), owner_BL)
    return _attend(nobody_BS.shape[1], interpret, q_BTHK, k_BLHK, v_BLHK, seen)[:, :n_queries]


def _padded(x_BT, value=0):
    """Rows up to a multiple of `BLOCK`."""
    tail = -x_BT.shape[1] % BLOCK
    return jnp.pad(x_BT, ((0, 0), (0, tail), *((0, 0),) * (x_BT.ndim - 2)), constant_values=value)


class _Seen(NamedTuple):
    """Per query the first key, one past the last, and its segment; per key the segment it is a token of."""

    rows_B3T: Any
    owner_BL: Any


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(n_frames, interpret, q_BTHK, k_BLHK, v_BLHK, seen):
    return _forward(n_frames, interpret, q_BTHK, k_BLHK, v_BLHK, seen)[0]


def _forward(n_frames, interpret, q_BTHK, k_BLHK, v_BLHK, seen):
    batch, n_queries, heads, width = q_BTHK.shape
    dtype, n_tokens = q_BTHK.dtype, k_BLHK.shape[1] - n_frames
    scale = LOG2_E * width**-0.5

    def body(
        visits, q, rows, k, v, owner, out, lse, q_s, rows_s, lse_s, k_s, v_s, owner_s, mine, ready, used
    ):
        b, h, i, group = where_am_i()
        steps, place, load = _keys_seen(visits, (k, v, owner), (k_s, v_s, owner_s), ready, n_frames, n_tokens)

        def compute():
            queries = pl.ds(i * BLOCK + group * ROWS, ROWS)
            plgpu.copy_gmem_to_smem(q.at[b, queries, h], q_s.at[group], mine.at[group])
            plgpu.copy_gmem_to_smem(rows.at[b, :, queries], rows_s.at[group], mine.at[group])
            plgpu.barrier_wait(mine.at[group])
            own = [rows_s[group, r] for r in range(3)]

            def visit(step, slot, state):
                sums_QK, peak_Q, total_Q = state
                logits_QL = product(q_s.at[group], k_s.at[slot], transposed=True, interpret=interpret)
                seen_QL = _sees(own, owner_s[slot], place(step), logits_QL.shape, query_axis=0)
                logits_QL = jnp.where(seen_QL, logits_QL * scale, NEVER)
                new_Q = jnp.maximum(peak_Q, logits_QL.max(axis=1))
                weights_QL = jnp.exp2(logits_QL - _along(new_Q, logits_QL.shape, 0))
                shrink_Q = jnp.exp2(peak_Q - new_Q)
                total_Q = total_Q * shrink_Q + weights_QL.sum(axis=1)
                sums_QK = sums_QK * _along(shrink_Q, sums_QK.shape, 0)
                sums_QK = product(weights_QL.astype(dtype), v_s.at[slot], sums_QK, interpret=interpret)
                return sums_QK, new_Q, total_Q

            zero_QK, zero_Q = jnp.zeros((ROWS, width), jnp.float32), jnp.zeros((ROWS,), jnp.float32)
            sums_QK, peak_Q, total_Q = visit_all(
                steps, visit, (zero_QK, jnp.full((ROWS,), START, jnp.float32), zero_Q), ready, used
            )
            total_Q = jnp.where(total_Q > 0, total_Q, 1.0)
            q_s[group] = (sums_QK / _along(total_Q, sums_QK.shape, 0)).astype(dtype)
            lse_s[group] = peak_Q + jnp.log2(total_Q)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_s.at[group], out.at[b, queries, h])
            plgpu.copy_smem_to_gmem(lse_s.at[group], lse.at[b, h, queries])
            plgpu.wait_smem_to_gmem(0)

        share(compute, steps, load, used)

    out_BTHK, lse_BHT = kernel(
        body,
        (heads, n_queries // BLOCK, batch),
        [
            jax.ShapeDtypeStruct(q_BTHK.shape, dtype),
            jax.ShapeDtypeStruct((batch, heads, n_queries), jnp.float32),
        ],
        [
            plgpu.SMEM((WARPGROUPS, ROWS, width), dtype),
            plgpu.SMEM((WARPGROUPS, 3, ROWS), jnp.int32),
            plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
            plgpu.SMEM((STAGES, FORWARD_TILE, width), dtype),
            plgpu.SMEM((STAGES, FORWARD_TILE, width), dtype),
            plgpu.SMEM((STAGES, FORWARD_TILE), jnp.int32),
        ],
        (2, 3),
        interpret,
    )(_visits(seen, FORWARD_TILE), q_BTHK, seen.rows_B3T, k_BLHK, v_BLHK, seen.owner_BL)
    return out_BTHK, (q_BTHK, k_BLHK, v_BLHK, seen, out_BTHK, lse_BHT)


def _backward(n_frames, interpret, saved, d_out_BTHK):
    q_BTHK, k_BLHK, v_BLHK, seen, out_BTHK, lse_BHT = saved
    delta_BHT = jnp.einsum("bthk,bthk->bht", out_BTHK, d_out_BTHK, preferred_element_type=jnp.float32)
    stats_BH2T = jnp.stack([lse_BHT, delta_BHT], axis=2)
    arrays = (q_BTHK, d_out_BTHK, seen.rows_B3T, stats_BH2T, k_BLHK, v_BLHK, seen.owner_BL)
    return _query_gradient(n_frames, interpret, *arrays), *_key_gradients(n_frames, interpret, *arrays), None


_attend.defvjp(_forward, _backward)


def _query_gradient(n_frames, interpret, q_BTHK, d_out_BTHK, rows_B3T, stats_BH2T, k_BLHK, v_BLHK, owner_BL):
    """Each tile of queries visits its keys again, as in the forward pass."""
    batch, n_queries, heads, width = q_BTHK.shape
    dtype, n_tokens = q_BTHK.dtype, k_BLHK.shape[1] - n_frames

    def body(
        visits, q, d_out, rows, stats, k, v, owner, dq,
        q_s, d_out_s, rows_s, stats_s, k_s, v_s, owner_s, mine, ready, used,
    ):  # fmt: skip
        b, h, i, group = where_am_i()
        steps, place, load = _keys_seen(visits, (k, v, owner), (k_s, v_s, owner_s), ready, n_frames, n_tokens)

        def compute():
            queries = pl.ds(i * BLOCK + group * ROWS, ROWS)
            plgpu.copy_gmem_to_smem(q.at[b, queries, h], q_s.at[group], mine.at[group])
            plgpu.copy_gmem_to_smem(d_out.at[b, queries, h], d_out_s.at[group], mine.at[group])
            plgpu.copy_gmem_to_smem(rows.at[b, :, queries], rows_s.at[group], mine.at[group])
            plgpu.copy_gmem_to_smem(stats.at[b, h, :, queries], stats_s.at[group], mine.at[group])
            plgpu.barrier_wait(mine.at[group])
            own, lse_Q, delta_Q = [rows_s[group, r] for r in range(3)], stats_s[group, 0], stats_s[group, 1]

            def visit(step, slot, dq_QK):
                logits_QL = product(q_s.at[group], k_s.at[slot], transposed=True, interpret=interpret)
                seen_QL = _sees(own, owner_s[slot], place(step), logits_QL.shape, query_axis=0)
                weights_QL = _weights(logits_QL, seen_QL, lse_Q, width, query_axis=0)
                d_weights_QL = product(d_out_s.at[group], v_s.at[slot], transposed=True, interpret=interpret)
                d_logits_QL = _d_logits(weights_QL, d_weights_QL, delta_Q, width, query_axis=0)
                return product(d_logits_QL.astype(dtype), k_s.at[slot], dq_QK, interpret=interpret)

            dq_QK = visit_all(steps, visit, jnp.zeros((ROWS, width), jnp.float32), ready, used)
            q_s[group] = dq_QK.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_s.at[group], dq.at[b, queries, h])
            plgpu.wait_smem_to_gmem(0)

        share(compute, steps, load, used)

    return kernel(
        body,
        (heads, n_queries // BLOCK, batch),
        jax.ShapeDtypeStruct(q_BTHK.shape, dtype),
        [
            plgpu.SMEM((WARPGROUPS, ROWS, width), dtype),
            plgpu.SMEM((WARPGROUPS, ROWS, width), dtype),
            plgpu.SMEM((WARPGROUPS, 3, ROWS), jnp.int32),
            plgpu.SMEM((WARPGROUPS, 2, ROWS), jnp.float32),
            plgpu.SMEM((STAGES, BACKWARD_TILE, width), dtype),
            plgpu.SMEM((STAGES, BACKWARD_TILE, width), dtype),
            plgpu.SMEM((STAGES, BACKWARD_TILE), jnp.int32),
        ],
        (4, 3),
        interpret,
    )(
        _visits(_Seen(rows_B3T, owner_BL), BACKWARD_TILE),
        q_BTHK,
        d_out_BTHK,
        rows_B3T,
        stats_BH2T,
        k_BLHK,
        v_BLHK,
        owner_BL,
    )


def _key_gradients(n_frames, interpret, q_BTHK, d_out_BTHK, rows_B3T, stats_BH2T, k_BLHK, v_BLHK, owner_BL):
    """Each tile of keys visits the queries that see it; tokens, which all see, in chunks, then added."""
    batch, _, heads, width = q_BTHK.shape
    dtype, n_tokens = q_BTHK.dtype, k_BLHK.shape[1] - n_frames
    tasks_B3I = _tasks(rows_B3T, n_frames, n_tokens)
    n_tasks = tasks_B3I.shape[2]

    def body(
        tasks, q, d_out, rows, stats, k, v, owner, dk, dv,
        k_s, v_s, owner_s, q_s, d_out_s, rows_s, stats_s, mine, ready, used,
    ):  # fmt: skip
        b, h, i, group = where_am_i()
        base, first, steps = tasks[b, 0, i] * BLOCK + group * ROWS, tasks[b, 1, i], tasks[b, 2, i]

        def load(step, slot):
            queries = pl.ds((first + step) * BACKWARD_TILE, BACKWARD_TILE)
            plgpu.copy_gmem_to_smem(q.at[b, queries, h], q_s.at[slot], ready.at[slot])
            plgpu.copy_gmem_to_smem(d_out.at[b, queries, h], d_out_s.at[slot], ready.at[slot])
            plgpu.copy_gmem_to_smem(rows.at[b, :, queries], rows_s.at[slot], ready.at[slot])
            plgpu.copy_gmem_to_smem(stats.at[b, h, :, queries], stats_s.at[slot], ready.at[slot])

        def compute():
            keys = pl.ds(base, ROWS)
            plgpu.copy_gmem_to_smem(k.at[b, keys, h], k_s.at[group], mine.at[group])
            plgpu.copy_gmem_to_smem(v.at[b, keys, h], v_s.at[group], mine.at[group])
            plgpu.copy_gmem_to_smem(owner.at[b, keys], owner_s.at[group], mine.at[group])
            plgpu.barrier_wait(mine.at[group])
            own = owner_s[group]

            def visit(step, slot, state):
                dk_LK, dv_LK = state
                theirs = [rows_s[slot, r] for r in range(3)]
                logits_LQ = product(k_s.at[group], q_s.at[slot], transposed=True, interpret=interpret)
                seen_LQ = _sees(theirs, own, base, logits_LQ.shape, query_axis=1)
                weights_LQ = _weights(logits_LQ, seen_LQ, stats_s[slot, 0], width, query_axis=1)
                dv_LK = product(weights_LQ.astype(dtype), d_out_s.at[slot], dv_LK, interpret=interpret)
                d_weights_LQ = product(v_s.at[group], d_out_s.at[slot], transposed=True, interpret=interpret)
                d_logits_LQ = _d_logits(weights_LQ, d_weights_LQ, stats_s[slot, 1], width, query_axis=1)
                dk_LK = product(d_logits_LQ.astype(dtype), q_s.at[slot], dk_LK, interpret=interpret)
                return dk_LK, dv_LK

            zero_LK = jnp.zeros((ROWS, width), jnp.float32)
            dk_LK, dv_LK = visit_all(steps, visit, (zero_LK, zero_LK), ready, used)
            k_s[group], v_s[group] = dk_LK.astype(dtype), dv_LK.astype(dtype)
            plgpu.commit_smem()
            written = pl.ds(i * BLOCK + group * ROWS, ROWS)
            plgpu.copy_smem_to_gmem(k_s.at[group], dk.at[b, written, h])
            plgpu.copy_smem_to_gmem(v_s.at[group], dv.at[b, written, h])
            plgpu.wait_smem_to_gmem(0)

        share(compute, steps, load, used)

    parts = kernel(
        body,
        (heads, n_tasks, batch),
        [jax.ShapeDtypeStruct((batch, n_tasks * BLOCK, heads, width), dtype)] * 2,
        [
            plgpu.SMEM((WARPGROUPS, ROWS, width), dtype),
            plgpu.SMEM((WARPGROUPS, ROWS, width), dtype),
            plgpu.SMEM((WARPGROUPS, ROWS), jnp.int32),
            plgpu.SMEM((STAGES, BACKWARD_TILE, width), dtype),
            plgpu.SMEM((STAGES, BACKWARD_TILE, width), dtype),
            plgpu.SMEM((STAGES, 3, BACKWARD_TILE), jnp.int32),
            plgpu.SMEM((STAGES, 2, BACKWARD_TILE), jnp.float32),
        ],
        (3, 4),
        interpret,
    )(tasks_B3I, q_BTHK, d_out_BTHK, rows_B3T, stats_BH2T, k_BLHK, v_BLHK, owner_BL)

    def added(part_BLHK):
        near_BSHK, far_BLHK = part_BLHK[:, :n_frames], part_BLHK[:, n_frames:]
        far_BCGHK = far_BLHK.reshape(batch, -1, n_tokens, heads, width).astype(jnp.float32)
        return jnp.concatenate([near_BSHK, far_BCGHK.sum(axis=1).astype(dtype)], axis=1)

    return tuple(map(added, parts)) if n_tokens else tuple(parts)


def _visits(seen, tile: int):
    """Per block of queries the first tile of frames that it sees, and how many: int32 (batch, 2, blocks)."""
    first_BI, stop_BI = _span(seen.rows_B3T, BLOCK)
    first_BI, stop_BI = first_BI // tile, -(-stop_BI // tile)
    return jnp.stack([first_BI, jnp.maximum(stop_BI - first_BI, 0)], axis=1)


def _tasks(rows_B3T, n_frames: int, n_tokens: int):
    """Gradients of keys as tasks: a block of keys, the first tile of queries, how many; (batch, 3, tasks)."""
    first_BI, stop_BI = _span(rows_B3T, BACKWARD_TILE)
    batch, n_tiles = first_BI.shape
    block_J = jnp.arange(n_frames // BLOCK, dtype=jnp.int32)[None, :, None]
    sees_BJI = (first_BI[:, None] < (block_J + 1) * BLOCK) & (stop_BI[:, None] > block_J * BLOCK)
    tile_I = jnp.arange(n_tiles, dtype=jnp.int32)[None, None, :]
    from_BJ = jnp.min(jnp.where(sees_BJI, tile_I, n_tiles), axis=2)
    to_BJ = jnp.max(jnp.where(sees_BJI, tile_I + 1, 0), axis=2)
    near = [jnp.broadcast_to(block_J[..., 0], from_BJ.shape), from_BJ, jnp.maximum(to_BJ - from_BJ, 0)]
    start_C1 = jnp.arange(0, n_tiles, CHUNK, dtype=jnp.int32)[:, None]
    token_G = (n_frames + jnp.arange(0, n_tokens, BLOCK, dtype=jnp.int32)) // BLOCK
    shape = (batch, start_C1.shape[0], token_G.shape[0])
    count_C1 = jnp.minimum(n_tiles - start_C1, CHUNK)
    far = [
        jnp.broadcast_to(x, shape).reshape(batch, -1)
        for x in (token_G[None, None], start_C1[None], count_C1[None])
    ]
    return jnp.stack([jnp.concatenate(pair, axis=1) for pair in zip(near, far, strict=True)], axis=1)


def _span(rows_B3T, tile: int):
    """The first frame that any row of a tile sees, and one past the last: int32 (batch, tiles)."""
    first_BIQ, stop_BIQ = (rows_B3T[:, r].reshape(rows_B3T.shape[0], -1, tile) for r in range(2))
    first_BIQ = jnp.where(stop_BIQ > 0, first_BIQ, jnp.iinfo(jnp.int32).max)
    stop_BI = stop_BIQ.max(axis=2)
    return jnp.minimum(first_BIQ.min(axis=2), stop_BI), stop_BI


def _keys_seen(visits, arrays, rings, ready, n_frames: int, n_tokens: int):
    """For a block of queries: how many tiles of keys it visits, where each begins, and how to load one."""
    b, h, i, _ = where_am_i()
    (k, v, owner), (k_s, v_s, owner_s) = arrays, rings
    tile, first, near = k_s.shape[1], visits[b, 0, i], visits[b, 1, i]

    def place(step):
        return jnp.where(step < near, first + step, n_frames // tile + step - near) * tile

    def load(step, slot):
        keys = pl.ds(place(step), tile)
        plgpu.copy_gmem_to_smem(k.at[b, keys, h], k_s.at[slot], ready.at[slot])
        plgpu.copy_gmem_to_smem(v.at[b, keys, h], v_s.at[slot], ready.at[slot])
        plgpu.copy_gmem_to_smem(owner.at[b, keys], owner_s.at[slot], ready.at[slot])

    return near + n_tokens // tile, place, load


def _along(x_N, shape, axis: int):
    return lax.broadcast_in_dim(x_N, shape, [axis])


def _sees(rows, owner, first_key, shape, query_axis: int):
    """Which keys of a tile its queries see; the keys' places count up from `first_key`."""
    first, stop, segment = (_along(x, shape, query_axis) for x in rows)
    place = lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis) + first_key
    return ((place >= first) & (place < stop)) | (segment == _along(owner, shape, 1 - query_axis))


def _weights(logits, seen, lse, width: int, query_axis: int):
    scale = LOG2_E * width**-0.5
    return jnp.where(seen, jnp.exp2(logits * scale - _along(lse, logits.shape, query_axis)), 0.0)


def _d_logits(weights, d_weights, delta, width: int, query_axis: int):
    return weights * (d_weights - _along(delta, weights.shape, query_axis)) * width**-0.5
