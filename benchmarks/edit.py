"""× real time of `editjax edit` on 1, 3 and 10 minutes: a new process, and warm, step by step; and start-up.

The recordings are simulated sessions, one after another, as 44.1 kHz stereo 16-bit WAV. Agreement first: the
command writes the samples that `editjax.edit` returns, Σ(stop − start) of them, and every sample outside the
fades is the recording's own. `cold` is the wall clock of the whole command in a new process; `warm` that of
a call of an editor that has been called before, split into `read` (decoding, beside the mel), `mel`, `decide`
(of which `beats`, `encode`, `decode`), `place` and `render`: medians of ROUNDS calls each, the editors and
the twin taking turns, after one untimed call each.

Start-up is the wall clock of the command on a file of five seconds: with an empty cache of compiled code, and
with the one that the first run filled. Peers, where installed: auto-editor, the best-known silence cutter, on
the same files, once, the whole command; and our network's twin in PyTorch (`torch_twin.py`): its seconds,
decoding step by step with a cache, in place of the network's in our warm edit. Told our pointers so far, it
must choose ours at every step, or another whose logit is equal within TIE; how many such ties there are is
said. It takes minutes for ten minutes, which is why the rounds are few.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import report
from sessions import sessions

from editjax import network
from editjax.audio import ArrayReader, Reader, Writer
from editjax.decision import EditSettings
from editjax.editor import edit, listen
from editjax.edits import STOP, duration_samples
from editjax.models.style import Asked
from editjax.render import faded_spans

MINUTES = (1, 3, 10)
QUICK_MINUTES = (1,)
RATE_HZ = 44_100
ROUNDS = 3
TIE = 1e-4
START_S = 5
STARTS = 3
EDITORS = ("pointer", "silence")
SILENCE_CUTTER, TWIN = "auto-editor", "PyTorch twin"
PEER_OF = {TWIN: "pointer", SILENCE_CUTTER: "silence"}
PACKAGES = ("numpy", "scipy", "soundfile", "soxr", "jax")


def main() -> None:
    options = report.options(__doc__)
    minutes = QUICK_MINUTES if options.quick else MINUTES
    peers = report.installed("torch")
    with tempfile.TemporaryDirectory() as folder:
        rows: list[dict[str, Any]] = start_rows(Path(folder))
        paths = {length: write_recording(Path(folder) / f"{length}.wav", 60 * length) for length in minutes}
        for length, path in paths.items():
            rows += measure(path, length, peers, 1 if options.quick else ROUNDS)
    timed = [row for row in rows if "warm s" in row]
    ratios = start_ratios(rows)
    ratios |= {f"{row['editor']}, {row['minutes']} min, warm": row["× real time, warm"] for row in timed}
    longest = {row["editor"]: row["warm s"] for row in timed if row["minutes"] == minutes[-1]}
    for peer in set(longest) - set(EDITORS):
        name = f"{peer} / {PEER_OF[peer]}, {minutes[-1]} min"
        ratios[name] = longest[peer] / longest[PEER_OF[peer]]
    for editor in EDITORS:
        of_editor = [row for row in timed if row["editor"] == editor]
        if len(of_editor) > 1:
            sizes, seconds = zip(*((row["minutes"], row["warm s"]) for row in of_editor), strict=True)
            ratios[f"{editor}, growth exponent"] = report.growth_exponent(sizes, seconds)
    report.finish("edit", rows, ratios, (*PACKAGES, *(["torch"] if peers else [])), options.out)


def start_rows(folder: Path) -> list[dict[str, Any]]:
    """Seconds of the command on five seconds of sound: nothing cached, then all that it compiles."""
    path, out, cache = (
        write_recording(folder / "start.wav", START_S),
        folder / "started.wav",
        folder / "cache",
    )
    cold_s, *warm_s = (run_command(path, out, "pointer", cache) for _ in range(1 + STARTS))
    return [
        {"editor": "pointer, start-up, nothing cached", "cold s": cold_s},
        {"editor": "pointer, start-up, cache warm", "cold s": statistics.median(warm_s)},
    ]


def start_ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {f"{row['editor']}, s": row["cold s"] for row in rows if "start-up" in row["editor"]}


def write_recording(path: Path, seconds: int) -> Path:
    """So many seconds of simulated sessions, the two channels at different levels."""
    with Writer(path, sample_rate_hz=RATE_HZ, channels=2, container="WAV", subtype="PCM_16") as writer:
        for samples_S in sessions(seconds, RATE_HZ):
            writer.write(np.stack([samples_S, 0.8 * samples_S], axis=1).astype(np.float32))
    return path


def measure(path: Path, minutes: int, peers: bool, rounds: int) -> list[dict[str, Any]]:
    """A row for each editor, and for each peer that is installed."""
    outs = {editor: path.with_name(f"{editor}_{path.name}") for editor in EDITORS}
    cold_s = {}
    for editor, out in outs.items():
        cold_s[editor] = run_command(path, out, editor)
        require_same(path, out, editor)
    cases = {editor: Staged(partial(call, path, out, editor)) for editor, out in outs.items()}
    if peers:
        cases[TWIN] = Staged(twin_call(path))
    seconds = report.median_seconds(cases, rounds, time.perf_counter)
    rows: list[dict[str, Any]] = []
    for editor in EDITORS:
        row: dict[str, Any] = {"editor": editor, "minutes": minutes}
        row |= {"cold s": cold_s[editor], "warm s": seconds[editor]}
        row |= {f"× real time, {name}": 60 * minutes / row[f"{name} s"] for name in ("cold", "warm")}
        rows.append(row | cases[editor].medians_s())
    if peers:
        ours = rows[0]
        warm_s = ours["warm s"] - ours["network s"] + seconds[TWIN]
        row = {"editor": TWIN, "minutes": minutes, "warm s": warm_s, "network s": seconds[TWIN]}
        rows.append(row | {"× real time, warm": 60 * minutes / warm_s} | cases[TWIN].medians_s())
    if shutil.which(SILENCE_CUTTER):
        rows.append(cutter_row(path, minutes))
    else:
        print(f"{SILENCE_CUTTER} is not installed: left out", file=sys.stderr)
    return rows


class Staged:
    """A call that returns the seconds of its stages, which are kept."""

    def __init__(self, call: Callable[[], dict[str, float]]) -> None:
        self.call = call
        self.calls_s: list[dict[str, float]] = []

    def __call__(self) -> None:
        self.calls_s.append(self.call())

    def medians_s(self) -> dict[str, float]:
        """Of every stage, without the first call."""
        timed = self.calls_s[1:]
        return {f"{stage} s": statistics.median(one[stage] for one in timed) for stage in timed[0]}


def twin_call(path: Path) -> Callable[[], dict[str, float]]:
    """The network's part of an edit by the PyTorch twin, ready to call, after proof that it chooses our
    pointers."""
    import torch
    from torch_twin import choices, greedy, twin_of

    model = network.load_model("final")
    with Reader(path) as reader:
        mel_TF = listen(reader).mel_TF
    edited, phase_T3 = model.edit_pointers(mel_TF), model.phases(mel_TF)
    wanted = np.zeros(1, np.float32), model.point_of("final")[None]
    inputs = (mel_TF[None], np.array([len(mel_TF)]), phase_T3[None], *wanted)
    mel, frames, phase, *asked = (torch.from_numpy(np.asarray(a)) for a in inputs)
    twin = twin_of(model.settings, model.params, "block").eval()
    max_steps = int(len(mel_TF) * network.LONGEST_STEPS)

    @torch.inference_mode()
    def encode() -> Any:
        return twin.encoder(mel, frames, phase.float(), Asked(*asked))

    def run() -> dict[str, float]:
        began = time.perf_counter()
        encoded = encode()
        encoded_at = time.perf_counter()
        greedy(twin, encoded, max_steps)
        return {"encode": encoded_at - began, "decode": time.perf_counter() - encoded_at}

    told_N, margins = np.append(edited.pointers_N, STOP)[:max_steps], []
    differs_N = choices(twin, encode(), max_steps, told_N, margins) != told_N
    widest = np.array(margins)[differs_N].max(initial=0.0)
    tied = f"{np.count_nonzero(differs_N)} ties of {len(told_N)} pointers"
    report.require_agreement(f"{TWIN}, {tied}: logits of those", float(widest), TIE)
    return run


def cutter_row(path: Path, minutes: int) -> dict[str, Any]:
    """Seconds of the whole command of the best-known silence cutter, the only way to call it."""
    command = [SILENCE_CUTTER, str(path), "--no-open", "-o", str(path.with_name(f"cut_{path.name}"))]
    cold_s = seconds_of(command, dict(os.environ))
    row = {"editor": SILENCE_CUTTER, "minutes": minutes, "cold s": cold_s, "warm s": cold_s}
    return row | {f"× real time, {name}": 60 * minutes / cold_s for name in ("cold", "warm")}


def run_command(path: Path, out: Path, editor: str, cache: Path | None = None) -> float:
    """Seconds of the whole command in a new process; without a cache for compiled code, nothing is kept."""
    command = [sys.executable, "-m", "editjax", "edit", str(path), "-o", str(out), "--editor", editor, "-q"]
    settings = {"EDITJAX_CACHE": str(cache) if cache else "off"}
    inherited = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return seconds_of([*command, "--overwrite"], inherited | settings)


def seconds_of(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def call(path: Path, out: Path, editor: str) -> dict[str, float]:
    """Seconds of the stages of one call."""
    with timed_network() as inside_s:
        result = edit(path, out=out, overwrite=True, settings=EditSettings(editor=editor))
        return result.timings_s | inside_s


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
