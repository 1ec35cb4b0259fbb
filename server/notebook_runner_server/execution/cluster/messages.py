"""Messages between server and Dask workers, over one connection for each run.

A connection is one of Dask's, with its TLS, but bypasses the scheduler, which sees and logs only the ids of
runs. `Job` and `Stop` are those of `worker_protocol`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from distributed.comm.core import Comm

from notebook_runner_server.confinement.policy import SandboxConfig
from notebook_runner_server.execution.interface import ExecutionEvent
from notebook_runner_server.execution.options import WarmKernels
from notebook_runner_server.execution.worker_protocol import decode, encode

ATTACH = "notebook_runner_attach"
"""The operation that connects a server to a lease."""

WARM_KERNELS = "notebook_runner_warm_kernels"
"""A Dask worker's metric: by kernelspec, the numbers of ready and of wanted warm kernels."""


VERSION = importlib.metadata.version("notebook-runner")
"""The version, which must be the same in server and workers."""


@dataclass(frozen=True, slots=True)
class LeaseAddress:
    """The location of a run: a worker's address, and the unique name of a lease there."""

    address: str
    lease: str


@dataclass(frozen=True, slots=True)
class HostOptions:
    """The options of Dask workers.

    Attributes:
        timeout: Seconds without a server after which a run is ended.
        warm: The warm kernels of each slot.
        sandbox: The sandbox of kernels.
        limit_address_space: Limit the kernel's address space to a run's memory limit as well.
        interrupt_grace: Seconds that a cell may take after the interrupt at a time limit; zero: no interrupt.
        max_files_bytes: Size of a run's files above which they are not sent to the server.
    """

    timeout: float
    warm: WarmKernels
    sandbox: SandboxConfig
    limit_address_space: bool
    interrupt_grace: float
    max_files_bytes: int

    def shared(self) -> HostOptions:
        """Return the options without those of one server, which has its own state folder."""
        return replace(self, sandbox=replace(self.sandbox, hidden=()))


@dataclass(frozen=True, slots=True)
class Description:
    """The state of a Dask worker.

    Attributes:
        options: Its options.
        slots: Number of runs that it can execute concurrently.
        kernels: The kernelspecs with their languages.
        leases: The names of leases with a job, by run id.
        problem: Why it cannot execute runs; empty: it can.
    """

    options: HostOptions
    slots: int
    kernels: Mapping[str, str]
    leases: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """All batches up to this number are durable."""

    number: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A heartbeat. `stamp` is of the worker's clock; the server sends it back unchanged."""

    stamp: float


@dataclass(frozen=True, slots=True)
class Release:
    """The server needs the lease no longer."""


@dataclass(frozen=True, slots=True)
class UnknownLease:
    """The worker does not have the lease, or no longer."""


@dataclass(frozen=True, slots=True)
class BatchesLost:
    """Batches that the server needs were acknowledged by an earlier server, which could not store them."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A numbered list of events; numbers start at 1, and `Ended` has its own batch."""

    number: int
    events: Sequence[ExecutionEvent]


class Channel:
    """Sends and receives messages over one of Dask's connections.

    Args:
        comm: The connection.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        # Dask encodes large messages in a thread, where a small one could overtake them.
        self._order = asyncio.Lock()

    async def send(self, message: object) -> None:
        """Send a message.

        Raises:
            OSError: The connection has ended.
        """
        async with self._order:
            await self._comm.write(encode(message))

    async def receive(self) -> object:
        """Wait for the next message, and return it.

        Raises:
            OSError: The connection has ended.
        """
        return decode(await self._comm.read())

    async def until_closed(self, seconds: float) -> None:
        """Wait for the other side to close the connection, up to a time limit; then close it."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self._comm.read()
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._comm.abort()
