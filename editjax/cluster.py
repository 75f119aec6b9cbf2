"""One process, or one of several that train together: joining the others, agreeing with them, leaving.

What several processes decide they must decide alike, or each waits for the other in another place: so what
only one of them knows (a signal, a damaged shard, which checkpoint is whole) is told to all. JAX is imported
when there are others; a process alone does everything at once and by itself.
"""

import json
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np

from editjax import errors
from editjax.errors import EditjaxError, TryAgainError, UsageError

ADDRESS, PROCESSES, PROCESS = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
DETECT = "detect"  # as JAX_NUM_PROCESSES: several, and JAX is to find out (a TPU VM asks its metadata server)
JOIN_S = 300.0  # until all processes must have come
HEARTBEAT_S = 60  # without a sign of life for so long a process is lost, and all others end
LEAVE_S = 10.0  # how long one that leaves waits for the others to leave too
LOST = re.compile(
    r"^UNAVAILABLE:|Gloo \S+ failed|remote process exited|connection (closed|reset) by"
    r"|socket closed|coordination (service|agent)",
    re.IGNORECASE,
)
"""What XLA, Gloo and NCCL say when another process of the job has gone."""

Value = TypeVar("Value")


class Job(NamedTuple):
    """The job that this process is one of; what is None JAX finds out from the scheduler."""

    address: str | None = None
    processes: int | None = None
    process: int | None = None


def job() -> Job | None:
    """The job that the environment describes; None when this process is alone.

    Explicitly by the three variables above, or by SLURM, Open MPI or a TPU pod. UsageError for a part of it.
    """
    given = {name: os.environ[name] for name in (ADDRESS, PROCESSES, PROCESS) if os.environ.get(name)}
    if given == {PROCESSES: DETECT}:
        return Job()
    if given:
        if missing := {ADDRESS, PROCESSES, PROCESS} - given.keys():
            raise UsageError(f"{', '.join(sorted(given))} set, but not {', '.join(sorted(missing))}")
        return _explicit(given)
    sizes = [os.environ.get("OMPI_COMM_WORLD_SIZE")]
    if "SLURM_STEP_NODELIST" in os.environ and "SLURM_PROCID" in os.environ:  # started by srun
        sizes.append(os.environ.get("SLURM_NTASKS"))
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or ""
    several = "," in hosts or any(size and size.isdecimal() and int(size) > 1 for size in sizes)
    return Job() if several else None


def _explicit(given: dict[str, str]) -> Job | None:
    try:
        address, processes, process = given[ADDRESS], int(given[PROCESSES]), int(given[PROCESS])
        host, port = address.rsplit(":", 1)
        good = bool(host) and 0 < int(port) < 1 << 16 and 0 <= process < processes
    except ValueError:
        good = False
    if not good:
        said = ", ".join(f"{name}={value}" for name, value in sorted(given.items()))
        raise UsageError(
            f"{said}: give HOST:PORT, how many processes, and which of them (from 0) this one is"
        )
    return Job(address, processes, process) if processes > 1 else None


@contextmanager
def joined(within_s: float = JOIN_S) -> Iterator[None]:
    """While open, this process is one of its job; alone, nothing happens.

    TryAgainError when the coordinator cannot be reached within that time. When others do not come JAX ends
    the process: `watchdog` says why.
    """
    if (own := job()) is None:
        yield
        return
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself
    until = time.monotonic() + within_s
    if own.address is not None and own.process:
        _wait_for(own.address, within_s)
    try:
        jax.distributed.initialize(
            *own,
            initialization_timeout=max(1, round(until - time.monotonic())),
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=HEARTBEAT_S,
            cluster_detection_method="deactivate" if own.address else None,
        )
    except ValueError as error:
        raise UsageError(f"JAX cannot tell the processes of this job: {error}") from error
    except (RuntimeError, OSError) as error:
        raise TryAgainError(f"cannot join the other processes ({error})") from error
    with _lost_is_try_again():
        yield


def leave() -> bool:
    """Leave the job in order if all others do; False if this one leaves alone, and must not wait for them."""
    try:
        from jax._src.distributed import global_state  # the barrier that has a time limit is not public

        if global_state.client is not None:
            global_state.client.wait_at_barrier("editjax leaves", round(LEAVE_S * 1000))
            global_state.shutdown()
    except (RuntimeError, ValueError):
        return False
    except (
        ImportError,
        AttributeError,
    ):  # moved: JAX leaves in order when Python ends, but may wait a minute
        return True
    return True


