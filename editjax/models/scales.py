"""The layers of the encoder at its scales: frames, landmarks, beats, bars; and the way between them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.attention import Window
from editjax.events import KINDS
from editjax.models.layers import Mlp, Norm, TimeConv, WindowAttention, frame_mask, masked
from editjax.models.match import DETAIL_CHANNELS, STEP_FRAMES, Matches, refine
from editjax.models.rows import take, time_parts
from editjax.models.spans import pool, spread

MATCH_CHANNELS = 6 + DETAIL_CHANNELS
TARGET_FEATURES = 3
ANNOUNCE_WIDTH = 32
ANNOUNCE_BIAS = -1.0
ANNOUNCE_SPREAD = 0.02  # with signs that begin far below zero, learning begins late, or never


class MatchAttention(nn.Module):
    """Residual branch: every landmark reads the places where its music is heard again.

    Keys and values are those of the matching landmark plus a linear map of how they match (similarity,
    distance, direction), so that a head can ask for "later, and alike all along the diagonal". The map is
    applied to the query and to the weighted features, never to every pair. An empty key of logit zero lets a
    landmark read nothing.
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
        k, v = (self._rows(a, places_BLJ) for a in jnp.split(kv_BLE, 2, -1))

        def product(subscripts, *operands):
            return jnp.einsum(subscripts, *operands, preferred_element_type=jnp.float32)

        asked_BLHC = product("blhk,hck->blhc", q_BLHK, key_map_HCK).astype(self.dtype)
        logits_BLHJ = product("blhk,blhjk->blhj", q_BLHK, k) + product(
            "blhc,bljc->blhj", asked_BLHC, features_BLJC
        )
        logits_BLHJ = jnp.where(valid_BLJ[:, :, None, :], logits_BLHJ * head**-0.5, -1e9)
        empty = jnp.zeros((*logits_BLHJ.shape[:-1], 1), jnp.float32)
        weights = jax.nn.softmax(jnp.concatenate([logits_BLHJ, empty], -1), axis=-1)[..., :-1].astype(
            self.dtype
        )
        read_BLHC = jnp.einsum("blhj,bljc->blhc", weights, features_BLJC)
        out = jnp.einsum("blhj,blhjk->blhk", weights, v) + jnp.einsum(
            "blhc,hck->blhk", read_BLHC, value_map_HCK
        )
        return nn.Dense(self.width, dtype=self.dtype, name="out")(out.reshape(*h.shape[:2], inner))

    def _rows(self, x_BLE, places_BLJ):
        """Heads of the rows at each landmark's places, (B, L, H, J, K): in the order in which products read
        them, or XLA would turn them round in memory."""
        batch, n_landmarks, n_places = places_BLJ.shape
        if time_parts(n_landmarks) > 1:
            rows_BXE = take(x_BLE, places_BLJ.reshape(batch, -1))
            return jnp.swapaxes(rows_BXE.reshape(*places_BLJ.shape, self.heads, -1), 2, 3)
        x_BHLK = jnp.swapaxes(x_BLE.reshape(batch, n_landmarks, self.heads, -1), 1, 2)
        first_H1 = n_landmarks * jnp.arange(self.heads)[:, None]
        row_BX1 = (places_BLJ[:, :, None, :] + first_H1[None, None]).reshape(batch, -1, 1)
        rows = jnp.take_along_axis(x_BHLK.reshape(batch, self.heads * n_landmarks, -1), row_BX1, axis=1)
        return rows.reshape(batch, n_landmarks, self.heads, n_places, -1)


class LandmarkLayer(nn.Module):
    """Window + bar globals, matches, feed-forward: one residual layer at landmark rate."""

    settings: Any

    @nn.compact
    def __call__(self, x_BLD, landmarks_B, asked_BE, places_BLJ, features_BLJC, valid_BLJ):
        s = self.settings
        dtype, reach = jnp.dtype(s.dtype), Window(s.landmark_window, s.landmark_window)
        mask_BL = frame_mask(landmarks_B, x_BLD.shape[1])
        tokens = bar_globals(x_BLD, landmarks_B, round(s.frames_per_bar / s.landmark_frames), s.max_globals)
        window = WindowAttention(s.width, s.heads, reach, s.attention, dtype, name="window")
        x = x_BLD + window(x_BLD, landmarks_B, *tokens)
        match = MatchAttention(s.width, s.heads, dtype, name="match")
        x = masked(x + match(x, places_BLJ, features_BLJC, valid_BLJ), mask_BL)
        return masked(x + Mlp(s.width, s.expansion, dtype, name="mlp")(x, asked_BE), mask_BL)


