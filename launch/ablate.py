"""What each part of the pointer network is worth: train without it, at the same budget, on several seeds.

    python launch/ablate.py CONFIG --data SHARDS --validation SHARDS --out FOLDER [--seeds 3]
        [--start-from NAME|FOLDER] [TRAIN OPTIONS]

A part is taken away by holding the parameters that let it in at zero, so that every run has the same code,
data and cost; tokens of bars are then seen still, as empty ones that take their share of the attention. With
`--start-from` a trained model loses the part, and the budget is what it has to make up for it. Runs are
independent: a script that was killed goes on where it stopped, and FOLDER/table.md has a row a part of what
is done. Choose the budget with `--optim.steps` and `--data.batch-frames`.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from editjax.array_records import write_json
from editjax.cli import complain
from editjax.config import load_config, override, to_json
from editjax.data import batches
from editjax.errors import DataError, EditjaxError
from editjax.evaluate import ValidateSettings, make_validate
from editjax.family import Family, family_of
from editjax.mesh import tree_path
from editjax.models.match import DETAIL_CHANNELS
from editjax.models.pointer import PointerSettings
from editjax.models.scales import MATCH_CHANNELS, TARGET_FEATURES
from editjax.scoreboard import plain
from editjax.step import TrainConfig
from editjax.train import train
from editjax.warm_start import begin_from

FIGURES = ("kept_iou", "structure_iou", "boundary_f1_half_second", "order_agreement", "length_error")
STEP_NUMBERS, LENGTH_NUMBERS, HINT_NUMBERS, REPLAY_NUMBERS = 3, 4, 2, 2  # of `Decoder._inputs`, in its order

Held = Callable[[PointerSettings, str, tuple[int, ...]], Any]  # which entries of a parameter are held at zero


def whole(*endings: str) -> Held:
    """Every entry of the parameters whose path has one of these parts."""
    return lambda settings, path, shape: np.full(shape, any(f"/{end}" in f"/{path}" for end in endings))


def decoder_numbers(first: int, count: int) -> Held:
    """Rows of the decoder's input layer, counted from its first number."""

    def held(settings: PointerSettings, path: str, shape: tuple[int, ...]) -> Any:
        rows = np.arange(shape[0]) - 2 * settings.frame_width - first if shape else np.zeros(0)
        inside = (rows >= 0) & (rows < count) & (path == "decoder/enter/kernel")
        return np.broadcast_to(inside.reshape(-1, *[1] * (len(shape) - 1)), shape)

    return held


def asked_numbers(first: int, count: int | None) -> Held:
    """Rows of what the encoder is told of the edit that is asked for."""

    def held(settings: PointerSettings, path: str, shape: tuple[int, ...]) -> Any:
        mask = np.zeros(shape, bool)
        if path.startswith("encoder/") and path.endswith("asked/kernel"):
            mask[..., first : None if count is None else first + count, :] = True
        return mask

    return held


def match_details(settings: PointerSettings, path: str, shape: tuple[int, ...]) -> Any:
    """What the landmarks are told of how a match differs."""
    mask = np.zeros(shape, bool)
    if path.endswith(("match/key_map", "match/value_map")):
        mask[..., -DETAIL_CHANNELS:, :] = True
    if path == "encoder/entry/matches/kernel":
        mask.reshape(-1, MATCH_CHANNELS, shape[1])[:, -DETAIL_CHANNELS:] = True
    return mask


def both(*parts: Held) -> Held:
    """What any of several holds."""
    return lambda *about: np.any([part(*about) for part in parts], axis=0)


