"""The contents of runs in tables: the file of segments in chunks, the inputs, and the files of ended runs.

The kernel's working folder is on this machine. When a run ends, its files are stored as a zip in the
transaction of its end. A large one is written to an object store before that (`Archives`), under a name that
no other attempt uses, and `file_objects` has a row for it before it exists. An object that belongs to no run,
and that no server can still write, is removed by the oldest server: the run was deleted, or the server that
wrote it has not recorded the end of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import secrets
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from notebook_runner_server import folder_tree
from notebook_runner_server.errors import (
    DamagedRunError,
    NotReadyError,
    RunnerError,
    ShuttingDownError,
    StorageFullError,
    damaged,
)
from notebook_runner_server.execution.interface import InputFile
from notebook_runner_server.runs import files, input_files, tables
from notebook_runner_server.runs.contents import ContentsStep
from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.folder import RunFolder, call_to_end
from notebook_runner_server.runs.model import Admitted, Run, RunState, WriteBatch
from notebook_runner_server.runs.postgres.connection import PostgresConnection
from notebook_runner_server.runs.postgres.database import PostgresDatabase
from notebook_runner_server.runs.problems import ProblemLogger
from notebook_runner_server.runs.state_folder import RUNS
from notebook_runner_server.transfer.interface import (
    Archives,
    DamagedObjectError,
    MissingError,
    Removal,
    StoppedError,
    StoredObject,
    TransferError,
)

CHUNK_BYTES = 1024 * 1024
"""Maximum size of a row."""

STOPPED_SECONDS = 5.0
"""Seconds that an object store has for the files of a run that was stopped."""

STRAY_SECONDS = 3600.0
"""Seconds from the announcement of an object until it is removed if no run has it.

