"""What scorers learn from: segments of the edited audio, at every scale; for two decoders, of the raw too.

Edited audio is what the pointers play, gathered from the raw recording as it is heard there: its levels and
its relations to other takes are those of the raw recording.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from editjax.mel import MelSettings, band_centres_hz
from editjax.models.anomaly import Segments, learned_usual, pooled, raw_scores
from editjax.models.autoencoder import Foretold, ScorerSettings, decode, encode, judge
from editjax.models.codebook import Codebook, learned, usage
from editjax.models.layers import RUNNING, frame_mask, mean_where
from editjax.models.relations import heard
from editjax.models.rows import take
from editjax.models.views import ViewSettings, view


@dataclass(frozen=True)
class ScorerLossSettings:
    """Weights of the losses, and how much is drawn.

    `likelihood` weighs nats a channel of mel and, as heavily, of context; `bottleneck` what the bottleneck
    costs, per channel; `cycle` nats a channel of what comes back; `adversarial` nats a latent vector that the
    discriminator is fooled by; `judges` nats a vector of discriminator and classifier; `contrastive` nats a
    segment. Of every example so many `segments` are drawn at each scale. The contrast is sharpened by
    `temperature`.
    """

    likelihood: float = 1.0
    bottleneck: float = 1.0
    cycle: float = 1.0
    adversarial: float = 0.1
    judges: float = 1.0
    contrastive: float = 0.1
    temperature: float = 0.1
    segments: int = 8
    views: ViewSettings = field(default_factory=ViewSettings)


def scorer_loss(params, batch, settings, weights, key):
    """(loss, metrics) of a `data.Batch`; `metrics["running"]` is what moved without a gradient.

    The scales are computed one after the other by one program, compiled once.
    """
    x_BTF, context_BTC = heard(settings, batch.mel_BTF, batch.frames_B)
    raw_BT = jnp.broadcast_to(jnp.arange(x_BTF.shape[1])[None], x_BTF.shape[:2])
    needs_raw = settings.dual or settings.classifier
    places = [(batch.pointers_BN, batch.steps_B - 1)] + [(raw_BT, batch.frames_B)] * needs_raw
    edited_key, raw_key, scale_key = jax.random.split(key, 3)

    def drawn(place, key):
        keys = jax.random.split(key, len(settings.scales))
        parts = [
            drawn_segments(settings, weights.segments, x_BTF, context_BTC, *place, scale, own)
            for scale, own in zip(settings.scales, keys, strict=True)
        ]
        return jax.tree.map(lambda *arrays: jnp.stack(arrays), *parts)

    segments = [drawn(place, key) for place, key in zip(places, (edited_key, raw_key), strict=False)]
    still = jax.lax.stop_gradient(params[RUNNING])
    keys = jax.random.split(scale_key, len(settings.scales))

    def of_scale(total, parts):
        own, running, key, edited, *raw = parts
        losses, running = _loss_of_scale(settings, weights, own, running, edited, *raw, key)
        return total + _weighted(losses, weights), (losses, running)

    together = (params["scales"], still, keys, *segments)
    total, (losses, running) = jax.lax.scan(of_scale, jnp.zeros(()), together)
    metrics = {
        f"{part}_{scale}": values[number]
        for part, values in losses.items()
        for number, scale in enumerate(settings.scales)
    }
    return total / len(settings.scales), metrics | {RUNNING: running}


def _weighted(losses, weights):
    """The sum of what is to be made small; the other numbers are for the eye."""
    weight_of = {
        "mel": 0.5 * weights.likelihood,
        "context": 0.5 * weights.likelihood,
        "raw_mel": 0.5 * weights.likelihood,
        "raw_context": 0.5 * weights.likelihood,
        "bottleneck": weights.bottleneck,
        "cycle": weights.cycle,
        "fooled": weights.adversarial,
        "discriminator": weights.judges,
        "classifier": weights.judges,
        "contrast": weights.contrastive,
    }
    return sum(weight * losses[part] for part, weight in weight_of.items() if part in losses)


def drawn_segments(
    settings: ScorerSettings, each: int, x_BTF, context_BTC, place_BN, count_B, scale: int, key
) -> Segments:
    """Segments of one scale out of what is played, `each` of every example.

    `place_BN` are the raw frames played, the first `count_B` of them; those that are none end a segment. An
    example shorter than a segment gives what it has.
    """
    span, batch = scale * settings.segment_steps, place_BN.shape[0]
    last_B1 = jnp.maximum(count_B - span, 0)[:, None]
    start_BG = jax.random.randint(key, (batch, each), 0, last_B1 + 1)
    at_BGS = start_BG[..., None] + jnp.arange(span)[None, None]
    inside_BGS = at_BGS < count_B[:, None, None]
    flat_BM = jnp.minimum(at_BGS, place_BN.shape[1] - 1).reshape(batch, -1)
    frame_BM = jnp.where(inside_BGS.reshape(batch, -1), jnp.take_along_axis(place_BN, flat_BM, axis=1), -1)
    whole_BGS = (frame_BM >= 0).reshape(batch * each, span)
    length_R = jnp.where(whole_BGS.all(-1), span, jnp.argmin(whole_BGS, axis=-1))
    x, context = (take(a, frame_BM).reshape(batch * each, span, -1) for a in (x_BTF, context_BTC))
    return pooled(x, context, length_R, scale, settings.reduction)


def _loss_of_scale(s, weights, params, running, edited, *raw_and_key):
    """The losses of one scale by name, and what is running after the batch."""
    *raw, key = raw_and_key
    code_key, raw_key, view_key, revive_key = jax.random.split(key, 4)
    reduction = s.reduction
    vectors_R = -(-edited.steps_B // reduction)
    coded = encode(s, params, running, edited.x_BSF, edited.steps_B, code_key)
    told = decode(s, params["edited"], coded.z_BMZ, vectors_R)
    vector_mask = frame_mask(vectors_R, coded.cost_BM.shape[1])
    cost = mean_where(coded.cost_BM, vector_mask)
    losses = _likelihood(s, edited, told, "")
    match s.bottleneck:
        case "variational":
            losses["bottleneck"] = cost / (reduction * s.channels)
            losses["nats"] = cost
        case "codebook":  # the commitment of the encoder to its codes
            losses["bottleneck"] = 0.25 * mean_where(
                ((coded.before_BMZ - jax.lax.stop_gradient(coded.z_BMZ)) ** 2).mean(-1), vector_mask
            )
    if s.contrastive:
        losses["contrast"] = _contrast(s, weights, params, running, edited, view_key)
    for other in raw:
        losses |= _against_raw(s, params, running, edited, told, other, raw_key)

    new = dict(running)
    still = jax.lax.stop_gradient((params, coded, told))
    scores = jax.lax.stop_gradient(raw_scores(s, still[0], running, edited, still[1], still[2]))
    new["usual"] = learned_usual(running["usual"], edited, still[1], scores, reduction)
    if s.bottleneck == "codebook":
        flat = still[1].before_BMZ.reshape(-1, s.latent), still[1].chosen_BM.reshape(-1)
        book = learned(Codebook(**running["codebook"]), *flat, vector_mask.reshape(-1), revive_key)
        losses["alive"], losses["perplexity"] = usage(book.count_K)
        new["codebook"] = book._asdict()
    return losses, new


def _against_raw(s, params, running, edited, told, raw, key):
    """Losses that need raw audio: raw decoder, cycle, both sides of the discriminator, classifier.

    The discriminator hears both kinds after the edited decoder: else it would tell them by what decoding
    loses.
    """
    losses = {}
    if s.dual:
        vectors_R = -(-raw.steps_B // s.reduction)
        coded = encode(s, params, running, raw.x_BSF, raw.steps_B, key)
        losses |= _likelihood(s, raw, decode(s, params["raw"], coded.z_BMZ, vectors_R), "raw_")
        as_edited_BSF = decode(s, params["edited"], coded.z_BMZ, vectors_R).mean_BSC[..., : s.n_mels]
        again = encode(s, params, running, as_edited_BSF, raw.steps_B)
        back = decode(s, params["raw"], again.z_BMZ, vectors_R)
        losses["cycle"] = sum(_likelihood(s, raw, back, "").values()) / 2.0
        fake = raw._replace(x_BSF=as_edited_BSF)
        real = edited._replace(x_BSF=told.mean_BSC[..., : s.n_mels])
        losses["fooled"] = _said(s, jax.lax.stop_gradient(params["discriminator"]), fake, 1.0)
        said = (_said(s, params["discriminator"], *pair) for pair in _unmoved((real, 1.0), (fake, 0.0)))
        losses["discriminator"] = 0.5 * sum(said)
    if s.classifier:
        real = _said(s, params["classifier"], edited, 1.0)
        losses["classifier"] = 0.5 * (real + _said(s, params["classifier"], raw, 0.0))
    return losses


def _unmoved(*pairs):
    """Segments and what they are, without a gradient to what made them."""
    return [(jax.lax.stop_gradient(segments), edited) for segments, edited in pairs]


def _likelihood(s: ScorerSettings, segments: Segments, told: Foretold, prefix: str):
    """−log p in nats a channel, of mel and of context (up to a constant)."""
    square = (segments.all_BSC - told.mean_BSC) ** 2 * jnp.exp(-2.0 * told.log_scale_BSC)
    nats_BSC = 0.5 * square + told.log_scale_BSC
    parts = nats_BSC[..., : s.n_mels], nats_BSC[..., s.n_mels :]
    mel, context = (mean_where(part.mean(-1), segments.mask_BS) for part in parts)
    return {f"{prefix}mel": mel, f"{prefix}context": context}


def _said(s: ScorerSettings, params, segments: Segments, edited: float):
    """Nats at which a judge is wrong about segments that are edited audio (1) or are not (0)."""
    logits_BM = judge(s, params, segments.all_BSC, segments.steps_B)
    nats_BM = jax.nn.softplus(-logits_BM) if edited else jax.nn.softplus(logits_BM)
    return mean_where(nats_BM, frame_mask(-(-segments.steps_B // s.reduction), nats_BM.shape[1]))


def _contrast(s: ScorerSettings, weights, params, running, segments: Segments, key):
    """NT-Xent of two views of every segment (Chen et al. 2020, equation 1), in nats."""
    first_key, second_key = jax.random.split(key)
    centres_hz = band_centres_hz(MelSettings(n_mels=s.n_mels))
    vectors_R = -(-segments.steps_B // s.reduction)

    def seen(key):
        x = view(segments.x_BSF, centres_hz, weights.views, key)
        x = jnp.where(segments.mask_BS[..., None], x, 0.0)
        coded = encode(s, params, running, x, segments.steps_B)
        mask = frame_mask(vectors_R, coded.z_BMZ.shape[1])[..., None]
        mean_RZ = coded.z_BMZ.sum(1) / jnp.maximum(mask.sum(1), 1).astype(jnp.float32)
        kernel, bias = params["projection"]["kernel"], params["projection"]["bias"]
        h_RE = mean_RZ @ kernel + bias[None]
        return h_RE / (jnp.linalg.norm(h_RE, axis=-1, keepdims=True) + 1e-6)

    h_QE = jnp.concatenate([seen(first_key), seen(second_key)])
    count, rows = len(segments.steps_B), 2 * len(segments.steps_B)
    there_Q = jnp.tile(segments.steps_B > 0, 2)
    logits_QQ = h_QE @ h_QE.T / weights.temperature
    logits_QQ = jnp.where(jnp.eye(rows, dtype=bool) | ~there_Q[None], -1e9, logits_QQ)
    other_Q1 = ((jnp.arange(rows) + count) % rows)[:, None]
    nats_Q = jax.nn.logsumexp(logits_QQ, -1) - jnp.take_along_axis(logits_QQ, other_Q1, axis=1)[:, 0]
    return mean_where(nats_Q, there_Q)
