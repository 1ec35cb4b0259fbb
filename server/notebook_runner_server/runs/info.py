"""What a server has to run notebooks with, and how busy it is, as frozen data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from notebook_runner_server.execution.interface import WarmCounts


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A kernelspec: its name and language, what is kept of it, and whether it is the default."""

    name: str
    language: str
    warm_counts: WarmCounts
    is_default: bool


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What there is to run notebooks with.

    Attributes:
        kernels: The kernelspecs, by name.
        workers: How many runs are executed at once.
        active: How many are, now.
        queued: How many wait, now.
        queue_size: How many may wait.
        default_notebook: What a Start that names no notebook runs; empty: there is none.
        has_notebook_root: Whether notebooks can be named by a path.
        uri_schemes: The schemes that URIs may have; none: no URI can be used.
        problem: Why no run can start now; empty: runs can start.
    """

    kernels: Sequence[KernelInfo]
    workers: int
    active: int
    queued: int
    queue_size: int
    default_notebook: str
    has_notebook_root: bool
    uri_schemes: Sequence[str]
    problem: str
