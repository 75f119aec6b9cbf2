"""Who is one of several, by what the environment says; what is refused; alone nothing is asked of anybody."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from editjax import cluster
from editjax.cluster import ADDRESS, PROCESS, PROCESSES, Job, job
from editjax.errors import DataError, TryAgainError, UsageError
from editjax.mesh import AXES, MeshSettings, make_mesh, ordered, share_of_examples

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_PROCID": "2"}


@pytest.fixture
def describe(monkeypatch):
    """Makes the environment say that, and nothing else, of the job."""
    for name in (ADDRESS, PROCESSES, PROCESS, *SLURM, "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    return lambda said: [monkeypatch.setenv(name, value) for name, value in said.items()]


@pytest.mark.parametrize(
    "said, found",
    [
        ({}, None),
        ({ADDRESS: "a:1", PROCESSES: "2", PROCESS: "1"}, Job("a:1", 2, 1)),
        ({ADDRESS: "[::1]:9", PROCESSES: "3", PROCESS: "0"}, Job("[::1]:9", 3, 0)),
        ({ADDRESS: "a:1", PROCESSES: "1", PROCESS: "0"}, None),
        ({PROCESSES: "detect"}, Job()),
        (SLURM, Job()),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # in the batch script, not under srun
        ({"OMPI_COMM_WORLD_SIZE": "2"}, Job()),
        ({"TPU_WORKER_HOSTNAMES": "t-0.s,t-1.s"}, Job()),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (SLURM | {ADDRESS: "a:1", PROCESSES: "2", PROCESS: "1"}, Job("a:1", 2, 1)),
    ],
)
def test_the_environment_says_who_is_one_of_several(describe, said, found):
    describe(said)
    assert job() == found


@pytest.mark.parametrize(
    "said, refused",
    [
        ({PROCESSES: "2"}, "JAX_NUM_PROCESSES set, but not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"),
        ({ADDRESS: "a:1", PROCESS: "0"}, "set, but not JAX_NUM_PROCESSES"),
        ({ADDRESS: "a", PROCESSES: "2", PROCESS: "1"}, "give HOST:PORT"),
        ({ADDRESS: "a:b", PROCESSES: "2", PROCESS: "1"}, "give HOST:PORT"),
        ({ADDRESS: ":1", PROCESSES: "2", PROCESS: "1"}, "give HOST:PORT"),
        ({ADDRESS: "a:1", PROCESSES: "2", PROCESS: "2"}, "JAX_PROCESS_ID=2: give HOST:PORT"),
        ({ADDRESS: "a:1", PROCESSES: "two", PROCESS: "0"}, "JAX_NUM_PROCESSES=two"),
    ],
)
def test_half_a_description_is_refused(describe, said, refused):
    describe(said)
    with pytest.raises(UsageError, match=refused):
        job()


def test_a_coordinator_that_is_not_there_is_named_in_time(describe):
    describe({ADDRESS: "127.0.0.1:1", PROCESSES: "2", PROCESS: "1"})
    began = time.monotonic()
    with (
        pytest.raises(TryAgainError, match=r"127\.0\.0\.1:1: no coordinator there within 0 s .*refused"),
        cluster.joined(0.3),
    ):
        pass
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "error, again",
    [
        (
            ValueError("UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [::1]:5"),
            True,
        ),
        (
            ValueError("UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error: Connection reset by peer"),
            True,
        ),
        (RuntimeError("UNAVAILABLE: failed to connect to all addresses"), True),
        (
            RuntimeError(
                "INTERNAL: NCCL operation failed: remote process exited or there was a network error"
            ),
            True,
        ),
        (RuntimeError("ABORTED: Socket closed"), True),
        (RuntimeError("DEADLINE_EXCEEDED: Barrier timed out (coordination service)"), True),
        (
            ValueError(
                "Unknown collectives implementation gloos. Available implementations are [None, 'gloo']"
            ),
            False,
        ),
        (RuntimeError("INTERNAL: NCCL operation failed: invalid usage"), False),
        (ValueError("peer access between these devices is not supported"), False),
        (RuntimeError("UNIMPLEMENTED: this kernel is unavailable on this device"), False),
    ],
)
def test_only_the_loss_of_another_process_is_worth_another_try(monkeypatch, error, again):
    monkeypatch.setattr(cluster, "alone", lambda: False)
    with pytest.raises(TryAgainError if again else type(error)), cluster._lost_is_try_again():
        raise error


@pytest.mark.parametrize(
    "error, raised, said",
    [
        (ValueError("Number of processes must be defined."), UsageError, "Number of processes"),
        (RuntimeError("DEADLINE_EXCEEDED: 1/2 came"), TryAgainError, "1/2 came"),
    ],
)
def test_what_is_waited_for_and_what_jax_refuses_at_joining(describe, monkeypatch, error, raised, said):
    describe({ADDRESS: "127.0.0.1:1", PROCESSES: "2", PROCESS: "1"})
    clock, given = [0.0], []

    def initialize(*_, initialization_timeout, **__):
        given.append(initialization_timeout)
        raise error

    monkeypatch.setattr(cluster.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(cluster, "_wait_for", lambda *_: clock.append(clock.pop() + 200))
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(raised, match=said), cluster.joined(300):
        pass
    assert given == [100]


@pytest.mark.parametrize("there", [None, SimpleNamespace(), SimpleNamespace(global_state=SimpleNamespace())])
def test_a_jax_without_the_private_barrier_leaves_by_itself(monkeypatch, there):
    monkeypatch.setitem(sys.modules, "jax._src.distributed", there)
    assert cluster.leave()


def test_alone_nobody_is_asked(describe):
    describe({})
    with cluster.joined():
        assert cluster.alone() and cluster.is_first()
        assert cluster.together(lambda: object) is object
        assert (cluster.from_first(lambda: 3), cluster.from_all(None)) == (3, [None])
        largest = cluster.Largest()
        assert [largest.ask(15), largest.ask(0)] == [15, 0]
        with pytest.raises(DataError):
            cluster.together(lambda: (_ for _ in ()).throw(DataError("a")))
    assert cluster.leave()


def devices_of(processes):
    """A mesh whose devices belong to those processes: just enough of one to ask for shares."""
    devices = np.vectorize(lambda index: SimpleNamespace(process_index=index))(np.asarray(processes))
    return SimpleNamespace(devices=devices, shape=dict(zip(AXES, devices.shape, strict=True)))


@pytest.mark.parametrize(
    "processes, shares",
    [
        ([[[[0]]], [[[1]]]], [(0, 2), (1, 2)]),
        ([[[[0]], [[0]]], [[[1]], [[1]]]], [(0, 2), (1, 2)]),  # data × fsdp
        ([[[[0], [1]]]], [(0, 1), (0, 1)]),  # tensor over the processes: both make every example
        ([[[[0], [1]]], [[[2], [3]]]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
)
def test_each_process_makes_the_examples_of_its_devices(processes, shares):
    mesh = devices_of(processes)
    assert [share_of_examples(mesh, process) for process in range(len(shares))] == shares


def test_examples_that_do_not_lie_side_by_side_are_no_share():
    with pytest.raises(UsageError, match=r"process 0 would train on rows \[0, 2\] of 4"):
        share_of_examples(devices_of([[[[0]]], [[[1]]], [[[0]]], [[[1]]]]), 0)
    assert share_of_examples(make_mesh(MeshSettings(fsdp=2))) == (0, 1)


def tpus(across, high, deep=1):
    """The chips of a slice, four of every process, in no order."""
    chips = [
        SimpleNamespace(
            platform="tpu",
            coords=[x, y, z],
            core_on_chip=0,
            process_index=(z * high + y) // 2 * across + x // 2,
        )
        for x, y, z in np.ndindex(across, high, deep)
    ]
    return list(np.random.default_rng(0).permutation(chips))


def gpus(machines, each):
    """Those of several machines, where NVLink ends; each has its process, which were started in turns."""
    return [
        SimpleNamespace(platform="gpu", id=k, coords=[0], process_index=k, slice_index=k % machines)
        for k in range(machines * each)
    ]


@pytest.mark.parametrize(
    "devices", [tpus(16, 16), tpus(4, 4, 4), gpus(4, 8)], ids=["TPU 2D", "TPU 3D", "GPU"]
)
@pytest.mark.parametrize(
    "inner", [(1, 1, 1), (8, 1, 1), (8, 1, 4), (4, 2, 1), (1, 4, 4), (1, 1, 8), (16, 2, 1)]
)
def test_every_mesh_gives_each_process_a_share(devices, inner):
    laid = ordered(devices).reshape(-1, *inner)
    mesh = SimpleNamespace(devices=laid, shape=dict(zip(AXES, laid.shape, strict=True)))
    found = {share_of_examples(mesh, device.process_index) for device in devices}
    assert found == {(k, len(found)) for k in range(len(found))}


def test_neighbours_are_near():
    """Chips of a process in a ring; GPUs of a machine side by side, however their processes are numbered."""
    for four in ordered(tpus(8, 4)).reshape(-1, 4):
        places = np.array([chip.coords for chip in four])
        assert (np.abs(places - np.roll(places, 1, axis=0)).sum(1) == 1).all()
    assert [gpu.slice_index for gpu in ordered(gpus(4, 8))] == sorted([0, 1, 2, 3] * 8)
