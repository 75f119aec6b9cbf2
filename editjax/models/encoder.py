"""Raw mel → what the pointer decoder reads: frames, landmarks, beats and bars, each seeing all the others.

frames (43 a second) → landmarks (÷4) with windowed attention, bar globals and matches to other takes
→ back to frames, whose windowed attention settles the boundaries → pooled beats and bars for the pointers.
Every cost is linear in the length but the blockwise match, which keeps O(n) memory.
"""

from typing import Any, NamedTuple

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
    """Mean and maximum over spans of `size` frames, (B, ceil(T / size), 2D); empty spans are zero."""
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

    settings: Any

    @nn.compact
    def __call__(self, x_BLD, landmarks_B, places_BLJ, features_BLJC, valid_BLJ):
        s = self.settings
        dtype, reach = jnp.dtype(s.dtype), Window(s.landmark_window, s.landmark_window)
        mask_BL = frame_mask(landmarks_B, x_BLD.shape[1])
        tokens = bar_globals(x_BLD, landmarks_B, s.frames_per_bar // LANDMARK_FRAMES, s.max_globals)
        window = WindowAttention(s.width, s.heads, reach, s.attention, dtype, name="window")
        x = x_BLD + window(x_BLD, landmarks_B, *tokens)
        match = MatchAttention(s.width, s.heads, dtype, name="match")
        x = masked(x + match(x, places_BLJ, features_BLJC, valid_BLJ), mask_BL)
        return masked(x + Mlp(s.width, s.expansion, dtype, name="mlp")(x), mask_BL)


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


class Stem(nn.Module):
    """Level-normalised mel and musical phase → frames, (B, T, frame_width)."""

    settings: Any

    @nn.compact
    def __call__(self, level_BTF, phase_BT3, mask_BT):
        dtype, width = jnp.dtype(self.settings.dtype), self.settings.frame_width
        angle = 2 * jnp.pi * phase_BT3.astype(jnp.float32)
        position = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1).astype(dtype)
        x = nn.gelu(nn.Conv(width, (5,), dtype=dtype, name="listen")(level_BTF.astype(dtype)))
        x = masked(x + nn.Dense(width, dtype=dtype, name="phase")(position), mask_BT)
        return masked(x + nn.gelu(nn.Conv(width, (5,), dtype=dtype, name="mix")(x)), mask_BT)


class LandmarkEntry(nn.Module):
    """Frames, how they match elsewhere, and the wanted length → landmarks, (B, L, width)."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, features_BLJC, target_B3, mask_BL):
        dtype, width = jnp.dtype(self.settings.dtype), self.settings.width
        batch, n_landmarks = mask_BL.shape
        padding = n_landmarks * LANDMARK_FRAMES - x_BTD.shape[1]
        x = jnp.pad(x_BTD, ((0, 0), (0, padding), (0, 0))).reshape(batch, n_landmarks, -1)
        x = nn.Dense(width, dtype=dtype, name="frames")(x)
        x = x + nn.Dense(width, dtype=dtype, name="matches")(
            features_BLJC.reshape(batch, n_landmarks, -1).astype(dtype)
        )
        return masked(
            x + nn.Dense(width, dtype=dtype, name="target")(target_B3.astype(dtype))[:, None], mask_BL
        )


class Fusion(nn.Module):
    """Top-down: landmarks, then bars, back into the frames."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, landmarks_BLD, frames_B):
        s = self.settings
        dtype, n_frames = jnp.dtype(s.dtype), x_BTD.shape[1]
        mask_BT = frame_mask(frames_B, n_frames)
        above = nn.Dense(s.frame_width, dtype=dtype, name="landmarks")(landmarks_BLD)
        x = masked(x_BTD + upsample(above, LANDMARK_FRAMES, n_frames), mask_BT)
        bars = nn.Dense(s.frame_width, dtype=dtype, name="bars")(pool(x, frames_B, s.frames_per_bar))
        return masked(x + upsample(bars, s.frames_per_bar, n_frames), mask_BT)


