"""What single stems tell the landmarks: any number of them, in any order, or none.

The edit is decided on the sum of a session's tracks. Which of them sounds, and how, is heard here beside it:
talk that the music hides, a click on one microphone. One small network hears every stem by itself; mean and
maximum over those that are there make a set of it (Deep Sets: Zaheer et al. 2017).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from editjax.mel import STEM_FRAMES
from editjax.models.layers import TimeConv, frame_mask, masked
from editjax.models.level import LEVEL_CHANNELS, level_normalise


class Stems(NamedTuple):
    """The stems of every recording: mels (B, I, M, F) in [0, 1], means of STEM_FRAMES frames each, and which
    of them there are, (B, I). What is not there, and padding, may hold anything."""

    mel_BIMF: Any
    present_BI: Any


class StemSet(nn.Module):
    """Level-normalised stems → what is told of them, (B, M, width); zero without any, and when fresh."""

    settings: Any

    @nn.compact
    def __call__(self, level_BIMF, mask_BIM):
        s, dtype = self.settings, jnp.dtype(self.settings.dtype)

        def heard(name, x_BIMF):
            conv = TimeConv(s.stem_width, 5, dtype=dtype, short=0, name=name)
            each_XMF = x_BIMF.reshape(-1, *x_BIMF.shape[2:])
            return nn.gelu(conv(each_XMF)).reshape(*x_BIMF.shape[:3], s.stem_width)

        x = masked(heard("listen", level_BIMF), mask_BIM)
        x = x + heard("mix", x)
        inside_BIM1 = mask_BIM[..., None]
        count_BM1 = inside_BIM1.sum(1).astype(dtype)
        mean = jnp.where(inside_BIM1, x, 0.0).sum(1) / jnp.maximum(count_BM1, 1.0)
        top = jnp.where(count_BM1 > 0, jnp.where(inside_BIM1, x, -jnp.inf).max(1), 0.0)
        told = nn.Dense(s.width, use_bias=False, dtype=dtype, kernel_init=nn.initializers.zeros, name="out")
        return told(jnp.concatenate([mean, top], -1))


def init_stems(settings, key):
    """Fresh parameters {"stems": …}; none where the model does not hear them."""
    if not settings.stem_width:
        return {}
    level = jnp.zeros((1, 1, 1, settings.n_mels + LEVEL_CHANNELS))
    return {"stems": StemSet(settings).init(key, level, jnp.ones((1, 1, 1), bool))["params"]}


def told_by_stems(settings, params, stems: Stems, frames_B):
    """What the stems tell of every step of recordings of `frames_B` frames, (B, M, width)."""
    mel_BIMF, present_BI = stems
    batch, count, n_steps, _ = mel_BIMF.shape
    steps_BI = jnp.where(present_BI, -(-frames_B // STEM_FRAMES)[:, None], 0).reshape(-1)
    level = level_normalise(
        mel_BIMF.reshape(batch * count, n_steps, -1),
        steps_BI,
        settings.floor_db,
        settings.ceiling_db,
        STEM_FRAMES,
    ).reshape(batch, count, n_steps, -1)
    mask_BIM = frame_mask(steps_BI, n_steps).reshape(batch, count, n_steps)
    return StemSet(settings).apply({"params": params}, level, mask_BIM)
