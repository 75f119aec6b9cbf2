"""Spans of equal length, as beats and bars are: from their frames to them, and back.

Where a mesh splits time into parts that are no multiples of a span, XLA would gather the sequence on every
device. Here each device reduces the spans that begin in its part, for which it needs less than a span of its
neighbour's frames, and every device gets the results. Only spans that are longer than a part are left to XLA.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from editjax.mesh import EXAMPLES, TIME, split_over
from editjax.models.layers import frame_mask
from editjax.models.rows import time_parts


def over_spans(reduce: Callable, size: int, *arrays) -> jax.Array:
    """`reduce` of arrays (B, T, …) by spans, (B, V, size, …) each with V = ceil(T / size), the last filled up
    with zeros: one array of numbers, (B, V, …)."""
    n_frames = arrays[0].shape[1]
    if not _are_cut(size, n_frames):
        return reduce(*(_spans(x, size) for x in arrays))
    examples = _examples(len(arrays[0]))
    reduce_own = partial(_reduce_own, reduce, size, -(-n_frames // size))
    split, whole = PartitionSpec(examples, TIME), PartitionSpec(examples)
    return jax.shard_map(reduce_own, in_specs=(split,) * len(arrays), out_specs=whole)(*arrays)


def pool(x_BTD, frames_B, size: int):
    """Mean and maximum over spans of `size` frames, (B, ceil(T / size), 2D); empty spans are zero."""

    def both(x_BVSD, mask_BVS1):
        count_BV1 = mask_BVS1.sum(2).astype(x_BVSD.dtype)
        mean = jnp.where(mask_BVS1, x_BVSD, 0.0).sum(2) / jnp.maximum(count_BV1, 1.0)
        top = jnp.where(count_BV1 > 0, jnp.where(mask_BVS1, x_BVSD, -jnp.inf).max(2), 0.0)
        return jnp.concatenate([mean, top], axis=-1)

    return over_spans(both, size, x_BTD, frame_mask(frames_B, x_BTD.shape[1])[..., None])


def spread(x_BVX, size: int, n_frames: int):
    """The entry of each of ceil(T / size) spans for all its frames, (B, T, …)."""
    if not _are_cut(size, n_frames):
        return jnp.repeat(x_BVX, size, axis=1)[:, :n_frames]
    examples = _examples(len(x_BVX))
    whole, split = PartitionSpec(examples), PartitionSpec(examples, TIME)
    return jax.shard_map(partial(_spread_own, size, n_frames), in_specs=whole, out_specs=split)(x_BVX)


def _are_cut(size: int, n_frames: int) -> bool:
    """Whether the devices that time is split over share spans, none of which is longer than a part."""
    length = n_frames // (parts := time_parts(n_frames))
    return parts > 1 and length % size > 0 and size <= length


def _examples(batch: int) -> Any:
    return split_over(jax.sharding.get_abstract_mesh(), EXAMPLES, batch)


def _spans(x_BTX, size: int):
    batch, n_frames, *rest = x_BTX.shape
    n_spans = -(-n_frames // size)
    x_BTX = jnp.pad(x_BTX, ((0, 0), (0, n_spans * size - n_frames), *[(0, 0)] * len(rest)))
    return x_BTX.reshape(batch, n_spans, size, *rest)


def _reduce_own(reduce: Callable, size: int, n_spans: int, *arrays):
    """The spans that begin in this device's part, among zeros, and the sum of that of all devices."""
    parts, length = jax.lax.axis_size(TIME), arrays[0].shape[1]
    start = jax.lax.axis_index(TIME) * length
    first, most = -(-start // size), -(-length // size)
    from_next = [(part, part - 1) for part in range(1, parts)]

    def own(x_BTX):
        after = jax.lax.ppermute(x_BTX[:, : size - 1], TIME, from_next)
        longer = jnp.concatenate([x_BTX, after], axis=1)
        longer = jnp.pad(longer, ((0, 0), (0, most * size - length), *[(0, 0)] * (x_BTX.ndim - 2)))
        return _spans(jax.lax.dynamic_slice_in_dim(longer, first * size - start, most * size, 1), size)

    found = reduce(*map(own, arrays))
    begins_V = first + jnp.arange(most) < -(-(start + length) // size)
    found = jnp.where(begins_V.reshape(1, -1, *[1] * (found.ndim - 2)), found, 0)
    whole = jnp.zeros((len(found), n_spans + most, *found.shape[2:]), found.dtype)
    whole = jax.lax.dynamic_update_slice_in_dim(whole, found, first, 1)
    return jax.lax.psum(whole[:, :n_spans], TIME)


def _spread_own(size: int, n_frames: int, x_BVX):
    length = n_frames // jax.lax.axis_size(TIME)
    start, most = jax.lax.axis_index(TIME) * length, -(-length // size) + 1
    own_BVX = jax.lax.pcast(x_BVX, TIME, to="varying")  # here, so that no padding's gradient is summed
    longer = jnp.pad(own_BVX, ((0, 0), (0, most), *[(0, 0)] * (x_BVX.ndim - 2)))
    seen = jnp.repeat(jax.lax.dynamic_slice_in_dim(longer, start // size, most, 1), size, axis=1)
    return jax.lax.dynamic_slice_in_dim(seen, start % size, length, 1)