def bar_globals(x_BLD, landmarks_B, per_bar: int, limit: int):
    """At most `limit` pooled tokens: one a bar, or one for several bars when there are more bars than that.

    Returns (tokens_BGD, position_BG in landmarks, valid_BG). How many bars share a token depends on the valid
    length alone, so padding changes nothing. `per_bar` 1 pools bars themselves; a token of one bar is that
    bar, bit for bit.
    """
    n_landmarks = x_BLD.shape[1]
    n_tokens = min(-(-n_landmarks // per_bar), limit)
    bars_B = -(-landmarks_B // per_bar)
    span_B = jnp.maximum(-(-bars_B // limit), 1) * per_bar
    token_BL = jnp.minimum(jnp.arange(n_landmarks)[None, :] // span_B[:, None], n_tokens - 1)

    def mean(x_LD, token_L, count):
        weight_L = (jnp.arange(n_landmarks) < count).astype(jnp.float32)  # bfloat16 counts to 256
        weighed_LD = x_LD.astype(jnp.float32) * weight_L[:, None]
        total = jax.ops.segment_sum(weighed_LD, token_L, n_tokens, indices_are_sorted=True)
        number = jax.ops.segment_sum(weight_L, token_L, n_tokens, indices_are_sorted=True)
        return (total / jnp.maximum(number, 1.0)[:, None]).astype(x_LD.dtype), number > 0

    tokens_BGD, valid_BG = jax.vmap(mean)(x_BLD, token_BL, landmarks_B)
    position_BG = (jnp.arange(n_tokens, dtype=jnp.float32)[None, :] + 0.5) * span_B[:, None].astype(
        jnp.float32
    )
    return tokens_BGD, position_BG, valid_BG


def landmark_matches(matches: Matches, shape_BLG, landmarks_B, landmark_frames: int, reach: int):
    """Matches of steps settled for their landmarks: places (B, L, J), features (B, L, J, C), validity."""
    n_landmarks = shape_BLG.shape[1]
    ratio = STEP_FRAMES // landmark_frames

    place, score, here, valid = (spread(a, ratio, n_landmarks) for a in matches)
    landmark_1L1 = jnp.arange(n_landmarks)[None, :, None]
    place_BLJ = place * ratio + landmark_1L1 % ratio
    last_B11 = landmarks_B[:, None, None] - 1  # a step may end beyond the recording
    valid = valid & (place_BLJ <= last_B11) & (landmark_1L1 <= last_B11)
    place_BLJ, details = refine(shape_BLG, landmarks_B, jnp.where(valid, place_BLJ, 0), valid, reach)
    away = (place_BLJ - landmark_1L1).astype(jnp.float32)
    distance = jnp.log1p(jnp.abs(away) / 100.0)
    direction = jnp.sign(away)
    best = jnp.max(jnp.where(valid, score, 0.0), axis=-1, keepdims=True)
    features = [score, here, score - best, distance * direction, distance, direction]
    features_BLJC = jnp.where(valid[..., None], jnp.stack(features, -1), 0.0)
    return place_BLJ, jnp.concatenate([features_BLJC, details], -1), valid


class FrameEntry(nn.Module):
    """Level-normalised mel and musical phase → frames, (B, T, frame_width)."""

    settings: Any

    @nn.compact
    def __call__(self, level_BTF, phase_BT3, mask_BT):
        dtype, width = jnp.dtype(self.settings.dtype), self.settings.frame_width
        angle = 2 * jnp.pi * phase_BT3.astype(jnp.float32)
        position = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1).astype(dtype)
        x = nn.gelu(TimeConv(width, 5, dtype=dtype, short=0, name="listen")(level_BTF.astype(dtype)))
        x = masked(x + nn.Dense(width, dtype=dtype, name="phase")(position), mask_BT)
        return masked(x + nn.gelu(TimeConv(width, 5, dtype=dtype, short=0, name="mix")(x)), mask_BT)


class Announce(nn.Module):
    """Level-normalised mel → how much of an announcement every frame is, (B, T) ≥ 0: see `hints.hints_of`."""

    @nn.compact
    def __call__(self, level_BTF, mask_BT):
        x = nn.gelu(TimeConv(ANNOUNCE_WIDTH, 5, short=0, name="listen")(level_BTF.astype(jnp.float32)))
        even = nn.initializers.normal(ANNOUNCE_SPREAD)
        some = nn.initializers.constant(ANNOUNCE_BIAS)
        sign_BT = nn.softplus(nn.Dense(1, name="sign", kernel_init=even, bias_init=some)(x)[..., 0])
        return jnp.where(mask_BT, sign_BT, 0.0)


class LandmarkEntry(nn.Module):
    """Frames, how they match elsewhere, and what is asked of the edit → landmarks, (B, L, width)."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, features_BLJC, asked_BE, mask_BL):
        dtype, width = jnp.dtype(self.settings.dtype), self.settings.width
        batch, n_landmarks = mask_BL.shape
        padding = n_landmarks * self.settings.landmark_frames - x_BTD.shape[1]
        x = jnp.pad(x_BTD, ((0, 0), (0, padding), (0, 0))).reshape(batch, n_landmarks, -1)
        x = nn.Dense(width, dtype=dtype, name="frames")(x)
        x = x + nn.Dense(width, dtype=dtype, name="matches")(
            features_BLJC.reshape(batch, n_landmarks, -1).astype(dtype)
        )
        asked = nn.Dense(width, dtype=dtype, name="asked")(asked_BE.astype(dtype))
        return masked(x + asked[:, None], mask_BL)


class Fusion(nn.Module):
    """Top-down: landmarks, then bars, back into the frames."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, landmarks_BLD, frames_B):
        s = self.settings
        dtype, n_frames = jnp.dtype(s.dtype), x_BTD.shape[1]
        mask_BT = frame_mask(frames_B, n_frames)
        above = nn.Dense(s.frame_width, dtype=dtype, name="landmarks")(landmarks_BLD)
        x = masked(x_BTD + spread(above, s.landmark_frames, n_frames), mask_BT)
        bars = nn.Dense(s.frame_width, dtype=dtype, name="bars")(pool(x, frames_B, s.frames_per_bar))
        return masked(x + spread(bars, s.frames_per_bar, n_frames), mask_BT)


class FrameLayer(nn.Module):
    """Windowed attention and feed-forward at frame rate: settles boundaries to the frame."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, frames_B, asked_BE):
        s = self.settings
        dtype, window = jnp.dtype(s.dtype), Window(s.frame_window, s.frame_window)
        mask_BT = frame_mask(frames_B, x_BTD.shape[1])
        attention = WindowAttention(s.frame_width, s.frame_heads, window, s.attention, dtype, name="window")
        x = masked(x_BTD + attention(x_BTD, frames_B), mask_BT)
        return masked(x + Mlp(s.frame_width, s.expansion, dtype, name="mlp")(x, asked_BE), mask_BT)


class Levels(nn.Module):
    """Settled frames → (frames, beats, bars, structure logits): the three levels of the pointer hierarchy."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, frames_B):
        s = self.settings
        dtype = jnp.dtype(s.dtype)
        x = masked(Norm(dtype, name="norm")(x_BTD), frame_mask(frames_B, x_BTD.shape[1]))

        def spans(size, name):
            pooled = nn.Dense(s.width, dtype=dtype, name=name)(pool(x, frames_B, size))
            return masked(pooled, frame_mask(-(-frames_B // size), pooled.shape[1]))

        structure = nn.Dense(3, dtype=jnp.float32, name="structure")(x.astype(jnp.float32))
        return x, spans(s.frames_per_beat, "beats"), spans(s.frames_per_bar, "bars"), structure


class Kinds(nn.Module):
    """Landmarks → logits of what they are, (B, L, kinds): see `events.KINDS`."""

    @nn.compact
    def __call__(self, x_BLD):
        x = Norm(jnp.float32, name="norm")(x_BLD.astype(jnp.float32))
        return nn.Dense(len(KINDS), name="kind")(x)


class Length(nn.Module):
    """Natural logarithm of the edit's length in frames, (B,): what the structure expects, corrected."""

    settings: Any

    @nn.compact
    def __call__(self, bars_BVD, structure_BTS, frames_B):
        mask_BT = frame_mask(frames_B, structure_BTS.shape[1])
        played_BT = jax.nn.softmax(structure_BTS, -1) @ jnp.array([0.0, 1.0, 2.0])
        expected_B = jnp.where(mask_BT, played_BT, 0.0).sum(-1) + 1.0
        n_bars_B = jnp.maximum(-(-frames_B // self.settings.frames_per_bar), 1).astype(jnp.float32)
        mean_BD = bars_BVD.astype(jnp.float32).sum(1) / n_bars_B[:, None]
        hidden = nn.gelu(nn.Dense(self.settings.width, name="hidden")(mean_BD))
        return jax.lax.stop_gradient(jnp.log(expected_B)) + nn.Dense(1, name="correction")(hidden)[:, 0]


def target_features(target_B, frames_B):
    """How the wanted length enters the model: (asked, log(target / raw), asked · that), (B, 3)."""
    asked = target_B > 0
    ratio = jnp.log(jnp.where(asked, target_B, 1.0) / jnp.maximum(frames_B, 1).astype(jnp.float32))
    ratio = jnp.where(asked, ratio, 0.0)
    asked = asked.astype(jnp.float32)
    return jnp.stack([asked, ratio, jnp.exp(ratio) * asked], axis=-1)
