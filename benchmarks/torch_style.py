"""Styles of the PyTorch twin, as `editjax/models/style.py` and `losses.infer_style`.

What chance decides is given from outside, so that both can be given the same.
"""

from typing import NamedTuple

import jax
import numpy as np
import torch
from torch import Tensor, nn
from torch_encoder import pool
from torch_layers import along_time, ceil_div, conv, frame_mask, gelu, masked, take
from torch_match import level_normalise

from editjax.data import Batch
from editjax.losses import LossSettings
from editjax.models.level import LEVEL_CHANNELS
from editjax.models.pointer import PointerSettings
from editjax.models.style import LISTEN_WIDTH, LOWEST_LOG_STD, POSTERIOR_WIDTH, PRIOR_MEAN, SPAN_FRAMES

LENGTHS = 3


class Chance(NamedTuple):
    """What chance decides about a batch: whose style is drawn for its name, and of whom only the edited track
    is known, (B,) bool; unit normal numbers for the draws from prior and posterior, (B, Z)."""

    named_B: Tensor
    alone_B: Tensor
    prior_BZ: Tensor
    posterior_BZ: Tensor


class Gaussian(NamedTuple):
    mean_BZ: Tensor
    log_std_BZ: Tensor

    def at(self, unit_BZ: Tensor) -> Tensor:
        """The point that unit normal numbers stand for."""
        return self.mean_BZ + self.log_std_BZ.exp() * unit_BZ


class Style(NamedTuple):
    """As `losses.Style`."""

    style_BZ: Tensor
    cost: Tensor
    nats: Tensor


def chance_of(key: jax.Array, count: int, s: PointerSettings, weights: LossSettings) -> Chance:
    """What `losses.infer_style` draws from this key for `count` examples."""
    named_key, known_key, prior_key, posterior_key = jax.random.split(key, 4)
    drawn = (
        jax.random.bernoulli(named_key, weights.named_style, (count,)),
        jax.random.bernoulli(known_key, 0.5, (count,)),
        jax.random.normal(prior_key, (count, s.style_width)),
        jax.random.normal(posterior_key, (count, s.style_width)),
    )
    return Chance(*(torch.tensor(np.asarray(a)) for a in drawn))


def prior(s: PointerSettings, style_B: Tensor) -> Gaussian:
    """`style.prior`."""
    mean_BZ = PRIOR_MEAN * nn.functional.one_hot(style_B.long(), s.style_width).float()
    return Gaussian(mean_BZ, torch.zeros_like(mean_BZ))


class Posterior(nn.Module):
    def __init__(self, s: PointerSettings):
        super().__init__()
        self.listen = conv(s.n_mels + LEVEL_CHANNELS, LISTEN_WIDTH)
        self.spans = nn.Linear(2 * (LISTEN_WIDTH + 2), POSTERIOR_WIDTH)
        self.mix = conv(POSTERIOR_WIDTH, POSTERIOR_WIDTH)
        self.whole = nn.Linear(2 * POSTERIOR_WIDTH + LENGTHS, POSTERIOR_WIDTH)
        self.style = nn.Linear(POSTERIOR_WIDTH, 2 * s.style_width)

    def forward(self, level_BNF: Tensor, joins_BN2: Tensor, frames_B: Tensor, lengths_B3: Tensor) -> Gaussian:
        x = torch.cat([gelu(along_time(self.listen, level_BNF)), joins_BN2], -1)
        x = pool(masked(x, frame_mask(frames_B, x.shape[1])), frames_B, SPAN_FRAMES)
        spans_B = ceil_div(frames_B, SPAN_FRAMES)
        inside_BM = frame_mask(spans_B, x.shape[1])
        x = masked(gelu(self.spans(x)), inside_BM)
        x = masked(gelu(along_time(self.mix, x)), inside_BM)
        x = torch.cat([pool(x, spans_B, x.shape[1])[:, 0], lengths_B3], -1)
        mean_BZ, log_std_BZ = self.style(gelu(self.whole(x))).chunk(2, -1)
        return Gaussian(mean_BZ, log_std_BZ.clamp(min=LOWEST_LOG_STD))


class Styles(nn.Module):
    """What the model knows of styles."""

    def __init__(self, s: PointerSettings):
        super().__init__()
        self.settings = s
        self.posterior = Posterior(s)

    def forward(self, batch: Batch, joins_BN2: Tensor, weights: LossSettings, chance: Chance) -> Style:
        """`losses.infer_style`."""
        s = self.settings
        known = prior(s, batch.style_B)
        with torch.no_grad():
            frames_B, known_B = batch.steps_B - 1, (~chance.alone_B).float()
            level_BNF = level_normalise(
                take(batch.mel_BTF, batch.pointers_BN), frames_B, s.floor_db, s.ceiling_db
            )
            length_B = frames_B.clamp(min=1).log()
            ratio_B = length_B - batch.frames_B.clamp(min=1).log()
            lengths_B3 = torch.stack([known_B, known_B * ratio_B, length_B - 8.0], -1)
        inferred = self.posterior(level_BNF, joins_BN2 * known_B[:, None, None], frames_B, lengths_B3)
        style_BZ = torch.where(
            chance.named_B[:, None], known.at(chance.prior_BZ), inferred.at(chance.posterior_BZ)
        )
        nats_Z = divergence(inferred, known).mean(0)
        return Style(style_BZ, nats_Z.clamp(min=weights.free_nats).sum(), nats_Z.sum())


def divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """`style.divergence`."""
    apart = (q.mean_BZ - p.mean_BZ) * (-p.log_std_BZ).exp()
    away = q.log_std_BZ - p.log_std_BZ
    return 0.5 * ((2 * away).exp() + apart.square() - 1.0) - away
