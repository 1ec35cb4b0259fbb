"""Reads and writes notebooks by URI, each in a process of its own.

A thread that waits for a service cannot be ended, but a process can: a service that trickles costs its caller
the time that the operator allows, and the server nothing. It also keeps the clouds' libraries out of the
server.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine
from typing import BinaryIO, TypeVar

from notebook_runner_server.run_in_subprocess import SubprocessError, SubprocessOptions, start_in_subprocess
from notebook_runner_server.transfer import program
from notebook_runner_server.transfer.interface import StoppedError, UnreachableError
from notebook_runner_server.transfer.policy import UriPolicy

_T = TypeVar("_T")

READS_AT_ONCE = 8
"""Notebooks that are read concurrently, each with a process and memory for the notebook."""

GRACE_SECONDS = 1.0
"""Seconds that a process may take to clean up when its transfer is cancelled."""


class TransferService:
    """Reads and writes notebooks by URI.

    Args:
        policy: The URIs that the operator allows.
        max_bytes: Maximum size of a notebook that is read.
        timeout: Seconds that one read or write may take, including the wait for its turn.
    """

    def __init__(self, policy: UriPolicy, max_bytes: int, timeout: float) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._turns = asyncio.Semaphore(READS_AT_ONCE)
        self._reading: set[asyncio.Task[bytes]] = set()
        self._stopped = False

    @property
    def schemes(self) -> Collection[str]:
        """The allowed schemes; none: URIs are disabled."""
        return self._policy.schemes

    def check(self, uri: str) -> None:
        """Check a URI without resolving or opening anything.

        Raises:
            RefusedError: The URI is not allowed.
        """
        self._policy.check(uri)

    async def read(self, uri: str) -> bytes:
        """Return the notebook that a URI names.

        Raises:
            TransferError: It could not be read.
        """
        self.check(uri)
        if self._stopped:
            raise StoppedError("the server is shutting down")
        task = asyncio.ensure_future(self._limited(self._read(uri)))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if self._stopped:
                raise StoppedError("the server is shutting down") from None
            raise

    async def _read(self, uri: str) -> bytes:
        # In memory, where it is needed anyway; a pipe would have the event loop assemble it.
        with os.fdopen(os.memfd_create("notebook"), "r+b") as file:
            async with self._turns:
                await self._call(program.read, uri, file.fileno(), self._max_bytes)
            return await asyncio.to_thread(_content, file)

    async def write(self, uri: str, notebook: int) -> None:
        """Write the notebook in an open file to a URI.

        Raises:
            TransferError: It could not be written.
        """
        self.check(uri)
        await self._limited(self._call(program.write, uri, notebook))

    def stop_reading(self) -> None:
        """Cancel all reads, and refuse further ones: the server is shutting down."""
        self._stopped = True
        for task in self._reading:
            task.cancel()

    async def _limited(self, work: Coroutine[None, None, _T]) -> _T:
        try:
            async with asyncio.timeout(self._timeout):
                return await work
        except TimeoutError:
            raise UnreachableError(f"it took longer than {self._timeout:g} s (--uri-timeout)") from None

    async def _call(self, function: Callable[..., None], uri: str, notebook: int, *args: object) -> None:
        options = SubprocessOptions(descriptors=[notebook], grace=GRACE_SECONDS)
        try:
            await start_in_subprocess(options, function, uri, notebook, self._policy, *args)
        except SubprocessError as error:
            raise UnreachableError(str(error)) from error


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()
