"""Level normalisation inside the model: the input's gain must not change the edit.

A gain adds a constant to every value of a mel spectrogram in decibels. Subtracting the level of a few seconds
around each frame removes it; how that level compares with a minute around it tells dead air from music.
"""

import jax.numpy as jnp

from editjax.models.layers import frame_mask
from editjax.models.spans import over_spans, spread
from editjax.sliding import over_window

NEAR_FRAMES = 257  # about 6 s
FAR_BLOCK = 43
FAR_BLOCKS = 61  # about 61 s
RANGE_DB = 20.0
BOTTOM, TOP = -3.0, 2.0
SILENCE_POWER = 1e-9
LEVEL_CHANNELS = 3


def level_normalise(mel_BTF, frames_B, floor_db: float, ceiling_db: float, span: int = 1):
    """Mel relative to its own neighbourhood, with three level channels appended: (B, T, F + 3) float32.

    `mel_BTF` in [0, 1] spans `floor_db`…`ceiling_db`. Values are decibels over 20, clipped to −3…2 (−60…+40
    dB around the running level). Level channels: near level against far, frame level against near and far.
    Padding frames count for nothing and come out as zero. Where each of `mel_BTF` is the mean of `span`
    frames, the neighbourhoods last as long as they do where it is one.
    """
    mask_BT = frame_mask(frames_B, mel_BTF.shape[1])
    decibel_BTF = mel_BTF.astype(jnp.float32) * (ceiling_db - floor_db) + floor_db
    decibel_BTF = jnp.where(mask_BT[..., None], decibel_BTF, floor_db)
    power_BT = jnp.where(mask_BT, jnp.mean(10.0 ** (decibel_BTF / 10.0), axis=-1), 0.0)
    near_BT = _decibel(_running_mean(power_BT, mask_BT, NEAR_FRAMES // (2 * span) * 2 + 1))
    far_BT = _decibel(_far_mean(power_BT, mask_BT, FAR_BLOCK // span))
    frame_BT = _decibel(power_BT)
    relative_BTF = (decibel_BTF - near_BT[..., None]) / RANGE_DB
    levels_BT3 = jnp.stack([near_BT - far_BT, frame_BT - near_BT, frame_BT - far_BT], axis=-1) / RANGE_DB
    x = jnp.clip(jnp.concatenate([relative_BTF, levels_BT3], axis=-1), BOTTOM, TOP)
    return jnp.where(mask_BT[..., None], x, 0.0)


def _decibel(power):
    return 10.0 * jnp.log10(jnp.maximum(power, SILENCE_POWER))


def running_sum(x_BT, width: int):
    """Sum over `width` (odd) neighbours centred on each position; outside counts zero."""
    return over_window(jnp.add, x_BT, width // 2, width // 2, 0.0)


def _running_mean(x_BT, mask_BT, width: int):
    count_BT = running_sum(mask_BT.astype(jnp.float32), width)
    return running_sum(x_BT, width) / jnp.maximum(count_BT, 1.0)


def _far_mean(x_BT, mask_BT, block: int):
    """Mean over about a minute, on blocks of a second to stay cheap."""

    def around(a_BT):
        return running_sum(over_spans(lambda a_BVS: a_BVS.sum(-1), block, a_BT), FAR_BLOCKS)

    mean_BV = around(x_BT) / jnp.maximum(around(mask_BT.astype(jnp.float32)), 1.0)
    return spread(mean_BV, block, x_BT.shape[1])
