"""A residual network that hears a stem and its mix, and says how the console was set: channels are weighed,
time is pooled at several scales, and settings of level, tone and space have heads of their own.

editjax mixes SOUNDS MIXES --count 9000
editjax train configs/mixer_enhanced.py --data MIXES --out RUN

17 minutes on one core of two that were busy. What it scores is in README, beside the others.
"""

from editjax.mixer_loss import MixerLossSettings
from editjax.mixes import MixSettings
from editjax.models.mixer import MixerSettings
from editjax.optim import OptimSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=MixerSettings(kind="enhanced", width=16, n_layers=4, dropout=0.05),
        loss=MixerLossSettings(),
        data=MixSettings(batch_size=32),
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=100, steps=2500),
        ema_decay=0.99,
        validate_every=250,
        checkpoint_every=250,
    )
