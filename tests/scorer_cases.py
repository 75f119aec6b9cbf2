"""The small scorer of the tests: its settings, a batch, a recording whose takes repeat."""

from typing import Any, NamedTuple

import jax
import numpy as np

from editjax.edits import PAD, STOP
from editjax.models.autoencoder import ScorerSettings, init
from editjax.scorer_loss import ScorerLossSettings

TINY = ScorerSettings(n_mels=32, scales=(1, 4), segment_steps=16, hidden=(8, 8), latent=4, codes=8)
WEIGHTS = ScorerLossSettings(segments=4)


class Batch(NamedTuple):
    """The fields of `data.Batch` that the loss reads."""

    mel_BTF: Any
    frames_B: Any
    pointers_BN: Any
    steps_B: Any


def recording(frames: int = 600, seed: int = 0) -> np.ndarray:
    """A mel (T, 32) whose first half is heard again, slightly otherwise, in its second half."""
    rng = np.random.default_rng(seed)
    notes = rng.uniform(0.2, 0.8, (frames // 16 + 1, 32)).repeat(8, axis=0)[: frames // 2]
    mel_TF = np.concatenate([notes, notes])[:frames] + 0.02 * rng.standard_normal((frames, 32))
    return mel_TF.astype(np.float32).clip(0.0, 1.0)


def batch_of(
    mels: list[np.ndarray], edits: list[np.ndarray], frames: int, steps: int, fill: float = 0.0
) -> Batch:
    """Recordings and what their edits play, padded with `fill`."""
    mel_BTF = np.full((len(mels), frames, mels[0].shape[1]), fill, np.float32)
    pointers_BN = np.full((len(mels), steps), PAD, np.int32)
    for row, (mel_TF, pointers_N) in enumerate(zip(mels, edits, strict=True)):
        mel_BTF[row, : len(mel_TF)] = mel_TF
        pointers_BN[row, : len(pointers_N)] = pointers_N
        pointers_BN[row, len(pointers_N)] = STOP
    lengths = np.array([len(mel_TF) for mel_TF in mels], np.int32)
    return Batch(mel_BTF, lengths, pointers_BN, np.array([len(p) + 1 for p in edits], np.int32))


def params_of(settings: ScorerSettings, seed: int = 0) -> Any:
    return jax.jit(init, static_argnums=0)(settings, jax.random.key(seed))
