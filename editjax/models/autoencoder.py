"""Autoencoders that learn what good audio sounds like: one body, several bottlenecks, at several scales.

    mel of a segment → encoder → bottleneck → decoder → the mel, and the context it would be heard in

The bottleneck is plain, variational (Kingma and Welling 2014), a codebook (van den Oord et al. 2017) or sees
as many neighbours as a segment has by attention. It keeps time: a mean over the segment would hear no
rhythm. The decoder says how sure it is of every channel, so that busy music is not an anomaly because it is
busy. The context (levels, relations to other takes) is not encoded, only foretold: good audio that is heard
again later, and better, is what no segment of a finished edit foretells.

With `dual` there are two decoders, of raw and of edited audio, over one encoder, and a discriminator that
tells edited audio from what the edited decoder makes of raw audio.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.attention import Window
from editjax.config import refuse_sizes
from editjax.models.codebook import Codebook, init_codebook, quantise, straight_through
from editjax.models.layers import RUNNING, Mlp, Norm, TimeConv, WindowAttention, frame_mask, masked
from editjax.models.relations import CONTEXT_CHANNELS

LEAST_LOG_SCALE, MOST_LOG_SCALE = -3.0, 1.0
MOST_LOG_VARIANCE = 10.0
SCORES = ("reconstruction", "context", "evidence", "latent", "relative")


@dataclass(frozen=True)
class ScorerSettings:
    """Architecture of a scorer; mel settings as it was trained with.

    A scale s reads segments of `segment_steps` steps, each the mean of s frames: 64 frames are 1.5 s, a
    beat or three; those of scale 4 a bar or three, of scale 16 a phrase. Each scale divides the next, so
    that whole recordings can be scored in chunks. `hidden` are the widths of the encoder's layers, each of
    half the rate of the one before. `contrastive` is the width in which views of a segment are compared, 0
    for no comparison.
    """

    n_mels: int = 128
    floor_db: float = -80.0
    ceiling_db: float = 40.0
    scales: tuple[int, ...] = (1, 4, 16)
    segment_steps: int = 64
    hidden: tuple[int, ...] = (64, 128, 128)
    latent: int = 32
    bottleneck: Literal["plain", "variational", "codebook", "attention"] = "plain"
    codes: int = 256
    dual: bool = False
    classifier: bool = False
    contrastive: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        refuse_sizes(self, "n_mels", "scales", "segment_steps", "hidden", "latent", "codes")
        if not self.scales or list(self.scales) != sorted(set(self.scales)) or self.scales[0] < 1:
            raise ValueError(f"scales {self.scales}: give numbers of frames, each once, in ascending order")
        if any(larger % smaller for smaller, larger in pairwise(self.scales)):
            raise ValueError(f"scales {self.scales}: each must divide the next")
        if not self.hidden or self.segment_steps % self.reduction:
            raise ValueError(f"segment_steps must be a multiple of {2 ** len(self.hidden)}")

    @property
    def reduction(self) -> int:
        """Steps of a segment that share a latent vector."""
        return 2 ** len(self.hidden)

    @property
    def window(self) -> Window:
        """What a latent vector sees by attention: of whole recordings no more than there is in a segment."""
        vectors = self.segment_steps // self.reduction
        return Window(vectors // 2, (vectors - 1) // 2)

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of what it says of every moment: see `models.anomaly`."""
        with_dual = ("cycle", "discriminator") if self.dual else ()
        return (*SCORES, *with_dual, *(("classifier",) if self.classifier else ()))

    @property
    def channels(self) -> int:
        """Of the mel and its context together."""
        return self.n_mels + CONTEXT_CHANNELS


class Coded(NamedTuple):
    """A bottleneck's word on segments: what is decoded (B, M, Z), its cost in nats a vector (B, M), 0 where
    nothing is drawn, and for a codebook the vectors before it and the numbers of their codes."""

    z_BMZ: jax.Array
    cost_BM: jax.Array
    before_BMZ: jax.Array
    chosen_BM: jax.Array


class Foretold(NamedTuple):
    """Mean and logarithm of the scale of every channel, (B, S, C)."""

    mean_BSC: jax.Array
    log_scale_BSC: jax.Array


