"""Rows of a sequence, whichever device holds them.

A pointer may lead to any frame. Where a mesh splits time XLA would gather the sequence, or all that is read
of it, on every device; here its stretches go round instead, as the keys do in ring attention (Liu et al.
2023): each device holds its own and one of the others' at a time, and reads what it asks of that one.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from editjax.mesh import EXAMPLES, TIME, split_over

FEW = 8
"""Where fewer rows are asked for than one of so many, these move instead: XLA does it well."""


def take(x_BTD, index_BN):
    """Rows of each example at `index`, (B, N, D); indices outside give zero."""
    (batch, n_rows, _), n_places = x_BTD.shape, index_BN.shape[1]
    if (parts := time_parts(n_rows, n_places)) == 1 or n_places * FEW < n_rows:
        return _rows(x_BTD, index_BN)
    split = PartitionSpec(split_over(jax.sharding.get_abstract_mesh(), EXAMPLES, batch), TIME)
    go_round = partial(_rows_in_turn, parts)
    return jax.shard_map(go_round, in_specs=(split, split), out_specs=split, check_vma=False)(x_BTD, index_BN)


def pick(x_BT, index_B):
    """Numbers of each example at `index`, (B, ...); indices outside give zero."""
    return take(x_BT[..., None], index_B.reshape(index_B.shape[0], -1)).reshape(index_B.shape)


def time_parts(*lengths: int) -> int:
    """Over how many devices the mesh splits times of these lengths: 1 where it does not divide them all."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape.get(TIME, 1) if all(split_over(mesh, TIME, length) for length in lengths) else 1


def _rows(x_BTD, index_BN):
    inside = (index_BN >= 0) & (index_BN < x_BTD.shape[1])
    rows = jnp.take_along_axis(x_BTD, jnp.where(inside, index_BN, 0)[..., None], axis=1)
    return jnp.where(inside[..., None], rows, jnp.zeros((), x_BTD.dtype))


def _rows_in_turn(parts: int, x_BTD, index_BN):
    """What a device reads of all stretches: of its own first, then of that of the device after it, and on."""
    own, size = jax.lax.axis_index(TIME), x_BTD.shape[1]
    onwards = [(part, (part - 1) % parts) for part in range(parts)]
    rows = _rows(x_BTD, index_BN - own * size)
    for turn in range(1, parts):
        x_BTD = jax.lax.ppermute(x_BTD, TIME, onwards)
        found = _rows(x_BTD, index_BN - (own + turn) % parts * size)
        rows = rows | found if rows.dtype == bool else rows + found
    return rows
