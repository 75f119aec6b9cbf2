"""Trained parameters + mel → pointers: the whole decoding loop runs on the device.

Decoding is speculative and exact. Nearly every step advances, so each pass drafts that the next steps do,
verifies all of them side by side, takes those that agree and decides the first that does not: the pointers of
decoding step by step, in about jumps + steps / draft passes (blockwise parallel decoding, Stern et al. 2018,
with the recording itself as the draft). Greedy by default; with a temperature it samples, the noise drawn per
recording and step, so that a seed fixes the edit and drafts change nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from editjax.edits import PAD, STOP
from editjax.models import encoder
from editjax.models.coverage import left_out, was_played
from editjax.models.decoder_attention import NEVER
from editjax.models.pointer import (
    ADVANCE,
    JUMP,
    STOP_MODE,
    Keys,
    PointerSettings,
    Step,
    decoder_call,
    run_turns,
)
from editjax.models.rows import pick
from editjax.models.stems import Stems
from editjax.models.style import Asked

DRAFT_STEPS = 64
MODE_NOISE, BAR_NOISE, BEAT_NOISE, FRAME_NOISE, CATCH_UP_NOISE = range(5)


class Decoded(NamedTuple):
    """Pointers (B, N) int32 ending in STOP where the model stopped, PAD after; of every step the decoder's
    log-probability of the choice, also where a rule made it, and its probability of stopping, (B, N); steps
    taken before the stop (B,); passes of the decoder."""

    pointers_BN: jax.Array
    log_p_BN: jax.Array
    stop_p_BN: jax.Array
    steps_B: jax.Array
    passes: jax.Array


class Carry(NamedTuple):
    """Loop state: few packed arrays, because XLA pays per leaf."""

    passes: jax.Array
    state_B4: jax.Array  # steps taken, pointer, run, stopped
    turns: tuple  # of the steps drafted next; carried, because XLA fuses what it computes into every use
    caches: tuple
    played_BV: jax.Array  # frames played of every bar
    played_BT: jax.Array  # how often each frame was; `played_BV` sums that, but not anew at every pass
    pointers_BN: jax.Array
    p_BN2: jax.Array  # log-probability of the choice, probability of stopping


class Fixed(NamedTuple):
    """What stays the same from pass to pass."""

    settings: PointerSettings
    params: Any
    keys: Keys
    target_B: jax.Array
    max_steps: int
    draft: int
    temperature: jax.Array | float = 0.0
    key_B: Any = None
    rules: bool = True

    def ask(self, method: str, *args):
        """One method of the decoder."""
        return decoder_call(self.settings, self.params, method, *args)


class Turn(NamedTuple):
    """What one step is decided from: the decoder's state, shares of bars that were played, keys of noise."""

    step: Step
    h_B1D: jax.Array
    share_BV: jax.Array
    key_B1: Any


@partial(jax.jit, static_argnames=("settings",))
def encode(
    settings: PointerSettings, params, mel_BTF, frames_B, phase_BT3, asked: Asked, stems: Stems | None = None
):
    """Encoded recording and the keys that decoding reads."""
    encoded = encoder.encode(settings, params["encoder"], mel_BTF, frames_B, phase_BT3, asked, stems)
    return encoded, decoder_call(settings, params, "keys", encoded)


@partial(jax.jit, static_argnames=("settings",))
def read_keys(settings: PointerSettings, params, encoded):
    """The keys that decoding reads, of a recording encoded elsewhere."""
    return decoder_call(settings, params, "keys", encoded)


