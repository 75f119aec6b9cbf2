"""What every benchmark shares: options, one pinned core, interleaved timing, the table, the JSON line.

`python benchmarks/NAME.py [--quick] [--out FILE]` proves agreement first, prints a table, and ends its
standard output with one line of JSON:
{"bench", "device", "versions", "rows": [...], "ratios": {"<peer or case>": number}}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def options(description: str | None, **flags: str) -> argparse.Namespace:
    """The shared command line: `quick` (bool), `out` (Path or None), and more flags with their help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, for a smoke test")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    for name, help_text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=help_text)
    return parser.parse_args()


def installed(peer: str) -> bool:
    """Whether an optional peer can be imported; one that cannot is left out, with a line on stderr."""
    found = find_spec(peer) is not None
    if not found:
        print(f"{peer} is not installed: left out", file=sys.stderr)
    return found


def use_one_core() -> None:
    """Pin this process to one core and one thread; call before importing NumPy, JAX or a peer."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def fastest_seconds(
    cases: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Seconds of each case: the least of `rounds`, the cases taking turns, after one untimed call each.

    The clock counts CPU seconds; pass `time.perf_counter` where an accelerator or several threads work.
    """
    return {name: min(taken) for name, taken in _by_turns(cases, rounds, clock).items()}


def median_seconds(
    cases: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """The same, but the median of the rounds."""
    return {name: statistics.median(taken) for name, taken in _by_turns(cases, rounds, clock).items()}


def _by_turns(
    cases: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            start = clock()
            case()
            seconds[name].append(clock() - start)
    return seconds


def accelerated() -> bool:
    """Whether JAX, imported before, has more than a CPU."""
    return "jax" in sys.modules and sys.modules["jax"].default_backend() != "cpu"


def clock() -> Callable[[], float]:
    """CPU seconds; the wall's where an accelerator works."""
    return time.perf_counter if accelerated() else time.process_time


def matrix_gflops(rounds: int = 5) -> float:
    """The most that a matrix product does here, in 10⁹ operations a second: NumPy's in float32, or an
    accelerator's in bfloat16."""
    import numpy as np

    if accelerated():
        import jax
        import jax.numpy as jnp

        size, a = 8192, jnp.ones((8192, 8192), jnp.bfloat16)
        product = jax.jit(lambda a: a @ a)
        cases = {"product": lambda: product(a).block_until_ready()}
    else:
        size, b = 1024, np.random.default_rng(0).random((1024, 1024), np.float32)
        cases = {"product": lambda: b @ b}
    return 2e-9 * size**3 / fastest_seconds(cases, rounds, clock())["product"]


def require_agreement(name: str, difference: float, tolerance: float) -> None:
    """End the benchmark unless a peer computes the same thing: a faster different answer proves nothing."""
    if not difference <= tolerance:
        sys.exit(f"{name} differs by {difference:.3g}, more than {tolerance:.3g}: not timed")
    print(f"{name}: agrees within {difference:.2g}", file=sys.stderr)


def growth_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log size between the ends: 1 is linear."""
    return math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])


def finish(
    bench: str,
    rows: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, float],
    packages: Sequence[str],
    out: Path | None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Print the table and the JSON line, and write the JSON to `out` when given.

    `about` says what was measured, beside the versions of `packages`.
    """
    result = {
        "bench": bench,
        "device": device(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in packages}
        | dict(about or {}),
        "rows": (shown_rows := [_rounded(row) for row in rows]),
        "ratios": (shown_ratios := _rounded(ratios)),
    }
    _print_table(shown_rows)
    for name, ratio in shown_ratios.items():
        print(f"{name}: {ratio}")
    line = json.dumps(result)
    if out:
        out.write_text(line + "\n")
    print(line, flush=True)


def device() -> str:
    """Processor and cores in use, and the accelerators of a JAX that is already imported."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = [f"{_processor()}, {cores} core{'s' * (cores != 1)}"]
    if accelerated():
        names += [accelerator.device_kind for accelerator in sys.modules["jax"].devices()]
    return " + ".join(names)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([str(row.get(key, "")) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
