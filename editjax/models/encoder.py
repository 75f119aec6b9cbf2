"""Raw mel → what the pointer decoder reads: frames, landmarks, beats and bars, each seeing all the others.

frames (43 a second) → landmarks (÷4) with windowed attention, bar globals and matches to other takes
→ back to frames, whose windowed attention settles the boundaries → pooled beats and bars for the pointers.
Every cost is linear in the length but the blockwise match, which keeps O(n) memory.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.attention import Window
from editjax.models.layers import Mlp, Norm, WindowAttention, frame_mask, masked
from editjax.models.level import LEVEL_CHANNELS, level_normalise
from editjax.models.match import STEP_FRAMES, Matches, find_matches, fingerprints

LANDMARK_FRAMES = 4
MATCH_CHANNELS = 6


class Encoded(NamedTuple):
    """What the decoder reads; all padding is zero.

    frames_BTD, landmarks_BLD, beats_BUD (43 frames each), bars_BVD (172 each); structure_BTS: logits of cut,
    keep, loop for every raw frame; log_length_B: natural log of the predicted edit length in frames;
    n_frames_B int32: valid raw frames.
    """

    frames_BTD: jax.Array
    landmarks_BLD: jax.Array
    beats_BUD: jax.Array
    bars_BVD: jax.Array
    structure_BTS: jax.Array
    log_length_B: jax.Array
    n_frames_B: jax.Array


def pool(x_BTD, frames_B, size: int):
    """Mean and maximum over spans of `size` frames, (B, ceil(T / size), 2D); spans without a frame are zero."""
    batch, n_frames, width = x_BTD.shape
    n_spans = -(-n_frames // size)
    padding = ((0, 0), (0, n_spans * size - n_frames), (0, 0))
    mask_BVS = frame_mask(frames_B, n_spans * size).reshape(batch, n_spans, size, 1)
    x_BVSD = jnp.pad(x_BTD, padding).reshape(batch, n_spans, size, width)
    count_BV1 = mask_BVS.sum(2).astype(x_BTD.dtype)
    mean = jnp.where(mask_BVS, x_BVSD, 0.0).sum(2) / jnp.maximum(count_BV1, 1.0)
    top = jnp.where(count_BV1 > 0, jnp.where(mask_BVS, x_BVSD, -jnp.inf).max(2), 0.0)
    return jnp.concatenate([mean, top], axis=-1)


def upsample(x_BVD, size: int, n_frames: int):
    """Repeat each span's vector for its frames."""
    return jnp.repeat(x_BVD, size, axis=1)[:, :n_frames]


class MatchAttention(nn.Module):
    """Residual branch: every landmark reads the places where its music is heard again.

    Keys and values are those of the matching landmark plus a linear map of how they match (similarity, distance,
    direction), so that a head can ask for "later, and alike all along the diagonal". The map is applied to the
    query and to the weighted features, never to every pair. An empty key of logit zero lets a landmark read nothing.
    """

    width: int
    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD, places_BLJ, features_BLJC, valid_BLJ):
        inner, head = self.width // 2, self.width // 2 // self.heads
        shape = (self.heads, features_BLJC.shape[-1], head)
        key_map_HCK = self.param("key_map", nn.initializers.normal(0.1), shape).astype(self.dtype)
        value_map_HCK = self.param("value_map", nn.initializers.normal(0.1), shape).astype(self.dtype)
        features_BLJC = features_BLJC.astype(self.dtype)
        h = Norm(self.dtype, name="norm")(x_BLD)
        q_BLHK = nn.Dense(inner, dtype=self.dtype, name="query")(h).reshape(*h.shape[:2], self.heads, head)
        kv_BLE = nn.Dense(2 * inner, dtype=self.dtype, name="key_value")(h)
        seen_BLJE = jnp.take_along_axis(kv_BLE[:, :, None], places_BLJ[..., None], axis=1)
        k, v = (a.reshape(*a.shape[:-1], self.heads, head) for a in jnp.split(seen_BLJE, 2, -1))

        def product(subscripts, *operands):
            return jnp.einsum(subscripts, *operands, preferred_element_type=jnp.float32)

        asked_BLHC = product("blhk,hck->blhc", q_BLHK, key_map_HCK).astype(self.dtype)
        logits_BLHJ = product("blhk,bljhk->blhj", q_BLHK, k) + product(
            "blhc,bljc->blhj", asked_BLHC, features_BLJC
        )
        logits_BLHJ = jnp.where(valid_BLJ[:, :, None, :], logits_BLHJ * head**-0.5, -1e9)
        empty = jnp.zeros((*logits_BLHJ.shape[:-1], 1), jnp.float32)
        weights = jax.nn.softmax(jnp.concatenate([logits_BLHJ, empty], -1), axis=-1)[..., :-1].astype(
            self.dtype
        )
        read_BLHC = jnp.einsum("blhj,bljc->blhc", weights, features_BLJC)
        out = jnp.einsum("blhj,bljhk->blhk", weights, v) + jnp.einsum(
            "blhc,hck->blhk", read_BLHC, value_map_HCK
        )
        return nn.Dense(self.width, dtype=self.dtype, name="out")(out.reshape(*h.shape[:2], inner))


