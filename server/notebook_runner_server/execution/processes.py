"""Process trees on Linux: find every descendant, end all of them, prove that none is left."""

from __future__ import annotations

import contextlib
import os
import platform
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

KILL_DEADLINE = 15.0
"""Seconds that `kill_descendants` keeps trying: a fork storm was seen to take 9 s."""

_WAIT_ROUND_MS = 20

# Two threads that walk the same tree only make each other slow.
_ONE_AT_A_TIME = threading.Lock()


class ProcessesLeftError(RuntimeError):
    """Processes were still there at the deadline; the message names them."""


def children(pid: int) -> list[int]:
    """Return the direct children of a process, zombies included; none when it is gone."""
    found: list[int] = []
    # A process vanishes between any two looks at it.
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def nobody(_: int) -> bool:
    """Spare no process."""
    return False


def in_own_session(pid: int) -> bool:
    """Tell whether a process is in the caller's session; nothing can join a session from outside."""
    with contextlib.suppress(OSError):
        return os.getsid(pid) == os.getsid(0)
    return False


def descendants(pid: int, spare: Callable[[int], bool] = nobody) -> list[int]:
    """Return all descendants of a process, without those to spare and what is below them."""
    found: list[int] = []
    below = [child for child in children(pid) if not spare(child)]
    while below:
        found += below
        below = [child for parent in below for child in children(parent) if not spare(child)]
    return found


def kill_descendants(
    pid: int, spare: Callable[[int], bool] = nobody, *, deadline: float = KILL_DEADLINE
) -> set[int]:
    """End every descendant of a process with SIGKILL, and return when none is left.

    What is found is stopped before it is killed, so that it cannot fork meanwhile, and the search is
    repeated until it finds nothing: the process must be a subreaper, else orphans escape it.

    Args:
        pid: Whose descendants; when it is the caller, dead children are reaped as well.
        spare: Tells which to leave alone, with all that is below them.
        deadline: Seconds to keep trying.

    Returns:
        The ids of the processes that were alive and were killed.

    Raises:
        ProcessesLeftError: Some were still there at the deadline.
    """
    with _ONE_AT_A_TIME:
        return _kill_descendants(pid, spare, deadline)


def _kill_descendants(pid: int, spare: Callable[[int], bool], deadline: float) -> set[int]:
    killed: set[int] = set()
    end = time.monotonic() + deadline
    while found := descendants(pid, spare):
        alive = [one for one in found if living_thread(one)]
        # Nobody is there who could start again what is killed: one alone need not be stopped.
        for number in (signal.SIGSTOP, signal.SIGKILL) if len(alive) > 1 else (signal.SIGKILL,):
            for one in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, number)
        killed.update(alive)
        _wait_for_end(alive)
        if pid == os.getpid():
            _reap(found)
        if time.monotonic() > end:
            raise ProcessesLeftError(f"still there after {deadline} s: {found}")
    return killed


def living_thread(pid: int) -> int:
    """Return a thread of a process that has not ended, the main one if it is; zero: there is none.

    A process whose main thread alone has ended is a zombie to all that looks at its own id, and goes on.
    What `/proc` tells of memory, it tells by the id of a thread that lives.
    """
    if _runs(pid):
        return pid
    with contextlib.suppress(OSError):
        return next((one for one in map(int, os.listdir(f"/proc/{pid}/task")) if _runs(one)), 0)
    return 0


def _runs(thread: int) -> bool:
    """Tell a thread that runs from one that is gone or waits to be reaped."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{thread}/stat").read_bytes()
        return stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in b"ZX"
    return False


def _wait_for_end(pids: list[int]) -> None:
    """Wait until all have ended, or a short while: a new look is better than a long wait."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                poll = select.poll()
                poll.register(descriptor, select.POLLIN)
                poll.poll(_WAIT_ROUND_MS)
            finally:
                os.close(descriptor)


def _reap(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


# Linux numbers system calls differently for each architecture. The first argument of `read` is the
# descriptor; that of `select` and `pselect6`, which readline calls first, is the highest descriptor plus one.
_READ = {"x86_64": {"0"}}.get(platform.machine(), {"63"})
_SELECT = {"x86_64": {"23", "270"}}.get(platform.machine(), {"72"})
_TERMINALS = ("/dev/pts/", "/dev/tty", "/dev/console")


def reader_of_terminal(pids: Iterable[int]) -> str:
    """Return the name of a process that waits for a terminal's input; empty: none is found."""
    for pid in pids:
        # A process vanishes between any two looks at it, and some systems hide what it waits for.
        with contextlib.suppress(OSError, ValueError):
            number, argument, *_ = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
            if number not in _READ | _SELECT:
                continue
            descriptor = int(argument, 16) - (number in _SELECT)
            if os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith(_TERMINALS):
                return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""


PATIENCE = 0.1
"""Seconds that a look at the run's processes waits for one that is being started."""


def _nothing() -> None: ...


class RunProcesses:
    """Knows which processes below this one are the run's.

    Whoever starts a process that is to be kept does so in `starting`, and names it there: until it is named,
    nobody looks for processes of the run, which it would be taken for.

    Attributes:
        kernel: The run's own kernel, whose end somebody else waits for; 0: there is none.
        paused: Reap nothing: a child is being started, and is not yet known.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._kept: set[int] = set()
        self._give_up: Callable[[], object] = _nothing
        self.kernel = 0
        self.paused = True

    @contextlib.contextmanager
    def starting(self, give_up: Callable[[], object] = _nothing) -> Iterator[set[int]]:
        """Hold off every look at the run's processes; what is put into the set is kept.

        Args:
            give_up: Called, from another thread, when that takes so long that somebody does not want to wait.
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
        """Keep a process no more: it is the run's, or dead."""
        with self._lock:
            self._kept.discard(pid)

    def processes(self) -> list[int]:
        """Return the run's processes."""
        with self._looking():
            return descendants(os.getpid(), self._kept.__contains__)

    def peek(self) -> list[int]:
        """Return the run's processes; none, where that would wait for one that is being started."""
        if not self._lock.acquire(timeout=PATIENCE):
            return []
        try:
            return descendants(os.getpid(), self._kept.__contains__)
        finally:
            self._lock.release()

    def kill(self) -> set[int]:
        """End the run's processes, and return which, when none is left.

        Raises:
            ProcessesLeftError: Some were still there after `KILL_DEADLINE`.
        """
        with self._looking():
            return kill_descendants(os.getpid(), self._kept.__contains__)

    def install(self) -> None:
        """Reap orphans, which a subreaper is handed, whenever a child ends; for the main thread."""
        signal.signal(signal.SIGCHLD, lambda *_: self.reap())

    def reap(self) -> None:
        """Reap the children that have ended."""
        with contextlib.suppress(ChildProcessError):
            while not self.paused:
                # A look first: the exit codes of some are somebody else's.
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None or found.si_pid == self.kernel or found.si_pid in self._kept:
                    return
                os.waitpid(found.si_pid, os.WNOHANG)


run_processes = RunProcesses()