_after_length = STEP_NUMBERS + LENGTH_NUMBERS
PARTS: dict[str, Held] = {
    "nothing": whole(),
    "matches": whole("landmark_layers/match/out", "entry/matches"),
    "differences to matches": match_details,
    "bar tokens in the encoder": whole("landmark_layers/window/global_kv"),
    "position in beat, bar, phrase": whole("stem/phase"),
    "bars back into frames": whole("fusion/bars"),
    "hints of the structure head": both(whole("decoder/trust"), decoder_numbers(_after_length, HINT_NUMBERS)),
    "order and coverage": whole("decoder/bar_avoid"),
    "what was played": decoder_numbers(_after_length + HINT_NUMBERS, REPLAY_NUMBERS),
    "styles": both(
        asked_numbers(TARGET_FEATURES, None),
        decoder_numbers(_after_length + HINT_NUMBERS + REPLAY_NUMBERS, 1 << 20),
    ),
    "the wanted length": both(
        asked_numbers(0, TARGET_FEATURES), decoder_numbers(STEP_NUMBERS, LENGTH_NUMBERS)
    ),
    "stems": whole("stems/out"),
    "the decoder's own past": whole("self_0/out", "self_1/out", "self_2/out", "self_3/out"),
    "far bars in the decoder": whole("cross_0/bars", "cross_1/bars", "cross_2/bars", "cross_3/bars"),
}


def kept(params: Any, settings: PointerSettings, held: Held) -> Any:
    """Parameters with what is held at zero."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: a * jnp.asarray(~held(settings, tree_path(path), a.shape), a.dtype), params
    )


def without(family: Family, settings: PointerSettings, held: Held) -> Family:
    """The family with some parameters at zero for ever."""

    def init(settings: PointerSettings, key: Any) -> Any:
        return kept(family.init(settings, key), settings, held)

    def loss(params: Any, *rest: Any, **options: Any) -> Any:
        return family.loss(kept(params, settings, held), *rest, **options)

    return family._replace(init=init, loss=loss)


def run(
    config: TrainConfig, part: str, seed: int, data: Path, validation: Path, start: str | None, folder: Path
) -> dict[str, float | None]:
    """The figures of one run, trained now unless they are there."""
    config = replace(config, seed=seed, data=replace(config.data, seed=seed), validate_every=0)
    about = {"config": to_json(config), "data": str(data), "validation": str(validation), "start": start}
    result = folder / "figures.json"
    if result.exists():
        found = json.loads(result.read_text())
        if found["about"] != about:
            raise DataError(f"{result}: made with other settings or data; name another --out")
        return found["figures"]
    family = without(family_of(config.model), config.model, PARTS[part])
    first = kept(begin_from(start, config)[0], config.model, PARTS[part]) if start else None
    with contextlib.closing(batches(data, config.data)) as stream:
        state = train(config, stream, folder / "run", family=family, first_params=first)
    params = state.params if state.ema_params is None else state.ema_params
    found = make_validate(config, validation, ValidateSettings(split=None, examples=1 << 20))(params)
    figures = {name: plain(value) for name, value in found.items()}
    write_json(result, {"about": about, "figures": figures})
    return figures


def table(found: dict[str, list[dict[str, float | None]]]) -> str:
    """A row a part: mean and spread over the seeds of every figure."""
    rows = ["| without | runs | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    for part, figures in found.items():
        columns = (np.array([one[name] for one in figures], float) for name in FIGURES)
        cells = (f"{column.mean():.3f} ± {column.std():.3f}" for column in columns)
        rows.append(f"| {part} | {len(figures)} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start-from", metavar="NAME|FOLDER", help="a trained model that loses the part")
    chosen, overrides = parser.parse_known_args()
    config = override(load_config(chosen.config), overrides)
    found: dict[str, list[dict[str, float | None]]] = {}
    one = partial(run, config, data=chosen.data, validation=chosen.validation, start=chosen.start_from)
    for seed in range(chosen.seeds):
        for part in PARTS:
            folder = chosen.out / part.replace(" ", "_") / str(seed)
            found.setdefault(part, []).append(one(part, seed, folder=folder))
            (chosen.out / "table.md").write_text(table(found))
    print(table(found), end="")


if __name__ == "__main__":
    try:
        main()
    except EditjaxError as error:
        sys.exit(complain(error))