@partial(jax.jit, static_argnames=("settings", "max_steps", "draft", "rules"))
def decode(
    settings: PointerSettings,
    params,
    keys,
    target_B,
    max_steps: int,
    temperature,
    key,
    draft: int = DRAFT_STEPS,
    rules: bool = True,
) -> Decoded:
    """Free-running decoding, of recordings side by side; sequences that never stop end after `max_steps`.

    `keys` are of `encode`, `target_B` wanted lengths in frames (0: as long as it comes), `temperature` scales
    the noise of sampling (0: greedy), drawn from `key`.
    Nothing is played twice but what the structure head says is looped: an edit ends before the first other
    frame that was played already, and at a jump to a stretch most of which was; jumps forward within a bar
    are always taken. And nothing that surely begins is left out: an edit that would end, and is asked for no
    length, first jumps to where that begins (`left_out`).
    Without `rules` it does just what the decoder says: at temperature 1 an edit is drawn with its likelihood.
    `draft` 0 decodes step by step, with the same result.
    """
    batch, n_frames = keys.frames_BTD.shape[:2]
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    fixed = Fixed(settings, params, keys, target_B, max_steps, draft, temperature, key_B, rules)
    state_B4 = jnp.tile(jnp.array([[0, -1, 0, 0]], jnp.int32), (batch, 1))
    played_BT = jnp.zeros((batch, n_frames), jnp.int32)
    start = Carry(
        jnp.zeros((), jnp.int32),
        state_B4,
        run_turns(settings, drafts_of(state_B4, played_BT, target_B, draft)),
        empty_caches(settings, batch),
        jnp.zeros(keys.bars_BVD.shape[:2], jnp.int32),
        played_BT,
        jnp.full((batch, max_steps), PAD, jnp.int32),
        jnp.zeros((batch, max_steps, 2), jnp.float32),
    )

    def going(carry: Carry):
        taken_B, _, _, stopped_B = carry.state_B4.T
        return ((taken_B < max_steps) & ~stopped_B.astype(bool)).any()

    end = jax.lax.while_loop(going, partial(_pass, fixed), start)
    steps_B = (end.pointers_BN >= 0).sum(1)
    return Decoded(end.pointers_BN, end.p_BN2[..., 0], end.p_BN2[..., 1], steps_B, end.passes)


def drafts_of(state_B4, played_BT, target_B, draft: int) -> Step:
    """The next step, and `draft` steps after it if each advances, (B, draft + 1)."""
    taken_B1, pointer_B1, run_B1 = (a_B[:, None] for a_B in state_B4.T[:3])
    ahead_1S = jnp.arange(draft + 1)[None, :]
    pointer_BS = pointer_B1 + ahead_1S
    counted_1S = (ahead_1S == 0).astype(jnp.int32)  # the one that plays now
    replays = pick(played_BT, pointer_BS) > counted_1S, pick(played_BT, pointer_BS + 1) > 0
    replay_BS2 = jnp.stack(replays, -1).astype(jnp.float32)
    return Step(pointer_BS, run_B1 + ahead_1S, taken_B1 + ahead_1S, target_B, replay_BS2)


def empty_caches(settings: PointerSettings, batch: int) -> tuple:
    """The decoder's caches before the first step."""
    shape = batch, 2 * settings.heads, settings.decoder_window, settings.width // settings.heads
    return (jnp.zeros(shape, jnp.dtype(settings.dtype)),) * settings.decoder_layers


def _pass(fixed: Fixed, carry: Carry) -> Carry:
    """Verifies a draft, decides the first step that does not agree with it, and takes all up to that."""
    drafted = drafts_of(carry.state_B4, carry.played_BT, fixed.target_B, fixed.draft)
    h_BSD, longer = fixed.ask("step", fixed.keys, drafted, carry.turns, carry.caches)
    mode_logits_BS3 = fixed.ask("mode_logits", h_BSD, drafted.pointer_BN, fixed.keys)
    key_BS = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(fixed.key_B, drafted.index_BN)
    decided_B1 = _first_other(fixed, carry, drafted, mode_logits_BS3, key_BS)
    step = at_step(drafted, decided_B1)
    played_BV = carry.played_BV + frames_of_bars(
        drafted.pointer_BN[:, 0], step.pointer_BN[:, 0], fixed.settings, carry.played_BV.shape[1]
    )
    share_BV = played_BV.astype(jnp.float32) / float(fixed.settings.frames_per_bar)
    h_B1D, mode_logits_B13, key_B1 = (_at(x, decided_B1) for x in (h_BSD, mode_logits_BS3, key_BS))
    next_B, p_B2 = _decide(fixed, carry, Turn(step, h_B1D, share_BV, key_B1), mode_logits_B13)
    state_B4 = _state_after(carry, step, next_B)
    landed_BV = frames_of_bars(next_B - 1, next_B, fixed.settings, played_BV.shape[1])
    written = _write(fixed, carry, drafted, mode_logits_BS3, decided_B1, next_B, p_B2)
    following = drafts_of(state_B4, carry.played_BT, fixed.target_B, fixed.draft)
    return Carry(
        carry.passes + 1,
        state_B4,
        run_turns(fixed.settings, following),
        caches_up_to(longer, decided_B1[:, 0] + 1, fixed.settings.decoder_window),
        played_BV + jnp.where(state_B4[:, 3:] > 0, 0, landed_BV),
        *written,
    )


