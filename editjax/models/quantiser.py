"""Residual vector quantisation: each codebook codes what those before it left (Zeghidour et al. 2021).

Latents (B, T, D) ↔ codes (B, Q, T). The codebooks move without a gradient (`models.codebook`): {"code_QKD",
"count_QK"}, the codes and the moving averages of how many vectors chose each.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from editjax.models.codebook import Codebook, learned
from editjax.models.codebook import quantise as nearest

FIRST_SCALE = 0.01
"""Of fresh codes, which nothing has chosen: the first batch takes their places."""


class Stages(NamedTuple):
    """What every codebook made of latents: what it was given and what it said of it, (Q, B, T, D), without
    gradients through what those before it said."""

    given_QBTD: jax.Array
    said_QBTD: jax.Array


def init_quantiser(codebooks: int, codes: int, dimension: int, key) -> dict[str, jax.Array]:
    """Fresh codebooks, which any batch replaces."""
    code_QKD = FIRST_SCALE * jax.random.normal(key, (codebooks, codes, dimension))
    return {"code_QKD": code_QKD, "count_QK": jnp.zeros((codebooks, codes))}


def quantise(books: dict[str, Any], latents_BTD, codebooks: int):
    """Codes (B, Q, T) int32 of latents by the first `codebooks` of the books."""

    def code(left_ND, book):
        found = nearest(_book(*book), left_ND)
        return left_ND - found.code_NZ, found.chosen_N

    flat_ND = latents_BTD.reshape(-1, latents_BTD.shape[-1])
    _, chosen_QN = jax.lax.scan(code, flat_ND, _first(books, codebooks))
    return jnp.swapaxes(chosen_QN.reshape(-1, *latents_BTD.shape[:2]), 0, 1)


def dequantise(books: dict[str, Any], codes_BQT):
    """Latents (B, T, D) of the codes of the first Q books."""

    def add(sum_BTD, book_codes):
        code_KD, chosen_BT = book_codes
        return sum_BTD + code_KD[chosen_BT], None

    code_QKD = books["code_QKD"][: codes_BQT.shape[1]]
    nothing_BTD = jnp.zeros((codes_BQT.shape[0], codes_BQT.shape[2], code_QKD.shape[-1]))
    return jax.lax.scan(add, nothing_BTD, (code_QKD, jnp.swapaxes(codes_BQT, 0, 1)))[0]


def stages_of(books: dict[str, Any], latents_BTD) -> Stages:
    """Latents through every codebook, with what a loss wants to know of each."""

    def code(left_BTD, book):
        flat_ND = left_BTD.reshape(-1, left_BTD.shape[-1])
        said_BTD = jax.lax.stop_gradient(nearest(_book(*book), flat_ND).code_NZ.reshape(left_BTD.shape))
        return left_BTD - said_BTD, Stages(left_BTD, said_BTD)

    return jax.lax.scan(code, latents_BTD, (books["code_QKD"], books["count_QK"]))[1]


def moved(books: dict[str, Any], latents_BTD, key) -> dict[str, jax.Array]:
    """The codebooks after a batch of latents; each learns from what the one before, having learned, leaves.

    So even the first batch gives every codebook vectors of the size that it will have to code.
    """

    def learn(left_ND, book_key):
        code_KD, count_K, own = book_key
        book = _book(code_KD, count_K)
        counted_N = jnp.ones(left_ND.shape[0], bool)
        new = learned(book, left_ND, nearest(book, left_ND).chosen_N, counted_N, own)
        return left_ND - nearest(new, left_ND).code_NZ, (new.code_KZ, new.count_K)

    flat_ND = jax.lax.stop_gradient(latents_BTD).reshape(-1, latents_BTD.shape[-1])
    keys = jax.random.split(key, len(books["code_QKD"]))
    _, (code_QKD, count_QK) = jax.lax.scan(learn, flat_ND, (books["code_QKD"], books["count_QK"], keys))
    return {"code_QKD": code_QKD, "count_QK": count_QK}


def _first(books: dict[str, Any], codebooks: int) -> tuple[jax.Array, jax.Array]:
    return books["code_QKD"][:codebooks], books["count_QK"][:codebooks]


def _book(code_KD, count_K) -> Codebook:
    """Codes are the means of what chose them, so that their sums need not be kept."""
    return Codebook(code_KD, count_K, code_KD * count_K[:, None])