class FrameLayer(nn.Module):
    """Windowed attention and feed-forward at frame rate: settles boundaries to the frame."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, frames_B):
        s = self.settings
        dtype, window = jnp.dtype(s.dtype), Window(s.frame_window, s.frame_window)
        mask_BT = frame_mask(frames_B, x_BTD.shape[1])
        attention = WindowAttention(s.frame_width, s.frame_heads, window, s.attention, dtype, name="window")
        x = masked(x_BTD + attention(x_BTD, frames_B), mask_BT)
        return masked(x + Mlp(s.frame_width, s.expansion, dtype, name="mlp")(x), mask_BT)


class Levels(nn.Module):
    """Finished frames → the three levels of the pointer hierarchy, structure logits and length."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, landmarks_BLD, frames_B) -> Encoded:
        s = self.settings
        dtype = jnp.dtype(s.dtype)
        mask_BT = frame_mask(frames_B, x_BTD.shape[1])
        x = masked(Norm(dtype, name="norm")(x_BTD), mask_BT)

        def spans(size, name):
            pooled = nn.Dense(s.width, dtype=dtype, name=name)(pool(x, frames_B, size))
            return masked(pooled, frame_mask(-(-frames_B // size), pooled.shape[1]))

        beats, bars = spans(s.frames_per_beat, "beats"), spans(s.frames_per_bar, "bars")
        structure = nn.Dense(3, dtype=jnp.float32, name="structure")(x.astype(jnp.float32))
        played_BT = jax.nn.softmax(structure, -1) @ jnp.array([0.0, 1.0, 2.0])
        expected_B = jnp.where(mask_BT, played_BT, 0.0).sum(-1) + 1.0
        n_bars_B = jnp.maximum(-(-frames_B // s.frames_per_bar), 1).astype(jnp.float32)
        summary = nn.Dense(s.width, name="length_hidden")(bars.astype(jnp.float32).sum(1) / n_bars_B[:, None])
        correction = nn.Dense(1, name="length")(nn.gelu(summary))[:, 0]
        log_length_B = jax.lax.stop_gradient(jnp.log(expected_B)) + correction
        return Encoded(x, landmarks_BLD, beats, bars, structure, log_length_B, frames_B)


def init_encoder(settings, key):
    """Fresh parameters of the encoder; equal layers are stacked along a leading axis."""
    s, keys = settings, jax.random.split(key, 6)
    n_frames = s.frames_per_bar
    n_landmarks = n_frames // LANDMARK_FRAMES
    frames_B = jnp.full((1,), n_frames, jnp.int32)
    x = jnp.zeros((1, n_frames, s.frame_width))
    landmarks = jnp.zeros((1, n_landmarks, s.width))
    places = jnp.zeros((1, n_landmarks, 2 * s.matches), jnp.int32)
    features = jnp.zeros((*places.shape, MATCH_CHANNELS))
    valid, mask = places > 0, jnp.ones((1, n_landmarks), bool)
    level, phase = jnp.zeros((1, n_frames, s.n_mels + LEVEL_CHANNELS)), jnp.zeros((1, n_frames, 3))

    def fresh(module, key, *args):
        return module.init(key, *args)["params"]

    def stacked(module, count, key, *args):
        return jax.vmap(lambda k: fresh(module, k, *args))(jax.random.split(key, count))

    return {
        "stem": fresh(Stem(s), keys[0], level, phase, jnp.ones((1, n_frames), bool)),
        "entry": fresh(LandmarkEntry(s), keys[1], x, features, jnp.zeros((1, 3)), mask),
        "landmark_layers": stacked(
            LandmarkLayer(s),
            s.landmark_layers,
            keys[2],
            landmarks,
            frames_B // LANDMARK_FRAMES,
            places,
            features,
            valid,
        ),
        "fusion": fresh(Fusion(s), keys[3], x, landmarks, frames_B),
        "frame_layers": stacked(FrameLayer(s), s.frame_layers, keys[4], x, frames_B),
        "levels": fresh(Levels(s), keys[5], x, landmarks, frames_B),
    }


def encode(settings, params, mel_BTF, frames_B, phase_BT3, target_B) -> Encoded:
    """Raw mel → everything the decoder reads.

    mel (B, T, n_mels) in [0, 1], valid frames (B,), beat/bar/phrase phase (B, T, 3) in [0, 1), wanted length
    in frames (B,), 0 where none is asked. Padding may hold anything.
    """
    s, n_frames = settings, mel_BTF.shape[1]
    mask_BT = frame_mask(frames_B, n_frames)
    landmarks_B = -(-frames_B // LANDMARK_FRAMES)
    n_landmarks = -(-n_frames // LANDMARK_FRAMES)

    def apply(module, name, *args):
        return module.apply({"params": params[name]}, *args)

    level_BTF = level_normalise(mel_BTF, frames_B, s.floor_db, s.ceiling_db)
    phase_BT3 = jnp.where(mask_BT[..., None], phase_BT3, 0.0)
    x = apply(Stem(s), "stem", level_BTF, phase_BT3, mask_BT)
    shape_BTF = jax.lax.stop_gradient(level_BTF[..., :-LEVEL_CHANNELS])
    found = find_matches(fingerprints(shape_BTF, frames_B), -(-frames_B // STEP_FRAMES), s.matches)
    matches = landmark_matches(found, n_landmarks)
    target_B3, mask_BL = target_features(target_B, frames_B), frame_mask(landmarks_B, n_landmarks)
    landmarks = apply(LandmarkEntry(s), "entry", x, matches[1], target_B3, mask_BL)

    def landmark_layer(landmarks, layer):
        return LandmarkLayer(s).apply({"params": layer}, landmarks, landmarks_B, *matches), None

    def frame_layer(x, layer):
        return FrameLayer(s).apply({"params": layer}, x, frames_B), None

    landmarks, _ = jax.lax.scan(landmark_layer, landmarks, params["landmark_layers"])
    x = apply(Fusion(s), "fusion", x, landmarks, frames_B)
    x, _ = jax.lax.scan(frame_layer, x, params["frame_layers"])
    return apply(Levels(s), "levels", x, landmarks, frames_B)


def target_features(target_B, frames_B):
    """How the wanted length enters the model: (asked, log(target / raw), asked · that), (B, 3)."""
    asked = target_B > 0
    ratio = jnp.log(jnp.where(asked, target_B, 1.0) / jnp.maximum(frames_B, 1).astype(jnp.float32))
    ratio = jnp.where(asked, ratio, 0.0)
    asked = asked.astype(jnp.float32)
    return jnp.stack([asked, ratio, jnp.exp(ratio) * asked], axis=-1)
