"""What the reserve is made of: kernels that are kept, and what makes more of them."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping

from jupyter_client.kernelspec import KernelSpec

from notebook_runner_server.execution.confinement.environment import inherited
from notebook_runner_server.execution.kernel import Kernel
from notebook_runner_server.execution.tree import tree
from notebook_runner_server.execution.warm.forking import (
    Template,
    TemplateError,
    interpreter,
    settles,
    split,
)


class Kept:
    """A kernel in the reserve.

    Attributes:
        is_ready: A run can have it at once; of one that was not forked nobody knows, so it counts as ready.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.pidfd = os.pidfd_open(kernel.pid)
        self.is_ready = kernel.control is None

    def forget(self) -> None:
        """Keep it no more."""
        os.close(self.pidfd)
        tree.release(self.kernel.pid)


class Stock:
    """A kernelspec of which kernels are kept, and the template that forks them, if it is ipykernel's."""

    def __init__(self, name: str, spec: KernelSpec, preload: tuple[str, ...], *, hide: bool) -> None:
        self.name = name
        self._spec = spec
        self.template: Template | None = None
        self.pidfd: int | None = None
        self.template_died = self.told = False
        self.failed: Mapping[str, str] = {}
        if parts := split(spec.argv):
            base = inherited()
            own = {key: string.Template(value).safe_substitute(base) for key, value in spec.env.items()}
            with tree.starting() as kept:
                self.template = Template(interpreter(parts[0]), preload, {**base, **own}, hide=hide)
                kept.add(self.template.process.pid)
            self.pidfd = os.pidfd_open(self.template.process.pid)
            try:
                self.failed = self.template.wait_ready()
            except TemplateError:
                self.close()
                raise

    def suits(self, variables: Mapping[str, str], preload: tuple[str, ...]) -> bool:
        """Tell whether variables can be given to a kernel that runs."""
        if any(name in key + value for name in variables for key, value in self._spec.env.items()):
            # The kernelspec's own come last, and may be made of others.
            return False
        if self.template is not None:
            return settles(variables, imported=bool(preload))
        return settles(variables, imported=True) and all(map(str.isidentifier, variables))

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
