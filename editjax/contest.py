"""Trained models of every family as editors of the same table: a task comes in, the frames to play go out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from editjax.edits import to_pointers
from editjax.errors import DataError, UsageError
from editjax.evaluate import (
    MODEL,
    Editor,
    Task,
    at_lengths,
    network_editor,
    teacher_forced,
    trivial_editors,
)
from editjax.export import find_bundle, read_config
from editjax.mel import MelSettings

NAMES = {"pointer": MODEL, "scorer": "anomaly scorer", "policy": "label policy"}


class Contestant(NamedTuple):
    """A model that edits: its name in the table, and what it hears. `examine` gives further figures."""

    name: str
    edit: Editor
    mel: MelSettings
    examine: Callable[[Task], dict[str, float]] | None = None


def contestant(model: str | Path, lengths: Sequence[float] = ()) -> Contestant:
    """A bundled model or a model folder of a family that edits; `lengths` are asked of pointer networks.

    Raises what loading it does, and DataError for a model that does not edit.
    """
    family = read_config(find_bundle(model))["family"]
    match family:
        case "pointer":
            return _pointer(model, lengths)
        case "scorer":
            return _scorer(model)
        case "policy":
            return _labeller(model)
    raise DataError(f"{model}: a model of the family {family!r}, which does not edit")


def editors_of(contestants: Sequence[Contestant]) -> dict[str, Editor]:
    """The editors by their names, then those that need no model.

    Raises UsageError when they do not hear the same mel.
    """
    named: dict[str, Editor] = {}
    for one in contestants:
        if one.mel != contestants[0].mel:
            raise UsageError(f"{one.name}: hears another mel than {contestants[0].name}; evaluate it alone")
        count = sum(name.split(" (")[0] == one.name for name in named)
        named[f"{one.name} ({count + 1})" if count else one.name] = one.edit
    return named | trivial_editors()


def _pointer(model: str | Path, lengths: Sequence[float]) -> Contestant:
    from editjax.network import load_model

    network = load_model(model)

    def examine(task: Task) -> dict[str, float]:
        row = teacher_forced(network, task)
        return row | at_lengths(network, task, lengths) if lengths else row

    return Contestant(NAMES["pointer"], network_editor(network), network.mel, examine)


def _scorer(model: str | Path) -> Contestant:
    from editjax.scorer import load_scorer

    scorer = load_scorer(model)

    def edit(task: Task) -> np.ndarray:
        return to_pointers(scorer.edit(scorer.anomaly(task.mel_TF), task.grid, task.source), task.grid)

    return Contestant(NAMES["scorer"], edit, scorer.mel)


def _labeller(model: str | Path) -> Contestant:
    from editjax.labeller import load_labeller

    labeller = load_labeller(model)

    def edit(task: Task) -> np.ndarray:
        return to_pointers(labeller.edit(task.mel_TF, task.grid, task.source, levels=False), task.grid)

    return Contestant(NAMES["policy"], edit, labeller.mel)