def _first_other(fixed: Fixed, carry: Carry, drafted: Step, mode_logits_BS3, key_BS):
    """The first of the drafted steps that must be decided: which does not advance, or is the last, (B, 1)."""
    mode_BS, _ = _pick(mode_logits_BS3, fixed.temperature, key_BS, MODE_NOISE)
    agrees_BS = (mode_BS == ADVANCE) & (drafted.index_BN < fixed.max_steps - 1)
    if fixed.rules:
        agrees_BS &= ~ends_before(fixed.keys, carry.played_BT, drafted.pointer_BN + 1)
    return jnp.argmin(agrees_BS.at[:, -1].set(False), axis=1)[:, None]


def _decide(fixed: Fixed, carry: Carry, turn: Turn, mode_logits_B13):
    """`choose`, knowing every frame that was played, be it in this pass."""

    def played(frame_BX):
        in_this_pass_BX = (carry.state_B4[:, 1:2] < frame_BX) & (frame_BX <= turn.step.pointer_BN)
        return (pick(carry.played_BT, frame_BX) > 0) | in_this_pass_BX

    return choose(fixed, turn, mode_logits_B13, played)


def _state_after(carry: Carry, step: Step, next_B):
    """The state with which the next pass begins; that of an edit that has ended stays."""
    run_B = jnp.where(next_B == step.pointer_BN[:, 0] + 1, step.run_BN[:, 0] + 1, 0)
    stopped_B = (next_B == STOP).astype(jnp.int32)
    state_B4 = jnp.stack([step.index_BN[:, 0] + 1, next_B, run_B, stopped_B], axis=1)
    return jnp.where(carry.state_B4[:, 3:] > 0, carry.state_B4, state_B4)


def _write(fixed: Fixed, carry: Carry, drafted: Step, mode_logits_BS3, decided_B1, next_B, p_B2):
    """What was played, the pointers and their probabilities, with the steps of this pass.

    Each example's apart: one scatter to all of them would be computed whole on every device.
    """
    ahead_1S = jnp.arange(fixed.draft + 1)[None, :]
    is_decided_BS = ahead_1S == decided_B1
    next_BS = jnp.where(is_decided_BS, next_B[:, None], drafted.pointer_BN + 1)
    log_p_BS3 = jax.nn.log_softmax(mode_logits_BS3, axis=-1)
    drafted_p_BS2 = jnp.stack([log_p_BS3[..., ADVANCE], jnp.exp(log_p_BS3[..., STOP_MODE])], -1)
    p_BS2 = jnp.where(is_decided_BS[..., None], p_B2[:, None], drafted_p_BS2)
    written_BS = (ahead_1S <= decided_B1) & (carry.state_B4[:, 3:] == 0)
    place_BS = jnp.where(written_BS, drafted.index_BN, fixed.max_steps)
    frame_BS = jnp.where(written_BS & (next_BS >= 0), next_BS, carry.played_BT.shape[1])
    return (
        jax.vmap(_count)(carry.played_BT, frame_BS),
        jax.vmap(_put)(carry.pointers_BN, place_BS, next_BS),
        jax.vmap(_put)(carry.p_BN2, place_BS, p_BS2),
    )


def _count(played_T, at_S):
    return played_T.at[at_S].add(1, mode="drop")


def _put(x_NX, at_S, new_SX):
    return x_NX.at[at_S].set(new_SX, mode="drop")


