"""Three convolutions that hear a stem and its mix, and say how the console was set: what others are beside.

editjax mixes SOUNDS MIXES --count 9000
editjax train configs/mixer_baseline.py --data MIXES --out RUN
"""

from editjax.mixer_loss import MixerLossSettings
from editjax.mixes import MixSettings
from editjax.models.mixer import MixerSettings
from editjax.optim import OptimSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=MixerSettings(kind="baseline", width=16, figures=False, dropout=0.05),
        loss=MixerLossSettings(),
        data=MixSettings(batch_size=32),
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=100, steps=1000),
        ema_decay=0.99,
        validate_every=250,
        checkpoint_every=250,
    )
