"""What an edit is worth to the ear: its joins, its length, and whether it plays what should be kept, once.

Pointers and what was heard of the recording come in, a reward for every step goes out: that of a join at the
step that makes it, that of a frame at the step that plays it, that of the length at the last step. No true
edit is asked.

A join is not smooth where what follows sounds like what would have followed: true edits leave music before
talk and go on with music. It is smooth where its two sides differ no more than neighbouring frames do.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from editjax.errors import UsageError
from editjax.losses import Targets
from editjax.models.layers import frame_mask
from editjax.models.level import LEVEL_CHANNELS, level_normalise
from editjax.models.pointer import JUMP, PointerSettings
from editjax.models.rows import pick, take


@dataclass(frozen=True)
class RewardSettings:
    """Weights of the rewards.

    `continuity` weighs the spectral step at a join in units of 20 dB, beyond the steps that the recording
    makes there itself; `beats` how far a join leaves the beat and the bar, from 0 to 1; `duration` the
    absolute logarithm of the edit's length over the wanted one; `coverage` the expected share of what should
    be kept that is played, less what is played beside it or once more. All but the last are costs.
    """

    continuity: float = 0.5
    beats: float = 0.1
    duration: float = 1.0
    coverage: float = 5.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise UsageError(f"{name} {value}: give 0 or more")


class Heard(NamedTuple):
    """What rewards know of recordings: the level-normalised mel, position in beat, bar and phrase, the
    probability that a frame is kept, whether it is looped, all 0 in the padding; how many frames there are,
    and how many are wanted.
    """

    level_BTF: jax.Array
    phase_BT3: jax.Array
    keep_BT: jax.Array
    looped_BT: jax.Array
    frames_B: jax.Array
    length_B: jax.Array


class Rewards(NamedTuple):
    """Of every step, (B, N) each, not weighed."""

    continuity_BN: jax.Array
    beats_BN: jax.Array
    duration_BN: jax.Array
    coverage_BN: jax.Array

    def weighed(self, settings: RewardSettings):
        """Their sum by the weights of the same names, (B, N)."""
        weights = settings.continuity, settings.beats, settings.duration, settings.coverage
        return sum(weight * x_BN for weight, x_BN in zip(weights, self, strict=True))


def heard_of(settings: PointerSettings, mel_BTF, phase_BT3, target_B, encoded, looped_BT) -> Heard:
    """What rewards know, with the word of the encoder on what is kept and, where none is asked, how long."""
    frames_B, mask_BT = encoded.n_frames_B, frame_mask(encoded.n_frames_B, mel_BTF.shape[1])
    level_BTF = level_normalise(mel_BTF, frames_B, settings.floor_db, settings.ceiling_db)
    keep_BT = jax.nn.softmax(encoded.structure_BTS, axis=-1)[..., 1:].sum(-1)
    natural_B = jnp.exp(encoded.log_length_B)
    return Heard(
        level_BTF[..., :-LEVEL_CHANNELS],
        jnp.where(mask_BT[..., None], phase_BT3, 0.0),
        jnp.where(mask_BT, keep_BT, 0.0),
        looped_BT,
        frames_B,
        jnp.where(target_B > 0, target_B, natural_B),
    )


def rewards(heard: Heard, t: Targets, steps_B) -> Rewards:
    """The rewards of every step of edits (`losses.targets` of them), 0 in the padding."""
    left_BN, landed_BN = t.step.pointer_BN, t.pointer_BN
    counted_BN = t.counted_BN & frame_mask(steps_B, landed_BN.shape[1])
    plays_BN = counted_BN & (landed_BN >= 0)
    join_BN = plays_BN & (t.mode_BN == JUMP) & (left_BN >= 0)
    continuity_BN = jnp.where(join_BN, -roughness(heard.level_BTF, heard.frames_B, left_BN, landed_BN), 0.0)
    beats_BN = jnp.where(join_BN, -off_the_beat(heard.phase_BT3, left_BN, landed_BN), 0.0)
    last_BN = counted_BN & (t.step.index_BN == steps_B[:, None] - 1)
    length_B = jnp.maximum(plays_BN.sum(1), 1).astype(jnp.float32)
    off_B = jnp.abs(jnp.log(length_B / jnp.maximum(heard.length_B, 1.0)))
    duration_BN = jnp.where(last_BN, -off_B[:, None], 0.0)
    return Rewards(continuity_BN, beats_BN, duration_BN, covered(heard, t, plays_BN))


def roughness(level_BTF, frames_B, left_BN, landed_BN):
    """The spectral step from the frame that is left to the one that is landed on, (B, N), in 20 dB.

    What the recording itself steps after the one and before the other is taken off: a join at an onset may
    be as sharp as the onset.
    """
    own_BT = jnp.abs(level_BTF[:, 1:] - level_BTF[:, :-1]).mean(-1)
    own_BT = jnp.where(frame_mask(frames_B - 1, own_BT.shape[1]), own_BT, 0.0)  # nothing follows the last
    own_BN = (pick(own_BT, left_BN) + pick(own_BT, landed_BN - 1)) / 2
    step_BN = jnp.abs(take(level_BTF, left_BN) - take(level_BTF, landed_BN)).mean(-1)
    return jax.nn.relu(step_BN - own_BN)


def off_the_beat(phase_BT3, left_BN, landed_BN):
    """How far a join leaves the beat and the bar: 0 where the position goes on, 1 where it is opposite."""
    wanted_BN3, found_BN3 = take(phase_BT3, left_BN + 1), take(phase_BT3, landed_BN)
    apart_BN3 = (1 - jnp.cos(2 * jnp.pi * (wanted_BN3 - found_BN3))) / 2
    return apart_BN3[..., :2].mean(-1)


def covered(heard: Heard, t: Targets, plays_BN):
    """What every step adds to the share of what should be kept, (B, N), in frames expected to be kept.

    A frame counts as much as it is rather kept than cut, the first time; once more it costs a frame, unless
    it is looped.
    """
    first_BN = 2 * pick(heard.keep_BT, t.pointer_BN) - 1
    again_BN = jnp.where(pick(heard.looped_BT, t.pointer_BN), 0.0, -1.0)
    gained_BN = jnp.where(t.again_BN, again_BN, first_BN)
    return jnp.where(plays_BN, gained_BN, 0.0) / jnp.maximum(heard.keep_BT.sum(1, keepdims=True), 1.0)
