"""What regressors of mixes learn from: the knobs that made a mix, how it sounds, labels; masked patches."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from editjax.console.knobs import NAMES, turned
from editjax.console.loudness import loudness
from editjax.errors import UsageError
from editjax.models.layers import mean_where
from editjax.models.mixer import MixerSettings, fill_in, n_patches, predict

RESOLUTIONS = (512, 2048, 8192)
QUIETEST_LUFS = -70.0


@dataclass(frozen=True)
class MixerLossSettings:
    """Weights: `knobs` the mean error of knobs; `spectral` and `loudness` (per 10 LU) how a mix with the
    predicted knobs differs from the true one, of `heard` examples of a batch, where mixes hold sound;
    `labels` nats of the other task. With `masked` > 0 such a share of patches is hidden, and filling them in
    is all that is learned."""

    knobs: float = 1.0
    spectral: float = 0.0
    loudness: float = 0.0
    heard: int = 4
    labels: float = 0.1
    masked: float = 0.0

    def __post_init__(self):
        weights = (self.knobs, self.spectral, self.loudness, self.labels)
        if not all(0.0 <= weight < math.inf for weight in weights) or self.heard < 1:
            raise UsageError("losses on mixes: give weights of at least 0, and `heard` of at least 1")
        if not 0.0 <= self.masked < 1.0:
            raise UsageError(f"masked {self.masked}: give a share from 0 to below 1")


def mixer_loss(params, batch, settings: MixerSettings, weights: MixerLossSettings, key):
    """(loss, metrics) of a `mixes.MixBatch`."""
    if weights.masked:
        return _masked_loss(params, batch, settings, weights, key)
    found = predict(settings, params, batch.picture_BTFC, batch.figures_BK, key)
    error_BP = jnp.abs(found.knobs_BP - batch.knobs_BP)
    losses = {"knobs": error_BP.mean()}
    if settings.classes:
        known_B = batch.label_B >= 0
        nats_B = optax.softmax_cross_entropy_with_integer_labels(
            found.class_BK, jnp.maximum(batch.label_B, 0)
        )
        losses["labels"] = mean_where(nats_B, known_B)
    if weights.spectral or weights.loudness:
        losses |= _heard(batch, found.knobs_BP, settings, weights)
    total = sum(getattr(weights, name) * value for name, value in losses.items())
    return total, losses | {f"error_{name}": error_BP[:, k].mean() for k, name in enumerate(NAMES)}


def _masked_loss(params, batch, settings, weights, key):
    """Squares of hidden patches, each less its mean and by its deviation (He et al. 2022)."""
    count = n_patches(settings, batch.picture_BTFC.shape[1])
    masked_BN = jax.random.bernoulli(key, weights.masked, (len(batch.knobs_BP), count))
    guess_BNP, true_BNP = fill_in(settings, params, batch.picture_BTFC, batch.figures_BK, masked_BN)
    middle, spread = true_BNP.mean(-1, keepdims=True), true_BNP.std(-1, keepdims=True)
    square_BN = ((guess_BNP - (true_BNP - middle) / (spread + 0.01)) ** 2).mean(-1)
    loss = mean_where(square_BN, masked_BN)
    return loss, {"filled_in": loss}


def _heard(batch, knobs_BP, settings, weights):
    """How far mixes with the predicted knobs are from those with the true ones, by ear."""
    rate_hz = settings.picture.rate_hz
    if not batch.sound_BCS.shape[-1]:
        raise ValueError("these mixes hold no sound; make them with --sound, or set loss.spectral to 0")

    def one(sound_2S, knobs_P, true_P):
        x_2S, y_2S = (turned(sound_2S.astype(jnp.float32), p, rate_hz) for p in (knobs_P, true_P))
        apart_lu = jnp.abs(_lufs(x_2S, rate_hz) - _lufs(y_2S, rate_hz))
        return spectral_distance(x_2S, y_2S), apart_lu / 10.0

    first = (batch.sound_BCS[: weights.heard], knobs_BP[: weights.heard], batch.knobs_BP[: weights.heard])
    spectral_B, loudness_B = jax.vmap(one)(*first)
    return {"spectral": spectral_B.mean(), "loudness": loudness_B.mean()}


def _lufs(x_2S, rate_hz):
    return jnp.maximum(loudness(x_2S, rate_hz), QUIETEST_LUFS)


def spectral_distance(x_2S, y_2S):
    """Spectral convergence and the L1 of log amplitudes, in nepers, averaged over resolutions (Yamamoto, Song
    and Kim 2020), of left, right, their sum and their difference (Steinmetz et al. 2021)."""
    total = jnp.zeros(())
    for n_fft in RESOLUTIONS:
        a, b = (_amplitudes(z_2S, n_fft) for z_2S in (x_2S, y_2S))
        convergence = jnp.sqrt(((a - b) ** 2).sum() + 1e-12) / jnp.sqrt((b**2).sum() + 1e-6)
        total += convergence + jnp.abs(jnp.log(a + 1e-5) - jnp.log(b + 1e-5)).mean()
    return total / len(RESOLUTIONS)


def _amplitudes(x_2S, n_fft: int):
    x_4S = jnp.stack([x_2S[0], x_2S[1], (x_2S[0] + x_2S[1]) / 2.0, (x_2S[0] - x_2S[1]) / 2.0])
    hop = n_fft // 4
    n_frames = max(1, (x_4S.shape[1] - n_fft) // hop + 1)
    at_TN = jnp.arange(n_frames)[:, None] * hop + jnp.arange(n_fft)[None]
    window_N = jnp.hanning(n_fft).astype(jnp.float32)
    bins = jnp.fft.rfft(x_4S[:, at_TN] * window_N[None, None]) / (n_fft / 4.0)
    return jnp.sqrt(bins.real**2 + bins.imag**2 + 1e-12)
