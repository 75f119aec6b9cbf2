"""One trainer a run folder: refused, taken over, left by the dead, seen from another host."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from editjax.errors import CannotCreateError
from editjax.lock import DEAD_S, RunLock, read_record

HOLD = """
import sys, time
from pathlib import Path
from editjax.lock import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    lock.stepped(7)
    lock._beat()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in `tmp_path`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def elsewhere(folder: Path, age_s: float) -> None:
    """A lock file of a trainer on another host, which the system's lock does not reach."""
    beat = time.time() - age_s
    record = {"host": "elsewhere", "pid": 1, "rank": 0, "step": 3, "stepped": beat, "beat": beat}
    (folder / "trainer-0.lock").write_text(json.dumps(record))


def test_the_file_says_who_trains_and_goes_with_the_trainer(tmp_path):
    with RunLock(tmp_path, rank=2) as lock:
        lock.stepped(5)
        lock._beat()
        record = read_record(tmp_path / "trainer-2.lock")
        assert (record["pid"], record["rank"], record["step"]) == (os.getpid(), 2, 5)
        lock.check()
    assert list(tmp_path.iterdir()) == []


def test_every_sign_of_life_reaches_the_disk(tmp_path, monkeypatch):
    """NFS keeps what was written to an open file from the other hosts until then."""
    synced = []
    monkeypatch.setattr("editjax.lock.os.fsync", synced.append)
    with RunLock(tmp_path) as lock:
        assert synced == [lock._descriptor]
        lock._beat()
        assert synced == [lock._descriptor] * 2


def test_signs_of_life_go_on_without_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr("editjax.lock.BEAT_S", 0.01)
    with RunLock(tmp_path) as lock:
        first, until = read_record(lock.path), time.time() + 20
        while (now := read_record(lock.path))["beat"] == first["beat"]:
            assert time.time() < until
        assert now["stepped"] == first["stepped"]


def test_a_living_trainer_is_named_and_its_folder_refused(tmp_path, holder):
    with pytest.raises(
        CannotCreateError, match=rf"process {holder.pid} on .* \(rank 0, step 7, .* with --takeover"
    ):
        RunLock(tmp_path).__enter__()
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(CannotCreateError, match=str(holder.pid)):
        RunLock(tmp_path).__enter__()
    assert read_record(tmp_path / "trainer-0.lock")["pid"] == holder.pid
    (tmp_path / "trainer-0.lock").write_text("damaged")
    with pytest.raises(CannotCreateError, match="another trainer is training here"):
        RunLock(tmp_path).__enter__()


def test_a_killed_trainer_does_not_hold_its_folder(tmp_path, holder, capsys):
    holder.kill()
    holder.wait()
    with RunLock(tmp_path) as lock:
        assert read_record(lock.path)["pid"] == os.getpid()
    assert re.search(rf"process {holder.pid} on .* is gone", capsys.readouterr().err)


def test_a_folder_taken_over_is_lost_to_the_one_before(tmp_path, capsys):
    with RunLock(tmp_path) as before:
        with RunLock(tmp_path, takeover=True) as lock:
            assert f"taken over from process {os.getpid()}" in capsys.readouterr().err
            with pytest.raises(CannotCreateError, match=rf"{tmp_path}: taken over by process {os.getpid()}"):
                before.check()
            lock.check()
        with pytest.raises(CannotCreateError, match="moved, deleted or taken over"):
            before.stepped(3)
    assert list(tmp_path.iterdir()) == []


def test_the_one_before_does_not_remove_the_lock_of_the_next(tmp_path):
    before = RunLock(tmp_path).__enter__()
    with RunLock(tmp_path, takeover=True) as lock:
        before.__exit__()
        lock.check()


def test_a_trainer_on_another_host_holds_its_folder_while_it_shows_signs_of_life(tmp_path, capsys):
    elsewhere(tmp_path, age_s=DEAD_S / 2)
    with pytest.raises(CannotCreateError, match=r"process 1 on elsewhere .*last sign of life 60 s ago"):
        RunLock(tmp_path).__enter__()
    with RunLock(tmp_path, takeover=True):
        assert "taken over from process 1 on elsewhere" in capsys.readouterr().err
    elsewhere(tmp_path, age_s=DEAD_S + 1)
    with RunLock(tmp_path):
        assert "process 1 on elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_lock_file_locks_nobody_out(tmp_path, content):
    (tmp_path / "trainer-0.lock").write_text(content)
    with RunLock(tmp_path) as lock:
        lock.check()
