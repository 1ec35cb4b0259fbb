"""What the server knows of a worker process: what it calls in it, and what they tell each other.

What a worker needs (nbclient, ZeroMQ) is imported in the worker only: the server has no use for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from notebook_runner_server.execution.interface import Cause, Job
from notebook_runner_server.execution.options import WorkerOptions

if TYPE_CHECKING:
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself: its process id, and kernelspecs with their languages."""

    pid: int
    kernels: dict[str, str]


@dataclass(frozen=True, slots=True)
class WorkerLog:
    """What a worker has to say beside its runs, for the log; `level` is logging's."""

    level: int
    event: str
    fields: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class KernelsReady:
    """How many kernels a worker has ready for its next runs, by kernelspec; sent whenever that changes."""

    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Stop:
    """The order to end a run. `grace_period` in seconds; zero: now."""

    run_id: str
    cause: Cause
    grace_period: float


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a run may go on without another one of these. `moment` by this machine's monotonic clock."""

    run_id: str
    moment: float


def initialize(connection: Connection, options: WorkerOptions) -> None:
    """Make this process a worker; the process pool's initializer.

    Args:
        connection: To the server.
        options: What the server tells it once.
    """
    _worker().initialize(connection, options)


def hello() -> WorkerInfo:
    """Say what this worker is."""
    said: WorkerInfo = _worker().hello()
    return said


def execute(job: Job) -> None:
    """Execute one job; its events go over the connection."""
    _worker().execute(job)


def _worker() -> ModuleType:
    from notebook_runner_server.execution import worker  # noqa: PLC0415 - see the module's docstring

    return worker
