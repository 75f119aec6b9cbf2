"""The pointer network that trains on a CPU.

    editjax train configs/pointer_tiny.py --data SHARDS --out RUN
    RECORDINGS=FOLDER launch/local.sh configs/pointer_tiny.py WORK  # simulates and prepares first

About 1.5 s a step on two cores. The bundled `final` has seen about 18,000 such steps in several runs, each
with `--start-from` the one before; `launch/average.py` then weighed two of its hints anew. `styles` is 5,600
steps from there. Their `config.json` have the last runs, LOG.md all of them.
"""

from editjax.augment import AugmentSettings
from editjax.data import DataSettings
from editjax.losses import LossSettings
from editjax.models.pointer import PointerSettings
from editjax.optim import OptimSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=PointerSettings(landmark_frames=4, landmark_window=48, look_back=4, look_ahead=12, kinds=True),
        loss=LossSettings(structure=2.0),
        data=DataSettings(
            target_ask_probability=0.25,
            split="train",
            batch_frames=16_384,
            buckets=((4096, 2048), (8192, 4096), (11264, 5632), (16384, 8192), (26624, 12288)),
            # A masked stretch of time looks like a dropout, which is a reason to cut.
            augment=AugmentSettings(time_masks=0),
        ),
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=100, steps=3000),
        ema_decay=0.998,
        validate_every=500,
        checkpoint_every=100,
    )
