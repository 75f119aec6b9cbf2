"""Which kind of edit is asked for: a variational autoencoder of editing styles.

The same recording is edited in different ways. What an edit has of its own is a point z in a small space: in
training inferred from the edit itself (the posterior), or drawn from what is known of the named style (the
prior, one Gaussian per name); at inference the middle of a named style, the posterior's mean of an example,
or a draw. Kingma and Welling 2014; one prior component per style as in Dilokthanakul et al. 2016, with
the component given.

The priors are unit Gaussians far apart and stay so. Learned ones met in the middle: what moves them most is
the cost of the posterior, which at first knows no style from another; then a draw no longer tells its name.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.models.layers import TimeConv, frame_mask, masked
from editjax.models.level import LEVEL_CHANNELS, level_normalise
from editjax.models.spans import pool

LISTEN_WIDTH, POSTERIOR_WIDTH = 32, 64
SPAN_FRAMES = 8
LOWEST_LOG_STD = -4.0
PRIOR_MEAN = 4.0  # standard deviations from the origin, every style in a direction of its own
ACTIVE = 0.01
"""A dimension in which the posterior's means vary by more is not collapsed (Burda et al. 2016)."""


class Asked(NamedTuple):
    """What is asked of an edit: its length in frames, 0 where none is, (B,); its style, (B, Z)."""

    target_B: Any
    style_BZ: Any


class Example(NamedTuple):
    """An edit as the posterior hears it: mel (B, N, F) in [0, 1] and valid frames (B,).

    In training, and wherever the recording is known, the mel is that of the raw frames which the edit plays.
    `joins_BN2` marks frames that do not follow the one before, and frames played before; `raw_frames_B` is
    the length of the recording. Both are zero where only the edited track is known.
    """

    mel_BNF: Any
    frames_B: Any
    joins_BN2: Any
    raw_frames_B: Any


class Gaussian(NamedTuple):
    """Independent normal distributions, (B, Z) each."""

    mean_BZ: jax.Array
    log_std_BZ: jax.Array

    def draw(self, key):
        """One sample of each, (B, Z)."""
        return self.mean_BZ + jnp.exp(self.log_std_BZ) * jax.random.normal(key, self.mean_BZ.shape)


class Posterior(nn.Module):
    """Edited mel, joins and lengths → mean and log standard deviation of z, (B, 2 Z)."""

    width: int

    @nn.compact
    def __call__(self, level_BNF, joins_BN2, frames_B, lengths_B3):
        n_frames = level_BNF.shape[1]
        x = nn.gelu(TimeConv(LISTEN_WIDTH, 5, short=0, name="listen")(level_BNF))
        x = masked(jnp.concatenate([x, joins_BN2], -1), frame_mask(frames_B, n_frames))
        x, spans_B = pool(x, frames_B, SPAN_FRAMES), -(-frames_B // SPAN_FRAMES)
        inside_BM = frame_mask(spans_B, x.shape[1])
        x = masked(nn.gelu(nn.Dense(POSTERIOR_WIDTH, name="spans")(x)), inside_BM)
        x = masked(nn.gelu(TimeConv(POSTERIOR_WIDTH, 5, short=0, name="mix")(x)), inside_BM)
        whole_BD = pool(x, spans_B, x.shape[1])[:, 0]
        x = nn.gelu(nn.Dense(POSTERIOR_WIDTH, name="whole")(jnp.concatenate([whole_BD, lengths_B3], -1)))
        return nn.Dense(2 * self.width, name="style")(x)


def init_style(settings, key):
    """Fresh parameters {"posterior": …}; none where the model knows no styles."""
    if not settings.style_width:
        return {}
    level = jnp.zeros((1, SPAN_FRAMES, settings.n_mels + LEVEL_CHANNELS))
    one_B, joins = jnp.full((1,), SPAN_FRAMES, jnp.int32), jnp.zeros((1, SPAN_FRAMES, 2))
    posterior = Posterior(settings.style_width).init(key, level, joins, one_B, jnp.zeros((1, 3)))
    return {"posterior": posterior["params"]}


def prior(settings, style_B) -> Gaussian:
    """What is known of named styles, given by their number in `styles.STYLES`."""
    mean_BZ = PRIOR_MEAN * jax.nn.one_hot(style_B, settings.style_width)
    return Gaussian(mean_BZ, jnp.zeros_like(mean_BZ))


def posterior(settings, params, example: Example) -> Gaussian:
    """What an edit tells of its style; needs a model that knows styles."""
    mel_BNF, frames_B, joins_BN2, raw_frames_B = example
    known_B = (raw_frames_B > 0).astype(jnp.float32)
    frames = jnp.maximum(frames_B, 1).astype(jnp.float32)
    ratio_B = jnp.log(frames / jnp.maximum(raw_frames_B, 1).astype(jnp.float32))
    lengths_B3 = jnp.stack([known_B, known_B * ratio_B, jnp.log(frames) - 8.0], -1)
    level_BNF = level_normalise(mel_BNF, frames_B, settings.floor_db, settings.ceiling_db)
    out: Any = Posterior(settings.style_width).apply(
        {"params": params["style"]["posterior"]}, level_BNF, joins_BN2, frames_B, lengths_B3
    )
    mean_BZ, log_std_BZ = jnp.split(out, 2, -1)
    return Gaussian(mean_BZ, jnp.maximum(log_std_BZ, LOWEST_LOG_STD))


def divergence(q: Gaussian, p: Gaussian):
    """Kullback–Leibler divergence of q from p for each dimension, in nats, (B, Z)."""
    variances = jnp.exp(2 * (q.log_std_BZ - p.log_std_BZ))
    apart = (q.mean_BZ - p.mean_BZ) * jnp.exp(-p.log_std_BZ)
    return p.log_std_BZ - q.log_std_BZ + 0.5 * (variances + apart**2 - 1.0)