Its write ends after half of that at the latest. The rest is for clocks that do not advance alike.
"""

SWEEP_SECONDS = 15.0
"""Seconds between two searches for objects that belong to no run."""

_SWEEP_OBJECTS = 100
"""Maximum number of objects that are removed together."""

_READ_AHEAD = 1024 * 1024
_OF_RUN = "WHERE position = (SELECT position FROM runs WHERE run_id = ?)"
_TABLES = (
    *("runs", "labels", "events", "segments", "checkpoints", "changes", "deletions"),
    *("segment_chunks", "run_inputs", "run_files", "file_objects"),
)
_UNENDED = ", ".join(f"'{state}'" for state in sorted(tables.UNENDED))
# These conditions never become false again, so an object that was found is removed without a lock: the server
# that wrote it is fenced, or the run has ended without it, or is gone.
_UNUSED = (
    "SELECT name FROM file_objects WHERE written_until <= now()"  # noqa: S608 - constants
    " AND NOT EXISTS (SELECT 1 FROM run_files WHERE object = name)"
    " AND (server_id NOT IN (SELECT server_id FROM servers) OR NOT EXISTS"
    f" (SELECT 1 FROM runs WHERE runs.run_id = file_objects.run_id AND state IN ({_UNENDED})))"
    " AND name > ? ORDER BY name LIMIT ?"
)
_logger = ProblemLogger(__name__)


class TableContents:
    """Stores the contents of runs in tables.

    Args:
        folder: The state folder, for the working folders.
        database: The database.
        files_bytes: Maximum size of the files of an ended run that are stored in the database.
        archives: Where larger files are stored; None: nowhere.
        archive_bytes: Maximum size of the files of an ended run that are stored there.
    """

    def __init__(
        self,
        folder: Path,
        database: PostgresDatabase,
        files_bytes: int,
        archives: Archives | None = None,
        archive_bytes: int = 0,
    ) -> None:
        self._runs = folder / RUNS
        self._db = database
        self._files_bytes = files_bytes
        self._archives = archives
        self._archive_bytes = 0 if archives is None else archive_bytes
        # Of runs whose end is being recorded: it may take several attempts.
        self._packed: dict[str, _Archive] = {}
        # After which name the next search for objects begins.
        self._swept = ""
        self._has_removed = asyncio.Event()
        self._sweeper: asyncio.Task[NoReturn] | None = None

    def open(self) -> None:
        """Begin to remove objects that belong to no run, once the database is open."""
        self._sweeper = asyncio.create_task(self._sweep_repeatedly())

    async def close(self) -> None:
        """Stop removing objects."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])

    def folder(self, run_id: str) -> TableFolder:
        """Return the contents of a run, for reading, with its working folder."""
        return TableFolder(self._runs / run_id, self._db, self._archives)

    def insert(self, db: Connection, position: int, admitted: Admitted) -> None:
        """Store the contents of a new run in the transaction that inserts it; blocks."""
        _write(db, position, 0, admitted.segments.values())
        options = admitted.options
        if options.environment or options.output_uri or admitted.files:
            # Values may be secrets, so they are only in a row that is deleted at the run's end.
            db.execute(
                "INSERT INTO run_inputs (position, environment, output_uri, files) VALUES (?, ?, ?, ?)",
                (
                    position,
                    json.dumps(dict(options.environment)),
                    options.output_uri,
                    input_files.pack(admitted.files) if admitted.files else None,
                ),
            )

    async def stage(self, _: str, copy: Callable[[], Admitted]) -> Admitted:
        """Read what a run that repeats another needs: it is written with the run."""
        return await asyncio.to_thread(copy)

    def insert_staged(self, db: Connection, position: int, admitted: Admitted) -> None:
        """Store the contents of a run that repeats another; blocks."""
        self.insert(db, position, admitted)

    async def discard(self, _: str) -> None:
        """Leave nothing of a run that was not inserted: its transaction was rolled back."""

    async def step(self, run: Run, written: WriteBatch) -> ContentsStep:
        """Return what stores contents together with events of a run."""
        folder = self.folder(run.run_id)
        if run.state is RunState.STARTING:
            await asyncio.to_thread(folder.create)
        archive = None
        if run.state.is_terminal:
            await self.prepare_end(run, asyncio.Event())
            archive = self._packed[run.run_id]
        return _TableStep(self, folder, written, archive)

    async def prepare_end(self, run: Run, stopped: asyncio.Event) -> bool:
        """Pack the files of a run, and write them to the object store if they are too large for the database.

        Returns:
            Whether they would be there if the run had not been stopped.

        Raises:
            StorageFullError: The database has no space; a later attempt continues.
            ShuttingDownError: Another server may use the history now.
        """
        run_id = run.run_id
        try:
            if run_id not in self._packed:
                limits = (self._files_bytes, self._archive_bytes)
                self._packed[run_id] = await asyncio.to_thread(_pack, self.folder(run_id), run, *limits)
            packed = self._packed[run_id]
            if self._archives is not None and packed.stored is not None and not packed.is_written:
                await self._write_object(self._archives, run_id, packed.stored, stopped)
                self._packed[run_id] = dataclasses.replace(packed, is_written=True)
        except (StorageFullError, ShuttingDownError):
            raise
        except TransferError as error:
            stored = self._packed[run_id].stored
            _logger.warning(
                "run_files_not_stored",
                extra={"run_id": run_id, "object": stored.name if stored else "", "why": str(error)},
            )
            is_cut = isinstance(error, StoppedError)
            why = str(error) if is_cut else "--store-files-uri cannot be written; see the server log"
            self._give_up(run_id, f"Not stored: {why}.")
            return is_cut
        except Exception:
            # The run must end nevertheless.
            _logger.exception("run_files_not_stored", extra={"run_id": run_id})
            self._give_up(run_id, "Not stored: internal error; see the server log.")
        return False

    def _give_up(self, run_id: str, problem: str) -> None:
        packed = self._packed.get(run_id, _Archive())
        self._packed[run_id] = dataclasses.replace(packed, stored=None, problem=problem)

    async def _write_object(
        self, archives: Archives, run_id: str, stored: StoredObject, stopped: asyncio.Event
    ) -> None:
        """Write a packed zip to the object store.

        If this server stops responding meanwhile, the process that writes ends by itself, long before another
        server may remove the object as abandoned.

        Raises:
            StoppedError: The run was stopped, and then the store had no time left.
            TransferError: The store cannot be written.
        """
        announced = await self._db.write(_announce, stored.name, run_id, self._db.lease.holder.server_id)
        deadline = min(time.monotonic() + archives.timeout, announced + STRAY_SECONDS / 2)
        write = archives.write(stored.name, self.folder(run_id).archive, deadline)
        writing, stopping = asyncio.ensure_future(write), asyncio.ensure_future(stopped.wait())
        try:
            await asyncio.wait({writing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({writing}, timeout=STOPPED_SECONDS if stopped.is_set() else None)
            if not writing.done():
                raise StoppedError("the run was stopped while its files were written")
            await writing
        finally:
            stopping.cancel()
            writing.cancel()
            await asyncio.wait({writing})

    async def _sweep_repeatedly(self) -> NoReturn:
        while True:
            self._has_removed.clear()
            try:
                # Only the oldest server sweeps.
                if self._db.lease.is_first:
                    await self._sweep()
            except RunnerError:
                # The loss of the database is logged where it was noticed.
                pass
            except Exception:
                _logger.exception("files_sweep_failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._has_removed.wait()

    async def _sweep(self) -> None:
        """Remove objects that belong to no run."""
        # These are for folders.
        if deleted := await self._db.read(tables.deleted_run_ids):
            await self._db.write(tables.folders_removed, deleted)
        if self._archives is not None:
            while await self._sweep_some(self._archives):
                pass  # Each time, some objects are gone.

    async def _sweep_some(self, archives: Archives) -> bool:
        """Remove some objects that belong to no run; return whether there may be more that can be removed."""
        names = await self._db.read(_unused, self._swept)
        if not names:
            # An earlier search may have left some.
            is_first, self._swept = not self._swept, ""
            return not is_first
        try:
            removal = await archives.remove(names)
        except TransferError as error:
            removal = Removal((), str(error), len(names))
        # One that cannot be removed must not keep those after it.
        self._swept = names[removal.tried - 1]
        if removal.gone:
            await self._db.write(_forget_objects, removal.gone)
        if removal.problem:
            gone = set(removal.gone)
            left = [name for name in names if name not in gone]
            _logger.warning("run_files_not_removed", extra={"objects": left, "why": removal.problem})
        return not removal.problem

    async def mark_begun(self, _: str) -> None:
        """Leave it to the rows, which are never lost alone."""

    async def remove(self, run_id: str) -> None:
        """Remove the working folder of a run whose rows were deleted; its object is removed soon."""
        self._packed.pop(run_id, None)
        await asyncio.to_thread(self.folder(run_id).remove)
        self._has_removed.set()

    async def finish(self, folder: TableFolder) -> None:
        """Remove the working folder of a run whose end is durable."""
        self._packed.pop(folder.path.name, None)
        await asyncio.to_thread(folder.remove)

    def sizes(self) -> dict[str, int]:
        """Return the size of the contents of each run in bytes; blocks."""
        return self._db.read_now(_sizes)

    def size(self) -> int:
        """Return the size of the tables in bytes; blocks."""
        return self._db.read_now(_size)


class TableFolder(RunFolder):
    """A run's working folder on this machine, and its other contents in tables.

    Args:
        path: The folder.
        database: The database.
        archives: Where large files of ended runs are; None: nowhere.
    """

    def __init__(self, path: Path, database: PostgresDatabase, archives: Archives | None) -> None:
        super().__init__(path)
        self._db = database
        self._archives = archives
        self.archive = path / "files.zip"

    def _row(self, columns: str, table: str) -> tuple[Any, ...] | None:
        text = f"SELECT {columns} FROM {table} {_OF_RUN}"  # noqa: S608 - constants
        row: tuple[Any, ...] | None = self._db.read_now(
            lambda db: db.execute(text, (self.path.name,)).fetchone()
        )
        return row

    def secrets(self) -> tuple[dict[str, str], str]:
        """Return the variables for the kernel of a run that has not ended, and its output URI.

        Raises:
            DamagedRunError: They cannot be read.
        """
        row = self._row("environment, output_uri", "run_inputs")
        try:
            return ({}, "") if row is None else (json.loads(row[0]), row[1])
        except ValueError as error:
            raise damaged(self.path.name, "its environment is damaged") from error

    def input_files(self) -> tuple[InputFile, ...]:
        """Return the files that the request of a run that has not ended brought.

        Raises:
            DamagedRunError: They cannot be read.
        """
        row = self._row("files", "run_inputs")
        if row is None or row[0] is None:
            return ()
        try:
            return input_files.unpack(row[0])
        except (ValueError, zipfile.BadZipFile) as error:
            raise damaged(self.path.name, "its input files are damaged") from error

    @property
    def is_begun(self) -> bool:
        """Whether another mark than the run's rows says that it is not to be executed."""
        return False

    def segments_size(self) -> int:
        """Return the size of the file of segments in bytes."""
        row = self._row("COALESCE(MAX(start + length(data)), 0)", "segment_chunks")
        return 0 if row is None else int(row[0])

    def size(self) -> int:
        """Return the size of the run's contents in bytes."""
        size = self._db.read_now(lambda db: _sizes(db, self.path.name)).get(self.path.name, 0)
        return size + (folder_tree.size(self.path) if self.path.exists() else 0)

    async def pack_files(self, target: Path, max_bytes: int) -> None:
        """Write a zip of the notebook's own files, those of an ended run from where they were stored.

        Raises:
            UnpackableError: The files were not stored, are too large, or are where this server cannot get
                them.
            DamagedRunError: The object that has them is missing or damaged.
            NotReadyError: They cannot be read now.
            OSError: The zip cannot be written.
        """
        row = await self._stored_files()
        if row is None:
            is_elsewhere = await asyncio.to_thread(self._is_executed_elsewhere)
            if not is_elsewhere:
                with contextlib.suppress(FileNotFoundError):
                    await call_to_end(files.pack, self.work, target, max_bytes)
            # It may have ended meanwhile, and the folder is gone.
            row = await self._stored_files()
            if row is None and is_elsewhere:
                raise files.UnpackableError(
                    "The run is executed by another server, which has its files until the run has ended."
                )
        if row is None:
            # Unless the folder was there, the run has not begun, or was deleted meanwhile.
            await call_to_end(_complete, target)
            return
        size, problem, stored = row
        if problem:
            raise files.UnpackableError(problem)
        files.check_size(size, max_bytes)
        if stored is None:
            archive = await asyncio.to_thread(self._row, "archive", "run_files")
            # Without a row, it was deleted meanwhile.
            await call_to_end(target.write_bytes, archive[0] if archive else b"")
            await call_to_end(_complete, target)
        else:
            await self._fetch(stored, target)

    def _is_executed_elsewhere(self) -> bool:
        row = self._row("server_id", "claims")
        return row is not None and row[0] != self._db.lease.holder.server_id

    async def _stored_files(self) -> tuple[int, str, StoredObject | None] | None:
        """Return the size of the files of an ended run, why they were not stored, and the object of them."""
        columns = "size, problem, object, object_bytes, object_sha256"
        row = await asyncio.to_thread(self._row, columns, "run_files")
        if row is None:
            return None
        size, problem, *about = row
        return size, problem, None if about[0] is None else StoredObject(*about)

    async def _fetch(self, stored: StoredObject, target: Path) -> None:
        """Write an object to a file."""
        if self._archives is None:
            raise files.UnpackableError(
                "The run's files are in an object store that this server does not know. Start it with the "
                "--store-files-uri of the other servers."
            )
        run_id = self.path.name
        about = {"run_id": run_id, "object": stored.name}
        try:
            await self._archives.read(stored, target)
        except (MissingError, DamagedObjectError) as error:
            kind = "missing" if isinstance(error, MissingError) else "damaged"
            if await self._stored_files() is None:
                # The run was deleted meanwhile.
                await call_to_end(_complete, target)
                return
            _logger.warning("run_files_damaged", extra={**about, "why": str(error)})
            message = f"The files of run {run_id} are lost: the object {stored.name} is {kind}."
            raise DamagedRunError(message, run_id=run_id) from error
        except TransferError as error:
            _logger.warning("run_files_unreachable", extra={**about, "why": str(error)})
            raise NotReadyError(
                f"The files of run {run_id} (the object {stored.name}) cannot be read now: --store-files-uri "
                "does not answer, or is not available. Try again later."
            ) from error

    @contextlib.contextmanager
    def _opened_segments(self) -> Iterator[Callable[[int, int], bytes]]:
        first, known = 0, b""

        def pread(size: int, offset: int) -> bytes:
            nonlocal first, known
            # Segments that follow each other are read together.
            if offset < first or offset + size > first + len(known):
                wanted = max(size, _READ_AHEAD)
                first, known = offset, self._db.read_now(lambda db: self._pread(db, wanted, offset))
            return known[offset - first : offset - first + size]

        yield pread

    def _pread(self, db: PostgresConnection, size: int, offset: int) -> bytes:
        rows = db.execute(
            f"SELECT start, data FROM segment_chunks {_OF_RUN} AND start > ? AND start < ? ORDER BY number",  # noqa: S608 - a constant
            (self.path.name, offset - CHUNK_BYTES, offset + size),
        )
        found = bytearray(size)
        end = 0
        for start, data in rows:
            before = max(offset - start, 0)
            piece = data[before : offset + size - start]
            if piece:
                begin = start + before - offset
                found[begin : begin + len(piece)] = piece
                end = max(end, begin + len(piece))
        return bytes(found[:end])


@dataclass(frozen=True, slots=True)
class _Archive:
    """The files that the notebook of an ended run has left, as the database will have them.

    Attributes:
        size: Their size in bytes.
        content: The zip; None: it is not in the database.
        stored: The zip in the object store; None: it is not there.
        is_written: Whether it was written there; until then, it is beside the files.
        problem: Why they are not stored; empty: they are.
    """

    size: int = 0
    content: bytes | None = None
    stored: StoredObject | None = None
    is_written: bool = False
    problem: str = ""


def _pack(folder: TableFolder, run: Run, max_bytes: int, archive_bytes: int) -> _Archive:
    """Pack the files of a run; blocks.

    A zip that is too large for the database stays beside them.

    Args:
        folder: The run's folder.
        run: The run.
        max_bytes: Maximum size of files whose zip is in the database.
        archive_bytes: Maximum size of files whose zip is in the object store; zero: there is none.
    """
    if not folder.work.is_dir():
        return _Archive(problem="The run's files were on a machine that was lost." if run.start_time else "")
    size, target = folder_tree.content_size(folder.work), folder.archive
    try:
        try:
            files.pack(folder.work, target, max_bytes, "--store-files-bytes")
        except files.UnpackableError:
            if archive_bytes <= max_bytes:
                raise
            files.pack(folder.work, target, archive_bytes)
            with target.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            name = f"{run.run_id}.{secrets.token_hex(8)}.zip"
            return _Archive(size, stored=StoredObject(name, target.stat().st_size, digest))
        return _Archive(size, target.read_bytes())
    except files.UnpackableError as error:
        return _Archive(size, problem=f"Not stored: {error}")
    except OSError as error:
        # The run must end nevertheless.
        return _Archive(size, problem=f"Not stored: the files could not be packed: {error.strerror}.")


class _TableStep:
    def __init__(
        self, contents: TableContents, folder: TableFolder, written: WriteBatch, archive: _Archive | None
    ) -> None:
        self._contents = contents
        self._folder = folder
        self._written = written
        self._archive = archive

    def apply(self, db: Connection, position: int) -> None:
        _write(db, position, self._written.start, self._written.chunks)
        if (archive := self._archive) is not None:
            db.execute("DELETE FROM run_inputs WHERE position = ?", (position,))
            stored = archive.stored
            about = (None, 0, None) if stored is None else (stored.name, stored.size, stored.sha256)
            db.execute(
                "INSERT INTO run_files"
                " (position, archive, size, problem, object, object_bytes, object_sha256)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (position, archive.content, archive.size, archive.problem, *about),
            )
            if stored is not None:
                # It is complete, and can be removed as soon as the run is.
                db.execute("UPDATE file_objects SET written_until = now() WHERE name = ?", (stored.name,))

    async def finish(self) -> None:
        if self._archive is not None:
            await self._contents.finish(self._folder)


def _complete(target: Path) -> None:
    """Write an empty zip if the file is not a zip yet."""
    if not zipfile.is_zipfile(target):
        zipfile.ZipFile(target, "w").close()


def _announce(db: Connection, name: str, run_id: str, server_id: str) -> float:
    """Insert the row of an object before its write; return the time before that, by the monotonic clock."""
    before = time.monotonic()
    db.execute(
        "INSERT INTO file_objects (name, run_id, server_id, written_until)"
        " VALUES (?, ?, ?, clock_timestamp() + make_interval(secs => ?))",
        (name, run_id, server_id, STRAY_SECONDS),
    )
    return before


def _unused(db: Connection, after: str) -> list[str]:
    return [name for (name,) in db.execute(_UNUSED, (after, _SWEEP_OBJECTS)).fetchall()]


def _forget_objects(db: Connection, names: Sequence[str]) -> None:
    db.executemany("DELETE FROM file_objects WHERE name = ?", ((name,) for name in names))


def _write(db: Connection, position: int, start: int, chunks: Iterable[bytes]) -> None:
    data = memoryview(b"".join(chunks))
    pieces = (data[offset : offset + CHUNK_BYTES] for offset in range(0, len(data), CHUNK_BYTES))
    db.executemany(
        "INSERT INTO segment_chunks (position, start, data) VALUES (?, ?, ?)",
        [(position, start + index * CHUNK_BYTES, bytes(piece)) for index, piece in enumerate(pieces)],
    )


def _sizes(db: Connection, run_id: str = "") -> dict[str, int]:
    """Return the size of the contents of each run, or of one."""
    where = "WHERE run_id = ?" if run_id else ""
    rows = db.execute(
        "SELECT run_id,"  # noqa: S608 - a constant
        " (SELECT COALESCE(SUM(length(data)), 0) FROM segment_chunks WHERE position = runs.position)"
        " + (SELECT COALESCE(SUM(COALESCE(length(archive), 0) + object_bytes), 0) FROM run_files"
        " WHERE position = runs.position)"
        f" FROM runs {where}",
        (run_id,) if run_id else (),
    )
    return {name: int(size) for name, size in rows}


def _size(db: Connection) -> int:
    names = ", ".join(f"('{table}')" for table in _TABLES)
    text = f"SELECT SUM(pg_total_relation_size(to_regclass(name))) FROM (VALUES {names}) AS tables (name)"  # noqa: S608 - constants
    objects = "SELECT COALESCE(SUM(object_bytes), 0) FROM run_files"
    return sum(int(db.execute(query).fetchone()[0]) for query in (text, objects))
