"""The scorer that ships: an autoencoder with two decoders, and all scores.

    editjax train configs/scorer.py --data SHARDS --out RUN
    editjax export RUN --out MODEL && editjax score RECORDING --model MODEL

1,000 steps took 25 minutes on one core that others shared. On 32 validation sessions the calibrated ensemble
then tells cut from kept frames with an area under the ROC of 0.90, and its edits have a kept IoU of 0.67.
"""

from editjax.augment import AugmentSettings
from editjax.data import DataSettings
from editjax.models.autoencoder import ScorerSettings
from editjax.optim import OptimSettings
from editjax.scorer_loss import ScorerLossSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=ScorerSettings(dual=True, classifier=True),
        loss=ScorerLossSettings(),
        data=DataSettings(
            styles=("final",),
            split="train",
            batch_frames=22_528,
            buckets=((11264, 5632),),  # one compilation: segments are drawn from recordings of any length
            augment=AugmentSettings(time_masks=0),
        ),
        optim=OptimSettings(learning_rate=2e-3, warmup_steps=50, steps=1000),
        ema_decay=0.99,
        validate_every=250,
        checkpoint_every=100,
    )
