"""Finds and kills process trees on Linux, and proves that none is left; knows which processes are a run's."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

KILL_DEADLINE = 15.0
"""Seconds that `kill_descendants` keeps trying: a fork storm was seen to take 9 s."""

_WAIT_ROUND_MS = 20

# Two threads that walk the same tree slow each other down.
_ONE_AT_A_TIME = threading.Lock()


class ProcessesLeftError(RuntimeError):
    """Processes were still alive at the deadline; the message lists them."""


def children(pid: int) -> list[int]:
    """Return the direct children of a process, zombies included; none if the process is gone."""
    found: list[int] = []
    # A process may vanish at any moment.
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def spare_none(_: int) -> bool:
    """Return False: spare no process."""
    return False


def in_own_session(pid: int) -> bool:
    """Return whether a process is in the caller's session, which no process can join from outside."""
    with contextlib.suppress(OSError):
        return os.getsid(pid) == os.getsid(0)
    return False


def descendants(pid: int, spare: Callable[[int], bool] = spare_none) -> list[int]:
    """Return all descendants of a process, except those to spare and their descendants."""
    found: list[int] = []
    below = [child for child in children(pid) if not spare(child)]
    while below:
        found += below
        below = [child for parent in below for child in children(parent) if not spare(child)]
    return found


def _reap(pid: int) -> None:
    os.waitpid(pid, os.WNOHANG)


def kill_descendants(
    pid: int,
    spare: Callable[[int], bool] = spare_none,
    *,
    reap: Callable[[int], object] = _reap,
    deadline: float = KILL_DEADLINE,
) -> set[int]:
    """Kill every descendant of a process, and return when none is left.

    Descendants are stopped before they are killed, so that they cannot fork meanwhile, and the search is
    repeated until it finds none. The process must be a subreaper, or orphans escape.

    Args:
        pid: The process; if it is the caller, dead children are reaped as well.
        spare: Returns whether to spare a process and its descendants.
        reap: Reaps a dead child of the caller.
        deadline: Seconds to keep trying.

    Returns:
        The ids of the killed processes.

    Raises:
        ProcessesLeftError: Some were still alive at the deadline.
    """
    with _ONE_AT_A_TIME:
        return _kill_descendants(pid, spare, reap, deadline)


def _kill_descendants(
    pid: int, spare: Callable[[int], bool], reap: Callable[[int], object], deadline: float
) -> set[int]:
    killed: set[int] = set()
    end = time.monotonic() + deadline
    while found := descendants(pid, spare):
        alive = [one for one in found if living_thread(one)]
        # A single process cannot be restarted by another one: it need not be stopped.
        for number in (signal.SIGSTOP, signal.SIGKILL) if len(alive) > 1 else (signal.SIGKILL,):
            for one in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, number)
        killed.update(alive)
        _wait_for_end(alive)
        for one in found if pid == os.getpid() else ():
            with contextlib.suppress(ChildProcessError):
                reap(one)
        if time.monotonic() > end:
            raise ProcessesLeftError(f"still alive after {deadline} s: {found}")
    return killed


def living_thread(pid: int) -> int:
    """Return a living thread of a process, preferably the main one; zero: none.

    A process whose main thread has ended looks like a zombie, and continues. `/proc` has its memory under the
    id of a living thread.
    """
    if _runs(pid):
        return pid
    with contextlib.suppress(OSError):
        return next((one for one in map(int, os.listdir(f"/proc/{pid}/task")) if _runs(one)), 0)
    return 0


def _runs(thread: int) -> bool:
    """Return whether a thread is alive, and not a zombie."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{thread}/stat").read_bytes()
        return stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in b"ZX"
    return False


def open_files(pid: int) -> Iterator[tuple[str, str]]:
    """Yield the open files of a process, sockets included: the path in /proc, and its target."""
    folder = f"/proc/{living_thread(pid)}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                yield f"{folder}/{name}", os.readlink(f"{folder}/{name}")


def _wait_for_end(pids: list[int]) -> None:
    """Wait until all have ended, but not for long: a new search is better than a long wait."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                poll.poll(_WAIT_ROUND_MS)
            finally:
                os.close(descriptor)


# Linux numbers system calls differently for each architecture. The first argument of `read` is the
# descriptor; that of `select` and `pselect6`, which readline calls first, is the highest descriptor plus one.
_READ = {"x86_64": {"0"}}.get(platform.machine(), {"63"})
_SELECT = {"x86_64": {"23", "270"}}.get(platform.machine(), {"72"})
_TERMINALS = ("/dev/pts/", "/dev/tty", "/dev/console")


