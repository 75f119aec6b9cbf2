"""Attention in torch, for comparison: its own kernels, and a window with global tokens in blocks.

Arrays are (batch, heads, rows, head width), torch's order; functions take q, k, v and the tokens' k and v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BATCHED_BLOCK, FLASH_BLOCK = 128, 256  # the fastest tried on one CPU core


def of_torch(function: Callable[..., Tensor], *, on_gpu: bool) -> Callable[[Any, bool], Any]:
    """A torch function as a case of `benchmarks/attention.py`."""
    torch.set_num_threads(1)

    def ready(arrays: Any, backward: bool) -> tuple[Callable[[], Any], dict[str, float]]:
        device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
        *given, d_out = (torch.tensor(a.swapaxes(1, 2).copy(), device=device, dtype=dtype) for a in arrays)

        def forward() -> Any:
            with torch.no_grad():
                return result(function(*given))

        def both() -> Any:
            inputs = [x.detach().requires_grad_() for x in given]
            out = function(*inputs)
            out.backward(d_out)
            return result(out.detach()), tuple(None if x.grad is None else result(x.grad) for x in inputs)

        return both if backward else forward, {}

    def result(x: Tensor) -> Any:
        if on_gpu:
            torch.cuda.synchronize()
        return Lazily(x)

    return ready


class Lazily:
    """A result that becomes NumPy, in our order of axes, only when it is looked at."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.x.float().cpu().numpy().swapaxes(1, 2).astype(dtype or np.float32)


def dense(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
    """Every pair, through the fused kernel."""
    return F.scaled_dot_product_attention(q, k, v)


def batched_blocks(window: Any) -> Callable[..., Tensor]:
    """Our algorithm as torch is usually written: all blocks of queries in one product."""

    def function(q: Tensor, k: Tensor, v: Tensor, global_k: Tensor, global_v: Tensor) -> Tensor:
        q_blocks, (k_blocks, v_blocks), mask = blocks(window, BATCHED_BLOCK, q, k, v)
        scale, span = q.shape[-1] ** -0.5, mask.shape[-1]
        near = (q_blocks @ k_blocks.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
        far = q_blocks @ global_k[:, :, None].transpose(-1, -2) * scale
        weights = torch.softmax(torch.cat([near, far], -1), -1)
        out = weights[..., :span] @ v_blocks + weights[..., span:] @ global_v[:, :, None]
        return out.flatten(2, 3)[:, :, : q.shape[2]]

    return function


def flash_blocks(window: Any) -> Callable[..., Tensor]:
    """Our algorithm with the fused kernel on one block after the other: the fastest way found on a CPU."""

    def function(q: Tensor, k: Tensor, v: Tensor, global_k: Tensor, global_v: Tensor) -> Tensor:
        q_blocks, pair, masks = blocks(window, FLASH_BLOCK, q, k, v)
        masks = F.pad(masks, (0, global_k.shape[2]), value=True)
        # One `unbind` rather than slices, whose gradients are each as long as the recording.
        outs = [
            F.scaled_dot_product_attention(
                q_block, torch.cat([k_block, global_k], 2), torch.cat([v_block, global_v], 2), attn_mask=mask
            )
            for q_block, k_block, v_block, mask in zip(
                q_blocks.unbind(2), *(x.unbind(2) for x in pair), masks, strict=True
            )
        ]
        return torch.cat(outs, 2)[:, :, : q.shape[2]]

    return function


def blocks(window: Any, size: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """Queries in blocks, the keys and values around each (views), and who sees whom."""
    n_frames = q.shape[2]
    count = -(-n_frames // size)
    tail, span = count * size - n_frames, size + window.left + window.right
    around = (0, 0, window.left, window.right + tail)
    pair = [F.pad(x, around).unfold(2, span, size).transpose(-1, -2) for x in (k, v)]
    first = torch.arange(count, device=q.device)[:, None, None] * size
    query = first + torch.arange(size, device=q.device)[:, None]
    key = first - window.left + torch.arange(span, device=q.device)
    mask = (key >= query - window.left) & (key <= query + window.right) & (key >= 0) & (key < n_frames)
    return F.pad(q, (0, 0, 0, tail)).unflatten(2, (count, size)), pair, mask


def flex(window: Any) -> Callable[..., Tensor]:
    """FlexAttention, compiled, with the tokens as keys after the frames; a block mask is made once."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled, masks = torch.compile(flex_attention), {}

    def mask_of(n_frames: int, n_keys: int, device: torch.device) -> Any:
        def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            near = (key >= query - window.left) & (key <= query + window.right) & (key < n_frames)
            return near | (key >= n_frames)

        return create_block_mask(seen, None, None, n_frames, n_keys, device=str(device))

    def function(q: Tensor, k: Tensor, v: Tensor, global_k: Tensor, global_v: Tensor) -> Tensor:
        keys, values = torch.cat([k, global_k], 2), torch.cat([v, global_v], 2)
        lengths = q.shape[2], keys.shape[2]
        if lengths not in masks:
            masks[lengths] = mask_of(*lengths, q.device)
        return compiled(q, keys, values, block_mask=masks[lengths])

    return function