def choose(fixed: Fixed, turn: Turn, mode_logits_B13, played: Callable):
    """Next pointer or STOP (B,), and its log-probability beside the probability of stopping (B, 2).

    First the mode; for a jump then bar → beat → frame; then the rules, if any. `played` tells of frames
    (B, X) which were. The log-probability is the decoder's own of what is returned.
    """
    step = turn.step
    mode_B1, _ = _pick(mode_logits_B13, fixed.temperature, turn.key_B1, MODE_NOISE)
    target_B1, target_p_B1 = land(fixed, turn)
    next_B1 = jnp.select([mode_B1 == ADVANCE, mode_B1 == JUMP], [step.pointer_BN + 1, target_B1], STOP)
    if fixed.rules:
        next_B1, target_p_B1 = _allowed(fixed, turn, next_B1, target_p_B1, played)
    modes = [next_B1 == STOP, next_B1 == step.pointer_BN + 1]
    mode_B1 = jnp.select(modes, [STOP_MODE, ADVANCE], JUMP)
    log_p_B13 = jax.nn.log_softmax(mode_logits_B13, axis=-1)
    log_p_B1 = jnp.take_along_axis(log_p_B13, mode_B1[..., None], axis=-1)[..., 0]
    log_p_B1 = log_p_B1 + jnp.where(mode_B1 == JUMP, target_p_B1, 0.0)
    stop_p_B1 = jnp.exp(log_p_B13[..., STOP_MODE])
    return next_B1[:, 0].astype(jnp.int32), jnp.concatenate([log_p_B1, stop_p_B1], axis=1)


def _allowed(fixed: Fixed, turn: Turn, next_B1, target_p_B1, played: Callable):
    """What the rules make of a choice, and the log-probability of where it leads if it jumps, (B, 1) each.

    What would play anew what is not looped ends the edit instead, and what would end it while something is
    left out goes there (`catch_up`).
    """
    step, looped_BT = turn.step, fixed.keys.hints.looped_BT
    jumps_B1 = (next_B1 != STOP) & (next_B1 != step.pointer_BN + 1)
    back_B1 = jumps_B1 & jumps_back(fixed.settings, fixed.keys, step, next_B1, turn.share_BV)
    ends_B1 = (next_B1 == STOP) | back_B1 | (played(next_B1) & ~pick(looped_BT, next_B1))
    left_BV = forgotten(fixed, turn, played)
    forgets_B1 = ends_B1 & left_BV.any(1, keepdims=True)
    first = next_B1, target_p_B1
    second_B1, second_p_B1 = jax.lax.cond(
        forgets_B1.any(), lambda: catch_up(fixed, turn, left_BV), lambda: first
    )
    next_B1 = jnp.where(forgets_B1, second_B1, jnp.where(ends_B1, STOP, next_B1))
    return next_B1, jnp.where(forgets_B1, second_p_B1, target_p_B1)


