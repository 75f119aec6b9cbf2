"""Masks to try every kind of attention on, and what it must give: plain NumPy in float64, query by query."""

from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editjax.attention import Mask, Tokens, Window, attend


class Case(NamedTuple):
    """Inputs of one attention: arrays (batch, rows, heads, head width), and who sees whom."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mask: Mask
    tokens: Tokens

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What gradients are taken of: q, k, v and those of the tokens."""
        return (self.q, self.k, self.v, *self.tokens[:2])

    def attend(self, kind: str, *arrays: Any, **options: Any) -> Any:
        """The attention of a kind, at the case's own arrays or at others of their shapes."""
        q, k, v, global_k, global_v = arrays or self.arrays
        tokens = self.tokens._replace(k_BGHK=global_k, v_BGHK=global_v)
        if options:
            body = getattr(import_module(f"editjax.attention.{kind}"), f"attend_{kind}")
            return body(q, k, v, self.mask, tokens, **options)
        return attend(q, k, v, self.mask, tokens, kind=kind)


def draw(
    frames: int,
    window: Window,
    *,
    tokens: int = 5,
    packed: bool = False,
    queries: int | None = None,
    heads: int = 2,
    head: int = 8,
    dtype: Any = np.float32,
) -> Case:
    """Two examples, the second with fewer valid frames and tokens; what lies beyond is NaN.

    packed: three examples in one, of unequal length. queries: places drawn at random, some outside.
    """
    rng = np.random.default_rng(frames)
    frames_B = np.array([frames, max(1, frames - 40)], np.int32)
    segment_BS = segment_BG = place_BT = None
    if packed:
        segment_S = np.searchsorted([frames // 5, frames // 2], np.arange(frames), side="right")
        segment_BS = np.stack([segment_S, np.maximum(segment_S, 1)]).astype(np.int32)
        segment_BG = np.tile(np.arange(tokens) % 3, (2, 1)).astype(np.int32)
    if queries:
        place_BT = rng.integers(-3, frames + 3, (2, queries)).astype(np.int32)
    rows = (queries or frames, frames, frames, tokens, tokens)
    q, k, v, global_k, global_v = (rng.normal(size=(2, n, heads, head)).astype(dtype) for n in rows)
    valid_BG = (np.arange(tokens) < np.array([[tokens], [2]])) & (np.arange(tokens) != 1)
    padding_BS = np.arange(frames) >= frames_B[:, None]
    k[padding_BS] = v[padding_BS] = global_k[~valid_BG] = global_v[~valid_BG] = np.nan
    if queries is None:
        q[padding_BS] = np.nan
    mask = Mask(window, frames_B, segment_BS, place_BT)
    return Case(q, k, v, mask, Tokens(global_k, global_v, valid_BG, segment_BG))


def seen_by(case: Case, example: int, query: int) -> tuple[list[int], np.ndarray]:
    """The frames and the tokens that one query sees, from the definition."""
    window, frames_B, segment_BS, place_BT = case.mask
    _, _, valid_BG, segment_BG = case.tokens
    place = query if place_BT is None else place_BT[example, query]
    if not 0 <= place < frames_B[example]:
        return [], np.array([], int)
    around = range(max(0, place - window.left), min(frames_B[example], place + window.right + 1))
    if segment_BS is None:
        return list(around), np.flatnonzero(valid_BG[example])
    own = segment_BS[example, place]
    frames = [s for s in around if segment_BS[example, s] == own]
    return frames, np.flatnonzero(valid_BG[example] & (segment_BG[example] == own))


def reference(case: Case, d_out: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The attention in float64, and the gradients of its product with `d_out`, one per array."""
    q, k, v, global_k, global_v = (np.asarray(a, np.float64) for a in case.arrays)
    d_out = np.asarray(d_out, np.float64)
    out, gradients = np.zeros_like(q), [np.zeros_like(a) for a in (q, k, v, global_k, global_v)]
    dq, dk, dv, d_global_k, d_global_v = gradients
    scale = q.shape[-1] ** -0.5
    for b, t in np.ndindex(q.shape[:2]):
        near, far = seen_by(case, b, t)
        for h in range(q.shape[2] if near else 0):
            keys = np.concatenate([k[b, near, h], global_k[b, far, h]])
            values = np.concatenate([v[b, near, h], global_v[b, far, h]])
            logits = keys @ q[b, t, h] * scale
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            out[b, t, h] = weights @ values
            d_weights = values @ d_out[b, t, h]
            d_logits = weights * (d_weights - weights @ d_weights) * scale
            dq[b, t, h] = d_logits @ keys
            d_keys, d_values = np.outer(d_logits, q[b, t, h]), np.outer(weights, d_out[b, t, h])
            dk[b, near, h] += d_keys[: len(near)]
            dv[b, near, h] += d_values[: len(near)]
            d_global_k[b, far, h] += d_keys[len(near) :]
            d_global_v[b, far, h] += d_values[len(near) :]
    return out, gradients


def value_and_gradients(
    case: Case, kind: str, d_out: np.ndarray, **options: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The attention of a kind, and the gradients of its product with `d_out`."""

    def both(arrays: tuple[Any, ...], d_out: Any) -> tuple[Any, tuple[Any, ...]]:
        out, pull = jax.vjp(lambda *arrays: case.attend(kind, *arrays, **options), *arrays)
        return out, pull(d_out)

    return jax.jit(both)(case.arrays, jnp.asarray(d_out))
