"""Writes and reads the archives of runs in an object store or shared folder, each in a process of its own.

As for notebooks (`transfer.service`), a process can be ended that waits for a service, and it alone has the
clouds' libraries. The server chooses the names, so neither the policy for callers nor their limits apply.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from notebook_runner_server.run_in_subprocess import SubprocessError, SubprocessOptions, start_in_subprocess
from notebook_runner_server.transfer import archive_program
from notebook_runner_server.transfer.interface import (
    ArchiveLocation,
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

ANSWER_SECONDS = 5.0
"""Seconds that a removal has to answer what is gone after its time has run out."""

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
        self._location = ArchiveLocation(self.uri, "")
        self._turns = asyncio.Semaphore(READS_AT_ONCE)

    async def open(self, history_id: str, *, is_new: bool) -> None:
        """Check that the location belongs to a history and can be used; other calls need this one first.

        Raises:
            TransferError: It cannot be used.
        """
        self._location = ArchiveLocation(self.uri, history_id)
        await self._limited(_call(archive_program.check, self._location, is_new=is_new), self.timeout)

    async def write(self, name: str, source: Path, deadline: float) -> None:
        """Write an object; attempts that fail are repeated while time is left.

        Raises:
            TransferError: It could not be written; a part of it may be there.
        """
        await self._limited(self._write(name, str(source), deadline), deadline - time.monotonic())

    async def _write(self, name: str, source: str, deadline: float) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await _call(archive_program.write, self._location, name, source, deadline)
            except TransferError:
                if time.monotonic() + pause >= deadline:
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
        await self._limited(self._read(stored, str(target)), self.timeout)

    async def _read(self, stored: StoredObject, target: str) -> None:
        about = (stored.name, target, stored.size, stored.sha256)
        async with self._turns:
            await _call(archive_program.read, self._location, *about)

    async def remove(self, names: Sequence[str]) -> Removal:
        """Remove objects; those that the location does not have count as gone.

        Raises:
            TransferError: Perhaps some were removed.
        """
        # The process says what it has removed, if it is given the time for that.
        removal = _call(archive_program.remove, self._location, list(names), time.monotonic() + self.timeout)
        return await self._limited(removal, self.timeout + ANSWER_SECONDS)

    async def _limited(self, work: Coroutine[Any, Any, _T], seconds: float) -> _T:
        try:
            async with asyncio.timeout(seconds):
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
        raise UnreachableError(str(error)) from error
