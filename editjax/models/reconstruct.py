"""Phase 1 of the super editor: raw mel and edit labels → the mel of what is heard, on the raw axis.

    mel, labels → edit encoder → mel decoder → α · raw mel + what changes

Both are windowed transformers, so that their cost is linear in the length. Fresh, the output is the raw mel.
What is cut has no output: when an edit is applied, CUT shortens and LOOP repeats (`labels`).
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.attention import KINDS, Window
from editjax.config import refuse_sizes
from editjax.edits import EditLabel
from editjax.models.layers import (
    Mlp,
    Norm,
    WindowAttention,
    anew_if_long,
    frame_mask,
    masked,
    places_in_runs,
)

MIDDLE, SPREAD = 0.5, 0.2
"""Of mels, roughly: what a linear layer likes to see."""

CHANGED = (EditLabel.FADE_IN, EditLabel.FADE_OUT, EditLabel.EFFECT, EditLabel.TRANSITION)
"""Labels under which frames sound otherwise than they did."""


@dataclass(frozen=True)
class ReconstructSettings:
    """Architecture of the reconstruction model; mel settings as it was trained with.

    `window` frames on either side are seen in each layer.
    """

    n_mels: int = 128
    floor_db: float = -80.0
    ceiling_db: float = 40.0
    width: int = 512
    heads: int = 8
    label_width: int = 128
    encoder_layers: int = 6
    decoder_layers: int = 3
    window: int = 64
    expansion: int = 4
    dropout: float = 0.1
    attention: str = "block"
    dtype: str = "float32"

    def __post_init__(self):
        refuse_sizes(self, "n_mels", "width", "heads", "label_width", "expansion")
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"{self.heads} heads of a width of {self.width}: a head's width must be even")
        if self.attention not in KINDS:
            raise ValueError(f"attention {self.attention!r}: choose one of {', '.join(KINDS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: give a share from 0 to below 1")


class Layer(nn.Module):
    """Windowed attention and feed-forward, whose branches lose channels at random where a key is given."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, frames_B, key=None):
        s, dtype = self.settings, jnp.dtype(self.settings.dtype)
        mask_BT, rest = frame_mask(frames_B, x_BTD.shape[1]), Window(s.window, s.window)
        attention = WindowAttention(s.width, s.heads, rest, s.attention, dtype, name="window")
        first_key, second_key = (None, None) if key is None else jax.random.split(key)
        x = x_BTD + _dropped(attention(x_BTD, frames_B), s.dropout, first_key)
        branch = Mlp(s.width, s.expansion, dtype, name="mlp")(x)
        return masked(x + _dropped(branch, s.dropout, second_key), mask_BT)


class Entry(nn.Module):
    """Mel and label of every frame side by side, and where it lies in a run of a label that changes it.

    Gives (B, T, width). What a fade does to a frame depends on its place, and it may be longer than what
    the layers see.
    """

    settings: Any

    @nn.compact
    def __call__(self, mel_BTF, label_BT):
        s, dtype = self.settings, jnp.dtype(self.settings.dtype)
        mel = nn.Dense(s.width, dtype=dtype, name="mel")(((mel_BTF - MIDDLE) / SPREAD).astype(dtype))
        table = self.param("embedding", nn.initializers.normal(1.0), (len(EditLabel), s.label_width))
        label = table[label_BT].astype(dtype)
        changed_BT = jnp.isin(label_BT, jnp.array(CHANGED))
        before_BT, after_BT = places_in_runs(label_BT)
        place_BT3 = jnp.stack([jnp.log(before_BT), jnp.log(after_BT), before_BT / (before_BT + after_BT)], -1)
        place = masked(place_BT3, changed_BT)
        together = jnp.concatenate([nn.gelu(mel), label, place.astype(dtype)], -1)
        return nn.Dense(s.width, dtype=dtype, name="both")(together)


class Exit(nn.Module):
    """α · raw mel and what is added to it; fresh, α is 1 and nothing is added."""

    settings: Any

    @nn.compact
    def __call__(self, x_BTD, mel_BTF):
        s = self.settings
        zeros = nn.initializers.zeros
        out = nn.Dense(s.n_mels, dtype=jnp.dtype(s.dtype), kernel_init=zeros, name="out")
        alpha = self.param("alpha_scale", nn.initializers.ones, (1,))
        added = out(Norm(jnp.dtype(s.dtype), name="norm")(x_BTD)).astype(jnp.float32)
        return alpha[None, None] * mel_BTF + SPREAD * added


def init(settings: ReconstructSettings, key):
    """Fresh parameters; equal layers are stacked along a leading axis."""
    s = settings
    entry_key, encoder_key, decoder_key, exit_key = jax.random.split(key, 4)
    mel, label = jnp.zeros((1, 8, s.n_mels)), jnp.zeros((1, 8), jnp.int32)
    x, frames = jnp.zeros((1, 8, s.width), jnp.dtype(s.dtype)), jnp.full((1,), 8, jnp.int32)

    def stacked(count, key):
        keys = jax.random.split(key, count)
        return jax.vmap(lambda one: Layer(s).init(one, x, frames)["params"])(keys)

    return {
        "entry": Entry(s).init(entry_key, mel, label)["params"],
        "encoder": stacked(s.encoder_layers, encoder_key),
        "decoder": stacked(s.decoder_layers, decoder_key),
        "exit": Exit(s).init(exit_key, x, mel)["params"],
    }


def reconstruct(settings, params, mel_BTF, label_BT, frames_B, key=None):
    """The mel of what is heard of every raw frame, (B, T, F) float32; 0 in the padding.

    `label_BT` are `EditLabel`s. A key is for training: channels are dropped by it.
    """
    s, mask_BT = settings, frame_mask(frames_B, mel_BTF.shape[1])
    mel_BTF = masked(mel_BTF.astype(jnp.float32), mask_BT)
    label_BT = jnp.where(mask_BT, label_BT, EditLabel.PAD)
    x = masked(Entry(s).apply({"params": params["entry"]}, mel_BTF, label_BT), mask_BT)
    for name in ("encoder", "decoder"):
        count = getattr(s, f"{name}_layers")
        keys = None
        if key is not None:
            key, own = jax.random.split(key)
            keys = jax.random.split(own, count)

        def layer(x, given):
            one, layer_key = given
            return Layer(s).apply({"params": one}, x, frames_B, layer_key), None

        x, _ = jax.lax.scan(anew_if_long(layer, mel_BTF.shape[1]), x, (params[name], keys))
    return masked(Exit(s).apply({"params": params["exit"]}, x, mel_BTF), mask_BT)


def _dropped(x_BTD, rate: float, key):
    """`x` with a share of its channels at zero, the others louder by as much (Srivastava et al. 2014)."""
    if key is None or not rate:
        return x_BTD
    kept = jax.random.bernoulli(key, 1.0 - rate, x_BTD.shape)
    return jnp.where(kept, x_BTD / (1.0 - rate), jnp.zeros((), x_BTD.dtype))
