"""Layers shared by the model families: normalisation, rotary positions, windowed attention, feed-forward.

Linen in its pure style: parameters only, no other collections; randomness and caches are arguments.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from editjax.attention import Mask, Tokens, Window, attend
from editjax.mesh import TIME

ROTARY_BASE = 10_000.0
RUNNING = "running"
"""The part of a model's parameters that moves without a gradient, or not at all."""
TURN_SPAN = 1024.0
SHORT = 256
"""Steps up to which a convolution is a product: more than a segment has."""
LONG = 32_768
"""Frames beyond which the backward pass computes stages anew; more than a crop has."""


def rotary(x_BTHK, position_BT):
    """Rotate head channels by position (Su et al. 2021, RoFormer), so that products see only differences.

    x: (batch, tokens, heads, head width), positions: (batch or 1, tokens) in frames of the attending level.
    """
    return turned(x_BTHK, turns(position_BT, x_BTHK.shape[-1]))


def turns(position_BT, head_width: int):
    """Cosines and sines of the angles `rotary` turns by, (B, T, head width / 2) each.

    Whole spans of TURN_SPAN positions turn by angles that are reduced to one turn beforehand, in float64. Of
    the plain product float32 loses a hundredth of a radian by position 200,000, and a step there would not be
    that step near the start.
    """
    half = head_width // 2
    rate_R = (ROTARY_BASE ** (-np.arange(half) / half)).astype(np.float32)
    span_R = (TURN_SPAN * rate_R.astype(np.float64) % (2 * np.pi)).astype(np.float32)
    position_BT1 = position_BT.astype(jnp.float32)[:, :, None]
    spans_BT1 = jnp.floor(position_BT1 / TURN_SPAN)
    within_BT1 = position_BT1 - TURN_SPAN * spans_BT1
    angle_BTR = within_BT1 * rate_R[None, None, :] + spans_BT1 * span_R[None, None, :]
    return jnp.cos(angle_BTR), jnp.sin(angle_BTR)


def turned(x_BTHK, turns_BTR):
    """`rotary`, by angles that are shared."""
    cos, sin = (a_BTR[:, :, None, :] for a_BTR in turns_BTR)
    a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BTHK.dtype)


def frame_mask(frames_B, n_frames: int):
    """Validity of each frame, (batch, frames) bool."""
    return jnp.arange(n_frames)[None, :] < frames_B[:, None]


