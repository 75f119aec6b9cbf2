"""The pointer network: which raw frame comes next in the edit?

A sequence of pointers is factorised exactly. At each step, from the decoder state: advance (previous + 1),
jump or stop; a jump picks bar, then beat in the bar, then frame in the beat. Every raw frame is reachable,
previous + 1 is excluded from jumps, so the probabilities of all sequences sum to one (pointer networks:
Vinyals et al. 2015).
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.attention import KINDS, Mask, Window, attend
from editjax.config import refuse_sizes
from editjax.models.encoder import Encoded, encode, init_encoder
from editjax.models.hints import Hints, hints_of
from editjax.models.layers import Heads, Mlp, Norm, in_chunks, rotary, turned, turns
from editjax.models.match import STEP_FRAMES
from editjax.models.rows import pick, take, time_parts
from editjax.models.scales import bar_globals
from editjax.models.style import Asked, init_style
from editjax.styles import STYLES

ADVANCE, JUMP, STOP_MODE = 0, 1, 2
NEVER = -1e9
DISTANCE_BUCKETS = 24
ADVANCE_BIAS = 5.0
AVOID_BIAS = -3.0
TRUST = 0.5
STEP_CHUNK = 12_288
"""Steps whose cross attention is computed at once: more than a crop has, so that only longer edits differ."""
AFTER_FLOOR = 1e-2


@dataclass(frozen=True)
class PointerSettings:
    """Architecture of the pointer network; mel and beat settings as it was trained with.

    Window sizes are in units of their level: landmarks, frames, decoder steps. A match is settled within
    `match_reach` landmarks of where it was found. `max_globals` bounds the pooled bars that landmarks and
    decoder steps attend to, so that their cost grows with the length, not with its square. `stem_width` is
    that of the part that listens to single stems; 0 leaves it out. With `kinds` the model also says what it
    hears (`events.KINDS`), learned where that is known.
    """

    n_mels: int = 128
    floor_db: float = -80.0
    ceiling_db: float = 40.0
    frames_per_beat: int = 43
    frames_per_bar: int = 172
    landmark_frames: int = 8
    width: int = 128
    heads: int = 2
    landmark_layers: int = 4
    landmark_window: int = 32
    frame_width: int = 64
    frame_heads: int = 1
    frame_layers: int = 1
    frame_window: int = 32
    expansion: int = 2
    max_globals: int = 256
    matches: int = 4
    match_reach: int = 3
    decoder_layers: int = 1
    decoder_window: int = 64
    look_back: int = 1
    look_ahead: int = 5
    style_width: int = 16
    stem_width: int = 0
    kinds: bool = False
    attention: str = "block"
    dtype: str = "float32"

    def __post_init__(self):
        units = "frames_per_beat", "frames_per_bar", "landmark_frames"
        refuse_sizes(self, *units, "n_mels", "width", "heads", "frame_width", "frame_heads", "expansion")
        if self.frames_per_bar % self.frames_per_beat:
            raise ValueError("frames_per_bar must be a multiple of frames_per_beat")
        for width, heads in ((self.width, self.heads), (self.frame_width, self.frame_heads)):
            if width % heads or width // heads % 2:
                raise ValueError(f"{heads} heads of a width of {width}: the width of a head must be even")
        if self.attention not in KINDS:
            raise ValueError(f"attention {self.attention!r}: choose one of {', '.join(KINDS)}")
        if STEP_FRAMES % self.landmark_frames:
            raise ValueError(f"landmark_frames must divide {STEP_FRAMES}")
        if 0 < self.style_width < len(STYLES):
            raise ValueError(f"style_width must be 0 or at least {len(STYLES)}, the number of styles")


class Keys(NamedTuple):
    """What decoding reads at every step, computed once per recording and loop-invariant.

    Per decoder layer, `around` holds keys and values side by side (B, L, 2 · width), and `bars` the two apart
    and by heads (B, H, G, K), of bars pooled to at most `max_globals`. `hints` are what the dense heads say
    (see `hints_of`).
    """

    frames_BTD: jax.Array
    around: tuple[jax.Array, ...]
    bars: tuple[tuple[jax.Array, jax.Array], ...]
    bars_valid_BG: jax.Array
    bar_keys_BVD: jax.Array
    beat_keys_BUD: jax.Array
    frame_keys_BTD: jax.Array
    bars_BVD: jax.Array
    beats_BUD: jax.Array
    hints: Hints
    style_BZ: jax.Array
    n_frames_B: jax.Array


class Step(NamedTuple):
    """The input of one decoding step, or of all at once: (B, N) each.

    `pointer`: raw frame played before (−1 at the start); `run`: steps since the last jump; `index`: the
    step; target_B: wanted length in frames, 0 when none is asked; replay_BN2: whether that frame was played
    before that, and whether its follower was.
    """

    pointer_BN: jax.Array
    run_BN: jax.Array
    index_BN: jax.Array
    target_B: jax.Array
    replay_BN2: jax.Array

    @property
    def began_BN(self):
        """The raw frame with which the stretch that is playing began; −1 at the start."""
        return jnp.maximum(self.pointer_BN - self.run_BN, jnp.minimum(self.pointer_BN, 0))


def _favour_advance(key, shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype).at[ADVANCE].set(ADVANCE_BIAS)


def _avoid(key, shape, dtype=jnp.float32):
    return jnp.full(shape, AVOID_BIAS, dtype)


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

    settings: PointerSettings

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

    settings: PointerSettings

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


class Decoder(nn.Module):
    """Decoder states and the three levels of pointer logits."""

    settings: PointerSettings

    def setup(self):
        s = self.settings
        dtype = jnp.dtype(s.dtype)
        self.enter = nn.Dense(s.width, dtype=dtype, name="enter")
        self.selfs = [SelfAttention(s, name=f"self_{i}") for i in range(s.decoder_layers)]
        self.crosses = [CrossAttention(s, name=f"cross_{i}") for i in range(s.decoder_layers)]
        self.mlps = [Mlp(s.width, s.expansion, dtype, name=f"mlp_{i}") for i in range(s.decoder_layers)]
        self.norm = Norm(dtype, name="norm")
        self.trust = self.param("trust", nn.initializers.constant(TRUST), (4,))
        # Advancing is 97–99 % of the steps: start there, or the first thousand steps only learn that.
        self.mode = nn.Dense(3, dtype=jnp.float32, name="mode", bias_init=_favour_advance)
        self.bar_query = nn.Dense(s.width, dtype=dtype, name="bar_query")
        self.bar_key = nn.Dense(s.width, dtype=dtype, name="bar_key")
        self.bar_distance = nn.Dense(DISTANCE_BUCKETS, dtype=jnp.float32, name="bar_distance")
        self.bar_avoid = nn.Dense(3, dtype=jnp.float32, name="bar_avoid", bias_init=_avoid)
        self.beat_query = nn.Dense(s.width, dtype=dtype, name="beat_query")
        self.beat_key = nn.Dense(s.width, dtype=dtype, name="beat_key")
        self.frame_query = nn.Dense(s.width, dtype=dtype, name="frame_query")
        self.frame_key = nn.Dense(s.width, dtype=dtype, name="frame_key")

    def keys(self, encoded: Encoded) -> Keys:
        """Everything the steps read, computed once."""
        s, bars_B = self.settings, -(-encoded.n_frames_B // self.settings.frames_per_bar)
        pooled_BGD, position_BG, valid_BG = bar_globals(encoded.bars_BVD, bars_B, 1, s.max_globals)
        pairs = [cross.keys(encoded.landmarks_BLD, pooled_BGD, position_BG) for cross in self.crosses]
        return Keys(
            encoded.frames_BTD,
            tuple(a for a, _ in pairs),
            tuple(b for _, b in pairs),
            valid_BG,
            self.bar_key(encoded.bars_BVD),
            self.beat_key(encoded.beats_BUD),
            self.frame_key(encoded.frames_BTD),
            encoded.bars_BVD,
            encoded.beats_BUD,
            hints_of(
                encoded.structure_BTS,
                encoded.announced_BT,
                encoded.n_frames_B,
                s.frames_per_beat,
                s.frames_per_bar // s.frames_per_beat,
            ),
            encoded.style_BZ,
            encoded.n_frames_B,
        )

    def states(self, keys: Keys, step: Step, steps_B):
        """All steps at once (teacher forcing): states (B, N, width)."""
        x = self._inputs(keys, step)
        for i, (attention, mlp) in enumerate(zip(self.selfs, self.mlps, strict=True)):
            x = x + attention(x, step.index_BN, steps_B)
            around = keys.around[i], keys.bars[i], keys.bars_valid_BG, keys.n_frames_B
            x = x + self.crosses[i](x, step.pointer_BN, *around)
            x = x + mlp(x)
        return self.norm(x)

    def step(self, keys: Keys, step: Step, run_turns, caches):
        """The next N steps after those in the caches, all but the first of them advances.

        `run_turns` are those of the steps. Caches are (B, 2 · heads, decoder_window, head width) per layer,
        zero at the start. Returns the states (B, N, width) and the caches with N entries more at their end;
        `decoder_window` of them, up to the last step that is taken, are the next caches.
        """
        x, longer, (index_turns, bar_turns) = self._inputs(keys, step), [], run_turns
        for i, (attention, mlp) in enumerate(zip(self.selfs, self.mlps, strict=True)):
            out, cache = attention.step(x, step.index_BN, index_turns, caches[i])
            longer.append(cache)
            x = x + out
            around = keys.around[i], keys.bars[i], keys.bars_valid_BG, keys.n_frames_B
            x = x + self.crosses[i].run(x, step.pointer_BN, bar_turns, *around)
            x = x + mlp(x)
        return self.norm(x), tuple(longer)

    def mode_logits(self, h_BND, pointer_BN, keys: Keys):
        """Logits of advance, jump, stop: (B, N, 3); advance past the last frame is impossible."""
        logits = self.mode(h_BND.astype(jnp.float32))
        advance = logits[..., ADVANCE] + self.trust[0] * pick(keys.hints.kept_BT, pointer_BN + 1)
        past_end = pointer_BN + 1 >= keys.n_frames_B[:, None]
        return logits.at[..., ADVANCE].set(jnp.where(past_end, NEVER, advance))

    def bar_logits(self, h_BJD, pointer_BJ, began_BJ, played_BJV, keys: Keys):
        """Logits over the bars, (B, J, V): content, signed distance from the pointer, expected starts there.

        In the order of the edit, skipping expected starts on the way to a bar costs, like the hazard of a
        first event, and so does going back over some; and so does what has been played of the bar: the
        coverage of See et al. 2017, without which a sequence may run in circles. `began_BJ` is the frame with
        which the stretch that is playing began.
        """
        s, hints = self.settings, keys.hints
        n_bars = keys.bar_keys_BVD.shape[1]
        content = self._dots(self.bar_query(h_BJD), keys.bar_keys_BVD, "bjd,bvd->bjv")
        away = jnp.arange(n_bars)[None, None, :] - (jnp.maximum(pointer_BJ, 0) // s.frames_per_bar)[..., None]
        distance_BJC = self.bar_distance(h_BJD.astype(jnp.float32))
        logits = content + jnp.take_along_axis(distance_BJC, distance_bucket(away), axis=-1)
        logits = logits + self.trust[1] * hints.bar_start_BV[:, None]
        passed_BJ1 = self._passed(hints, pointer_BJ, began_BJ)[..., None]
        skipped_BJV = jax.nn.relu(hints.played_before_BV[:, None] - passed_BJ1)
        undone_BJV = jax.nn.relu(passed_BJ1 - (hints.played_before_BV + hints.starts_BV)[:, None])
        avoid_BJ3 = self.bar_avoid(h_BJD.astype(jnp.float32))
        # As probabilities of at least one start in between.
        logits = logits - avoid_BJ3[..., :1] * jnp.expm1(-skipped_BJV)
        logits = logits + avoid_BJ3[..., 1:2] * played_BJV - avoid_BJ3[..., 2:] * jnp.expm1(-undone_BJV)
        room = self._room(jnp.arange(n_bars)[None, None, :], s.frames_per_bar, pointer_BJ, keys.n_frames_B)
        return jnp.where(room > 0, logits, NEVER)

    def beat_logits(self, h_BJD, bar_BJ, pointer_BJ, keys: Keys):
        """Logits over the beats of the chosen bar, (B, J, beats per bar)."""
        s = self.settings
        count = s.frames_per_bar // s.frames_per_beat
        beat_BJC = bar_BJ[..., None] * count + jnp.arange(count)[None, None, :]
        query = self.beat_query(jnp.concatenate([h_BJD, take(keys.bars_BVD, bar_BJ)], -1))
        flat = take(keys.beat_keys_BUD, beat_BJC.reshape(beat_BJC.shape[0], -1))
        logits = self._dots(query, flat.reshape(*beat_BJC.shape, -1), "bjd,bjcd->bjc")
        logits = logits + self.trust[2] * pick(keys.hints.beat_start_BU, beat_BJC)
        room = self._room(beat_BJC, s.frames_per_beat, pointer_BJ, keys.n_frames_B)
        return jnp.where(room > 0, logits, NEVER)

    def frame_logits(self, h_BJD, beat_BJ, pointer_BJ, keys: Keys):
        """Logits over the frames of the chosen beat, (B, J, frames per beat)."""
        count = self.settings.frames_per_beat
        frame_BJC = beat_BJ[..., None] * count + jnp.arange(count)[None, None, :]
        query = self.frame_query(jnp.concatenate([h_BJD, take(keys.beats_BUD, beat_BJ)], -1))
        flat = take(keys.frame_keys_BTD, frame_BJC.reshape(frame_BJC.shape[0], -1))
        logits = self._dots(query, flat.reshape(*frame_BJC.shape, -1), "bjd,bjcd->bjc")
        logits = logits + self.trust[3] * pick(keys.hints.frame_start_BT, frame_BJC)
        allowed = (frame_BJC < keys.n_frames_B[:, None, None]) & (frame_BJC != pointer_BJ[..., None] + 1)
        return jnp.where(allowed, logits, NEVER)

    def touch(self, encoded: Encoded, step: Step):
        """Use every parameter once, for initialisation."""
        keys = self.keys(encoded)
        h = self.states(keys, step, jnp.full_like(keys.n_frames_B, step.index_BN.shape[1]))
        zero = jnp.zeros_like(step.pointer_BN)
        played = jnp.zeros((*zero.shape, keys.bars_BVD.shape[1]))
        self.bar_logits(h, step.pointer_BN, step.began_BN, played, keys)
        self.beat_logits(h, zero, step.pointer_BN, keys)
        self.frame_logits(h, zero, step.pointer_BN, keys)
        return self.mode_logits(h, step.pointer_BN, keys)

    def _dots(self, query, key, subscripts: str):
        scale = self.settings.width**-0.5
        return jnp.einsum(subscripts, query, key, preferred_element_type=jnp.float32) * scale

    def _passed(self, hints: Hints, pointer_BN, began_BN):
        """Expected starts, in the order of the edit, up to the frame after the pointer, (B, N).

        They are those before the bar in which this stretch began, and those heard since.
        """
        bar_BN = jnp.maximum(began_BN, 0) // self.settings.frames_per_bar
        last = hints.starts_BT.shape[1] - 1
        heard_BN = pick(hints.starts_BT, jnp.minimum(pointer_BN + 1, last)) - pick(
            hints.recorded_before_BV, bar_BN
        )
        return jnp.where(pointer_BN < 0, 0.0, pick(hints.played_before_BV, bar_BN) + heard_BN)

    @staticmethod
    def _room(span_BJC, size: int, pointer_BJ, n_frames_B):
        """How many frames of a span a jump may land on: the valid ones, without previous + 1."""
        room = jnp.clip(n_frames_B[:, None, None] - span_BJC * size, 0, size)
        follower = pointer_BJ[..., None] + 1
        holds = (follower // size == span_BJC) & (follower < n_frames_B[:, None, None])
        return room - holds.astype(room.dtype)

    def _inputs(self, keys: Keys, step: Step):
        dtype = jnp.dtype(self.settings.dtype)
        here = take(keys.frames_BTD, step.pointer_BN)
        following = take(keys.frames_BTD, step.pointer_BN + 1)
        total_B1 = keys.hints.starts_BT[:, -1:]
        after_BN = jax.nn.relu(total_B1 - self._passed(keys.hints, step.pointer_BN, step.began_BN))
        kept_BN = pick(keys.hints.kept_BT, step.pointer_BN + 1)
        hints_BN2 = jnp.stack([kept_BN, jnp.log(after_BN + AFTER_FLOOR)], axis=-1)
        shape_BNZ = *step.pointer_BN.shape, self.settings.style_width
        style_BNZ = jnp.broadcast_to(keys.style_BZ[:, None], shape_BNZ)
        numbers = step_features(step), hints_BN2 / 5.0, step.replay_BN2, style_BNZ
        return self.enter(jnp.concatenate([here, following, *(a.astype(dtype) for a in numbers)], -1))


def run_turns(settings: PointerSettings, step: Step):
    """Cosines and sines by which steps are turned: of their indices, and of their pointers among the bars."""
    positions = step.index_BN, bar_position(step.pointer_BN, settings)
    return tuple(turns(at, settings.width // settings.heads) for at in positions)


def bar_position(pointer_BN, settings: PointerSettings):
    """Where in the recording a pointer is, in bars."""
    return jnp.maximum(pointer_BN, 0).astype(jnp.float32) / settings.frames_per_bar


def step_features(step: Step):
    """Numbers that tell a step where it is: (B, N, 7) float32.

    Start flag, just jumped, log run length; and when a length is asked: its flag, the share and the logarithm
    of what remains, and whether the target is passed.
    """
    run = step.run_BN.astype(jnp.float32)
    asked = (step.target_B > 0)[:, None]
    target = jnp.where(asked, step.target_B[:, None], 1.0)
    left = jnp.where(asked, target - step.index_BN.astype(jnp.float32), 0.0)
    parts = [
        (step.pointer_BN < 0).astype(jnp.float32),
        (step.run_BN == 0).astype(jnp.float32),
        jnp.log1p(run) / 5.0,
        jnp.broadcast_to(asked, run.shape).astype(jnp.float32),
        jnp.clip(left / target, -1.0, 1.0),
        jnp.sign(left) * jnp.log1p(jnp.abs(left)) / 5.0,
        (left < 0).astype(jnp.float32),
    ]
    return jnp.stack(parts, -1)


def distance_bucket(away):
    """Signed distance in bars → bucket: exact up to ±4, then by powers of two."""
    size = jnp.abs(away)
    power = 4 + jnp.floor(jnp.log2(jnp.maximum(size, 4).astype(jnp.float32) / 4.0)).astype(jnp.int32)
    magnitude = jnp.minimum(jnp.where(size < 4, size, power), DISTANCE_BUCKETS // 2 - 1)
    return jnp.where(away < 0, magnitude + DISTANCE_BUCKETS // 2, magnitude)


def init(settings: PointerSettings, key):
    """Fresh parameters: {"encoder": …, "decoder": …, "style": …}, nested dicts of float32 arrays."""
    encoder_key, decoder_key, style_key = jax.random.split(key, 3)
    params = init_encoder(settings, encoder_key)
    n_frames = settings.frames_per_bar
    frames_B, zero_B2 = jnp.full((1,), n_frames, jnp.int32), jnp.zeros((1, 2), jnp.int32)
    mel, phase = jnp.zeros((1, n_frames, settings.n_mels)), jnp.zeros((1, n_frames, 3))
    asked = Asked(jnp.zeros((1,)), jnp.zeros((1, settings.style_width)))
    encoded = encode(settings, params, mel, frames_B, phase, asked)
    step = Step(zero_B2, zero_B2, zero_B2, asked.target_B, jnp.zeros((1, 2, 2)))
    decoder = Decoder(settings).init(decoder_key, encoded, step, method="touch")
    return {"encoder": params, "decoder": decoder["params"], "style": init_style(settings, style_key)}


def decoder_call(settings: PointerSettings, params, method: str, *args):
    """One method of the decoder with the parameters of the whole model, e.g. "keys", "step", "bar_logits"."""
    return Decoder(settings).apply({"params": params["decoder"]}, *args, method=method)
