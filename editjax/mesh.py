"""Devices → mesh, and parameter paths → how each array is laid over that mesh.

Axes of the mesh: `data` (the model copied, examples split), `fsdp` (examples *and* parameters split),
`tensor` (widths and heads split), `seq` (time split). On one device every axis is 1 and nothing changes.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from editjax.errors import UsageError

AXES = ("data", "fsdp", "tensor", "seq")
EXAMPLES = PartitionSpec(("data", "fsdp"))  # the leading axis of every array of a batch
REPLICATED = PartitionSpec()
SMALLEST_SPLIT = 1 << 16  # elements; below this a copy everywhere is cheaper than gathering

# (end of a parameter's path, its layout): first match wins. Optimizer moments end in their parameter's path,
# so they follow it. What no rule names is split over `fsdp` along its longest divisible axis.
Rules = Sequence[tuple[str, PartitionSpec]]


@dataclass(frozen=True)
class MeshSettings:
    """Devices along each axis; `data = -1` takes what the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    seq: int = 1


def make_mesh(settings: MeshSettings = MeshSettings(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (or those given) as a mesh over `AXES`; UsageError when the counts do not multiply out."""
    devices = jax.devices() if devices is None else list(devices)
    others = settings.fsdp * settings.tensor * settings.seq
    data = len(devices) // others if settings.data == -1 else settings.data
    sizes = (data, settings.fsdp, settings.tensor, settings.seq)
    if math.prod(sizes) != len(devices) or min(sizes) < 1:
        wanted = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise UsageError(f"mesh {wanted} does not use {len(devices)} devices: change --mesh.* or the devices")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def state_shardings(abstract_state: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """A NamedSharding for every leaf of a tree of shapes, by its path (`opt_state/0/mu/encoder/kernel`)."""

    def sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, _layout(tree_path(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def tree_path(path: tuple) -> str:
    """A key path of jax.tree_util as names joined by `/`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays of this process's examples → global arrays split over the example axes."""
    sharding = NamedSharding(mesh, EXAMPLES)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def _layout(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    for pattern, spec in rules:
        if len(spec) <= len(shape) and re.search(rf"(^|/){pattern}$", path):
            return spec
    size = mesh.shape["fsdp"]
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or math.prod(shape) < SMALLEST_SPLIT or not divisible:
        return REPLICATED
    longest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, "fsdp")