def reader_of_terminal(pids: Iterable[int]) -> str:
    """Return the name of a process that waits for input from a terminal; empty: none."""
    for pid in pids:
        # A process vanishes between any two reads, and some systems hide what it waits for.
        with contextlib.suppress(OSError, ValueError):
            number, argument, *_ = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
            if number not in _READ | _SELECT:
                continue
            descriptor = int(argument, 16) - (number in _SELECT)
            if os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith(_TERMINALS):
                return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""


PATIENCE = 0.1
"""Seconds that a search for the run's processes waits for a process that is being started."""


_TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """Return the processor time of a living process and of its reaped children, in seconds; 0: it is gone."""
    with contextlib.suppress(OSError):
        # The clock that clock_getcpuclockid(3) names: exact, where `/proc` counts in hundredths of a second.
        own = time.clock_gettime(~pid << 3 | 2)
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        # proc(5) counts from 1, and the first field after the name is the third.
        user, system = stat[stat.rindex(b")") + 2 :].split()[13:15]
        return own + (int(user) + int(system)) / _TICKS
    return 0.0


class ReapedProcesses:
    """What the processes of one run used, as Linux reports it when they are reaped.

    A process reports its own use and that of the children that it has reaped itself. Orphans become children
    of the worker, so each process of a run is counted once, however it ended and whoever reaped it.
    """

    def __init__(self) -> None:
        # Process id, processor seconds and bytes. Threads and a signal handler add to it: that is one step.
        self._processes: list[tuple[int, float, int]] = []

    def add(self, pid: int, usage: resource.struct_rusage) -> None:
        """Count a process."""
        self._processes.append((pid, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024))

    def __contains__(self, pid: int) -> bool:
        return any(one == pid for one, _, _ in self._processes)

    @property
    def cpu_seconds(self) -> float:
        """Their processor time, user and system."""
        return sum(seconds for _, seconds, _ in self._processes)

    @property
    def peak_bytes(self) -> int:
        """The largest resident memory of one of them, in bytes."""
        return max((peak for _, _, peak in self._processes), default=0)


def _nothing() -> None: ...


class RunProcesses:
    """Finds the processes of the run: all below this one, except those that are kept for later runs.

    A process to keep is started within `starting`, and registered there: until then no search runs, which
    would take it for a process of the run.

    Attributes:
        kernel: The run's kernel, which other code waits for; 0: none.
        reaped: What the reaped processes of the run have used; a new run replaces it.
        paused: Reap nothing, because a child is being started and not yet known.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kept: set[int] = set()
        self._give_up: Callable[[], object] = _nothing
        self.kernel = 0
        self.reaped = ReapedProcesses()
        self.paused = True

    @contextlib.contextmanager
    def starting(self, give_up: Callable[[], object] = _nothing) -> Iterator[set[int]]:
        """Hold off every search for the run's processes; processes in the yielded set are kept.

        Args:
            give_up: Called from another thread if a search would have to wait for too long.
        """
        with self._lock:
            self._give_up = give_up
            try:
                yield self._kept
            finally:
                self._give_up = _nothing

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=PATIENCE):
            self._give_up()
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def release(self, pid: int) -> None:
        """Keep a process no longer: it is the run's, or dead."""
        with self._lock:
            self._kept.discard(pid)

    def processes(self) -> list[int]:
        """Return the run's processes."""
        with self._looking():
            return descendants(os.getpid(), self._kept.__contains__)

    def peek(self) -> list[int]:
        """Return the run's processes; none if a process is being started."""
        if not self._lock.acquire(timeout=PATIENCE):
            return []
        try:
            return descendants(os.getpid(), self._kept.__contains__)
        finally:
            self._lock.release()

    def kill(self) -> set[int]:
        """Kill the run's processes, and return them when none is left.

        Raises:
            ProcessesLeftError: Some were still alive after `KILL_DEADLINE`.
        """
        with self._looking():
            return kill_descendants(os.getpid(), self._kept.__contains__, reap=self.wait)

    def wait(self, pid: int) -> int | None:
        """Reap a child that belongs to the run, if it has ended, and count what it used.

        Returns:
            Its wait status; None: it has not ended.

        Raises:
            ChildProcessError: It is no child, or was reaped before.
        """
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if not found:
            return None
        self.reaped.add(pid, usage)
        return status

    def install(self) -> None:
        """Reap orphans of the run whenever a child ends; call it on the main thread."""
        signal.signal(signal.SIGCHLD, lambda *_: self.reap())

    def reap(self) -> None:
        """Reap the children that have ended."""
        with contextlib.suppress(ChildProcessError):
            while not self.paused:
                # Only peeked at: other code needs the exit codes of some.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None or found.si_pid == self.kernel or found.si_pid in self._kept:
                    return
                self.wait(found.si_pid)


run_processes = RunProcesses()
