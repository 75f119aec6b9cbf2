"""The process beside a trainer: it ends one that hangs, and says why one that JAX ended is gone.

It starts the trainer and passes signals on. It reads the lock files of the run, which say when every process
of the job made its last step (`lock`). A stopped process, a deadlock and a collective that waits for ever
look alike there: no step, for too long. What hangs can neither notice it nor end with an exit code.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from editjax.errors import TryAgainError
from editjax.lock import BEAT_S, described, read_record

SILENT_S = 4 * BEAT_S  # without a sign of life for so long a process is stopped, not waiting
KILL_S = 60.0  # until a process that was killed is gone
WATCHED = "EDITJAX_WATCHED"  # set for the trainer: the pipe that ends with the process beside it


def beside(command: Sequence[str], run_dir: Path, limit_s: float, *, several: bool) -> int:
    """The exit code of `command`, which trains in `run_dir`; 75 when it made no step for `limit_s` (0: ever).

    Time is counted here, so that a machine that slept has not hung. One of `several` processes that JAX ends
    because another has gone ends with 75 too.
    """
    ours, its = os.pipe()
    try:
        with _started(command, ours) as trainer:
            os.close(ours)
            return _watch(trainer, run_dir, limit_s, several)
    finally:
        os.close(its)


def leave_with_it(pipe: str) -> None:
    """In the trainer: end when the process beside it does, however that ended."""

    def wait() -> None:
        os.read(int(pipe), 1)
        os._exit(128 + signal.SIGKILL)

    if pipe:
        threading.Thread(target=wait, daemon=True).start()


def _watch(trainer: subprocess.Popen, run_dir: Path, limit_s: float, several: bool) -> int:
    seen: dict[int, tuple[float, float]] = {}  # rank → its last beat, and when that was seen here
    stepped, since, own = None, time.monotonic(), None
    pause_s = min(BEAT_S, limit_s / 4) if limit_s else BEAT_S
    while True:
        before = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return _ended(trainer.wait(pause_s), own, seen, run_dir, several)
        records = _records(run_dir)
        now = time.monotonic()
        since += max(0, now - before - 2 * pause_s)  # stopped by Ctrl-Z
        for record in records:
            if record["beat"] != seen.get(record["rank"], (0, 0))[0]:
                seen[record["rank"]] = record["beat"], now
        mine = (socket.gethostname(), trainer.pid)
        own = next((r for r in records if (r["host"], r["pid"]) == mine), own)
        if own and own["stepped"] != stepped:
            stepped, since = own["stepped"], now
        elif limit_s and now - since > limit_s:
            trainer.kill()  # a stopped process obeys nothing else
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a disk not even this
                trainer.wait(KILL_S)
            who = described(stuck(records)) if records else f"process {trainer.pid}"
            return _complain(f"{run_dir}: no step for {limit_s:.0f} s: {who} hangs; ended")


def _records(run_dir: Path) -> list[dict[str, Any]]:
    """What the lock files say; nothing while their folder cannot be listed, as a shared one now and then."""
    with contextlib.suppress(OSError):
        return [record for path in run_dir.glob("trainer-*.lock") if (record := read_record(path))]
    return []


def _ended(
    code: int, own: dict[str, Any] | None, seen: dict[int, tuple[float, float]], run_dir: Path, several: bool
) -> int:
    """The exit code of a trainer that ended by itself, or was ended.

    JAX aborts a process whose coordinator, process 0, is gone, and every process when one shows no sign of
    life; so process 0 is taken to have crashed by itself unless another was silent by then.
    """
    if code >= 0:
        return code
    if code == -signal.SIGTERM:
        return _complain(f"{run_dir}: ended by SIGTERM")
    if not several or code != -signal.SIGABRT:
        return 128 - code
    if own is None:
        return _complain(f"{run_dir}: not all processes of this job came in time; ended by JAX")
    now = time.monotonic()
    silent = [rank for rank, (_, at) in seen.items() if rank != own["rank"] and now - at > SILENT_S]
    if not own["rank"] and not silent:
        return 128 - code
    who = (
        f"process {silent[0]} of this job shows no sign of life"
        if silent
        else "process 0 of this job is gone"
    )
    return _complain(f"{run_dir}: {who}; process {own['rank']} was ended by JAX")


def _complain(line: str) -> int:
    print(f"editjax: {line}; the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
    return TryAgainError.exit_code


@contextlib.contextmanager
def _started(command: Sequence[str], pipe: int) -> Iterator[subprocess.Popen]:
    """The trainer, to which signals are passed on, those too that come before it is there.

    It has a process group of its own: what is typed at a terminal reaches this process alone.
    """
    trainer: subprocess.Popen | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if trainer is None:
            early.append(number)
        else:
            _send(trainer, number)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGTSTP)}
    try:
        environment = _environment() | {WATCHED: str(pipe)}
        trainer = subprocess.Popen(command, env=environment, pass_fds=[pipe], process_group=0)
        for number in early:
            _send(trainer, number)
        yield trainer
    finally:
        if trainer and trainer.poll() is None:
            trainer.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(trainer: subprocess.Popen, number: int) -> None:
    """Passes a signal on; Ctrl-Z stops the trainer and this process, until it is let go on."""
    if number != signal.SIGTSTP:
        trainer.send_signal(number)
        return
    trainer.send_signal(signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    trainer.send_signal(signal.SIGCONT)


def stuck(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The process that the others wait for: one that shows no sign of life, else the one furthest behind."""
    latest = max(record["beat"] for record in records)
    silent = [record for record in records if latest - record["beat"] > SILENT_S]
    return min(silent or records, key=lambda record: (record["step"], record["stepped"]))


def _environment() -> dict[str, str]:
    """Ours, with editjax found where it was found here."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
