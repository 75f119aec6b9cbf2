"""A codebook learned without a gradient: nearest codes, moving averages, revival of dead codes.

Vector quantisation: van den Oord, Vinyals and Kavukcuoglu 2017, with the averages of its appendix A.1; codes
that nothing uses begin again at what is there to be coded (Dhariwal et al. 2020, Jukebox).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

DECAY = 0.99
DEAD = 0.05
"""A code is dead where it gets less than this share of an even part of the vectors."""


class Codebook(NamedTuple):
    """`code_KZ`; `count_K`, `total_KZ`: moving averages of how many vectors chose it, and of their sum."""

    code_KZ: jax.Array
    count_K: jax.Array
    total_KZ: jax.Array


class Quantised(NamedTuple):
    """`code_NZ`: the nearest codes; `chosen_N` their numbers."""

    code_NZ: jax.Array
    chosen_N: jax.Array


def init_codebook(codes: int, width: int, key) -> dict[str, jax.Array]:
    """Fresh codes, drawn at random; every one is alive."""
    code_KZ = jax.random.normal(key, (codes, width))
    return Codebook(code_KZ, jnp.ones(codes), code_KZ)._asdict()


def quantise(book: Codebook, z_NZ) -> Quantised:
    """The code nearest to every vector (N, Z)."""
    z_NZ = z_NZ.astype(jnp.float32)
    distance_NK = (book.code_KZ**2).sum(-1)[None] - 2.0 * z_NZ @ book.code_KZ.T
    chosen_N = jnp.argmin(distance_NK, -1)
    return Quantised(book.code_KZ[chosen_N], chosen_N)


def straight_through(z, code):
    """The code, whose gradient is the vector's (Bengio, Léonard and Courville 2013)."""
    return z + jax.lax.stop_gradient(code - z)


def learned(book: Codebook, z_NZ, chosen_N, counted_N, key) -> Codebook:
    """The codebook after a batch: codes move to the mean of what chose them; dead ones begin again.

    `counted_N` leaves out padding. A dead code becomes a vector of the batch, drawn with `key`; a batch
    without any vector changes nothing.
    """
    z_NZ, codes = z_NZ.astype(jnp.float32), book.code_KZ.shape[0]
    weight_N = counted_N.astype(jnp.float32)
    count_K = jax.ops.segment_sum(weight_N, chosen_N, codes)
    total_KZ = jax.ops.segment_sum(weight_N[:, None] * z_NZ, chosen_N, codes)
    count_K = DECAY * book.count_K + (1.0 - DECAY) * count_K
    total_KZ = DECAY * book.total_KZ + (1.0 - DECAY) * total_KZ
    dead_K1 = (count_K < DEAD * count_K.mean())[:, None]
    p_N = weight_N / jnp.maximum(weight_N.sum(), 1.0)
    drawn_K = jax.random.categorical(key, jnp.log(jnp.maximum(p_N, 1e-30))[None], shape=(codes,))
    code_KZ = jnp.where(dead_K1, z_NZ[drawn_K], total_KZ / jnp.maximum(count_K, 1e-6)[:, None])
    alive = jnp.where(dead_K1[:, 0], count_K.mean(), count_K)
    new = Codebook(code_KZ, alive, code_KZ * alive[:, None])
    return jax.tree.map(lambda a, b: jnp.where(weight_N.sum() > 0, a, b), new, book)


def usage(count_K):
    """(share of codes that are alive, perplexity) of moving counts (K,)."""
    p_K = count_K / count_K.sum()
    perplexity = jnp.exp(-(p_K * jnp.log(jnp.maximum(p_K, 1e-30))).sum())
    return (count_K >= DEAD * count_K.mean()).astype(jnp.float32).mean(), perplexity
