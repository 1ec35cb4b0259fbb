"""The store: one SQLite file under the state folder, and a folder for each run beside it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.execution.files import FileEvent
from notebook_runner_server.runs import checkpoint, quarantine, request_key, tables
from notebook_runner_server.runs.artefacts import DEFAULT_BYTES, Artefacts
from notebook_runner_server.runs.checkpoint import Checkpoint
from notebook_runner_server.runs.database import DamagedHistoryError, Database
from notebook_runner_server.runs.errors import StorageFullError, damaged
from notebook_runner_server.runs.folder import RunFolder, private, sync_folder
from notebook_runner_server.runs.model import Event, ExecutionOptions, Run, RunState
from notebook_runner_server.runs.quarantine import (
    ARTEFACTS,
    DATABASE,
    LOCK,
    REBUILDING,
    REBUILT,
    RESERVE,
    RUNS,
    Quarantine,
)
from notebook_runner_server.runs.rebuilding import rebuild
from notebook_runner_server.runs.reserve import DiskReserve
from notebook_runner_server.runs.tables import DamagedRecord, Part, RunRecord

EVENTS_A_READ = 256
_FOR_EVER = 2**63 - 1
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriteBatch:
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
    resume: Checkpoint | None = None
    files: Sequence[FileEvent] = ()


class StateFolderInUseError(RuntimeError):
    """Another server uses the state folder."""


class Store:
    """Keeps runs, events and parts.

    Args:
        folder: The state folder; made where it is not there.
        artefact_bytes: What artefacts may take beside them.

    Attributes:
        artefacts: What Output has made.
        count: How many runs it has.
        request_key: The key of the digests of requests, once it is open.
    """

    def __init__(self, folder: Path, artefact_bytes: int = DEFAULT_BYTES) -> None:
        self._folder = folder
        self._runs = folder / RUNS
        self.artefacts = Artefacts(folder / ARTEFACTS, artefact_bytes)
        self._reserve = DiskReserve(folder / RESERVE)
        self._using_reserve = 0
        self._damaged: dict[str, str] = {}
        self._db = Database(folder / DATABASE)
        self._locks: list[int] = []
        self.count = 0
        self.request_key = b""

    async def open(self) -> None:
        """Open the state folder for this server alone.

        What is damaged is set aside, and nothing of a run is removed for want of a row.

        Raises:
            StateFolderInUseError: Another server has it open.
            NewerHistoryError: A newer server has written it; nothing was touched.
            OSError: It cannot be written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = Quarantine(self._folder)
        self._lock(aside)
        version = await asyncio.to_thread(quarantine.check_version, self._folder)
        await asyncio.to_thread(aside.take_of_wrong_kind)
        self._runs.mkdir(mode=0o700, exist_ok=True)
        if version == 1:
            await asyncio.to_thread(quarantine.remove_early_artefacts, self._folder)
        await asyncio.to_thread(self.artefacts.clear)
        self.request_key = await asyncio.to_thread(self._request_key, aside)
        await asyncio.to_thread(self._finish_rebuilding, aside)
        try:
            await self._db.open(is_first=not any(self._runs.iterdir()))
        except DamagedHistoryError as error:
            await asyncio.to_thread(self._rebuild, aside, error)
            await self._db.open(is_first=True)
        await self._has_reserve()
        known = await self._db.read(tables.run_ids)
        self.count = len(known)
        left = await self._remove_forgotten(known)
        await asyncio.to_thread(self._set_strays_aside, known | left, aside)

    def _request_key(self, aside: Quarantine) -> bytes:
        if request_key.is_damaged(self._folder):
            aside.take([self._folder / request_key.FILE], f"Expected {request_key.KEY_BYTES} bytes.")
        return request_key.request_key(self._folder)

    def _rebuild(self, aside: Quarantine, why: object) -> None:
        """Set the damaged history aside, when there is a whole one to take its place; blocks.

        Raises:
            OSError: There is no room for that, and nothing was moved.
        """
        draft = self._folder / REBUILDING
        try:
            rebuild(self._folder / DATABASE, draft / "new")
            # From here on the new history is the one that counts, also for a later start.
            (draft / "new").rename(draft / REBUILT)
            sync_folder(draft)
        except sqlite3.Error as error:
            raise OSError(f"The damaged history cannot be rebuilt: {error}.") from error
        finally:
            if not (draft / REBUILT).exists():
                folder_tree.remove_if_possible(draft)
        self._finish_rebuilding(aside, why)

    def _finish_rebuilding(self, aside: Quarantine, why: object = "it was damaged, and rebuilt") -> None:
        """Put a rebuilt history in its place; blocks.

        Raises:
            OSError: It cannot be moved now; the next start does it.
        """
        draft = self._folder / REBUILDING
        if (draft / REBUILT).exists():
            aside.take(self._folder.glob(f"{DATABASE}*"), why)
            (draft / REBUILT).rename(self._folder / DATABASE)
            sync_folder(self._folder)
        folder_tree.remove_if_possible(draft)

    def _lock(self, aside: Quarantine) -> None:
        """Keep other servers out until `close`, also when somebody has removed the file that is locked.

        Raises:
            StateFolderInUseError: Another server has it open.
        """
        try:
            self._locks.append(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            # Some file systems (NFS) lock files alone.
            try:
                fcntl.flock(self._locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
            aside.take_of_wrong_kind(LOCK)
            self._locks.append(private(self._folder / LOCK, os.O_WRONLY | os.O_CREAT))
            fcntl.flock(self._locks[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateFolderInUseError(f"another server uses {self._folder}") from error

    async def _remove_forgotten(self, known: set[str]) -> set[str]:
        """Remove the folders of forgotten runs that an earlier server has left; return those that stay."""
        forgotten = await self._db.read(tables.forgotten_ids)
        there = [path.name for path in self._runs.iterdir() if path.name in forgotten - known]
        left = {run_id for run_id in there if not await self._remove_folder(run_id)}
        if gone := forgotten - left:
            # The disk may be full.
            with contextlib.suppress(StorageFullError):
                await self._db.write(tables.folders_removed, gone)
        return left

    async def _remove_folder(self, run_id: str) -> bool:
        return await asyncio.to_thread(self.folder(run_id).remove)

    def _set_strays_aside(self, known: set[str], aside: Quarantine) -> None:
        """Move away the folders of runs that are not in the history: it may have lost them."""
        strays = [path for path in self._runs.iterdir() if path.name not in known]
        aside.take(strays, "it is not in the history, which has lost it or never had it")

    async def close(self) -> None:
        """Close the state folder."""
        await self._db.close()
        while self._locks:
            os.close(self._locks.pop())

    def folder(self, run_id: str) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(self._runs / run_id)

    async def insert(
        self, run: Run, order: ExecutionOptions, fingerprint: str, event: Event, parts: Mapping[int, bytes]
    ) -> int:
        """Make a new run durable with its first event and the notebook to execute; return its position.

        Raises:
            StorageFullError: It could not be written, or its end could not; nothing of it is left.
        """
        await self._check_reserve()
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
        written: WriteBatch,
        expire_time: int | None,
        *,
        is_end: bool = False,
    ) -> None:
        """Make events durable, after the parts that they tell of.

        Args:
            position: The run's position.
            run: The run after them.
            events: What happened.
            written: What goes into its files.
            expire_time: When the run may be forgotten; None: it has not ended.
            is_end: It belongs to the end of the run, for which room is kept.

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
                checkpoint.note(db, position, written.resume)

        if not is_end:
            await self._check_reserve()
            await self._db.write(write)
        else:
            await self._write_with_reserve(write)
        if events and run.state is RunState.STARTING:
            # A worker is to have it now: should the history lose this event, it is not executed again.
            await self.note_begun(run.run_id)

    async def note_begun(self, run_id: str) -> None:
        """Note that a run is not to be executed by a later server, whatever the history says."""
        await self._db.run_in_order(self.folder(run_id).note_begun)

    async def _write_with_reserve(self, write: Callable[[sqlite3.Connection], None]) -> None:
        """Write what makes room, or for which room is kept.

        Raises:
            StorageFullError: It could not be written, not even there.
        """
        try:
            await self._db.write(write)
        except StorageFullError:
            if not self._reserve.is_there:
                raise
            self._using_reserve += 1
            try:
                await self._db.run_in_order(self._reserve.release)
                await self._db.write(write)
            finally:
                self._using_reserve -= 1

    async def _check_reserve(self) -> None:
        """Keep what room there is for the ends of the runs that go on.

        Raises:
            StorageFullError: There is no more than that.
        """
        if not await self._has_reserve():
            raise StorageFullError(self._reserve.problem)

    async def _has_reserve(self) -> bool:
        # What was given to an end is not taken back before that is written.
        if self._reserve.is_there or self._using_reserve:
            return self._reserve.is_there
        return await asyncio.to_thread(self._reserve.make)

    @property
    def problem(self) -> str:
        """Why nothing can be written now; empty: it can."""
        return self._db.problem or self._reserve.problem

    async def look_for_room(self) -> None:
        """Look whether there is room again, after there was none."""
        if self.problem and await self._has_reserve():
            with contextlib.suppress(StorageFullError):
                await self._db.write(tables.touch)

    async def find(self, run_id: str) -> RunRecord | None:
        """Return a run by its id, or the newest one for an empty id; None: there is none.

        Raises:
            DamagedRunError: What there is of it is damaged.
        """
        return self._checked(await self._db.read(tables.find_run, run_id))

    async def find_request(self, request_id: str) -> RunRecord | None:
        """Return the run of a request id; None: there is none.

        Raises:
            DamagedRunError: What there is of it is damaged.
        """
        return self._checked(await self._db.read(tables.find_request, request_id))

    def _checked(self, row: RunRecord | None) -> RunRecord | None:
        if row is not None and (why := self._damaged.get(row.run.run_id)):
            raise damaged(row.run.run_id, why)
        return row

    async def unended(self) -> list[RunRecord]:
        """Return the runs that have not ended, oldest first; those that are damaged are named in the log."""
        rows = await self._db.read(tables.unended_runs)
        for row in rows:
            if isinstance(row, DamagedRecord):
                self.note_damage(row.run_id, row.why)
        return [row for row in rows if isinstance(row, RunRecord)]

    def order(self, row: RunRecord) -> ExecutionOptions:
        """Return what a worker is to do for a run that has not ended; blocks.

        Raises:
            DamagedRunError: It cannot be read.
        """
        environment, output_uri = self.folder(row.run.run_id).secrets()
        # The first versions kept them in the row.
        environment = environment or dict(row.order.environment)
        return replace(row.order, environment=environment, output_uri=output_uri)

    def note_damage(self, run_id: str, why: object) -> None:
        """Remember that a run cannot be gone on with or answered, and say so in the log."""
        if run_id not in self._damaged:
            self._damaged[run_id] = str(why)
            _logger.error("a run is damaged", extra={"run_id": run_id, "why": str(why)})

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

    async def checkpoint(self, position: int) -> Checkpoint | None:
        """Return where a run that an earlier server has begun is gone on with; None: nothing was noted."""
        return await self._db.read(checkpoint.read, position)

    async def parts(self, position: int, as_of: int) -> list[Part]:
        """Return the version that each part of a run's notebook had at a sequence number."""
        return await self._db.read(tables.read_parts, position, as_of)

    async def newest_part(self, position: int, as_of: int) -> int:
        """Return the sequence number of the newest part at a sequence number."""
        return await self._db.read(tables.newest_part, position, as_of)

    async def expired(self, after: int, limit: int) -> list[RunRecord]:
        """Return ended runs after a position whose retention is over, oldest first."""
        return await self._db.read(tables.ended_runs, time.time_ns(), after, limit)

    async def ended(self, after: int, limit: int) -> list[RunRecord]:
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
        others = sum(map(folder_tree.size, [self._folder / ARTEFACTS, *quarantine.asides(self._folder)]))
        return sum(path.stat().st_size for path in files) + sum(self.sizes().values()) + others

    def free_bytes(self) -> int:
        """Return how many bytes there is room for on the state folder's file system."""
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize

    async def delete(self, row: RunRecord) -> None:
        """Remove a run with all that belongs to it."""
        await self._write_with_reserve(lambda db: tables.delete_run(db, row.position))
        self.count -= 1
        is_gone = await self._remove_folder(row.run.run_id)
        await self.artefacts.forget(row.run.run_id)
        if is_gone:
            await self._db.write(tables.folders_removed, [row.run.run_id])

    async def list(
        self, before: int, size: int, states: Sequence[RunState], labels: Mapping[str, str]
    ) -> list[RunRecord | DamagedRecord]:
        """Return up to `size` runs before a position, newest first, that match states and labels."""
        rows = await self._db.read(tables.list_runs, before, size, states, labels)
        for row in rows:
            if isinstance(row, DamagedRecord):
                self.note_damage(row.run_id, row.why)
        why = self._damaged
        return [
            DamagedRecord(row.position, row.run_id, why[row.run_id])
            if isinstance(row, RunRecord) and row.run_id in why
            else row
            for row in rows
        ]
