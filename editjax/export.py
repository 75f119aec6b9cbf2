"""Run folder → model bundle, and model bundle → settings and parameters.

A bundle is a folder: `model.safetensors` (tensors named by their path in the tree of parameters),
`config.json` (settings, the table of tensors, digests, how it was trained) and `README.md` (model card).
Nothing in it is code. Loading imports neither Orbax, Grain nor Optax, so that editing starts fast.
"""

import functools
import hashlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from editjax import __version__
from editjax.bundle import (
    CONFIG,
    DTYPES,
    FORMAT,
    TENSORS,
    VERSION,
    bundled_names,
    digest_of,
    dumped,
    facts_of,
    find_bundle,
    flatten,
    read_config,
    read_tensors,
    ships,
    unflatten,
    wrong_in_training,
)
from editjax.config import Json, from_json, to_json
from editjax.errors import CannotCreateError, DataError, InputOutputError, NoInputError, UsageError, shown
from editjax.family import family_of, settings_type
from editjax.files import atomic_folder
from editjax.mel import MelSettings
from editjax.mesh import tree_path
from editjax.quantise import INT8, is_scale, lost, quantised

CARD = "README.md"
MEL_OF_MODELS = ("n_mels", "floor_db", "ceiling_db")
CARRIED = ("family", "model", "mel", "training", "licence")
NOTES = {"family": str, "config": dict, "origin": dict}
EDITOR_OPTION = {"pointer": "", "scorer": "--editor scorer ", "policy": "--editor labels "}
"""How `editjax edit` is told to use a model, for the families that edit."""

LICENCE = (
    "The weights are licensed like editjax (Apache-2.0). The recordings they learned from keep their own "
    "licences, and none of their audio is part of this model."
)


class Bundle(NamedTuple):
    """A model ready to use: parameters are float32 arrays whatever they were stored as."""

    settings: Any
    params: Any
    mel: MelSettings
    config: Json
    path: Path


