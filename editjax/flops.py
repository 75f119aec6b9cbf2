"""How much of what its devices could do a training step does: model FLOPs and their utilisation (MFU).

Counted are the matrix products and convolutions that the model asks for, twice a multiply-add, on the batch
with its padding: not what is computed anew to save memory, and of attention the pairs that the window lets
see, whatever the kernel makes of them (Chowdhery et al. 2022, "PaLM", appendix B). They are read off the
step's jaxpr: XLA's own count takes the body of a loop once, however often it runs, and sees into no kernel.
The search for matches, which no gradient passes and whose passes depend on the data, is left out: it is less
than one in a hundred in training.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from editjax.attention import BACKWARD, FORWARD
from editjax.badput import Badput
from editjax.models.match import SEARCH

RECOMPUTED = "rematted_computation"  # where `jax.checkpoint` puts what it runs once more
PEAKS = {
    # NVIDIA's data sheets "A100" (all of its forms), "H100" and "H200" (SXM; half of the sparse figure).
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    # Google Cloud's documentation, "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e"; JAX calls them so or so.
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""Products of bfloat16 in FLOP/s that one device of a kind (`jax.Device.device_kind`) does at most."""


class Call(NamedTuple):
    """One step: when it was handed to the device, what its shape took to compile, and its model FLOPs."""

    began: float
    compile_s: float
    flops: float | None


class Counted:
    """A jitted function of (state, batch, …), compiled for every shape of its batch; `call` is the last."""

    def __init__(self, jitted: Any, spent: Badput) -> None:
        self._jitted, self._spent = jitted, spent
        self._flops: dict[tuple, float | None] = {}
        self.call = Call(0.0, 0.0, None)

    def __call__(self, state: Any, batch: Any, *rest: Any) -> Any:
        asked, now = self._spent.now(), self._spent.now
        shape = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if new := shape not in self._flops:
            with self._spent.on("compile"):
                traced = self._jitted.trace(state, batch, *rest)
                traced.lower().compile()  # `jit` keeps it for the call
                self._flops[shape] = model_flops(traced.jaxpr.jaxpr)
        began = now()
        self.call = Call(began, began - asked if new else 0.0, self._flops[shape])
        return self._jitted(state, batch, *rest)


def peak_flops_s() -> float | None:
    """What all devices together do at most; None where a kind's figure is not known, as for CPUs."""
    peaks = [PEAKS.get(device.device_kind) for device in jax.devices()]
    return None if None in peaks else sum(peak for peak in peaks if peak)


def model_flops(jaxpr: Any) -> float | None:
    """Model FLOPs of a jaxpr; None where its products depend on the data, or are hidden in a kernel."""
    flops = _flops(jaxpr)
    return None if math.isnan(flops) else flops


def _flops(jaxpr: Any) -> float:
    return float(sum(_flops_of(equation) for equation in jaxpr.eqns))


def _flops_of(equation: Any) -> float:
    """Model FLOPs of one equation and all within it; NaN where nobody can say."""
    name, params, where = equation.primitive.name, equation.params, str(equation.source_info.name_stack)
    if RECOMPUTED in where or SEARCH in where:
        return 0.0
    if name == "name" and params["name"].startswith((FORWARD, BACKWARD)):
        kind, sees = params["name"].split(":")
        products = 2 if kind == FORWARD else 4
        return 2.0 * products * int(sees) * equation.outvars[0].aval.size
    if FORWARD in where:
        return 0.0
    inside = [_flops(jaxpr) for jaxpr in _jaxprs(params)]
    match name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        case "conv_general_dilated":
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            taps = kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            return 2.0 * out.size * taps / math.prod(params["lhs_dilation"])
        case "pallas_call":
            return math.nan
        case "while":
            return math.nan if any(inside) else 0.0
        case "cond":
            return inside[0] if len(set(inside)) == 1 else math.nan
        case "scan":
            return params["length"] * sum(inside)
        case "shard_map":
            split = [params["mesh"].shape[axis] for axis in params["newly_manual_axes"]]
            return math.prod(split) * sum(inside)
    return sum(inside)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters, by themselves or in a tuple."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            jaxpr = getattr(one, "jaxpr", one)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
