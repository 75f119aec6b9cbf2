"""Splash attention on TPUs (Pallas): windows, packed examples, and tokens as keys that follow the frames.

The static part of the mask, window and tokens, decides which tiles are visited; validity and packing are
segment numbers. Tokens are concatenated rather than merged by their log-sum, so that one kernel with one
backward pass does it all.
"""

import dataclasses
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from editjax.attention.mask import NOBODY, NOWHERE, Window, sight, zero_unseen

TILE = 256


def attend_splash(q_BTHK, k_BSHK, v_BSHK, mask, tokens, interpret: bool = False):
    """See `editjax.attention.attend`. `interpret`: run it on the CPU, for tests."""
    if mask.place_BT is not None:
        raise ValueError("splash attention cannot do queries at places of their own; use kind 'block'")
    n_frames = q_BTHK.shape[1]
    view, owner_BG = sight(mask, n_frames, k_BSHK.shape[1]), tokens.owner_BG
    valid_BS = view.stop_BT > 0
    # Invalid frames are queries that see nothing and keys that nobody sees.
    key_segment_BS = jnp.where(valid_BS, view.segment_BT, NOBODY)
    segments = splash_attention_kernel.SegmentIds(
        _padded(view.segment_BT, NOWHERE),
        jnp.concatenate([_padded(key_segment_BS, NOBODY), _padded(owner_BG, NOBODY)], axis=1),
    )
    k_BLHK, v_BLHK = (
        jnp.concatenate(
            [_padded(zero_unseen(near, valid_BS)), _padded(zero_unseen(far, owner_BG >= 0))], axis=1
        )
        for near, far in ((k_BSHK, tokens.k_BGHK), (v_BSHK, tokens.v_BGHK))
    )
    q_BTHK = _padded(zero_unseen(q_BTHK, valid_BS)) * q_BTHK.shape[-1] ** -0.5
    heads, shape = q_BTHK.shape[2], (q_BTHK.shape[1], k_BLHK.shape[1])
    kernel = _kernel(_Mask(shape, mask.window), heads, interpret)
    q_BHTK, k_BHLK, v_BHLK = (jnp.swapaxes(x, 1, 2) for x in (q_BTHK, k_BLHK, v_BLHK))
    out_BHTK = jax.vmap(kernel)(q_BHTK, k_BHLK, v_BHLK, segments)
    return zero_unseen(jnp.swapaxes(out_BHTK, 1, 2)[:, :n_frames], valid_BS)


def _padded(x_BT, value=0):
    """Rows up to a multiple of `TILE`."""
    tail = -x_BT.shape[1] % TILE
    return jnp.pad(x_BT, ((0, 0), (0, tail), *((0, 0),) * (x_BT.ndim - 2)), constant_values=value)


@dataclasses.dataclass(frozen=True)
class _Mask(splash_attention_mask.Mask):
    """The window among the frames, and all keys after them; computed tile by tile, never as a whole."""

    size: tuple[int, int]
    window: Window

    @property
    def shape(self) -> tuple[int, int]:
        """Queries (as many as frames), and frames and tokens."""
        return self.size

    def __getitem__(self, tile: Any) -> np.ndarray:
        query_T1, key_1L = np.arange(self.size[0])[tile[0], None], np.arange(self.size[1])[None, tile[1]]
        offset_TL = key_1L - query_T1
        near_TL = (offset_TL >= -self.window.left) & (offset_TL <= self.window.right)
        return np.where(key_1L < self.size[0], near_TL, True)


@lru_cache(maxsize=16)
def _kernel(mask: _Mask, heads: int, interpret: bool):
    sizes = splash_attention_kernel.BlockSizes(
        block_q=TILE,
        block_kv=TILE,
        block_q_dkv=TILE,
        block_kv_dkv=TILE,
        block_q_dq=TILE,
        block_kv_dq=TILE,
    )
    with jax.ensure_compile_time_eval():
        return splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
