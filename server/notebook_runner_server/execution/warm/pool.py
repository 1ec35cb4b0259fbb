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
from notebook_runner_server.execution.processes import tree
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
    """It has answered: a run can have it at once."""
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
        tree.release(self.kernel.pid)


class KernelSource:
    """A kernelspec of which kernels are kept, and the template that forks them, if it is ipykernel's."""

    def __init__(self, name: str, spec: KernelSpec, preload: tuple[str, ...], *, hide: bool) -> None:
        self.name = name
        self._spec = spec
        self.template: ForkServer | None = None
        self.pidfd: int | None = None
        self.template_died = self.told = False
        self.failed: Mapping[str, str] = {}
        if parts := split(spec.argv):
            base = inherited()
            own = {key: string.Template(value).safe_substitute(base) for key, value in spec.env.items()}
            with tree.starting() as kept:
                self.template = ForkServer(interpreter(parts[0]), preload, {**base, **own}, hide=hide)
                kept.add(self.template.process.pid)
            self.pidfd = os.pidfd_open(self.template.process.pid)
            try:
                self.failed = self.template.wait_ready()
            except ForkServerError:
                self.close()
                raise

    @property
    def patience(self) -> float:
        """How many seconds a kernel may take until it has answered."""
        return READY_TIMEOUT if self.template is None else FORKED_SECONDS

    def can_host(self, variables: Mapping[str, str], preload: tuple[str, ...]) -> bool:
        """Tell whether variables can be given to a kernel that runs."""
        if any(name in key + value for name in variables for key, value in self._spec.env.items()):
            # The kernelspec's own come last, and may be made of others.
            return False
        if self.template is not None:
            return can_set(variables, imported=bool(preload))
        return can_set(variables, imported=True) and all(map(str.isidentifier, variables))

    def end_template(self) -> None:
        """End the template at once, whatever it does."""
        if self.template is not None:
            self.template.process.kill()

    def close(self) -> None:
        """Forget the template."""
        if self.template is not None and self.pidfd is not None:
            # Its number may be another's as soon as it is reaped.
            with tree.starting() as kept:
                self.template.close()
                kept.discard(self.template.process.pid)
            os.close(self.pidfd)
        self.pidfd, self.template_died = None, True


FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds until a kernel that could not be started, or died, is replaced: doubled with each failure."""

TOGETHER = "*"
"""Stands for all modules together: they started a thread, or keep a file open, which no fork may have."""

HOLD_SECONDS = 0.1
"""How long a run has the worker for itself before its kernel is replaced, unless it ends before."""

IMPATIENCE = 2.0
"""Seconds that a run waits for a kernel when the one before it was lost."""

CHECK_SECONDS = 2.0
"""How often it is checked whether the kernels that are kept can still be reached."""


class WarmPool:
    """Kernels that no run has used, and none but one will use.

    Args:
        wanted: How many of which.
        folder: Where their folders are made.
        confinement: What they may reach; None: whatever the user may.
        hide: Let other processes not look into what forks them.
        tell: Takes what the operator may want to know: logging's level, an event, and its fields.
        counted: Takes how many are ready, by kernelspec, whenever that changes.
    """

    def __init__(
        self,
        wanted: WarmKernels,
        folder: Path,
        confinement: SandboxPolicy | None,
        hide: bool,
        tell: Callable[..., None],
        counted: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._wanted = wanted
        self._counts: Mapping[str, int] = {}
        self._folder = folder
        self._confinement = confinement
        self._hide = hide
        self._tell = tell
        self._counted = counted
        self._told: Mapping[str, int] = {}
        # Held while the kernels that are kept change, and while one is signalled: it must not be reaped then.
        self._lock = threading.RLock()
        self._kernels: list[WarmKernel] = []
        self._stocks: dict[str, KernelSource] = {}
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
        can = {name for name, language in languages.items() if language.lower() in LANGUAGES}
        self._counts = {name: count for name, count in self._wanted.counts.items() if name in can}
        if any(self._counts.values()):
            threading.Thread(target=self._keep, name="reserve", daemon=True).start()

    async def take(self, name: str, variables: Mapping[str, str]) -> Kernel | None:
        """Return a kernel, which is the caller's from now on; None: it is to start one.

        Args:
            name: The kernelspec.
            variables: What it shall have in its environment.
        """
        stock = self._stocks.get(name)
        if stock is None or not stock.can_host(variables, self._wanted.preload):
            return None
        changed = asyncio.Event()
        self._wake_run = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
        try:
            async with asyncio.timeout(IMPATIENCE if self._failing else stock.patience):
                while (kernel := self._take(stock)) is None and self._is_coming(stock):
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return None
        finally:
            self._wake_run = None
        return kernel

    def _take(self, stock: KernelSource) -> Kernel | None:
        """Return a kernel that has answered and can still be used; None: there is none now."""
        with self._lock:
            ready = [
                kept for kept in self._kernels if kept.kernel.name == stock.name and kept.state is State.READY
            ]
            taken = next((kept for kept in ready if not self._discarded(kept)), None)
            now = time.monotonic()
            if taken is not None:
                self._kernels.remove(taken)
                self._hold = now + HOLD_SECONDS
            else:
                # Somebody waits for the next one.
                self._hold = 0.0
            if ready and not stock.template_died and now + HOLD_SECONDS > self._not_before:
                self._coming.add(stock.name)
        self._wake_up()
        if taken is None:
            return None
        taken.forget()
        return taken.kernel

    def _discarded(self, kept: WarmKernel) -> bool:
        """Tell whether a kernel that is ready must not be used any more; it is then ended, and replaced."""
        if why := kept.kernel.unfit():
            level = logging.WARNING if why == LOST_SOCKETS else logging.DEBUG
            self._tell(level, "warm kernel discarded", why=why, pid=kept.kernel.pid)
            self._end(kept, why, State.DISCARDED)
        return bool(why)

    def _end(self, kept: WarmKernel, why: str, state: State) -> None:
        """End a kernel that is kept; it is taken out when it has ended."""
        kept.why, kept.state = why, state
        kept.kernel.kill()

    def _is_coming(self, stock: KernelSource) -> bool:
        with self._lock:
            starting = {kept.kernel.name for kept in self._kernels if kept.is_starting}
            return stock.name in starting | self._coming

    def resume(self) -> None:
        """Replace what was taken: the run has ended."""
        self._hold = 0.0
        self._wake_up()

    def _wake_up(self) -> None:
        # A pipe that is full wakes as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b".")

    def _changed(self) -> None:
        """Have the run that waits look again, if there is one."""
        wake = self._wake_run
        # Its event loop may have been closed meanwhile.
        with contextlib.suppress(RuntimeError):
            if wake is not None:
                wake()

    def _rest(self) -> float:
        """Return how long nothing is to be started, in seconds."""
        return max(self._hold, self._not_before) - time.monotonic()

    def _count(self) -> None:
        """Tell how many are ready, if that is not what was told last."""
        with self._lock:
            counts = Counter(kept.kernel.name for kept in self._kernels if kept.state is State.READY)
        if counts != self._told:
            self._told = counts
            self._counted(counts)

    def _keep(self) -> None:
        while True:
            try:
                self._check()
                self._count()
                rest = self._rest()
                if rest <= 0:
                    self._refill()
                    self._count()
                self._watch(rest)
            except Exception as error:  # noqa: BLE001 - whatever it is, runs start kernels of their own
                self._failed(f"{type(error).__name__}: {error}")
                # Nor is it to happen again and again without a pause.
                time.sleep(FIRST_PAUSE)

    def _failed(self, why: str) -> None:
        now = time.monotonic()
        self._failures = self._failures + 1 if now - self._last_failure < 2 * LONGEST_PAUSE else 1
        self._last_failure = now
        self._not_before = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 10))
        self._tell(logging.WARNING, "warm kernel lost", why=why)
        with self._lock:
            self._failing = True
            self._coming.clear()
        self._changed()

    def _refill(self) -> None:
        """Start what is missing."""
        for name, count in self._counts.items():
            # A template that has ended is replaced although nothing is missing: the next kernel comes soon.
            self._stock(name)
            while self._kept(name) < count:
                stock = self._stock(name)
                with self._lock:
                    self._coming.add(name)
                kept = self._launched(stock)
                with self._lock:
                    self._kernels.append(kept)
                    self._coming.discard(name)
                if kept.kernel.control is None:
                    self._begin_to_ask(kept)

    def _kept(self, name: str) -> int:
        with self._lock:
            return sum(kept.kernel.name == name and not kept.why for kept in self._kernels)

    def _launched(self, stock: KernelSource) -> WarmKernel:
        kernel = Kernel(stock.name, self._folder, stock.template, self._confinement)
        try:
            # Read here, where it delays nobody.
            assert kernel.manager.kernel_spec  # noqa: S101 - it is there, or raises
            kernel.prepare_ahead()
            with tree.starting(stock.end_template) as kept:
                asyncio.run(kernel.launch_ahead())
                kept.add(kernel.pid)
            return WarmKernel(kernel, stock.patience)
        except BaseException as error:
            tree.release(kernel.pid)
            kernel.close()
            if isinstance(error, ForkServerError):
                # It is gone, or not to be relied on.
                stock.close()
            raise

    def _stock(self, name: str) -> KernelSource:
        """Return what there is of a kernelspec; its template is started if it has none."""
        stock = self._stocks.get(name)
        if stock is None or stock.template_died:
            spec = KernelSpecManager().get_kernel_spec(name)
            stock = KernelSource(name, spec, self._wanted.preload, hide=self._hide)
            for module, why in stock.failed.items():
                self._tell(logging.ERROR, "preload failed", modules=module, why=why)
            if TOGETHER in stock.failed:
                stock.close()
                stock = KernelSource(name, spec, (), hide=self._hide)
            self._stocks[name] = stock
        return stock

    def _watch(self, rest: float) -> None:
        """Wait until a kernel was taken, is ready or has died, or a pause of so many seconds is over."""
        with self._lock:
            events = dict(self._events())
            deadlines = [kept.deadline - time.monotonic() for kept in self._kernels if kept.is_starting]
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
        """Yield descriptors that can be read when something has happened, and what to do then."""
        yield self._wake, lambda: None
        for stock in self._stocks.values():
            if stock.pidfd is not None:
                yield stock.pidfd, partial(self._lost, stock)
        for kept in self._kernels:
            yield kept.pidfd, partial(self._bury, kept)
            if kept.state is State.STARTING and kept.kernel.control is not None:
                yield kept.kernel.control.fileno(), partial(self._heard, kept)

    def _lost(self, stock: KernelSource) -> None:
        stock.close()
        self._failed("the template ended")

    def _heard(self, kept: WarmKernel) -> None:
        """See whether a kernel that was forked says that it has restricted itself and bound its sockets."""
        with self._lock:
            is_bound = kept in self._kernels and kept.kernel.is_bound
        if is_bound:
            self._begin_to_ask(kept)

    def _begin_to_ask(self, kept: WarmKernel) -> None:
        kept.state = State.ASKED
        threading.Thread(target=self._ask, args=[kept], name="warm-up", daemon=True).start()

    def _ask(self, kept: WarmKernel) -> None:
        """Have a kernel answer for the first time; from then on a run can have it."""
        answered = kept.kernel.warm_up(kept.deadline - time.monotonic())
        with self._lock:
            if kept not in self._kernels or kept.why:
                return
            stock = self._stocks[kept.kernel.name]
            # How soon there is one is worth a line; the later ones are not.
            level, stock.told = logging.DEBUG if stock.told else logging.INFO, stock.told or answered
            if answered:
                kept.state, self._failing = State.READY, False
                self._tell(level, "warm kernel ready", kernel=stock.name, pid=kept.kernel.pid)
            else:
                self._end(kept, "it did not answer", State.LOST)
        self._changed()
        self._wake_up()

    def _check(self) -> None:
        """End the kernels that do not get ready in time, and those that cannot be reached any more."""
        with self._lock:
            for kept in self._kernels:
                if kept.is_starting and time.monotonic() >= kept.deadline:
                    self._end(kept, "it did not get ready in time", State.LOST)
                elif kept.state is State.READY and not kept.kernel.is_reachable:
                    self._discarded(kept)

    def _bury(self, kept: WarmKernel) -> None:
        with self._lock:
            if kept not in self._kernels:
                return
            self._kernels.remove(kept)
        # Its number may be another's as soon as it is reaped.
        with tree.starting():
            code = kept.kernel.exit_code()
            kept.forget()
        kept.kernel.close()
        if kept.state is not State.DISCARDED:
            self._failed(kept.why or f"it ended with code {code}")
