"""Two processes over loopback train as one does; what befalls one of them ends both, and costs nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from editjax.journal import read_journal

PROGRAM = Path(__file__).parent / "tiny_job.py"
JOIN_WITHIN_S = 60


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Job:
    """Processes that train in a folder, with two devices in all."""

    def __init__(self, folder: Path, count: int = 2, *, hang_after_s=0, pause_s=0.0, of=None, **more: str):
        self.folder, port = folder, free_port()
        self.processes = []
        for rank in range(count):
            environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent), **more}
            environment["JAX_NUM_CPU_DEVICES"] = str(2 // count)
            if (of or count) > 1:
                environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_PROCESS_ID": str(rank)}
                environment["JAX_NUM_PROCESSES"] = str(of or count)
            words = map(str, (PROGRAM, folder, hang_after_s, JOIN_WITHIN_S if not of else 3, pause_s))
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *words],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def ended(self) -> tuple[list[int], list[str], list[str]]:
        """Exit codes, outputs and messages, by rank."""
        said = [process.communicate(timeout=240) for process in self.processes]
        outs, errs = zip(*said, strict=True)
        return [process.returncode for process in self.processes], list(outs), list(errs)

    def wait_for_step(self, step: int) -> None:
        while all(process.poll() is None for process in self.processes):
            if (path := self.folder / "metrics.jsonl").exists() and any(
                row["step"] >= step for row in read_journal(path)
            ):
                return
            time.sleep(0.02)
        pytest.fail(str(self.ended()))

    def trainer(self, rank: int) -> int:
        """The process id of the trainer of a rank."""
        return json.loads((self.folder / f"trainer-{rank}.lock").read_text())["pid"]


def finish(folder: Path, count: int = 2, **more: str) -> str:
    """The digest of the final state, the same at all processes."""
    with Job(folder, count, **more) as job:
        codes, outs, errs = job.ended()
    assert codes == [0] * count, errs
    assert len({out.splitlines()[-1] for out in outs}) == 1, outs
    return outs[0].splitlines()[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """The folder and the digest of the uninterrupted run of one process with two devices."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, finish(folder, 1)


def rows_of(folder: Path) -> list[dict]:
    """What was learned at every step, and not how long it took."""
    rows = read_journal(folder / "metrics.jsonl")
    learned = [row for row in rows if not any(name.startswith("badput/") for name in row)]
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in learned]


@pytest.mark.slow
def test_two_processes_train_as_one_does_bit_for_bit(tmp_path, whole):
    assert finish(tmp_path) == whole[1]
    assert rows_of(tmp_path) == rows_of(whole[0])
    assert not list(tmp_path.glob("*.lock"))


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["fsdp", "tensor"])
def test_two_processes_that_share_parameters_train_as_one_does(tmp_path, whole, axis):
    """Split over both with `fsdp`; with `tensor` both make every example."""
    finish(tmp_path, EDITJAX_TEST_MESH=axis)
    for found, wanted in zip(rows_of(tmp_path), rows_of(whole[0]), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("then", [1, 2])
def test_sigterm_to_one_process_saves_and_ends_both_and_any_number_goes_on(tmp_path, whole, rank, then):
    with Job(tmp_path, pause_s=0.1) as job:
        job.wait_for_step(4)
        job.processes[rank].send_signal(signal.SIGTERM)
        codes, _, errs = job.ended()
    assert codes == [75, 75], errs
    assert all("stopped at step " in err.splitlines()[-1] for err in errs), errs
    assert 4 < max(row["step"] for row in rows_of(tmp_path)) < 24
    assert finish(tmp_path, then) == whole[1]
    assert rows_of(tmp_path) == rows_of(whole[0])


@pytest.mark.slow
def test_a_run_begun_by_one_process_is_ended_by_two(tmp_path, whole):
    with Job(tmp_path, 1, pause_s=0.1) as job:
        job.wait_for_step(4)
        job.processes[0].send_signal(signal.SIGTERM)
        assert job.ended()[0] == [75]
    assert finish(tmp_path) == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_ends_the_job_and_is_named(tmp_path, whole, rank):
    with Job(tmp_path, hang_after_s=12, pause_s=0.1) as job:
        job.wait_for_step(4)
        stopped = job.trainer(rank)
        os.kill(stopped, signal.SIGSTOP)
        codes, _, errs = job.ended()
    assert codes == [75, 75], errs
    named = [err for err in errs if f"no step for 12 s: process {stopped} on " in err]
    assert named and all(f"(rank {rank}, step " in err for err in named), (
        errs
    )  # the other may be ended by that
    assert all("the same command goes on from the last checkpoint" in err.splitlines()[-1] for err in errs), (
        errs
    )
    assert finish(tmp_path) == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(tmp_path, whole, rank):
    with Job(tmp_path, pause_s=0.1) as job:
        job.wait_for_step(4)
        began = time.monotonic()
        job.processes[rank].kill()  # the process beside it: the trainer goes with it
        codes, _, errs = job.ended()
    assert time.monotonic() - began < 60
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, 75), errs
    line = errs[1 - rank].splitlines()[-1]
    assert " of this job " in line and "the same command goes on from the last checkpoint" in line
    assert finish(tmp_path) == whole[1]
    assert rows_of(tmp_path) == rows_of(whole[0])


@pytest.mark.slow
def test_what_one_process_cannot_read_is_said_by_it_and_the_other_ends_too(tmp_path, whole):
    with Job(tmp_path, EDITJAX_TEST_UNREADABLE="5") as job:
        codes, _, errs = job.ended()
    assert codes == [75, 65], errs
    assert "editjax: shards/0: damaged" in errs[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("what", ["FULL", "DIES"])
def test_a_save_that_one_process_cannot_finish_ends_both_and_the_same_command_goes_on(
    tmp_path, whole, rank, what
):
    began = time.monotonic()
    with Job(tmp_path, hang_after_s=200, **{f"EDITJAX_TEST_{what}": str(rank)}) as job:
        codes, _, errs = job.ended()
    assert time.monotonic() - began < 180
    assert codes[1 - rank] == 75, errs
    if what == "FULL":
        assert codes[rank] == 74 and "/last/12: not written (" in errs[rank].splitlines()[-1], errs
    assert finish(tmp_path) == whole[1]


@pytest.mark.slow
def test_batches_that_are_not_finite_are_skipped_by_both_and_named_whole(tmp_path):
    one, two = (finish(tmp_path / str(count), count, EDITJAX_TEST_POISON="5") for count in (1, 2))
    assert one == two
    (row,) = [row for row in rows_of(tmp_path / "2") if row.get("skipped")]
    assert row["ids"] == list(range(40, 48))


@pytest.mark.slow
def test_both_go_back_to_the_newest_whole_checkpoint(tmp_path, whole):
    finish(tmp_path)
    newest = next((tmp_path / "last" / "24").glob("**/manifest.ocdbt"))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert finish(tmp_path) == whole[1]
    assert rows_of(tmp_path) == rows_of(whole[0])


@pytest.mark.slow
def test_a_second_job_is_refused_at_every_process(tmp_path):
    with Job(tmp_path, pause_s=0.5) as first:
        first.wait_for_step(1)
        with Job(tmp_path) as second:
            codes, _, errs = second.ended()
    assert codes == [73, 73], errs
    assert all("is training here" in err for err in errs)


def test_a_process_without_its_coordinator_says_so(tmp_path):
    with Job(tmp_path, 1, of=2) as job:  # rank 0 waits for rank 1
        codes, _, errs = job.ended()
    assert codes == [75], errs
    assert "not all processes of this job came in time" in errs[0].splitlines()[-1]
