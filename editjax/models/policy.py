"""Phase 2 of the super editor: raw mel → what becomes of every beat, and what that is worth.

    mel → encoder of a trained pointer network → beats → transformer → logits of labels
                                                       ↘ transformer → value

The encoder is not trained here: it has learned to compare takes, which is what to cut is told by. Actions are
drawn for every beat apart, given the whole recording, so that the ratios of PPO are those of single beats.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from editjax.attention import KINDS
from editjax.config import refuse_sizes
from editjax.edits import EditLabel
from editjax.models.encoder import Encoded, encode, init_encoder
from editjax.models.layers import RUNNING, Norm, anew_if_long, frame_mask, masked, places_in_runs
from editjax.models.pointer import PointerSettings
from editjax.models.reconstruct import Layer
from editjax.models.spans import spread
from editjax.models.style import Asked, prior
from editjax.styles import STYLES

SHORTEST_BEAT = 8
"""Frames: 320 beats a minute, which is faster than beats are tracked."""
PLACE_CHANNELS = 3
STRUCTURE_CHANNELS = 3
STRETCH_CHANNELS = 6
NEVER = -jnp.inf


@dataclass(frozen=True)
class PolicySettings:
    """Architecture of policy and value networks; mel settings as they were trained with.

    `hears` is the pointer network whose encoder listens. `window` beats on either side are seen in each
    layer. Dropout is for supervised training alone: where policies act, ratios would not be theirs.
    """

    n_mels: int = 128
    floor_db: float = -80.0
    ceiling_db: float = 40.0
    hears: PointerSettings = field(default_factory=PointerSettings)
    width: int = 256
    heads: int = 4
    layers: int = 4
    value_layers: int = 2
    window: int = 64
    expansion: int = 4
    dropout: float = 0.1
    attention: str = "block"
    dtype: str = "float32"

    def __post_init__(self):
        refuse_sizes(self, "n_mels", "width", "heads", "layers", "value_layers", "expansion")
        for name in ("n_mels", "floor_db", "ceiling_db"):
            if getattr(self, name) != getattr(self.hears, name):
                raise ValueError(
                    f"{name} {getattr(self, name)}, but it hears with {getattr(self.hears, name)}"
                )
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"{self.heads} heads of a width of {self.width}: a head's width must be even")
        if self.attention not in KINDS:
            raise ValueError(f"attention {self.attention!r}: choose one of {', '.join(KINDS)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: give a share from 0 to below 1")

    @property
    def channels(self) -> int:
        """Numbers that say how a beat sounds."""
        sound = self.hears.frame_width + self.hears.width + STRUCTURE_CHANNELS
        return sound + PLACE_CHANNELS + STRETCH_CHANNELS


class Beats(NamedTuple):
    """What a policy sees: how every beat sounds (B, U, channels), and its length in frames (B, U), 0 where
    there is none."""

    heard_BUC: jax.Array
    frames_BU: jax.Array

    @property
    def counted_BU(self):
        """Where there is a beat."""
        return self.frames_BU > 0


class Tower(nn.Module):
    """What goes around the layers of a network: into them, and out of them to so many numbers a beat."""

    settings: Any
    outputs: int

    def setup(self):
        s = self.settings
        self.entry = nn.Dense(s.width, dtype=jnp.dtype(s.dtype))
        self.norm = Norm(jnp.dtype(s.dtype))
        self.out = nn.Dense(self.outputs, kernel_init=nn.initializers.normal(0.01))

    def __call__(self, heard_BUC):
        return self.leave(self.enter(heard_BUC))

    def enter(self, heard_BUC):
        return self.entry(heard_BUC.astype(jnp.dtype(self.settings.dtype)))

    def leave(self, x_BUD):
        return self.out(self.norm(x_BUD).astype(jnp.float32))


def init(settings: PolicySettings, key):
    """Fresh parameters; equal layers are stacked along a leading axis, what is not trained is running."""
    s, (encoder_key, policy_key, value_key) = settings, jax.random.split(key, 3)
    x, count = jnp.zeros((1, 8, s.width), jnp.dtype(s.dtype)), jnp.full((1,), 8, jnp.int32)
    heard = jnp.zeros((1, 8, s.channels))

    def network(outputs, layers, key):
        tower_key, layer_key = jax.random.split(key)
        keys = jax.random.split(layer_key, layers)
        return {
            "tower": Tower(s, outputs).init(tower_key, heard)["params"],
            "layers": jax.vmap(lambda one: Layer(s).init(one, x, count)["params"])(keys),
        }

    return {
        "policy": network(len(EditLabel), s.layers, policy_key),
        "value": network(1, s.value_layers, value_key),
        RUNNING: {"encoder": init_encoder(s.hears, encoder_key)},
    }


def asked_of(settings: PolicySettings, count: int) -> Asked:
    """What the encoder is asked for: the plain style, of any length."""
    style_BZ = jnp.zeros((count, 0))
    if settings.hears.style_width:
        style_BZ = prior(settings.hears, jnp.full(count, STYLES.index("final"))).mean_BZ
    return Asked(jnp.zeros(count), style_BZ)


def hear(settings: PolicySettings, params, mel_BTF, frames_B, phase_BT3) -> Encoded:
    """What the encoder says of recordings, as `encoder.encode`; nothing flows back."""
    asked = asked_of(settings, len(mel_BTF))
    encoded = encode(settings.hears, params[RUNNING]["encoder"], mel_BTF, frames_B, phase_BT3, asked)
    return jax.lax.stop_gradient(encoded)


def beats_of(settings: PolicySettings, encoded: Encoded, beat_BT) -> Beats:
    """How every beat sounds to the encoder; `beat_BT` numbers the beats from 0.

    Means over the frames of a beat; where it lies, its start and end as shares of the recording and the
    logarithm of its length; and where in a stretch that the encoder would keep (`stretches`).
    """
    s, n_frames, frames_B = settings.hears, beat_BT.shape[1], encoded.n_frames_B
    landmarks = spread(encoded.landmarks_BLD, s.landmark_frames, n_frames)
    parts = encoded.frames_BTD, landmarks, jax.nn.softmax(encoded.structure_BTS)
    sound_BTC = jnp.concatenate([part.astype(jnp.float32) for part in parts], -1)
    there_BT = frame_mask(frames_B, n_frames)
    frames_BU = summed(jnp.ones((*beat_BT.shape, 1)), beat_BT, there_BT)[..., 0]
    mean_BUC = summed(sound_BTC, beat_BT, there_BT) / jnp.maximum(frames_BU, 1.0)[..., None]
    keep_BU = mean_BUC[..., -STRUCTURE_CHANNELS + 1 :].sum(-1)
    stretch_BU6 = stretches((keep_BU > 0.5) & (frames_BU > 0))
    heard_BUC = jnp.concatenate([mean_BUC, _places(frames_BU, frames_B), stretch_BU6], -1)
    return Beats(masked(heard_BUC, frames_BU > 0), frames_BU.astype(jnp.int32))


def stretches(kept_BU):
    """Where in its stretch of kept beats each beat lies, (B, U, 6), 0 outside.

    Whether it is in one, its place there as a share, the logarithms of its place from the start and from the
    end, and whether it is in the first and in the last stretch: effects lie in the middle of takes, fades
    where the first begins and the last ends.
    """
    before_BU, after_BU = places_in_runs(kept_BU)
    share_BU = before_BU / jnp.maximum(before_BU + after_BU - 1.0, 1.0)
    begins_BU = kept_BU & (before_BU == 1.0)
    number_BU = jnp.cumsum(begins_BU, axis=1)
    first_BU, last_BU = number_BU == 1, number_BU == number_BU[:, -1:]
    there_BU = kept_BU.astype(jnp.float32)
    told = there_BU, share_BU, jnp.log(before_BU), jnp.log(after_BU)
    told = (*told, first_BU.astype(jnp.float32), last_BU.astype(jnp.float32))
    return masked(jnp.stack(told, -1), kept_BU)


def slots(n_frames: int) -> int:
    """The most beats that so many frames may have, the one before the first included."""
    return n_frames // SHORTEST_BEAT + 2


def summed(x_BTC, beat_BT, there_BT):
    """Sums over the frames of every beat, (B, U, C)."""
    count = slots(x_BTC.shape[1])
    total = jax.vmap(lambda x_TC, slot_T: jax.ops.segment_sum(x_TC, slot_T, count))
    return total(masked(x_BTC, there_BT), jnp.minimum(beat_BT, count - 1))


def labels_of_beats(label_BT, beat_BT, frames_B):
    """What most frames of every beat are labelled, (B, U): the larger at a tie, PAD where there is none."""
    there_BT = frame_mask(frames_B, label_BT.shape[1])
    votes_BUC = summed(jax.nn.one_hot(label_BT, len(EditLabel)), beat_BT, there_BT)
    most_BU = len(EditLabel) - 1 - votes_BUC[..., ::-1].argmax(-1)
    return jnp.where(votes_BUC.sum(-1) > 0, most_BU, EditLabel.PAD).astype(jnp.int32)


def frames_of(x_BU, beat_BT):
    """What a beat has for each of its frames, (B, T)."""
    return jnp.take_along_axis(x_BU, jnp.minimum(beat_BT, x_BU.shape[1] - 1), axis=1)


def label_logits(settings: PolicySettings, params, beats: Beats, key=None):
    """Logits (B, U, labels), PAD never. A key is for supervised training: channels are dropped by it."""
    logits_BUC = _network(settings, params["policy"], len(EditLabel), beats, key)
    return jnp.where(jnp.arange(len(EditLabel)) == EditLabel.PAD, NEVER, logits_BUC)


def values(settings: PolicySettings, params, beats: Beats):
    """What is still to be earned from every beat on, (B, U)."""
    return _network(settings, params["value"], 1, beats, None)[..., 0]


def _network(settings, params, outputs: int, beats: Beats, key):
    s, last_BU = settings, jnp.where(beats.counted_BU, jnp.arange(1, beats.frames_BU.shape[1] + 1)[None], 0)
    count_B = last_BU.max(-1)
    tower, given = Tower(s, outputs), {"params": params["tower"]}
    keys = None if key is None else jax.random.split(key, len(jax.tree.leaves(params["layers"])[0]))

    def layer(x, one):
        layer_params, layer_key = one
        return Layer(s).apply({"params": layer_params}, x, count_B, layer_key), None

    x = masked(tower.apply(given, beats.heard_BUC, method=Tower.enter), beats.counted_BU)
    x, _ = jax.lax.scan(anew_if_long(layer, x.shape[1]), x, (params["layers"], keys))
    return tower.apply(given, x, method=Tower.leave)


def _places(frames_BU, frames_B):
    stop_BU = jnp.cumsum(frames_BU, axis=1) / jnp.maximum(frames_B[:, None], 1).astype(jnp.float32)
    start_BU = jnp.concatenate([jnp.zeros_like(stop_BU[:, :1]), stop_BU[:, :-1]], axis=1)
    return jnp.stack([start_BU, stop_BU, jnp.log(jnp.maximum(frames_BU, 1.0)) - 3.0], -1)
