"""How far every moment is from edited audio: one number a score and a step, higher for worse.

    reconstruction   error of the mel, in the scale the decoder foretold (what it heard, it would have coded)
    context          error of the levels and relations that the decoder foretold from the mel alone
    evidence         negative evidence lower bound in nats a channel; the likelihood where nothing is drawn
    latent           distance of latent vector and context from those of edited audio
    relative         how alike a later take is, less half of how alike an earlier one is (learns nothing)
    cycle            error of raw → edited → raw audio (two decoders)
    discriminator    log-odds of not being edited audio, after the edited decoder (two decoders)
    classifier       log-odds of not being edited audio, as it is

Errors and distances are logarithms of means of squares. `standard` puts all of them into the same unit:
standard deviations above the mean of edited audio.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from editjax.models.autoencoder import Coded, Foretold, ScorerSettings, decode, encode, judge, of_scale
from editjax.models.layers import frame_mask
from editjax.models.relations import EARLIER, LATER, heard

DECAY = 0.99
TINY = 1e-6
EARLIER_SHARE = 0.5


class Segments(NamedTuple):
    """Segments of one scale: mel (B, S, F) and context (B, S, C) as `relations.heard`, valid steps (B,)."""

    x_BSF: jax.Array
    context_BSC: jax.Array
    steps_B: jax.Array

    @property
    def mask_BS(self):
        """Which steps there are."""
        return frame_mask(self.steps_B, self.x_BSF.shape[1])

    @property
    def all_BSC(self):
        """Mel and context side by side."""
        return jnp.concatenate([self.x_BSF, self.context_BSC], -1)


def pooled(x_BTF, context_BTC, frames_B, scale: int, reduction: int) -> Segments:
    """Whole recordings as segments of one scale: means of `scale` frames, padded to whole latent vectors."""
    span = scale * reduction
    padding = ((0, 0), (0, -x_BTF.shape[1] % span), (0, 0))
    mask_BT1 = frame_mask(frames_B, x_BTF.shape[1] + padding[1][1])[..., None]
    count_BS1 = jnp.maximum(_sums(mask_BT1.astype(jnp.float32), scale), 1.0)

    def mean(a_BTC):
        return _sums(jnp.where(mask_BT1, jnp.pad(a_BTC, padding), 0.0), scale) / count_BS1

    return Segments(mean(x_BTF), mean(context_BTC), -(-frames_B // scale))


def _sums(a_BTC, scale: int):
    return a_BTC.reshape(a_BTC.shape[0], -1, scale, a_BTC.shape[-1]).sum(2)


def raw_scores(s: ScorerSettings, params, running, segments: Segments, coded: Coded, told: Foretold):
    """Every score of every step, (B, S, scores), in the order of `settings.scores`.

    `told` is what the edited decoder foretold.
    """
    bands, reduction = s.n_mels, s.reduction
    vectors_B = -(-segments.steps_B // reduction)
    z_BSC = (segments.all_BSC - told.mean_BSC) * jnp.exp(-told.log_scale_BSC)
    spread_BS = told.log_scale_BSC.mean(-1)
    at_vector_BSD = jnp.concatenate([_per_step(coded.z_BMZ, reduction), segments.context_BSC], -1)
    usual = running["usual"]
    away_BSD = (at_vector_BSD - usual["latent_mean"]) ** 2 / (usual["latent_variance"] + TINY)
    cost_BS = _per_step(coded.cost_BM[..., None], reduction)[..., 0] / (reduction * s.channels)
    found = [
        _log_mean(z_BSC[..., :bands] ** 2),
        _log_mean(z_BSC[..., bands:] ** 2),
        0.5 * (z_BSC**2).mean(-1) + spread_BS + cost_BS,
        _log_mean(away_BSD),
        segments.context_BSC[..., LATER] - EARLIER_SHARE * segments.context_BSC[..., EARLIER],
    ]
    if s.dual:
        as_edited = Segments(told.mean_BSC[..., :bands], segments.context_BSC, segments.steps_B)
        again = encode(s, params, running, as_edited.x_BSF, segments.steps_B)
        back = decode(s, params["raw"], again.z_BMZ, vectors_B)
        away_BSC = (segments.all_BSC - back.mean_BSC) * jnp.exp(-back.log_scale_BSC)
        found.append(_log_mean(away_BSC**2))
        found.append(-_judged(s, params["discriminator"], as_edited))
    if s.classifier:
        found.append(-_judged(s, params["classifier"], segments))
    return jnp.stack(found, -1)


def standard(running, scores_BSN):
    """Scores in standard deviations above the mean of edited audio."""
    usual = running["usual"]
    return (scores_BSN - usual["score_mean"]) / jnp.sqrt(usual["score_variance"] + TINY)


def learned_usual(usual, segments: Segments, coded: Coded, scores_BSN, reduction: int):
    """What is usual in edited audio after a batch of it: moving means and variances."""
    weight_BS1 = segments.mask_BS[..., None].astype(jnp.float32)
    at_vector_BSD = jnp.concatenate([_per_step(coded.z_BMZ, reduction), segments.context_BSC], -1)
    new: dict[str, jax.Array] = {}
    for name, a_BSD in (("latent", at_vector_BSD), ("score", scores_BSN)):
        total = jnp.maximum(weight_BS1.sum(), 1.0)
        mean_11D = (weight_BS1 * a_BSD).sum((0, 1), keepdims=True) / total
        variance_11D = (weight_BS1 * (a_BSD - mean_11D) ** 2).sum((0, 1), keepdims=True) / total
        new |= {f"{name}_mean": mean_11D, f"{name}_variance": variance_11D}
    return {name: DECAY * usual[name] + (1.0 - DECAY) * new[name] for name in usual}


def score_recordings(s: ScorerSettings, params, mel_BTF, frames_B):
    """Every score of every frame of whole recordings, standardised, (B, T, scales, scores)."""
    n_frames = mel_BTF.shape[1]
    x_BTF, context_BTC = heard(s, mel_BTF, frames_B)
    return score_heard(s, params, x_BTF, context_BTC, frames_B)[:, :n_frames]


def score_heard(s: ScorerSettings, params, x_BTF, context_BTC, frames_B):
    """The same from what was heard (`relations.heard`)."""
    at_scales = []
    for number, scale in enumerate(s.scales):
        own, running = of_scale(params, number)
        segments = pooled(x_BTF, context_BTC, frames_B, scale, s.reduction)
        coded = encode(s, own, running, segments.x_BSF, segments.steps_B)
        told = decode(s, own["edited"], coded.z_BMZ, -(-segments.steps_B // s.reduction))
        scores = standard(running, raw_scores(s, own, running, segments, coded, told))
        at_scales.append(jnp.repeat(scores, scale, axis=1)[:, : x_BTF.shape[1]])
    return jnp.stack(at_scales, 2)


def _judged(s, params, segments: Segments):
    logits_BM = judge(s, params, segments.all_BSC, segments.steps_B)
    return _per_step(logits_BM[..., None], s.reduction)[..., 0]


def _per_step(a_BMZ, reduction: int):
    return jnp.repeat(a_BMZ, reduction, axis=1)


def _log_mean(square_BSC):
    return jnp.log(square_BSC.mean(-1) + TINY)
