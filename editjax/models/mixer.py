"""Regressors: what is heard of a stem and of a mix of it → the knobs that made the one of the other.

    baseline   three convolutions and pools, one head
    enhanced   residual blocks with attention over channels, pooled at several time scales, a head for each
               group of knobs
    ast        an Audio Spectrogram Transformer (Gong, Chung and Glass 2021): patches, positions that are
               stretched to sounds of other lengths, and a head that fills in masked patches for pretraining

Every knob lies between 0 and 1 by construction, so that nothing can be set beyond what an engineer would. A
`blind` regressor hears the mix alone.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.attention import Mask, Window, attend
from editjax.config import refuse_sizes
from editjax.console.compared import HEARD
from editjax.console.heard import FIGURES, SHOWN, PictureSettings
from editjax.console.knobs import NAMES
from editjax.models.layers import Heads, Mlp, Norm

GROUPS = {
    "level": ("gain_db", "squeeze_db", "pan"),
    "tone": ("low_cut_hz", "low_db", "low_mid_db", "high_mid_db", "high_db"),
    "space": ("width", "room_db", "echo_db"),
}
"""Knobs that share a head of the enhanced network."""
CHANGE_SCALE = 4.0
FIGURES_WIDTH = 384
POOLED_T, SCALES = 4, (1, 2, 4)
SHRINKING = 8
"""Frames of which the baseline's pools leave one."""
LEAST_PATCH, LARGEST_PATCH, WIDEST = 16, 1 << 14, 1 << 13


