"""What a listener likes of mixes, learned from votes between two: what is voted on, its features, the fit.

Bradley and Terry (1952): that a is preferred to b has the odds exp(u(a) − u(b)); no difference counts as half
a win for each. The utility u is linear in a few features of how a mix sounds, with a normal prior on every
weight (L2), as wide as makes the votes likeliest: few votes, or votes at random, give small weights.

A feature's unit is about the least difference that is heard at once: 3 dB, a tenth of the power in the side.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from editjax.errors import DataError, shown
from editjax.files import atomic_path
from editjax.sheet import object_of

FORMAT = "editjax.taste"
VERSION = 1
LARGEST_WEIGHT = 100.0
OCTAVES, THIRDS = 9, 3
"""Levels of the bands of `mixing.centres_hz`, three and three; the last takes the highest with it."""
LEAST_SHARE = 1e-6
LEVEL_DB, SIDE_SHARE, CREST_DB = 3.0, 0.1, 3.0
MOVED = (*(f"octave_{k + 1}" for k in range(OCTAVES)), "side")
NAMES = (*MOVED, "crest")
PRIORS = (0.03, 0.1, 0.3, 1.0)
"""Standard deviations of the weights, in nats a unit."""
NEWTON_STEPS = 50
"""The function is convex and smooth; a handful are needed."""


class Taste(NamedTuple):
    """Weights (K,) of `NAMES` in nats a unit, and how well they say what was voted."""

    weights_K: np.ndarray
    figures: dict[str, float]


def sound_of(middle_F: Any, side_F: Any) -> Any:
    """The features `MOVED` of power in bands, of middle and side; gradients pass."""
    both_F = middle_F + side_F
    starts = np.minimum(np.arange(both_F.shape[0]) // THIRDS, OCTAVES - 1)
    group_FO = jnp.asarray(starts[:, None] == np.arange(OCTAVES), jnp.float32)
    power_O = both_F @ group_FO
    level_O = 10.0 * jnp.log10(power_O / (both_F.sum() + 1e-30) + LEAST_SHARE)
    share = (side_F @ group_FO / (power_O + LEAST_SHARE * both_F.sum() + 1e-30)).mean()
    return jnp.concatenate([level_O / LEVEL_DB, share[None] / SIDE_SHARE])


def features(middle_F: np.ndarray, side_F: np.ndarray, crest_db: float) -> np.ndarray:
    """All of `NAMES` (K,); the crest is how far the true peak is above the loudness."""
    moved = np.asarray(sound_of(jnp.asarray(middle_F, jnp.float32), jnp.asarray(side_F, jnp.float32)))
    return np.append(moved, crest_db / CREST_DB).astype(np.float64)


def utility(taste: Taste, middle_F: Any, side_F: Any) -> Any:
    """How much a sound is liked, in nats, as far as levels and sides say it; gradients pass."""
    return jnp.asarray(taste.weights_K[: len(MOVED)], jnp.float32) @ sound_of(middle_F, side_F)


def fit(apart_NK: np.ndarray, wins_N: np.ndarray, pages_N: Sequence[Any]) -> Taste:
    """A taste by votes: features of a less those of b (N, K), 1 where a won, 0 where b, 0.5 for neither.

    Figures are log loss in nats and accuracy (of the votes with a winner) of votes left out: one by one, and
    where there are several pages also all of a page, which is the harder test.
    """
    weights_K = _weights(apart_NK, wins_N)
    every = [np.array([k]) for k in range(len(wins_N))]
    figures = {"votes": float(len(wins_N)), "ties": float((wins_N == 0.5).sum())}
    figures |= _figures("", apart_NK @ weights_K, wins_N)
    figures |= _figures("left_out_", _left_out(apart_NK, wins_N, every), wins_N)
    numbers_N = np.unique(np.asarray(pages_N), return_inverse=True)[1]
    if numbers_N.max() > 0:
        whole = [np.flatnonzero(numbers_N == page) for page in range(numbers_N.max() + 1)]
        figures |= _figures("left_out_page_", _left_out(apart_NK, wins_N, whole), wins_N)
    return Taste(weights_K, figures)


def _weights(apart_NK: np.ndarray, wins_N: np.ndarray) -> np.ndarray:
    """The most probable weights, under the prior of `PRIORS` that makes the votes likeliest."""
    found = [_under(apart_NK, wins_N, deviation**-2) for deviation in PRIORS]
    return max(found, key=lambda one: one[1])[0]


def _under(apart_NK: np.ndarray, wins_N: np.ndarray, precision: float) -> tuple[np.ndarray, float]:
    """The most probable weights, by Newton's method with its steps halved where they do not gain; and the log
    likelihood of the votes, whatever the weights, as if these were normal (Laplace; MacKay 1992)."""

    def cost(weights_K: np.ndarray) -> float:
        odds_N = apart_NK @ weights_K
        said = (np.logaddexp(0.0, odds_N) - wins_N * odds_N).sum()
        return float(said + 0.5 * precision * weights_K @ weights_K)

    weights_K = np.zeros(apart_NK.shape[1])
    for _ in range(NEWTON_STEPS):
        said_N = _sigmoid(apart_NK @ weights_K)
        slope_K = apart_NK.T @ (said_N - wins_N) + precision * weights_K
        bend_KK = (apart_NK.T * (said_N * (1.0 - said_N))) @ apart_NK + precision * np.eye(len(weights_K))
        step_K, share = np.linalg.solve(bend_KK, slope_K), 1.0
        while cost(weights_K - share * step_K) > cost(weights_K) and share > 1e-6:
            share /= 2.0
        weights_K = weights_K - share * step_K
        if np.abs(step_K).max() < 1e-9:
            break
    freedom = len(weights_K) * np.log(precision) - np.linalg.slogdet(bend_KK)[1]
    return weights_K, 0.5 * float(freedom) - cost(weights_K)


def _left_out(apart_NK: np.ndarray, wins_N: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The odds (N,), in nats, that a wins, by weights which have not seen the votes of the same part."""
    odds_N = np.zeros(len(wins_N))
    for part in parts:
        seen_N = np.ones(len(wins_N), bool)
        seen_N[part] = False
        odds_N[part] = apart_NK[part] @ _weights(apart_NK[seen_N], wins_N[seen_N])
    return odds_N


