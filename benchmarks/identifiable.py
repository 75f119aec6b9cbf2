"""Which settings can be found from a sound and what the console made of it: a gradient fit for each.

    python benchmarks/identifiable.py SOUNDS [--clips 48] [--out benchmarks/results/identifiable.json]

Excerpts of four seconds of recordings are played through the console with settings drawn evenly from 0 to 1
(`console/knobs.py`). From 0.5 each, Levenberg and Marquardt's method looks for the settings whose output has
the same spectrogram: the derivatives are the console's own. A setting is identifiable where the mean error
is 0.02 at most. Regressors are judged by those.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from editjax.console.knobs import KNOBS, NAMES, turned
from editjax.sounds import Excerpts, Sounds, SoundSettings

SECONDS, WITHIN = 4.0, 0.02
N_FFT, HOP = 2048, 1024
FLOOR = 1e-5
STEPS, STARTS = 12, ((0.5,) * len(KNOBS), (0.3,) * len(KNOBS), (0.7,) * len(KNOBS))


def spectrogram(x_2S):
    """Levels in dB of both channels, and of their sum and difference, of what is above −100 dB."""
    x_4S = jnp.concatenate([x_2S, jnp.stack([x_2S[0] + x_2S[1], x_2S[0] - x_2S[1]]) / 2.0])
    window_N = jnp.hanning(N_FFT).astype(jnp.float32)
    at_TN = jnp.arange((x_4S.shape[1] - N_FFT) // HOP)[:, None] * HOP + jnp.arange(N_FFT)[None]
    power_4TF = jnp.abs(jnp.fft.rfft(x_4S[:, at_TN] * window_N[None, None])) ** 2 / N_FFT
    return 10.0 * jnp.log10(power_4TF + FLOOR**2)


@partial(jax.jit, static_argnums=2)
def slopes(x_CS, p_K, rate_hz):
    """What is heard with these settings, and its derivatives by them: (M,), (K, M)."""

    def heard(p_K):
        return spectrogram(turned(x_CS, p_K, rate_hz)).reshape(-1)

    found_M, pull = jax.vjp(heard, p_K)  # the console has rules for this direction alone
    push = jax.linear_transpose(pull, found_M)
    return found_M, jax.lax.map(lambda v_K: push((v_K,))[0], jnp.eye(len(KNOBS)))


def fit(x_CS, wanted_M, rate_hz, start) -> tuple[np.ndarray, float]:
    """Settings, and how far in dB (root mean square) what they make is from what was wanted."""
    p_K, damping = np.array(start), 1.0
    found_M, slope_KM = map(np.asarray, slopes(x_CS, jnp.asarray(p_K, jnp.float32), rate_hz))
    error = float(np.mean((found_M - wanted_M) ** 2))
    for _ in range(STEPS):
        normal_KK = (slope_KM @ slope_KM.T).astype(np.float64) / len(found_M)
        pull_K = (slope_KM @ (wanted_M - found_M)).astype(np.float64) / len(found_M)
        step_K = np.linalg.solve(normal_KK + damping * np.diag(np.diag(normal_KK) + 1e-6), pull_K)
        tried_K = np.clip(p_K + np.clip(step_K, -0.3, 0.3), 0.0, 1.0)
        tried_M, tried_KM = map(np.asarray, slopes(x_CS, jnp.asarray(tried_K, jnp.float32), rate_hz))
        tried = float(np.mean((tried_M - wanted_M) ** 2))
        if tried < error:
            p_K, found_M, slope_KM, damping, done = tried_K, tried_M, tried_KM, damping / 8, error - tried
            error = tried
            if done < 1e-7:
                break
        else:
            damping *= 8
    return p_K, error**0.5


def run(folder: Path, clips: int, seed: int) -> dict:
    settings = SoundSettings(seconds=SECONDS, channels=2, seed=seed, kinds=("music",))
    rows = []
    with Sounds(folder) as sounds:
        excerpts = Excerpts(sounds, settings)
        for row in range(clips):
            number, x_CS = excerpts.draw(0, row)
            true_K = np.random.default_rng([seed, 1, row]).random(len(KNOBS))
            wanted_M, _ = slopes(x_CS, jnp.asarray(true_K, jnp.float32), sounds.rate_hz)
            wanted_M = np.asarray(wanted_M)
            found, left = [], []
            for start in STARTS:
                p_K, error_db = fit(x_CS, wanted_M, sounds.rate_hz, start)
                found.append(p_K)
                left.append(error_db)
                if error_db < 0.05:
                    break
            best_K = found[int(np.argmin(left))]
            rows.append({"sound": sounds.entries[number].id, "left_db": min(left)})
            rows[-1]["error"] = np.abs(best_K - true_K).round(4).tolist()
            rows[-1]["sides_db"] = sides_db(x_CS)
            print(row, rows[-1], flush=True)
    error_RK = np.array([row["error"] for row in rows])
    wide_R = np.array([row["sides_db"] > -60 for row in rows])
    table = {
        name: {
            "mean": round(float(error_RK[:, k].mean()), 4),
            "median": round(float(np.median(error_RK[:, k])), 4),
            "mean_of_stereo": round(float(error_RK[wide_R, k].mean()), 4) if wide_R.any() else None,
        }
        for k, name in enumerate(NAMES)
    }
    listed = [name for name in NAMES if table[name]["mean"] <= WITHIN]
    return {"clips": clips, "stereo": int(wide_R.sum()), "within": WITHIN, "error": table, "listed": listed}


def sides_db(x_CS: np.ndarray) -> float:
    """How loud the difference of the channels is."""
    return round(float(10 * np.log10(((x_CS[0] - x_CS[1]) ** 2).mean() + 1e-20)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/identifiable.json"))
    options = parser.parse_args()
    found = run(options.sounds, options.clips, options.seed)
    print(json.dumps(found, indent=1))
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
