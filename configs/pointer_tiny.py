"""The pointer network that ships with the package: trains on a CPU.

editjax train configs/pointer_tiny.py --data SHARDS --out RUN
"""

from editjax.data import DataSettings
from editjax.losses import LossSettings
from editjax.models.pointer import PointerSettings
from editjax.optim import OptimSettings
from editjax.train import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=PointerSettings(),
        loss=LossSettings(),
        data=DataSettings(styles=("final",), split="train"),
        optim=OptimSettings(learning_rate=1.5e-3, warmup_steps=200, steps=4000),
        ema_decay=0.998,
        validate_every=500,
        checkpoint_every=100,
    )
