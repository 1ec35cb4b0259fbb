"""The store of runs: the one interface of the history, whichever database has it.

By default that is an SQLite file in the state folder, with a folder for each run beside it. With a history on
a database server (`RemoteHistory`), the state folder has only what a server can lose.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from notebook_runner_server import folder_tree
from notebook_runner_server.errors import (
    NotFoundError,
    NotReadyError,
    StorageFullError,
    damaged,
    expired,
    not_found,
)
from notebook_runner_server.execution.interface import InputFile
from notebook_runner_server.runs import request_digest, state_folder, tables
from notebook_runner_server.runs.artefacts import DEFAULT_BYTES, Artefacts
from notebook_runner_server.runs.changes import ChangeLog
from notebook_runner_server.runs.contents import Contents, FolderContents
from notebook_runner_server.runs.database import Connection, Database
from notebook_runner_server.runs.deliveries import Deliveries
from notebook_runner_server.runs.folder import RunFolder, private, sync_folder
from notebook_runner_server.runs.model import (
    Admitted,
    Checkpoint,
    Event,
    ExecutionOptions,
    Notify,
    Run,
    RunChanged,
    RunState,
    Segment,
    Successor,
    WriteBatch,
)
from notebook_runner_server.runs.replicas import ClaimedError, OutdatedError, Replicas, Topic
from notebook_runner_server.runs.sqlite import DamagedHistoryError, SqliteDatabase, rebuild
from notebook_runner_server.runs.state_folder import (
    ARTEFACTS,
    DATABASE,
    LOCK,
    REBUILDING,
    REBUILT,
    RESERVE,
    RUNS,
    DiskReserve,
    Quarantine,
)
from notebook_runner_server.runs.tables import DamagedRecord, RunRecord

EVENTS_PER_READ = 256
_MAX_TIME = 2**63 - 1
_MAX_KNOWN = 64
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class StateFolderInUseError(RuntimeError):
    """Another server uses the state folder."""


class RemoteHistory(Protocol):
    """A history on a database server."""

    @property
    def database(self) -> Database:
        """Its rows."""

    @property
    def contents(self) -> Contents:
        """The contents of its runs."""

    @property
    def replicas(self) -> Replicas:
        """The servers that share it."""

    async def open(self) -> bytes:
        """Open it, and return the key of the digests of requests."""

    async def close(self) -> None:
        """Close it."""


class Store:
    """Stores runs, events and notebooks.

    Args:
        folder: The state folder; created when it does not exist.
        artefact_bytes: How much space artefacts may take, in addition to the history.
        remote: The history on a database server; None: it is in the state folder.

    Attributes:
        artefacts: Cached artefacts of runs.
        changes: The changes of all runs.
        deliveries: What receivers of webhooks still have to get.
        count: How many runs are stored.
        on_delete: Called with the id of each run that is deleted.
        request_key: The key of the digests of requests, once the store is open.
    """

    def __init__(
        self, folder: Path, artefact_bytes: int = DEFAULT_BYTES, remote: RemoteHistory | None = None
    ) -> None:
        self._folder = folder
        self._runs = folder / RUNS
        self.artefacts = Artefacts(folder / ARTEFACTS, artefact_bytes)
        self._reserve = DiskReserve(folder / RESERVE)
        self._reserve_users = 0
        self._damaged: dict[str, str] = {}
        self._remote = remote
        self._db: Database
        if remote is None:
            self._db = SqliteDatabase(folder / DATABASE)
            self._folders = FolderContents(folder, self._db)
        else:
            self._db = remote.database
        self._contents: Contents = self._folders if remote is None else remote.contents
        self.changes = ChangeLog(self._db, self.record_damage)
        self.deliveries = Deliveries(self._db, self.changes)
        self._locks: list[int] = []
        # Reads of ended runs, which do not change: each page of an artefact asks for the same ones. A
        # deletion replaces the dict, so that a read that began before it is not kept.
        self._ended: dict[tuple[str, int | None], Any] = {}
        self.count = 0
        # The runs that this server has stored or deleted, and whose changes it has not followed yet.
        self._counted: set[tuple[str, int]] = set()
        self.on_delete: Callable[[str], object] = lambda _: None
        self.request_key = b""

    async def open(self) -> None:
        """Open the history for this server alone.

        Raises:
            StateFolderInUseError: Another server has the state folder open.
            NewerHistoryError: A newer server has written the history; nothing was changed.
            OSError: The state folder cannot be written.
            RuntimeError: The database server refuses its history.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Before the lock, whose file may be among them; another server's files keep all that it needs.
        await asyncio.to_thread(state_folder.grant_owner, self._folder)
        quarantine = Quarantine(self._folder)
        self._lock(quarantine)
        if self._remote is None:
            await self._open_folder(quarantine)
        else:
            await self._open_remote(self._remote, quarantine)

    async def _open_remote(self, remote: RemoteHistory, quarantine: Quarantine) -> None:
        await asyncio.to_thread(quarantine.move_wrong_types)
        self._runs.mkdir(mode=0o700, exist_ok=True)
        await asyncio.to_thread(self.artefacts.clear)
        self.request_key = await remote.open()
        self.count = len(await self._db.read(tables.run_ids))
        # Notebooks that an earlier server has not finished may have left files here.
        unended = {row.run_id for row in await self._db.read(tables.unended_runs)}
        for path in self._runs.iterdir():
            if path.name not in unended:
                await asyncio.to_thread(folder_tree.remove_if_possible, path)

    async def _open_folder(self, quarantine: Quarantine) -> None:
        """Open the history in the state folder.

        Damaged files are moved into quarantine; a run without a row is moved there too, and not removed.
        """
        version = await asyncio.to_thread(state_folder.check_version, self._folder)
        await asyncio.to_thread(quarantine.move_wrong_types)
        self._runs.mkdir(mode=0o700, exist_ok=True)
        if version == 1:
            await asyncio.to_thread(state_folder.remove_early_artefacts, self._folder)
        await asyncio.to_thread(self.artefacts.clear)
        self.request_key = await asyncio.to_thread(self._load_request_key, quarantine)
        await asyncio.to_thread(self._finish_rebuilding, quarantine)
        try:
            await self._db.open(is_first=not any(self._runs.iterdir()))
        except DamagedHistoryError as error:
            await asyncio.to_thread(self._rebuild, quarantine, error)
            await self._db.open(is_first=True)
        await self._has_reserve()
        known = await self._db.read(tables.run_ids)
        self.count = len(known)
        remaining = await self._remove_deleted(known)
        # A server that was killed may have left it, with what it had deleted.
        await self._db.truncate_log()
        await asyncio.to_thread(self._move_strays, known | remaining, quarantine)

    def _load_request_key(self, quarantine: Quarantine) -> bytes:
        if request_digest.is_key_damaged(self._folder):
            why = f"Expected {request_digest.KEY_BYTES} bytes."
            quarantine.move([self._folder / request_digest.KEY_FILE], why)
        return request_digest.request_key(self._folder)

    def _rebuild(self, quarantine: Quarantine, why: object) -> None:
        """Replace the damaged history by a new one of all intact runs; blocks.

        Raises:
            OSError: The new history cannot be written; nothing was moved.
        """
        draft = self._folder / REBUILDING
        try:
            rebuild(self._folder / DATABASE, draft / "new")
            # From here on the new history counts, also for a later start.
            (draft / "new").rename(draft / REBUILT)
            sync_folder(draft)
        except sqlite3.Error as error:
            raise OSError(f"The damaged history cannot be rebuilt: {error}.") from error
        finally:
            if not (draft / REBUILT).exists():
                folder_tree.remove_if_possible(draft)
        self._finish_rebuilding(quarantine, why)

    def _finish_rebuilding(self, quarantine: Quarantine, why: object = "It was damaged.") -> None:
        """Replace the damaged history by the rebuilt one, if there is one; blocks.

        Raises:
            OSError: The new history cannot be moved; the next start tries again.
        """
        draft = self._folder / REBUILDING
        if (draft / REBUILT).exists():
            quarantine.move(self._folder.glob(f"{DATABASE}*"), why)
            (draft / REBUILT).rename(self._folder / DATABASE)
            sync_folder(self._folder)
        folder_tree.remove_if_possible(draft)

    def _lock(self, quarantine: Quarantine) -> None:
        """Lock the state folder until `close`, even when somebody removes the lock file.

        Raises:
            StateFolderInUseError: Another server has it open.
        """
        try:
            self._locks.append(os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            # Some file systems (NFS) lock only files.
            try:
                fcntl.flock(self._locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
            quarantine.move_wrong_types(LOCK)
            self._locks.append(private(self._folder / LOCK, os.O_WRONLY | os.O_CREAT))
            fcntl.flock(self._locks[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateFolderInUseError(f"another server uses {self._folder}") from error

    async def _remove_deleted(self, known: set[str]) -> set[str]:
        """Remove the folders and inputs that an earlier server left; return the runs of those that remain."""
        deleted = await self._db.read(tables.deleted_run_ids)
        existing = [path.name for path in self._runs.iterdir() if path.name in deleted]
        remaining = {
            run_id
            for run_id in existing
            if not await (
                self._folders.remove_inputs(run_id)
                if run_id in known
                else asyncio.to_thread(self.folder(run_id).remove)
            )
        }
        if gone := deleted - remaining:
            await self._folders.record_removal(*gone)
        return remaining

    def _move_strays(self, known: set[str], quarantine: Quarantine) -> None:
        """Move away the folders of runs that are not in the history, which may have lost them."""
        strays = [path for path in self._runs.iterdir() if path.name not in known]
        quarantine.move(strays, "the history has no record of it")

    async def close(self) -> None:
        """Close the state folder."""
        await (self._db if self._remote is None else self._remote).close()
        while self._locks:
            os.close(self._locks.pop())

    def folder(self, run_id: str) -> RunFolder:
        """Return the contents of a run, for reading."""
        return self._contents.folder(run_id)

    @property
    def replicas(self) -> Replicas | None:
        """The servers that share the history; None: it is this server's alone."""
        return None if self._remote is None else self._remote.replicas

    def _count(self, run_id: str, difference: int) -> None:
        self.count += difference
        if self._remote is not None:
            self._counted.add((run_id, difference))

    def count_change(self, run_id: str, difference: int) -> None:
        """Count a run that was stored (1) or deleted (-1), unless this server has done so."""
        if (run_id, difference) in self._counted:
            self._counted.discard((run_id, difference))
        else:
            self.count += difference

    def _tell(self, topic: Topic, position: int = 0) -> None:
        if self._remote is not None:
            self._remote.replicas.tell(topic, position)

    async def insert(
        self,
        run: Run,
        options: ExecutionOptions,
        request_digest: str,
        event: Event,
        segments: Mapping[int, bytes],
        files: Sequence[InputFile] = (),
        notify: Notify | None = None,
        unended: int | None = None,
    ) -> int:
        """Make a new run durable with its first event, its notebook and its files; return its position.

        Args:
            run: The run.
            options: How it is executed.
            request_digest: The digest of its request.
            event: Its first event.
            segments: Its notebook.
            files: The files that the request brought.
            notify: Who is notified of its end.
            unended: How many runs that have not ended the caller knows, in a shared history; None: do not
                compare.

        Raises:
            StorageFullError: It could not be written, or its end could not; nothing of it is left.
            DuplicateError: Another server has stored a run with its request id; nothing of it is left.
            OutdatedError: More runs have not ended; nothing of it is left.
        """
        await self._check_reserve()
        admitted = Admitted(run, options, segments, files, notify)

        def write(db: Connection) -> int:
            if self._remote is not None and unended is not None:
                self._remote.replicas.check_known(db, unended)
            position = _insert(db, admitted, request_digest, event)
            self._contents.insert(db, position, admitted)
            return position

        try:
            position = await self._db.write_soon(write)
        except Exception:
            await self._contents.discard(run.run_id)
            raise
        self._count(run.run_id, 1)
        self.changes.wake()
        self._tell(Topic.CHANGES)
        return position

    async def stage(self, run: Run, options: ExecutionOptions, source: int) -> Admitted:
        """Prepare a run that repeats another, for `append` of that one's end.

        Args:
            run: The new run.
            options: How it is executed; its secrets are copied.
            source: The position of the run that it repeats.

        Raises:
            StorageFullError: The disk is full; nothing of the new run is left.
            DamagedRunError: The contents of the run that it repeats cannot be read.
            OSError: The contents cannot be written; nothing of them is left.
        """
        await self._check_reserve()
        original = self.folder(run.retry_of)
        segments = await self.segments(source, 0)
        notify = await self._db.read(tables.find_notification, source)

        def copy() -> Admitted:
            environment, output_uri = original.secrets()
            return Admitted(
                run,
                replace(options, environment=environment, output_uri=output_uri),
                {segment.number: original.read(segment) for segment in segments},
                original.input_files(),
                notify,
            )

        try:
            return await self._contents.stage(run.run_id, copy)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise StorageFullError(f"The state folder cannot be written: {error}.") from error
            raise

    async def append(
        self,
        position: int,
        run: Run,
        events: Sequence[Event],
        written: WriteBatch,
        expire_time: int | None,
        *,
        is_end: bool = False,
        is_first_step: bool = False,
        max_active: int | None = None,
        successor: Successor | None = None,
    ) -> int:
        """Make events durable, after the segments that they announce.

        Args:
            position: The run's position.
            run: The run after the events.
            events: The events.
            written: The contents.
            expire_time: When the run may be deleted; None: it has not ended.
            is_end: Whether this belongs to the run's end, which may use the reserved space.
            is_first_step: Whether the run was queued, so that this server claims it in a shared history.
            max_active: How many runs of its owner may have a worker, if this step gives it one; None: any
                number.
            successor: The run that repeats this one, which has ended, as returned by `stage`. It is stored in
                the same transaction.

        Returns:
            The position of the successor; 0: there is none.

        Raises:
            StorageFullError: They could not be written; nothing of the successor is left.
            ClaimedError: Another server has claimed the run; nothing was written.
            OutdatedError: In a shared history, so many runs of its owner have a worker; nothing was written.
        """
        step = await self._contents.step(run, written)

        def write(db: Connection) -> int:
            if self._remote is not None and is_first_step:
                self._remote.replicas.claim(db, position, max_active)
            step.apply(db, position)
            tables.append(db, position, run, events, written.segments, expire_time)
            if written.checkpoint is not None:
                tables.write_checkpoint(db, position, written.checkpoint)
            if successor is None:
                return 0
            new = _insert(db, successor.admitted, "", successor.event)
            self._contents.insert_staged(db, new, successor.admitted)
            return new

        successor_position = 0
        try:
            if is_end:
                successor_position = await self._write_end(write, successor)
            else:
                await self._check_reserve()
                await self._db.write(write)
        except (ClaimedError, OutdatedError):
            # The folder that was made for it.
            await self._contents.remove(run.run_id)
            raise
        if any(isinstance(event.body, RunChanged) for event in events):
            self.changes.wake()
            self._tell(Topic.CHANGES)
        self._tell(Topic.EVENTS, position)
        await step.finish()
        if events and run.state is RunState.STARTING:
            # A worker gets the run now. It must not be executed again, even if the history loses this event.
            await self.mark_begun(run.run_id)
        return successor_position

    async def _write_end(self, write: Callable[[Connection], int], successor: Successor | None) -> int:
        try:
            position = await self._write_with_reserve(write)
        except Exception:
            if successor is not None:
                await self._contents.discard(successor.admitted.run.run_id)
            raise
        if successor is not None:
            self._count(successor.admitted.run.run_id, 1)
        return position

    async def prepare_end(self, run: Run, stopped: asyncio.Event) -> bool:
        """Store the files of a run before its end is appended; arguments and errors as in `Contents`."""
        return await self._contents.prepare_end(run, stopped)

    async def mark_begun(self, run_id: str) -> None:
        """Mark a run so that no later server executes it, whatever the history says."""
        await self._contents.mark_begun(run_id)

    async def _write_with_reserve(self, write: Callable[[Connection], _T]) -> _T:
        """Write something that frees space, or that may use the reserved space; return the result.

        Raises:
            StorageFullError: It could not be written, even with the reserve.
        """
        try:
            return await self._db.write(write)
        except StorageFullError:
            if not self._reserve.is_allocated:
                raise
            self._reserve_users += 1
            try:
                await self._db.run_in_order(self._reserve.release)
                return await self._db.write(write)
            finally:
                self._reserve_users -= 1

    async def _check_reserve(self) -> None:
        """Refuse a write that would need the space reserved for the ends of active runs.

        Raises:
            StorageFullError: No other space is left.
        """
        if not await self._has_reserve():
            raise StorageFullError(self._reserve.problem)

    async def _has_reserve(self) -> bool:
        if self._remote is not None:
            return True
        # Space that was released for an end is not taken back before the end is written.
        if self._reserve.is_allocated or self._reserve_users:
            return self._reserve.is_allocated
        return await asyncio.to_thread(self._reserve.allocate)

    @property
    def problem(self) -> str:
        """Why nothing can be written now; empty: writes work."""
        return self._db.problem or self._reserve.problem

    async def retry_writing(self) -> None:
        """Find out whether writes work again, after one failed."""
        if self.problem and await self._has_reserve():
            with contextlib.suppress(StorageFullError, NotReadyError):
                await self._db.touch()

    @property
    def _known_ended(self) -> dict[tuple[str, int | None], Any]:
        """What was read of ended runs; nothing while another server may delete one."""
        return {} if self.replicas is not None and self.replicas.others else self._ended

    async def find(self, run_id: str, owner: str | None = None) -> RunRecord | None:
        """Return a run of an owner, or of anyone (None), by its id; None: not found.

        Raises:
            DamagedRunError: Its data is damaged.
        """
        known = self._known_ended
        record: RunRecord | None = known.get((run_id, None))
        if record is None:
            record = await self._db.read(tables.find_run, run_id, owner)
            _keep(known, (run_id, None), record, record)
        elif owner not in (None, record.owner):
            return None
        return self._checked(record)

    async def newest(self, owner: str | None = None) -> RunRecord | None:
        """Return the newest run of an owner, or of anyone (None); None: there is none.

        Raises:
            DamagedRunError: Its data is damaged.
        """
        return self._checked(await self._db.read(tables.find_newest, owner))

    async def find_ids(self, part: str, limit: int, owner: str | None = None) -> list[str]:
        """Return up to `limit` ids that begin with a part, or whose random part does; latest second first.

        The id that is the part as a whole comes alone. Only runs of an owner, or of anyone (None), count.
        """
        return await self._db.read(tables.find_ids, part, limit, owner)

    async def find_to_delete(self, run_id: str, owner: str | None = None) -> RunRecord | DamagedRecord | None:
        """Return a run of an owner, or of anyone (None), also if its row is damaged; None: not found."""
        return await self._db.read(tables.find_to_delete, run_id, owner)

    async def missing(self, run_id: str, owner: str | None = None) -> NotFoundError:
        """Return the error for a run of an owner, or of anyone (None), that is not found.

        Args:
            run_id: The run; empty: the newest one.
            owner: The owner.
        """
        is_expired = bool(run_id) and await self._db.read(tables.is_expired, run_id, owner)
        return expired(run_id) if is_expired else not_found(run_id)

    async def find_request(self, request_id: str, owner: str = "") -> RunRecord | None:
        """Return the run of an owner's request id; None: not found.

        Raises:
            DamagedRunError: Its data is damaged.
        """
        return self._checked(await self._db.read(tables.find_request, request_id, owner))

    def _checked(self, record: RunRecord | None) -> RunRecord | None:
        if record is not None and (why := self._damaged.get(record.run_id)):
            raise damaged(record.run_id, why)
        return record

    async def unended(self) -> list[RunRecord]:
        """Return the runs that have not ended, oldest first; damaged runs are logged instead."""
        rows = self._with_damage(await self._db.read(tables.unended_runs))
        return [row for row in rows if isinstance(row, RunRecord)]

    def _with_damage(self, rows: Sequence[RunRecord | DamagedRecord]) -> list[RunRecord | DamagedRecord]:
        """Record newly damaged runs, and replace the rows of runs that are known to be damaged."""
        for row in rows:
            if isinstance(row, DamagedRecord):
                self.record_damage(row.run_id, row.why)
        why = self._damaged
        return [
            DamagedRecord(row.position, row.run_id, why[row.run_id], row.owner) if row.run_id in why else row
            for row in rows
        ]

    def record_damage(self, run_id: str, why: object) -> None:
        """Remember and log that a run's data is damaged."""
        if run_id not in self._damaged:
            self._damaged[run_id] = str(why)
            _logger.error("run_damaged", extra={"run_id": run_id, "why": str(why)})

    def options(self, record: RunRecord) -> ExecutionOptions:
        """Return how a run that has not ended is executed; blocks.

        Raises:
            DamagedRunError: Its secrets cannot be read.
        """
        environment, output_uri = self.folder(record.run_id).secrets()
        # The first versions stored them in the row.
        environment = environment or dict(record.options.environment)
        return replace(record.options, environment=environment, output_uri=output_uri)

    async def events(self, position: int, after: int) -> list[Event]:
        """Return some events of a run after a sequence number, in order; none: there are no more."""
        return await self._db.read(tables.read_events, position, after, EVENTS_PER_READ)

    async def last_sequences(self, positions: Sequence[int]) -> dict[int, int]:
        """Return the sequence number of the newest event of each of some runs."""
        return await self._db.read(tables.last_sequences, positions)

    async def events_before(self, position: int, before: int) -> list[Event]:
        """Return some events of a run before a sequence number, newest first; none: there are no more."""
        return await self._db.read(tables.read_events_back, position, before, EVENTS_PER_READ)

    async def source(self, run_id: str, position: int, number: int) -> bytes:
        """Return a segment of the notebook before its execution."""
        segment = next(one for one in await self.segments(position, 0) if one.number == number)
        return await asyncio.to_thread(self.folder(run_id).read, segment)

    async def checkpoint(self, position: int) -> Checkpoint | None:
        """Return where a run of an earlier server continues; None: it has no checkpoint."""
        return await self._db.read(tables.read_checkpoint, position)

    async def segments(self, position: int, as_of: int) -> list[Segment]:
        """Return the version that each segment of a run's notebook had at a sequence number."""
        return await self._db.read(tables.read_segments, position, as_of)

    async def newest_segment(self, position: int, as_of: int) -> int:
        """Return the sequence number of the newest segment at a sequence number."""
        return await self._db.read(tables.newest_segment, position, as_of)

    async def find_state(self, position: int, as_of: int) -> Event:
        """Return the event that brought a run into the state that it had at a sequence number.

        Raises:
            DamagedRunError: It is damaged or missing.
        """
        return await self._db.read(tables.find_state, position, as_of)

    async def find_versions(self, run_id: str, as_of: int) -> tuple[RunRecord, int, int] | None:
        """Return a run, and the sequence numbers of its newest segment: now, and as of one; None: not found.

        Raises:
            DamagedRunError: The run's data is damaged.
        """
        known = self._known_ended
        found: tuple[RunRecord, int, int] | None = known.get((run_id, as_of))
        if found is None:
            found = await self._db.read(tables.find_versions, run_id, as_of)
            _keep(known, (run_id, as_of), found, found and found[0])
        self._checked(found and found[0])
        return found

    async def expired(self, after: int, limit: int) -> list[RunRecord]:
        """Return ended runs after a position whose retention has expired, oldest first."""
        return await self._db.read(tables.ended_runs, time.time_ns(), after, limit)

    async def ended(self, after: int, limit: int) -> list[RunRecord]:
        """Return ended runs after a position, oldest first."""
        return await self._db.read(tables.ended_runs, _MAX_TIME, after, limit)

    async def count_ended(self) -> int:
        """Return how many runs have ended."""
        return await self._db.read(tables.count_ended)

    def sizes(self) -> dict[str, int]:
        """Return the size of the contents of each run in bytes; blocks."""
        return self._contents.sizes()

    def size(self) -> int:
        """Return the size of the history with all contents in bytes; blocks."""
        return self._contents.size()

    def free_bytes(self) -> int:
        """Return the free space on the state folder's file system in bytes."""
        status = os.statvfs(self._folder)
        return status.f_bavail * status.f_frsize

    async def delete(self, record: RunRecord | DamagedRecord, *, is_expired: bool = False) -> bool:
        """Delete a run with its events, contents and artefacts; false: it was deleted before.

        The row goes first: from then on the run is not served, and a later start removes what is left of it.

        Args:
            record: The run.
            is_expired: Whether retention deletes it.

        Raises:
            StorageFullError: It could not be deleted; nothing of it is gone.
        """

        def write(db: Connection) -> bool:
            if self._remote is not None:
                # Another server may be deleting it.
                self._remote.replicas.lock(db)
            return tables.delete_run(db, record.position, is_expired=is_expired)

        is_deleted = await self._write_with_reserve(write)
        self._ended = {}
        if not is_deleted:
            return False
        self.changes.wake()
        self._tell(Topic.CHANGES)
        self._count(record.run_id, -1)
        await self.forget(record.run_id)
        return True

    async def forget(self, run_id: str) -> None:
        """Remove what this server has of a run that was deleted, also by another server."""
        self._ended = {}
        self.on_delete(run_id)
        self._damaged.pop(run_id, None)
        await self.artefacts.delete(run_id)
        await self._contents.remove(run_id)

    async def list(
        self,
        before: int,
        size: int,
        states: Sequence[RunState],
        labels: Mapping[str, str],
        owner: str | None = None,
    ) -> list[RunRecord | DamagedRecord]:
        """Return up to `size` runs before a position, newest first, that match states and labels.

        Only runs of an owner, or of anyone (None), are returned.
        """
        return self._with_damage(await self._db.read(tables.list_runs, before, size, states, labels, owner))


def _insert(db: Connection, admitted: Admitted, request_digest: str, event: Event) -> int:
    """Insert the rows of a run, and return its position."""
    locations, start = [], 0
    for number, data in admitted.segments.items():
        locations.append(Segment(number, 0, start, len(data), zlib.crc32(data)))
        start += len(data)
    plain = replace(admitted.options, environment={}, output_uri="")
    return tables.insert_run(db, admitted.run, plain, request_digest, event, locations, admitted.notify)


def _keep(
    known: dict[tuple[str, int | None], Any],
    key: tuple[str, int | None],
    found: object,
    record: RunRecord | None,
) -> None:
    """Keep what was read of a run, if it has ended; an empty id is another run later."""
    if key[0] and record is not None and record.run.state.is_terminal:
        known[key] = found
        if len(known) > _MAX_KNOWN:
            del known[next(iter(known))]
