"""A trained model → the parameters that a run begins with."""

from pathlib import Path
from typing import Any

import jax

from editjax.bundle import flatten, unflatten
from editjax.config import to_json
from editjax.errors import UsageError
from editjax.export import load_bundle, refuse_misfit
from editjax.family import family_of
from editjax.models.layers import RUNNING
from editjax.models.pointer import PointerSettings
from editjax.models.policy import PolicySettings
from editjax.step import TrainConfig
from editjax.tune import TuneSettings
from editjax.tune_quality import refuse_stranger

NO_SHAPE = ("dtype", "attention", "match_reach", "dropout")
"""Settings of a model that its parameters do not depend on."""

GROWN = ("stem_width", "kinds")
"""Parts that change no edit while they are fresh: a model without one may grow it."""


def begin_from(model: str | Path, config: TrainConfig) -> tuple[Any, dict[str, str]]:
    """A trained model's parameters, and how a run notes them; UsageError for another family or architecture.

    Parts that it does not have and that change nothing at first are fresh. A label policy may begin from the
    pointer network that it hears with: then all but the encoder is fresh.
    """
    bundle = load_bundle(model)
    wanted: Any = config.model
    hears = isinstance(wanted, PolicySettings) and isinstance(bundle.settings, PointerSettings)
    if not hears and not isinstance(bundle.settings, type(wanted)):
        own, other = family_of(wanted).name, bundle.config["family"]
        raise UsageError(f"{model}: a model of the family {other!r}, but the config trains {own!r}")
    name, settings = ("model.hears", wanted.hears) if hears else ("model", wanted)
    theirs, ours = (_shapely(to_json(one), name) for one in (bundle.settings, settings))
    grown = [name for name in ours if name.split(".")[-1] in GROWN and ours[name] and not theirs.get(name)]
    for name in ours:
        if name not in grown and theirs.get(name) != ours[name]:
            raise UsageError(f"{model}: has {name} {theirs.get(name)}, but the config wants {ours[name]}")
    refuse_misfit(bundle.path, bundle.settings, bundle.config["tensors"])
    params = {RUNNING: {"encoder": bundle.params["encoder"]}} if hears else bundle.params
    if hears or grown:
        params = unflatten({**flatten(_fresh(config)), **flatten(params)})
    if isinstance(config.loss, TuneSettings):
        refuse_stranger(model, params, config.loss)
    return params, {"start_from": str(model), "start_from_sha256": bundle.config["sha256"]}


def _shapely(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings that parameters depend on, and those within them, by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _shapely(value, f"{name}.{key}")
        elif key not in NO_SHAPE:
            found[f"{name}.{key}"] = value
    return found


def _fresh(config: TrainConfig) -> Any:
    init = jax.jit(family_of(config.model).init, static_argnums=0)
    return init(config.model, jax.random.key(config.seed))
