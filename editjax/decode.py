"""Trained parameters + mel → pointers: the whole decoding loop runs on the device.

Decoding is speculative and exact. Nearly every step advances, so each pass drafts that the next steps do,
verifies all of them side by side, takes those that agree and decides the first that does not: the pointers of
decoding step by step, in about jumps + steps / draft passes (blockwise parallel decoding, Stern et al. 2018,
with the recording itself as the draft). Greedy by default; with a temperature it samples, the noise drawn per
recording and step, so that a seed fixes the edit and drafts change nothing.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from editjax.edits import PAD, STOP
from editjax.models import encoder
from editjax.models.coverage import was_played
from editjax.models.pointer import (
    ADVANCE,
    JUMP,
    STOP_MODE,
    PointerSettings,
    Step,
    decoder_call,
    pick,
)
from editjax.models.style import Asked

DRAFT_STEPS = 64
MODE_NOISE, BAR_NOISE, BEAT_NOISE, FRAME_NOISE = range(4)


class Decoded(NamedTuple):
    """Pointers (B, N) int32 ending in STOP where the model stopped, PAD after; log-probability of each step's
    choice and probability of stopping, (B, N); steps taken before the stop (B,); passes of the decoder."""

    pointers_BN: jax.Array
    log_p_BN: jax.Array
    stop_p_BN: jax.Array
    steps_B: jax.Array
    passes: jax.Array


class Carry(NamedTuple):
    """Loop state: few packed arrays, because XLA pays per leaf."""

    passes: jax.Array
    state_B4: jax.Array  # steps taken, pointer, run, stopped
    caches: tuple
    played_BV: jax.Array  # frames played of every bar
    played_BT: jax.Array  # how often each frame was; `played_BV` sums that, but not anew at every pass
    pointers_BN: jax.Array
    p_BN2: jax.Array  # log-probability of the choice, probability of stopping


@partial(jax.jit, static_argnames=("settings",))
def encode(settings: PointerSettings, params, mel_BTF, frames_B, phase_BT3, asked: Asked):
    """Encoded recording and the keys that decoding reads."""
    encoded = encoder.encode(settings, params["encoder"], mel_BTF, frames_B, phase_BT3, asked)
    return encoded, decoder_call(settings, params, "keys", encoded)


@partial(jax.jit, static_argnames=("settings",))
def read_keys(settings: PointerSettings, params, encoded):
    """The keys that decoding reads, of a recording encoded elsewhere."""
    return decoder_call(settings, params, "keys", encoded)


@partial(jax.jit, static_argnames=("settings", "max_steps", "draft"))
def decode(
    settings: PointerSettings,
    params,
    keys,
    target_B,
    max_steps: int,
    temperature,
    key,
    draft: int = DRAFT_STEPS,
) -> Decoded:
    """Free-running decoding; temperature 0 is greedy. Sequences that never stop end after `max_steps`.

    Nothing is played twice but what the structure head says is looped: an edit ends before the first other
    frame that was played already, and at a jump to a stretch most of which was; jumps forward within a bar
    are always taken.
    `draft` 0 decodes step by step, with the same result.
    """
    batch, n_frames = keys.frames_BTD.shape[:2]
    row_B1 = jnp.arange(batch)[:, None]
    row_key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_B1[:, 0])
    ahead_1S = jnp.arange(draft + 1)[None, :]
    cache = jnp.zeros((batch, settings.decoder_window, 2 * settings.width), jnp.dtype(settings.dtype))
    start = Carry(
        jnp.zeros((), jnp.int32),
        jnp.tile(jnp.array([[0, -1, 0, 0]], jnp.int32), (batch, 1)),
        (cache,) * settings.decoder_layers,
        jnp.zeros(keys.bars_BVD.shape[:2], jnp.int32),
        jnp.zeros((batch, n_frames), jnp.int32),
        jnp.full((batch, max_steps), PAD, jnp.int32),
        jnp.zeros((batch, max_steps, 2), jnp.float32),
    )

    def going(carry: Carry):
        taken_B, _, _, stopped_B = carry.state_B4.T
        return ((taken_B < max_steps) & ~stopped_B.astype(bool)).any()

    def verify(carry: Carry):
        taken_B, pointer_B, run_B, stopped_B = carry.state_B4.T
        pointer_BS, run_BS, index_BS = (a_B[:, None] + ahead_1S for a_B in (pointer_B, run_B, taken_B))
        counted_1S = (ahead_1S == 0).astype(jnp.int32)  # the one that plays now
        was_BS = pick(carry.played_BT, pointer_BS) > counted_1S
        follower_BS = pick(carry.played_BT, pointer_BS + 1) > 0
        replay_BS2 = jnp.stack([was_BS, follower_BS], -1).astype(jnp.float32)
        drafted = Step(pointer_BS, run_BS, index_BS, target_B, replay_BS2)
        h_BSD, longer = decoder_call(settings, params, "step", keys, drafted, carry.caches)
        key_BS = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(row_key_B, index_BS)
        mode_logits_BS3 = decoder_call(settings, params, "mode_logits", h_BSD, pointer_BS, keys)
        mode_BS, _ = _pick(mode_logits_BS3, temperature, key_BS, MODE_NOISE)
        mode_log_p_BS3 = jax.nn.log_softmax(mode_logits_BS3, axis=-1)
        again_BS = follower_BS & ~pick(keys.hints.looped_BT, pointer_BS + 1)
        agrees_BS = (mode_BS == ADVANCE) & ~again_BS & (index_BS < max_steps - 1)
        decided_B1 = jnp.argmin(agrees_BS.at[:, -1].set(False), axis=1)[:, None]

        def decisive(x_BSX):
            return jnp.take_along_axis(x_BSX, decided_B1.reshape(batch, *[1] * (x_BSX.ndim - 1)), axis=1)

        at_B1 = [decisive(a_BS) for a_BS in (pointer_BS, run_BS, index_BS)]
        step = Step(at_B1[0], at_B1[1], at_B1[2], target_B, decisive(replay_BS2))
        before_B = step.pointer_BN[:, 0]
        played_BV = carry.played_BV + _frames_of_bars(pointer_B, before_B, settings, carry.played_BV.shape[1])
        share_BV = played_BV.astype(jnp.float32) / float(settings.frames_per_bar)
        next_B, p_B2 = choose(
            settings, params, keys, decisive(h_BSD), step, share_BV, temperature, decisive(key_BS)
        )
        in_this_pass_B = (pointer_B < next_B) & (next_B <= before_B)
        played_B, looped_B = (pick(a, next_B[:, None])[:, 0] for a in (carry.played_BT, keys.hints.looped_BT))
        again_B = ((played_B > 0) | in_this_pass_B) & ~looped_B
        next_B = jnp.where(again_B, STOP, next_B)
        p_B2 = p_B2.at[:, 0].set(jnp.where(again_B, jnp.log(p_B2[:, 1]), p_B2[:, 0]))

        is_decided_BS = ahead_1S == decided_B1
        next_BS = jnp.where(is_decided_BS, next_B[:, None], pointer_BS + 1)
        drafted_p_BS2 = jnp.stack([mode_log_p_BS3[..., ADVANCE], jnp.exp(mode_log_p_BS3[..., STOP_MODE])], -1)
        p_BS2 = jnp.where(is_decided_BS[..., None], p_B2[:, None], drafted_p_BS2)
        stopped = stopped_B.astype(bool)
        written_BS = (ahead_1S <= decided_B1) & ~stopped[:, None]
        place_BS = jnp.where(written_BS, index_BS, max_steps)
        frame_BS = jnp.where(written_BS & (next_BS >= 0), next_BS, n_frames)
        now_stopped = stopped | (next_B == STOP)
        landed_BV = _frames_of_bars(next_B - 1, next_B, settings, carry.played_BV.shape[1])
        state_B4 = jnp.stack(
            [
                taken_B + decided_B1[:, 0] + 1,
                next_B,
                jnp.where(next_B == before_B + 1, step.run_BN[:, 0] + 1, 0),
                now_stopped.astype(jnp.int32),
            ],
            axis=1,
        )
        return Carry(
            carry.passes + 1,
            jnp.where(stopped[:, None], carry.state_B4, state_B4),
            tuple(_up_to(longer_BLE, decided_B1[:, 0] + 1, settings.decoder_window) for longer_BLE in longer),
            played_BV + jnp.where(now_stopped[:, None], 0, landed_BV),
            carry.played_BT.at[row_B1, frame_BS].add(1, mode="drop"),
            carry.pointers_BN.at[row_B1, place_BS].set(next_BS, mode="drop"),
            carry.p_BN2.at[row_B1, place_BS].set(p_BS2, mode="drop"),
        )

    end = jax.lax.while_loop(going, verify, start)
    steps_B = (end.pointers_BN >= 0).sum(1)
    return Decoded(end.pointers_BN, end.p_BN2[..., 0], end.p_BN2[..., 1], steps_B, end.passes)


def choose(settings: PointerSettings, params, keys, h_B1D, step: Step, played_BV, temperature, key_B1):
    """Next pointer or STOP (B,), and its log-probability beside the probability of stopping (B, 2).

    First the mode; for a jump then bar → beat → frame. `played_BV` are shares of bars, `key_B1` the
    random keys of this step.
    """
    pointer_B1 = step.pointer_BN

    def ask(method, *args):
        return decoder_call(settings, params, method, *args)

    mode_log_p = jax.nn.log_softmax(ask("mode_logits", h_B1D, pointer_B1, keys), axis=-1)
    mode, _ = _pick(mode_log_p, temperature, key_B1, MODE_NOISE)
    bar_logits = ask("bar_logits", h_B1D, pointer_B1, step.began_BN, played_BV[:, None], keys)
    bar, bar_p = _pick(bar_logits, temperature, key_B1, BAR_NOISE)
    beat, beat_p = _pick(ask("beat_logits", h_B1D, bar, pointer_B1, keys), temperature, key_B1, BEAT_NOISE)
    beat = bar * (settings.frames_per_bar // settings.frames_per_beat) + beat
    frame_logits = ask("frame_logits", h_B1D, beat, pointer_B1, keys)
    frame, frame_p = _pick(frame_logits, temperature, key_B1, FRAME_NOISE)
    target = beat * settings.frames_per_beat + frame
    onwards = (bar == pointer_B1 // settings.frames_per_bar) & (target > pointer_B1)
    played = was_played(target, played_BV[:, None], keys.n_frames_B, settings.frames_per_bar)
    again = played & ~onwards & ~pick(keys.hints.looped_BT, target)
    mode = jnp.where((mode == JUMP) & again, STOP_MODE, mode)
    mode_p = jnp.take_along_axis(mode_log_p, mode[..., None], axis=-1)[..., 0]
    pointer = jnp.where(mode == ADVANCE, pointer_B1 + 1, jnp.where(mode == STOP_MODE, STOP, target))
    log_p = mode_p + jnp.where(mode == JUMP, bar_p + beat_p + frame_p, 0.0)
    stop_p = jnp.exp(mode_log_p[..., STOP_MODE])
    return pointer[:, 0].astype(jnp.int32), jnp.concatenate([log_p, stop_p], axis=1)


def _pick(logits_BNC, temperature, key_BN, part: int):
    """Argmax of logits plus Gumbel noise scaled by the temperature (Gumbel-max trick): 0 is greedy.

    The noise of a step depends on its key and on `part` alone, not on how many steps are drawn together.
    """
    logits_BNC = logits_BNC.astype(jnp.float32)
    keys_BN = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, part)))(key_BN)
    noise_BNC = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits_BNC.shape[-1:])))(keys_BN)
    index_BN = jnp.argmax(logits_BNC + noise_BNC * temperature, axis=-1)
    log_p = jax.nn.log_softmax(logits_BNC, axis=-1)
    return index_BN, jnp.take_along_axis(log_p, index_BN[..., None], axis=-1)[..., 0]


def _frames_of_bars(before_B, last_B, settings: PointerSettings, n_bars: int):
    """How many of the frames after `before` up to `last` lie in each bar, (B, V)."""
    start_1V = jnp.arange(n_bars)[None, :] * settings.frames_per_bar

    def until(frame_B):
        return jnp.clip(frame_B[:, None] + 1 - start_1V, 0, settings.frames_per_bar)

    return until(last_B) - until(before_B)


def _up_to(longer_BLE, taken_B, window: int):
    """The `window` entries before the end of what was taken, from a cache with the drafted steps added."""
    cut = jax.vmap(lambda entries_LE, n: jax.lax.dynamic_slice_in_dim(entries_LE, n, window))
    return cut(longer_BLE, taken_B)
