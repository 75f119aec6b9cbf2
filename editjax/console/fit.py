"""The knobs that made a mix of a stem, by a gradient fit through the console: its exact inverse.

Levenberg and Marquardt's method looks for the knobs whose output has the same spectrogram; the derivatives
are the console's own. It finds what `knobs.IDENTIFIABLE` lists within 0.02 from anywhere, and faster from
what a regressor hears.
"""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from editjax.console.knobs import NAMES, turned

N_FFT, HOP = 2048, 1024
FLOOR = 1e-5
STEPS, LONGEST_STEP, EASE = 12, 0.3, 8.0
SETTLED = 1e-7
FOUND_DB = 0.05


def fit(
    stem_2S: np.ndarray, mix_2S: np.ndarray, rate_hz: int, starts: Iterable[np.ndarray]
) -> tuple[np.ndarray, float]:
    """Knobs (P,), and how far in dB (root mean square) what they make is from the mix, both float32 (2, S).

    Every start (P,) is tried in turn until one leads there.
    """
    wanted_M = np.asarray(_spectrogram(mix_2S).reshape(-1))
    tries = []
    for start_P in starts:
        tries.append(_from(start_P, stem_2S, wanted_M, rate_hz))
        if tries[-1][1] < FOUND_DB:
            break
    return min(tries, key=lambda found: found[1])


def _from(start_P: np.ndarray, stem_2S: np.ndarray, wanted_M: np.ndarray, rate_hz: int):
    p_P, damping = np.array(start_P, np.float64), 1.0
    found_M, slope_PM = _slopes(stem_2S, p_P, rate_hz)
    error = float(np.mean((found_M - wanted_M) ** 2))
    for _ in range(STEPS):
        normal_PP = (slope_PM @ slope_PM.T).astype(np.float64) / len(found_M)
        pull_P = (slope_PM @ (wanted_M - found_M)).astype(np.float64) / len(found_M)
        step_P = np.linalg.solve(normal_PP + damping * np.diag(np.diag(normal_PP) + 1e-6), pull_P)
        tried_P = np.clip(p_P + np.clip(step_P, -LONGEST_STEP, LONGEST_STEP), 0.0, 1.0)
        tried_M, tried_PM = _slopes(stem_2S, tried_P, rate_hz)
        tried = float(np.mean((tried_M - wanted_M) ** 2))
        if tried >= error:
            damping *= EASE
            continue
        gained = error - tried
        p_P, found_M, slope_PM, error, damping = tried_P, tried_M, tried_PM, tried, damping / EASE
        if gained < SETTLED:
            break
    return p_P, error**0.5


def _slopes(stem_2S: np.ndarray, p_P: np.ndarray, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    found_M, slope_PM = _differentiated(stem_2S, jnp.asarray(p_P, jnp.float32), rate_hz)
    return np.asarray(found_M), np.asarray(slope_PM)


@partial(jax.jit, static_argnums=2)
def _differentiated(stem_2S, p_P, rate_hz: int):
    """What is heard with these knobs, and its derivatives by them: (M,), (P, M)."""

    def heard(p_P):
        return _spectrogram(turned(stem_2S, p_P, rate_hz)).reshape(-1)

    found_M, pull = jax.vjp(heard, p_P)  # the console has rules for this direction alone
    push = jax.linear_transpose(pull, found_M)
    return found_M, jax.lax.map(lambda v_P: push((v_P,))[0], jnp.eye(len(NAMES)))


@jax.jit
def _spectrogram(x_2S):
    """Levels in dB of both channels, and of their sum and difference, of what is above −100 dB."""
    x_4S = jnp.concatenate([x_2S, jnp.stack([x_2S[0] + x_2S[1], x_2S[0] - x_2S[1]]) / 2.0])
    window_N = jnp.hanning(N_FFT).astype(jnp.float32)
    at_TN = jnp.arange((x_4S.shape[1] - N_FFT) // HOP)[:, None] * HOP + jnp.arange(N_FFT)[None]
    power_4TF = jnp.abs(jnp.fft.rfft(x_4S[:, at_TN] * window_N[None, None])) ** 2 / N_FFT
    return 10.0 * jnp.log10(power_4TF + FLOOR**2)