def together(do: Callable[[], Value]) -> Value:
    """What this process's `do` gives; the error of any process is raised at all of them."""
    return _exchanged(do)[0]


def from_first(make: Callable[[], Value]) -> Value:
    """What the first process makes (JSON), or raises, at every process; only the first makes it."""
    if alone():
        return make()
    return _exchanged(make if is_first() else lambda: None)[1][0]


def from_all(value: Value) -> list[Value]:
    """The values (JSON) of all processes, in order."""
    return _exchanged(lambda: value)[1]


def alone() -> bool:
    """Whether there are no other processes."""
    import jax

    return jax.process_count() == 1


def is_lost(error: BaseException) -> bool:
    """Whether this is how XLA, Gloo, NCCL or Orbax say that another process of the job has gone."""
    return not alone() and LOST.search(str(error)) is not None


def is_first() -> bool:
    """Whether this process writes what is written once."""
    import jax

    return jax.process_index() == 0


def whole(array: Any) -> np.ndarray:
    """All of an array whose parts lie at different processes; a call for all of them."""
    from jax.experimental import multihost_utils

    return np.asarray(array if alone() else multihost_utils.process_allgather(array, tiled=True))


class Largest:
    """The largest of the numbers that the processes give, without waiting: known at the next asking.

    One all-reduce of a number a step, which runs beside the next step (3 ms over loopback on two cores that
    also train); alone, the number itself at once.
    """

    def __init__(self) -> None:
        self._pending: Any = None
        if alone():
            return
        import jax
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        devices = Mesh(np.array(jax.devices()), "all")
        self._split = NamedSharding(devices, PartitionSpec("all"))
        self._largest = jax.jit(lambda a: a.max(), out_shardings=NamedSharding(devices, PartitionSpec()))

    def ask(self, number: int, *, now: bool = False) -> int:
        """The largest number given at the last asking, or at this one if it is wanted `now`."""
        if alone():
            return number
        import jax

        local = np.full(jax.local_device_count(), number, np.int32)
        before = self._pending
        self._pending = self._largest(jax.make_array_from_process_local_data(self._split, local))
        wanted = self._pending if now else before
        return 0 if wanted is None else int(wanted)


def _wait_for(address: str, within_s: float) -> None:
    """Until the coordinator listens."""
    host, port = address.rsplit(":", 1)
    until = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise TryAgainError(
                    f"{address}: no coordinator there within {within_s:.0f} s ({error.strerror or error}); "
                    f"is process 0 running, and {ADDRESS} its address?"
                ) from None
        time.sleep(0.2)


@contextmanager
def _lost_is_try_again() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not is_lost(error):
            raise
        reason = str(error).splitlines()[0][:200]
        raise TryAgainError(
            f"another process of this job is gone ({reason}); "
            "the same command goes on from the last checkpoint"
        ) from error


def _exchanged(do: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """What `do` gives here, and at all processes; the first EditjaxError of any is raised at all."""
    own: Any = None
    problem: EditjaxError | None = None
    try:
        own = do()
    except EditjaxError as error:
        if alone():
            raise
        problem = error
    if alone():
        return own, [own]
    told = {"error": [type(problem).__name__, str(problem)]} if problem else {"value": _plain(own)}
    said = [json.loads(text) for text in _gather(json.dumps(told).encode())]
    if problem:
        raise problem
    for rank, one in enumerate(said):
        if "error" in one:
            kind, message = one["error"]
            raise getattr(errors, kind, EditjaxError)(f"process {rank}: {message}")
    return own, [one["value"] for one in said]


def _plain(value: Any) -> Any:
    """A value as it can be told; what is no JSON is of no interest to the others."""
    try:
        json.dumps(value)
    except TypeError:
        return None
    return value


def _gather(text: bytes) -> list[bytes]:
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.asarray(len(text), np.int32)).reshape(-1)
    room = 1 << math.ceil(math.log2(max(1024, *sizes)))
    padded = np.zeros(room, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [rows[rank, :size].tobytes() for rank, size in enumerate(sizes)]


def say(line: str) -> None:
    """A line on stderr, from one of all processes."""
    if is_first():
        print(line, file=sys.stderr)
