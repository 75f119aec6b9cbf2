"""Masks to try every kind of attention on, and what it must give: plain NumPy in float64, loop by loop."""

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
    tokens: Tokens | None

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What gradients are taken of: q, k, v and, where there are tokens, theirs."""
        return (self.q, self.k, self.v, *(self.tokens[:2] if self.tokens else ()))

    def attend(self, kind: str, *arrays: Any) -> Any:
        """The attention of a kind, at the case's own arrays or at others of their shapes."""
        q, k, v, *global_kv = arrays or self.arrays
        tokens = self.tokens._replace(k_BGHK=global_kv[0], v_BGHK=global_kv[1]) if self.tokens else None
        return attend(q, k, v, self.mask, tokens, kind=kind)


def draw(
    frames: int,
    window: Window,
    *,
    tokens: int = 5,
    packed: bool = False,
    queries: int | None = None,
    head: int = 8,
    dtype: Any = np.float32,
    poison: float = np.nan,
) -> Case:
    """Two examples, the second with fewer valid frames and tokens; what lies beyond is `poison`.

    packed: three examples in one, of unequal length. queries: places drawn at random, some outside.
    """
    rng = np.random.default_rng(frames)
    heads, frames_B = 2, np.array([frames, max(1, frames - 40)], np.int32)
    segment_BS = np.searchsorted([frames // 5, frames // 2], np.arange(frames), side="right").astype(np.int32)
    segment_BS = np.stack([segment_BS, np.maximum(segment_BS, 1)]) if packed else None
    place_BT = rng.integers(-3, frames + 3, (2, queries)).astype(np.int32) if queries else None

    def normal(rows: int) -> np.ndarray:
        return rng.normal(size=(2, rows, heads, head)).astype(dtype)

    q, k, v, global_k, global_v = (
        normal(queries or frames),
        *(normal(n) for n in (frames, frames, tokens, tokens)),
    )
    valid_BG = np.arange(tokens) < np.array([[tokens], [2]])
    valid_BG[0, 1:2] = False
    for example in range(2):
        k[example, frames_B[example] :] = v[example, frames_B[example] :] = poison
        if queries is None:
            q[example, frames_B[example] :] = poison
        global_k[example, ~valid_BG[example]] = global_v[example, ~valid_BG[example]] = poison
    segment_BG = np.tile(np.arange(tokens) % 3, (2, 1)).astype(np.int32) if packed else None
    mask = Mask(window, frames_B, segment_BS, place_BT)
    return Case(q, k, v, mask, Tokens(global_k, global_v, valid_BG, segment_BG) if tokens else None)


def seen_by(case: Case, example: int, query: int) -> tuple[list[int], list[int]]:
    """The frames and the tokens that one query sees, from the definition."""
    window, frames_B, segment_BS, place_BT = case.mask
    place = query if place_BT is None else place_BT[example, query]
    if not 0 <= place < frames_B[example]:
        return [], []
    around = range(max(0, place - window.left), min(frames_B[example], place + window.right + 1))
    frames = [s for s in around if segment_BS is None or segment_BS[example, s] == segment_BS[example, place]]
    if case.tokens is None:
        return frames, []
    _, _, valid_BG, segment_BG = case.tokens
    own = segment_BG is None or segment_BG[example] == segment_BS[example, place]
    return frames, list(np.flatnonzero(valid_BG[example] & own))


def reference(case: Case, d_out: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The attention in float64, and the gradients of its product with `d_out`, one per array."""
    arrays = [np.asarray(a, np.float64) for a in case.arrays]
    out, gradients = np.zeros_like(arrays[0]), [np.zeros_like(a) for a in arrays]
    q, k, v, *global_kv = arrays
    dq, dk, dv, *d_global_kv = gradients
    for b, t in np.ndindex(q.shape[:2]):
        near, far = seen_by(case, b, t)
        if not near:
            continue
        for h in range(q.shape[2]):
            keys, values = k[b, near, h], v[b, near, h]
            if global_kv:
                keys, values = (np.concatenate([x, g[b, far, h]]) for x, g in zip((keys, values), global_kv))
            logits = keys @ q[b, t, h] / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            out[b, t, h] = weights @ values
            d_weights = values @ d_out[b, t, h]
            d_logits = weights * (d_weights - weights @ d_weights) / np.sqrt(q.shape[-1])
            dq[b, t, h] = d_logits @ keys
            d_keys, d_values = np.outer(d_logits, q[b, t, h]), np.outer(weights, d_out[b, t, h])
            for d, d_far, d_all in zip((dk, dv), d_global_kv or (None, None), (d_keys, d_values)):
                d[b, near, h] += d_all[: len(near)]
                if global_kv:
                    d_far[b, far, h] += d_all[len(near) :]
    return out, gradients


def value_and_gradients(
    case: Case, kind: str, d_out: np.ndarray, **options: Any
) -> tuple[Any, tuple[Any, ...]]:
    """The attention of a kind, and the gradients of its product with `d_out`."""

    def both(arrays: tuple[Any, ...], d_out: Any) -> tuple[Any, tuple[Any, ...]]:
        out, pull = jax.vjp(lambda *arrays: case.attend(kind, *arrays, **options), *arrays)
        return out, pull(d_out)

    return jax.jit(both)(case.arrays, jnp.asarray(d_out))
