"""Devices → mesh, and parameter paths → how each array is laid over that mesh.

Axes of the mesh: `data` (the model copied, examples split), `fsdp` (examples *and* parameters split),
`tensor` (heads and hidden widths split), `seq` (time split). On one device every axis is 1: nothing changes.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from editjax.errors import UsageError

AXES = ("data", "fsdp", "tensor", "seq")
EXAMPLES, HEADS, TIME = ("data", "fsdp"), "tensor", "seq"  # what of an array is split over which axes
REPLICATED = PartitionSpec()
SMALLEST_SPLIT = 1 << 16  # elements; below this a copy everywhere is cheaper than gathering

Rules = Sequence[tuple[str, PartitionSpec]]
"""The end of a parameter's path → the layout of its last axes; the first match wins. Optimizer moments end in
their parameter's path, so they follow it. Along its longest other axis an array is split over `fsdp`."""

WIDTHS: Rules = (
    (r"up/kernel", PartitionSpec(None, "tensor")),
    (r"down/kernel", PartitionSpec("tensor", None)),
    (r"(window|self_\d+)/out/kernel", PartitionSpec("tensor", None)),
)
"""Hidden widths of feed-forward layers and the heads of attention: what goes in is whole, what comes out is
summed over devices."""


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
    return Mesh(ordered(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def ordered(devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices, those of a slice and of a process side by side, whatever their order was.

    So what the mesh splits finest stays in a process, then in a slice (of TPUs, or of GPUs that NVLink
    connects), where their numbers allow it, and the examples of a process lie side by side. `jax.make_mesh`
    refuses several slices, which GPUs of two machines are, and deals out the chips of a TPU's processes.
    """
    processes: dict[tuple[int, int], list[jax.Device]] = {}
    for device in sorted(devices, key=_on_path):
        processes.setdefault((getattr(device, "slice_index", 0), device.process_index), []).append(device)
    corners = {process: min(map(_place, own)) for process, own in processes.items()}
    first = sorted(processes, key=lambda process: (process[0], corners[process]))
    return np.array([device for process in first for device in processes[process]], dtype=object)


def _place(device: jax.Device) -> tuple[int, ...]:
    """A TPU's coordinates and core, else the device's number: the `coords` of GPUs are something else."""
    return (*device.coords, device.core_on_chip) if device.platform == "tpu" else (device.id, 0, 0, 0)


def _on_path(device: jax.Device) -> tuple[int, ...]:
    """Where a device is on a path through those of a process that goes from neighbour to neighbour."""
    x, y, z, core = _place(device)
    y = -y if z % 2 else y
    return z, y, -x if (y + z) % 2 else x, core


def state_shardings(abstract_state: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """A NamedSharding for every leaf of a tree of shapes, by its path (`opt_state/0/mu/encoder/kernel`)."""

    def sharding(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, _layout(tree_path(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def tree_path(path: tuple) -> str:
    """A key path of jax.tree_util as names joined by `/`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every array of a batch: split over the axes of examples and of time.

    An array's second axis is time where its name ends in `_BT` or `_BN`, and what follows.
    """

    def sharding(path: tuple, x: Any) -> NamedSharding:
        axes = tree_path(path).rsplit("_", 1)[-1]
        time = [split_over(mesh, TIME, x.shape[1])] if axes[1:2] in ("T", "N") else []
        return NamedSharding(mesh, PartitionSpec(EXAMPLES, *time))

    return jax.tree_util.tree_map_with_path(sharding, batch)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Host arrays of this process's examples → global arrays, laid out as `batch_shardings` says."""
    _, shares = share_of_examples(mesh)

    def place(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_process_local_data(sharding, x, (len(x) * shares, *x.shape[1:]))

    return jax.tree.map(place, batch, batch_shardings(batch, mesh))


def split_over(mesh: AbstractMesh | Mesh, axes: str | tuple[str, ...], length: int) -> Any:
    """Those of the axes that the mesh has, where they divide a length, else None: for a PartitionSpec."""
    names = tuple(name for name in ((axes,) if isinstance(axes, str) else axes) if name in mesh.shape)
    return names if names and length % math.prod(mesh.shape[name] for name in names) == 0 else None


def share_of_examples(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which share of every batch this process makes, of how many: (0, 1) is all of it.

    Processes between which only parameters or time are split make the same share. UsageError when the
    examples of a process do not lie side by side.
    """
    process = jax.process_index() if process is None else process
    rows = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    own = [row for row, devices in enumerate(rows) if process in {d.process_index for d in devices}]
    if own != list(range(own[0], own[-1] + 1)) or len(rows) % len(own) or own[0] % len(own):
        raise UsageError(
            f"process {process} would train on rows {own} of {len(rows)}, which are no share: change --mesh.*"
        )
    return own[0] // len(own), len(rows) // len(own)


def _layout(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> PartitionSpec:
    if math.prod(shape) < SMALLEST_SPLIT:
        return REPLICATED
    asked = next((spec for pattern, spec in rules if re.search(rf"(^|/){pattern}$", path)), REPLICATED)
    spec: list[str | None] = [None] * max(len(shape) - len(asked), 0) + list(asked)
    if len(spec) > len(shape):
        return REPLICATED
    spec = [name if name and _divides(mesh, name, n) else None for name, n in zip(spec, shape, strict=True)]
    free = [axis for axis, n in enumerate(shape) if spec[axis] is None and _divides(mesh, "fsdp", n)]
    if free and "fsdp" not in spec:
        spec[max(free, key=lambda axis: shape[axis])] = "fsdp"
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def _divides(mesh: Mesh, name: str, length: int) -> bool:
    """Whether an axis of more than one device divides a length."""
    return mesh.shape[name] > 1 and length % mesh.shape[name] == 0