class Encoder(nn.Module):
    """Steps (B, S, C) → (B, S / reduction, out); what lies beyond `steps_B` counts for nothing."""

    settings: ScorerSettings
    out: int

    @nn.compact
    def __call__(self, x_BSC, steps_B):
        dtype = jnp.dtype(self.settings.dtype)
        x = nn.Dense(self.settings.hidden[0], dtype=dtype, name="enter")(x_BSC.astype(dtype))
        x = masked(nn.gelu(x), frame_mask(steps_B, x.shape[1]))
        for k, width in enumerate(self.settings.hidden):
            x = TimeConv(width, 4, 2, dtype, name=f"down_{k}")(x)
            steps_B = -(-steps_B // 2)
            x = nn.gelu(Norm(dtype, name=f"norm_{k}")(x))
            x = masked(x, frame_mask(steps_B, x.shape[1]))
        return nn.Dense(self.out, dtype=dtype, name="out")(x)


class Between(nn.Module):
    """The bottleneck, where it has weights of its own: attention before it narrows, and after."""

    settings: ScorerSettings

    @nn.compact
    def __call__(self, x_BMD, vectors_B):
        s, width = self.settings, self.settings.hidden[-1]
        dtype, mask_BM = jnp.dtype(s.dtype), frame_mask(vectors_B, x_BMD.shape[1])
        x = nn.Dense(width, dtype=dtype, name="widen")(x_BMD)
        attention = WindowAttention(width, max(1, width // 64), s.window, "block", dtype, name="window")
        x = masked(x + attention(x, vectors_B), mask_BM)
        x = masked(x + Mlp(width, 2, dtype, name="mlp")(x), mask_BM)
        return nn.Dense(x_BMD.shape[-1], dtype=dtype, name="narrow")(Norm(dtype, name="norm")(x))


class Decoder(nn.Module):
    """Latent vectors (B, M, Z) → what they foretell of all channels of M · reduction steps."""

    settings: ScorerSettings

    @nn.compact
    def __call__(self, z_BMZ, vectors_B):
        s, dtype = self.settings, jnp.dtype(self.settings.dtype)
        x = nn.Dense(s.hidden[-1], dtype=dtype, name="enter")(z_BMZ.astype(dtype))
        x = masked(nn.gelu(x), frame_mask(vectors_B, x.shape[1]))
        for k, width in enumerate(reversed(s.hidden)):
            x = TimeConv(width, 3, 1, dtype, name=f"up_{k}")(jnp.repeat(x, 2, axis=1))
            vectors_B = 2 * vectors_B
            x = nn.gelu(Norm(dtype, name=f"norm_{k}")(x))
            x = masked(x, frame_mask(vectors_B, x.shape[1]))
        out = nn.Dense(2 * s.channels, dtype=dtype, name="out")(x).astype(jnp.float32)
        mean, log_scale = jnp.split(out, 2, -1)
        return Foretold(mean, jnp.clip(log_scale, LEAST_LOG_SCALE, MOST_LOG_SCALE))


def init(settings: ScorerSettings, key):
    """Fresh parameters {"scales": …, "running": …}, those of all scales stacked along a leading axis."""
    keys = jax.random.split(key, len(settings.scales))
    scales, running = jax.vmap(lambda own: _init_scale(settings, own))(keys)
    return {"scales": scales, RUNNING: running}


def of_scale(params, number: int):
    """The parameters of the scale of that number, and what is running there."""
    return jax.tree.map(lambda stacked: stacked[number], (params["scales"], params[RUNNING]))


def _init_scale(s: ScorerSettings, key):
    keys = jax.random.split(key, 8)
    n_vectors = s.segment_steps // s.reduction
    steps_1, vectors_1 = (jnp.full((1,), n, jnp.int32) for n in (s.segment_steps, n_vectors))
    x = jnp.zeros((1, s.segment_steps, s.n_mels))
    whole = jnp.zeros((1, s.segment_steps, s.channels))
    z = jnp.zeros((1, n_vectors, s.latent))
    wide = jnp.zeros((1, n_vectors, _encoded_width(s)))

    def fresh(module, number, *args):
        return module.init(keys[number], *args)["params"]

    params = {
        "encoder": fresh(Encoder(s, _encoded_width(s)), 0, x, steps_1),
        "edited": fresh(Decoder(s), 1, z, vectors_1),
    }
    if s.bottleneck == "attention":
        params["between"] = fresh(Between(s), 2, wide, vectors_1)
    if s.dual:
        params["raw"] = fresh(Decoder(s), 3, z, vectors_1)
        params["discriminator"] = fresh(Encoder(s, 1), 4, whole, steps_1)
    if s.classifier:
        params["classifier"] = fresh(Encoder(s, 1), 5, whole, steps_1)
    if s.contrastive:
        params["projection"] = fresh(nn.Dense(s.contrastive), 6, z)
    running = {"usual": _unknown(s)}
    if s.bottleneck == "codebook":
        running["codebook"] = init_codebook(s.codes, s.latent, keys[7])
    return params, running


def _unknown(s: ScorerSettings):
    """What is usual before anything was heard: mean zero, variance one."""
    sizes = {"latent": s.latent + CONTEXT_CHANNELS, "score": len(s.scores)}
    means = {f"{name}_mean": jnp.zeros((1, 1, size)) for name, size in sizes.items()}
    return means | {f"{name}_variance": jnp.ones((1, 1, size)) for name, size in sizes.items()}


def _encoded_width(s: ScorerSettings) -> int:
    return 2 * s.latent if s.bottleneck == "variational" else s.latent


def encode(s, params, running, x_BSF, steps_B, key=None):
    """Mels of segments (B, S, F) through encoder and bottleneck, `Coded`; with a key what varies is drawn."""
    x_BMD = Encoder(s, _encoded_width(s)).apply({"params": params["encoder"]}, x_BSF, steps_B)
    vectors_B = -(-steps_B // s.reduction)
    mask_BM = frame_mask(vectors_B, x_BMD.shape[1])
    nothing = jnp.zeros(mask_BM.shape), x_BMD, jnp.zeros(mask_BM.shape, jnp.int32)
    match s.bottleneck:
        case "plain":
            z, rest = x_BMD, nothing
        case "attention":
            z = Between(s).apply({"params": params["between"]}, x_BMD, vectors_B)
            rest = nothing
        case "variational":
            z, cost_BM = _drawn(x_BMD, key)
            rest = cost_BM, x_BMD, nothing[2]
        case "codebook":
            z, chosen_BM = _nearest(Codebook(**running["codebook"]), x_BMD)
            rest = *nothing[:2], chosen_BM
    return Coded(masked(z, mask_BM), *rest)


def _drawn(x_BMD, key):
    """A vector of every posterior, its mean without a key, and the divergence from the prior in nats."""
    mean, log_variance = jnp.split(x_BMD.astype(jnp.float32), 2, -1)
    log_variance = jnp.clip(log_variance, -MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)
    cost_BM = 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance).sum(-1)
    if key is None:
        return mean, cost_BM
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape), cost_BM


def _nearest(book: Codebook, x_BMD):
    """The nearest codes and their numbers."""
    flat = quantise(book, x_BMD.reshape(-1, x_BMD.shape[-1]))
    code_BMZ = flat.code_NZ.reshape(x_BMD.shape)
    z = straight_through(x_BMD.astype(jnp.float32), code_BMZ)
    return z, flat.chosen_N.reshape(x_BMD.shape[:2])


def decode(s, params, z_BMZ, vectors_B):
    """What latent vectors foretell, `Foretold`; `params` are those of a decoder."""
    return Decoder(s).apply({"params": params}, z_BMZ, vectors_B)


def judge(s, params, x_BSC, steps_B):
    """Log-odds that each stretch of mel and context is edited audio, (B, S / reduction)."""
    return Encoder(s, 1).apply({"params": params}, x_BSC, steps_B)[..., 0].astype(jnp.float32)


def reaches(s: ScorerSettings) -> int:
    """Frames on either side of a frame that its score can depend on, context aside."""
    steps = 4 * s.reduction + (2 * s.window.left * s.reduction if s.bottleneck == "attention" else 0)
    return 3 * steps * max(s.scales)  # a cycle goes through encoder and decoder twice
