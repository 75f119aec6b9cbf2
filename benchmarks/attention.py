"""Frame attention, 4 heads of 64, ±256 frames and 256 global tokens, against its peers, by length.

Ours are the kinds of `editjax.attention` that this machine can run: `block` everywhere, `mosaic` and `cudnn`
on a GPU, `splash` on a TPU. Peers: dense XLA, `jax.nn.dot_product_attention`, and where they are installed
torch's dense flash attention, FlexAttention, the same blocks in torch (all at once, or each through the flash
kernel), and tokamax. Every case is first proved equal, values and gradients, to the dense attention with its
mask. One core and CPU seconds without an accelerator, wall seconds and bfloat16 with one; medians, the cases
taking turns.

`sees` is what a query sees: `window + tokens`, `window`, `causal` (512 back) or `all`. FLOPs are those of the
pairs seen (4 a pair and channel forward, 10 more backward); bytes are the arrays once in and once out. The
roof is the longer of the two at this machine's own speed of products and copies, measured in the same run.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from report import (
    accelerated,
    clock,
    fastest_seconds,
    finish,
    growth_exponent,
    installed,
    median_seconds,
    options,
    require_agreement,
    use_one_core,
)

ON_GPU = shutil.which("nvidia-smi") is not None
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
if not ON_GPU:
    use_one_core()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from editjax.attention import Mask, Tokens, Window, attend  # noqa: E402

HEADS, WIDTH, TOKENS = 4, 64, 256
WINDOW = Window(256, 256)
PROOF_FRAMES = 1000
LENGTHS = (1024, 4096, 16384, 25856, 51712)
LONGEST_RUN, LONGEST_DENSE = 4096, 25856  # dense attention by XLA; dense attention of any kind
ACCELERATED = accelerated()
DTYPE = jnp.bfloat16 if ACCELERATED else jnp.float32
TOLERANCE = 0.02 if ACCELERATED else 2e-5  # of the largest entry
MASKS = {
    "window + tokens": WINDOW,
    "window": WINDOW,
    "causal": Window(512, 0),
    "all": Window(1 << 20, 1 << 20),
}


class Arrays(NamedTuple):
    """Queries, keys, values, tokens and the gradient of the result, (1, rows, heads, head width)."""

    q: Any
    k: Any
    v: Any
    global_k: Any
    global_v: Any
    d_out: Any


class Case(NamedTuple):
    """One way to attend: what a query sees, the longest recording for it, and how to make it ready.

    `ready(arrays, backward)` returns a call that waits for its result, out or (out, gradients), and what is
    known of it: seconds to compile, bytes allocated beside arguments and results.
    """

    sees: str
    longest: int
    ready: Callable[[Arrays, bool], tuple[Callable[[], Any], dict[str, float]]]
    backward: bool = True


def main() -> None:
    """Prove agreement, then time every case at every length it is for."""
    chosen = options(__doc__)
    lengths, rounds = ((1024, 2048), 2) if chosen.quick else (LENGTHS, 5)
    cases = {**jax_cases(), **torch_cases(), **tokamax_cases()}
    for name, case in cases.items():
        prove(name, case)
    roof = ceilings()
    rows = [row for n_frames in lengths for row in rows_at(n_frames, cases, rounds, roof)]
    packages = ["jax", *(name for name in ("torch", "tokamax") if installed(name))]
    finish("attention", rows, ratios_of(rows, lengths) | roof, packages, chosen.out)


def jax_cases() -> dict[str, Case]:
    """Ours that run here, dense XLA, and JAX's own."""
    kinds = {"cpu": ("block",), "gpu": ("block", "mosaic"), "tpu": ("block", "splash")}[jax.default_backend()]
    cases = {f"ours, {kind}": Case("window + tokens", 1 << 20, of_jax(ours(kind))) for kind in kinds}
    if ON_GPU:
        cases["ours, cudnn"] = Case("causal", 1 << 20, of_jax(ours("cudnn", MASKS["causal"], tokens=False)))
    cases["dense XLA"] = Case("window + tokens", LONGEST_RUN, of_jax(ours("dense")))
    cases["jax.nn, window"] = Case("window", LONGEST_RUN, of_jax(jax_window))
    return cases


def ours(kind: str, window: Window = WINDOW, tokens: bool = True) -> Callable[..., Any]:
    def function(q: Any, k: Any, v: Any, global_k: Any, global_v: Any) -> Any:
        mask = Mask(window, jnp.array([q.shape[1]]))
        seen = Tokens(global_k, global_v, jnp.ones((1, TOKENS), bool)) if tokens else None
        return attend(q, k, v, mask, seen, kind=kind)

    return function


