"""The record of a training run: one JSON object a line, and TensorBoard where tensorboardX is installed.

A resumed run continues the record where its checkpoint stood: lines of later steps, which will be made again,
are cut off first, so that no step occurs twice.
"""

import importlib.util
import json
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from tqdm import tqdm

from editjax.errors import DataError


class Journal:
    """Appends rows to `folder/metrics.jsonl`; opening it with `step` drops every row after that step."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        _cut_after(self.path, step)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._board = None
        if importlib.util.find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, step: int, values: dict[str, Any], prefix: str = "") -> None:
        """One row: numbers are drawn by TensorBoard too; NaN and infinity become null."""
        row = {f"{prefix}{name}": _finite(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Bring the rows to disk: called before the checkpoint that makes them permanent."""
        self._file.flush()
        os.fsync(self._file.fileno())


class Rows:
    """The journal's rows of steps: fetched one step late, so that the device never waits for the host."""

    def __init__(self, journal: Journal, step: int, steps: int, max_skipped: int) -> None:
        self._journal, self._max_skipped = journal, max_skipped
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=None, dynamic_ncols=True)
        self._pending: tuple | None = None  # arguments of the last `add`
        self._fetched_at = 0.0

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, step: int, metrics: dict, batch: Any, began: float, waited_s: float) -> None:
        self.settle()
        self._pending = (step, metrics, getattr(batch, "ids_B", None), began, waited_s)

    def settle(self) -> None:
        """Write the row not yet fetched; DataError when too many updates in a row were not finite."""
        if self._pending is None:
            return
        (step, metrics, ids_B, began, waited_s), self._pending = self._pending, None
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        values |= {"step_s": now - max(began, self._fetched_at), "data_s": waited_s}
        self._fetched_at = now
        if values["skipped"] and ids_B is not None:
            values["ids"] = ids_B.tolist()
        self._journal.write(step, values)
        self._bar.update()
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", step_s=f"{values['step_s']:.2f}")
        if values["skipped"] >= self._max_skipped:
            raise DataError(
                f"step {step}: loss or gradient not finite {values['skipped']} times in a row, last for "
                f"examples {values.get('ids')} (all: {self._journal.path}); begin again with a lower rate"
            )

    def write_scores(self, step: int, scores: dict[str, float]) -> None:
        self.settle()
        self._journal.write(step, scores, prefix="validation/")
        figures = " · ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self._bar.write(f"step {step}: {figures}", file=sys.stderr)

    def flush(self) -> None:
        self.settle()
        self._journal.flush()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole rows; a last line cut short by a kill is ignored."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _cut_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_journal(path) if row["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    temporary.replace(path)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
