"""× real time of `editjax edit` on 1, 3 and 10 minutes: a new process, and warm, split into its steps.

The recordings are simulated sessions, one after another, as 44.1 kHz stereo 16-bit WAV. Agreement first: the
command writes the samples that `editjax.edit` returns, Σ(stop − start) of them, and every sample outside the
fades is the recording's own. `cold` is the wall clock of the whole command in a new process; `warm` that of
the fastest call of an editor that has been called before, split into `read` (decoding, beside the mel),
`mel`, `decide` (of which `beats`, `encode`, `decode`), `place` and `render`.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report

from editjax import network
from editjax.audio import ArrayReader, Reader, Writer
from editjax.editor import EditSettings, edit
from editjax.edits import duration_samples
from editjax.render import faded_spans
from editjax.session import SimulateSettings
from editjax.simulate import simulate_session

MINUTES = (1, 3, 10)
QUICK_MINUTES = (1,)
RATE_HZ = 44_100
WARM_CALLS = 3
PACKAGES = ("numpy", "scipy", "soundfile", "soxr", "jax")


def main() -> None:
    options = report.options(__doc__)
    minutes = QUICK_MINUTES if options.quick else MINUTES
    with tempfile.TemporaryDirectory() as folder:
        paths = {length: write_recording(Path(folder) / f"{length}.wav", length) for length in minutes}
        rows = [row for length, path in paths.items() for row in measure(path, length)]
    ratios = {f"{row['editor']}, {row['minutes']} min, warm": row["× real time, warm"] for row in rows}
    for editor in dict.fromkeys(row["editor"] for row in rows):
        of_editor = [row for row in rows if row["editor"] == editor]
        if len(of_editor) > 1:
            sizes, seconds = zip(*((row["minutes"], row["warm s"]) for row in of_editor), strict=True)
            ratios[f"{editor}, growth exponent"] = report.growth_exponent(sizes, seconds)
    report.finish("edit", rows, ratios, PACKAGES, options.out)


def write_recording(path: Path, minutes: int) -> Path:
    """So many minutes of simulated sessions, the two channels at different levels."""
    settings = SimulateSettings(sample_rate_hz=RATE_HZ, min_length_s=60.0, max_length_s=120.0)
    wanted, session = minutes * 60 * RATE_HZ, 0
    with Writer(path, sample_rate_hz=RATE_HZ, channels=2, container="WAV", subtype="PCM_16") as writer:
        while writer.frames < wanted:
            raw_S = simulate_session((0, session), settings).raw_S[: wanted - writer.frames]
            writer.write(np.stack([raw_S, 0.8 * raw_S], axis=1).astype(np.float32))
            session += 1
    return path


def measure(path: Path, minutes: int) -> list[dict[str, float | str]]:
    """A row for each editor."""
    rows: list[dict[str, float | str]] = []
    for editor in ("pointer", "silence"):
        out = path.with_name(f"{editor}_{path.name}")
        cold_s = run_command(path, out, editor)
        require_same(path, out, editor)
        calls = [call(path, out, editor) for _ in range(WARM_CALLS)]
        warm_s, timings_s = min(calls[1:], key=lambda item: item[0])
        row: dict[str, float | str] = {
            "editor": editor,
            "minutes": minutes,
            "cold s": cold_s,
            "warm s": warm_s,
        }
        row |= {f"× real time, {name}": 60 * minutes / s for name, s in (("cold", cold_s), ("warm", warm_s))}
        rows.append(row | {f"{stage} s": seconds for stage, seconds in timings_s.items()})
    return rows


def run_command(path: Path, out: Path, editor: str) -> float:
    """Seconds of the whole command in a new process."""
    command = [sys.executable, "-m", "editjax", "edit", str(path), "-o", str(out), "--editor", editor, "-q"]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def call(path: Path, out: Path, editor: str) -> tuple[float, dict[str, float]]:
    """Seconds of one call, and of its stages."""
    with timed_network() as inside_s:
        began = time.perf_counter()
        result = edit(path, out=out, overwrite=True, settings=EditSettings(editor=editor))
        return time.perf_counter() - began, result.timings_s | inside_s


@contextlib.contextmanager
def timed_network() -> Iterator[dict[str, float]]:
    """While inside, counts the seconds of the network's two halves, waiting for each to be done."""
    seconds: dict[str, float] = {}
    halves = {"encode": "encode", "encode_in_chunks": "encode", "read_keys": "encode", "decode": "decode"}
    originals = {name: getattr(network, name) for name in halves}

    def timed(name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = jax.block_until_ready(originals[name](*arguments))
            seconds[halves[name]] = seconds.get(halves[name], 0.0) + time.perf_counter() - began
            return result

        return run

    for name in halves:
        setattr(network, name, timed(name))
    try:
        yield seconds
    finally:
        for name, original in originals.items():
            setattr(network, name, original)


def require_same(path: Path, out: Path, editor: str) -> None:
    """Ends the benchmark unless the command's file is what the package returns and keeps its promises."""
    result = edit(path, settings=EditSettings(editor=editor))
    assert result.samples_SC is not None
    with Reader(out) as written, Reader(path) as raw:
        written_SC, raw_SC = written.read(0, written.frames), raw.read(0, raw.frames)
    length = abs(len(written_SC) - duration_samples(result.edit_list))
    report.require_agreement(f"{editor}: length of the file", length, 0)
    difference = np.abs(written_SC.astype(int) - result.samples_SC).max()
    report.require_agreement(f"{editor}: file and samples", float(difference), 0)
    played = np.concatenate([np.arange(s.start, s.stop) for s in result.edit_list.segments])
    own = np.ones(len(played), bool)
    for start, stop in faded_spans(result.edit_list, ArrayReader(raw_SC, RATE_HZ)):
        own[start:stop] = False
    changed = np.count_nonzero(written_SC[own] != raw_SC[played[own]])
    report.require_agreement(f"{editor}: samples outside the fades", float(changed), 0)


if __name__ == "__main__":
    main()
