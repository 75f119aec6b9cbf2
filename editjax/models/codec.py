"""EnCodec: sound ↔ few latents (Défossez, Copet, Synnaeve and Adi 2022, arXiv 2210.13438).

    sound (B, C, S) → SEANet encoder → latents (B, T, D) → SEANet decoder → sound (B, C, T · hop)

`encode` and `decode` are pure and differentiable; `models.quantiser` codes latents. All is causal, so that
`encode_block` and `decode_block` do sounds of any length block by block, with what every layer must know of
the block before it carried along, and give what the whole would.

Convolutions are padded as in the reference: mirrored before the sound, and where samples are missing for the
last frame also after it; with zeros in the place of samples where the sound is too short to be mirrored.
A convolution whose kernel is twice its stride is one of two frames of `stride` samples each.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from editjax.config import MOST_LAYERS, refuse_sizes
from editjax.errors import UsageError, shown
from editjax.models.cosines import begun
from editjax.models.layers import RUNNING
from editjax.models.quantiser import init_quantiser

Past = tuple[jax.Array, ...]
"""What the layers, in their order, must know of what came before a block."""
QUANTISER = "quantiser"
LARGEST_RATIO, LARGEST_STAGE = 512, 1 << 19
"""Of a stage, and times its channels: what a fresh codec's transforms are tables of."""