def land(fixed: Fixed, turn: Turn):
    """Where a jump leads, bar → beat → frame, and its log-probability, (B, 1) each."""
    size, at_B1 = fixed.settings.frames_per_beat, turn.step.pointer_BN

    def choice(part: int, logits_B1C):
        return _pick(logits_B1C, fixed.temperature, turn.key_B1, part)

    bar, bar_p = choice(BAR_NOISE, _bar_logits(fixed, turn))
    beat, beat_p = choice(BEAT_NOISE, fixed.ask("beat_logits", turn.h_B1D, bar, at_B1, fixed.keys))
    beat = bar * (fixed.settings.frames_per_bar // size) + beat
    frame, frame_p = choice(FRAME_NOISE, fixed.ask("frame_logits", turn.h_B1D, beat, at_B1, fixed.keys))
    return beat * size + frame, bar_p + beat_p + frame_p


def catch_up(fixed: Fixed, turn: Turn, left_BV):
    """The start of a stretch that was left out, in a bar chosen among these, as `land` gives it."""
    size, at_B1 = fixed.settings.frames_per_beat, turn.step.pointer_BN
    bars = _bar_logits(fixed, turn), fixed.temperature, turn.key_B1, CATCH_UP_NOISE
    bar, bar_p = _pick(*bars, left_BV[:, None])
    frame = jnp.take_along_axis(fixed.keys.hints.sure_start_BV, bar, axis=1)
    beat = frame // size
    in_bar = beat % (fixed.settings.frames_per_bar // size)
    beat_p = _log_p(fixed.ask("beat_logits", turn.h_B1D, bar, at_B1, fixed.keys), in_bar)
    frame_p = _log_p(fixed.ask("frame_logits", turn.h_B1D, beat, at_B1, fixed.keys), frame % size)
    return frame, bar_p + beat_p + frame_p


def _bar_logits(fixed: Fixed, turn: Turn):
    step = turn.step
    played = step.pointer_BN, step.began_BN, turn.share_BV[:, None]
    return fixed.ask("bar_logits", turn.h_B1D, *played, fixed.keys)


def ends_before(keys, played_BT, frame_BS):
    """Frames before which an edit ends: played already, and not looped."""
    return (pick(played_BT, frame_BS) > 0) & ~pick(keys.hints.looped_BT, frame_BS)


def jumps_back(settings: PointerSettings, keys, step: Step, target_B1, played_BV):
    """Whether a jump ends the edit instead: to a stretch most of which was played and that is not looped.

    `played_BV` are shares of bars; jumps forward within a bar are taken.
    """
    in_bar = target_B1 // settings.frames_per_bar == step.pointer_BN // settings.frames_per_bar
    onwards = in_bar & (target_B1 > step.pointer_BN)
    played = was_played(target_B1, played_BV[:, None], keys.n_frames_B, settings.frames_per_bar)
    return played & ~onwards & ~pick(keys.hints.looped_BT, target_B1)


def forgotten(fixed: Fixed, turn: Turn, played: Callable):
    """Bars (B, V) that an edit must not end without: see `left_out`; none where a length is asked for."""
    start_BV, size = fixed.keys.hints.sure_start_BV, fixed.settings.frames_per_bar
    left_BV = left_out(start_BV, turn.share_BV, fixed.keys.n_frames_B, size) & ~played(start_BV)
    return left_BV & (turn.step.target_B <= 0)[:, None]


def at_step(steps: Step, at_B1) -> Step:
    """One step of several."""
    arrays = steps.pointer_BN, steps.run_BN, steps.index_BN, steps.replay_BN2
    pointer_B1, run_B1, index_B1, replay_B12 = (_at(a_BSX, at_B1) for a_BSX in arrays)
    return Step(pointer_B1, run_B1, index_B1, steps.target_B, replay_B12)


def frames_of_bars(before_B, last_B, settings: PointerSettings, n_bars: int):
    """How many of the frames after `before` up to `last` lie in each bar, (B, V)."""
    start_1V = jnp.arange(n_bars)[None, :] * settings.frames_per_bar

    def until(frame_B):
        return jnp.clip(frame_B[:, None] + 1 - start_1V, 0, settings.frames_per_bar)

    return until(last_B) - until(before_B)


def caches_up_to(longer, taken_B, window: int) -> tuple:
    """The `window` entries before the end of what was taken, from caches with the drafted steps added."""
    cut = jax.vmap(lambda entries_GLK, n: jax.lax.dynamic_slice_in_dim(entries_GLK, n, window, axis=1))
    return tuple(cut(longer_BGLK, taken_B) for longer_BGLK in longer)


def _at(x_BSX, at_B1):
    return jnp.take_along_axis(x_BSX, at_B1.reshape(len(at_B1), *[1] * (x_BSX.ndim - 1)), axis=1)


def _pick(logits_BNC, temperature, key_BN, part: int, allowed_BNC: Any = True):
    """Argmax of logits plus Gumbel noise scaled by the temperature (Gumbel-max trick): 0 is greedy.

    The noise of a step depends on its key and on `part` alone, not on how many steps are drawn together. What
    is not allowed is not chosen; the log-probability is that among all.
    """
    logits_BNC = logits_BNC.astype(jnp.float32)

    def noise():
        keys_BN = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, part)))(key_BN)
        return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits_BNC.shape[-1:])))(keys_BN)

    noise_BNC = jax.lax.cond(temperature > 0, noise, lambda: jnp.zeros_like(logits_BNC))
    noisy_BNC = logits_BNC + noise_BNC * temperature
    possible_BNC = (logits_BNC > NEVER / 2) & allowed_BNC  # whatever the noise
    index_BN = jnp.argmax(jnp.where(possible_BNC, noisy_BNC, -jnp.inf), axis=-1)
    return index_BN, _log_p(logits_BNC, index_BN)


def _log_p(logits_BNC, index_BN):
    log_p_BNC = jax.nn.log_softmax(logits_BNC, axis=-1)
    return jnp.take_along_axis(log_p_BNC, index_BN[..., None], axis=-1)[..., 0]
