"""The options of a worker and its warm kernels, and the names of kernelspecs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from notebook_runner_server.confinement.policy import SandboxPolicy


def resolve_kernel_name(name: str) -> str:
    """Return the kernelspec that jupyter_client starts for a name; empty for an empty name.

    `python` is its native kernelspec, and case does not matter. The kernelspec need not exist.
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
    """The kernels to start before runs ask for them.

    Attributes:
        counts: Number of warm kernels, by kernelspec.
        preload: Modules that forked kernels have imported.
        required: Whether a missing kernelspec is an error: the operator named it.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The options of a worker, for all of its runs.

    Attributes:
        folder: A short private folder for its kernels' sockets.
        limit_address_space: Limit the kernel's address space to a run's memory limit as well.
        interrupt_grace: Seconds that a cell may take after the interrupt at a time limit; zero: no interrupt.
        warm: The warm kernels to keep.
        hide: Make its fork servers non-dumpable, so that other processes cannot inspect them.
        sandbox_policy: What kernels may access; None: whatever the user may.
        is_alone: Whether the server has no other worker.
    """

    folder: Path
    limit_address_space: bool = False
    interrupt_grace: float = 0.0
    warm: WarmKernels = field(default_factory=WarmKernels)
    hide: bool = True
    sandbox_policy: SandboxPolicy | None = None
    is_alone: bool = False


def warm_kernels(kernels: Iterable[str], modules: Iterable[str], *, required: bool) -> WarmKernels:
    """Parse the settings for warm kernels.

    Args:
        kernels: Each as KERNELSPEC=COUNT.
        modules: Names of modules to preload.
        required: Whether a missing kernelspec is an error.

    Raises:
        ValueError: A value is malformed.
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
            raise ValueError(f"--preload: {module!r} is not a valid module name.")
    return WarmKernels(counts, preload, required=required)
