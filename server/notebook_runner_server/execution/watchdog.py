"""Watches the memory and the number of processes of a run.

Under cgroups the whole container is killed when a notebook runs out of memory, so the run's own limit has to
come first.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from notebook_runner_server.execution.interface import Cause
from notebook_runner_server.execution.processes import living_thread, open_files, run_processes
from notebook_runner_server.execution.shared_memory import Key, SharedMemory, mapped
from notebook_runner_server.execution.sockets import SocketBuffers, inode

INTERVAL = 0.05
"""Seconds between two checks. Memory fills at 1 to 2 GB/s, so a run exceeds its limit by at most 100 MB."""

LONG_INTERVAL = 0.25
"""The same for a run without limits, where only the shared memory is checked."""

MEASUREMENT_SECONDS = 1.0
"""Seconds between two measurements of the memory that a run uses."""

MOST_MEASURED = 1000
"""Processes above which nothing is measured: in a storm of forks it would take longer than to end them."""

WORKER_BYTES = 64 * 1024 * 1024
"""Memory that the worker itself may use during a run before it counts towards the run."""

_PAGE_TABLES = (b"VmPTE:",)
_RESIDENT = (b"VmRSS:", *_PAGE_TABLES)


class Watchdog:
    """Checks the processes of the run on its own thread until it is closed.

    Attributes:
        peak_bytes: The largest memory of several processes together at a measurement, in bytes; zero: none
            was made. That of a single process is known when it is reaped.

    Args:
        memory_bytes: Limit of their memory together, with the run's shared memory, what its sockets
            hold, and the growth of the worker; zero: unlimited.
        processes: Limit of their number; zero: unlimited.
        shared: The run's shared memory, which is tracked whatever the limits are.
        exceeded: Called once, from the thread, with the cause and a message.
    """

    def __init__(
        self,
        memory_bytes: int,
        processes: int,
        shared: SharedMemory,
        exceeded: Callable[[Cause, str], None],
    ) -> None:
        self._memory_bytes = memory_bytes
        self._processes = processes
        self._shared = shared
        self._sockets = SocketBuffers()
        self._own_before = resident(os.getpid())
        self.peak_bytes = 0
        self._next_measurement = 0.0
        self._exceeded = exceeded
        self._closed = threading.Event()
        self._judging = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching; nothing is reported from now on, which could affect the next run."""
        with self._judging:
            self._closed.set()

    def _judge(self, cause: Cause, message: str) -> None:
        with self._judging:
            if not self._closed.is_set():
                self._exceeded(cause, message)

    def _watch(self) -> None:
        while not self._closed.wait(INTERVAL if self._memory_bytes or self._processes else LONG_INTERVAL):
            try:
                if self._is_exceeded():
                    return
            except Exception:  # noqa: BLE001 - a notebook must not be able to end its watchdog
                traceback.print_exc()

    def _is_exceeded(self) -> bool:
        """Check the run, and report if it exceeds a limit."""
        if not (self._memory_bytes or self._processes):
            # Not urgent: a kernel that is just being started is not disturbed.
            shared = self._shared.look(run_processes.peek)
            if self._is_measurement_due():
                self.measure(run_processes.peek(), shared)
            return False
        found = run_processes.processes()
        self._shared.see(found)
        shared = self._shared.look(found.copy)
        if self._is_measurement_due():
            self.measure(found, shared)
        if self._processes and len(found) > self._processes:
            message = f"The run exceeded its limit of {self._processes} processes."
            self._judge(Cause.PROCESS_LIMIT, message)
            return True
        if self._memory_bytes and (used := self._used(found, shared)) > self._memory_bytes:
            self.measure(found, shared)
            message = f"The run used {used} bytes of memory; its limit is {self._memory_bytes} bytes."
            self._judge(Cause.OUT_OF_MEMORY, message)
            return True
        return False

    def _is_measurement_due(self) -> bool:
        now = time.monotonic()
        if now < self._next_measurement:
            return False
        self._next_measurement = now + MEASUREMENT_SECONDS
        return True

    def measure(self, pids: list[int], shared: Mapping[Key, int] | None = None) -> None:
        """Measure the memory of processes and of shared memory together for `peak_bytes`."""
        if (len(pids) > 1 or shared) and len(pids) <= MOST_MEASURED:
            self.peak_bytes = max(self.peak_bytes, memory(pids, self.peak_bytes, shared))

    def _used(self, pids: list[int], named: Mapping[Key, int]) -> int:
        own = resident(os.getpid()) - self._own_before - WORKER_BYTES
        files = [file for pid in pids for file in open_files(pid)]
        beside = self._sockets.size(number for _, link in files if (number := inode(link))) + max(0, own)
        shared = {**named, **self._shared.sizes(files)}
        return memory(pids, max(0, self._memory_bytes - beside), shared) + beside


def memory(pids: Iterable[int], enough: int = 0, shared: Mapping[Key, int] | None = None) -> int:
    """Return the memory of processes in bytes, with their page tables, shared pages counted once.

    Args:
        pids: The processes.
        enough: Return the cheaper sum, which counts shared pages for each process, up to this value.
        shared: The sizes of their shared memory objects, which they may have mapped in part.
    """
    pids, shared = list(pids), shared or {}
    cheap = sum(map(resident, pids)) + sum(shared.values())
    if cheap <= enough:
        return cheap
    beside = 0
    if any(shared.values()):
        there = mapped(pids)
        beside = sum(max(0, size - there.get(key, 0)) for key, size in shared.items())
    return sum(map(_proportional, pids)) + beside


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes, with shared pages and page tables; 0: it is gone."""
    found = _sum(pid, "status", _RESIDENT)
    if not found and (thread := living_thread(pid)) != pid:
        # The main thread has ended, and only the others show memory.
        found = _sum(thread, "status", _RESIDENT)
    return found


def _proportional(pid: int) -> int:
    thread = living_thread(pid)
    return _sum(thread, "smaps_rollup", (b"Pss:",)) + _sum(thread, "status", _PAGE_TABLES)


def _sum(pid: int, file: str, names: tuple[bytes, ...]) -> int:
    """Return the sum of fields of a file of a process, which has kB, in bytes; zero: it is gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/{file}").read_bytes().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))
    return 0


class OomKills:
    """Counts the processes of this control group that the system killed because memory ran out."""

    def __init__(self) -> None:
        self._before = _oom_kills()

    def happened(self) -> bool:
        """Return whether one was killed since this was created."""
        return _oom_kills() > self._before


def _oom_kills() -> int:
    for path in _counters():
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0


def _counters() -> list[Path]:
    """Return the files with the counter of the control group: version 2, then version 1."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                found.append(Path(f"/sys/fs/cgroup{path}/memory.events"))
            elif "memory" in controllers.split(","):
                found.append(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
    # Inside a container the path is the host's, and its own group is at the top.
    return [*found, Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")]
