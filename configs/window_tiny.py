"""A small creative agent, over the codec that ships: learns windows and pieces on a CPU.

editjax sounds RECORDINGS SOUNDS --rate 24000 --channels 1
editjax train configs/window_tiny.py --data SOUNDS --out RUN
editjax export RUN --out MODEL --dtype float16
"""

from editjax.models.window import WindowSettings
from editjax.optim import OptimSettings
from editjax.sounds import SoundSettings
from editjax.step import TrainConfig
from editjax.window_loss import WindowLossSettings


def config() -> TrainConfig:
    return TrainConfig(
        model=WindowSettings(
            match_width=16,
            selector_width=64,
            part_width=32,
            width=128,
            heads=2,
            composer_layers=2,
            expansion=2,
        ),
        loss=WindowLossSettings(heard_s=1.0),
        data=SoundSettings(seconds=24.0, batch_size=8, kinds=("music",), threads=1, prefetch_batches=2),
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=50, steps=600),
        validate_every=200,
        checkpoint_every=100,
    )
