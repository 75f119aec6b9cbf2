"""How label policies learn: first what the true labels are, then what earns more (PPO).

Supervised training alone is the start that reinforcement needs: a policy from nothing found one label that
pays a little everywhere, and stayed with it. PPO then sees what likelihood does not, the length of the edit
and how restless it is.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from editjax import ppo
from editjax.edits import EditLabel
from editjax.errors import UsageError
from editjax.models.layers import RUNNING, mean_where
from editjax.models.policy import (
    Beats,
    beats_of,
    frames_of,
    hear,
    label_logits,
    labels_of_beats,
    summed,
    values,
)
from editjax.models.reconstruct import ReconstructSettings, reconstruct
from editjax.optim import make_optimizer
from editjax.ppo import PpoSettings
from editjax.reward import RewardSettings, expected, label_weights, rewards


@dataclass(frozen=True)
class PolicyLossSettings:
    """Cross-entropy with the true labels, in which rare ones count more (`reward.label_weights`)."""

    balance: float = 0.35


@dataclass(frozen=True)
class PolicyPpoSettings:
    """Learning from rewards.

    `reconstruction` is the frozen model that turns labels into a mel: a bundled one or a model folder.
    A label bears on the beats around it and hardly further, so that the discount may be strong. `scale`
    makes rewards as small as what a fresh value network says.
    """

    ppo: PpoSettings = field(
        default_factory=lambda: PpoSettings(discount=0.9, trace=0.9, clip_value=False, target_kl=0.02)
    )
    reward: RewardSettings = field(default_factory=RewardSettings)
    reconstruction: str = "reconstruct"
    scale: float = 0.02


class Seen(NamedTuple):
    """Recordings to label, and what only the judge knows of them: `label_BU`, the true labels."""

    beats: Beats
    label_BU: Any


def policy_loss(params, batch, settings, weights: PolicyLossSettings, key):
    """(loss, metrics) of a `data.Batch` that holds the edited side."""
    beats, label_BU = seen_of(settings, params, batch)
    counted_BU = beats.counted_BU & (label_BU != EditLabel.PAD)
    log_p_BUC = jax.nn.log_softmax(label_logits(settings, params, beats, key)[..., : EditLabel.PAD])
    chosen_BU = jnp.where(counted_BU, label_BU, 0)
    nll_BU = -jnp.take_along_axis(log_p_BUC, chosen_BU[..., None], -1)[..., 0]
    weight_BU = jnp.where(counted_BU, jnp.asarray(label_weights(weights.balance))[chosen_BU], 0.0)
    loss = (nll_BU * weight_BU).sum() / jnp.maximum(weight_BU.sum(), 1e-6)
    right_BU = (log_p_BUC.argmax(-1) == label_BU).astype(jnp.float32)
    return loss, {
        "nll": mean_where(nll_BU, counted_BU),
        "accuracy": mean_where(right_BU, counted_BU),
        "entropy": mean_where(-(jnp.exp(log_p_BUC) * log_p_BUC).sum(-1), counted_BU),
        RUNNING: params[RUNNING],
    }


def seen_of(settings, params, batch) -> Seen:
    """What a policy sees of a batch, and the true labels."""
    encoded = hear(settings, params, batch.mel_BTF, batch.frames_B, batch.phase_BT3)
    label_BU = labels_of_beats(batch.label_BT, batch.beat_BT, batch.frames_B)
    return Seen(beats_of(settings, encoded, batch.beat_BT), label_BU)


def learn_from_rewards(learner: ppo.Learner, batch, key, config, frozen):
    """One iteration of PPO: labels are drawn for a batch, judged, and learned from. See `Family.learn`."""
    weights: PolicyPpoSettings = config.loss
    if not isinstance(frozen.settings, ReconstructSettings):
        raise UsageError(f"{weights.reconstruction}: no reconstruction model, which PPO of labels needs")
    key, act_key = jax.random.split(key)
    seen = seen_of(config.model, learner.params, batch)
    rollout, reward_BU = roll_out(config.model, weights, learner.params, seen, batch, act_key, frozen)
    evaluate = policy_of(config.model)
    optimizer = make_optimizer(ppo.per_update(config.optim, weights.ppo))
    did = ppo.batch_of(weights.ppo, rollout)
    rate = ppo.rate_of(config.optim, weights.ppo, learner)
    learner, metrics = ppo.learn(ppo.over(weights.ppo, config.optim), evaluate, optimizer, learner, did, key)
    earned = ppo.mean_of(reward_BU, rollout.counted_BT)
    return learner, metrics | {"reward": earned, "learning_rate": rate}


def policy_of(settings) -> ppo.Evaluate:
    """What learning must know of the labels that were chosen."""

    def evaluate(params, beats: Beats, action_BU) -> ppo.Evaluated:
        log_p_BU, entropy_BU = ppo.categorical(label_logits(settings, params, beats), action_BU)
        return ppo.Evaluated(log_p_BU, entropy_BU, values(settings, params, beats))

    return evaluate


def roll_out(settings, weights: PolicyPpoSettings, params, seen: Seen, batch, key, frozen):
    """Labels drawn for every beat of a batch, and what they earned, (rollout, (B, U)).

    Rewards of the rollout are what was earned beyond what such draws earn on average (`reward.expected`).
    """
    beats, label_BU = seen
    logits_BUC = label_logits(settings, params, beats)
    action_BU = jax.random.categorical(key, logits_BUC)
    evaluated = policy_of(settings)(params, beats, action_BU)
    reward_BU = judged(weights, action_BU, label_BU, beats.frames_BU, batch, frozen)
    luck_BU = reward_BU - expected(weights.reward, jax.nn.softmax(logits_BUC), label_BU)
    counted_BU = beats.counted_BU
    after_BU = jnp.concatenate([counted_BU[:, 1:], jnp.zeros_like(counted_BU[:, :1])], axis=1)
    earned = evaluated.log_p_BT, evaluated.value_BT, weights.scale * luck_BU, counted_BU & ~after_BU
    return ppo.Rollout(beats, action_BU, *earned, counted_BU, jnp.zeros(len(action_BU))), reward_BU


def judged(weights: PolicyPpoSettings, action_BU, label_BU, frames_BU, batch, frozen: ppo.Frozen):
    """What labels earn, beat by beat, (B, U); `frozen` is the reconstruction model."""
    action_BT = frames_of(action_BU, batch.beat_BT)
    found_BTF = reconstruct(frozen.settings, frozen.params, batch.mel_BTF, action_BT, batch.frames_B)
    heard_BT = (batch.structure_BT > 0) & (action_BT != EditLabel.CUT)
    off_BT1 = jnp.abs(found_BTF - batch.edited_BTF).mean(-1, keepdims=True)
    both = jnp.concatenate([off_BT1, jnp.ones_like(off_BT1)], -1)
    sums_BU2 = summed(both, batch.beat_BT, heard_BT)
    error_BU = sums_BU2[..., 0] / jnp.maximum(sums_BU2[..., 1], 1.0)
    return rewards(weights.reward, action_BU, label_BU, frames_BU, error_BU)