@dataclass(frozen=True)
class MixerSettings:
    """Architecture of a regressor, and how its pictures are made; `classes` > 0 adds a head for labels.

    `width` is that of the first convolution, or of the transformer's tokens; `patch` its frames and bands.
    """

    kind: Literal["baseline", "enhanced", "ast"] = "ast"
    blind: bool = False
    figures: bool = True
    width: int = 128
    heads: int = 4
    n_layers: int = 4
    patch: tuple[int, int] = (16, 16)
    patches_time: int = 6
    classes: int = 0
    dropout: float = 0.1
    dtype: str = "float32"
    picture: PictureSettings = field(default_factory=PictureSettings)

    def __post_init__(self):
        refuse_sizes(self, "width", "heads", "n_layers", "patch", "patches_time")
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width}: give a multiple of 4 and of its {self.heads} heads")
        if self.picture.n_mels % self.patch[1]:
            raise ValueError(f"patches of {self.patch[1]} bands do not divide {self.picture.n_mels}")
        if not LEAST_PATCH <= self.patch[0] * self.patch[1] <= LARGEST_PATCH:
            raise ValueError(f"patches of {self.patch}: give {LEAST_PATCH} to {LARGEST_PATCH} levels each")
        doubled = {"baseline": 2, "enhanced": (self.n_layers - 1) // 2, "ast": 0}[self.kind]
        if self.width << doubled > WIDEST:
            raise ValueError(f"width {self.width}, doubled {doubled} times: no layer is wider than {WIDEST}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: give a share from 0 to below 1")


class Predicted(NamedTuple):
    """Knobs (B, P) between 0 and 1, logits of classes (B, K)."""

    knobs_BP: jax.Array
    class_BK: jax.Array


def init(settings: MixerSettings, key):
    """Fresh parameters."""
    n_frames = settings.patch[0] * settings.patches_time
    picture = jnp.zeros((1, n_frames, settings.picture.n_mels, 2 * SHOWN))
    network = _network(settings)
    return network.init(key, picture, jnp.zeros((1, HEARD)))["params"]


def predict(settings: MixerSettings, params, picture_BTFC, figures_BK, key=None) -> Predicted:
    """Pictures (B, T, F, 6) and figures (B, HEARD) of stems and mixes → their knobs.

    With a key branches lose channels at random, as in training. What a blind regressor is shown of stems
    does not matter.
    """
    shown = picture_BTFC.astype(jnp.float32), figures_BK.astype(jnp.float32)
    found: Any = _network(settings).apply({"params": params}, *shown, key)
    return found


def fill_in(settings: MixerSettings, params, picture_BTFC, figures_BK, masked_BN):
    """Of an `ast` that does not see the patches in the mask (B, N): all patches as it thinks they are, and as
    they are, (B, N, patch) each."""
    shown = picture_BTFC.astype(jnp.float32), figures_BK.astype(jnp.float32)
    return Transformer(settings).apply({"params": params}, *shown, masked_BN, method="fill_in")


def n_patches(settings: MixerSettings, n_frames: int) -> int:
    """How many patches a picture of so many frames has."""
    return -(-n_frames // settings.patch[0]) * (settings.picture.n_mels // settings.patch[1])


def _network(settings: MixerSettings) -> nn.Module:
    match settings.kind:
        case "baseline":
            return Baseline(settings)
        case "enhanced":
            return Enhanced(settings)
    return Transformer(settings)


def _channels(settings: MixerSettings, picture_BTFC):
    """Pictures as networks see them: levels about 0, and how the mix differs from the stem."""
    stem, mix = picture_BTFC[..., :SHOWN], picture_BTFC[..., SHOWN:]
    if settings.blind:
        return mix - 1.0
    return jnp.concatenate([stem - 1.0, mix - 1.0, CHANGE_SCALE * (mix - stem)], -1)


class Figures(nn.Module):
    """Figures of stem and mix, and what changed from the one to the other, as a vector."""

    settings: MixerSettings
    width: int

    @nn.compact
    def __call__(self, figures_BK):
        stem, mix, changed = jnp.split(figures_BK, (FIGURES, 2 * FIGURES), -1)
        seen = [mix] if self.settings.blind else [stem, mix, CHANGE_SCALE * (mix - stem), changed]
        h = nn.gelu(nn.Dense(FIGURES_WIDTH, name="first")(jnp.concatenate(seen, -1)))
        h = nn.gelu(nn.Dense(FIGURES_WIDTH, name="middle")(h))
        return nn.Dense(self.width, name="second")(h)


class Baseline(nn.Module):
    """Convolutions of 3 × 3, each followed by the largest of 2 × 2; then means over four parts of time."""

    settings: MixerSettings

    @nn.compact
    def __call__(self, picture_BTFC, figures_BK, key=None):
        x = _channels(self.settings, picture_BTFC)
        x = jnp.pad(x, ((0, 0), (0, max(0, SHRINKING - x.shape[1])), (0, 0), (0, 0)), mode="edge")
        for number in range(3):
            width = self.settings.width * 2**number
            x = nn.relu(Norm(name=f"norm_{number}")(nn.Conv(width, (3, 3), name=f"conv_{number}")(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = _dropped(_in_parts(x, POOLED_T), self.settings.dropout, key)
        return _answered(self.settings, x, figures_BK, ("all",))


class Enhanced(nn.Module):
    """Residual blocks whose channels are weighed by what the whole picture holds (Hu, Shen and Sun 2018)."""

    settings: MixerSettings

    @nn.compact
    def __call__(self, picture_BTFC, figures_BK, key=None):
        s = self.settings
        x = nn.Conv(s.width, (5, 5), (2, 2), name="entry")(_channels(s, picture_BTFC))
        for number in range(s.n_layers):
            width = s.width * 2 ** (number // 2)
            x = Residual(width, stride=2 if number % 2 else 1, name=f"block_{number}")(x)
        pooled = [_in_parts(x, parts) for parts in SCALES]
        largest = x.max(1).reshape(len(x), -1)
        x = _dropped(jnp.concatenate([*pooled, largest], -1), s.dropout, key)
        return _answered(s, x, figures_BK, tuple(GROUPS))


class Residual(nn.Module):
    """Two convolutions beside a straight line, then the weighing of channels."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        strides = (self.stride, self.stride)
        h = nn.Conv(self.width, (3, 3), strides, name="first")(nn.gelu(Norm(name="norm_1")(x)))
        h = nn.Conv(self.width, (3, 3), name="second")(nn.gelu(Norm(name="norm_2")(h)))
        squeezed = nn.gelu(nn.Dense(self.width // 4, name="squeeze")(h.mean((1, 2))))
        h = h * nn.sigmoid(nn.Dense(self.width, name="excite")(squeezed))[:, None, None]
        if x.shape != h.shape:
            x = nn.Conv(self.width, (1, 1), strides, name="straight")(x)
        return x + h


class Transformer(nn.Module):
    """Patches as tokens, one more of the figures, from which knobs are read, and layers that see all."""

    settings: MixerSettings

    def setup(self):
        s = self.settings
        bands, small = s.picture.n_mels // s.patch[1], nn.initializers.normal(0.02)
        self.embed = nn.Dense(s.width)
        self.time = self.param("time", small, (s.patches_time, s.width))
        self.band = self.param("band", small, (bands, s.width))
        self.hidden = self.param("hidden", small, (s.width,))
        self.told = Figures(s, s.width)
        self.layers = [Layer(s) for _ in range(s.n_layers)]
        self.norm = Norm()
        self.guess = nn.Dense(s.patch[0] * s.patch[1] * (SHOWN if s.blind else 3 * SHOWN))
        self.answer = nn.Dense(len(NAMES))
        self.label = nn.Dense(max(s.classes, 1))

    def __call__(self, picture_BTFC, figures_BK, key=None):
        patches_BNP = self.patches(picture_BTFC)
        x = self.related(self.tokens(patches_BNP), self.heard(figures_BK), key)
        if self.is_initializing():
            self.guess(x)
        seen = jnp.concatenate([x[:, 0], x[:, 1:].mean(1)], -1)
        return Predicted(nn.sigmoid(self.answer(seen)), self.label(seen)[:, : self.settings.classes])

    def fill_in(self, picture_BTFC, figures_BK, masked_BN):
        """Patches as they are thought to be, and as they are."""
        patches_BNP = self.patches(picture_BTFC)
        seen = jnp.where(masked_BN[..., None], 0.0, patches_BNP)
        hidden_BND = jnp.where(masked_BN[..., None], self.hidden[None, None], 0.0)
        x = self.related(self.tokens(seen) + hidden_BND, jnp.zeros_like(hidden_BND[:, 0]))
        return self.guess(x[:, 1:]), patches_BNP

    def patches(self, picture_BTFC):
        """(B, N, patch), the bands of a time beside each other; the last frames are padded by themselves."""
        s = self.settings
        x = _channels(s, picture_BTFC)
        frames, bands = s.patch
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % frames), (0, 0), (0, 0)), mode="edge")
        batch, n_frames, n_mels, channels = x.shape
        x = x.reshape(batch, n_frames // frames, frames, n_mels // bands, bands, channels)
        return jnp.swapaxes(x, 2, 3).reshape(batch, -1, frames * bands * channels)

    def tokens(self, patches_BNP):
        """Patches where they are: positions of other lengths lie between those that were learned."""
        bands, width = self.band.shape
        times = patches_BNP.shape[1] // bands
        time = self.time
        if times != len(time):
            time = jax.image.resize(time, (times, width), "linear")
        place_ND = (time[:, None] + self.band[None]).reshape(-1, width)
        return self.embed(patches_BNP) + place_ND[None]

    def heard(self, figures_BK):
        """The token of the figures: nothing where they are not to be used."""
        told_BD = self.told(figures_BK)
        return told_BD if self.settings.figures else jnp.zeros_like(told_BD)

    def related(self, x_BND, told_BD, key=None):
        """Tokens after all layers, that of the figures first."""
        x = jnp.concatenate([told_BD[:, None], x_BND], 1)
        for number, layer in enumerate(self.layers):
            x = layer(x, None if key is None else jax.random.fold_in(key, number))
        return self.norm(x)


class Layer(nn.Module):
    """Attention of every token to every other, and a feed-forward branch."""

    settings: MixerSettings

    @nn.compact
    def __call__(self, x_BND, key=None):
        s, count = self.settings, x_BND.shape[1]
        first_key, second_key = (None, None) if key is None else jax.random.split(key)
        q, k, v = Heads(3, s.heads, s.width // s.heads, name="qkv")(Norm(name="norm")(x_BND))
        everything = Mask(Window(count, count), jnp.full((len(x_BND),), count, jnp.int32))
        seen = attend(q, k, v, everything, kind="dense").reshape(x_BND.shape)
        x = x_BND + _dropped(nn.Dense(s.width, name="out")(seen), s.dropout, first_key)
        return x + _dropped(Mlp(s.width, 4, name="mlp")(x), s.dropout, second_key)


def _answered(settings: MixerSettings, x_BD, figures_BK, heads: tuple[str, ...]) -> Predicted:
    """Knobs of what was pooled, by one head or by one for each group."""
    width = 2 * settings.width
    if settings.figures:
        x_BD = jnp.concatenate([x_BD, Figures(settings, width, name="told")(figures_BK)], -1)
    shared = nn.gelu(nn.Dense(2 * width, name="shared")(x_BD))
    found: dict[str, jax.Array] = {}
    for head in heads:
        names = GROUPS.get(head, NAMES)
        h = nn.gelu(nn.Dense(width, name=f"{head}_hidden")(shared))
        found |= dict(zip(names, nn.Dense(len(names), name=f"{head}_out")(h).T, strict=True))
    class_BK = nn.Dense(max(settings.classes, 1), name="label")(shared)[:, : settings.classes]
    return Predicted(nn.sigmoid(jnp.stack([found[name] for name in NAMES], -1)), class_BK)


def _in_parts(x_BTFC, parts: int):
    """Means over so many parts of time, side by side: (B, parts · F · C)."""
    batch, n_frames = x_BTFC.shape[:2]
    edges = [round(k * n_frames / parts) for k in range(parts + 1)]
    # Of fewer frames than parts some are in several.
    means = [x_BTFC[:, min(a, n_frames - 1) : max(b, a + 1)].mean(1) for a, b in pairwise(edges)]
    return jnp.concatenate([mean.reshape(batch, -1) for mean in means], -1)


def _dropped(x, share: float, key):
    """`x` with a share of its values zero and the others larger; as it is without a key."""
    if key is None or not share:
        return x
    return jnp.where(jax.random.bernoulli(key, 1.0 - share, x.shape), x / (1.0 - share), 0.0)
