"""The codec that ships: EnCodec with two wide stages, so of few layers, which trains on a CPU.

    editjax sounds RECORDINGS SOUNDS --rate 24000 --channels 1
    editjax train configs/codec_tiny.py --data SOUNDS --out RUN
    editjax export RUN --out MODEL --dtype float16

2,000 steps on 27 minutes of music and speech took 20 minutes of two cores that other jobs shared. On excerpts
of recordings held out SI-SDR is then 21 dB through latents, and by 9.6, 4.8, 2.4 and 1.2 kbit/s 7.5, 3.9, 0.4
and −3.5 dB.
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
