"""What hangs is ended from outside and named; what gets on is left alone; how JAX ends one is understood."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from editjax import watchdog
from editjax.lock import read_record
from editjax.watchdog import SILENT_S, stuck

LIMIT_S = 2.0
TRAIN = """
import os, sys, time
from pathlib import Path
import editjax.lock
editjax.lock.BEAT_S = 0.05
from editjax.lock import RunLock
from editjax.watchdog import WATCHED, leave_with_it
leave_with_it(os.environ[WATCHED])
with RunLock(Path(sys.argv[1])) as lock:
    for step in range(int(sys.argv[2])):
        lock.stepped(step)
        time.sleep(0.05)
    print("done", flush=True)
    time.sleep(float(sys.argv[3]))
"""
COUNT = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
Path(sys.argv[1], "ready").write_text(str(os.getpid()))
time.sleep(1)
"""
BESIDE = """
import sys
from pathlib import Path
from editjax.watchdog import beside
sys.exit(beside(sys.argv[3:], Path(sys.argv[1]), float(sys.argv[2]), several=True))
"""


def train(folder: Path, *, steps: int, then_s: float, program: str = TRAIN) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    trainer = [sys.executable, "-c", program, *map(str, (folder, steps, then_s))]
    words = [sys.executable, "-c", BESIDE, str(folder), str(LIMIT_S), *trainer]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, env=environment, text=True, process_group=0, **pipes)


def trainer_of(folder: Path) -> int:
    """Its process id, once it is at work."""
    while (record := read_record(folder / "trainer-0.lock")) is None:
        time.sleep(0.02)
    return record["pid"]


def test_a_stopped_trainer_is_ended_and_named(tmp_path):
    process = train(tmp_path, steps=10_000, then_s=0)
    pid = trainer_of(tmp_path)
    time.sleep(0.5)
    os.kill(pid, signal.SIGSTOP)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75
    assert f"{tmp_path}: no step for 2 s: process {pid} on " in said and "(rank 0, step " in said


def test_a_trainer_that_lives_but_makes_no_step_is_ended(tmp_path):
    process = train(tmp_path, steps=3, then_s=600)
    out, said = process.communicate(timeout=120)
    assert (process.returncode, out) == (75, "done\n")
    assert "(rank 0, step 2, " in said


def test_a_trainer_that_gets_on_is_left_alone_however_long_it_takes(tmp_path):
    process = train(tmp_path, steps=round(2 * LIMIT_S / 0.05), then_s=0)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_trainer(tmp_path, number):
    process = train(tmp_path, steps=10_000, then_s=0)
    trainer_of(tmp_path)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (75 if number == signal.SIGTERM else 128 + number)
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_before_the_trainer_listens_is_obeyed(tmp_path, monkeypatch, number, code):
    """It comes before this process has started the trainer, which has no handler yet when it gets it."""

    def start(*words, **options):
        os.kill(os.getpid(), number)
        return popen(*words, **options)

    popen = subprocess.Popen
    monkeypatch.setattr(watchdog.subprocess, "Popen", start)
    assert watchdog.beside(["sleep", "600"], tmp_path, 60, several=False) == code


def test_ctrl_c_reaches_the_trainer_once(tmp_path):
    """A terminal sends it to the whole group, though stdin may be no terminal."""
    process = train(tmp_path, steps=10_000, then_s=0, program=COUNT)
    while not (ready := tmp_path / "ready").exists() or not ready.read_text():
        time.sleep(0.02)
    assert os.getpgid(int(ready.read_text())) != process.pid
    os.killpg(process.pid, signal.SIGINT)
    out, said = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "interrupted\n"), said


def test_ctrl_z_stops_the_trainer_too(tmp_path):
    process = train(tmp_path, steps=round(LIMIT_S / 0.05), then_s=0)
    pid = trainer_of(tmp_path)
    process.send_signal(signal.SIGTSTP)
    assert wait_for_state(pid, "T") and wait_for_state(process.pid, "T")
    time.sleep(1.5 * LIMIT_S)
    process.send_signal(signal.SIGCONT)
    out, said = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "done\n"), said


def test_time_in_which_both_were_stopped_does_not_count(tmp_path, monkeypatch):
    clock = [0.0]

    class Stopped:
        pid, ends = 1, iter([None, 0])

        def wait(self, _):
            clock[0] += 1000 * LIMIT_S
            if (code := next(self.ends)) is None:
                raise subprocess.TimeoutExpired("trainer", 1)
            return code

        def kill(self):
            raise AssertionError("killed")

    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    assert watchdog._watch(Stopped(), tmp_path, LIMIT_S, several=False) == 0


def test_a_folder_that_cannot_be_listed_for_a_moment_ends_nobody(tmp_path, monkeypatch):
    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "glob", stale)
    assert watchdog.beside(["sleep", "1"], tmp_path, LIMIT_S, several=False) == 0


def test_a_trainer_that_cannot_even_be_killed_is_left(tmp_path, monkeypatch):
    class Waits:
        pid = 1

        def wait(self, timeout):
            time.sleep(min(timeout, 0.05))
            raise subprocess.TimeoutExpired("trainer", timeout)

        def kill(self):
            pass

    monkeypatch.setattr(watchdog, "KILL_S", 0.1)
    assert watchdog._watch(Waits(), tmp_path, 0.2, several=False) == 75


def wait_for_state(pid: int, state: str) -> bool:
    """Whether the process comes to be in that state of Linux within a few seconds."""
    for _ in range(500):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == state:
            return True
        time.sleep(0.01)
    return False


def test_a_trainer_does_not_outlive_the_process_beside_it(tmp_path):
    process = train(tmp_path, steps=10_000, then_s=0)
    pid = trainer_of(tmp_path)
    process.kill()
    process.communicate(timeout=120)  # until the trainer has closed what they share
    with pytest.raises(ProcessLookupError):
        for _ in range(500):
            os.kill(pid, 0)
            time.sleep(0.01)


@pytest.mark.parametrize(
    "code, rank, silent, several, ends, said",
    [
        (0, 0, None, True, 0, ""),
        (65, 1, None, True, 65, ""),
        (-signal.SIGKILL, 0, None, True, 137, ""),
        (-signal.SIGTERM, 1, None, True, 75, "ended by SIGTERM"),
        (-signal.SIGABRT, 0, None, False, 134, ""),
        (-signal.SIGABRT, 0, None, True, 134, ""),  # its own crash: nobody was silent before it
        (-signal.SIGABRT, 0, 2, True, 75, "process 2 of this job shows no sign of life"),
        (-signal.SIGABRT, 1, None, True, 75, "process 0 of this job is gone"),
        (-signal.SIGABRT, None, None, True, 75, "not all processes of this job came in time"),
    ],
)
def test_a_process_that_jax_ends_for_the_sake_of_another_tries_again(
    tmp_path, capsys, code, rank, silent, several, ends, said
):
    now = time.monotonic()
    seen = {number: (0.0, now - 2 * SILENT_S * (number == silent)) for number in range(3)}
    own = None if rank is None else {"rank": rank}
    assert watchdog._ended(code, own, seen, tmp_path, several) == ends
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("silent, named", [(None, 2), (1, 1)])
def test_the_rank_that_the_others_wait_for_is_named(silent, named):
    """Rank 2 is a step behind; a rank that shows no sign of life comes first."""
    records = [
        {"rank": rank, "step": 7 - (rank == 2), "stepped": 100.0 - rank, "beat": 500.0 + rank}
        for rank in range(4)
    ]
    if silent is not None:
        records[silent]["beat"] -= 2 * SILENT_S
    assert stuck(records)["rank"] == named
