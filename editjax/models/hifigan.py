"""The HiFi-GAN generator: a vocoder's own mel → waveform (Kong, Kim and Bae 2020, arXiv 2010.05646).

Transposed convolutions stretch the mel to samples; after each, residual blocks of several kernel lengths and
dilations are averaged. Settings name the architecture and the mel that a vocoder was trained with, which is
not ours (`VocoderMel`). Parameters come from converted weights (`editjax.convert`); nothing is trained here.
Slopes of the leaky rectifiers are those of the paper's public implementation.

Samples depend on few frames around theirs, so long mels are done in chunks, exactly.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from editjax.config import refuse_sizes
from editjax.errors import UsageError
from editjax.mel import CHUNK_FRAMES, LARGEST, LARGEST_HZ, hann_window, slaney_edges_hz, triangular_filters
from editjax.models.griffin_lim import overlap_add
from editjax.models.layers import frame_mask, masked

SLOPE, LAST_SLOPE = 0.1, 0.01
END_KERNEL = 7
"""Of the convolutions before and after all others."""
SHORTEST_FRAMES = 32
LONGEST_FRAMES = 512
MAGNITUDE_FLOOR = 1e-9


@dataclass(frozen=True)
class VocoderMel:
    """The mel a vocoder was trained with: natural logarithm of mel-filtered magnitudes, no less than `least`.

    Frames lie between samples t · hop and (t + 1) · hop, the signal mirrored at its ends. `high_hz` None is
    half the sample rate.
    """

    sample_rate_hz: int = 22050
    n_fft: int = 1024
    window: int = 1024
    hop: int = 256
    n_mels: int = 80
    low_hz: float = 0.0
    high_hz: float | None = 8000.0
    htk: bool = False
    least: float = 1e-5

    def __post_init__(self):
        if min(self.sample_rate_hz, self.n_fft, self.window, self.hop, self.n_mels) < 1 or self.least <= 0:
            raise UsageError(f"a vocoder's mel settings must be positive, got {self}")
        if max(self.n_fft, self.n_mels) > LARGEST or self.sample_rate_hz > LARGEST_HZ:
            raise UsageError(
                f"a vocoder's mel settings are no larger than {LARGEST}, {LARGEST_HZ} Hz, got {self}"
            )
        if not self.hop <= self.window <= self.n_fft or (self.n_fft - self.hop) % 2:
            raise UsageError(f"a vocoder's mel needs hop ≤ window ≤ n_fft, hop and n_fft both even: {self}")
        if not 0.0 <= self.low_hz < self.top_hz <= self.sample_rate_hz / 2:
            raise UsageError(
                f"a vocoder's mel from {self.low_hz:g} to {self.top_hz:g} Hz does not fit "
                f"{self.sample_rate_hz} samples a second"
            )

    @property
    def top_hz(self) -> float:
        return self.sample_rate_hz / 2 if self.high_hz is None else self.high_hz


@dataclass(frozen=True)
class HifiGanSettings:
    """The generator's shape, by default the paper's V1.

    Each of `upsample_rates` multiplies the time steps and halves the channels; their product is the hop.
    `block` is the paper's kind of residual block: 1, with a plain convolution after each dilated one, or 2.
    """

    mel: VocoderMel = VocoderMel()
    channels: int = 512
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 16, 4, 4)
    block: int = 1
    block_kernels: tuple[int, ...] = (3, 7, 11)
    block_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))

    def __post_init__(self):
        refuse_sizes(self)
        rates, kernels = self.upsample_rates, self.upsample_kernels
        counts = (self.channels, *rates, *kernels, *self.block_kernels, *sum(self.block_dilations, ()))
        if min(counts) < 1 or not rates or not self.block_kernels or self.block not in (1, 2):
            raise UsageError(f"HiFi-GAN needs positive sizes and blocks of kind 1 or 2, got {self}")
        if len(rates) != len(kernels) or len(self.block_kernels) != len(self.block_dilations):
            raise UsageError("HiFi-GAN needs a kernel for each upsampling, dilations for each block kernel")
        if any(kernel < rate or (kernel - rate) % 2 for rate, kernel in zip(rates, kernels, strict=True)):
            raise UsageError(f"upsampling kernels {kernels} must exceed the rates {rates} by even numbers")
        if any(kernel % 2 == 0 for kernel in self.block_kernels):
            raise UsageError(f"block kernels must be odd, got {self.block_kernels}")
        if int(np.prod(rates)) != self.mel.hop:
            raise UsageError(f"upsampling by {rates} does not make the mel's hop of {self.mel.hop} samples")
        if self.channels % 2 ** len(rates):
            raise UsageError(f"{self.channels} channels cannot be halved {len(rates)} times")

    @property
    def reach_frames(self) -> int:
        """Frames on either side of its own that a sample can depend on."""
        per_dilation = 1 if self.block == 1 else 0
        blocks_reach = max(
            sum((kernel // 2) * (dilation + per_dilation) for dilation in dilations)
            for kernel, dilations in zip(self.block_kernels, self.block_dilations, strict=True)
        )
        reach = END_KERNEL // 2
        for rate, kernel in reversed(list(zip(self.upsample_rates, self.upsample_kernels, strict=True))):
            reach = -(-(reach + blocks_reach + (kernel - rate) // 2) // rate)
        return reach + END_KERNEL // 2


class Generator(nn.Module):
    """A vocoder's mel (B, T, F) → samples (B, T · hop) in (−1, 1), as if `frames_B` were all frames."""

    settings: HifiGanSettings

    @nn.compact
    def __call__(self, mel_BTF: jax.Array, frames_B: jax.Array) -> jax.Array:
        settings, channels, steps = self.settings, self.settings.channels, 1

        def there(x_BTC: jax.Array) -> jax.Array:
            """Zero past the end: that is what convolutions find there without padding."""
            return masked(x_BTC, frame_mask(frames_B * steps, x_BTC.shape[1]))

        x_BTC = nn.Conv(channels, (END_KERNEL,), name="conv_pre")(there(mel_BTF))
        for stage, (rate, kernel) in enumerate(
            zip(settings.upsample_rates, settings.upsample_kernels, strict=True)
        ):
            x_BTC = nn.leaky_relu(there(x_BTC), SLOPE)
            channels, steps = channels // 2, steps * rate
            x_BTC = there(Upsample(channels, rate, kernel, name=f"ups_{stage}")(x_BTC))
            blocks = [
                ResBlock(settings.block, *shape, name=f"resblocks_{stage * len(settings.block_kernels) + n}")
                for n, shape in enumerate(zip(settings.block_kernels, settings.block_dilations, strict=True))
            ]
            x_BTC = sum(block(x_BTC, there) for block in blocks) / len(blocks)
        x_BTC = nn.leaky_relu(there(x_BTC), LAST_SLOPE)
        samples_BT1 = jnp.tanh(nn.Conv(1, (END_KERNEL,), name="conv_post")(x_BTC))
        return there(samples_BT1)[..., 0]


