"""What the edits of a tuned pointer network earn, and whether it still edits as well as its reference."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from editjax.bundle import flatten
from editjax.decode import encode
from editjax.edits import PAD, STOP
from editjax.errors import UsageError
from editjax.export import load_bundle
from editjax.join_reward import Rewards, RewardSettings, heard_of, rewards
from editjax.losses import targets
from editjax.models.pointer import PointerSettings
from editjax.models.style import Asked
from editjax.network import PointerNetwork, padded_length
from editjax.tune import TuneSettings

ALLOWED_LOSS = 0.005
"""Of kept IoU, as a mean over validation sessions; more is no price for any reward."""

Figures = dict[str, float]


def earned(
    network: PointerNetwork,
    reward: RewardSettings,
    mel_TF: np.ndarray,
    phase_T3: np.ndarray,
    style: str,
    pointers_N: np.ndarray,
    stems_IMF: np.ndarray | None = None,
) -> Figures:
    """What an edit of natural length earns in all (`reward`) and part by part, by the network's hearing."""
    length, steps = padded_length(len(mel_TF)), padded_length(len(pointers_N) + 1)
    mel_BTF, phase_BT3 = (
        np.pad(a, [(0, length - len(a)), (0, 0)])[None].astype(np.float32) for a in (mel_TF, phase_T3)
    )
    pointers_BN = np.full((1, steps), PAD, np.int32)
    pointers_BN[0, : len(pointers_N) + 1] = np.append(pointers_N, STOP)
    asked = Asked(np.zeros(1, np.float32), np.tile(network.point_of(style), (1, 1)))
    frames_B = np.array([len(mel_TF)], np.int32)
    recording = mel_BTF, frames_B, phase_BT3
    stems = network.stems(stems_IMF, length)
    encoded, keys = encode(network.settings, network.params, *recording, asked, stems)
    found = _rewards(network.settings, mel_BTF, phase_BT3, encoded, keys.hints.looped_BT, pointers_BN)
    each = {name.removesuffix("_BN"): float(x_BN.sum()) for name, x_BN in found._asdict().items()}
    return {"reward": float(found.weighed(reward).sum()), **each}


@partial(jax.jit, static_argnames=("settings",))
def _rewards(settings: PointerSettings, mel_BTF, phase_BT3, encoded, looped_BT, pointers_BN) -> Rewards:
    target_B = jnp.zeros(len(mel_BTF))
    heard = heard_of(settings, mel_BTF, phase_BT3, target_B, encoded, looped_BT)
    steps_B = (pointers_BN != PAD).sum(1)
    return rewards(heard, targets(pointers_BN, steps_B, target_B, mel_BTF.shape[1]), steps_B)


def refuse_stranger(model: str | Path, params: Any, tune: TuneSettings) -> None:
    """UsageError where a model to tune does not hear as the reference does.

    A tether compares what their decoders say of the same hearing, and only the decoder is tuned.
    """
    ours, theirs = (flatten(p["encoder"]) for p in (params, load_bundle(tune.reference).params))
    if ours.keys() != theirs.keys() or not all(np.array_equal(ours[name], theirs[name]) for name in ours):
        raise UsageError(
            f"{model}: hears otherwise than the reference {tune.reference}; add --loss.reference {model}"
        )


def beside_reference(config: Any, validate: Callable[[Any], Figures]) -> Callable[[Any], Figures]:
    """`validate`, whose figures have `reward` and `kept_iou`, with those of the reference beside them.

    `score` is the mean reward, −∞ where more than ALLOWED_LOSS of the reference's kept IoU is lost.
    """
    known: Figures = {}

    def beside(params: Any) -> Figures:
        if not known:
            known.update(validate(load_bundle(config.loss.reference).params))
        found = validate(params)
        lost = known["kept_iou"] - found["kept_iou"] > ALLOWED_LOSS
        figures = {f"reference_{name}": known[name] for name in ("reward", "kept_iou")}
        return {**found, **figures, "score": -math.inf if lost else found["reward"]}

    return beside
