"""What a decoding step attends to: the steps before it, the landmarks around its pointer, and all bars.

Each of the two branches has two forms that give the same: all steps at once, as training needs them, and the
next few steps of a decoding that runs.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.attention import Mask, Window, attend
from editjax.models.layers import Heads, Norm, in_chunks, rotary, turned, turns
from editjax.models.rows import take, time_parts

NEVER = -1e9
STEP_CHUNK = 12_288
"""Steps whose cross attention is computed at once: more than a crop has, so that only longer edits differ."""


def scores(q_BHNK, k_BHSK):
    """Scaled dot products, (B, H, N, S) float32."""
    products = jnp.einsum("bhnk,bhsk->bhns", q_BHNK, k_BHSK, preferred_element_type=jnp.float32)
    return products * q_BHNK.shape[-1] ** -0.5


def weighted(groups):
    """Values weighted by one softmax over several groups of keys, (B, H, N, K).

    Groups are pairs of logits (B, H, N, S) and values (B, H, S, K), which are not concatenated.
    """
    peak = jnp.stack([jnp.max(logits, axis=-1) for logits, _ in groups]).max(0)[..., None]
    weights = [jnp.exp(logits - peak) for logits, _ in groups]
    total = sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)
    out = sum(
        jnp.einsum("bhns,bhsk->bhnk", w.astype(v.dtype), v, preferred_element_type=jnp.float32)
        for w, (_, v) in zip(weights, groups, strict=True)
    )
    return (out / total).astype(groups[0][1].dtype)


class CrossAttention(nn.Module):
    """Residual branch: the landmarks around the pointer, and all bars of the recording, pooled if many."""

    settings: Any

    def setup(self):
        s = self.settings
        dtype = jnp.dtype(s.dtype)
        self.norm = Norm(dtype, name="norm")
        self.query = nn.Dense(s.width, dtype=dtype, name="query")
        self.around = nn.Dense(2 * s.width, dtype=dtype, name="around")
        self.bars = nn.Dense(2 * s.width, dtype=dtype, name="bars")
        self.out = nn.Dense(s.width, dtype=dtype, name="out")
        span = s.look_back + 1 + s.look_ahead
        self.offset = self.param("offset", nn.initializers.normal(0.02), (s.heads, span))

    def keys(self, landmarks_BLD, bars_BGD, position_BG):
        """Keys and values of landmarks and pooled bars, the bars' keys rotated by their position."""
        k, v = (self._heads(a) for a in jnp.split(self.bars(bars_BGD), 2, -1))
        bars = jnp.swapaxes(rotary(k, position_BG), 1, 2), jnp.swapaxes(v, 1, 2)
        return self.around(landmarks_BLD), bars

    def __call__(self, x_BND, pointer_BN, around_BLE, bars, bars_valid_BG, n_frames_B):
        """Steps with any pointers."""
        q_BNHK = self._heads(self.query(self.norm(x_BND)))
        offset_HW = self.offset
        if (parts := time_parts(around_BLE.shape[1], x_BND.shape[1])) > 1:
            near = partial(self._fetched, around_BLE)
        else:
            near = partial(self._sliced, [self._extended(a) for a in jnp.split(around_BLE, 2, -1)])

        def attended(q_BNHK, pointer_BN):
            return self._attended(q_BNHK, pointer_BN, offset_HW, near, bars, bars_valid_BG, n_frames_B)

        return self.out(in_chunks(attended, parts * STEP_CHUNK, q_BNHK, pointer_BN).reshape(x_BND.shape))

    def _attended(self, q_BNHK, pointer_BN, offset_HW, near, bars, bars_valid_BG, n_frames_B):
        s, (far_k, far_v) = self.settings, bars
        offsets_W = jnp.arange(-s.look_back, s.look_ahead + 1)
        place_BNW = jnp.maximum(pointer_BN, 0)[..., None] // s.landmark_frames + offsets_W[None, None, :]
        n_landmarks_B = -(-n_frames_B // s.landmark_frames)
        seen_BNW = (place_BNW >= 0) & (place_BNW < n_landmarks_B[:, None, None])
        near_k, near_v = near(place_BNW)
        scale = q_BNHK.shape[-1] ** -0.5
        near_logits = jnp.einsum("bnhk,bnhwk->bnhw", q_BNHK, near_k, preferred_element_type=jnp.float32)
        near_logits = near_logits * scale + offset_HW[None, None]
        near_logits = jnp.where(seen_BNW[:, :, None, :], near_logits, NEVER)
        q_far = rotary(q_BNHK, bar_position(pointer_BN, s))
        far_logits = jnp.einsum("bnhk,bhvk->bnhv", q_far, far_k, preferred_element_type=jnp.float32) * scale
        far_logits = jnp.where(bars_valid_BG[:, None, None, :], far_logits, NEVER)
        weights = jax.nn.softmax(jnp.concatenate([near_logits, far_logits], -1), axis=-1).astype(q_BNHK.dtype)
        span = near_logits.shape[-1]
        out = jnp.einsum("bnhw,bnhwk->bnhk", weights[..., :span], near_v)
        return out + jnp.einsum("bnhv,bhvk->bnhk", weights[..., span:], far_v)

    def run(self, x_BND, pointer_BN, bar_turns, around_BLE, bars, bars_valid_BG, n_frames_B):
        """The same for pointers that advance from step to step: they share one slice of the landmarks."""
        s, (far_k, far_v) = self.settings, bars
        q_BNHK = self._heads(self.query(self.norm(x_BND)))
        q_BHNK, q_far = (jnp.swapaxes(q, 1, 2) for q in (q_BNHK, turned(q_BNHK, bar_turns)))
        place_BN = jnp.maximum(pointer_BN, 0) // s.landmark_frames
        near_k, near_v, offset_BNP = self._around(place_BN, around_BLE)
        place_BNP = place_BN[..., None] + offset_BNP
        seen_BNP = (place_BNP < -(-n_frames_B[:, None, None] // s.landmark_frames)) & (
            (offset_BNP >= -s.look_back) & (offset_BNP <= s.look_ahead)
        )
        bias_HBNP = jnp.take(self.offset, offset_BNP + s.look_back, axis=1, mode="clip")
        near = scores(q_BHNK, near_k) + jnp.swapaxes(bias_HBNP, 0, 1)
        near = jnp.where(seen_BNP[:, None], near, NEVER)
        far = jnp.where(bars_valid_BG[:, None, None, :], scores(q_far, far_k), NEVER)
        out_BHNK = weighted([(near, near_v), (far, far_v)])
        return self.out(jnp.swapaxes(out_BHNK, 1, 2).reshape(x_BND.shape))

    def _around(self, place_BN, around_BLE):
        """Keys and values (B, H, P, K) of all landmarks a run sees, and how far each is from each step."""
        s, n_steps = self.settings, place_BN.shape[1]
        span = s.look_back + 1 + s.look_ahead + -(-(n_steps - 1) // s.landmark_frames)
        span = min(span, around_BLE.shape[1])
        first_B = jnp.clip(place_BN[:, 0] - s.look_back, 0, around_BLE.shape[1] - span)
        cut = jax.vmap(lambda rows_LE, first: jax.lax.dynamic_slice_in_dim(rows_LE, first, span))
        k, v = (jnp.swapaxes(self._heads(a), 1, 2) for a in jnp.split(cut(around_BLE, first_B), 2, -1))
        place_BP = first_B[:, None] + jnp.arange(span)[None, :]
        return k, v, place_BP[:, None, :] - place_BN[..., None]

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], self.settings.heads, -1)

    def _extended(self, x_BLD):
        """By heads, with zeros for what is seen outside the recording, (B, H, back + L + ahead, K)."""
        around = ((0, 0), (0, 0), (self.settings.look_back, self.settings.look_ahead), (0, 0))
        return jnp.pad(jnp.swapaxes(self._heads(x_BLD), 1, 2), around)

    def _fetched(self, around_BLE, place_BNW):
        """Keys and values of what is seen, (B, N, H, W, K) each, whichever device has them; zeros outside."""
        rows_BNWE = take(around_BLE, place_BNW.reshape(len(place_BNW), -1)).reshape(*place_BNW.shape, -1)
        return (jnp.swapaxes(self._heads(a), 2, 3) for a in jnp.split(rows_BNWE, 2, -1))

    def _sliced(self, extended, place_BNW):
        """The same as slices of what `_extended` gave of keys and of values."""
        return (self._slices(a, place_BNW[..., 0]) for a in extended)

    def _slices(self, x_BHLK, first_BN):
        """Heads of what is seen from `first` on, (B, N, H, W, K): slices of what `_extended` gave, and in the
        order in which products read them, or XLA would turn them round in memory."""
        s = self.settings
        size = (s.heads, s.look_back + 1 + s.look_ahead, x_BHLK.shape[-1])

        def cut(x_HLK, first):
            return jax.lax.dynamic_slice(x_HLK, (0, first + s.look_back, 0), size)

        return jax.vmap(jax.vmap(cut, (None, 0)))(x_BHLK, first_BN)


class SelfAttention(nn.Module):
    """Residual branch over the last `decoder_window` steps; `step` reads the earlier of them from a cache."""

    settings: Any

    def setup(self):
        dtype = jnp.dtype(self.settings.dtype)
        self.norm = Norm(dtype, name="norm")
        heads = self.settings.heads
        self.qkv = Heads(3, heads, self.settings.width // heads, dtype, name="qkv")
        self.out = nn.Dense(self.settings.width, dtype=dtype, name="out")

    def __call__(self, x_BND, index_BN, steps_B):
        q, k, v = self._project(x_BND, turns(index_BN, self.settings.width // self.settings.heads))
        mask = Mask(Window(self.settings.decoder_window - 1, 0), steps_B)
        out = attend(q, k, v, mask, kind=self.settings.attention)
        return self.out(out.reshape(x_BND.shape))

    def step(self, x_BND, index_BN, index_turns, cache_BGWK):
        """The next N steps; the cache holds keys and values of the `decoder_window` steps before, by heads.

        Returns the branch (B, N, width) and the cache with the N steps after what it held, (B, G, W + N, K).
        """
        window, n_steps = self.settings.decoder_window, x_BND.shape[1]
        q_BHNK, k, v = (jnp.swapaxes(a, 1, 2) for a in self._project(x_BND, index_turns))
        longer_BGLK = jnp.concatenate([cache_BGWK, jnp.concatenate([k, v], axis=1)], axis=2)
        k_BHLK, v_BHLK = jnp.split(longer_BGLK, 2, axis=1)
        key_L, query_N = jnp.arange(-window, n_steps), jnp.arange(n_steps)
        near_NL = (key_L[None, :] <= query_N[:, None]) & (key_L[None, :] > query_N[:, None] - window)
        filled_BL = key_L[None, :] + index_BN[:, :1] >= 0
        seen_BNL = near_NL[None] & filled_BL[:, None, :]
        logits_BHNL = jnp.where(seen_BNL[:, None], scores(q_BHNK, k_BHLK), NEVER)
        out_BHNK = weighted([(logits_BHNL, v_BHLK)])
        return self.out(jnp.swapaxes(out_BHNK, 1, 2).reshape(x_BND.shape)), longer_BGLK

    def _project(self, x_BND, index_turns):
        q, k, v = self.qkv(self.norm(x_BND))
        return turned(q, index_turns), turned(k, index_turns), v


def bar_position(pointer_BN, settings: Any):
    """Where in the recording a pointer is, in bars."""
    return jnp.maximum(pointer_BN, 0).astype(jnp.float32) / settings.frames_per_bar
