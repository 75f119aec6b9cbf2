"""A trained reconstruction model to call, and how near it comes to edited mels on validation pairs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from editjax import shards
from editjax.edits import EditLabel, structure_of
from editjax.errors import DataError
from editjax.mel import MelSettings
from editjax.metrics import mean_figures
from editjax.models.reconstruct import CHANGED, ReconstructSettings, reconstruct
from editjax.network import padded_length
from editjax.reconstruct_loss import ReconstructLossSettings, loss_of
from editjax.records import Example, edited_of


class Judged(NamedTuple):
    """The fields of `data.Batch` that losses of the edited side read, of one recording."""

    mel_BTF: Any
    frames_B: Any
    structure_BT: Any
    edited_BTF: Any
    label_BT: Any
    phase_BT3: Any
    beat_BT: Any


class Reconstruction:
    """Settings and parameters of a trained reconstruction model."""

    def __init__(self, settings: ReconstructSettings, params: Any, mel: MelSettings = MelSettings()):
        self.settings, self.params, self.mel = settings, params, mel

    def edited_mel(self, mel_TF: np.ndarray, label_T: np.ndarray) -> np.ndarray:
        """What is heard of every raw frame under these labels (`EditLabel`), (T, F) float32."""
        n_frames, length = len(mel_TF), padded_length(len(mel_TF))
        mel_1TF = np.zeros((1, length, self.settings.n_mels), np.float32)
        label_1T = np.full((1, length), EditLabel.PAD, np.int32)
        mel_1TF[0, :n_frames], label_1T[0, :n_frames] = mel_TF, label_T
        frames_1 = np.array([n_frames], np.int32)
        found = _reconstruct(self.settings, self.params, mel_1TF, label_1T, frames_1)
        return np.asarray(found[0, :n_frames])


_reconstruct = partial(jax.jit, static_argnums=0)(reconstruct)
_loss_of = partial(jax.jit, static_argnums=(2, 3))(loss_of)


def judged_pair(example: Example) -> Judged:
    """A recording with its edit on the raw axis, padded to a standard length; beats are counted from 0."""
    n_frames, length = len(example.mel_TF), padded_length(len(example.mel_TF))
    edited_TF, label_T, beat_T = edited_of(example)

    def padded(a_T: np.ndarray, dtype: Any, value: float = 0.0) -> np.ndarray:
        around = ((0, length - n_frames),) + ((0, 0),) * (a_T.ndim - 1)
        return np.pad(a_T.astype(dtype), around, constant_values=value)[None]

    return Judged(
        padded(example.mel_TF, np.float32),
        np.array([n_frames], np.int32),
        padded(structure_of(example.pointers_N, n_frames), np.int32, -1),
        padded(edited_TF, np.float32),
        padded(label_T, np.int32, EditLabel.PAD),
        padded(example.phase_T3, np.float32),
        padded(beat_T - beat_T[0], np.int32),
    )


def reconstruction_figures(settings: ReconstructSettings, params: Any, pair: Judged) -> dict[str, float]:
    """Losses of the model on one recording, and of copying the raw mel; NaN where nothing is changed."""
    found_BTF = _reconstruct(settings, params, pair.mel_BTF, pair.label_BT, pair.frames_B)
    weights = ReconstructLossSettings()
    ours, copied = (_loss_of(mel_BTF, pair, settings, weights)[1] for mel_BTF in (found_BTF, pair.mel_BTF))
    names = ("l1", "spectral", "kept_right", "l1_changed")
    figures = {name: float(ours[name]) for name in names}
    figures |= {f"{name}_copied": float(copied[name]) for name in names}
    changed = np.isin(pair.label_BT, CHANGED) & (pair.structure_BT > 0)
    nothing = () if changed.any() else ("l1_changed", "l1_changed_copied")
    return figures | dict.fromkeys(nothing, float("nan"))


def reconstruct_validate(
    config: Any, shards_dir: str | Path, split: str | None, examples: int
) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: mean figures on validation pairs of the styles that are trained on.

    `score`, which decides the best checkpoint, is one less the L1 of frames that fades, effects and
    transitions change, of all that is played where nothing is changed; `saved` is how much lower the former
    is than that of copying the raw mel.
    """
    pairs = [judged_pair(one) for one in shards.watched(shards_dir, split, config.data.styles, examples)]
    if not pairs:
        return lambda params: {"score": float("nan")}

    def validate(params: Any) -> dict[str, float]:
        rows = [reconstruction_figures(config.model, params, pair) for pair in pairs]
        mean = mean_figures(rows)
        off, copied = mean["l1_changed"], mean["l1_changed_copied"]
        score = 1.0 - (mean["l1"] if np.isnan(off) else off)
        return {"score": score, "saved": 1.0 - off / max(copied, 1e-9), **mean}

    return validate


def load_reconstruction(model: str | Path) -> Reconstruction:
    """The bundled reconstruction model of that name, or a folder written by `editjax export`.

    Raises NoInputError when there is none, DataError when it is damaged or no reconstruction model.
    """
    from editjax.export import load_bundle

    bundle = load_bundle(model)
    if not isinstance(bundle.settings, ReconstructSettings):
        family = bundle.config["family"]
        raise DataError(f"{bundle.path}: a model of the family {family!r}, not a reconstruction model")
    return Reconstruction(bundle.settings, bundle.params, bundle.mel)
