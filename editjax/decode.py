"""Trained parameters + mel → pointers: the whole decoding loop runs on the device.

A `lax.while_loop` over steps with ring-buffer caches; it ends when every recording of the batch has stopped.
Greedy by default; with a temperature it samples, drawing noise per step, so that a seed fixes the edit.
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


class Decoded(NamedTuple):
    """Pointers (B, N) int32 ending in STOP where the model stopped, PAD after; log-probability of each step's
    choice and probability of stopping, (B, N); steps taken before the stop (B,)."""

    pointers_BN: jax.Array
    log_p_BN: jax.Array
    stop_p_BN: jax.Array
    steps_B: jax.Array


class Carry(NamedTuple):
    """Loop state: few packed arrays, because XLA pays per leaf."""

    step: jax.Array
    state_B3: jax.Array  # pointer, run, stopped
    caches: tuple
    played_BV: jax.Array  # frames played of every bar, over the bar's
    played_BT: jax.Array  # which frames were played; `played_BV` sums them, but not anew at every step
    pointers_BN: jax.Array
    p_BN2: jax.Array  # log-probability of the choice, probability of stopping


@partial(jax.jit, static_argnames=("settings",))
def encode(settings: PointerSettings, params, mel_BTF, frames_B, phase_BT3, target_B):
    """Encoded recording and the keys that decoding reads."""
    encoded = encoder.encode(settings, params["encoder"], mel_BTF, frames_B, phase_BT3, target_B)
    return encoded, decoder_call(settings, params, "keys", encoded)


@partial(jax.jit, static_argnames=("settings",))
def read_keys(settings: PointerSettings, params, encoded):
    """The keys that decoding reads, of a recording encoded elsewhere."""
    return decoder_call(settings, params, "keys", encoded)


@partial(jax.jit, static_argnames=("settings", "max_steps"))
def decode(settings: PointerSettings, params, keys, target_B, max_steps: int, temperature, key) -> Decoded:
    """Free-running decoding; temperature 0 is greedy. Sequences that never stop end after `max_steps`.

    Where no length is asked for, nothing is played twice: an edit ends before the first frame that was played
    already, and at a jump to a stretch most of which was; jumps forward within a bar are always taken.
    """
    batch, n_bars = keys.bars_BVD.shape[:2]
    cache = jnp.zeros((batch, settings.decoder_window, 2 * settings.width), jnp.dtype(settings.dtype))
    start = Carry(
        jnp.zeros((), jnp.int32),
        jnp.tile(jnp.array([[-1, 0, 0]], jnp.int32), (batch, 1)),
        (cache,) * settings.decoder_layers,
        jnp.zeros((batch, n_bars), jnp.float32),
        jnp.zeros((batch, keys.frames_BTD.shape[1]), bool),
        jnp.full((batch, max_steps), PAD, jnp.int32),
        jnp.zeros((batch, max_steps, 2), jnp.float32),
    )

    def going(carry: Carry):
        return (carry.step < max_steps) & ~carry.state_B3[:, 2].astype(bool).all()

    def advance(carry: Carry):
        pointer_B, run_B, stopped_B = carry.state_B3.T
        index_B1 = jnp.full((batch, 1), carry.step, jnp.int32)
        step = Step(pointer_B[:, None], run_B[:, None], index_B1, target_B)
        h, caches = decoder_call(settings, params, "step", keys, step, carry.caches)
        noise = jax.random.fold_in(key, carry.step)
        next_B, p_B2 = choose(settings, params, keys, h, step, carry.played_BV, temperature, noise)
        again_B = (target_B == 0) & pick(carry.played_BT, next_B[:, None])[:, 0]
        next_B = jnp.where(again_B, STOP, next_B)
        p_B2 = p_B2.at[:, 0].set(jnp.where(again_B, jnp.log(p_B2[:, 1]), p_B2[:, 0]))
        stopped = stopped_B.astype(bool)
        jumped = next_B != pointer_B + 1
        written = jnp.where(stopped, PAD, next_B)
        place_B = jnp.where(written >= 0, written, carry.played_BT.shape[1])  # a negative index would wrap
        now_stopped = stopped | (next_B == STOP)
        state = jnp.stack(
            [
                jnp.where(now_stopped, pointer_B, next_B),
                jnp.where(jumped, 0, run_B + 1),
                now_stopped.astype(jnp.int32),
            ],
            axis=1,
        )
        bar_B1 = jnp.where(now_stopped, -1, next_B)[:, None] // settings.frames_per_bar
        entered_BV = (jnp.arange(n_bars)[None, :] == bar_B1).astype(jnp.float32)
        return Carry(
            carry.step + 1,
            state,
            caches,
            carry.played_BV + entered_BV / float(settings.frames_per_bar),
            carry.played_BT.at[jnp.arange(batch), place_B].set(True, mode="drop"),
            jax.lax.dynamic_update_slice(carry.pointers_BN, written[:, None], (0, carry.step)),
            jax.lax.dynamic_update_slice(
                carry.p_BN2, jnp.where(stopped[:, None], 0.0, p_B2)[:, None], (0, carry.step, 0)
            ),
        )

    end = jax.lax.while_loop(going, advance, start)
    return Decoded(end.pointers_BN, end.p_BN2[..., 0], end.p_BN2[..., 1], (end.pointers_BN >= 0).sum(1))


def choose(settings: PointerSettings, params, keys, h_B1D, step: Step, played_BV, temperature, key):
    """Next pointer or STOP (B,), and its log-probability beside the probability of stopping (B, 2).

    First the mode; for a jump then bar → beat → frame.
    """
    pointer_B1 = step.pointer_BN
    key_mode, key_bar, key_beat, key_frame = jax.random.split(key, 4)

    def ask(method, *args):
        return decoder_call(settings, params, method, *args)

    mode_log_p = jax.nn.log_softmax(ask("mode_logits", h_B1D, pointer_B1, keys), axis=-1)
    mode, _ = _pick(mode_log_p, temperature, key_mode)
    bar_logits = ask("bar_logits", h_B1D, pointer_B1, step.began_BN, played_BV[:, None], keys)
    bar, bar_p = _pick(bar_logits, temperature, key_bar)
    beat, beat_p = _pick(ask("beat_logits", h_B1D, bar, pointer_B1, keys), temperature, key_beat)
    beat = bar * (settings.frames_per_bar // settings.frames_per_beat) + beat
    frame, frame_p = _pick(ask("frame_logits", h_B1D, beat, pointer_B1, keys), temperature, key_frame)
    target = beat * settings.frames_per_beat + frame
    onwards = (bar == pointer_B1 // settings.frames_per_bar) & (target > pointer_B1)
    played = was_played(target, played_BV[:, None], keys.n_frames_B, settings.frames_per_bar)
    again = played & ~onwards
    mode = jnp.where((mode == JUMP) & again & (step.target_B == 0)[:, None], STOP_MODE, mode)
    mode_p = jnp.take_along_axis(mode_log_p, mode[..., None], axis=-1)[..., 0]
    pointer = jnp.where(mode == ADVANCE, pointer_B1 + 1, jnp.where(mode == STOP_MODE, STOP, target))
    log_p = mode_p + jnp.where(mode == JUMP, bar_p + beat_p + frame_p, 0.0)
    stop_p = jnp.exp(mode_log_p[..., STOP_MODE])
    return pointer[:, 0].astype(jnp.int32), jnp.concatenate([log_p, stop_p], axis=1)


def _pick(logits, temperature, key):
    """Argmax of logits plus Gumbel noise scaled by the temperature (Gumbel-max trick): 0 is greedy."""
    logits = logits.astype(jnp.float32)
    noise = jax.random.gumbel(key, logits.shape) * temperature
    index = jnp.argmax(logits + noise, axis=-1)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return index, jnp.take_along_axis(log_p, index[..., None], axis=-1)[..., 0]
