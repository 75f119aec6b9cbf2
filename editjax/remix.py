"""Two recordings → a new piece of windows of both, by a creative agent and the codec it hears through.

excerpts of what the agent was made for → codec → latents → agent → latents of every pair → codec → sound
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from editjax.audio import Reader
from editjax.codec import Codec, load_codec
from editjax.errors import DataError, UsageError
from editjax.export import load_bundle
from editjax.formats import to_float
from editjax.models.window import Composed, WindowSettings, apply
from editjax.ppo import Frozen
from editjax.window_loss import WindowLossSettings, check_codec, hearing, pair_losses, total_of_pairs

BEST, ENSEMBLE = "best", "ensemble"
LEAST_S, LATEST_S = 1.0, 1e6


class Chosen(NamedTuple):
    """One pair of windows: where they begin in the recordings, seconds, how much they are compressed, how
    strongly their tonality was reduced, how well they match, and the loss of the piece."""

    start_input_s: float
    start_target_s: float
    ratio_input: float
    ratio_target: float
    tonality_strength: float
    match: float
    loss: float


class Remix(NamedTuple):
    """The sound (C, S) at the codec's rate, all pairs, and the number of the one heard, from 1; 0 for all."""

    sound_CS: np.ndarray
    rate_hz: int
    pairs: tuple[Chosen, ...]
    heard: int
    window_s: float


class Remixer(NamedTuple):
    """A creative agent and its codec."""

    settings: WindowSettings
    params: Any
    codec: Codec


def load_remixer(model: str | Path, codec: str | Path) -> Remixer:
    """Bundled models or model folders. DataError where one is of another family, UsageError where they do not
    fit each other."""
    bundle = load_bundle(model)
    if not isinstance(bundle.settings, WindowSettings):
        raise DataError(f"{model}: is a model of the family {bundle.config['family']}, not a creative agent")
    heard = load_codec(codec)
    check_codec(bundle.settings, heard.settings, str(codec))
    return Remixer(bundle.settings, bundle.params, heard)


def excerpt(reader: Reader, start_s: float, length_s: float) -> np.ndarray:
    """`length_s` of a recording from `start_s` on, float32 (C, S) at its own rate.

    A recording that ends before is played again and again from `start_s`. UsageError where less than
    LEAST_S is left.
    """
    rate_hz = reader.info.sample_rate_hz
    if not 0.0 <= start_s <= LATEST_S:
        raise UsageError(f"{reader.info.path}: cannot begin at {start_s:g} s; give seconds from 0 on")
    first, count = round(start_s * rate_hz), round(length_s * rate_hz)
    left = reader.frames - first
    if left < LEAST_S * rate_hz:
        raise UsageError(
            f"{reader.info.path}: {max(0, left) / rate_hz:.1f} s are left from {start_s:g} s on; leave "
            f"{LEAST_S:g} s at least"
        )
    there_SC = to_float(reader.read(first, min(reader.frames, first + count)))
    there_CS = there_SC.reshape(len(there_SC), -1).T
    return np.tile(there_CS, (1, -(-count // there_CS.shape[1])))[:, :count]


def remix(
    remixer: Remixer,
    input_CS: np.ndarray,
    input_hz: int,
    target_CS: np.ndarray,
    target_hz: int,
    *,
    pairs: int | None = None,
    pick: str = BEST,
    starts_s: tuple[float, float] = (0.0, 0.0),
) -> Remix:
    """What the agent makes of two excerpts.

    Of the agent's pairs the first `pairs` are made, by default all. `pick` is "best", of the least loss;
    "ensemble", the mean of all pieces as latents; or the number of a pair, from 1. `starts_s` is where the
    excerpts began. Raises UsageError for pairs the agent does not have.
    """
    settings, params, codec = remixer
    count = settings.pairs if pairs is None else pairs
    if not 1 <= count <= settings.pairs:
        raise UsageError(f"{count} pairs: this agent makes 1 to {settings.pairs}")
    names = (BEST, ENSEMBLE, *map(str, range(1, count + 1)))
    if pick not in names:
        raise UsageError(f"pick {pick!r}: choose one of {', '.join(names)}")
    sounds = (input_CS, input_hz), (target_CS, target_hz)
    latents = [_fitted(codec.encode(*sound), settings.frames)[None] for sound in sounds]
    composed, loss_BP = _made(settings, codec.settings, params, codec.params, *latents)
    loss_P = np.asarray(loss_BP)[0, :count]
    heard = int(loss_P.argmin()) + 1 if pick == BEST else 0 if pick == ENSEMBLE else int(pick)
    pieces_PWD = np.asarray(composed.piece_BPWD)[0, :count]
    sound_CS = codec.decode(pieces_PWD.mean(0) if heard == 0 else pieces_PWD[heard - 1])
    chosen = tuple(_chosen(settings, composed, at, starts_s, float(loss_P[at])) for at in range(count))
    loudest = max(1.0, float(np.abs(sound_CS).max()))  # louder than full scale would be clipped
    return Remix(sound_CS / loudest, codec.settings.sample_rate_hz, chosen, heard, settings.window_s)


@partial(jax.jit, static_argnums=(0, 1))
def _made(settings, codec_settings, params, codec_params, input_BTD, target_BTD):
    """Pieces, and the loss of each pair, (B, P)."""
    composed, weights = apply(settings, params, input_BTD, target_BTD), WindowLossSettings()
    hear = hearing(Frozen(codec_settings, codec_params))
    both = input_BTD, target_BTD
    losses = pair_losses(composed, *both, hear, settings, weights, jax.random.key(0))
    return composed, total_of_pairs(losses, weights)


def _fitted(latents_TD: np.ndarray, frames: int) -> np.ndarray:
    """As many frames as the agent hears; the last one more than once where rounding left some out."""
    return np.pad(latents_TD[:frames], ((0, max(0, frames - len(latents_TD))), (0, 0)), "edge")


def _chosen(
    settings: WindowSettings, composed: Composed, at: int, starts_s: tuple[float, float], loss: float
) -> Chosen:
    found = {name: float(np.asarray(x_BP)[0, at]) for name, x_BP in composed.windows._asdict().items()}
    rate = settings.frames_per_second
    return Chosen(
        starts_s[0] + found["start_input_BP"] / rate,
        starts_s[1] + found["start_target_BP"] / rate,
        found["ratio_input_BP"],
        found["ratio_target_BP"],
        found["tonality_strength_BP"],
        found["match_BP"],
        loss,
    )
