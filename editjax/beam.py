"""The likeliest edits of one recording: beam search that verifies drafts, the whole loop on the device.

Step by step, each hypothesis of the beam is extended by mode, bar, beat and frame, and after each of these
the `width` likeliest stay (Graves 2012, sequence transduction; Sutskever et al. 2014); those that have ended
keep their place as long as they are among them. A beam of one is greedy decoding; one that holds all there is
finds the likeliest sequences.

Nearly always all hypotheses just advance. So each pass drafts that they do, as `decode` does, and adds up
what it costs them; only the first step at which another choice would enter the beam, or a hypothesis leave
it, is expanded. What is drafted changes nothing.

The likeliest sequences differ by a frame here and there. With `apart` above 0, hypotheses that have come to
nearly the same place and have played nearly the same are recombined: the likelier stays (as in the word
lattices of speech recognisers).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from editjax.decode import (
    DRAFT_STEPS,
    Fixed,
    Turn,
    at_step,
    caches_up_to,
    catch_up,
    drafts_of,
    empty_caches,
    ends_before,
    forgotten,
    frames_of_bars,
    jumps_back,
)
from editjax.edits import PAD, STOP
from editjax.models.pointer import ADVANCE, JUMP, STOP_MODE, PointerSettings, Step, run_turns
from editjax.models.rows import pick

STAY = 3  # the fourth kind of extension: an edit that has ended has none
REACH = 12.0
"""Choices and hypotheses e¹² times less likely than the likeliest are let go."""
IMPOSSIBLE = -1e8


class Hypotheses(NamedTuple):
    """The edits found, likeliest first; W of them, those without a sequence have log-probability −inf.

    Pointers (W, N) as `Decoded` has them; log-probability of each sequence (W,) and of each step's choice
    (W, N); passes of the decoder.
    """

    pointers_WN: jax.Array
    log_p_W: jax.Array
    log_p_WN: jax.Array
    passes: jax.Array


class Paths(NamedTuple):
    """What hypotheses hand on to those that extend them."""

    played_WV: jax.Array
    played_WT: jax.Array
    pointers_WN: jax.Array
    log_p_WN: jax.Array


class Beam(NamedTuple):
    """Loop state. `score_W` orders the beam, likeliest first, −inf where there is no hypothesis: it is
    `log_p_W` but where a rule ended an edit or led it elsewhere (see `_ended`)."""

    passes: jax.Array
    state_W4: jax.Array  # as in `decode`
    score_W: jax.Array
    log_p_W: jax.Array
    turns: tuple
    caches: tuple
    paths: Paths


class Extension(NamedTuple):
    """One step more: of which hypothesis, of what kind, to where; and score and log-probability then."""

    parent_W: jax.Array
    kind_W: jax.Array
    next_W: jax.Array
    score_W: jax.Array
    log_p_W: jax.Array


@partial(jax.jit, static_argnames=("settings", "max_steps", "width", "apart", "draft"))
def beam_search(
    settings: PointerSettings,
    params,
    keys,
    target_1,
    max_steps: int,
    width: int,
    apart: int = 0,
    draft: int = DRAFT_STEPS,
    reach: float | jax.Array = REACH,
) -> Hypotheses:
    """The `width` likeliest edits that the beam finds for one recording (batch 1), by the rules of `decode`.

    `keys` are of `encode`, `target_1` is the wanted length in frames (0: as long as it comes). With `apart`
    frames, hypotheses no farther apart than that, and with at most twice as many frames that only one of them
    has played, count as one. Hypotheses more than `reach` nats below the likeliest are let go. `draft` 0 goes
    step by step, with the same result.
    """
    target_W = jnp.repeat(target_1, width)
    fixed = Fixed(settings, params, keys, target_W, max_steps, draft)
    state_W4 = jnp.tile(jnp.array([[0, -1, 0, 0]], jnp.int32), (width, 1))
    score_W = jnp.where(jnp.arange(width) == 0, 0.0, -jnp.inf)
    paths = Paths(
        jnp.zeros((width, keys.bars_BVD.shape[1]), jnp.int32),
        jnp.zeros((width, keys.frames_BTD.shape[1]), jnp.int32),
        jnp.full((width, max_steps), PAD, jnp.int32),
        jnp.zeros((width, max_steps), jnp.float32),
    )
    turns = run_turns(settings, drafts_of(state_W4, paths.played_WT, target_W, draft))
    caches = empty_caches(settings, width)
    start = Beam(jnp.zeros((), jnp.int32), state_W4, score_W, score_W, turns, caches, paths)

    def going(beam: Beam):
        return (_live(beam) & (beam.state_W4[:, 0] < max_steps)).any()

    end = jax.lax.while_loop(going, partial(_pass, fixed, apart, reach), start)
    order_W = jnp.argsort(-end.log_p_W)
    paths = end.paths
    return Hypotheses(paths.pointers_WN[order_W], end.log_p_W[order_W], paths.log_p_WN[order_W], end.passes)


def _pass(fixed: Fixed, apart: int, reach, beam: Beam) -> Beam:
    """Verifies a draft of every hypothesis and expands the first step at which not all of them advance."""
    drafted = drafts_of(beam.state_W4, beam.paths.played_WT, fixed.target_B, fixed.draft)
    h_WSD, longer = _each(partial(fixed.ask, "step", fixed.keys), drafted, beam.turns, beam.caches)
    logits_WS3 = _each(lambda h, at: fixed.ask("mode_logits", h, at, fixed.keys), h_WSD, drafted.pointer_BN)
    log_p_WS3 = jax.nn.log_softmax(logits_WS3, axis=-1)
    cost_WS = jnp.where(_live(beam)[:, None], log_p_WS3[..., ADVANCE], 0.0)
    before_WS = jnp.cumsum(cost_WS, axis=1) - cost_WS
    event = _first_event(fixed, reach, beam, drafted, log_p_WS3, beam.score_W[:, None] + before_WS)
    event_W1 = jnp.full((len(beam.score_W), 1), event)
    beam = _advanced(fixed, beam, drafted, log_p_WS3, event)
    beam = beam._replace(
        passes=beam.passes + 1,
        score_W=beam.score_W + before_WS[:, event],
        log_p_W=beam.log_p_W + before_WS[:, event],
        caches=caches_up_to(longer, event_W1[:, 0] + 1, fixed.settings.decoder_window),
    )
    step, h_W1D = at_step(drafted, event_W1), jax.lax.dynamic_slice_in_dim(h_WSD, event, 1, axis=1)
    extension = _expanded(fixed, apart, reach, beam, step, h_W1D, log_p_WS3[:, event])
    beam = _extended(fixed, beam, step, extension)
    return _recombined(beam, extension, apart) if apart else beam


def _first_event(fixed: Fixed, reach, beam: Beam, drafted: Step, log_p_WS3, before_WS):
    """The first drafted step that is no advance of the whole beam, or that ends the draft."""
    live_W, held_W = _live(beam), jnp.isfinite(beam.score_W)
    after_WS = before_WS + jnp.where(live_W[:, None], log_p_WS3[..., ADVANCE], 0.0)
    other_W = jnp.maximum(log_p_WS3[..., JUMP], log_p_WS3[..., STOP_MODE])
    other_WS = jnp.where(live_W[:, None], before_WS + other_W, -jnp.inf)
    least_1S = jnp.maximum(after_WS, other_WS).max(0, keepdims=True) - reach
    worst_1S = jnp.where(held_W.all(), after_WS.min(0, keepdims=True), -jnp.inf)
    enters_S = (other_WS >= jnp.maximum(worst_1S, least_1S)).any(0)
    leaves_S = (held_W[:, None] & (after_WS < least_1S)).any(0)
    again_WS = ends_before(fixed.keys, beam.paths.played_WT, drafted.pointer_BN + 1)
    ends_S = (live_W[:, None] & again_WS).any(0) | (drafted.index_BN[0] >= fixed.max_steps - 1)
    return jnp.argmax((enters_S | leaves_S | ends_S).at[-1].set(True))


def _advanced(fixed: Fixed, beam: Beam, drafted: Step, log_p_WS3, count) -> Beam:
    """The first `count` drafted steps taken by all that have not ended."""
    played_WV, played_WT, pointers_WN, log_p_WN = beam.paths
    row_W1, ahead_1S = jnp.arange(len(played_WV))[:, None], jnp.arange(fixed.draft + 1)[None, :]
    taken_WS = (ahead_1S < count) & _live(beam)[:, None]
    frame_WS = jnp.where(taken_WS, drafted.pointer_BN + 1, played_WT.shape[1])
    place_WS = jnp.where(taken_WS, drafted.index_BN, fixed.max_steps)
    last_W = drafted.pointer_BN[:, 0] + jnp.where(_live(beam), count, 0)
    in_bars_WV = frames_of_bars(drafted.pointer_BN[:, 0], last_W, fixed.settings, played_WV.shape[1])
    paths = Paths(
        played_WV + in_bars_WV,
        played_WT.at[row_W1, frame_WS].add(1, mode="drop"),
        pointers_WN.at[row_W1, place_WS].set(drafted.pointer_BN + 1, mode="drop"),
        log_p_WN.at[row_W1, place_WS].set(log_p_WS3[..., ADVANCE], mode="drop"),
    )
    return beam._replace(paths=paths)


def _expanded(fixed: Fixed, apart: int, reach, beam: Beam, step: Step, h_W1D, log_p_W3) -> Extension:
    """The likeliest extensions of the beam by one step: modes first, then bars, beats and frames of jumps."""
    s, keys = fixed.settings, fixed.keys
    score_W, parent_W, kind_W = _modes(fixed, reach, beam, step, log_p_W3)
    share_WV = beam.paths.played_WV.astype(jnp.float32) / float(s.frames_per_bar)

    def level(score_W, method, *args):
        logits_W1C = _each(lambda h, *more: fixed.ask(method, h, *more, keys), h_W1D[parent_W], *args)
        log_p_WC = jax.nn.log_softmax(logits_W1C[:, 0], axis=-1)
        return _narrowed(score_W, kind_W == JUMP, log_p_WC, bool(apart) and method == "frame_logits")

    at_W1 = step.pointer_BN
    seen = at_W1[parent_W], step.began_BN[parent_W], share_WV[parent_W][:, None]
    score_W, of_W, bar_W = level(score_W, "bar_logits", *seen)
    parent_W, kind_W = parent_W[of_W], kind_W[of_W]
    score_W, of_W, beat_W = level(score_W, "beat_logits", bar_W[:, None], at_W1[parent_W])
    parent_W, kind_W = parent_W[of_W], kind_W[of_W]
    beat_W = bar_W[of_W] * (s.frames_per_bar // s.frames_per_beat) + beat_W
    score_W, of_W, frame_W = level(score_W, "frame_logits", beat_W[:, None], at_W1[parent_W])
    parent_W, kind_W = parent_W[of_W], kind_W[of_W]
    target_W = beat_W[of_W] * s.frames_per_beat + frame_W
    kinds = [kind_W == ADVANCE, kind_W == JUMP]
    next_W = jnp.select(kinds, [at_W1[parent_W, 0] + 1, target_W], STOP).astype(jnp.int32)
    found = Extension(parent_W, kind_W, next_W, score_W, score_W)
    return _ended(fixed, beam, step, h_W1D, share_WV, log_p_W3, found)


def _modes(fixed: Fixed, reach, beam: Beam, step: Step, log_p_W3):
    """The likeliest of advance, jump, stop of all hypotheses, and of staying ended: score, parent, kind."""
    live_W1 = _live(beam)[:, None]
    again_W = ends_before(fixed.keys, beam.paths.played_WT, step.pointer_BN + 1)[:, 0]
    advance_W, jump_W, stop_W = log_p_W3.T
    stop_W = jnp.where(again_W, jnp.maximum(stop_W, advance_W), stop_W)
    advance_W = jnp.where(again_W, -jnp.inf, advance_W)
    extended_W3 = jnp.where(live_W1, jnp.stack([advance_W, jump_W, stop_W], 1), -jnp.inf)
    stays_W1 = jnp.where(live_W1, -jnp.inf, jnp.zeros_like(live_W1, jnp.float32))
    score_W4 = beam.score_W[:, None] + jnp.concatenate([extended_W3, stays_W1], 1)
    score_W, index_W = jax.lax.top_k(score_W4.reshape(-1), len(advance_W))
    return _let_go(score_W, score_W[0] - reach), index_W // 4, index_W % 4


def _narrowed(score_W, jumps_W, log_p_WC, best_only: bool):
    """The likeliest after one level more of each jump: score, which hypothesis, which choice."""
    width, count = log_p_WC.shape
    choice_1C = jnp.arange(count)[None, :]
    if best_only:
        log_p_WC = jnp.where(choice_1C == jnp.argmax(log_p_WC, axis=1)[:, None], log_p_WC, -jnp.inf)
    unmoved_WC = jnp.where(choice_1C == 0, jnp.zeros_like(log_p_WC), -jnp.inf)
    score_WC = score_W[:, None] + jnp.where(jumps_W[:, None], log_p_WC, unmoved_WC)
    score_W, index_W = jax.lax.top_k(score_WC.reshape(-1), width)
    return _let_go(score_W, IMPOSSIBLE), index_W // count, index_W % count


def _ended(fixed: Fixed, beam: Beam, step: Step, h_W1D, share_WV, log_p_W3, found: Extension) -> Extension:
    """Jumps to what was played end the edit, and what would be left out is jumped to, as in greedy decoding.

    Either holds its place in the beam by the probability of what was forbidden, which is the decoder's
    of ending there; its log-probability is that of the sequence.
    """
    parent_W, kind_W, next_W, score_W, _ = found
    of_parent, next_W1 = jax.tree.map(lambda a: a[parent_W], step), next_W[:, None]
    share_WV, log_p_W3, before_W = share_WV[parent_W], log_p_W3[parent_W], beam.log_p_W[parent_W]
    played_WT, any_key_W1 = beam.paths.played_WT[parent_W], jnp.broadcast_to(jax.random.key(0), next_W1.shape)
    back_W1 = jumps_back(fixed.settings, fixed.keys, of_parent, next_W1, share_WV)
    again_W1 = ends_before(fixed.keys, played_WT, next_W1)
    kind_W = jnp.where((kind_W == JUMP) & (back_W1 | again_W1)[:, 0], STOP_MODE, kind_W)

    def played(frame_1X):
        return pick(played_WT, jnp.broadcast_to(frame_1X, (len(played_WT), frame_1X.shape[1]))) > 0

    turn = Turn(of_parent, h_W1D[parent_W], share_WV, any_key_W1)
    left_WV = forgotten(fixed, turn, played)
    forgets_W = (kind_W == STOP_MODE) & left_WV.any(1)
    second_W, second_p_W = _caught_up(fixed, forgets_W, turn, left_WV)
    follows_W = second_W == of_parent.pointer_BN[:, 0] + 1
    kind_W = jnp.where(forgets_W, jnp.where(follows_W, ADVANCE, JUMP), kind_W)
    next_W = jnp.where(forgets_W, second_W, next_W)
    ends_W, goes_on_W = kind_W == STOP_MODE, score_W - beam.score_W[parent_W]
    caught_up_p_W = jnp.where(follows_W, log_p_W3[:, ADVANCE], log_p_W3[:, JUMP] + second_p_W)
    step_p_W = jnp.select(
        [forgets_W, ends_W, kind_W == STAY],
        [caught_up_p_W, log_p_W3[:, STOP_MODE], jnp.zeros_like(score_W)],
        goes_on_W,
    )
    next_W = jnp.where(ends_W, STOP, next_W)
    same_WW = (next_W[:, None] == next_W[None, :]) & (parent_W[:, None] == parent_W[None, :])
    score_W = jnp.where(jnp.tril(same_WW, -1).any(1), -jnp.inf, score_W)
    log_p_W = jnp.where(jnp.isfinite(score_W), before_W + step_p_W, -jnp.inf)
    return Extension(parent_W, kind_W, next_W, score_W, log_p_W)


def _caught_up(fixed: Fixed, forgets_W, turn: Turn, left_WV):
    """Where those that would leave something out go, and the log-probability of it as a jump: (W,) each."""
    zero_W = jnp.zeros(forgets_W.shape, jnp.int32)

    def found():
        target_W1, log_p_W1 = _each(partial(catch_up, fixed), turn, left_WV)
        return target_W1[:, 0].astype(jnp.int32), log_p_W1[:, 0]

    return jax.lax.cond(forgets_W.any(), found, lambda: (zero_W, zero_W.astype(jnp.float32)))


def _extended(fixed: Fixed, beam: Beam, step: Step, extension: Extension) -> Beam:
    """The beam after the extensions."""
    parent_W, kind_W, next_W, score_W, log_p_W = extension
    width, lives_W = len(parent_W), (kind_W == ADVANCE) | (kind_W == JUMP)
    moved = (parent_W != jnp.arange(width)).any()
    # A loop of at most one turn: unlike a conditional it copies nothing where all stay in their places.
    paths = jax.lax.fori_loop(
        0, moved.astype(jnp.int32), lambda _, paths: jax.tree.map(lambda a: a[parent_W], paths), beam.paths
    )
    row_W = jnp.arange(width)
    place_W = jnp.where(kind_W == STAY, fixed.max_steps, step.index_BN[parent_W, 0])
    frame_W = jnp.where(lives_W, next_W, paths.played_WT.shape[1])
    chosen_W = log_p_W - beam.log_p_W[parent_W]
    landed_WV = frames_of_bars(next_W - 1, next_W, fixed.settings, paths.played_WV.shape[1])
    paths = Paths(
        paths.played_WV + jnp.where(lives_W[:, None], landed_WV, 0),
        paths.played_WT.at[row_W, frame_W].add(1, mode="drop"),
        paths.pointers_WN.at[row_W, place_W].set(next_W, mode="drop"),
        paths.log_p_WN.at[row_W, place_W].set(chosen_W, mode="drop"),
    )
    run_W = jnp.where(kind_W == ADVANCE, step.run_BN[parent_W, 0] + 1, 0)
    state_W4 = jnp.stack([step.index_BN[:, 0] + 1, next_W, run_W, (~lives_W).astype(jnp.int32)], axis=1)
    following = drafts_of(state_W4, paths.played_WT, fixed.target_B, fixed.draft)
    turns = run_turns(fixed.settings, following)
    caches = jax.tree.map(lambda a: a[parent_W], beam.caches)
    return Beam(beam.passes, state_W4, score_W, log_p_W, turns, caches, paths)


def _recombined(beam: Beam, extension: Extension, apart: int) -> Beam:
    """The beam with only the likeliest of those that are alike, where the last step was no mere advance."""
    branched_W = ((extension.kind_W == JUMP) | (extension.kind_W == STOP_MODE)) & jnp.isfinite(beam.score_W)
    all_W = jnp.ones_like(branched_W)

    def first_of_a_kind():
        better_WW = jnp.triu(_alike(beam, apart), 1)  # likelier in the row, alike in the column

        def decide(place, kept_W):
            return kept_W.at[place].set(~(kept_W & better_WW[:, place]).any())

        return jax.lax.fori_loop(0, len(better_WW), decide, all_W)

    kept_W = jax.lax.cond(branched_W.any(), first_of_a_kind, lambda: all_W)
    score_W, log_p_W = (jnp.where(kept_W, a, -jnp.inf) for a in (beam.score_W, beam.log_p_W))
    return beam._replace(score_W=score_W, log_p_W=log_p_W)


def _alike(beam: Beam, apart: int):
    """Which are at nearly the same place, or at their end, after playing nearly the same, (W, W)."""
    played_WT = (beam.paths.played_WT > 0).astype(jnp.float32)
    count_W = played_WT.sum(1)
    only_one_WW = count_W[:, None] + count_W[None, :] - 2.0 * played_WT @ played_WT.T
    pointer_W, held_W = beam.state_W4[:, 1], jnp.isfinite(beam.score_W)
    near_WW = jnp.abs(pointer_W[:, None] - pointer_W[None, :]) <= apart
    both_WW = held_W[:, None] & held_W[None, :] & (_live(beam)[:, None] == _live(beam)[None, :])
    return both_WW & near_WW & (only_one_WW <= 2 * apart)


def _live(beam: Beam):
    """Which hypotheses there are that have not ended."""
    return jnp.isfinite(beam.score_W) & (beam.state_W4[:, 3] == 0)


def _let_go(score_W, least):
    return jnp.where(score_W < jnp.maximum(least, IMPOSSIBLE), -jnp.inf, score_W)


def _each(f, *arrays):
    """A function of batches, for every hypothesis alone: what it reads besides has batch 1 and is shared."""

    def alone(*parts):
        return jax.tree.map(lambda a: a[0], f(*jax.tree.map(lambda a: a[None], parts)))

    return jax.vmap(alone)(*arrays)