def jax_window(q: Any, k: Any, v: Any, *_: Any) -> Any:
    return jax.nn.dot_product_attention(q, k, v, local_window_size=tuple(WINDOW), implementation="xla")


def of_jax(function: Callable[..., Any]) -> Callable[[Arrays, bool], Any]:
    """A JAX function as a case."""

    def ready(arrays: Arrays, backward: bool) -> tuple[Callable[[], Any], dict[str, float]]:
        compiled, known = compile_jax(function, arrays, backward)
        used = on_device(arrays) if backward else on_device(arrays)[:-1]
        return lambda: jax.block_until_ready(compiled(*used)), known

    return ready


def compile_jax(function: Callable[..., Any], arrays: Arrays, backward: bool) -> tuple[Any, dict[str, float]]:
    """The compiled call with what is known of it; arrays may be shapes alone."""

    def both(*given: Any) -> Any:
        out, pull = jax.vjp(function, *given[:-1])
        return out, pull(given[-1])

    shapes = [jax.ShapeDtypeStruct(a.shape, DTYPE) for a in arrays]
    began = time.perf_counter()
    lowered = jax.jit(both).lower(*shapes) if backward else jax.jit(function).lower(*shapes[:-1])
    compiled = lowered.compile()
    taken = time.perf_counter() - began
    return compiled, {"compile s": taken, "temporary MB": compiled.memory_analysis().temp_size_in_bytes / 1e6}


def torch_cases() -> dict[str, Case]:
    """Torch's kernels, and our algorithm in torch: nothing where torch is not installed."""
    if not installed("torch"):
        return {}
    from torch_attention import batched_blocks, dense, flash_blocks, flex, of_torch

    make = functools.partial(of_torch, on_gpu=ON_GPU)
    cases = {
        "torch SDPA, dense": Case("all", LONGEST_DENSE, make(dense)),
        "torch eager, blocks at once": Case("window + tokens", LONGEST_DENSE, make(batched_blocks(WINDOW))),
        "torch SDPA, block by block": Case("window + tokens", 1 << 20, make(flash_blocks(WINDOW))),
    }
    if ON_GPU or shutil.which("g++"):
        # On a CPU FlexAttention has no backward, and making its mask takes 20 GB at twice LONGEST_DENSE.
        longest = 1 << 20 if ON_GPU else LONGEST_DENSE
        cases["torch FlexAttention"] = Case("window + tokens", longest, make(flex(WINDOW)), backward=ON_GPU)
    return cases


def tokamax_cases() -> dict[str, Case]:
    """Tokamax's kernel for Hopper, which has the window but no tokens."""
    if not (ON_GPU and installed("tokamax")):
        return {}
    import tokamax

    def function(q: Any, k: Any, v: Any, *_: Any) -> Any:
        return tokamax.dot_product_attention(
            q, k, v, local_window_size=tuple(WINDOW), implementation="mosaic"
        )

    return {"tokamax, mosaic": Case("window", 1 << 20, of_jax(function))}


def draw(n_frames: int) -> Arrays:
    rng = np.random.default_rng(0)
    rows = (n_frames, n_frames, n_frames, TOKENS, TOKENS, n_frames)
    return Arrays(*(rng.normal(size=(1, n, HEADS, WIDTH)).astype(np.float32) for n in rows))


def on_device(arrays: Arrays) -> tuple[Any, ...]:
    return tuple(jnp.asarray(a, DTYPE) for a in arrays)


def prove(name: str, case: Case) -> None:
    """Values and gradients against the dense attention in float32, to the largest entry of each."""
    arrays = draw(PROOF_FRAMES)
    tokens = case.sees == "window + tokens"
    rounded = Arrays(*(np.asarray(a, np.float32) for a in on_device(arrays)))
    reference = ours("dense", MASKS[case.sees], tokens)
    out, pull = jax.vjp(reference, *rounded[:-1])
    expected = (out, *pull(rounded.d_out))
    found = case.ready(arrays, case.backward)[0]()
    found = (found[0], *found[1]) if case.backward else (found,)
    for part, wanted in zip(found, expected[: len(found)], strict=True):
        wanted = np.asarray(wanted, np.float64)
        part = np.zeros_like(wanted) if part is None else np.asarray(part, np.float64)
        difference = np.abs(part - wanted).max() / max(np.abs(wanted).max(), 1e-30)
        require_agreement(name, float(difference), TOLERANCE)


