"""Phase 2 of the super editor on a CPU, first part: what becomes of every beat, learned from true labels.

    editjax train configs/policy_tiny.py --data SHARDS --out RUN --start-from final

Simulate sessions with `--styles produced`. The encoder of the bundled pointer network listens and is not
trained. The bundled `labels` had 600 such steps on 1,046 sessions, 1.5 s each on a core, then 1,200 more
begun from there at a rate of 7e-4. On 32 validation sessions 85 % of its labels are right (always CUT: 68 %),
the macro-F1 is 0.60, the reward 6.75 (KEEP everywhere: 1.63).
"""

from editjax.augment import AugmentSettings
from editjax.data import DataSettings
from editjax.models.pointer import PointerSettings
from editjax.models.policy import PolicySettings
from editjax.optim import OptimSettings
from editjax.policy_loss import PolicyLossSettings
from editjax.step import TrainConfig


def config() -> TrainConfig:
    return TrainConfig(
        model=PolicySettings(
            hears=PointerSettings(
                landmark_frames=4, landmark_window=48, look_back=4, look_ahead=12, kinds=True
            ),
            width=128,
            heads=4,
            layers=4,
            expansion=2,
        ),
        loss=PolicyLossSettings(),
        data=DataSettings(
            styles=("produced",),
            split="train",
            edited=True,
            batch_frames=32_768,
            buckets=((4096, 4096), (8192, 8192), (16384, 16384)),
            augment=AugmentSettings(time_masks=0),
        ),
        optim=OptimSettings(learning_rate=1e-3, warmup_steps=50, steps=600),
        ema_decay=0.99,
        validate_every=100,
        checkpoint_every=50,
    )
