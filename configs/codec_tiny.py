"""The codec that ships: EnCodec with two wide stages, so few layers, which learns quickly on a CPU.

editjax sounds RECORDINGS SOUNDS --rate 24000 --channels 1
editjax train configs/codec_tiny.py --data SOUNDS --out RUN
editjax export RUN --out MODEL --dtype float16
"""

from editjax.codec_loss import CodecLossSettings
from editjax.models.codec import CodecSettings
from editjax.optim import OptimSettings
from editjax.sounds import SoundSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=CodecSettings(
            n_filters=32,
            ratios=(16, 20),
            residual_layers=0,
            lstm_layers=0,
            codebooks=16,
            codes=256,
            bandwidths_kbps=(1.2, 2.4, 4.8, 9.6),
        ),
        loss=CodecLossSettings(),
        data=SoundSettings(seconds=0.5, batch_size=8, kinds=("music", "speech")),
        optim=OptimSettings(learning_rate=2e-4, warmup_steps=200, steps=2000, weight_decay=0.0),
        ema_decay=0.995,
        validate_every=500,
        checkpoint_every=250,
    )
