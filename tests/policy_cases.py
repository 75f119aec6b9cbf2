"""The small label policy of the tests, its judge, and recordings whose beats say what becomes of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from editjax.bundle import flatten
from editjax.config import to_json
from editjax.edits import EditLabel
from editjax.export import write_bundle
from editjax.family import family_of
from editjax.mel import MelSettings
from editjax.models.pointer import PointerSettings
from editjax.models.policy import PolicySettings
from editjax.models.reconstruct import ReconstructSettings

HEARS = PointerSettings(
    n_mels=32, width=16, heads=2, landmark_layers=1, landmark_window=6, frame_width=8, frame_heads=2,
    frame_layers=1, frame_window=5, matches=1,
)  # fmt: skip
TINY = PolicySettings(
    n_mels=32, hears=HEARS, width=16, heads=2, layers=1, value_layers=1, window=3, expansion=2
)
JUDGE = ReconstructSettings(
    n_mels=32, width=8, heads=2, label_width=4, encoder_layers=1, decoder_layers=1, window=4, expansion=1
)
WHOLE_MEL = replace(TINY, n_mels=128, hears=replace(HEARS, n_mels=128)), replace(JUDGE, n_mels=128)
"""The same for mels as they are made by default."""

BEAT, BEATS = 12, 8
KEEP, CUT = EditLabel.KEEP, EditLabel.CUT


class Batch(NamedTuple):
    """The fields of `data.Batch` that policies and their judge read."""

    mel_BTF: Any
    frames_B: Any
    phase_BT3: Any
    structure_BT: Any
    edited_BTF: Any
    label_BT: Any
    beat_BT: Any


def batch_of(seed: int = 0, rows: int = 4, padding: int = 32, fill: float = 0.0, junk: int = 0) -> Batch:
    """Low beats are kept as they are and high ones cut; rows lose beats at their ends.

    In the padding are `fill` and `junk`.
    """
    rng, frames = np.random.default_rng(seed), BEAT * BEATS
    high_BU = rng.random((rows, BEATS)) < 0.5
    high_BT = high_BU.repeat(BEAT, axis=1)
    upper_F = np.arange(TINY.n_mels) >= TINY.n_mels // 2
    loud_BTF = high_BT[..., None] == upper_F
    mel_BTF = 0.2 + 0.5 * loud_BTF + 0.05 * rng.random((rows, frames, TINY.n_mels))
    label_BT = np.where(high_BT, CUT, KEEP)
    phase_BT3 = np.broadcast_to((np.arange(frames) % BEAT / BEAT)[:, None], (rows, frames, 3))
    frames_B = frames - BEAT * (np.arange(rows) % 3) - np.arange(rows) % 2
    beat_BT = np.tile(np.arange(frames) // BEAT, (rows, 1))
    there_BT = np.arange(frames) < frames_B[:, None]

    def padded(a_BT, dtype, value):
        shown = there_BT.reshape(*there_BT.shape, *(1,) * (a_BT.ndim - 2))
        around = ((0, 0), (0, padding), *((0, 0),) * (a_BT.ndim - 2))
        return np.pad(np.where(shown, a_BT, value), around, constant_values=value).astype(dtype)

    kept_BT = label_BT == KEEP
    return Batch(
        padded(mel_BTF, np.float32, fill),
        frames_B.astype(np.int32),
        padded(phase_BT3, np.float32, fill),
        padded(kept_BT, np.int32, -1),
        padded(mel_BTF * kept_BT[..., None], np.float32, fill),
        padded(label_BT, np.int32, junk or EditLabel.PAD),
        padded(beat_BT, np.int32, junk),
    )


def params_of(settings: Any, seed: int = 0) -> Any:
    return jax.jit(family_of(settings).init, static_argnums=0)(settings, jax.random.key(seed))


def louder(params: Any) -> Any:
    """Parameters that say something of their own of everything: fresh, all labels are nearly as likely."""
    return jax.tree.map(
        lambda a: a + 0.1 * np.sin(np.arange(a.size, dtype=np.float32)).reshape(a.shape), params
    )


def write_model(folder: Path, settings: Any, params: Any = None, scores: Any = None) -> Path:
    """A bundle of a model of any family, with fresh parameters unless some are given."""
    training = {"step": 0, "checkpoint": "last", "export_command": "", "scores": scores}
    facts = {
        "family": family_of(settings).name,
        "model": to_json(settings),
        "mel": to_json(MelSettings(n_mels=settings.n_mels)),
        "training": training,
        "licence": "",
    }
    return write_bundle(folder, flatten(params_of(settings) if params is None else params), facts)
