"""Training killed at random moments (SIGKILL) and begun again by the same command, beside the same unkilled.

Ten kills in each series of runs, a quarter of them at any time after the start, the rest up to three seconds
after the first batch. `hit` says where: no batch drawn yet, a checkpoint half written, or else. `redone` are
the batches that were drawn once more after a kill: at most the steps from checkpoint to checkpoint, three
here, because training waits for a save. Agreement: every loss ever journalled and every batch ever drawn,
also by those that were killed, is that of the unkilled run; the journal has every step once; the final state,
parameters and optimizer and all, has the same SHA-256.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from report import finish, options

from editjax.checkpoint import UNFINISHED
from editjax.journal import read_journal

PROGRAM = Path(__file__).parents[1] / "tests" / "tiny_family.py"
STEPS, CHECKPOINT_EVERY = 40, 3  # of that program
SERIES, KILLS, AT_ONCE = 20, 10, 2
LONGEST_WAIT_S = 3.0
STARTING, SAVING, TRAINING = "starting", "saving", "training"


class Drawn(NamedTuple):
    """A batch, by the process that drew it."""

    pid: int
    step: int
    sha256: str


class Run(NamedTuple):
    """What a run did until it ended: the kills (process, what was hit), and what there is to compare."""

    folder: Path
    kills: list[tuple[int, str]]
    losses: list[tuple[int, float]]  # of every journal that a kill or the end left
    state: str  # SHA-256 of the final one

    @property
    def batches(self) -> list[Drawn]:
        return drawn_in(self.folder)

    def redone(self, pid: int) -> int:
        """Batches drawn by a process that the next one to draw any drew again."""
        steps: dict[int, list[int]] = {}
        for batch in self.batches:
            steps.setdefault(batch.pid, []).append(batch.step)
        pids = list(steps)
        if pid not in pids[:-1]:
            return 0
        return steps[pid][-1] + 1 - steps[pids[pids.index(pid) + 1]][0]


def main() -> None:
    """Kill, and count what was lost."""
    chosen = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        rows, totals = campaign(Path(folder), *((1, 3) if chosen.quick else (SERIES, KILLS)))
    finish("kills", rows, totals, ("jax", "orbax-checkpoint"), chosen.out)
    if totals["unlike the unkilled"] or totals["redone at most"] > CHECKPOINT_EVERY:
        sys.exit("a kill cost more than it may")


def campaign(folder: Path, series: int, kills: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of what was hit, and totals, of as many series of as many kills."""
    whole = run_with_kills(folder / "whole", 0, np.random.default_rng())
    if problem := difference(whole, whole):
        sys.exit(f"the run that nobody killed: {problem}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda number: runs_with_kills(folder, number, kills), range(series))
        runs = [run for of_a_series in found for run in of_a_series]
    problems = [f"{run.folder.name}: {problem}" for run in runs if (problem := difference(run, whole))]
    print(*problems, sep="\n", file=sys.stderr)
    redone: dict[str, list[int]] = {}
    for run in runs:
        for pid, hit in run.kills:
            redone.setdefault(hit, []).append(run.redone(pid))
    rows = [
        {"hit": hit, "kills": len(counts), "redone": sum(counts), "redone at most": max(counts)}
        for hit, counts in sorted(redone.items())
    ]
    return rows, {
        "kills": sum(row["kills"] for row in rows),
        "runs": len(runs),
        "losses compared": sum(len(run.losses) for run in runs),
        "batches compared": sum(len(run.batches) for run in runs),
        "redone at most": max(row["redone at most"] for row in rows),
        "unlike the unkilled": len(problems),
    }


def runs_with_kills(folder: Path, number: int, kills: int) -> list[Run]:
    """A series: one run after the other until all kills are spent."""
    rng = np.random.default_rng(number)
    runs: list[Run] = []
    while left := kills - sum(len(run.kills) for run in runs):
        runs.append(run_with_kills(folder / f"{number}-{len(runs)}", left, rng))
    return runs


def run_with_kills(folder: Path, kills: int, rng: np.random.Generator) -> Run:
    """A run that is killed so often, if it does not end before, and started again each time."""
    run = Run(folder, [], [], "")
    while True:
        process, known = start(folder), len(run.batches)
        if len(run.kills) < kills:
            wait(process, folder, known if rng.random() < 0.75 else -1)
            time.sleep(rng.uniform(0, LONGEST_WAIT_S))
            if process.poll() is None:
                process.kill()
                process.communicate()
                run.kills.append((process.pid, hit_in(folder, known)))
                run.losses.extend(losses_in(folder))
                continue
        out, err = process.communicate()
        if process.returncode:
            sys.exit(f"{folder}: ended with {process.returncode}: {err}")
        run.losses.extend(losses_in(folder))
        return run._replace(state=out.strip())


def start(folder: Path) -> subprocess.Popen:
    """The program, which trains in a folder until it is done."""
    paths = {"PYTHONPATH": str(PROGRAM.parents[1]), "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder)],
        env={**os.environ, **paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen, folder: Path, known: int) -> None:
    """Until there are more batches than were known: imports and compilation are the dull part of a run."""
    while process.poll() is None and len(drawn_in(folder)) <= known:
        time.sleep(0.02)


def hit_in(folder: Path, known: int) -> str:
    """What a process was at when it was killed; it began with so many batches known."""
    if len(drawn_in(folder)) == known:
        return STARTING
    return SAVING if any(any(folder.glob(f"*/{name}")) for name in UNFINISHED) else TRAINING


def drawn_in(folder: Path) -> list[Drawn]:
    """The batches that were drawn so far, in order, again where they were drawn again."""
    log = folder.with_suffix(".batches")
    lines = log.read_text().splitlines() if log.exists() else []
    return [Drawn(int(pid), int(step), sha256) for pid, step, sha256 in map(str.split, lines)]


def losses_in(folder: Path) -> list[tuple[int, float]]:
    journal = folder / "metrics.jsonl"
    rows = read_journal(journal) if journal.exists() else []
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def difference(run: Run, whole: Run) -> str:
    """What a run has otherwise than the one that nobody killed."""
    losses, batches = dict(losses_in(whole.folder)), {batch.step: batch.sha256 for batch in whole.batches}
    if [step for step, _ in losses_in(run.folder)] != list(range(1, STEPS + 1)):
        return "its journal has not every step once"
    if {batch.step for batch in run.batches} != set(range(STEPS)):
        return "it drew other batches"
    if any(batches[batch.step] != batch.sha256 for batch in run.batches):
        return "a batch differs"
    if any(losses[step] != loss for step, loss in run.losses):
        return "a loss differs"
    names = [path.name for kept in ("best", "last") for path in (run.folder / kept).iterdir()]
    if not all(name.isdecimal() for name in names):
        return f"it left {', '.join(names)}"
    return "" if run.state == whole.state else "the final state differs"


if __name__ == "__main__":
    main()