class Upsample(nn.Module):
    """A transposed convolution to `rate` times the steps: pieces of `kernel` steps, overlapping and added."""

    channels: int
    rate: int
    kernel: int

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        shape = (x_BTC.shape[-1], self.kernel, self.channels)
        kernel_CKD = self.param("kernel", nn.initializers.normal(0.01), shape)
        bias_D = self.param("bias", nn.initializers.zeros, (self.channels,))
        pieces_BTKD = jnp.einsum("btc,ckd->btkd", x_BTC, kernel_CKD)
        first = (self.kernel - self.rate) // 2
        added_BTD = overlap_add(pieces_BTKD, self.rate)[:, first : first + x_BTC.shape[1] * self.rate]
        return added_BTD + bias_D[None, None]


class ResBlock(nn.Module):
    """Residual branches of dilated convolutions, one after another."""

    block: int
    kernel: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x_BTC: jax.Array, there: Any) -> jax.Array:
        def convolved(x_BTC: jax.Array, dilation: int, name: str) -> jax.Array:
            conv = nn.Conv(x_BTC.shape[-1], (self.kernel,), kernel_dilation=dilation, name=name)
            return there(conv(nn.leaky_relu(x_BTC, SLOPE)))

        for at, dilation in enumerate(self.dilations):
            if self.block == 1:
                branch_BTC = convolved(x_BTC, dilation, f"convs1_{at}")
                branch_BTC = convolved(branch_BTC, 1, f"convs2_{at}")
            else:
                branch_BTC = convolved(x_BTC, dilation, f"convs_{at}")
            x_BTC = x_BTC + branch_BTC
        return x_BTC


