"""What a codec learns from: sound that should come back as it was, coded by few or many codebooks or by none.

Of every batch some examples are decoded from the latents themselves, so that models that make latents have a
decoder; the others from what the first few codebooks say of them, few or many by chance (quantiser dropout,
Zeghidour et al. 2021), so that one model serves every bandwidth.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from editjax.mel import slaney_edges_hz, triangular_filters
from editjax.models.codebook import straight_through
from editjax.models.codec import QUANTISER, CodecSettings, decode, encode
from editjax.models.griffin_lim import stft
from editjax.models.layers import RUNNING
from editjax.models.quantiser import moved, stages_of

LEAST_POWER = 1e-6
"""Errors below −60 dB of full scale are not told apart: silence has no signal-to-noise ratio."""
LEAST_LATENT_POWER = 1e-9
LEAST_MAGNITUDE = 1e-3
ROOT_FLOOR = 1e-9


@dataclass(frozen=True)
class CodecLossSettings:
    """Weights of the losses, and what is drawn.

    `ratio` weighs the decibels by which the error is below the sound; `mel` the mean absolute difference of
    log mels, natural, of `bands` bands for each of the `windows`, whose hop is a quarter; `commitment` the
    squared distance of what codebooks are given from what they say, as a share of the latents' power. A
    `continuous` share of the examples is not quantised.
    """

    ratio: float = 0.1
    mel: float = 1.0
    commitment: float = 0.25
    continuous: float = 0.5
    windows: tuple[int, ...] = (2048, 512)
    bands: int = 64

    def __post_init__(self):
        if not 0.0 <= self.continuous <= 1.0:
            raise ValueError(f"continuous {self.continuous}: a share of the examples is 0 to 1")
        if any(window % 4 or window < 64 for window in self.windows) or self.bands < 1:
            raise ValueError(f"windows {self.windows}: give multiples of 4, at least 64, and bands above 0")


def codec_loss(params, batch, settings: CodecSettings, weights: CodecLossSettings, key):
    """(loss, metrics) of a batch with `sound_BCS`; `metrics["running"]` are the codebooks, having learned."""
    share_key, depth_key, book_key = jax.random.split(key, 3)
    books = jax.lax.stop_gradient(params[RUNNING][QUANTISER])
    n_samples = batch.sound_BCS.shape[2]
    latents_BTD = encode(settings, params, batch.sound_BCS)
    stages = stages_of(books, latents_BTD)
    size = len(latents_BTD)
    depths = jnp.array([settings.codebooks_for(kbps) for kbps in settings.bandwidths_kbps])
    depth_B = depths[jax.random.randint(depth_key, (size,), 0, len(depths))]
    # Some of each kind in every batch: the first are whole, and which are first is as random as the batch.
    number_B = jnp.arange(size, dtype=jnp.float32)
    whole_B = number_B + jax.random.uniform(share_key) < weights.continuous * size
    used_QB = jnp.arange(settings.codebooks)[:, None] < depth_B[None]
    said_BTD = jnp.where(used_QB[:, :, None, None], stages.said_QBTD, 0.0).sum(0)
    coded_BTD = straight_through(latents_BTD, said_BTD)
    heard_BTD = jnp.where(whole_B[:, None, None], latents_BTD, coded_BTD)
    heard_BCS = decode(settings, params, heard_BTD)[..., :n_samples]
    ratio_B = ratio_db(heard_BCS, batch.sound_BCS)
    mel = mel_distance(heard_BCS, batch.sound_BCS, settings.sample_rate_hz, weights)
    power = jax.lax.stop_gradient(jnp.maximum((latents_BTD**2).mean(), LEAST_LATENT_POWER))
    commitment = ((stages.given_QBTD - stages.said_QBTD) ** 2).mean() / power
    loss = weights.mel * mel + weights.commitment * commitment - weights.ratio * ratio_B.mean()
    metrics = {
        "mel": mel,
        "commitment": commitment,
        "continuous_db": _mean_where(ratio_B, whole_B),
        "quantised_db": _mean_where(ratio_B, ~whole_B),
        RUNNING: {QUANTISER: moved(books, latents_BTD, book_key)},
    }
    return loss, metrics


def ratio_db(heard_BCS, sound_BCS):
    """Signal-to-noise ratio (B,) in decibels; the noise of what is heard is its difference from the sound."""
    noise_B = ((heard_BCS - sound_BCS) ** 2).mean((1, 2))
    return 10.0 * jnp.log10(((sound_BCS**2).mean((1, 2)) + LEAST_POWER) / (noise_B + LEAST_POWER))


def mel_distance(heard_BCS, sound_BCS, rate_hz: int, weights: CodecLossSettings):
    """Mean absolute difference of natural logarithms of mels, over all windows."""
    batch, channels, n_samples = sound_BCS.shape
    both_NS = jnp.concatenate([heard_BCS, sound_BCS]).reshape(2 * batch * channels, n_samples)
    distances = []
    for window in weights.windows:
        triangles_KF = triangular_filters(slaney_edges_hz(0.0, rate_hz / 2, weights.bands), rate_hz, window)
        filters_KF = jnp.asarray(triangles_KF / triangles_KF.sum(0).clip(1e-9)[None])
        spectrum_NTK = stft(both_NS, window, window // 4) * (2.0 / window)
        magnitude_NTK = jnp.sqrt(spectrum_NTK.real**2 + spectrum_NTK.imag**2 + ROOT_FLOOR)
        heard_NTF, wanted_NTF = jnp.split(jnp.log(magnitude_NTK @ filters_KF + LEAST_MAGNITUDE), 2)
        distances.append(jnp.abs(heard_NTF - wanted_NTF).mean())
    return sum(distances) / max(1, len(distances))


def _mean_where(value_B, there_B):
    return jnp.where(there_B, value_B, 0.0).sum() / jnp.maximum(there_B.astype(jnp.float32).sum(), 1.0)
