"""Keeps warm kernels, each for one run: a thread starts, watches and replaces them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import select
import string
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto
from functools import partial
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec

from notebook_runner_server.confinement.environment import inherited
from notebook_runner_server.confinement.policy import SandboxPolicy
from notebook_runner_server.execution.kernel import LOST_SOCKETS, READY_TIMEOUT, Kernel
from notebook_runner_server.execution.kernel_specs import KernelSpecs
from notebook_runner_server.execution.options import WarmKernels
from notebook_runner_server.execution.processes import run_processes
from notebook_runner_server.execution.warm.forking import (
    ForkServer,
    ForkServerError,
    can_set,
    interpreter,
    split,
)
from notebook_runner_server.execution.warm.languages import LANGUAGES

FORKED_SECONDS = 10.0
"""Seconds from the fork of a kernel to its first answer, which takes some 0.1 s."""

REMOVED_FILES_SECONDS = 30.0
"""Seconds between two checks whether a warm kernel keeps the disk space of removed files: not more often,
because a replacement costs a start, and there are folders in which files are removed all the time."""


class State(Enum):
    """The state of a warm kernel."""

    STARTING = auto()
    """The kernel restricts itself and binds its sockets."""
    ASKED = auto()
    """The kernel was asked for its first answer."""
    READY = auto()
    """The kernel has answered, and a run can use it."""
    LOST = auto()
    """The kernel did not become ready, and is being killed."""
    DISCARDED = auto()
    """The kernel was ready, must no longer be used, and is being killed."""


class WarmKernel:
    """A kernel that no run has used.

    Attributes:
        state: Its state.
        deadline: When it must be ready, by the monotonic clock.
        next_check: When to check whether it keeps removed files, by the same clock.
        why: Why it is being killed; empty: it is not.
        warm_up: The thread that has its first answer, which ends when the kernel does; None: not started.
    """

    def __init__(self, kernel: Kernel, patience: float) -> None:
        self.kernel = kernel
        self.pidfd = os.pidfd_open(kernel.pid)
        self.state = State.STARTING
        self.deadline = time.monotonic() + patience
        self.next_check = time.monotonic() + REMOVED_FILES_SECONDS
        self.why = ""
        self.warm_up: threading.Thread | None = None

    @property
    def is_starting(self) -> bool:
        """Whether it may still become ready."""
        return self.state in {State.STARTING, State.ASKED}

    def forget(self) -> None:
        """Stop keeping it."""
        os.close(self.pidfd)
        run_processes.release(self.kernel.pid)


class KernelSource:
    """A kernelspec with warm kernels, and the fork server for them if it is ipykernel's."""

    def __init__(self, name: str, spec: KernelSpec, preload: tuple[str, ...], *, hide: bool) -> None:
        self.name = name
        self._spec = spec
        self.fork_server: ForkServer | None = None
        self.pidfd: int | None = None
        self.fork_server_died = self.announced = False
        self.failed: Mapping[str, str] = {}
        if parts := split(spec.argv):
            base = inherited()
            own = {key: string.Template(value).safe_substitute(base) for key, value in spec.env.items()}
            with run_processes.starting() as kept:
                self.fork_server = ForkServer(interpreter(parts[0]), preload, {**base, **own}, hide=hide)
                kept.add(self.fork_server.process.pid)
            self.pidfd = os.pidfd_open(self.fork_server.process.pid)
            try:
                self.failed = self.fork_server.wait_ready()
            except ForkServerError:
                self.close()
                raise

    @property
    def patience(self) -> float:
        """Seconds that a kernel may take until its first answer."""
        return READY_TIMEOUT if self.fork_server is None else FORKED_SECONDS

    def can_host(self, variables: Mapping[str, str], preload: tuple[str, ...]) -> bool:
        """Return whether variables can be set in a running kernel."""
        if any(name in key + value for name in variables for key, value in self._spec.env.items()):
            # The kernelspec's variables come last, and may refer to others.
            return False
        if self.fork_server is not None:
            return can_set(variables, imported=bool(preload))
        return can_set(variables, imported=True) and all(map(str.isidentifier, variables))

    def kill_fork_server(self) -> None:
        """Kill the fork server."""
        if self.fork_server is not None:
            self.fork_server.process.kill()

    def close(self) -> None:
        """End the fork server."""
        if self.fork_server is not None and self.pidfd is not None:
            # Its process id may be reused as soon as it is reaped.
            with run_processes.starting() as kept:
                self.fork_server.close()
                kept.discard(self.fork_server.process.pid)
            os.close(self.pidfd)
        self.pidfd, self.fork_server_died = None, True


FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds until a kernel that died or could not be started is replaced: doubled with each failure."""

TOGETHER = "*"
"""Stands for all preloaded modules together, which started a thread or keep a file open."""

HOLD_SECONDS = 0.1
"""Seconds that a run has the processors for itself before its kernel is replaced."""

IMPATIENCE = 2.0
"""Seconds that a run waits for a warm kernel after one was lost."""

CHECK_SECONDS = 2.0
"""Seconds between two checks whether the warm kernels can still be reached."""


class WarmPool:
    """The warm kernels of a worker.

    Args:
        wanted: The kernels to keep.
        folder: The folder to create their folders in.
        policy: What they may access; None: whatever the user may.
        hide: Make fork servers non-dumpable, so that other processes cannot inspect them.
        log: Called with logging's level, an event, and its fields.
        on_counts: Called with the number of ready kernels, by kernelspec, whenever that changes.
    """

    def __init__(
        self,
        wanted: WarmKernels,
        folder: Path,
        policy: SandboxPolicy | None,
        hide: bool,
        log: Callable[..., None],
        on_counts: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._wanted = wanted
        self._counts: Mapping[str, int] = {}
        self._folder = folder
        self._policy = policy
        self._hide = hide
        self._log = log
        self._on_counts = on_counts
        self._reported: Mapping[str, int] = {}
        # Held while the kernels change, and while one is signalled, which must not be reaped then.
        self._lock = threading.RLock()
        self._kernels: list[WarmKernel] = []
        self._sources: dict[str, KernelSource] = {}
        # The kernelspecs of kernels that are about to be started.
        self._coming: set[str] = set()
        # Wakes the run that waits for a kernel; a worker has one run at a time.
        self._wake_run: Callable[[], object] | None = None
        self._failures, self._not_before = 0, 0.0
        # No kernel has become ready since one was lost: runs do not wait long.
        self._failing = False
        self._last_failure = self._hold = 0.0
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def start(self, languages: Mapping[str, str]) -> None:
        """Start the thread, if there are kernels to keep ready.

        Args:
            languages: The kernelspecs with their languages.
        """
        possible = {name for name, language in languages.items() if language.lower() in LANGUAGES}
        self._counts = {name: count for name, count in self._wanted.counts.items() if name in possible}
        if any(self._counts.values()):
            threading.Thread(target=self._run, name="warm-pool", daemon=True).start()

    async def take(self, name: str, variables: Mapping[str, str]) -> Kernel | None:
        """Take a kernel out of the pool, and return it; None: the caller starts one.

        Args:
            name: The kernelspec.
            variables: The variables that the run sets.
        """
        source = self._sources.get(name)
        if source is None or not source.can_host(variables, self._wanted.preload):
            return None
        changed = asyncio.Event()
        self._wake_run = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
        try:
            async with asyncio.timeout(IMPATIENCE if self._failing else source.patience):
                while True:
                    # Together: a kernel that gets ready between the two is neither ready nor coming.
                    with self._lock:
                        kernel = self._take(source)
                        is_coming = kernel is None and self._is_coming(source)
                    if not is_coming:
                        return kernel
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return None
        finally:
            self._wake_run = None

    def _take(self, source: KernelSource) -> Kernel | None:
        """Return a ready kernel that can still be used; None: no kernel is ready."""
        with self._lock:
            ready = [
                warm
                for warm in self._kernels
                if warm.kernel.name == source.name and warm.state is State.READY
            ]
            taken = next((warm for warm in ready if not self._discard_if_unusable(warm)), None)
            now = time.monotonic()
            if taken is not None:
                self._kernels.remove(taken)
                self._hold = now + HOLD_SECONDS
                self._expect_another(source)
            else:
                # A run waits for the next one.
                self._hold = 0.0
        self._wake_up()
        if taken is None:
            return None
        taken.forget()
        return taken.kernel

    def _expect_another(self, source: KernelSource) -> None:
        """Let runs wait for the kernel that replaces one, unless that takes long."""
        if not source.fork_server_died and time.monotonic() + HOLD_SECONDS > self._not_before:
            self._coming.add(source.name)

    def _discard_if_unusable(self, warm: WarmKernel) -> bool:
        """Kill a ready kernel that must no longer be used, and return whether it was killed."""
        if why := warm.kernel.why_unusable():
            self._discard(warm, why)
        return bool(why)

    def _discard(self, warm: WarmKernel, why: str) -> None:
        level = logging.WARNING if why == LOST_SOCKETS else logging.DEBUG
        self._log(level, "warm_kernel_discarded", why=why, pid=warm.kernel.pid)
        self._end(warm, why, State.DISCARDED)
        self._expect_another(self._sources[warm.kernel.name])

    def _end(self, warm: WarmKernel, why: str, state: State) -> None:
        """Kill a kernel; `_reap` takes it out when it has ended."""
        warm.why, warm.state = why, state
        warm.kernel.kill()

    def _is_coming(self, source: KernelSource) -> bool:
        with self._lock:
            starting = {warm.kernel.name for warm in self._kernels if warm.is_starting}
            return source.name in starting | self._coming

    def report_unfit(self, kernel: Kernel, error: Exception) -> None:
        """Log that a kernel that was taken could not become the run's."""
        why = f"a run could not use it: {str(error) or type(error).__name__}"
        self._log(logging.WARNING, "warm_kernel_lost", why=why, pid=kernel.pid)

    def resume(self) -> None:
        """Replace the kernel that was taken, because the run has ended."""
        self._hold = 0.0
        self._wake_up()

    def _wake_up(self) -> None:
        # A pipe that is full wakes as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b".")

    def _wake_run_up(self) -> None:
        """Wake the run that waits for a kernel."""
        wake = self._wake_run
        # Its event loop may have been closed meanwhile.
        with contextlib.suppress(RuntimeError):
            if wake is not None:
                wake()

    def _pause(self) -> float:
        """Return the seconds until the next kernel may be started."""
        return max(self._hold, self._not_before) - time.monotonic()

    def _report_counts(self) -> None:
        """Report the number of ready kernels if it has changed."""
        with self._lock:
            counts = Counter(warm.kernel.name for warm in self._kernels if warm.state is State.READY)
        if counts != self._reported:
            self._reported = counts
            self._on_counts(counts)

    def _run(self) -> None:
        while True:
            try:
                self._check_kernels()
                self._report_counts()
                rest = self._pause()
                if rest <= 0:
                    self._refill()
                    self._report_counts()
                self._watch(rest)
            except Exception as error:  # noqa: BLE001 - runs start their own kernels instead
                self._note_failure(f"{type(error).__name__}: {error}")
                # An error that repeats must not keep the processor busy.
                time.sleep(FIRST_PAUSE)

    def _note_failure(self, why: str) -> None:
        now = time.monotonic()
        self._failures = self._failures + 1 if now - self._last_failure < 2 * LONGEST_PAUSE else 1
        self._last_failure = now
        self._not_before = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        self._log(logging.WARNING, "warm_kernel_lost", why=why)
        with self._lock:
            self._failing = True
            self._coming.clear()
        self._wake_run_up()

    def _refill(self) -> None:
        """Start the missing kernels."""
        for name, count in self._counts.items():
            # A dead fork server is replaced even if no kernel is missing, for one will be soon.
            self._source(name)
            while self._number_kept(name) < count:
                source = self._source(name)
                with self._lock:
                    self._coming.add(name)
                warm = self._launch(source)
                with self._lock:
                    self._kernels.append(warm)
                    self._coming.discard(name)
                if warm.kernel.control is None:
                    self._start_warm_up(warm)

    def _number_kept(self, name: str) -> int:
        with self._lock:
            return sum(warm.kernel.name == name and not warm.why for warm in self._kernels)

    def _launch(self, source: KernelSource) -> WarmKernel:
        kernel = Kernel(source.name, self._folder, source.fork_server, self._policy)
        try:
            # Read here, where no run waits for it.
            assert kernel.manager.kernel_spec  # noqa: S101 - it is there, or raises
            kernel.prepare_ahead()
            with run_processes.starting(source.kill_fork_server) as kept:
                asyncio.run(kernel.launch_ahead())
                kept.add(kernel.pid)
            return WarmKernel(kernel, source.patience)
        except BaseException as error:
            run_processes.release(kernel.pid)
            kernel.close()
            if isinstance(error, ForkServerError):
                # It died or is stuck.
                source.close()
            raise

    def _source(self, name: str) -> KernelSource:
        """Return the source of a kernelspec, and start its fork server if necessary."""
        source = self._sources.get(name)
        if source is None or source.fork_server_died:
            spec = KernelSpecs().get_kernel_spec(name)
            source = KernelSource(name, spec, self._wanted.preload, hide=self._hide)
            for module, why in source.failed.items():
                self._log(logging.ERROR, "preload_failed", modules=module, why=why)
            if TOGETHER in source.failed:
                source.close()
                source = KernelSource(name, spec, (), hide=self._hide)
            self._sources[name] = source
        return source

    def _watch(self, rest: float) -> None:
        """Wait until a kernel is taken, becomes ready or dies, or the pause ends."""
        with self._lock:
            events = dict(self._events())
            deadlines = [warm.deadline - time.monotonic() for warm in self._kernels if warm.is_starting]
        seconds = max(0.0, min([CHECK_SECONDS, *deadlines, *([rest] if rest > 0 else [])]))
        poll = select.poll()
        for descriptor in events:
            poll.register(descriptor, select.POLLIN)
        # Rounded up: a deadline must have passed when poll() returns.
        for descriptor, _ in poll.poll(math.ceil(1000 * seconds)):
            events[descriptor]()
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _events(self) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield descriptors to poll, each with what to call when it is readable."""
        yield self._wake, lambda: None
        for source in self._sources.values():
            if source.pidfd is not None:
                yield source.pidfd, partial(self._fork_server_ended, source)
        for warm in self._kernels:
            yield warm.pidfd, partial(self._reap, warm)
            if warm.state is State.STARTING and warm.kernel.control is not None:
                yield warm.kernel.control.fileno(), partial(self._control_readable, warm)

    def _fork_server_ended(self, source: KernelSource) -> None:
        source.close()
        self._note_failure("the fork server ended")

    def _control_readable(self, warm: WarmKernel) -> None:
        """Start the warm-up of a forked kernel that has restricted itself and bound its sockets."""
        with self._lock:
            is_bound = warm in self._kernels and warm.kernel.is_bound
        if is_bound:
            self._start_warm_up(warm)

    def _start_warm_up(self, warm: WarmKernel) -> None:
        warm.state = State.ASKED
        warm.warm_up = threading.Thread(target=self._warm_up, args=[warm], name="warm-up", daemon=True)
        warm.warm_up.start()

    def _warm_up(self, warm: WarmKernel) -> None:
        """Have a kernel answer for the first time, after which it is ready."""
        answered = warm.kernel.warm_up(warm.deadline - time.monotonic())
        with self._lock:
            if warm not in self._kernels or warm.why:
                return
            source = self._sources[warm.kernel.name]
            # Only the first ready kernel is worth a line at level info.
            level, source.announced = (
                logging.DEBUG if source.announced else logging.INFO,
                source.announced or answered,
            )
            if answered:
                warm.state, self._failing = State.READY, False
                self._log(level, "warm_kernel_ready", kernel=source.name, pid=warm.kernel.pid)
            else:
                self._end(warm, "it did not answer", State.LOST)
        self._wake_run_up()
        self._wake_up()

    def _check_kernels(self) -> None:
        """Kill kernels that are not ready in time, can no longer be reached, or keep removed files."""
        now = time.monotonic()
        with self._lock:
            for warm in self._kernels:
                if warm.is_starting and now >= warm.deadline:
                    self._end(warm, "it was not ready in time", State.LOST)
                elif warm.state is State.READY and not warm.kernel.is_reachable:
                    self._discard_if_unusable(warm)
                elif warm.state is State.READY and now >= warm.next_check:
                    warm.next_check = now + REMOVED_FILES_SECONDS
                    if warm.kernel.keeps_removed_file:
                        # No run may come to replace it: while the disk is full, none starts.
                        self._discard(warm, "the kernel keeps the disk space of a file that was removed")

    def _reap(self, warm: WarmKernel) -> None:
        with self._lock:
            if warm not in self._kernels:
                return
            self._kernels.remove(warm)
        if warm.warm_up is not None:
            # It uses the sockets that are closed here, and the process id.
            warm.warm_up.join()
        # Its process id may be reused as soon as it is reaped.
        with run_processes.starting():
            code = warm.kernel.exit_code()
            warm.forget()
        warm.kernel.close()
        if warm.state is not State.DISCARDED:
            self._note_failure(warm.why or f"it exited with code {code}")