def in_chunks(function, size: int, *arrays):
    """`function` of arrays (B, N, …), each step of which it treats by itself: `size` of the N at a time.

    Where there are more, backward computes anew what it needs of each chunk, so that only arguments and
    results grow with N. Up to `size` steps it is the function itself.
    """
    batch, n_steps = arrays[0].shape[:2]
    if n_steps <= size:
        return function(*arrays)
    n_chunks = -(-n_steps // size)

    def split(x_BNX):
        rest = x_BNX.shape[2:]
        around = ((0, 0), (0, n_chunks * size - n_steps), *((0, 0) for _ in rest))
        return jnp.swapaxes(jnp.pad(x_BNX, around).reshape(batch, n_chunks, size, *rest), 0, 1)

    results = jax.lax.map(lambda parts: jax.checkpoint(function)(*parts), tuple(map(split, arrays)))
    return jnp.swapaxes(results, 0, 1).reshape(batch, n_chunks * size, *results.shape[3:])[:, :n_steps]


def anew_if_long(function, length: int):
    """`function`, of which nothing but its arguments is held for the backward pass beyond LONG frames.

    The whole function runs once more then: a third more work for a training step, which must fit first.
    """
    return jax.checkpoint(function) if length > LONG else function


def mean_where(values, mask):
    """The mean of what the mask holds, 0 where it holds nothing."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1).astype(jnp.float32)


def masked(x_BTD, mask_BT):
    """Zero the frames outside the mask."""
    return jnp.where(mask_BT[..., None], x_BTD, jnp.zeros((), x_BTD.dtype))


def places_in_runs(x_BT):
    """How many equal lie up to each value, and from it on, itself included: float32, (B, T) each."""
    n_frames = x_BT.shape[1]
    place_1T = jnp.arange(n_frames)[None]
    new_BT = jnp.pad(x_BT[:, 1:] != x_BT[:, :-1], ((0, 0), (1, 1)), constant_values=True)
    first_BT = jax.lax.cummax(jnp.where(new_BT[:, :-1], place_1T, 0), axis=1)
    last_BT = jax.lax.cummin(jnp.where(new_BT[:, 1:], place_1T, n_frames), axis=1, reverse=True)
    return (place_1T - first_BT + 1).astype(jnp.float32), (last_BT - place_1T + 1).astype(jnp.float32)


class TimeConv(nn.Module):
    """Convolution over time with `nn.Conv`'s parameters and values, zeros beyond the ends.

    Of stride 1 the kernel is centred, of stride 2 it reaches `(kernel - 2) / 2` beyond each pair of steps. Up
    to SHORT steps it is one product with neighbouring steps side by side: inside a `lax.scan` the backward
    pass of XLA's own convolution takes six times as long on a CPU. Of many steps that one is faster.
    """

    width: int
    kernel: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    short: int = SHORT

    @nn.compact
    def __call__(self, x_BTD):
        before = (self.kernel - self.stride) // 2
        after = self.kernel - self.stride - before
        shape = (self.kernel, x_BTD.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        x_BTD = x_BTD.astype(self.dtype)
        # Where a mesh splits time and copies the parts, XLA adds up the gradients of all copies (jax 0.10.2).
        split = jax.sharding.get_abstract_mesh().shape.get(TIME, 1) > 1
        if x_BTD.shape[1] > self.short and not split:
            out = jax.lax.conv_general_dilated(
                x_BTD, kernel, (self.stride,), ((before, after),), dimension_numbers=("NWC", "WIO", "NWC")
            )
            return out + bias[None, None]
        padded = jnp.pad(x_BTD, ((0, 0), (before, after), (0, 0)))
        last = x_BTD.shape[1] - self.stride + 1
        beside = [padded[:, k : k + last : self.stride] for k in range(self.kernel)]
        return jnp.concatenate(beside, -1) @ kernel.reshape(-1, self.width) + bias[None, None]


class Norm(nn.Module):
    """Root-mean-square normalisation with a learned scale, computed in float32."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.RMSNorm(dtype=jnp.float32, name="scale")(x.astype(jnp.float32)).astype(self.dtype)


class Mlp(nn.Module):
    """Normalised feed-forward residual branch.

    What is asked of the edit, (B, E), where it is given, scales and shifts every hidden channel (feature-wise
    linear modulation: Perez et al. 2018); it begins without effect.
    """

    width: int
    expansion: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTD, asked_BE=None):
        hidden = self.width * self.expansion
        h = nn.Dense(hidden, dtype=self.dtype, name="up")(Norm(self.dtype, name="norm")(x_BTD))
        if asked_BE is not None:
            none = nn.initializers.zeros
            change = nn.Dense(2 * hidden, use_bias=False, dtype=self.dtype, kernel_init=none, name="asked")
            scale_B1D, shift_B1D = jnp.split(change(asked_BE.astype(self.dtype))[:, None], 2, -1)
            h = h * (1.0 + scale_B1D) + shift_B1D
        return nn.Dense(self.width, dtype=self.dtype, name="down")(nn.gelu(h))


class Heads(nn.Module):
    """`nn.Dense`, parameters and values, to `parts` of so many heads of a width: (B, T, heads, head) each.

    The product is by heads, which a mesh can split; of the parts side by side a piece would be no heads.
    """

    parts: int
    heads: int
    head: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTD):
        shape = self.parts, self.heads, self.head
        outputs = self.parts * self.heads * self.head
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x_BTD.shape[-1], outputs))
        bias = self.param("bias", nn.initializers.zeros, (outputs,))
        x_BTD, kernel, bias = nn.dtypes.promote_dtype(x_BTD, kernel, bias, dtype=self.dtype)
        bias_11PHK = bias.reshape(1, 1, *shape)
        out_BTPHK = jnp.einsum("btd,dphk->btphk", x_BTD, kernel.reshape(-1, *shape)) + bias_11PHK
        return tuple(out_BTPHK[:, :, part] for part in range(self.parts))


class WindowAttention(nn.Module):
    """Residual branch: attention to a window of frames and to global tokens, rotary positions for both."""

    width: int
    heads: int
    window: Window
    kind: str = "block"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTD, frames_B, globals_BGD=None, global_position_BG=None, global_valid_BG=None):
        shape = self.heads, self.width // self.heads
        q, k, v = Heads(3, *shape, self.dtype, name="qkv")(Norm(self.dtype, name="norm")(x_BTD))
        position_1T = jnp.arange(x_BTD.shape[1])[None, :]
        q, k = rotary(q, position_1T), rotary(k, position_1T)
        tokens = None
        if globals_BGD is not None:
            g = Norm(self.dtype, name="global_norm")(globals_BGD)
            global_k, global_v = Heads(2, *shape, self.dtype, name="global_kv")(g)
            tokens = Tokens(rotary(global_k, global_position_BG), global_v, global_valid_BG)
        out = attend(q, k, v, Mask(self.window, frames_B), tokens, kind=self.kind)
        return nn.Dense(self.width, dtype=self.dtype, name="out")(out.reshape(x_BTD.shape))