def export_run(
    run_dir: str | Path,
    out_dir: str | Path,
    *,
    which: str = "best",
    dtype: str = "float32",
    licence: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the bundle of a run's `best` or `last` checkpoint: its averaged parameters where it has them.

    A bundle, or the name of one that ships, may stand for the run: its parameters are stored anew. The run
    may still be training. A damaged checkpoint is named on stderr and an older whole one taken. What int8
    loses is measured, and noted as `quantised`. Raises NoInputError without a checkpoint, CannotCreateError
    when `out_dir` exists and may not be replaced, DataError when no checkpoint is whole or a value does not
    fit `dtype`.
    """
    if dtype not in DTYPES:
        raise DataError(f"cannot store parameters as {dtype}: choose {' or '.join(DTYPES)}")
    export = ["editjax", "export", str(run_dir), "-o", str(out_dir)]
    if _is_bundle(run_dir, which):
        facts, params = _facts_of_bundle(run_dir)
    else:
        facts, params = _facts_of_run(Path(run_dir), which)
        export += ["--which", which]
    facts["training"]["export_command"] = shlex.join([*export, "--dtype", dtype])
    if licence is not None or "licence" not in facts:
        facts["licence"] = LICENCE if licence is None else licence
    tensors = stored(params, dtype)
    if dtype == INT8:
        facts["quantised"] = lost(params, tensors)
    return write_bundle(Path(out_dir), tensors, facts, overwrite=overwrite)


def stored(params: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Parameters, by their paths, as the tensors of a bundle. DataError where the type cannot hold them."""
    if dtype != INT8:
        return {name: cast(name, array, dtype) for name, array in params.items()}
    return {key: a for name, array in params.items() for key, a in quantised(name, array).items()}


def _is_bundle(source: str | Path, which: str) -> bool:
    """Whether what is exported is a bundle, not a run."""
    if (Path(source) / which).is_dir():
        return False
    found = str(source) in bundled_names() or (Path(source) / TENSORS).is_file()
    if found and which != "best":
        raise UsageError(f"{source}: a model has no {which!r} checkpoint; leave --which out")
    return found


def _facts_of_bundle(source: str | Path) -> tuple[Json, dict[str, np.ndarray]]:
    """What a bundle says of itself, and its parameters."""
    bundle = load_bundle(source)
    facts = {name: bundle.config[name] for name in CARRIED if name in bundle.config}
    before = {"sha256": bundle.config["sha256"], "command": facts["training"].get("export_command")}
    facts["training"] = {**facts["training"], "exported_from": before}
    return facts, flatten(bundle.params)


def _facts_of_run(run_dir: Path, which: str) -> tuple[Json, dict[str, np.ndarray]]:
    """What a bundle of a checkpoint says of itself, and the checkpoint's parameters."""
    step, notes, params = _restore(run_dir, which)
    training = {
        **notes["origin"],
        "config": notes["config"],
        "step": step,
        "checkpoint": which,
        "scores": notes["scores"],
    }
    model, mel = notes["config"]["model"], notes["origin"]["mel"]
    return {"family": notes["family"], "model": model, "mel": mel, "training": training}, flatten(params)


def write_bundle(
    out_dir: Path,
    tensors: dict[str, np.ndarray],
    facts: Json,
    *,
    overwrite: bool = False,
    card: Callable[[str, Json, int], str] | None = None,
) -> Path:
    """Write tensors and facts as a bundle that appears whole or not at all.

    `card(name, config, bytes of tensors)` is the text of its README, a trained editor's unless given.
    """
    from safetensors.numpy import save

    out_dir = out_dir.absolute()
    if out_dir.exists() and not overwrite:
        raise CannotCreateError(f"{out_dir}: exists; choose another name or pass --overwrite")
    if out_dir.exists() and not _may_be_replaced(out_dir):
        raise CannotCreateError(f"{out_dir}: is not a model, so it is not replaced; choose another name")
    blob = save(tensors)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "editjax": __version__,
        **facts,
        "tensors": {name: facts_of(array) for name, array in sorted(tensors.items())},
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    config["digest"] = digest_of(config)
    text = (card or _model_card)(out_dir.name, config, len(blob))
    try:
        with atomic_folder(out_dir) as new:
            (new / TENSORS).write_bytes(blob)
            (new / CONFIG).write_text(dumped(config) + "\n", encoding="utf-8")
            (new / CARD).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputOutputError(f"{out_dir}: cannot write the model there ({error.strerror})") from error
    return out_dir


def _may_be_replaced(folder: Path) -> bool:
    """Whether a folder is a model or empty."""
    try:
        return not any(folder.iterdir()) or json.loads((folder / CONFIG).read_text())["format"] == FORMAT
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def load_bundle(model: str | Path) -> Bundle:
    """The bundle in a folder, or the one that ships with editjax under a name such as `final`.

    Raises NoInputError for an unknown name (listing the known ones) or a missing file, and DataError when the
    folder is not a bundle, is of a newer version, or was changed since it was written.
    """
    import jax

    path = find_bundle(model)
    config = read_config(path)
    settings, mel = _settings(config["family"], config["model"], config["mel"], str(path / CONFIG))
    if not ships(path):
        refuse_misfit(path, settings, config["tensors"])
    tensors = read_tensors(path / TENSORS, config)
    # Cast on the host: on the device every shape would be a program of its own to compile.
    params = jax.device_put(unflatten({name: a.astype(np.float32) for name, a in tensors.items()}))
    return Bundle(settings, params, mel, config, path)


def _settings(family: str, model: Any, mel: Any, where: str) -> tuple[Any, MelSettings]:
    """A model's settings and those of its mel; DataError where they are none, or not of each other."""
    settings: Any = from_json(settings_type(family), model, f"{where}: model")
    heard = from_json(MelSettings, mel, f"{where}: mel")
    for name in MEL_OF_MODELS:
        if getattr(settings, name, getattr(heard, name)) != getattr(heard, name):
            raise DataError(f"{where}: model and mel differ in {name}")
    return settings, heard


def _restore(run_dir: Path, which: str) -> tuple[int, Json, Any]:
    """Step, notes and parameters of a checkpoint, on one device."""
    import jax

    from editjax.checkpoint import Checkpoints, abstract
    from editjax.mesh import make_mesh, state_shardings

    folder = run_dir / which
    if not folder.is_dir():
        raise NoInputError(f"{run_dir}: no {which!r} checkpoint here; is it the folder of a training run?")
    with Checkpoints(folder, writable=False) as checkpoints:
        step = checkpoints.newest_whole()
        if step is None:
            raise NoInputError(f"{folder}: no checkpoint yet; wait for the first validation or use the last")
        notes = checkpoints.notes(step)
        if problem := _wrong_in_notes(notes):
            raise DataError(f"{folder}/{step}: {problem}; it was not written by editjax train")
        mel = notes["origin"].setdefault("mel", _mel_of(notes["config"]["model"]))
        settings, _ = _settings(notes["family"], notes["config"]["model"], mel, f"{folder}/{step}")
        shapes = jax.eval_shape(lambda key: family_of(settings).init(settings, key), jax.random.key(0))
        shardings = state_shardings(shapes, make_mesh(devices=jax.devices()[:1]))
        part = "ema_params" if notes["config"]["ema_decay"] else "params"
        return step, notes, checkpoints.restore(step, {part: abstract(shapes, shardings)})[part]


def _mel_of(model: Json) -> Json:
    """The mel of a model whose training noted none: that by default, as far as the model says no other."""
    said = {name: model[name] for name in MEL_OF_MODELS if name in model}
    return to_json(MelSettings()) | said


def _wrong_in_notes(notes: Json) -> str:
    """What is missing in a checkpoint's notes of what an export copies from them."""
    if not all(isinstance(notes.get(name), kind) for name, kind in NOTES.items()) or "scores" not in notes:
        return f"its notes lack one of {', '.join(NOTES)}, scores"
    if not {"model", "ema_decay"} <= set(notes["config"]):
        return "its notes have no settings of a model"
    return wrong_in_training({**notes["origin"], "scores": notes["scores"]})


def cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """A parameter as it is stored; DataError where the type cannot hold it."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, dtype)
    if not np.isfinite(stored).all():
        raise DataError(
            f"parameter {name} holds values that {dtype} cannot: export as float32 or train again"
        )
    return stored


def refuse_misfit(path: Path, settings: Any, tensors: Json) -> None:
    """DataError unless the tensors are those of the model that this version builds from the settings."""
    wanted = _shapes(settings)
    found = {name: facts["shape"] for name, facts in tensors.items() if not is_scale(name, tensors)}
    for name in sorted(wanted | found):
        there, here = found.get(name, "none"), wanted.get(name, "none")
        if there != here:
            raise DataError(
                f"{path}: {shown(name)} has shape {there}, wanted {here}: exported by a version of editjax "
                "with another architecture; use that version or train again"
            )


@functools.lru_cache(maxsize=8)
def _shapes(settings: Any) -> dict[str, list[int]]:
    """The shapes of a model's parameters by their paths; traced, which takes a second, so only once."""
    import jax

    init = sys.modules[type(settings).__module__].init  # of the family, whose loss would import much more
    shapes = jax.eval_shape(lambda key: init(settings, key), jax.random.key(0))
    return {tree_path(at): list(leaf.shape) for at, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


def _model_card(name: str, config: Json, size_bytes: int) -> str:
    training = config["training"]
    table = config["tensors"]
    numbers = sum(int(np.prod(facts["shape"])) for key, facts in table.items() if not is_scale(key, table))
    dtypes = sorted({facts["dtype"] for facts in table.values()})
    scores = training.get("scores") or {}
    shown = {figure: "–" if value is None else f"{value:.4g}" for figure, value in scores.items()}
    asked = EDITOR_OPTION.get(config["family"])
    used = "" if asked is None else f"    editjax edit RECORDING {asked}--model {name}\n\n"
    of = "the run's validation set"
    if "calibrated_on" in training:
        of = f"`{training['calibrated_on']}`, which it was calibrated on"
    rows = "".join(f"| {figure} | {value} |\n" for figure, value in shown.items())
    learnt = ""
    if type(step := training.get("step")) is int and "checkpoint" in training:
        learnt = f"{step:,} steps; the {training['checkpoint']} checkpoint. "
    return f"""# {name}

An editjax model of the family *{config["family"]}*: {numbers:,} parameters stored as {", ".join(dtypes)}
({size_bytes / 1e6:.1f} MB in `{TENSORS}`, SHA-256 `{config["sha256"]}`).

{_losses(config)}{used}## How it was trained

    {training.get("command", "(not recorded)")}
    {training.get("export_command", "(not recorded)")}

{learnt}Shards: manifest SHA-256
`{training.get("shards_sha256", "not recorded")}`, built with
`{json.dumps(training.get("settings", {}), sort_keys=True)}`.
All settings are in `{CONFIG}`.

## Scores on {of}

| figure | value |
|---|---|
{rows or "| (none) | |" + chr(10)}
## Licence

{config["licence"]}
"""


def _losses(config: Json) -> str:
    """What storing in whole numbers lost, for the model card; of whole numbers alone."""
    if not (loss := config.get("quantised")):
        return ""
    return (
        f"{loss['tensors']} of its tensors are whole numbers of 8 bits with a scale for each output channel. "
        f"What was lost,\nmeasured: errors have {loss['rms_error']:.2%} of the weights' root mean square, at "
        f"worst {loss['worst']['rms_error']:.2%} (`{loss['worst']['tensor']}`);\nthe largest error is "
        f"{loss['largest_error']:.2%} of the largest weight of its tensor. The scores below are those "
        "before;\n`editjax evaluate` measures those of a model that edits anew.\n\n"
    )
