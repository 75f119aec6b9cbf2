"""Phase 1 of the super editor that trains on a CPU: raw mel and labels to the edited mel.

    editjax train configs/reconstruct_tiny.py --data SHARDS --out RUN

Simulate sessions with `--styles produced`. 1,200 steps on 560 sessions took 57 minutes of a busy core; the
bundled `reconstruct` went on from there with `--start-from MODEL --optim.steps 600
--optim.learning-rate 5e-4`, 27 minutes. On 32 of 40 validation sessions the L1 is 0.016 (of the raw mel
itself 0.024), on frames of fades, effects and transitions 35 % below that of the raw mel, and 98 % of KEEP
frames are within 0.02.
"""

from editjax.augment import AugmentSettings
from editjax.data import DataSettings
from editjax.models.reconstruct import ReconstructSettings
from editjax.optim import OptimSettings
from editjax.reconstruct_loss import ReconstructLossSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=ReconstructSettings(
            width=128, heads=2, label_width=32, encoder_layers=2, decoder_layers=1, window=32, expansion=2
        ),
        loss=ReconstructLossSettings(l1=10.0),
        data=DataSettings(
            styles=("produced",),
            split="train",
            edited=True,
            batch_frames=16_384,
            buckets=((2048, 2048),),
            augment=AugmentSettings(noise_probability=0.0, mix_probability=0.0, time_masks=0, mel_masks=0),
        ),
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=50, steps=1200),
        ema_decay=0.995,
        validate_every=200,
        checkpoint_every=100,
    )
