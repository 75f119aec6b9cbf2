"""How near a reconstructed mel comes to the edited one: L1, squares, spectra at several resolutions, KEEP.

The target is the edited mel on the raw axis, each frame as it is heard first; frames that are cut have none
and are left out, and so is the padding.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from editjax.edits import EditLabel
from editjax.models.layers import frame_mask, mean_where
from editjax.models.reconstruct import CHANGED, reconstruct

RESOLUTIONS = (1, 2, 4, 8)
KEPT_WITHIN = 0.02
TINY = 1e-6


@dataclass(frozen=True)
class ReconstructLossSettings:
    """Weights: `l1` and `mse` of values in [0, 1], `spectral` (see `spectral_loss`), `consistency` the L1 of
    frames whose beat is kept as it is."""

    l1: float = 1.0
    mse: float = 0.0
    spectral: float = 1.0
    consistency: float = 0.5


def reconstruct_loss(params, batch, settings, weights, key):
    """(loss, metrics) of a `data.Batch` that holds `edited_BTF`."""
    found_BTF = reconstruct(settings, params, batch.mel_BTF, batch.label_BT, batch.frames_B, key)
    return loss_of(found_BTF, batch, settings, weights)


def loss_of(found_BTF, batch, settings, weights):
    """The same of a mel that somebody made."""
    played_BT = frame_mask(batch.frames_B, batch.mel_BTF.shape[1]) & (batch.structure_BT > 0)
    error_BTF = jnp.abs(found_BTF - batch.edited_BTF)
    error_BT = error_BTF.mean(-1)
    kept_BT = played_BT & (batch.label_BT == EditLabel.KEEP)
    changed_BT = played_BT & jnp.isin(batch.label_BT, jnp.array(CHANGED))
    losses = {
        "l1": mean_where(error_BT, played_BT),
        "mse": mean_where((error_BTF**2).mean(-1), played_BT),
        "spectral": spectral_loss(
            found_BTF, batch.edited_BTF, played_BT, settings.floor_db, settings.ceiling_db
        ),
        "consistency": mean_where(error_BT, kept_BT),
    }
    total = sum(getattr(weights, name) * value for name, value in losses.items())
    copied_BT = jnp.abs(batch.mel_BTF - batch.edited_BTF).mean(-1)
    return total, losses | {
        "kept_right": mean_where((error_BT < KEPT_WITHIN).astype(jnp.float32), kept_BT),
        "l1_changed": mean_where(error_BT, changed_BT),
        "l1_changed_copied": mean_where(copied_BT, changed_BT),
    }


def spectral_loss(found_BTF, target_BTF, mask_BT, floor_db: float, ceiling_db: float):
    """Spectral convergence plus the L1 of log amplitudes, averaged over resolutions.

    The documents take the STFT of a mel spectrogram whose frames and bands were strung together: a spectrum
    of a spectrum, whose bins depend on how many bands there are. A mel is a spectrum already; what other
    window lengths add to it is other resolutions, and these are had by averaging amplitudes over squares of
    1, 2, 4 and 8 frames and bands. Convergence, ‖A − Â‖ / ‖A‖, weighs what is loud; log amplitudes, in
    nepers, what is soft (Yamamoto, Song and Kim 2020). Frames outside the mask count for nothing.
    """
    amplitudes = [
        jnp.where(mask_BT[..., None], _amplitude(mel_BTF, floor_db, ceiling_db), 0.0)
        for mel_BTF in (found_BTF, target_BTF)
    ]
    floor, weight_BT1 = 10.0 ** (floor_db / 20.0), mask_BT[..., None].astype(jnp.float32)
    total = jnp.zeros(())
    for size in RESOLUTIONS:
        (found, target), count = (
            (_squares(a, size) for a in amplitudes),
            _squares(weight_BT1, size),
        )
        there = jnp.broadcast_to(count > 0, target.shape)
        away = jnp.sqrt(((found - target) ** 2).sum() + TINY**2)
        convergence = away / jnp.sqrt((target**2).sum() + TINY)
        logs = [jnp.log(jnp.maximum(a / jnp.maximum(count, TINY), floor)) for a in (found, target)]
        total += convergence + mean_where(jnp.abs(logs[0] - logs[1]), there)
    return total / len(RESOLUTIONS)


def _amplitude(mel, floor_db: float, ceiling_db: float):
    return 10.0 ** ((jnp.clip(mel, 0.0, 1.0) * (ceiling_db - floor_db) + floor_db) / 20.0)


def _squares(x_BTF, size: int):
    """Means over squares of so many frames and bands; those that are missing at the end are zero."""
    batch, n_frames, bands = x_BTF.shape
    across = size if bands > 1 else 1
    padded = jnp.pad(x_BTF, ((0, 0), (0, -n_frames % size), (0, -bands % across)))
    return padded.reshape(batch, -1, size, padded.shape[2] // across, across).mean((2, 4))
