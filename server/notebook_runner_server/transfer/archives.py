"""Writes and reads the archives of runs in an object store or shared folder, each in a process of its own.

As for notebooks (`transfer.service`), a process can be ended that waits for a service, and it alone has the
clouds' libraries. The server chooses the names, so neither the policy for callers nor their limits apply.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from notebook_runner_server.run_in_subprocess import SubprocessError, SubprocessOptions, start_in_subprocess
from notebook_runner_server.transfer import archive_program
from notebook_runner_server.transfer.interface import (
    Removal,
    StoredObject,
    TransferError,
    UnreachableError,
)
from notebook_runner_server.transfer.service import GRACE_SECONDS

READS_AT_ONCE = 4
"""Archives that are read concurrently, each with a process."""

FIRST_PAUSE = 0.5
"""Seconds until the second attempt to write; each further pause is twice as long."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class UriArchives:
    """Writes and reads archives.

    Args:
        uri: The folder or prefix, which `policy.archive_location` accepts.
        timeout: Seconds that one call may take, with all its attempts and the wait for its turn.
    """

    def __init__(self, uri: str, timeout: float) -> None:
        self.uri = uri.rstrip("/")
        self.timeout = timeout
        self._turns = asyncio.Semaphore(READS_AT_ONCE)

    async def check(self) -> None:
        """Write, read and remove an object.

        Raises:
            TransferError: That is not possible.
        """
        await self._limited(_call(archive_program.check, self._uri(f"probe.{secrets.token_hex(8)}")))

    async def write(self, name: str, source: Path, deadline: float) -> None:
        """Write an object; attempts that fail are repeated while time is left.

        Raises:
            TransferError: It could not be written; a part of it may be there.
        """
        await self._limited(self._write(self._uri(name), str(source), deadline))

    async def _write(self, uri: str, source: str, deadline: float) -> None:
        end = time.monotonic() + self.timeout
        pause = FIRST_PAUSE
        while True:
            try:
                await _call(archive_program.write, uri, source, deadline)
            except TransferError:
                if time.monotonic() + pause >= min(end, deadline):
                    raise
            else:
                return
            await asyncio.sleep(pause)
            pause *= 2

    async def read(self, stored: StoredObject, target: Path) -> None:
        """Write the content of an object to a file.

        Raises:
            TransferError: It could not be read.
            OSError: The file cannot be written.
        """
        await self._limited(self._read(stored, str(target)))

    async def _read(self, stored: StoredObject, target: str) -> None:
        async with self._turns:
            await _call(archive_program.read, self._uri(stored.name), target, stored.size, stored.sha256)

    async def remove(self, names: Sequence[str]) -> Removal:
        """Remove objects; missing ones count as gone.

        Raises:
            TransferError: Perhaps some were removed.
        """
        return await self._limited(_call(archive_program.remove, self.uri, list(names)))

    def _uri(self, name: str) -> str:
        return f"{self.uri}/{name}"

    async def _limited(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            async with asyncio.timeout(self.timeout):
                return await work
        except TimeoutError:
            raise UnreachableError(f"it took longer than {self.timeout:g} s (--uri-timeout)") from None


async def _call(
    function: Callable[_P, _T],
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> _T:
    try:
        return await start_in_subprocess(SubprocessOptions(grace=GRACE_SECONDS), function, *args, **kwargs)
    except SubprocessError as error:
        raise UnreachableError("the transfer process died") from error
