"""The pointer network: which raw frame comes next in the edit?

A sequence of pointers is factorised exactly. At each step, from the decoder state: advance (previous + 1),
jump or stop; a jump picks bar, then beat in the bar, then frame in the beat. Every raw frame is reachable,
previous + 1 is excluded from jumps, so the probabilities of all sequences sum to one (pointer networks:
Vinyals et al. 2015).
"""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.attention import KINDS
from editjax.config import refuse_sizes
from editjax.models.decoder_attention import NEVER, CrossAttention, SelfAttention, bar_position
from editjax.models.encoder import Encoded, encode, init_encoder
from editjax.models.hints import Hints, hints_of
from editjax.models.layers import Mlp, Norm, turns
from editjax.models.match import STEP_FRAMES
from editjax.models.rows import pick, take
from editjax.models.scales import bar_globals
from editjax.models.style import Asked, init_style
from editjax.styles import STYLES

ADVANCE, JUMP, STOP_MODE = 0, 1, 2
DISTANCE_BUCKETS = 24
ADVANCE_BIAS = 5.0
AVOID_BIAS = -3.0
TRUST = 0.5
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
        sizes = "n_mels", "width", "heads", "frame_width", "frame_heads", "expansion"
        refuse_sizes(self, *units, *sizes, "matches", "decoder_window")
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
