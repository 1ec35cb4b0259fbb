"""What the reserve is made of: kernels that are kept, and what makes more of them."""

from __future__ import annotations

import os
import string
import time
from collections.abc import Mapping
from enum import Enum, auto

from jupyter_client.kernelspec import KernelSpec

from notebook_runner_server.confinement.environment import inherited
from notebook_runner_server.execution.kernel import READY_TIMEOUT, Kernel
from notebook_runner_server.execution.run_processes import tree
from notebook_runner_server.execution.warm.forking import (
    ForkServer,
    ForkServerError,
    can_set,
    interpreter,
    split,
)

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