@dataclass(frozen=True)
class CodecSettings:
    """Shapes, by default those of the official causal 24 kHz model.

    Encoder stages go through `ratios` from the last to the first, the decoder's from the first to the last;
    each halves or doubles the channels, which are `n_filters` at the sample rate. Residual branch k of a
    stage is dilated by `dilation_base`^k and narrower by `compress`. `bandwidths_kbps` are those that the
    quantiser is meant for, ascending; the last takes all codebooks.
    """

    sample_rate_hz: int = 24_000
    channels: int = 1
    n_filters: int = 32
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    dimension: int = 128
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    dilation_base: int = 2
    compress: int = 2
    residual_layers: int = 1
    lstm_layers: int = 2
    codebooks: int = 32
    codes: int = 1024
    bandwidths_kbps: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)

    def __post_init__(self):
        refuse_sizes(
            self, "channels", "n_filters", "ratios", "dimension", "kernel", "last_kernel", "residual_kernel",
            "dilation_base", "compress", "codebooks", "codes",
        )  # fmt: skip
        if not self.ratios or self.n_filters % self.compress or self.n_filters << len(self.ratios) > 1 << 14:
            raise UsageError(f"a codec needs ratios, and filters that `compress` divides, got {self}")
        longest, wide = max(self.ratios), self.n_filters << len(self.ratios)
        if longest > LARGEST_RATIO or longest * wide > LARGEST_STAGE:
            raise UsageError(
                f"ratios {shown(self.ratios)}: give at most {LARGEST_RATIO}, and at most {LARGEST_STAGE} "
                f"with the {wide} channels of the widest stage"
            )
        if self.codes < 2:
            raise UsageError(f"codebooks of {self.codes} codes say nothing: give two at least")
        if self.sample_rate_hz < self.hop or self.hop > 1 << 14:
            raise UsageError(f"{self.sample_rate_hz} Hz: no rate for frames of {self.hop} samples")
        if self.dilation_base ** max(0, self.residual_layers - 1) > 1 << 10:
            raise UsageError(f"{self.residual_layers} residual layers dilate too far")
        if self.residual_layers * len(self.ratios) > MOST_LAYERS:
            raise UsageError(
                f"{self.residual_layers} residual layers a stage: give at most {MOST_LAYERS} in all"
            )
        if (
            list(self.bandwidths_kbps) != sorted(self.bandwidths_kbps)
            or min(self.bandwidths_kbps, default=0) <= 0
        ):
            raise UsageError(f"bandwidths {self.bandwidths_kbps}: give some above 0, ascending")

    @property
    def hop(self) -> int:
        """Samples a frame of latents."""
        return math.prod(self.ratios)

    @property
    def frames_per_second(self) -> float:
        return self.sample_rate_hz / self.hop

    @property
    def least_frames(self) -> int:
        """The shortest block in frames: no layer's padding is as long."""
        dilated = (self.residual_kernel - 1) * self.dilation_base ** max(0, self.residual_layers - 1)
        return max(self.kernel, self.last_kernel, dilated + 1, 2)

    def kbps_of(self, codebooks: int) -> float:
        """The bandwidth of so many codebooks."""
        return codebooks * math.log2(self.codes) * math.ceil(self.frames_per_second) / 1000.0

    def frames_of(self, samples: int) -> int:
        """Frames of latents of so many samples."""
        return -(-samples // self.hop)

    def codebooks_for(self, bandwidth_kbps: float | None = None) -> int:
        """Codebooks that this bandwidth has room for, one at least; all without one."""
        if bandwidth_kbps is None:
            return self.codebooks
        return min(self.codebooks, max(1, int(bandwidth_kbps / self.kbps_of(1))))


def init(settings: CodecSettings, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters {"encoder": …, "decoder": …, "running": {"quantiser": …}}.

    Some channels begin as cosine transforms (`models.cosines`), the others at random.
    """
    s, wide = settings, settings.n_filters << len(settings.ratios)
    encoder_key, decoder_key, key = jax.random.split(key, 3)
    keys = iter(jax.random.split(encoder_key, 64 + 8 * s.residual_layers * len(s.ratios)))
    encoder: dict[str, Any] = {"enter": _fresh(next(keys), (s.kernel, s.channels, s.n_filters))}
    for at, ratio in enumerate(reversed(s.ratios)):
        width = s.n_filters << at
        stage = _fresh_residuals(s, width, keys)
        stage["down"] = _fresh(next(keys), (2 * ratio, width, 2 * width))
        encoder[f"stage_{at}"] = stage
    encoder |= _fresh_lstm(s, wide, next(keys))
    encoder["leave"] = _fresh(next(keys), (s.last_kernel, wide, s.dimension))
    keys = iter(jax.random.split(decoder_key, 64 + 8 * s.residual_layers * len(s.ratios)))
    decoder: dict[str, Any] = {"enter": _fresh(next(keys), (s.kernel, s.dimension, wide))}
    decoder |= _fresh_lstm(s, wide, next(keys))
    for at, ratio in enumerate(s.ratios):
        width = wide >> (at + 1)
        up = _fresh(next(keys), (2 * width, 2 * ratio, width), 2 * 2 * width)
        decoder[f"stage_{at}"] = {"up": up, **_fresh_residuals(s, width, keys)}
    decoder["leave"] = _fresh(next(keys), (s.last_kernel, s.n_filters, s.channels))
    encoder, decoder = begun(encoder, decoder, s.ratios)
    books = init_quantiser(s.codebooks, s.codes, s.dimension, key)
    return {"encoder": encoder, "decoder": decoder, RUNNING: {QUANTISER: books}}


def encode(settings: CodecSettings, params: Any, sound_BCS: jax.Array) -> jax.Array:
    """Latents (B, T, D) of a sound (B, C, S) at the codec's rate, T = ⌈S / hop⌉."""
    n_samples = sound_BCS.shape[2]
    n_frames = settings.frames_of(n_samples)
    length = max(n_frames, settings.least_frames) * settings.hop
    padded_BCS = jnp.pad(sound_BCS, ((0, 0), (0, 0), (0, length - n_samples)))
    return encode_block(settings, params, padded_BCS, n_samples)[0][:, :n_frames]


def decode(settings: CodecSettings, params: Any, latents_BTD: jax.Array) -> jax.Array:
    """The sound (B, C, T · hop) of latents (B, T, D)."""
    n_frames = latents_BTD.shape[1]
    missing = max(0, settings.least_frames - n_frames)
    padded_BTD = jnp.pad(latents_BTD, ((0, 0), (0, missing), (0, 0)))
    return decode_block(settings, params, padded_BTD, n_frames)[0][..., : n_frames * settings.hop]


def encode_block(
    settings: CodecSettings,
    params: Any,
    sound_BCS: jax.Array,
    samples: int | jax.Array,
    past: Past | None = None,
) -> tuple[jax.Array, Past]:
    """Latents of the next block of a sound, and what the block after it must know; without a past the first.

    The block is of whole frames, `least_frames` or more, of which `samples` are there: all, but in the last
    block. Beyond their frames latents mean nothing.
    """
    parts, there = _Past(past), params["encoder"]
    x_BTC = _convolved(parts, there["enter"], jnp.swapaxes(sound_BCS, 1, 2), samples)
    for at, ratio in enumerate(reversed(settings.ratios)):
        x_BTC = _residuals(settings, parts, there[f"stage_{at}"], x_BTC, samples)
        x_BTC = _strided(parts, there[f"stage_{at}"]["down"], jax.nn.elu(x_BTC), ratio, samples)
        samples = -(-samples // ratio)
    x_BTC = _recurrent(settings, parts, there, x_BTC)
    return _convolved(parts, there["leave"], jax.nn.elu(x_BTC), samples), tuple(parts.left)


def decode_block(
    settings: CodecSettings,
    params: Any,
    latents_BTD: jax.Array,
    frames: int | jax.Array,
    past: Past | None = None,
) -> tuple[jax.Array, Past]:
    """The sound of the next block of latents, of which `frames` are there; as `encode_block`."""
    parts, there = _Past(past), params["decoder"]
    x_BTC = _convolved(parts, there["enter"], latents_BTD, frames)
    x_BTC = _recurrent(settings, parts, there, x_BTC)
    for at, ratio in enumerate(settings.ratios):
        x_BTC = _stretched(parts, there[f"stage_{at}"]["up"], jax.nn.elu(x_BTC), ratio)
        frames = frames * ratio
        x_BTC = _residuals(settings, parts, there[f"stage_{at}"], x_BTC, frames)
    x_BTC = _convolved(parts, there["leave"], jax.nn.elu(x_BTC), frames)
    return jnp.swapaxes(x_BTC, 1, 2), tuple(parts.left)


class _Past:
    """The past that layers take in their order, None in the first block, and leave for the next."""

    def __init__(self, taken: Past | None):
        self.first, self._taken, self.left = taken is None, iter(taken or ()), list[jax.Array]()

    def joined(self, before_BPC: jax.Array | None, x_BTC: jax.Array) -> jax.Array:
        """A block behind the end of the one before, as long as `before_BPC`, which the first has there."""
        joined_BTC = jnp.concatenate([self.carried(before_BPC), x_BTC], axis=1)
        self.left.append(joined_BTC[:, x_BTC.shape[1] :])
        return joined_BTC

    def carried(self, first: jax.Array | None) -> jax.Array:
        """What the block before left, or `first` in the first."""
        if self.first:
            assert first is not None
            return first
        return next(self._taken)


def _convolved(
    parts: _Past, own: Any, x_BTC: jax.Array, samples: int | jax.Array, dilation: int = 1
) -> jax.Array:
    kernel_KCD = own["kernel"]
    before = (kernel_KCD.shape[0] - 1) * dilation
    if before:
        x_BTC = parts.joined(_mirrored(x_BTC, before, samples) if parts.first else None, x_BTC)
    return _products(x_BTC, kernel_KCD, dilation) + own["bias"][None, None]


def _products(x_BTC: jax.Array, kernel_KCD: jax.Array, dilation: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x_BTC, kernel_KCD, (1,), "VALID", rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
    )


def _mirrored(x_BTC: jax.Array, before: int, samples: int | jax.Array) -> jax.Array:
    """The `before` values ahead of the first: those after it, backwards; 0 where there are no more."""
    there_T = jnp.arange(1, before + 1) < samples
    return jnp.flip(jnp.where(there_T[None, :, None], x_BTC[:, 1 : before + 1], 0.0), axis=1)


def _strided(parts: _Past, own: Any, x_BTC: jax.Array, ratio: int, samples: int | jax.Array) -> jax.Array:
    """A convolution of two frames of `ratio` values, one frame further each time."""
    kernel_KCD = own["kernel"]
    batch, length, channels = x_BTC.shape
    before = _mirrored(x_BTC, ratio, samples) if parts.first else None
    x_BTC = parts.joined(before, x_BTC)
    if not (isinstance(samples, int) and samples == length):
        x_BTC = _filled(x_BTC, ratio, samples, parts.first)
    framed_BTE = x_BTC.reshape(batch, -1, ratio * channels)
    kernel_2ED = kernel_KCD.reshape(2, ratio * channels, -1)
    return _products(framed_BTE, kernel_2ED) + own["bias"][None, None]


def _filled(x_BTC: jax.Array, ratio: int, samples: int | jax.Array, first: bool) -> jax.Array:
    """The last frame that has any of the samples, made full by mirroring, or by zeros in a short sound.

    The values are behind one frame of the past.
    """
    samples = jnp.asarray(samples, jnp.int32)
    start = jnp.maximum(-(-samples // ratio) - 1, 0) * ratio
    two_BTC = jax.lax.dynamic_slice_in_dim(x_BTC, start, 2 * ratio, axis=1)
    at_T, end = jnp.arange(2 * ratio), ratio + samples - start
    mirrored_BTC = jnp.take(two_BTC, jnp.clip(2 * (end - 1) - at_T, 0, 2 * ratio - 1), axis=1)
    if first:
        mirrored_BTC = jnp.where(samples > ratio, mirrored_BTC, 0.0)
    full_BTC = jnp.where((at_T < end)[None, :, None], two_BTC, mirrored_BTC)
    return jax.lax.dynamic_update_slice_in_dim(x_BTC, full_BTC, start, axis=1)


def _stretched(parts: _Past, own: Any, x_BTC: jax.Array, ratio: int) -> jax.Array:
    """A transposed convolution: of every value two frames of `ratio`, overlapping; its first is trimmed by
    nothing and its last by a frame."""
    kernel_CKD = own["kernel"]
    batch, length, channels = x_BTC.shape
    x_BTC = parts.joined(jnp.zeros((batch, 1, channels), x_BTC.dtype), x_BTC)
    second_first_2CE = jnp.swapaxes(kernel_CKD.reshape(channels, 2, -1), 0, 1)[::-1]
    stretched_BTD = _products(x_BTC, second_first_2CE).reshape(batch, length * ratio, -1)
    return stretched_BTD + own["bias"][None, None]


def _residuals(
    s: CodecSettings, parts: _Past, stage: Any, x_BTC: jax.Array, samples: int | jax.Array
) -> jax.Array:
    for at in range(s.residual_layers):
        own = stage[f"residual_{at}"]
        branch_BTC = _convolved(parts, own["narrow"], jax.nn.elu(x_BTC), samples, s.dilation_base**at)
        branch_BTC = _convolved(parts, own["widen"], jax.nn.elu(branch_BTC), samples)
        x_BTC = _convolved(parts, own["shortcut"], x_BTC, samples) + branch_BTC
    return x_BTC


def _recurrent(s: CodecSettings, parts: _Past, there: Any, x_BTC: jax.Array) -> jax.Array:
    """LSTM layers over time, added to what they are given."""
    y_BTC, nothing_BC = x_BTC, jnp.zeros_like(x_BTC[:, 0])
    for at in range(s.lstm_layers):
        own = there[f"lstm_{at}"]
        given_TBG = jnp.swapaxes(y_BTC @ own["input_CG"] + own["bias"][None, None], 0, 1)

        def step(state, given_BG, hidden_CG=own["hidden_CG"]):
            h_BC, c_BC = state
            enter, forget, new, leave = jnp.split(given_BG + h_BC @ hidden_CG, 4, axis=-1)
            c_BC = jax.nn.sigmoid(forget) * c_BC + jax.nn.sigmoid(enter) * jnp.tanh(new)
            h_BC = jax.nn.sigmoid(leave) * jnp.tanh(c_BC)
            return (h_BC, c_BC), h_BC

        first = parts.carried(nothing_BC), parts.carried(nothing_BC)
        last, y_TBC = jax.lax.scan(step, first, given_TBG)
        parts.left.extend(last)
        y_BTC = jnp.swapaxes(y_TBC, 0, 1)
    return x_BTC + y_BTC if s.lstm_layers else x_BTC


def _fresh(key: jax.Array, shape: tuple[int, ...], seen: int | None = None) -> dict[str, jax.Array]:
    """A kernel whose outputs vary as much as what they see, `seen` numbers each; no bias."""
    seen = seen or math.prod(shape[:-1])
    return {"kernel": jax.random.normal(key, shape) / np.sqrt(seen), "bias": jnp.zeros(shape[-1:])}


def _fresh_residuals(s: CodecSettings, width: int, keys: Any) -> dict[str, Any]:
    narrow = width // s.compress
    return {
        f"residual_{at}": {
            "narrow": _fresh(next(keys), (s.residual_kernel, width, narrow)),
            "widen": _fresh(next(keys), (1, narrow, width)),
            "shortcut": _fresh(next(keys), (1, width, width)),
        }
        for at in range(s.residual_layers)
    }


def _fresh_lstm(s: CodecSettings, width: int, key: jax.Array) -> dict[str, Any]:
    bound, shapes = 1.0 / np.sqrt(width), {"input_CG": (width, 4 * width), "hidden_CG": (width, 4 * width)}

    def fresh(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, 3)
        return {
            name: jax.random.uniform(own, shape, minval=-bound, maxval=bound)
            for own, (name, shape) in zip(keys, {**shapes, "bias": (4 * width,)}.items(), strict=True)
        }

    return {
        f"lstm_{at}": fresh(own)
        for at, own in enumerate(jax.random.split(key, max(1, s.lstm_layers)))
        if at < s.lstm_layers
    }
