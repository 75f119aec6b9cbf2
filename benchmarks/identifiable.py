"""Which settings can be found from a sound and what the console made of it: a gradient fit for each.

    python benchmarks/identifiable.py SOUNDS [--clips 32] [--out RESULT.json]

Excerpts of four seconds of recordings are played through the console with settings drawn evenly from 0 to 1
(`console/knobs.py`), and the settings are looked for from 0.5, 0.3 and 0.7 (`console/fit.py`). A setting is
identifiable where the mean error is 0.02 at most. Regressors are judged by those.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from report import finish

from editjax.console.fit import fit
from editjax.console.knobs import KNOBS, NAMES, turned
from editjax.sounds import Excerpts, Sounds, SoundSettings

SECONDS, WITHIN = 4.0, 0.02
STARTS = [np.full(len(KNOBS), at) for at in (0.5, 0.3, 0.7)]

played = jax.jit(turned, static_argnums=2)


def run(folder: Path, clips: int, seed: int) -> list[dict]:
    settings = SoundSettings(seconds=SECONDS, channels=2, seed=seed, kinds=("music",))
    rows = []
    with Sounds(folder) as sounds:
        excerpts = Excerpts(sounds, settings)
        for row in range(clips):
            number, x_CS = excerpts.draw(0, row)
            true_K = np.random.default_rng([seed, 1, row]).random(len(KNOBS))
            y_CS = np.asarray(played(x_CS, jnp.asarray(true_K, jnp.float32), sounds.rate_hz))
            found_K, left_db = fit(x_CS, y_CS, sounds.rate_hz, STARTS)
            rows.append({"sound": sounds.entries[number].id, "left_db": left_db})
            rows[-1]["error"] = np.abs(found_K - true_K).round(4).tolist()
            rows[-1]["sides_db"] = sides_db(x_CS)
            print(row, rows[-1], flush=True)
    return rows


def table(rows: list[dict]) -> list[dict]:
    """What is left of each setting."""
    error_RK = np.array([row["error"] for row in rows])
    wide_R = np.array([row["sides_db"] > -60 for row in rows])
    return [
        {
            "setting": name,
            "mean error": float(error_RK[:, k].mean()),
            "median error": float(np.median(error_RK[:, k])),
            "mean error, stereo stems": float(error_RK[wide_R, k].mean()),
            "identifiable": bool(error_RK[:, k].mean() <= WITHIN),
        }
        for k, name in enumerate(NAMES)
    ]


def sides_db(x_CS: np.ndarray) -> float:
    """How loud the difference of the channels is."""
    return round(float(10 * np.log10(((x_CS[0] - x_CS[1]) ** 2).mean() + 1e-20)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows = table(run(chosen.sounds, chosen.clips, chosen.seed))
    share = {"identifiable settings / all": float(np.mean([row["identifiable"] for row in rows]))}
    finish("identifiable", rows, share, ["jax", "numpy"], chosen.out, {"clips": str(chosen.clips)})


if __name__ == "__main__":
    main()
