"""Layers of the PyTorch twin: norms, rotary positions, feed-forward, attention of three kinds.

As `editjax/models/layers.py` and `editjax/attention`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editjax.attention import Window
from editjax.models.layers import ROTARY_BASE

QUERY_BLOCK = 64


class Reach(NamedTuple):
    """What the queries of one level may see, and where they stand: made once a pass for all its layers.

    `mask` is of the kind's own form; cos and sin are (1, T, 1, half head).
    """

    mask: Any
    window: Window
    cos: Tensor
    sin: Tensor


class Globals(NamedTuple):
    """How the pooled tokens of `scales.bar_globals` are made and where they stand."""

    pool_BGL: Tensor
    valid_BG: Tensor
    cos: Tensor
    sin: Tensor


def frame_mask(frames_B: Tensor, n_frames: int) -> Tensor:
    return torch.arange(n_frames, device=frames_B.device) < frames_B[:, None]


def masked(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    return x_BTD * mask_BT[..., None]


def ceil_div(a: Tensor, size: int) -> Tensor:
    return (a + size - 1) // size


def rotation(position_BT: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `layers.rotary`, (B, T, 1, half head)."""
    half = head // 2
    rate_R = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float32, device=position_BT.device) / half)
    angle = (position_BT.float()[..., None] * rate_R)[:, :, None]
    return angle.cos(), angle.sin()


def rotary(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x_BTHK.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def rows(x_BTD: Tensor, index: Tensor) -> Tensor:
    """Rows of each example at `index` (B, …), all inside."""
    batch, length, width = x_BTD.shape
    first = torch.arange(batch, device=index.device).view(-1, *[1] * (index.ndim - 1)) * length
    return F.embedding(index + first, x_BTD.reshape(-1, width))


def take(x_BTD: Tensor, index: Tensor) -> Tensor:
    """The same; indices outside give zero."""
    inside = (index >= 0) & (index < x_BTD.shape[1])
    return rows(x_BTD, index.clamp(0, x_BTD.shape[1] - 1)) * inside[..., None]


def pick(x_BT: Tensor, index: Tensor) -> Tensor:
    """Numbers of each example at `index` (B, …); indices outside give zero."""
    return take(x_BT[..., None], index)[..., 0]


def reach(
    kind: str, window: Window, frames_B: Tensor, n_frames: int, head: int, valid_BG: Tensor | None = None
) -> Reach:
    """The mask of every query: its window, itself (so that no row is empty), and the valid globals."""
    device = frames_B.device
    angles = rotation(torch.arange(n_frames, device=device)[None], head)
    if valid_BG is None:
        valid_BG = torch.zeros(len(frames_B), 0, dtype=torch.bool, device=device)
    if kind == "dense":
        offset_TS = torch.arange(n_frames, device=device) - torch.arange(n_frames, device=device)[:, None]
        near_TS = (offset_TS >= -window.left) & (offset_TS <= window.right)
        if bool((frames_B == n_frames).all() & valid_BG.all()):  # one mask for all examples
            mask = F.pad(near_TS, (0, valid_BG.shape[1]), value=True)[None]
        else:
            mask_BTS = near_TS & frame_mask(frames_B, n_frames)[:, None] | (offset_TS == 0)
            mask = torch.cat([mask_BTS, valid_BG[:, None].expand(-1, n_frames, -1)], -1)
        return Reach(mask[:, None], window, *angles)
    if kind == "flex":
        return Reach(_flex_mask(window, frames_B, n_frames, valid_BG), window, *angles)
    query_Q = torch.arange(QUERY_BLOCK, device=device)[:, None]
    span = QUERY_BLOCK + window.left + window.right
    offset_QS = torch.arange(span, device=device) - window.left - query_Q
    near_QS = (offset_QS >= -window.left) & (offset_QS <= window.right)
    first_X = torch.arange(0, n_frames, QUERY_BLOCK, device=device)
    key_XS = first_X[:, None] + torch.arange(span, device=device) - window.left
    valid_BXS = (key_XS >= 0) & (key_XS < frames_B[:, None, None])
    mask_BXQS = near_QS & valid_BXS[:, :, None] | (offset_QS == 0)
    globals_BXQG = valid_BG[:, None, None].expand(-1, len(first_X), QUERY_BLOCK, -1)
    return Reach(torch.cat([mask_BXQS, globals_BXQG], -1).flatten(0, 1)[:, None], window, *angles)


def _flex_mask(window: Window, frames_B: Tensor, n_frames: int, valid_BG: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    valid_BS = torch.cat([frame_mask(frames_B, n_frames), valid_BG], 1)

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (key - query >= -window.left) & (key - query <= window.right)
        return (near | (key >= n_frames)) & valid_BS[b, key] | (key == query)

    batch, keys = valid_BS.shape
    return create_block_mask(seen, batch, None, n_frames, keys, device=str(frames_B.device))


def attend(kind: str, q: Tensor, k: Tensor, v: Tensor, reach: Reach, extra: list[Tensor]) -> Tensor:
    """Attention of (B, T, H, K) to its window and to the extra keys and values (B, G, H, K), if any."""
    if kind == "block":
        return _attend_in_blocks(q, k, v, reach, extra)
    if extra:
        k, v = torch.cat([k, extra[0]], 1), torch.cat([v, extra[1]], 1)
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    if kind == "flex":
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q, k, v, block_mask=reach.mask).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=reach.mask).transpose(1, 2)


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, reach: Reach, extra: list[Tensor]) -> Tensor:
    batch, n_frames, heads, head = q.shape
    tail = -n_frames % QUERY_BLOCK
    left, right = reach.window
    span = QUERY_BLOCK + left + right

    def around(x_BTHK: Tensor) -> Tensor:
        padded = F.pad(x_BTHK, (0, 0, 0, 0, left, right + tail))
        return padded.unfold(1, span, QUERY_BLOCK).movedim(-1, 2)

    q = F.pad(q, (0, 0, 0, 0, 0, tail)).unflatten(1, (-1, QUERY_BLOCK))
    k, v = around(k), around(v)
    if extra:
        k, v = (
            torch.cat([x, more[:, None].expand(-1, x.shape[1], -1, -1, -1)], 2)
            for x, more in zip((k, v), extra, strict=True)
        )
    q, k, v = (a.flatten(0, 1).transpose(1, 2) for a in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=reach.mask)
    return out.transpose(1, 2).reshape(batch, n_frames + tail, heads, head)[:, :n_frames]