def _figures(prefix: str, odds_N: np.ndarray, wins_N: np.ndarray) -> dict[str, float]:
    decided_N = wins_N != 0.5
    right_N = np.where(odds_N == 0.0, 0.5, (odds_N > 0.0) == (wins_N > 0.5))[decided_N]
    found = {f"{prefix}log_loss": float((np.logaddexp(0.0, odds_N) - wins_N * odds_N).mean())}
    return found | ({f"{prefix}accuracy": float(right_N.mean())} if decided_N.any() else {})


def _sigmoid(x_N: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x_N))


def write(taste: Taste, path: Path, pages: Sequence[str], overwrite: bool = False) -> None:
    """Writes a taste as JSON, whole or not at all."""
    weights = {name: round(float(w), 6) for name, w in zip(NAMES, taste.weights_K, strict=True)}
    figures = {name: round(value, 6) for name, value in taste.figures.items()}
    tree = {"format": FORMAT, "version": VERSION, "weights": weights, "figures": figures, "pages": [*pages]}
    with atomic_path(path, overwrite) as temporary:
        text = json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> Taste:
    """A taste. Raises NoInputError where there is none, DataError naming what is wrong."""
    tree = object_of(path, FORMAT, VERSION, "a taste; editjax taste makes one")
    weights = tree.get("weights")
    if not isinstance(weights, dict) or set(weights) != set(NAMES):
        raise DataError(f"{path}: weights of other features than {', '.join(NAMES)}; fit it again")
    for name, value in weights.items():
        if not is_number(value, LARGEST_WEIGHT):
            raise DataError(f"{path}: {name} weighs {shown(value)}; give a number within ±{LARGEST_WEIGHT:g}")
    return Taste(np.array([float(weights[name]) for name in NAMES]), {})


def is_number(value: Any, most: float) -> bool:
    """Whether what JSON holds is a number within ± `most`."""
    return type(value) in (int, float) and -most <= value <= most
