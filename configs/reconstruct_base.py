"""Phase 1 of the super editor in full, for an accelerator: width 512, 6 + 3 layers, crops of 2,048 frames.

    editjax train configs/reconstruct_base.py --data SHARDS --out RUN

Settings are the documents'. It was trained on no accelerator yet. Simulate sessions with `--styles produced`.
"""

from editjax.augment import AugmentSettings
from editjax.data import DataSettings
from editjax.models.reconstruct import ReconstructSettings
from editjax.optim import OptimSettings
from editjax.reconstruct_loss import ReconstructLossSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=ReconstructSettings(dtype="bfloat16"),
        loss=ReconstructLossSettings(),
        data=DataSettings(
            styles=("produced",),
            split="train",
            edited=True,
            batch_frames=16_384,
            buckets=((2048, 2048),),
            augment=AugmentSettings(noise_probability=0.0, mix_probability=0.0, time_masks=0, mel_masks=0),
        ),
        optim=OptimSettings(learning_rate=1e-4, warmup_steps=1000, steps=100_000),
        ema_decay=0.999,
        validate_every=500,
        checkpoint_every=250,
    )
