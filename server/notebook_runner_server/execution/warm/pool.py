"""Keeps kernels ready, each for one run: a thread that starts them, watches them and replaces them."""

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

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from notebook_runner_server.confinement.environment import inherited
from notebook_runner_server.confinement.policy import SandboxPolicy
from notebook_runner_server.execution.kernel import LOST_SOCKETS, READY_TIMEOUT, Kernel
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
"""How long a kernel may take from its fork to its first answer; it takes some 0.1 s."""


class State(Enum):
    """How far a kernel in the reserve has come."""

    STARTING = auto()
    """It restricts itself, and binds its sockets."""
    ASKED = auto()
    """It is to answer for the first time."""
    READY = auto()
    """It has answered: a run possible have it at once."""
    LOST = auto()
    """It did not get ready, and is being ended."""
    DISCARDED = auto()
    """It was ready, must not be used any more, and is being ended."""


class WarmKernel:
    """A kernel in the reserve.

    Attributes:
        state: How far it has come.
        deadline: When it has to be ready at the latest, by the monotonic clock.
        why: Why it is being ended; empty: it is not.
    """

    def __init__(self, kernel: Kernel, patience: float) -> None:
        self.kernel = kernel
        self.pidfd = os.pidfd_open(kernel.pid)
        self.state = State.STARTING
        self.deadline = time.monotonic() + patience
        self.why = ""

    @property
    def is_starting(self) -> bool:
        """Whether it is not ready, and may become so."""
        return self.state in {State.STARTING, State.ASKED}

    def forget(self) -> None:
        """Keep it no more."""
        os.close(self.pidfd)
        run_processes.release(self.kernel.pid)


class KernelSource:
    """A kernelspec of which kernels are kept, and the template that forks them, if it is ipykernel's."""

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
        """How many seconds a kernel may take until it has answered."""
        return READY_TIMEOUT if self.fork_server is None else FORKED_SECONDS

    def can_host(self, variables: Mapping[str, str], preload: tuple[str, ...]) -> bool:
        """Tell whether variables possible be given to a kernel that runs."""
        if any(name in key + value for name in variables for key, value in self._spec.env.items()):
            # The kernelspec's own come last, and may be made of others.
            return False
        if self.fork_server is not None:
            return can_set(variables, imported=bool(preload))
        return can_set(variables, imported=True) and all(map(str.isidentifier, variables))

    def kill_fork_server(self) -> None:
        """End the template at once, whatever it does."""
        if self.fork_server is not None:
            self.fork_server.process.kill()

    def close(self) -> None:
        """Forget the template."""
        if self.fork_server is not None and self.pidfd is not None:
            # Its number may be another's as soon as it is reaped.
            with run_processes.starting() as kept:
                self.fork_server.close()
                kept.discard(self.fork_server.process.pid)
            os.close(self.pidfd)
        self.pidfd, self.fork_server_died = None, True


FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds until a kernel that could not be started, or died, is replaced: doubled with each failure."""

TOGETHER = "*"
"""Stands for all modules together: they started a thread, or keep a file open, which no fork may have."""

HOLD_SECONDS = 0.1
"""How long a run has the worker for itself before its kernel is replaced, unless it ends before."""

IMPATIENCE = 2.0
"""Seconds that a run waits for a kernel when the one before it was lost."""

CHECK_SECONDS = 2.0
"""How often it is checked whether the kernels that are kept possible still be reached."""


class WarmPool:
    """Kernels that no run has used, and none but one will use.

    Args:
        wanted: How many of which.
        folder: Where their folders are made.
        policy: What they may reach; None: whatever the user may.
        hide: Let other processes not look into what forks them.
        log: Takes what the operator may want to know: logging's level, an event, and its fields.
        on_counts: Takes how many are ready, by kernelspec, whenever that changes.
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
        # Held while the kernels that are kept change, and while one is signalled: it must not be reaped then.
        self._lock = threading.RLock()
        self._kernels: list[WarmKernel] = []
        self._sources: dict[str, KernelSource] = {}
        # The kernelspecs of which one is about to be started.
        self._coming: set[str] = set()
        # Wakes the run that waits for a kernel; a worker has one run at a time.
        self._wake_run: Callable[[], object] | None = None
        self._failures, self._not_before = 0, 0.0
        # None has become ready since one was lost: no run waits long for the next.
        self._failing = False
        self._last_failure = self._hold = 0.0
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def start(self, languages: Mapping[str, str]) -> None:
        """Start the thread, if there is anything for it to do.

        Args:
            languages: The kernelspecs that there are, and the language of each.
        """
        possible = {name for name, language in languages.items() if language.lower() in LANGUAGES}
        self._counts = {name: count for name, count in self._wanted.counts.items() if name in possible}
        if any(self._counts.values()):
            threading.Thread(target=self._run, name="reserve", daemon=True).start()

    async def take(self, name: str, variables: Mapping[str, str]) -> Kernel | None:
        """Return a kernel, which is the caller's from now on; None: it is to start one.

        Args:
            name: The kernelspec.
            variables: What it shall have in its environment.
        """
        source = self._sources.get(name)
        if source is None or not source.can_host(variables, self._wanted.preload):
            return None
        changed = asyncio.Event()
        self._wake_run = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
        try:
            async with asyncio.timeout(IMPATIENCE if self._failing else source.patience):
                while (kernel := self._take(source)) is None and self._is_coming(source):
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return None
        finally:
            self._wake_run = None
        return kernel

    def _take(self, source: KernelSource) -> Kernel | None:
        """Return a kernel that has answered and possible still be used; None: there is none now."""
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
            else:
                # Somebody waits for the next one.
                self._hold = 0.0
            if ready and not source.fork_server_died and now + HOLD_SECONDS > self._not_before:
                self._coming.add(source.name)
        self._wake_up()
        if taken is None:
            return None
        taken.forget()
        return taken.kernel

    def _discard_if_unusable(self, warm: WarmKernel) -> bool:
        """Tell whether a kernel that is ready must not be used any more; it is then ended, and replaced."""
        if why := warm.kernel.why_unusable():
            level = logging.WARNING if why == LOST_SOCKETS else logging.DEBUG
            self._log(level, "warm_kernel_discarded", why=why, pid=warm.kernel.pid)
            self._end(warm, why, State.DISCARDED)
        return bool(why)

    def _end(self, warm: WarmKernel, why: str, state: State) -> None:
        """End a kernel that is kept; it is taken out when it has ended."""
        warm.why, warm.state = why, state
        warm.kernel.kill()

    def _is_coming(self, source: KernelSource) -> bool:
        with self._lock:
            starting = {warm.kernel.name for warm in self._kernels if warm.is_starting}
            return source.name in starting | self._coming

    def resume(self) -> None:
        """Replace what was taken: the run has ended."""
        self._hold = 0.0
        self._wake_up()

    def _wake_up(self) -> None:
        # A pipe that is full wakes as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b".")

    def _wake_run_up(self) -> None:
        """Have the run that waits look again, if there is one."""
        wake = self._wake_run
        # Its event loop may have been closed meanwhile.
        with contextlib.suppress(RuntimeError):
            if wake is not None:
                wake()

    def _pause(self) -> float:
        """Return how long nothing is to be started, in seconds."""
        return max(self._hold, self._not_before) - time.monotonic()

    def _report_counts(self) -> None:
        """Tell how many are ready, if that is not what was told last."""
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
            except Exception as error:  # noqa: BLE001 - whatever it is, runs start kernels of their own
                self._note_failure(f"{type(error).__name__}: {error}")
                # Nor is it to happen again and again without a pause.
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
        """Start what is missing."""
        for name, count in self._counts.items():
            # A template that has ended is replaced although nothing is missing: the next kernel comes soon.
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
            # Read here, where it delays nobody.
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
                # It is gone, or not to be relied on.
                source.close()
            raise

    def _source(self, name: str) -> KernelSource:
        """Return what there is of a kernelspec; its template is started if it has none."""
        source = self._sources.get(name)
        if source is None or source.fork_server_died:
            spec = KernelSpecManager().get_kernel_spec(name)
            source = KernelSource(name, spec, self._wanted.preload, hide=self._hide)
            for module, why in source.failed.items():
                self._log(logging.ERROR, "preload_failed", modules=module, why=why)
            if TOGETHER in source.failed:
                source.close()
                source = KernelSource(name, spec, (), hide=self._hide)
            self._sources[name] = source
        return source

    def _watch(self, rest: float) -> None:
        """Wait until a kernel was taken, is ready or has died, or a pause of so many seconds is over."""
        with self._lock:
            events = dict(self._events())
            deadlines = [warm.deadline - time.monotonic() for warm in self._kernels if warm.is_starting]
        seconds = max(0.0, min([CHECK_SECONDS, *deadlines, *([rest] if rest > 0 else [])]))
        poll = select.poll()
        for descriptor in events:
            poll.register(descriptor, select.POLLIN)
        # Not a moment too early, or it would be asked again and again.
        for descriptor, _ in poll.poll(math.ceil(1000 * seconds)):
            events[descriptor]()
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _events(self) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield descriptors that possible be read when something has happened, and what to do then."""
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
        """See whether a kernel that was forked says that it has restricted itself and bound its sockets."""
        with self._lock:
            is_bound = warm in self._kernels and warm.kernel.is_bound
        if is_bound:
            self._start_warm_up(warm)

    def _start_warm_up(self, warm: WarmKernel) -> None:
        warm.state = State.ASKED
        threading.Thread(target=self._warm_up, args=[warm], name="warm-up", daemon=True).start()

    def _warm_up(self, warm: WarmKernel) -> None:
        """Have a kernel answer for the first time; from then on a run possible have it."""
        answered = warm.kernel.warm_up(warm.deadline - time.monotonic())
        with self._lock:
            if warm not in self._kernels or warm.why:
                return
            source = self._sources[warm.kernel.name]
            # How soon there is one is worth a line; the later ones are not.
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
        """End the kernels that do not get ready in time, and those that cannot be reached any more."""
        with self._lock:
            for warm in self._kernels:
                if warm.is_starting and time.monotonic() >= warm.deadline:
                    self._end(warm, "it did not get ready in time", State.LOST)
                elif warm.state is State.READY and not warm.kernel.is_reachable:
                    self._discard_if_unusable(warm)

    def _reap(self, warm: WarmKernel) -> None:
        with self._lock:
            if warm not in self._kernels:
                return
            self._kernels.remove(warm)
        # Its number may be another's as soon as it is reaped.
        with run_processes.starting():
            code = warm.kernel.exit_code()
            warm.forget()
        warm.kernel.close()
        if warm.state is not State.DISCARDED:
            self._note_failure(warm.why or f"it exited with code {code}")
