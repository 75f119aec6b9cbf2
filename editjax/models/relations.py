"""How every moment of a recording stands to its other takes, and how loud it is: numbers, no weights.

An autoencoder of short segments hears a wrong note as it hears a right one. What tells a spoiled take is the
rest of the file: the same passage is heard again, later and differently. `models.match` finds those places;
here they become a few channels a frame, which the scorers expect of good audio or do not.
"""

import jax.numpy as jnp

from editjax.models.layers import frame_mask
from editjax.models.level import LEVEL_CHANNELS, level_normalise, running_sum
from editjax.models.match import STEP_FRAMES, find_matches, fingerprints, refine, shapes

PLACES = 2
REACH_STEPS = 1
SETTLED_STEPS = 9  # 1.7 s, over which two takes are compared
SIDE_CHANNELS = PLACES + 2
RELATION_CHANNELS = 2 * SIDE_CHANNELS
CONTEXT_CHANNELS = LEVEL_CHANNELS + RELATION_CHANNELS
LATER, EARLIER = LEVEL_CHANNELS, LEVEL_CHANNELS + SIDE_CHANNELS  # how alike the best take of a side is


def heard(settings, mel_BTF, frames_B):
    """Level-normalised mel (B, T, F) and its context (B, T, CONTEXT_CHANNELS), both zero in the padding.

    The context is three levels (`level_normalise`), then for later and for earlier places: how alike the best
    PLACES are along a diagonal, how alike the best one is here, and how much it differs band by band.
    """
    level_BTF = level_normalise(mel_BTF, frames_B, settings.floor_db, settings.ceiling_db)
    x_BTF, levels_BT3 = level_BTF[..., :-LEVEL_CHANNELS], level_BTF[..., -LEVEL_CHANNELS:]
    relations_BTR = relations(x_BTF, frames_B)
    return x_BTF, jnp.concatenate([levels_BT3, relations_BTR], -1)


def relations(x_BTF, frames_B):
    """Relations to later and earlier takes, (B, T, RELATION_CHANNELS); zero where there are none."""
    n_frames, steps_B = x_BTF.shape[1], -(-frames_B // STEP_FRAMES)
    shape_BMG = shapes(x_BTF, frames_B, STEP_FRAMES)
    found = find_matches(fingerprints(shape_BMG), steps_B, PLACES)
    best = slice(None, None, PLACES)  # of each side
    valid_BM2 = found.valid_BMK[..., best]
    _, detail_BM2D = refine(shape_BMG, steps_B, found.place_BMK[..., best], valid_BM2, REACH_STEPS)
    likeness_BM2 = _settled(detail_BM2D[..., 0])
    difference_BM2 = _settled(jnp.abs(detail_BM2D[..., 2:]).mean(-1))
    later, earlier = jnp.split(found.score_BMK, 2, -1)
    sides = [
        jnp.concatenate([score, likeness_BM2[..., k : k + 1], difference_BM2[..., k : k + 1]], -1)
        for k, score in enumerate((later, earlier))
    ]
    channels_BMR = jnp.concatenate(sides, -1)
    channels_BTR = jnp.repeat(channels_BMR, STEP_FRAMES, axis=1)[:, :n_frames]
    return jnp.where(frame_mask(frames_B, n_frames)[..., None], channels_BTR, 0.0)


def _settled(x_BM2):
    """The mean over SETTLED_STEPS around every step."""
    return running_sum(x_BM2, SETTLED_STEPS) / SETTLED_STEPS
