"""What a worker is told once, when it is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What holds for all runs of a worker.

    Attributes:
        folder: A short private folder for its kernels' sockets.
        limit_address_space: Limit the kernel's address space to a run's memory limit as well.
    """

    folder: Path
    limit_address_space: bool = False
