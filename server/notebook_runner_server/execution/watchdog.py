"""Watches what a run takes: memory, and how many processes.

Under cgroups the whole container is killed when a notebook runs out of memory, so the run's own limit has to
come first.
"""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from notebook_runner_server.execution.interface import Cause
from notebook_runner_server.execution.processes import living_thread, run_processes
from notebook_runner_server.execution.shared_memory import Key, SharedMemory, mapped

INTERVAL = 0.05
"""Seconds between two looks. Memory is filled at 1 to 2 GB/s, so a limit is passed by 100 MB at the most."""

LONG_INTERVAL = 0.25
"""The same for a run without limits, of which only the shared memory is looked at."""

WORKER_BYTES = 64 * 1024 * 1024
"""How much memory the worker itself may take during a run before that counts as the run's."""

_PAGE = os.sysconf("SC_PAGESIZE")


class Watchdog:
    """Looks at the processes of the run, on a thread of its own, until it is closed.

    Args:
        memory_bytes: How much memory they may have together, with the run's shared memory and what the
            worker itself has taken meanwhile; zero: any.
        processes: How many they may be; zero: any.
        shared: The run's shared memory, which is noticed whatever the limits are.
        exceeded: Called once, from the thread, with what was exceeded and a sentence that says so.
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
        self._own_before = resident(os.getpid())
        self._exceeded = exceeded
        self._closed = threading.Event()
        self._judging = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more; what it has not said by now, it never will: the next run is not to pay for it."""
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
            except Exception:  # noqa: BLE001 - a notebook must not end what watches it, whatever it found
                traceback.print_exc()

    def _is_exceeded(self) -> bool:
        """Look at the run, and say so if it takes more than it may."""
        if not (self._memory_bytes or self._processes):
            # Nothing is so urgent that a kernel which is just being started would have to give way.
            self._shared.look(run_processes.peek)
            return False
        found = run_processes.processes()
        self._shared.see(found)
        shared = self._shared.look(found.copy)
        if self._processes and len(found) > self._processes:
            message = f"The run has more processes than its limit of {self._processes}."
            self._judge(Cause.PROCESS_LIMIT, message)
            return True
        if self._memory_bytes and (used := self._used(found, shared)) > self._memory_bytes:
            message = f"The run used {used} bytes of memory; its limit is {self._memory_bytes} bytes."
            self._judge(Cause.OUT_OF_MEMORY, message)
            return True
        return False

    def _used(self, pids: list[int], named: Mapping[Key, int]) -> int:
        own = resident(os.getpid()) - self._own_before - WORKER_BYTES
        shared = {**named, **self._shared.sizes(pids)}
        return memory(pids, self._memory_bytes, shared) + max(0, own)


def memory(pids: Iterable[int], enough: int = 0, shared: Mapping[Key, int] | None = None) -> int:
    """Return how many bytes of memory processes have together, pages that they share counted once.

    Args:
        pids: The processes.
        enough: Take the cheaper sum, which counts shared pages for each, as long as it is not above this.
        shared: The sizes of their objects of shared memory, of which they may have mapped a part.
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
    """Return how many bytes a process has in memory, with what it shares; zero: it is gone."""
    pages = _resident_pages(pid)
    if not pages and (thread := living_thread(pid)) != pid:
        # Its main thread has ended, and has no memory any more; the others have.
        pages = _resident_pages(thread)
    return pages * _PAGE


def _resident_pages(pid: int) -> int:
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    return 0


def _proportional(pid: int) -> int:
    return _told(living_thread(pid), "smaps_rollup", b"Pss:")


def peak(pid: int) -> int:
    """Return the most that a process has had in memory, in bytes; zero: it is gone."""
    return _told(living_thread(pid), "status", b"VmHWM:")


def _told(pid: int, file: str, name: bytes) -> int:
    """Return what Linux tells of a process in kB, in bytes; zero: it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_bytes().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


class OomKills:
    """Counts the processes that the kernel killed for want of memory in this process's control group."""

    def __init__(self) -> None:
        self._before = _oom_kills()

    def happened(self) -> bool:
        """Tell whether there was one since this was made."""
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
    """Return where the control group may count: version 2, then version 1."""
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
