"""What a worker is told once, when it is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from notebook_runner_server.confinement.policy import SandboxPolicy


def resolve_kernel_name(name: str) -> str:
    """Return the kernelspec that jupyter_client starts for a name; empty for an empty one.

    `python` is its native kernelspec, upper and lower case are the same. Whether there is such a kernelspec
    is not asked here.
    """
    if not name or (name.islower() and name != "python"):
        return name
    # It takes 0.1 s to import, and few names need it.
    from jupyter_client.manager import KernelManager  # noqa: PLC0415 - the reason above

    return KernelManager(kernel_name=name).kernel_name.lower()


MOST_WARM = 100
"""Warm kernels of one kernelspec in one worker; each takes some 20 MB."""


@dataclass(frozen=True, slots=True)
class WarmKernels:
    """What is started before a run asks for it.

    Attributes:
        counts: How many kernels to keep ready, by kernelspec.
        preload: Modules that forked kernels have imported already.
        required: Somebody asked for these kernelspecs, so they have to be there.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What holds for all runs of a worker.

    Attributes:
        folder: A short private folder for its kernels' sockets.
        limit_address_space: Limit the kernel's address space to a run's memory limit as well.
        interrupt_grace: Seconds that a cell may take after the interrupt at a time limit; zero: none.
        warm: Kernels to keep ready.
        kernel_environment: Names of variables that kernels find beside those that they always may.
        hide: Let other processes not look into the worker.
        sandbox_policy: What kernels may reach; None: whatever the user may.
        is_alone: The server has no other worker.
    """

    folder: Path
    limit_address_space: bool = False
    interrupt_grace: float = 0.0
    warm: WarmKernels = field(default_factory=WarmKernels)
    kernel_environment: tuple[str, ...] = ()
    hide: bool = True
    sandbox_policy: SandboxPolicy | None = None
    is_alone: bool = False


def warm_kernels(kernels: Iterable[str], modules: Iterable[str], *, required: bool) -> WarmKernels:
    """Return what an operator asks for.

    Args:
        kernels: Each as KERNELSPEC=COUNT.
        modules: Names of modules to import beforehand.
        required: The kernelspecs have to be there.

    Raises:
        ValueError: That is not how it is said.
    """
    counts: dict[str, int] = {}
    for one in kernels:
        name, _, count = one.partition("=")
        if not (name and count.isascii() and count.isdigit() and int(count) <= MOST_WARM):
            message = (
                f"--warm-kernels: expected KERNELSPEC=COUNT with a count of at most {MOST_WARM}, got {one!r}."
            )
            raise ValueError(message)
        counts[resolve_kernel_name(name)] = int(count)
    preload = tuple(modules)
    for module in preload:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ValueError(f"--preload: {module!r} is not a module name.")
    return WarmKernels(counts, preload, required=required)
