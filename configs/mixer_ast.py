"""A spectrogram transformer that hears a stem and its mix, and says how the console was set.

editjax mixes SOUNDS MIXES --count 9000
editjax train configs/mixer_ast.py --data MIXES --out RUN

0.2 s a step on an idle core. The model `mixer` is of two such runs, of 2,500 and, begun from that
(`--start-from`), 5,000 steps; what it scores is in README.

It may also begin from one that has learned to fill in masked patches, of whatever mixes there are:

editjax train configs/mixer_ast.py --data MIXES --out PRE --loss.masked 0.5
editjax export PRE -o FILLED
editjax train configs/mixer_ast.py --data MIXES --out RUN --start-from FILLED
"""

from editjax.mixer_loss import MixerLossSettings
from editjax.mixes import MixSettings
from editjax.models.mixer import MixerSettings
from editjax.optim import OptimSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=MixerSettings(kind="ast", width=128, heads=4, n_layers=4, dropout=0.05),
        loss=MixerLossSettings(),
        data=MixSettings(batch_size=32),
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=100, steps=5000),
        ema_decay=0.99,
        validate_every=500,
        checkpoint_every=250,
    )