class Mlp(nn.Module):
    """`editjax.models.layers.Mlp`; `asked` is the width of what modulates it, 0 where nothing does."""

    def __init__(self, width: int, expansion: int, asked: int = 0):
        super().__init__()
        hidden = width * expansion
        self.norm = norm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.asked = nn.Linear(asked, 2 * hidden, bias=False) if asked else None

    def forward(self, x: Tensor, asked_BE: Tensor | None = None) -> Tensor:
        h = self.up(self.norm(x))
        if self.asked is not None:
            scale, shift = self.asked(asked_BE)[:, None].chunk(2, -1)
            h = torch.addcmul(shift, h, 1.0 + scale)
        return self.down(gelu(h))


def norm(width: int) -> nn.RMSNorm:
    return nn.RMSNorm(width, eps=1e-6)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def conv(channels: int, width: int) -> nn.Conv1d:
    return nn.Conv1d(channels, width, 5, padding=2)


def along_time(layer: nn.Conv1d, x_BTF: Tensor) -> Tensor:
    return layer(x_BTF.transpose(1, 2)).transpose(1, 2)


class WindowAttention(nn.Module):
    def __init__(self, width: int, heads: int, kind: str, with_globals: bool):
        super().__init__()
        self.heads, self.kind = heads, kind
        self.norm, self.qkv, self.out = norm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        if with_globals:
            self.global_norm, self.global_kv = norm(width), nn.Linear(width, 2 * width)

    def forward(self, x_BTD: Tensor, reach: Reach, tokens: Globals | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm(x_BTD)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = rotary(q, reach.cos, reach.sin), rotary(k, reach.cos, reach.sin)
        extra = []
        if tokens is not None:
            kv = self.global_kv(self.global_norm(tokens.pool_BGL @ x_BTD))
            more_k, more_v = kv.unflatten(-1, (2, self.heads, -1)).unbind(2)
            extra = [rotary(more_k, tokens.cos, tokens.sin), more_v]
        return self.out(attend(self.kind, q, k, v, reach, extra).flatten(2))
