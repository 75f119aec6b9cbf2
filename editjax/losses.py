"""Exact negative log-likelihood of an edit under the pointer network, and the dense losses beside it.

The likelihood factorises into modes at every step and targets at jumps only, so the target softmaxes are
evaluated for the few jumps, gathered to a static number per example, and never for all steps × all frames.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from editjax.edits import STOP, UNALIGNED
from editjax.events import UNKNOWN
from editjax.models import style
from editjax.models.coverage import played_before, was_played
from editjax.models.encoder import encode, kinds
from editjax.models.layers import frame_mask
from editjax.models.pointer import ADVANCE, JUMP, STOP_MODE, PointerSettings, Step, decoder_call
from editjax.models.rows import pick, take
from editjax.models.stems import Stems
from editjax.sliding import over_window

BOUNDARY_FRAMES, BOUNDARY_WEIGHT = 3, 10.0


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses, and bounds.

    `sequence` and `style` weigh nats per event (jumps and the stop), `structure` nats per labelled frame, at
    boundaries ten times, `order` nats per pair of stretches, `kinds` nats per labelled landmark, `length` the
    squared logarithm of a ratio, `smoothness` expected joins per event.
    `max_jumps` bounds the jumps of an example that are trained on. A style is inferred from the edit itself,
    or with probability `named_style` drawn for its name; half of the former know the edited track alone. Each
    dimension of the style may cost `free_nats` on average for nothing (free bits: Kingma et al. 2016).
    """

    sequence: float = 1.0
    structure: float = 1.0
    order: float = 1.0
    length: float = 0.1
    style: float = 1.0
    kinds: float = 1.0
    smoothness: float = 0.01
    max_jumps: int = 64
    named_style: float = 0.5
    free_nats: float = 0.1


class Targets(NamedTuple):
    """Teacher-forcing view of pointer sequences, (B, N) each.

    `step`: decoder inputs; `pointer`: raw frame to play; `mode`: advance, jump or stop; `again`: played
    before; `counted`: steps in the likelihood (padding and unaligned frames are not).
    """

    step: Step
    pointer_BN: jax.Array
    mode_BN: jax.Array
    again_BN: jax.Array
    counted_BN: jax.Array


