"""What a query may see, as data: one stretch of keys, and the tokens of its own segment.

A query stands at a frame: its own in self-attention, the one a pointer names in cross-attention. It sees the
valid frames of the window around that place, none beyond the segment of that place, and the global tokens of
that segment. Segments are contiguous, so that the frames it sees are always one stretch: every kind of
attention reads the same `Sight`, whatever the mask was made of.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NOWHERE = -2  # the segment of a query that stands outside the valid frames: it sees nothing
NOBODY = -1  # the segment of a token that is not valid: nothing sees it


class Window(NamedTuple):
    """Frames visible from frame t: t − left … t + right, both included (static); causal when right is 0."""

    left: int
    right: int


class Mask(NamedTuple):
    """Who sees which frames; the window is static, the rest are arrays.

    frames: int32, each example's valid frames (keys); what lies beyond is padding and may hold anything.
    segment: int32 ≥ 0 per key, one number per packed example, each a contiguous run; None: one example.
    place: int32 per query, the frame it stands at; None: query t stands at frame t. A query that stands
    outside the valid frames sees nothing and gives zero.
    """

    window: Window
    frames_B: Any
    segment_BS: Any = None
    place_BT: Any = None


class Tokens(NamedTuple):
    """Global tokens, seen from everywhere in their segment: summaries of bars, landmarks, strided frames.

    k, v: (batch, tokens, heads, head width); valid: bool (batch, tokens), the rest may hold anything.
    """

    k_BGHK: Any
    v_BGHK: Any
    valid_BG: Any
    segment_BG: Any = None

    @property
    def owner_BG(self):
        """The segment that sees each token, `NOBODY` where it is not valid."""
        segment_BG = jnp.zeros_like(self.valid_BG, jnp.int32) if self.segment_BG is None else self.segment_BG
        return jnp.where(self.valid_BG, segment_BG, NOBODY)


class Sight(NamedTuple):
    """Each query sees the keys first … stop − 1 and the tokens of its segment; int32 (batch, queries)."""

    first_BT: Any
    stop_BT: Any
    segment_BT: Any


def sight(mask: Mask, n_queries: int, n_keys: int) -> Sight:
    """The mask as one stretch per query. Raises ValueError where queries have neither frames nor places."""
    if mask.place_BT is None and n_queries != n_keys:
        raise ValueError(f"{n_queries} queries among {n_keys} keys: give the frame each stands at (place_BT)")
    batch, frames_B1 = mask.frames_B.shape[0], mask.frames_B[:, None]
    own_BT = jnp.broadcast_to(jnp.arange(n_queries, dtype=jnp.int32)[None, :], (batch, n_queries))
    place_BT = own_BT if mask.place_BT is None else mask.place_BT
    first_BT = jnp.maximum(place_BT - mask.window.left, 0)
    stop_BT = jnp.minimum(place_BT + mask.window.right + 1, frames_B1)
    segment_BT = jnp.zeros_like(place_BT)
    if mask.segment_BS is not None:
        here_BT = jnp.clip(place_BT, 0, n_keys - 1)
        start_BS, end_BS = _runs(mask.segment_BS)
        of_place = (jnp.take_along_axis(x, here_BT, axis=1) for x in (start_BS, end_BS, mask.segment_BS))
        start_BT, end_BT, segment_BT = of_place
        first_BT, stop_BT = jnp.maximum(first_BT, start_BT), jnp.minimum(stop_BT, end_BT)
    valid_BT = (place_BT >= 0) & (place_BT < frames_B1)
    return Sight(
        jnp.where(valid_BT, first_BT, 0),
        jnp.where(valid_BT, stop_BT, 0),
        jnp.where(valid_BT, segment_BT, NOWHERE),
    )


def _runs(segment_BS):
    """Where the run of equal numbers around each key begins, and where it ends (one past it)."""
    n_keys = segment_BS.shape[1]
    position_1S = jnp.arange(n_keys, dtype=jnp.int32)[None, :]
    new_BS = jnp.pad(segment_BS[:, 1:] != segment_BS[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    last_BS = jnp.pad(new_BS[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    start_BS = jax.lax.cummax(jnp.where(new_BS, position_1S, 0), axis=1)
    return start_BS, jax.lax.cummin(jnp.where(last_BS, position_1S + 1, n_keys), axis=1, reverse=True)


def sees_frames(sight: Sight, place):
    """Which keys each query sees, (batch, query, key); `place` has theirs, (…, key), shared or per query."""
    return (place >= sight.first_BT[..., None]) & (place < sight.stop_BT[..., None])


def sees_tokens(sight: Sight, owner_BG):
    """Which tokens each query sees, (batch, query, token)."""
    return sight.segment_BT[:, :, None] == owner_BG[:, None, :]


def zero_unseen(x_BSHK, seen_BS):
    """Zero what nobody may see: NaN there would leak through 0 · NaN."""
    return jnp.where(seen_BS[:, :, None, None], x_BSHK, jnp.zeros((), x_BSHK.dtype))


def wide(dtype):
    """The type that sums are kept in: float32, or float64 for float64."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32
