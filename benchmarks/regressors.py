"""How far regressors of mixes are off: each setting, beside the constant mean and the exact inverse.

    python benchmarks/regressors.py MIXES MODEL... [--split test] [--heard HEARD] [--refine 24] [--out RESULT]

MIXES are of recordings that no model has learned from; errors are means of settings from 0 to 1, spread
evenly, so that who always says the middle is 0.25 off. *identifiable* are those of `knobs.IDENTIFIABLE`.
HEARD are mixes of the same split that keep their sound (`editjax mixes --sound`): there the mean of all
models is refined by the gradient fit of `console/fit.py`, for so many of them; and all their answers are
played through the console and its limiter: a render is outside where its true peak passes the ceiling, or
its loudness is more than 3 LU from that of the true mix.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from report import finish

from editjax.console.dynamics import decibel
from editjax.console.fit import fit
from editjax.console.knobs import IDENTIFIABLE, NAMES, turned
from editjax.console.loudness import limited, loudness, true_peak
from editjax.mixer import load_mixer, predicted
from editjax.mixes import Mixes

CEILING_DB, OVER_DB, LOUDER_LU = -1.0, 0.1, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mixes", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--split", default="test")
    parser.add_argument("--heard", type=Path)
    parser.add_argument("--refine", type=int, default=24)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    members = {Path(name).name: load_mixer(name).members[0] for name in chosen.models}
    mixes, numbers = of_split(chosen.mixes, chosen.split)
    true_NP = np.stack([mixes[int(k)]["knobs"] for k in numbers])
    found = {name: predicted(*member, mixes, numbers) for name, member in members.items()}
    found["mean of models"] = np.mean(list(found.values()), 0)
    found["constant"] = np.full_like(true_NP, 0.5)
    errors = {name: np.abs(knobs_NP - true_NP).mean(0) for name, knobs_NP in found.items()}
    about = {"mixes": str(len(numbers)), "recordings": str(len({mixes.entries[k].group for k in numbers}))}
    ratios = {}
    if chosen.heard:
        heard, rows = of_split(chosen.heard, chosen.split)
        said_NP = np.mean([predicted(*member, heard, rows) for member in members.values()], 0)
        facts = [outside(heard[int(k)], knobs_P, mixes) for k, knobs_P in zip(rows, said_NP, strict=True)]
        ratios["share of renders outside the bounds"] = float(np.mean([one > LOUDER_LU for one in facts]))
        ratios["farthest from the true mix's loudness, LU"] = float(np.max(facts))
        about |= {"renders": str(len(facts)), "refined": str(min(chosen.refine, len(rows)))}
        few = rows[: chosen.refine]
        for name, starts_NP in (("refined", said_NP), ("fit from the middle", np.full_like(said_NP, 0.5))):
            gone = [
                refined(heard[int(k)], p_P, rate_of(heard)) for k, p_P in zip(few, starts_NP, strict=False)
            ]
            errors[name] = np.mean([np.abs(a - b) for a, b in gone], 0)
    ratios |= {
        f"constant / {name}, identifiable": of_identifiable(errors["constant"]) / of_identifiable(error_P)
        for name, error_P in errors.items()
        if name != "constant"
    }
    finish("regressors", table(errors), ratios, ["jax", "numpy"], chosen.out, about)


def of_split(folder: Path, split: str) -> tuple[Mixes, np.ndarray]:
    mixes = Mixes(folder)
    return mixes, np.array([k for k, entry in enumerate(mixes.entries) if entry.split == split])


def of_identifiable(error_P: np.ndarray) -> float:
    return float(np.mean([error_P[NAMES.index(name)] for name in IDENTIFIABLE]))


def table(errors: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    rows = [
        {"setting": name} | {model: float(error_P[at]) for model, error_P in errors.items()}
        for at, name in enumerate(NAMES)
    ]
    rows.append({"setting": "identifiable"} | {m: of_identifiable(e) for m, e in errors.items()})
    return [*rows, {"setting": "all"} | {model: float(error_P.mean()) for model, error_P in errors.items()}]


@partial(jax.jit, static_argnums=2)
def played(stem_2S, knobs_P, rate_hz: int):
    """A stem through the console and its limiter: (2, S), and its loudness."""
    mix_2S = limited(turned(stem_2S, knobs_P, rate_hz), CEILING_DB, rate_hz)
    return mix_2S, loudness(mix_2S, rate_hz)


def outside(row: dict[str, np.ndarray], knobs_P: np.ndarray, mixes: Mixes) -> float:
    """How many LU a render with these settings is from that with the true ones; infinite where it clips."""
    stem_2S, rate_hz = (
        jnp.asarray(row["sound"], jnp.float32),
        mixes.manifest["settings"]["picture"]["rate_hz"],
    )
    mix_2S, said_lufs = played(stem_2S, jnp.asarray(knobs_P), rate_hz)
    _, true_lufs = played(stem_2S, jnp.asarray(row["knobs"]), rate_hz)
    if float(decibel(true_peak(mix_2S))) > CEILING_DB + OVER_DB:
        return float("inf")
    return float(jnp.abs(jnp.maximum(said_lufs, -70.0) - jnp.maximum(true_lufs, -70.0)))


def rate_of(mixes: Mixes) -> int:
    return mixes.manifest["settings"]["picture"]["rate_hz"]


def refined(row: dict[str, np.ndarray], knobs_P: np.ndarray, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """The settings that a fit reaches from these, and the true ones."""
    stem_2S = np.asarray(row["sound"], np.float32)
    mix_2S = np.asarray(jax.jit(turned, static_argnums=2)(stem_2S, row["knobs"], rate_hz))
    return fit(stem_2S, mix_2S, rate_hz, [knobs_P])[0], row["knobs"]


if __name__ == "__main__":
    main()
