"""What server and Dask workers tell each other about a run, on a connection of the run's own.

Dask carries the connection, and with it TLS. It carries no job otherwise: what the scheduler and its log see
of a run is its id.
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
"""The operation that a Dask worker learns."""

WARM_KERNELS = "notebook_runner_warm_kernels"
"""A metric of a Dask worker: by kernelspec, how many kernels it keeps ready, and how many it is to keep."""


VERSION = importlib.metadata.version("notebook-runner")
"""Server and worker understand each other only if they have the same."""


@dataclass(frozen=True, slots=True)
class LeaseAddress:
    """Where a run is: a worker's address, and the lease of a slot there, of which there is never another."""

    address: str
    lease: str


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What the server tells each Dask worker.

    Attributes:
        timeout: Seconds without a server after which a run is ended.
        warm: Kernels that each slot keeps ready.
        sandbox: How kernels are kept apart.
        limit_address_space: Limit the kernel's address space to a run's memory limit as well.
        interrupt_grace: Seconds that a cell may take after the interrupt at a time limit; zero: none.
        max_files_bytes: How much a run folder may hold to be brought to the server.
    """

    timeout: float
    warm: WarmKernels
    sandbox: SandboxConfig
    limit_address_space: bool
    interrupt_grace: float
    max_files_bytes: int

    def shared(self) -> HostOptions:
        """Return what of it is the same for all servers of a cluster: each has a state folder of its own."""
        return replace(self, sandbox=replace(self.sandbox, hidden=()))


@dataclass(frozen=True, slots=True)
class Description:
    """What a Dask worker has.

    Attributes:
        options: What a server has told it.
        slots: How many runs it takes.
        kernels: The kernelspecs it has, by name, and the language of each.
        leases: By the id of the run that each is for.
        problem: Why it takes none; empty: it does.
    """

    options: HostOptions
    slots: int
    kernels: Mapping[str, str]
    leases: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """All batches up to this number are durable, and are asked for no more."""

    number: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life. `stamp` is the worker's, by its own clock; the server sends it back as it is."""

    stamp: float


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody wants the lease any more."""


@dataclass(frozen=True, slots=True)
class UnknownLease:
    """There is no such lease here, or no longer."""


@dataclass(frozen=True, slots=True)
class BatchesLost:
    """Batches that the server asks for were taken by an earlier one, which did not make them durable."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some events, numbered from 1 on; `Ended` comes in a batch of its own."""

    number: int
    events: Sequence[ExecutionEvent]


class Channel:
    """Sends and receives messages over a connection of Dask's.

    Args:
        comm: The connection.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        # Dask encodes a large message in a thread, and a small one could overtake it.
        self._order = asyncio.Lock()

    async def send(self, message: object) -> None:
        """Send a message.

        Raises:
            OSError: The connection has ended.
        """
        async with self._order:
            await self._comm.write(encode(message))

    async def receive(self) -> object:
        """Return the next message, when it is there.

        Raises:
            OSError: The connection has ended.
        """
        return decode(await self._comm.read())

    async def until_closed(self, seconds: float) -> None:
        """Wait until the other side has ended the connection, but not longer than this; then end it."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self._comm.read()
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._comm.abort()