def targets(pointers_BN, steps_B, target_B, n_frames: int) -> Targets:
    """Inputs and targets of every step from pointers that end in STOP and are padded with PAD.

    `n_frames` is at least the length of the recordings.

    An unaligned frame leaves the loss, and the step after it continues from the last aligned pointer.
    """
    n_steps = pointers_BN.shape[1]
    index_BN = jnp.broadcast_to(jnp.arange(n_steps)[None, :], pointers_BN.shape)
    aligned = pointers_BN >= 0
    last_BN = jax.lax.cummax(jnp.where(aligned, index_BN, -1), axis=1)
    carried = jnp.take_along_axis(pointers_BN, jnp.maximum(last_BN, 0), axis=1)
    carried = jnp.where(last_BN >= 0, carried, -1)
    before_BN = jnp.pad(carried, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    advance = pointers_BN == before_BN + 1
    mode_BN = jnp.where(pointers_BN == STOP, STOP_MODE, jnp.where(advance, ADVANCE, JUMP))
    jumped = (mode_BN == JUMP) & aligned
    since_BN = jax.lax.cummax(jnp.where(jumped, index_BN, -1), axis=1)
    since_BN = jnp.pad(since_BN, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    run_BN = index_BN - 1 - since_BN
    counted = frame_mask(steps_B, n_steps) & (pointers_BN != UNALIGNED)
    first_BT = _first_played(pointers_BN, index_BN, n_frames)
    again_BN = aligned & (pick(first_BT, pointers_BN) < index_BN)
    was_BN = (last_BN >= 0) & jnp.take_along_axis(again_BN, jnp.maximum(last_BN, 0), axis=1)
    was_BN = jnp.pad(was_BN, ((0, 0), (1, 0)))[:, :-1]
    replay_BN2 = jnp.stack([was_BN, pick(first_BT, before_BN + 1) < index_BN], -1).astype(jnp.float32)
    step = Step(before_BN, run_BN, index_BN, target_B, replay_BN2)
    return Targets(step, pointers_BN, mode_BN, again_BN, counted)


def _first_played(pointers_BN, index_BN, n_frames: int):
    """The step at which each frame is played first, (B, T + 1); N where it never is."""
    never_T = jnp.full(n_frames + 1, pointers_BN.shape[1])

    def of_one(pointers_N, index_N):
        frame_N = jnp.where(pointers_N >= 0, pointers_N, n_frames + 1)
        return never_T.at[frame_N].min(index_N, mode="drop")

    # By vmap: numbering the examples of a batch that is split over devices would gather it on each.
    return jax.vmap(of_one)(pointers_BN, index_BN)


class SequenceNll(NamedTuple):
    """Sums per example (B,): mode and target parts; jumps, those whose targets count, those exact. The order
    loss of the places that the jumps lead to, and how many joins the model expects to make on its way."""

    mode_B: jax.Array
    bar_B: jax.Array
    beat_B: jax.Array
    frame_B: jax.Array
    jumps_B: jax.Array
    targets_B: jax.Array
    jumps_exact_B: jax.Array
    order_B: jax.Array
    joins_B: jax.Array


def sequence_nll(settings: PointerSettings, params, keys, t: Targets, steps_B, max_jumps: int) -> SequenceNll:
    """Exact −log p of each sequence, in nats: `mode + bar + beat + frame`.

    Jumps beyond `max_jumps` in an example are left out of the target parts.
    """
    h_BND = decoder_call(settings, params, "states", keys, t.step, steps_B)
    return nll_of_states(settings, params, keys, t, h_BND, max_jumps)


def nll_of_states(settings: PointerSettings, params, keys, t: Targets, h_BND, max_jumps: int) -> SequenceNll:
    """The same from the decoder's states."""

    def ask(method, *args):
        return decoder_call(settings, params, method, *args)

    mode_logits = ask("mode_logits", h_BND, t.step.pointer_BN, keys)
    mode_BN = jnp.where(t.counted_BN, _nll(mode_logits, t.mode_BN), 0.0)
    joins_BN = jnp.where(t.counted_BN, jax.nn.softmax(mode_logits, -1)[..., JUMP], 0.0)

    jumps = jumps_of(settings, params, keys, t, h_BND, max_jumps)
    real_BJ, target_BJ, parts = jumps.real_BJ, jumps.target_BJ, jumps.parts
    bar_B, beat_B, frame_B = (jnp.where(real_BJ, _nll(logits, label), 0.0).sum(1) for logits, label in parts)
    exact_BJ = real_BJ & jnp.stack([jnp.argmax(a, -1) == b for a, b in parts]).all(0)
    again_BJ = was_played(target_BJ, jumps.played_BJV, keys.n_frames_B, settings.frames_per_bar)
    place_BJ = jnp.take_along_axis(keys.hints.place_BV, target_BJ // settings.frames_per_bar, axis=1)
    order_B = order_loss(place_BJ, real_BJ & ~again_BJ)
    jumps_B = ((t.mode_BN == JUMP) & t.counted_BN).sum(1)
    counts = jumps_B, real_BJ.sum(1), exact_BJ.sum(1)
    return SequenceNll(mode_BN.sum(1), bar_B, beat_B, frame_B, *counts, order_B, joins_BN.sum(1))


class Jumps(NamedTuple):
    """The first jumps of each example, (B, J): the step of each, whether there is one, where it leads, shares
    of bars that were played before, and logits and choice of its bar, beat and frame."""

    step_BJ: jax.Array
    real_BJ: jax.Array
    target_BJ: jax.Array
    played_BJV: jax.Array
    parts: tuple[tuple[jax.Array, jax.Array], ...]


def jumps_of(settings: PointerSettings, params, keys, t: Targets, h_BND, max_jumps: int) -> Jumps:
    """The first `max_jumps` jumps, and what is said of where they lead, from the decoder's states."""

    def ask(method, *args):
        return decoder_call(settings, params, method, *args)

    jump_BN = (t.mode_BN == JUMP) & t.counted_BN
    count = min(max_jumps, jump_BN.shape[1])
    # The j-th jump is where their number reaches j; top_k would gather a batch that is split over devices.
    reached_BN = jnp.cumsum(jump_BN, axis=1, dtype=jnp.int32)
    where_BJ = jax.vmap(jnp.searchsorted, (0, None))(reached_BN, jnp.arange(1, count + 1, dtype=jnp.int32))
    real_BJ = where_BJ < jump_BN.shape[1]
    where_BJ = jnp.minimum(where_BJ, jump_BN.shape[1] - 1)
    h_BJD = jnp.take_along_axis(h_BND, where_BJ[..., None], axis=1)
    before_BJ = jnp.take_along_axis(t.step.pointer_BN, where_BJ, axis=1)
    began_BJ = jnp.take_along_axis(t.step.began_BN, where_BJ, axis=1)
    target_BJ = jnp.where(real_BJ, jnp.take_along_axis(t.pointer_BN, where_BJ, axis=1), 0)
    bar_BJ, beat_BJ = target_BJ // settings.frames_per_bar, target_BJ // settings.frames_per_beat
    per_bar = settings.frames_per_bar // settings.frames_per_beat
    n_bars = keys.bars_BVD.shape[1]
    played_BJV = played_before(t.pointer_BN, jump_BN, count, n_bars, settings.frames_per_bar)
    parts = (
        (ask("bar_logits", h_BJD, before_BJ, began_BJ, played_BJV, keys), bar_BJ),
        (ask("beat_logits", h_BJD, bar_BJ, before_BJ, keys), beat_BJ % per_bar),
        (ask("frame_logits", h_BJD, beat_BJ, before_BJ, keys), target_BJ % settings.frames_per_beat),
    )
    return Jumps(where_BJ, real_BJ, target_BJ, played_BJV, parts)


def _nll(logits, label):
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(log_p, label[..., None], axis=-1)[..., 0]


def order_loss(place_BJ, first_BJ):
    """Logistic loss of the order of every two places played for the first time, one after the other (B,).

    RankNet (Burges et al. 2005), averaged over the pairs of an example; zero where there are none.
    """
    later_JJ = jnp.triu(jnp.ones((place_BJ.shape[1],) * 2, bool), 1)
    pairs_BJJ = first_BJ[:, :, None] & first_BJ[:, None, :] & later_JJ[None]
    ahead_BJJ = place_BJ[:, :, None] - place_BJ[:, None, :]
    loss_BJJ = jnp.where(pairs_BJJ, jax.nn.softplus(ahead_BJJ), 0.0)
    return loss_BJJ.sum((1, 2)) / jnp.maximum(pairs_BJJ.sum((1, 2)), 1).astype(jnp.float32)


def structure_loss(logits_BTS, structure_BT):
    """Cross-entropy of cut / keep / loop per raw frame, averaged over labelled frames (label −1 is none).

    Frames within BOUNDARY_FRAMES of a change of label count BOUNDARY_WEIGHT times: they are one in fifty, and
    where a stretch begins and ends is heard at every join.
    """
    before_BT, labelled = structure_BT[:, :-1], structure_BT >= 0
    change_BT = labelled & jnp.pad(structure_BT[:, 1:] != before_BT, ((0, 0), (1, 0)))
    near_BT = over_window(jnp.logical_or, change_BT, BOUNDARY_FRAMES - 1, BOUNDARY_FRAMES, False)
    weight_BT = jnp.where(labelled, jnp.where(near_BT, BOUNDARY_WEIGHT, 1.0), 0.0)
    nll_BT = _nll(logits_BTS, jnp.maximum(structure_BT, 0))
    return (weight_BT * nll_BT).sum() / jnp.maximum(weight_BT.sum(), 1.0)


def kind_loss(logits_BLK, kind_BT, frames: int):
    """Cross-entropy of what every landmark is, averaged over those of which it is known, and the share that
    is right. A landmark, of so many frames, is what the latest kind in `events.KINDS` among them says."""
    n_landmarks = logits_BLK.shape[1]
    padding = ((0, 0), (0, n_landmarks * frames - kind_BT.shape[1]))
    padded_BT = jnp.pad(kind_BT, padding, constant_values=UNKNOWN)
    kind_BL = padded_BT.reshape(-1, n_landmarks, frames).max(-1)
    known_BL = kind_BL != UNKNOWN
    count = jnp.maximum(known_BL.sum(), 1).astype(jnp.float32)
    nll_BL = _nll(logits_BLK, jnp.maximum(kind_BL, 0))
    right_BL = known_BL & (jnp.argmax(logits_BLK, -1) == kind_BL)
    return jnp.where(known_BL, nll_BL, 0.0).sum() / count, right_BL.sum().astype(jnp.float32) / count


def length_loss(log_length_B, steps_B):
    """Squared error of the log length: 0.1 means about 37 % off."""
    return jnp.mean((log_length_B - jnp.log(jnp.maximum(steps_B - 1, 1).astype(jnp.float32))) ** 2)


class Style(NamedTuple):
    """The style of every example (B, Z); the mean cost of inferring it in nats, with free bits (`cost`) and
    without (`nats`); in how many dimensions examples differ (`active`)."""

    style_BZ: jax.Array
    cost: jax.Array
    nats: jax.Array
    active: jax.Array


def infer_style(settings: PointerSettings, params, batch, t: Targets, weights: LossSettings, key) -> Style:
    """A style for every example, drawn from the posterior given its edit or from its name's prior.

    Active are the dimensions in which edits differ beyond the name of their style.
    """
    named_key, known_key, prior_key, posterior_key = jax.random.split(key, 4)
    known = style.prior(settings, batch.style_B)
    if not settings.style_width:
        zero = jnp.zeros(())
        return Style(known.mean_BZ, zero, zero, zero)
    size = batch.style_B.shape
    alone_B = jax.random.bernoulli(known_key, 0.5, size)
    joins_BN2 = jnp.stack([t.mode_BN == JUMP, t.again_BN], -1).astype(jnp.float32)
    inferred = style.posterior(
        settings,
        params,
        style.Example(
            take(batch.mel_BTF, batch.pointers_BN),
            batch.steps_B - 1,
            jnp.where(alone_B[:, None, None], 0.0, joins_BN2),
            jnp.where(alone_B, 0, batch.frames_B),
        ),
    )
    named_B1 = jax.random.bernoulli(named_key, weights.named_style, size)[:, None]
    style_BZ = jnp.where(named_B1, known.draw(prior_key), inferred.draw(posterior_key))
    nats_Z = style.divergence(inferred, known).mean(0)
    active = (jnp.var(inferred.mean_BZ - known.mean_BZ, axis=0) > style.ACTIVE).sum()
    return Style(style_BZ, jnp.maximum(nats_Z, weights.free_nats).sum(), nats_Z.sum(), active)


def pointer_loss(params, batch, settings: PointerSettings, weights: LossSettings, key):
    """(loss, metrics) of a `data.Batch`.

    The sequence part is nats per event (jumps and the stop), because events are what there is to learn:
    97–99 % of the steps advance. What the style costs is counted in the same unit, so that the two are the
    negative evidence lower bound. The smoothness is the number of joins that the model expects to make, per
    event.
    """
    t = targets(batch.pointers_BN, batch.steps_B, batch.target_B, batch.mel_BTF.shape[1])
    inferred = infer_style(settings, params, batch, t, weights, key)
    asked = style.Asked(batch.target_B, inferred.style_BZ)
    recording = batch.mel_BTF, batch.frames_B, batch.phase_BT3
    stems = Stems(batch.stems_BIMF, batch.present_BI)
    encoded = encode(settings, params["encoder"], *recording, asked, stems)
    keys = decoder_call(settings, params, "keys", encoded)
    nll = sequence_nll(settings, params, keys, t, batch.steps_B, weights.max_jumps)
    jumps = jnp.maximum(nll.targets_B.sum(), 1).astype(jnp.float32)
    events = (nll.jumps_B.sum() + batch.steps_B.shape[0]).astype(jnp.float32)
    sequence = (nll.mode_B + nll.bar_B + nll.beat_B + nll.frame_B).sum() / events
    structure = structure_loss(encoded.structure_BTS, batch.structure_BT)
    order = nll.order_B.mean()
    length = length_loss(encoded.log_length_B, batch.steps_B)
    loss = weights.sequence * sequence + weights.structure * structure
    loss = loss + weights.order * order + weights.length * length
    style_cost = inferred.cost * batch.steps_B.shape[0] / events
    smoothness = nll.joins_B.sum() / events
    loss = loss + weights.style * style_cost + weights.smoothness * smoothness
    heard = {}
    if settings.kinds:
        logits_BLK = kinds(params["encoder"], encoded.landmarks_BLD)
        heard["kind"], heard["kind_right"] = kind_loss(logits_BLK, batch.kind_BT, settings.landmark_frames)
        loss = loss + weights.kinds * heard["kind"]
    kept = jnp.argmax(encoded.structure_BTS, -1) > 0
    labelled = batch.structure_BT >= 0
    both = (kept & (batch.structure_BT > 0)).sum().astype(jnp.float32)
    either = ((kept & labelled) | (batch.structure_BT > 0)).sum().astype(jnp.float32)
    return loss, heard | {
        "sequence": sequence,
        "mode_nll": nll.mode_B.sum() / events,
        "bar_nll": nll.bar_B.sum() / jumps,
        "beat_nll": nll.beat_B.sum() / jumps,
        "frame_nll": nll.frame_B.sum() / jumps,
        "jump_exact": nll.jumps_exact_B.sum().astype(jnp.float32) / jumps,
        "structure": structure,
        "structure_iou": both / jnp.maximum(either, 1.0),
        "order": order,
        "length": length,
        "smoothness": smoothness,
        "style_nats": inferred.nats,
        "style_active": inferred.active,
    }
