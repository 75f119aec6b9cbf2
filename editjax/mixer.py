"""Trained regressors of mixes to call: sounds in, the console's knobs out."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from editjax.console.compared import heard
from editjax.console.desk import Strip
from editjax.console.dynamics import decibel
from editjax.console.fit import fit
from editjax.console.heard import SPAN_DB, picture
from editjax.console.knobs import IDENTIFIABLE, NAMES, strip_of, turned, values
from editjax.console.loudness import loudness
from editjax.errors import DataError, UsageError
from editjax.mixer_loss import mixer_loss
from editjax.mixes import Mixes
from editjax.models.mixer import MixerSettings, predict
from editjax.sounds import chosen

SCALES_S = (4.0, 15.0, 60.0)
"""Excerpts of these lengths are heard, and the whole."""
SHORTEST_S = 1.0
AT_ONCE = 64
FITTED_S = 4.0
QUIETEST_LUFS = -70.0
_played = jax.jit(turned, static_argnums=2)
_picture = jax.jit(picture, static_argnums=0)


class Found(NamedTuple):
    """How a stem was mixed: settings in their units, as a strip, and the mix's loudness.

    `apart_db` is how far the console's levels of bands are from the mix's with them, `before_db` those of the
    stem itself: means over bands and frames.
    """

    values: dict[str, float]
    strip: Strip
    loudness_lufs: float
    apart_db: float
    before_db: float


class Mixer:
    """An ensemble of regressors: what they say of excerpts at several time scales, averaged."""

    def __init__(self, members: Sequence[tuple[MixerSettings, Any]]):
        self.members = tuple(members)
        self.rate_hz = self.members[0][0].picture.rate_hz

    def knobs(self, stem_2S: np.ndarray, mix_2S: np.ndarray) -> np.ndarray:
        """The knobs (P,) that made the mix of the stem, both float32 (2, S) at `rate_hz` and of one length.

        A blind regressor ignores the stem. What is shorter than a second is heard with silence behind it.
        """
        missing = max(0, round(SHORTEST_S * self.rate_hz) - mix_2S.shape[1])
        stem_2S, mix_2S = (np.pad(x_2S, ((0, 0), (0, missing))) for x_2S in (stem_2S, mix_2S))
        found = []
        for settings, params in self.members:
            for length in scales_in(mix_2S.shape[1], self.rate_hz):
                starts = range(0, mix_2S.shape[1] - length + 1, length)
                for start in starts:
                    part = slice(start, start + length)
                    found.append(_knobs(settings, params, stem_2S[:, part], mix_2S[:, part]))
        return np.mean(found, axis=0)

    def hear(self, stem_2S: np.ndarray, mix_2S: np.ndarray, refine: bool = False) -> Found:
        """`knobs` in their units, and how near they come; refined by a gradient fit where it is asked for."""
        knobs_P = self.knobs(stem_2S, mix_2S)
        if refine:
            loudest = _loudest(mix_2S, round(FITTED_S * self.rate_hz))
            starts = knobs_P, np.full(len(knobs_P), 0.5)
            knobs_P, _ = fit(stem_2S[:, loudest], mix_2S[:, loudest], self.rate_hz, starts)
        played_2S = _played(stem_2S, jnp.asarray(knobs_P, jnp.float32), self.rate_hz)
        strip = strip_of(knobs_P, decibel(np.abs(stem_2S).max()))
        seen = [_picture(self.members[0][0].picture, x_2S) for x_2S in (mix_2S, played_2S, stem_2S)]
        apart_db, before_db = (SPAN_DB * float(jnp.abs(one - seen[0]).mean()) for one in seen[1:])
        return Found(
            dict(zip(NAMES, map(float, values(knobs_P)), strict=True)),
            Strip(*(float(value) for value in strip)),
            float(np.clip(loudness(mix_2S, self.rate_hz), QUIETEST_LUFS, 0.0)),
            apart_db,
            before_db,
        )


def _loudest(mix_2S: np.ndarray, length: int) -> slice:
    """The part of so many samples that has the most power."""
    if mix_2S.shape[1] <= length:
        return slice(None)
    starts = range(0, mix_2S.shape[1] - length + 1, length)
    start = max(starts, key=lambda start: float((mix_2S[:, start : start + length] ** 2).sum()))
    return slice(start, start + length)


def scales_in(n_samples: int, rate_hz: int) -> list[int]:
    """Lengths in samples of the excerpts that a sound is heard in: those shorter than it, and the whole where
    that is no longer than the longest."""
    lengths = [round(seconds * rate_hz) for seconds in SCALES_S]
    return [length for length in lengths if length < n_samples] + [n_samples] * (n_samples <= lengths[-1])


@partial(jax.jit, static_argnums=0)
def _knobs(settings: MixerSettings, params: Any, stem_2S: Any, mix_2S: Any) -> jax.Array:
    seen_TFC, told_K = heard(settings.picture, stem_2S, mix_2S)
    return predict(settings, params, seen_TFC[None], told_K[None]).knobs_BP[0]


_predict = partial(jax.jit, static_argnums=0)(predict)
_loss = partial(jax.jit, static_argnums=(2, 3))(mixer_loss)


def predicted(settings: MixerSettings, params: Any, mixes: Mixes, numbers: np.ndarray) -> np.ndarray:
    """The knobs (N, P) of examples."""
    found = []
    for start in range(0, len(numbers), AT_ONCE):
        batch = mixes.batch(np.resize(numbers[start : start + AT_ONCE], AT_ONCE))
        found.append(np.asarray(_predict(settings, params, batch.picture_BTFC, batch.figures_BK).knobs_BP))
    return np.concatenate(found)[: len(numbers)]


def mixer_figures(knobs_NP: np.ndarray, true_NP: np.ndarray) -> dict[str, float]:
    """Mean errors: of each knob, of all, of the identifiable, and `constant`, of who always says 0.5."""
    error_P = np.abs(knobs_NP - true_NP).mean(0)
    constant = float(np.abs(true_NP - 0.5).mean())
    by_knob = {f"error_{name}": float(error) for name, error in zip(NAMES, error_P, strict=True)}
    found = float(np.mean([by_knob[f"error_{name}"] for name in IDENTIFIABLE]))
    return {"error": float(error_P.mean()), "identifiable": found, "constant": constant, **by_knob}


def mixer_validate(config: Any, mixes_dir: str | Path, examples: int) -> Callable[[Any], dict[str, float]]:
    """A function of parameters: mean errors on mixes of recordings that are held out; `score` is 1 less that
    of the identifiable knobs, or where masked patches are learned, less the squares left of those."""
    mixes = Mixes(mixes_dir)
    numbers = chosen(mixes.entries, config.data, held_out=True)[:examples]
    if not len(numbers):
        return lambda params: {"score": float("nan")}
    if config.loss.masked:
        return lambda params: _filled_in(config, params, mixes, numbers)
    true_NP = np.stack([mixes[int(k)]["knobs"] for k in numbers])

    def validate(params: Any) -> dict[str, float]:
        found = mixer_figures(predicted(config.model, params, mixes, numbers), true_NP)
        return {"score": 1.0 - found["identifiable"], **found}

    return validate


def _filled_in(config: Any, params: Any, mixes: Mixes, numbers: np.ndarray) -> dict[str, float]:
    """How well hidden patches are filled in, always the same ones."""
    found = []
    for start in range(0, len(numbers), AT_ONCE):
        batch = mixes.batch(np.resize(numbers[start : start + AT_ONCE], AT_ONCE))
        found.append(float(_loss(params, batch, config.model, config.loss, jax.random.key(start))[0]))
    return {"score": -float(np.mean(found)), "filled_in": float(np.mean(found))}


def load_mixer(*models: str | Path) -> Mixer:
    """The bundled regressors of these names, or folders written by `editjax export`, as one ensemble.

    Raises NoInputError when there is none, DataError when one is damaged, no regressor, or of another rate.
    """
    from editjax.export import load_bundle

    if not models:
        raise UsageError("an ensemble of regressors has one member at least: name a model")
    members = []
    for bundle in map(load_bundle, models):
        if not isinstance(bundle.settings, MixerSettings):
            family = bundle.config["family"]
            raise DataError(f"{bundle.path}: a model of the family {family!r}, not a regressor of mixes")
        members.append((bundle.settings, bundle.params))
    if len({settings.picture.rate_hz for settings, _ in members}) > 1:
        raise DataError(f"{models[0]} and the others hear different sample rates: give those of one")
    return Mixer(members)