def ceilings() -> dict[str, float]:
    """What this machine does at most with the type used: products (GFLOP/s) and copies (GB/s, both ways)."""
    size, length = (8192, 1 << 28) if ACCELERATED else (2048, 1 << 24)
    a, b = jnp.ones((size, size), DTYPE), jnp.ones((length,), DTYPE)
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda b: -b)
    calls = {
        "product": lambda: product(a).block_until_ready(),
        "copy": lambda: copy(b).block_until_ready(),
    }
    seconds = fastest_seconds(calls, 10, clock())
    return {
        "matrix GFLOP/s": 2e-9 * size**3 / seconds["product"],
        "copy GB/s": 2e-9 * b.nbytes / seconds["copy"],
    }


def rows_at(
    n_frames: int, cases: dict[str, Case], rounds: int, roof: dict[str, float]
) -> list[dict[str, Any]]:
    """A row for each case at one length, forward and with its backward pass; the cases take turns."""
    arrays, calls, known = draw(n_frames), {}, {}
    for name, case in cases.items():
        for backward in (False, True)[: 1 + case.backward]:
            if n_frames <= case.longest:
                calls[name, backward], known[name, backward] = case.ready(arrays, backward)
    seconds = median_seconds(
        {f"{name}|{back}": call for (name, back), call in calls.items()}, rounds, clock()
    )
    rows = []
    for (name, backward), facts in known.items():
        taken = seconds[f"{name}|{backward}"]
        flops, size = work(n_frames, cases[name].sees, backward)
        bound = max(1e-9 * flops / roof["matrix GFLOP/s"], 1e-9 * size / roof["copy GB/s"])
        rows.append(
            {
                "frames": n_frames,
                "case": name,
                "pass": "forward + backward" if backward else "forward",
                "sees": cases[name].sees,
                "s": taken,
                "GFLOP": 1e-9 * flops,
                "MB": 1e-6 * size,
                "of the roof": bound / taken,
                **facts,
            }
        )
    return rows + dense_memory(arrays, n_frames)


def dense_memory(arrays: Arrays, n_frames: int) -> list[dict[str, Any]]:
    """What `jax.nn.dot_product_attention` would allocate at lengths where it is not run.

    Its mask alone takes compilation 20 GB of memory at twice LONGEST_DENSE.
    """
    if not LONGEST_RUN < n_frames <= LONGEST_DENSE:
        return []
    facts = compile_jax(jax_window, arrays, backward=True)[1]
    return [
        {
            "frames": n_frames,
            "case": "jax.nn, window",
            "pass": "forward + backward",
            "sees": "window",
            **facts,
        }
    ]


def work(n_frames: int, sees: str, backward: bool) -> tuple[float, float]:
    """FLOPs of the pairs seen, and bytes of the arrays once in and once out."""
    window = MASKS[sees]
    place = np.arange(n_frames)
    pairs = n_frames + np.minimum(place, window.left).sum() + np.minimum(place, window.right).sum()
    pairs += TOKENS * n_frames if sees == "window + tokens" else 0
    arrays = 12 if backward else 4  # q k v out; and once more with the gradients of all
    size = arrays * n_frames * HEADS * WIDTH * jnp.dtype(DTYPE).itemsize
    return float(pairs) * HEADS * WIDTH * (14 if backward else 4), float(size)


def ratios_of(rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> dict[str, float]:
    """How often ours goes into each peer at every length, and growth from the second length to the last."""
    best = {"cpu": "ours, block", "gpu": "ours, mosaic", "tpu": "ours, splash"}[jax.default_backend()]
    by = {(row["case"], row["pass"], row["frames"]): row for row in rows}
    ratios = {}
    for (name, passed, n_frames), row in by.items():
        own = by[best, passed, n_frames]
        if name.startswith("ours") or n_frames == lengths[0]:
            continue
        if "s" in row:
            ratios[f"{name} / {best}, {n_frames} frames, {passed}"] = row["s"] / own["s"]
        if "temporary MB" in row:
            memory = row["temporary MB"] / own["temporary MB"]
            ratios[f"memory, {name} / {best}, {n_frames} frames, {passed}"] = memory
    grown = lengths[1:] if len(lengths) > 2 else lengths
    for passed in ("forward", "forward + backward"):
        for what in ("s", "temporary MB"):
            values = [by[best, passed, n][what] for n in grown]
            ratios[f"growth exponent, {what}, {passed}"] = growth_exponent(grown, values)
    return ratios


if __name__ == "__main__":
    main()
