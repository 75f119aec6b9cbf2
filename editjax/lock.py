"""One trainer a run folder: who trains there, and when it last did something.

`trainer-0.lock` (one for every process of a job) is held by the operating system's lock for as long as its
process lives, and says which host and process that is, its last sign of life and its last step. The system's
lock may not reach other hosts: there a sign of life tells.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from editjax.errors import CannotCreateError, InputOutputError
from editjax.files import MEDIUM_ERRORS

BEAT_S = 5.0
DEAD_S = 120.0  # without a sign of life for so long a trainer on another host is taken for dead
RECORD_BYTES = 512  # written over in place, always as long, so that no reader finds half of one

FIELDS = {"host", "pid", "rank", "step", "stepped", "beat"}


class RunLock:
    """Held while open; a context manager.

    Raises CannotCreateError, naming the holder, when another trainer is at work in the folder; `takeover`
    takes it away from that one, which ends at its next step without writing.
    """

    def __init__(self, run_dir: Path, *, rank: int = 0, takeover: bool = False) -> None:
        self.run_dir, self.path = run_dir, run_dir / f"trainer-{rank}.lock"
        self._takeover = takeover
        self._record: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "rank": rank,
            "step": 0,
            "stepped": time.time(),
        }
        self._descriptor = -1
        self._left = threading.Event()

    def __enter__(self) -> "RunLock":
        try:
            self._descriptor = self._acquire()
            self._beat()
        except OSError as error:
            kind = InputOutputError if error.errno in MEDIUM_ERRORS else CannotCreateError
            raise kind(
                f"{self.run_dir}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        threading.Thread(target=self._keep_beating, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._is_own():
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def check(self) -> None:
        """CannotCreateError when the folder was moved away, or another trainer has taken it over."""
        if self._is_own():
            return
        holder = read_record(self.path)
        why = f"taken over by {described(holder)}" if holder else "moved, deleted or taken over"
        raise CannotCreateError(
            f"{self.run_dir}: {why} while this trainer was at work in it; nothing more is written there"
        )

    def stepped(self, step: int) -> None:
        """Note that the trainer got on, for whoever watches it; raises as `check` does."""
        self._record |= {"step": step, "stepped": time.time()}
        self.check()

    def _acquire(self) -> int:
        """An open descriptor of the lock file that this process holds."""
        while True:
            descriptor, taken = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), False
            try:
                locked = _lock(descriptor)
                if _inode(self.path) != os.fstat(descriptor).st_ino:
                    continue  # released or taken over since it was opened
                holder = read_record(self.path)
                if locked is not False and (holder is None or self._is_dead(holder, sure=locked is True)):
                    if holder:
                        print(f"{self.run_dir}: {described(holder)} is gone", file=sys.stderr)
                    taken = True
                    return descriptor
                self._take_away(holder)
            finally:
                if not taken:
                    os.close(descriptor)

    def _take_away(self, holder: dict[str, Any] | None) -> None:
        who = described(holder) if holder else "another trainer"
        if not self._takeover:
            raise CannotCreateError(
                f"{self.run_dir}: {who} is training here; end it, or take the folder from it with --takeover"
            )
        print(f"{self.run_dir}: taken over from {who}", file=sys.stderr)
        self.path.unlink(missing_ok=True)

    def _is_dead(self, holder: dict[str, Any], sure: bool) -> bool:
        """Whether the holder is gone; `sure` where the system's lock, which we have, tells of this host."""
        return (sure and holder["host"] == self._record["host"]) or time.time() - holder["beat"] > DEAD_S

    def _is_own(self) -> bool:
        return _inode(self.path) == os.fstat(self._descriptor).st_ino

    def _beat(self) -> None:
        text = json.dumps({**self._record, "beat": time.time()}).ljust(RECORD_BYTES - 1) + "\n"
        os.pwrite(self._descriptor, text.encode(), 0)
        os.fsync(self._descriptor)  # on NFS other hosts see nothing of it before

    def _keep_beating(self) -> None:
        while not self._left.wait(BEAT_S):
            with contextlib.suppress(OSError):
                self._beat()


def read_record(path: Path) -> dict[str, Any] | None:
    """What a lock file says: host, pid, rank, step, stepped and beat (s since 1970); None without one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() >= FIELDS else None


def described(holder: dict[str, Any]) -> str:
    """A trainer as messages name it."""
    age_s = max(0, round(time.time() - holder["beat"]))
    where = f"process {holder['pid']} on {holder['host']}"
    return f"{where} (rank {holder['rank']}, step {holder['step']}, last sign of life {age_s} s ago)"


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _lock(descriptor: int) -> bool | None:
    """Whether the system's lock was got; None where the file system has none."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
