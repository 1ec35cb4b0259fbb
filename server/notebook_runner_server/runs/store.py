"""The store: one SQLite file under the state folder, and a folder for each run beside it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from notebook_runner_server import folder_tree
from notebook_runner_server.execution.files import FileEvent
from notebook_runner_server.runs import resume, tables
from notebook_runner_server.runs.database import Database
from notebook_runner_server.runs.folder import RunFolder, private
from notebook_runner_server.runs.model import Event, Order, Run, RunState
from notebook_runner_server.runs.request_key import request_key
from notebook_runner_server.runs.resume import Resume
from notebook_runner_server.runs.tables import Part, Row

EVENTS_A_READ = 256
DATABASE = "notebook-runner.db"
_FOR_EVER = 2**63 - 1
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """What is to be written to a run's folder.

    Attributes:
        start: Where the pieces go in the file of parts, in bytes.
        pieces: What to write, one after the other.
        parts: The parts that are whole with these pieces.
        resume: Where a later server goes on after this; None: as before.
        files: What came of the notebook's own files.
    """

    start: int
    pieces: Sequence[bytes] = ()
    parts: Sequence[Part] = ()
    resume: Resume | None = None
    files: Sequence[FileEvent] = ()


class StateFolderInUseError(RuntimeError):
    """Another server uses the state folder."""


class Store:
    """Keeps runs, events and parts.

    Args:
        folder: The state folder; made where it is not there.

    Attributes:
        count: How many runs it has.
        request_key: The key of the digests of requests, once it is open.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = folder / "runs"
        self._db = Database(folder / DATABASE)
        self._lock: IO[str] | None = None
        self.count = 0
        self.request_key = b""

    async def open(self) -> None:
        """Open the state folder for this server alone.

        Raises:
            StateFolderInUseError: Another server has it open.
            OSError: It cannot be written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.fdopen(private(self._folder / "lock", os.O_WRONLY | os.O_CREAT), "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateFolderInUseError(f"another server uses {self._folder}") from error
        self._runs.mkdir(mode=0o700, exist_ok=True)
        self.request_key = await asyncio.to_thread(request_key, self._folder)
        try:
            await self._db.open(is_first=not any(self._runs.iterdir()))
        except sqlite3.OperationalError:
            raise  # it cannot be read now; that is no damage
        except sqlite3.DatabaseError as error:
            self._set_aside(error)
            await self._db.open(is_first=True)
        known = await self._db.read(tables.run_ids)
        self.count = len(known)
        await asyncio.to_thread(self._remove_strays, known)

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Move a damaged history out of the way, whole, for whoever can mend it."""
        aside = self._folder / f"damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        aside.mkdir(mode=0o700)
        for path in [*self._folder.glob(f"{DATABASE}*"), self._runs]:
            path.rename(aside / path.name)
        self._runs.mkdir(mode=0o700)
        about = {"aside": str(aside), "why": str(error)}
        _logger.error("the history is damaged and was set aside", extra=about)

    def _remove_strays(self, known: set[str]) -> None:
        """Remove the folders of runs that are not in the history: never acknowledged, or forgotten."""
        for path in self._runs.iterdir():
            if path.name not in known:
                RunFolder(path).remove()

    async def close(self) -> None:
        """Close the state folder."""
        await self._db.close()
        if self._lock is not None:
            self._lock.close()

    def folder(self, run_id: str) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(self._runs / run_id)

    async def insert(
        self, run: Run, order: Order, fingerprint: str, event: Event, parts: Mapping[int, bytes]
    ) -> int:
        """Make a new run durable with its first event and the notebook to execute; return its position.

        Raises:
            StorageFullError: It could not be written; nothing of it is left.
        """
        folder = self.folder(run.run_id)

        def write(db: sqlite3.Connection) -> int:
            folder.create()
            folder.write(0, parts.values())
            places, start = [], 0
            for number, data in parts.items():
                places.append(Part(number, 0, start, len(data)))
                start += len(data)
            # Values may be secrets: in a file that is gone with the run's end, and nowhere else.
            folder.keep_secrets(order.environment, order.output_uri)
            folder.sync()
            plain = replace(order, environment={}, output_uri="")
            return tables.insert_run(db, run, plain, fingerprint, event, places)

        try:
            position = await self._db.write(write)
        except Exception:
            await self._db.run_in_order(folder.remove)
            raise
        self.count += 1
        return position

    async def append(
        self,
        position: int,
        run: Run,
        events: Sequence[Event],
        written: Written,
        expire_time: int | None,
    ) -> None:
        """Make events durable, after the parts that they tell of.

        Raises:
            StorageFullError: They could not be written.
        """

        def write(db: sqlite3.Connection) -> None:
            if written.pieces:
                self.folder(run.run_id).write(written.start, written.pieces)
            for told in written.files:
                self.folder(run.run_id).bring(told)
            if run.state.is_terminal:
                self.folder(run.run_id).forget_secrets()
            tables.append(db, position, run, events, written.parts, expire_time)
            if written.resume is not None:
                resume.note(db, position, written.resume)

        await self._db.write(write)

    async def find(self, run_id: str) -> Row | None:
        """Return a run by its id, or the newest one for an empty id; None: there is none."""
        row = await self._db.read(tables.find_run, run_id)
        return row if row is None or row.run.state.is_terminal else self._with_secrets(row)

    async def find_request(self, request_id: str) -> Row | None:
        """Return the run of a request id; None: there is none."""
        return await self._db.read(tables.find_request, request_id)

    async def unended(self) -> list[Row]:
        """Return the runs that have not ended, oldest first."""
        return [self._with_secrets(row) for row in await self._db.read(tables.unended_runs)]

    def _with_secrets(self, row: Row) -> Row:
        environment, output_uri = self.folder(row.run.run_id).secrets()
        return replace(row, order=replace(row.order, environment=environment, output_uri=output_uri))

    async def events(self, position: int, after: int) -> list[Event]:
        """Return some events of a run after a sequence number, in order; none: there are no more."""
        return await self._db.read(tables.read_events, position, after, EVENTS_A_READ)

    async def events_before(self, position: int, before: int) -> list[Event]:
        """Return some events of a run before a sequence number, the newest first; none: there are no more."""
        return await self._db.read(tables.read_events_back, position, before, EVENTS_A_READ)

    async def source(self, run_id: str, position: int, part: int) -> bytes:
        """Return a part of the notebook as it was before it was executed."""
        folder = self.folder(run_id)
        parts = await self.parts(position, 0)
        found = next(one for one in parts if one.part == part)
        return await asyncio.to_thread(folder.read, found)

    async def resume(self, position: int) -> Resume | None:
        """Return where a run that an earlier server has begun is gone on with; None: nothing was noted."""
        return await self._db.read(resume.read, position)

    async def parts(self, position: int, as_of: int) -> list[Part]:
        """Return the version that each part of a run's notebook had at a sequence number."""
        return await self._db.read(tables.read_parts, position, as_of)

    async def newest_part(self, position: int, as_of: int) -> int:
        """Return the sequence number of the newest part at a sequence number."""
        return await self._db.read(tables.newest_part, position, as_of)

    async def expired(self, after: int, limit: int) -> list[Row]:
        """Return ended runs after a position whose retention is over, oldest first."""
        return await self._db.read(tables.ended_runs, time.time_ns(), after, limit)

    async def ended(self, after: int, limit: int) -> list[Row]:
        """Return ended runs after a position, oldest first."""
        return await self._db.read(tables.ended_runs, _FOR_EVER, after, limit)

    async def count_ended(self) -> int:
        """Return how many runs have ended."""
        return await self._db.read(tables.count_ended)

    def sizes(self) -> dict[str, int]:
        """Return how many bytes the folder of each run has; blocks."""
        return {path.name: folder_tree.size(path) for path in self._runs.iterdir()}

    def size(self) -> int:
        """Return how many bytes the state folder has in all; blocks."""
        files = [path for path in self._folder.iterdir() if path.is_file()]
        return sum(path.stat().st_size for path in files) + sum(self.sizes().values())

    def free_bytes(self) -> int:
        """Return how many bytes there is room for on the state folder's file system."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    async def delete(self, row: Row) -> None:
        """Remove a run with all that belongs to it."""
        await self._db.write(tables.delete_run, row.position)
        self.count -= 1
        await asyncio.to_thread(self.folder(row.run.run_id).remove)

    async def list(
        self, before: int, size: int, states: Sequence[RunState], labels: Mapping[str, str]
    ) -> list[Row]:
        """Return up to `size` runs before a position, newest first, that match states and labels."""
        return await self._db.read(tables.list_runs, before, size, states, labels)
