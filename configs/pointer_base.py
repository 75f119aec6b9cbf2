"""The pointer network in full, for an accelerator: width 256, 4 heads of 64, 4 + 4 layers, styles of 64.

    editjax train configs/pointer_base.py --data SHARDS --out RUN
    editjax train configs/pointer_base.py --data SHARDS --out RUN --mesh.fsdp 4 --data.batch-multiple 8

It learns every style and hears stems; simulate sessions with `--styles` and `--stems`. It was trained on no
accelerator yet: steps and learning rate are a proposal, from what the small model needed.
"""

from editjax.augment import AugmentSettings
from editjax.data import DataSettings
from editjax.losses import LossSettings
from editjax.models.pointer import PointerSettings
from editjax.optim import OptimSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=PointerSettings(
            width=256,
            heads=4,
            landmark_frames=4,
            landmark_layers=4,
            landmark_window=64,
            frame_width=128,
            frame_heads=2,
            frame_layers=2,
            expansion=4,
            decoder_layers=4,
            look_back=4,
            look_ahead=12,
            style_width=64,
            kinds=True,
            stem_width=64,
            dtype="bfloat16",
        ),
        loss=LossSettings(structure=2.0),
        data=DataSettings(
            target_ask_probability=0.25,
            split="train",
            batch_frames=262_144,
            batch_multiple=8,
            buckets=((4096, 2048), (8192, 4096), (11264, 5632), (16384, 8192), (26624, 12288)),
            augment=AugmentSettings(time_masks=0),
        ),
        optim=OptimSettings(learning_rate=5e-4, warmup_steps=500, steps=20_000),
        ema_decay=0.999,
        validate_every=1000,
        checkpoint_every=500,
    )
