"""The record of a training run: one JSON object a line; TensorBoard where tensorboardX is installed, and W&B.

A resumed run continues the record where its checkpoint stood: lines of later steps, which will be made again,
are cut off first, so that no step occurs twice. Every start keeps its lines of where the time went. The first
of several processes writes it.
"""

import contextlib
import importlib.util
import json
import math
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from editjax import cluster
from editjax.badput import PARTS, Badput, described
from editjax.errors import TryAgainError
from editjax.files import atomic_path
from editjax.flops import Call, peak_flops_s

BADPUT = "badput/"


class Journal:
    """Appends rows to `folder/metrics.jsonl`; opening it with `step` drops every row of a step after that.

    `reached` is the last step there was, `earlier_starts` where the time of each earlier start went.
    `wandb` is the project of Weights & Biases that the rows go to as well.
    """

    def __init__(self, folder: Path, step: int = 0, wandb: str | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        self._file = self._board = self._wandb = None
        self.reached, self.earlier_starts = 0, []
        if not cluster.is_first():
            return
        rows = _cut_after(self.path, step)
        self.reached = max((row["step"] for row in rows), default=0)
        self.earlier_starts = _starts(rows)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._wandb = _Wandb(folder, wandb) if wandb else None
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error on its way says more than the disk that is full for the last rows too.
        with contextlib.suppress(*([OSError] if kind else [])):
            if self._file is not None:
                self._file.close()
            if self._board is not None:
                self._board.close()
        if self._wandb is not None:
            stopped = isinstance(error, (TryAgainError, KeyboardInterrupt))
            self._wandb.finish(failed=kind is not None and not stopped)

    def write(self, step: int, values: dict[str, Any], prefix: str = "") -> None:
        """One row: numbers are drawn by TensorBoard too; NaN and infinity become null."""
        if self._file is None:
            return
        row = {f"{prefix}{name}": _finite(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({"step": step, **row})

    def flush(self) -> None:
        """Bring the rows to disk: called before the checkpoint that makes them permanent."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())


class _Wandb:
    """The record at Weights & Biases. What goes wrong there ends this copy with a word, never the run."""

    def __init__(self, folder: Path, project: str) -> None:
        self._run: Any = None
        self._attempt(lambda: self._begin(folder, project))

    def log(self, row: dict[str, Any]) -> None:
        self._attempt(lambda: self._run and self._run.log(row))

    def finish(self, failed: bool) -> None:
        self._attempt(lambda: self._run and self._run.finish(exit_code=int(failed)))

    def _begin(self, folder: Path, project: str) -> None:
        import wandb

        name, config = folder / "wandb-id", folder / "config.json"
        if not name.exists():
            with atomic_path(name) as temporary:
                temporary.write_text(secrets.token_hex(8), encoding="utf-8")
        self._run = wandb.init(
            project=project,
            dir=str(folder),
            id=name.read_text(encoding="utf-8"),
            name=folder.name,
            resume="allow",
            config=json.loads(config.read_text(encoding="utf-8")) if config.exists() else None,
        )
        # W&B's own steps only ever rise; those of a run that was killed are made again.
        self._run.define_metric("*", step_metric="step")

    def _attempt(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self._run = None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"W&B does not work, and the run goes on without it: {reason}", file=sys.stderr)


class Rows:
    """The journal's rows of steps: fetched one step late, so that the device never waits for the host.

    When a step ended is seen by a thread that waits for it: the host may then be anywhere, fetching a batch
    for example. `spent` is told of it; where the time went is said in the end.
    """

    def __init__(self, journal: Journal, step: int, steps: int, max_skipped: int, spent: Badput) -> None:
        self._journal, self._max_skipped, self._spent = journal, max_skipped, spent
        hidden = None if cluster.is_first() else True  # None: unless a terminal shows it
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=hidden, dynamic_ncols=True)
        self._waiting = ThreadPoolExecutor(1)
        self._pending: tuple[_Step, Future[float]] | None = None  # the last step added
        self._ended, self._step = 0.0, 0  # the last step settled
        self._peak = peak_flops_s()
        self.hopeless = ""  # why to stop, once too many updates in a row were not finite

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._waiting.shutdown(wait=False)
        if not self._step or not cluster.is_first():
            return
        own = self._spent.seconds()
        print(f"time: {described(own)}", file=sys.stderr)
        if earlier := self._journal.earlier_starts:
            whole = {part: sum(seconds[part] for seconds in (*earlier, own)) for part in PARTS}
            print(f"time of all {len(earlier) + 1} starts: {described(whole)}", file=sys.stderr)

    def add(
        self, step: int, metrics: dict, batch: Any, placed: Any, began: float, waited_s: float, call: Call
    ) -> None:
        """A step on its way, whose batch was asked for when it `began`; the one before it is written.

        `batch` are the examples of this process, `placed` those of all processes.
        """
        self.settle()
        ended = self._waiting.submit(_end_of, metrics["loss"], self._spent.now)
        # Of the batch no more than this is held on the device for another step.
        ids_B, frames = getattr(placed, "ids_B", None), _frames(batch, placed)
        self._pending = _Step(step, metrics, ids_B, frames, began, waited_s, call), ended

    def settle(self) -> None:
        """Write the row not yet fetched."""
        if self._pending is None:
            return
        (step, metrics, ids_B, frames, began, waited_s, call), ending = self._pending
        self._pending = None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        ended, before = ending.result(), self._ended
        self._spent.ran(call.began, ended, "redo" if step <= self._journal.reached else "steps")
        self._ended, self._step = ended, step
        values |= {"step_s": ended - max(began, before), "data_s": waited_s}
        if call.compile_s:
            values["compile_s"] = call.compile_s
        values |= self._rates(frames, call, ended - max(call.began if call.compile_s else began, before))
        if values["skipped"] and ids_B is not None:
            values["ids"] = cluster.whole(ids_B).tolist()
        self._journal.write(step, values)
        self._bar.update()
        shown = {"loss": f"{values['loss']:.3f}"}
        if "frames_s" in values:
            shown["frames/s"] = f"{values['frames_s']:,.0f}"
        self._bar.set_postfix(shown)
        if values["skipped"] >= self._max_skipped and not self.hopeless:
            self.hopeless = (
                f"step {step}: loss or gradient not finite {values['skipped']} times in a row, last for "
                f"examples {values.get('ids')} (all: {self._journal.path}); begin again with a lower rate"
            )

    def _rates(self, frames: float, call: Call, took_s: float) -> dict[str, float]:
        """What is done in a second of a step that took so long, compiling apart."""
        took_s = max(took_s, 1e-9)  # a clock may be coarse
        values = {"frames_s": frames / took_s} if frames else {}
        if call.flops:
            values["flops_s"] = call.flops / took_s
            if self._peak:
                values["mfu"] = values["flops_s"] / self._peak
        return values

    def write_scores(self, step: int, scores: dict[str, float]) -> None:
        self.settle()
        self._journal.write(step, scores, prefix="validation/")
        figures = " · ".join(f"{name} {value:.3f}" for name, value in scores.items())
        if cluster.is_first():
            self._bar.write(f"step {step}: {figures}", file=sys.stderr)

    def flush(self) -> None:
        self.settle()
        self._journal.flush()

    def write_badput(self) -> None:
        """Where the time of this start went so far, if it made a step: all is settled and saved now."""
        if self._step:
            row = {"start": len(self._journal.earlier_starts) + 1, **self._spent.seconds()}
            self._journal.write(self._step, row, prefix=BADPUT)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line cut short by a kill is ignored."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class _Step(NamedTuple):
    """The arguments of `Rows.add`, of the batch who is in it, and how many frames."""

    step: int
    metrics: dict
    ids_B: Any
    frames: float
    began: float
    waited_s: float
    call: Call


def _frames(batch: Any, placed: Any) -> float:
    """Valid frames in a batch, about: of the examples of other processes a process sees no lengths."""
    if (frames_B := getattr(batch, "frames_B", None)) is None:
        return 0.0
    return float(frames_B.sum()) * len(placed.frames_B) / len(frames_B)


def _end_of(array: Any, now: Callable[[], float]) -> float:
    """When the array is there."""
    jax.block_until_ready(array)
    return now()


def _starts(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Where the time of every start went: the last that it wrote, with its last checkpoint."""
    last = {row[f"{BADPUT}start"]: row for row in rows if f"{BADPUT}start" in row}
    return [{part: row.get(f"{BADPUT}{part}", 0.0) for part in PARTS} for row in last.values()]


def _cut_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops the rows of later steps, but for where the time went, and returns what there was."""
    if not path.exists():
        return []
    rows = read_journal(path)
    kept = [row for row in rows if row["step"] <= step or f"{BADPUT}start" in row]
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return rows


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
