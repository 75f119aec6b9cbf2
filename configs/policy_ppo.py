"""Phase 2 of the super editor on a CPU, second part: labels that earn more, by PPO.

    editjax train configs/policy_ppo.py --data SHARDS --out RUN --start-from MODEL

MODEL is a label policy that has learned from true labels (`configs/policy_tiny.py`), such as the bundled
`labels`. The bundled model `reconstruct` says what labels sound like. 40 iterations took 7 to 10 minutes of
one core. From `labels`, on 560 sessions that it had not seen, drawn labels earn 6.31 to 6.34 instead of 5.83
on 32 validation sessions, the likeliest 6.44 to 6.46 instead of 6.42 (three seeds, LOG.md).
"""

import runpy
from dataclasses import replace
from pathlib import Path

from editjax.augment import AugmentSettings
from editjax.optim import OptimSettings
from editjax.policy_loss import PolicyPpoSettings
from editjax.ppo import PpoSettings
from editjax.reward import RewardSettings
from editjax.step import TrainConfig

HEARD_AS_IT_IS = AugmentSettings(noise_probability=0.0, mix_probability=0.0, time_masks=0, mel_masks=0)
"""The judge compares what labels make of the recording with the edit: noise would be the policy's fault."""
SUPERVISED = runpy.run_path(str(Path(__file__).parent / "policy_tiny.py"))["config"]


def config() -> TrainConfig:
    start = SUPERVISED()
    return replace(
        start,
        loss=PolicyPpoSettings(
            ppo=PpoSettings(
                discount=0.5,
                trace=0.7,
                clip_value=False,
                entropy=0.05,
                final_entropy=0.02,
                target_kl=0.03,
                epochs=4,
                minibatches=4,
            ),
            reward=RewardSettings(balance=0.35),
        ),
        data=replace(start.data, batch_frames=65_536, buckets=((8192, 8192),), augment=HEARD_AS_IT_IS),
        optim=OptimSettings(learning_rate=1e-4, warmup_steps=5, steps=40, clip_norm=0.5),
        ema_decay=0.9,
        validate_every=20,
        checkpoint_every=10,
    )