def init(settings: HifiGanSettings, key: jax.Array) -> Any:
    """Fresh parameters, a nested dict."""
    mel_BTF = jnp.zeros((1, 1, settings.mel.n_mels))
    return Generator(settings).init(key, mel_BTF, jnp.ones(1, jnp.int32))["params"]


@partial(jax.jit, static_argnums=0)
def generate(settings: HifiGanSettings, params: Any, mel_BTF: jax.Array, frames_B: jax.Array) -> jax.Array:
    """Samples (B, T · hop) of a vocoder's mel; zero from frame `frames_B` on."""
    return jnp.asarray(Generator(settings).apply({"params": params}, mel_BTF, frames_B))


def synthesise(settings: HifiGanSettings, params: Any, mel_TF: np.ndarray) -> np.ndarray:
    """Samples (T · hop,) of a vocoder's mel of any length, done in chunks of a few standard lengths.

    The same as of the whole, for each chunk is given all the frames that its samples depend on.
    """
    n_frames, reach, hop = len(mel_TF), settings.reach_frames, settings.mel.hop
    length = SHORTEST_FRAMES
    while length < min(n_frames, max(LONGEST_FRAMES, 4 * reach)):
        length *= 2
    samples_S = np.zeros(n_frames * hop, np.float32)
    stride = n_frames if n_frames <= length else length - 2 * reach
    for first in range(0, n_frames, max(1, stride)):
        start = max(0, min(first - reach, n_frames - length))
        part_TF = np.asarray(mel_TF[start : start + length], np.float32)
        padded_TF = np.pad(part_TF, ((0, length - len(part_TF)), (0, 0)))
        heard_BS = generate(settings, params, padded_TF[None], np.array([len(part_TF)], np.int32))
        wanted = slice(first * hop, min(first + stride, n_frames) * hop)
        samples_S[wanted] = np.asarray(heard_BS[0])[wanted.start - start * hop :][
            : wanted.stop - wanted.start
        ]
    return samples_S


def vocoder_mel(samples_S: np.ndarray, mel: VocoderMel) -> np.ndarray:
    """The mel (T, F) float32 that a vocoder knows, of mono samples (S,) at its rate: T = ⌈S / hop⌉."""
    n_frames, around = -(-len(samples_S) // mel.hop), (mel.n_fft - mel.hop) // 2
    if not n_frames:
        return np.zeros((0, mel.n_mels), np.float32)
    whole_S = np.pad(np.asarray(samples_S, np.float32), (0, n_frames * mel.hop - len(samples_S)))
    frames_TW = np.lib.stride_tricks.sliding_window_view(np.pad(whole_S, around, "reflect"), mel.n_fft)
    before = (mel.n_fft - mel.window) // 2
    window_W = np.pad(hann_window(mel.window), (before, mel.n_fft - mel.window - before))
    filters_KF = _filters(mel)
    mel_TF = np.empty((n_frames, mel.n_mels), np.float32)
    for first in range(0, n_frames, CHUNK_FRAMES):
        part_TW = frames_TW[:: mel.hop][first : first + CHUNK_FRAMES]
        spectrum_TK = scipy.fft.rfft(part_TW * window_W, axis=-1)
        magnitude_TK = np.sqrt(spectrum_TK.real**2 + spectrum_TK.imag**2 + np.float32(MAGNITUDE_FLOOR))
        mel_TF[first : first + CHUNK_FRAMES] = np.log(np.maximum(magnitude_TK @ filters_KF, mel.least))
    return mel_TF


def _filters(mel: VocoderMel) -> np.ndarray:
    if not mel.htk:
        edges_hz = slaney_edges_hz(mel.low_hz, mel.top_hz, mel.n_mels)
    else:
        low, high = (2595.0 * np.log10(1.0 + hz / 700.0) for hz in (mel.low_hz, mel.top_hz))
        edges_hz = 700.0 * (10.0 ** (np.linspace(low, high, mel.n_mels + 2) / 2595.0) - 1.0)
    return triangular_filters(edges_hz, mel.sample_rate_hz, mel.n_fft)
