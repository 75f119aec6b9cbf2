"""What labels earn: how near what is heard comes to the edited track, right labels, length, steadiness.

The documents' reward of a whole edit is spread over its beats so that their mean is that reward: every beat
earns what it changes. For the length a beat pays for the distance it adds to the right length, and earns
what it takes away: undiscounted that sums to the error of the whole edit; discounted, as it is learned from,
an error that a later beat makes good is still charged.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from editjax.edits import EditLabel
from editjax.errors import UsageError

TIMES_HEARD = tuple(
    0 if label in (EditLabel.CUT, EditLabel.PAD) else 1 + (label == EditLabel.LOOP) for label in EditLabel
)


SHARES = (0.66, 0.15, 0.026, 0.015, 0.019, 0.103, 0.027)
"""Of the labels CUT, KEEP … TRANSITION among the beats of simulated sessions of the *produced* style."""


@dataclass(frozen=True)
class RewardSettings:
    """Weights. `reconstruction` is for the L1 of the reconstructed mel, of values in [0, 1], where it is
    heard in both edits; `match` for the share of right labels; `duration` for one less the error of the kept
    length, as a share of the raw one; `smoothness` for the share of beats with another label than the one
    before. These defaults are the documents'. With a `balance` above 0 rare labels count more in the match
    (`label_weights`), or a policy that never fades earns as much as one that does."""

    reconstruction: float = 10.0
    match: float = 5.0
    duration: float = 3.0
    smoothness: float = 2.0
    balance: float = 0.0

    def __post_init__(self) -> None:
        if not all(weight >= 0 for weight in vars(self).values()):
            raise UsageError(f"reward weights {self}: give 0 or more")


def label_weights(balance: float) -> np.ndarray:
    """What each label counts, float32 (labels,): its share to the power of −balance, 1 on average, PAD 0."""
    weight_C = np.asarray(SHARES) ** -balance
    return np.append(weight_C * sum(SHARES) / (weight_C @ np.asarray(SHARES)), 0.0).astype(np.float32)


def rewards(settings: RewardSettings, action_BU, label_BU, frames_BU, error_BU):
    """What every beat earns (B, U), 0 where there is none; the mean over a recording's beats is its reward.

    `label_BU` are the true labels, `frames_BU` the lengths of the beats, `error_BU` the L1 of each beat's
    reconstructed mel, 0 where it is not heard in both.
    """
    counted_BU = frames_BU > 0
    beats_B1 = jnp.maximum(counted_BU.sum(-1, keepdims=True), 1).astype(jnp.float32)
    weight_BU = jnp.asarray(label_weights(settings.balance))[label_BU]
    before_BU = jnp.concatenate([action_BU[:, :1], action_BU[:, :-1]], axis=1)
    earned_BU = (
        settings.match * jnp.where(action_BU == label_BU, weight_BU, 0.0)
        - settings.reconstruction * error_BU
        - settings.smoothness * (action_BU != before_BU).astype(jnp.float32)
        + settings.duration * (1.0 - beats_B1 * added_error(action_BU, label_BU, frames_BU))
    )
    return jnp.where(counted_BU, earned_BU, 0.0)


def expected(settings: RewardSettings, p_BUC, label_BU):
    """What every beat earns on average by being right and steady if labels are drawn with these odds, (B, U).

    Odds are of each beat apart, (B, U, labels). Nobody's draw is in it, so that it may be taken off rewards
    without bending what is learned from them; unlike a value network it knows what is right.
    """
    weight_BU = jnp.asarray(label_weights(settings.balance))[label_BU]
    right_BU = jnp.take_along_axis(p_BUC, label_BU[..., None], -1)[..., 0]
    same_BU = (p_BUC[:, 1:] * p_BUC[:, :-1]).sum(-1)
    changed_BU = jnp.pad(1.0 - same_BU, ((0, 0), (1, 0)))
    return settings.match * weight_BU * right_BU - settings.smoothness * changed_BU


def heard_frames(label_BU, frames_BU):
    """How many frames of the edit every beat makes, (B, U): none where it is cut, twice as many in a loop."""
    return jnp.asarray(TIMES_HEARD)[label_BU] * frames_BU


def added_error(action_BU, label_BU, frames_BU):
    """By how much each beat takes the edit from the right length, as a share of the raw one, (B, U)."""
    longer_BU = (heard_frames(action_BU, frames_BU) - heard_frames(label_BU, frames_BU)).astype(jnp.float32)
    raw_B1 = jnp.maximum(frames_BU.sum(-1, keepdims=True), 1).astype(jnp.float32)
    off_BU = jnp.abs(jnp.cumsum(longer_BU, axis=1)) / raw_B1
    return off_BU - jnp.concatenate([jnp.zeros_like(off_BU[:, :1]), off_BU[:, :-1]], axis=1)
