"""Attention over a device mesh: heads split over `tensor`, time over `seq`, whose parts exchange halos.

XLA cannot split the loops of a blockwise attention: it would gather the whole sequence on every device. Here
every device answers for the queries and heads that it holds; of the keys it fetches those within a window of
its ends from its two neighbours, and nothing else of the sequence moves.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from editjax.attention.mask import Mask, Tokens
from editjax.mesh import EXAMPLES, HEADS, TIME, split_over


def splits(mesh: AbstractMesh) -> bool:
    """Whether the mesh splits heads or time."""
    return any(mesh.shape.get(axis, 1) > 1 for axis in (HEADS, TIME))


def attend_across(attend, mesh: AbstractMesh, q_BTHK, k_BSHK, v_BSHK, mask: Mask, tokens: Tokens):
    """`attend`, one of the kinds, on every device's part; takes and returns what it does, of the whole.

    Examples, heads and time are split where the mesh divides them, time where a window reaches no further
    than a neighbour. The time of queries with places of their own is not, for they may stand anywhere.
    """
    batch, n_keys, n_heads, _ = k_BSHK.shape
    examples, heads = split_over(mesh, EXAMPLES, batch), split_over(mesh, HEADS, n_heads)
    parts = mesh.shape.get(TIME, 1)
    near = mask.place_BT is None and max(mask.window) * parts <= n_keys
    time = split_over(mesh, TIME, n_keys) if near else None
    parts = parts if time else 1
    qkv, of_tokens = P(examples, time, heads), P(examples, None, heads)
    body = partial(_attend_part if parts > 1 else _attend_all, attend, mask.window)
    who = (P(examples), _if_any(mask.segment_BS, P(examples, time)), _if_any(mask.place_BT, P(examples)))
    told = Tokens(of_tokens, of_tokens, P(examples), _if_any(tokens.segment_BG, P(examples)))
    # No checks of what varies: loops inside begin with zeros, which do not, and go on with what does.
    split = jax.shard_map(body, in_specs=(qkv, qkv, qkv, who, told), out_specs=qkv, check_vma=False)
    return split(q_BTHK, k_BSHK, v_BSHK, mask[1:], tokens)


def with_halo(x_BTX, left: int, right: int):
    """A device's stretch of time with `left` and `right` frames of its neighbours'; zeros beyond the ends."""
    parts = jax.lax.axis_size(TIME)
    onwards = [(part, part + 1) for part in range(parts - 1)]
    back = [(part + 1, part) for part in range(parts - 1)]
    before = jax.lax.ppermute(x_BTX[:, x_BTX.shape[1] - left :], TIME, onwards)
    after = jax.lax.ppermute(x_BTX[:, :right], TIME, back)
    return jnp.concatenate([before, x_BTX, after], axis=1)


def _attend_all(attend, window, q_BTHK, k_BSHK, v_BSHK, who, tokens):
    return attend(q_BTHK, k_BSHK, v_BSHK, Mask(window, *who), tokens)


def _attend_part(attend, window, q_BTHK, k_BSHK, v_BSHK, who, tokens):
    """Attention of one stretch of time. What lies beyond the recording's ends is a segment of its own."""
    frames_B, segment_BS, _ = who
    batch, n_frames = q_BTHK.shape[:2]
    left, right = window
    first = jax.lax.axis_index(TIME) * n_frames - left
    if segment_BS is None:
        segment_BS = jnp.zeros((batch, n_frames), jnp.int32)
    if tokens.segment_BG is None:
        tokens = tokens._replace(segment_BG=jnp.zeros(tokens.valid_BG.shape, jnp.int32))
    tokens = tokens._replace(segment_BG=tokens.segment_BG + 1)
    k, v, segment = (with_halo(x, left, right) for x in (k_BSHK, v_BSHK, segment_BS + 1))
    q = jnp.pad(q_BTHK, ((0, 0), (left, right), (0, 0), (0, 0)))
    mask = Mask(window, jnp.clip(frames_B - first, 0, q.shape[1]), segment)
    return attend(q, k, v, mask, tokens)[:, left : left + n_frames]


def _if_any(x, spec: P):
    return None if x is None else spec
