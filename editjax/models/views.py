"""Two views of one segment, for contrastive learning: stretched, transposed, mixed with another, quieter one.

In come level-normalised mels (in units of `level.RANGE_DB`), out come other ones that a listener would take
for the same passage (SimCLR: Chen et al. 2020). Everything is on the device and drawn with a key.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from editjax.models.level import BOTTOM, RANGE_DB, TOP


@dataclass(frozen=True)
class ViewSettings:
    """How far a view may be: tempo (low, high), semitones either way, level of what is mixed in."""

    stretch: tuple[float, float] = (0.95, 1.05)
    pitch_semitones: float = 2.0
    mix_db: tuple[float, float] = (-30.0, -10.0)


def view(x_NSF, centres_hz: np.ndarray, settings: ViewSettings, key):
    """One view of every segment (N, S, F), whose bands lie at `centres_hz` (F,)."""
    stretch_key, pitch_key, mix_key = jax.random.split(key, 3)
    count = x_NSF.shape[0]
    ratio_N = jax.random.uniform(
        stretch_key, (count,), minval=settings.stretch[0], maxval=settings.stretch[1]
    )
    reach = settings.pitch_semitones
    semitones_N = jax.random.uniform(pitch_key, (count,), minval=-reach, maxval=reach)
    level_db_N = jax.random.uniform(mix_key, (count,), minval=settings.mix_db[0], maxval=settings.mix_db[1])
    x_NSF = jax.vmap(stretched)(x_NSF, ratio_N)
    x_NSF = jax.vmap(transposed, (0, None, 0))(x_NSF, jnp.asarray(centres_hz, jnp.float32), semitones_N)
    return mixed(x_NSF, jnp.roll(x_NSF, 1, 0), level_db_N)


def stretched(x_SF, ratio):
    """The segment `ratio` times as slow about its middle; its ends repeat where it is faster."""
    middle = (x_SF.shape[0] - 1) / 2
    at_S = (jnp.arange(x_SF.shape[0], dtype=jnp.float32) - middle) / ratio + middle
    return _between(x_SF, at_S)


def transposed(x_SF, centres_hz_F, semitones):
    """The segment so many semitones higher; the outermost bands repeat."""
    bands_F = jnp.arange(x_SF.shape[1], dtype=jnp.float32)
    at_F = jnp.interp(centres_hz_F * 2.0 ** (-semitones / 12.0), centres_hz_F, bands_F)
    return _between(x_SF.T, at_F).T


def mixed(x_NSF, other_NSF, level_db_N):
    """The sum of the powers of two segments, the other at a level."""
    gain_N11 = (level_db_N / RANGE_DB)[:, None, None]
    to_log = np.float32(RANGE_DB / 10.0 * np.log(10.0))
    both = jnp.logaddexp(x_NSF * to_log, (other_NSF + gain_N11) * to_log) / to_log
    return jnp.clip(both, BOTTOM, TOP)


def _between(x_ND, at_M):
    """Rows of x between rows, by linear interpolation, those beyond its ends repeated."""
    at_M = jnp.clip(at_M, 0.0, x_ND.shape[0] - 1)
    below_M = jnp.floor(at_M).astype(jnp.int32)
    above_M = jnp.minimum(below_M + 1, x_ND.shape[0] - 1)
    weight_M1 = (at_M - below_M.astype(jnp.float32))[:, None]
    return (1.0 - weight_M1) * x_ND[below_M] + weight_M1 * x_ND[above_M]
