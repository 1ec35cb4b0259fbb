"""The processes of a run: all below the worker, but those that are kept for later runs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from notebook_runner_server.execution.processes import descendants, kill_descendants

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


tree = RunProcesses()
