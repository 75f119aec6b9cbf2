"""Weights as 8-bit whole numbers: a scale for each output channel, and what is lost by it.

A tensor of several axes whose last one is the output is stored as round(w / s), from −127 to 127, with s the
largest |w| of the channel by 127 (symmetric, per channel: Krishnamoorthi 2018, "Quantizing deep convolutional
networks for efficient inference"). Its scales are a float32 tensor beside it, named `NAME:scale`. Vectors and
small tensors stay float32: they are a small part of a model, and much hangs on them.
"""

import math
from typing import Any

import numpy as np

from editjax.config import Json
from editjax.errors import DataError, shown

INT8 = "int8"
LEVELS = 127
LEAST_AXES, LEAST_NUMBERS = 2, 1024
SCALE = ":scale"
LOST = ("tensors", "rms_error", "largest_error", "worst")


def quantised(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """A float32 parameter as it is stored: int8 and its scales, or as it is where it is small.

    Raises DataError where it holds values that are not finite.
    """
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise DataError(f"parameter {name} holds values that are not finite: train again")
    if array.ndim < LEAST_AXES or array.size < LEAST_NUMBERS:
        return {name: array}
    largest = np.abs(array).max(tuple(range(array.ndim - 1)))
    scale = np.maximum(largest / np.float32(LEVELS), np.finfo(np.float32).tiny)  # of nothing but zeros too
    levels = np.clip(np.rint(array / scale), -LEVELS, LEVELS).astype(np.int8)
    return {name: levels, name + SCALE: scale}


def restored(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `quantised` made, as float32 parameters. Raises ValueError for what it never makes."""
    found = {}
    for name, array in tensors.items():
        if array.dtype != np.int8:
            found[name] = array
            continue
        scale = tensors[name + SCALE]
        if not (scale > 0).all() or (array < -LEVELS).any():
            raise ValueError(f"tensor {shown(name)}: whole numbers below −{LEVELS} or scales not above 0")
        with np.errstate(over="ignore"):
            found[name] = array * scale
        if not np.isfinite(found[name]).all():
            raise ValueError(f"tensor {shown(name)}: scales so large that its values are not finite")
    return {name: array for name, array in found.items() if not is_scale(name, tensors)}


def is_scale(name: str, tensors: Any) -> bool:
    """Whether a name of a table or of tensors is that of the scales of another one there."""
    return name.endswith(SCALE) and name.removesuffix(SCALE) in tensors


def wrong_in_scales(table: Json) -> str:
    """What is wrong with a table of tensors, otherwise sound, as far as int8 and scales go."""
    for name, facts in table.items():
        scale = table.get(name + SCALE)
        if facts["dtype"] == INT8:
            if len(facts["shape"]) < LEAST_AXES:
                return f"tensor {shown(name)}: int8 without axes before the last: {shown(facts['shape'])}"
            if scale != {"shape": facts["shape"][-1:], "dtype": "float32"}:
                return f"tensor {shown(name)}: int8 needs float32 scales, one for each of its last axis"
        elif scale is not None:
            return f"tensor {shown(name)}: has scales, but is {facts['dtype']}"
    return ""


def wrong_in_losses(loss: Any) -> str:
    """What is wrong with what a bundle says that it lost, if it says so."""
    if loss is None:
        return ""
    whole = isinstance(loss, dict) and set(loss) == set(LOST) and isinstance(loss["worst"], dict)
    if not whole or set(loss["worst"]) != {"tensor", "rms_error"} or type(loss["tensors"]) is not int:
        return f"quantised: {shown(loss)} are not the losses that editjax export notes"
    figures = loss["rms_error"], loss["largest_error"], loss["worst"]["rms_error"]
    if any(type(figure) is not float or not 0 <= figure < 2 for figure in figures):
        return f"quantised: {shown(figures)} are no errors"
    return ""


def lost(before: dict[str, np.ndarray], stored: dict[str, np.ndarray]) -> Json:
    """How far stored parameters are from what they were.

    `rms_error` is the root mean square of all errors of int8 tensors by that of their weights,
    `largest_error` the largest error by the largest weight of its tensor, and `worst` the tensor whose own
    `rms_error` is the largest.
    """
    after = restored(stored)
    names = [name for name, array in stored.items() if array.dtype == np.int8]
    square, power, own, largest = 0.0, 0.0, {"": 0.0}, 0.0
    for name in names:
        was = np.asarray(before[name], np.float64)
        error = np.abs(after[name] - was)
        squares, powers = float((error**2).sum()), float((was**2).sum())
        square, power = square + squares, power + powers
        if powers:
            own[name] = math.sqrt(squares / powers)
            largest = max(largest, float(error.max() / np.abs(was).max()))
    worst = max(own, key=lambda name: own[name])
    return {
        "tensors": len(names),
        "rms_error": math.sqrt(square / power) if power else 0.0,
        "largest_error": largest,
        "worst": {"tensor": worst, "rms_error": own[worst]},
    }