class LandmarkLayer(nn.Module):
    """Window + bar globals, matches, feed-forward: one residual layer at landmark rate."""

    width: int
    heads: int
    window: Window
    expansion: int
    max_globals: int
    landmarks_per_bar: int
    kind: str
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BLD, landmarks_B, places_BLJ, features_BLJC, valid_BLJ):
        mask_BL = frame_mask(landmarks_B, x_BLD.shape[1])
        tokens = bar_globals(x_BLD, landmarks_B, self.landmarks_per_bar, self.max_globals)
        window = WindowAttention(self.width, self.heads, self.window, self.kind, self.dtype, name="window")
        x = x_BLD + window(x_BLD, landmarks_B, *tokens)
        match = MatchAttention(self.width, self.heads, self.dtype, name="match")
        x = masked(x + match(x, places_BLJ, features_BLJC, valid_BLJ), mask_BL)
        return masked(x + Mlp(self.width, self.expansion, self.dtype, name="mlp")(x), mask_BL)


def bar_globals(x_BLD, landmarks_B, per_bar: int, limit: int):
    """At most `limit` pooled tokens: one a bar, or one for several bars when there are more bars than that.

    Returns (tokens_BGD, position_BG in landmarks, valid_BG). How many bars share a token depends on the valid
    length alone, so padding changes nothing.
    """
    n_landmarks = x_BLD.shape[1]
    n_tokens = min(-(-n_landmarks // per_bar), limit)
    bars_B = -(-landmarks_B // per_bar)
    span_B = jnp.maximum(-(-bars_B // limit), 1) * per_bar
    token_BL = jnp.minimum(jnp.arange(n_landmarks)[None, :] // span_B[:, None], n_tokens - 1)

    def mean(x_LD, token_L, count):
        weight_L = (jnp.arange(n_landmarks) < count).astype(x_LD.dtype)
        total = jax.ops.segment_sum(x_LD * weight_L[:, None], token_L, n_tokens, indices_are_sorted=True)
        number = jax.ops.segment_sum(weight_L, token_L, n_tokens, indices_are_sorted=True)
        return total / jnp.maximum(number, 1.0)[:, None], number > 0

    tokens_BGD, valid_BG = jax.vmap(mean)(x_BLD, token_BL, landmarks_B)
    position_BG = (jnp.arange(n_tokens, dtype=jnp.float32)[None, :] + 0.5) * span_B[:, None].astype(
        jnp.float32
    )
    return tokens_BGD, position_BG, valid_BG


def landmark_matches(matches: Matches, n_landmarks: int):
    """Matches of steps spread to their landmarks: places (B, L, J) and features (B, L, J, 6), validity."""
    ratio = STEP_FRAMES // LANDMARK_FRAMES

    def spread(a):
        return jnp.repeat(a, ratio, axis=1)[:, :n_landmarks]

    place, score, here, valid = (spread(a) for a in matches)
    landmark_1L1 = jnp.arange(n_landmarks)[None, :, None]
    place_BLJ = jnp.minimum(place * ratio + landmark_1L1 % ratio, n_landmarks - 1)
    away = (place_BLJ - landmark_1L1).astype(jnp.float32)
    distance = jnp.log1p(jnp.abs(away) / 100.0)
    direction = jnp.sign(away)
    best = jnp.max(jnp.where(valid, score, 0.0), axis=-1, keepdims=True)
    features = [score, here, score - best, distance * direction, distance, direction]
    features_BLJC = jnp.where(valid[..., None], jnp.stack(features, -1), 0.0)
    return place_BLJ, features_BLJC, valid


class Encoder(nn.Module):
    """See the module docstring; `settings` is a `models.pointer.PointerSettings`."""

    settings: object

    def setup(self):
        s = self.settings
        dtype = jnp.dtype(s.dtype)
        wide, fine = s.width, s.frame_width
        self.stem = [
            nn.Conv(fine, (5,), dtype=dtype, name="stem_in"),
            nn.Conv(fine, (5,), dtype=dtype, name="stem_mix"),
        ]
        self.phase = nn.Dense(fine, dtype=dtype, name="phase")
        self.to_landmarks = nn.Dense(wide, dtype=dtype, name="to_landmarks")
        self.match_in = nn.Dense(wide, dtype=dtype, name="match_in")
        self.target = nn.Dense(wide, dtype=dtype, name="target")
        self.layers = [
            LandmarkLayer(
                wide,
                s.heads,
                Window(s.landmark_window, s.landmark_window),
                s.expansion,
                s.max_globals,
                s.frames_per_bar // LANDMARK_FRAMES,
                s.attention,
                dtype,
                name=f"landmark_{i}",
            )
            for i in range(s.landmark_layers)
        ]
        self.landmark_norm = Norm(dtype, name="landmark_norm")
        self.from_landmarks = nn.Dense(fine, dtype=dtype, name="from_landmarks")
        self.bar_context = nn.Dense(fine, dtype=dtype, name="bar_context")
        self.frame_layers = [
            (
                WindowAttention(
                    fine,
                    s.frame_heads,
                    Window(s.frame_window, s.frame_window),
                    s.attention,
                    dtype,
                    name=f"frame_{i}",
                ),
                Mlp(fine, s.expansion, dtype, name=f"frame_mlp_{i}"),
            )
            for i in range(s.frame_layers)
        ]
        self.frame_norm = Norm(dtype, name="frame_norm")
        self.to_beats = nn.Dense(wide, dtype=dtype, name="to_beats")
        self.to_bars = nn.Dense(wide, dtype=dtype, name="to_bars")
        self.structure = nn.Dense(3, dtype=jnp.float32, name="structure")
        self.length_hidden = nn.Dense(wide, dtype=jnp.float32, name="length_hidden")
        self.length_out = nn.Dense(1, dtype=jnp.float32, name="length_out")

    def __call__(self, mel_BTF, frames_B, phase_BT3, target_B) -> Encoded:
        """mel (B, T, 128) in [0, 1], valid frames (B,), beat/bar/phrase phase (B, T, 3) in [0, 1), wanted length
        in frames (B,), 0 where none is asked."""
        s = self.settings
        n_frames = mel_BTF.shape[1]
        mask_BT = frame_mask(frames_B, n_frames)
        level_BTF = level_normalise(mel_BTF, frames_B, s.floor_db, s.ceiling_db)
        x = self._stem(level_BTF, phase_BT3, mask_BT)
        matches = landmark_matches(self._matches(level_BTF, frames_B), -(-n_frames // LANDMARK_FRAMES))
        landmarks = self._landmarks(x, frames_B, target_B, matches)
        x = masked(x + upsample(self.from_landmarks(landmarks), LANDMARK_FRAMES, n_frames), mask_BT)
        bars = self.bar_context(pool(x, frames_B, s.frames_per_bar))
        x = masked(x + upsample(bars, s.frames_per_bar, n_frames), mask_BT)
        for attention, mlp in self.frame_layers:
            x = masked(x + attention(x, frames_B), mask_BT)
            x = masked(x + mlp(x), mask_BT)
        x = masked(self.frame_norm(x), mask_BT)
        return self._levels(x, landmarks, frames_B)

    def _stem(self, level_BTF, phase_BT3, mask_BT):
        dtype = jnp.dtype(self.settings.dtype)
        angle = 2 * jnp.pi * phase_BT3.astype(jnp.float32)
        position = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1).astype(dtype)
        first, second = self.stem
        x = masked(nn.gelu(first(level_BTF.astype(dtype))) + self.phase(position), mask_BT)
        return masked(x + nn.gelu(second(x)), mask_BT)

    def _matches(self, level_BTF, frames_B):
        shape_BTF = jax.lax.stop_gradient(level_BTF[..., :-LEVEL_CHANNELS])
        steps_B = -(-frames_B // STEP_FRAMES)
        return find_matches(fingerprints(shape_BTF, frames_B), steps_B, self.settings.matches)

    def _landmarks(self, x_BTD, frames_B, target_B, matches):
        landmarks_B = -(-frames_B // LANDMARK_FRAMES)
        batch, n_frames, width = x_BTD.shape
        n_landmarks = -(-n_frames // LANDMARK_FRAMES)
        x = jnp.pad(x_BTD, ((0, 0), (0, n_landmarks * LANDMARK_FRAMES - n_frames), (0, 0)))
        x = self.to_landmarks(x.reshape(batch, n_landmarks, LANDMARK_FRAMES * width))
        _, features_BLJC, _ = matches
        flat = features_BLJC.reshape(batch, n_landmarks, -1).astype(x.dtype)
        x = (
            x
            + self.match_in(flat)
            + self.target(target_features(target_B, frames_B).astype(x.dtype))[:, None]
        )
        x = masked(x, frame_mask(landmarks_B, n_landmarks))
        for layer in self.layers:
            x = layer(x, landmarks_B, *matches)
        return masked(self.landmark_norm(x), frame_mask(landmarks_B, n_landmarks))

    def _levels(self, x_BTD, landmarks_BLD, frames_B) -> Encoded:
        s = self.settings
        mask_BT = frame_mask(frames_B, x_BTD.shape[1])
        beats = self._spans(self.to_beats, x_BTD, frames_B, s.frames_per_beat)
        bars = self._spans(self.to_bars, x_BTD, frames_B, s.frames_per_bar)
        structure = self.structure(x_BTD.astype(jnp.float32))
        played_BT = jax.nn.softmax(structure, -1) @ jnp.array([0.0, 1.0, 2.0])
        expected_B = jnp.where(mask_BT, played_BT, 0.0).sum(-1) + 1.0
        n_bars_B = jnp.maximum(-(-frames_B // s.frames_per_bar), 1).astype(jnp.float32)
        summary = bars.astype(jnp.float32).sum(1) / n_bars_B[:, None]
        correction = self.length_out(nn.gelu(self.length_hidden(summary)))[:, 0]
        return Encoded(
            x_BTD,
            landmarks_BLD,
            beats,
            bars,
            structure,
            jax.lax.stop_gradient(jnp.log(expected_B)) + correction,
            frames_B,
        )

    @staticmethod
    def _spans(dense, x_BTD, frames_B, size):
        spans = dense(pool(x_BTD, frames_B, size))
        return masked(spans, frame_mask(-(-frames_B // size), spans.shape[1]))


def target_features(target_B, frames_B):
    """How the wanted length enters the model: (asked, log(target / raw), asked · that), (B, 3)."""
    asked = target_B > 0
    ratio = jnp.log(jnp.where(asked, target_B, 1.0) / jnp.maximum(frames_B, 1).astype(jnp.float32))
    ratio = jnp.where(asked, ratio, 0.0)
    asked = asked.astype(jnp.float32)
    return jnp.stack([asked, ratio, jnp.exp(ratio) * asked], axis=-1)
