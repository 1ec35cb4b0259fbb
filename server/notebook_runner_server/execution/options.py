"""What a worker is told once, when it is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from notebook_runner_server.execution.confinement.rules import Confinement


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
        warm: Kernels to keep ready.
        kernel_environment: Names of variables that kernels find beside those that they always may.
        hide: Let other processes not look into the worker.
        confinement: What kernels may reach; None: whatever the user may.
    """

    folder: Path
    limit_address_space: bool = False
    warm: WarmKernels = field(default_factory=WarmKernels)
    kernel_environment: tuple[str, ...] = ()
    hide: bool = True
    confinement: Confinement | None = None
