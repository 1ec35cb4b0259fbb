"""The contents of runs in tables: the file of segments in chunks, the inputs, and the files of ended runs.

The kernel's working folder is on this machine. When a run ends, its files are stored as a zip in the
transaction of its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from notebook_runner_server import folder_tree
from notebook_runner_server.errors import damaged
from notebook_runner_server.execution.interface import InputFile
from notebook_runner_server.runs import files, input_files
from notebook_runner_server.runs.contents import ContentsStep
from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.model import Admitted, Run, RunState, WriteBatch
from notebook_runner_server.runs.postgres.connection import PostgresConnection
from notebook_runner_server.runs.postgres.database import PostgresDatabase
from notebook_runner_server.runs.state_folder import RUNS

CHUNK_BYTES = 1024 * 1024
"""Maximum size of a row."""

_READ_AHEAD = 1024 * 1024
_OF_RUN = "WHERE position = (SELECT position FROM runs WHERE run_id = ?)"
_TABLES = (
    *("runs", "labels", "events", "segments", "checkpoints", "changes", "deletions"),
    *("segment_chunks", "run_inputs", "run_files"),
)


class TableContents:
    """Stores the contents of runs in tables.

    Args:
        folder: The state folder, for the working folders.
        database: The database.
        files_bytes: Maximum size of the files of an ended run that are stored.
    """

    def __init__(self, folder: Path, database: PostgresDatabase, files_bytes: int) -> None:
        self._runs = folder / RUNS
        self._db = database
        self._files_bytes = files_bytes

    def folder(self, run_id: str) -> TableFolder:
        """Return the contents of a run, for reading, with its working folder."""
        return TableFolder(self._runs / run_id, self._db)

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
            archive = await asyncio.to_thread(_Archive, folder, run, self._files_bytes)
        return _TableStep(folder, written, archive)

    async def mark_begun(self, _: str) -> None:
        """Leave it to the rows, which are never lost alone."""

    async def remove(self, run_id: str) -> None:
        """Remove the working folder of a run whose rows were deleted."""
        await asyncio.to_thread(self.folder(run_id).remove)

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
    """

    def __init__(self, path: Path, database: PostgresDatabase) -> None:
        super().__init__(path)
        self._db = database

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

    def pack_files(self, target: Path, max_bytes: int) -> None:
        """Write a zip of the notebook's own files, those of an ended run from the database.

        Raises:
            UnpackableError: The files were not stored, or are too large.
        """
        row = self._stored_files()
        if row is None:
            is_elsewhere = self._is_executed_elsewhere()
            if not is_elsewhere:
                with contextlib.suppress(FileNotFoundError):
                    files.pack(self.work, target, max_bytes)
            # It may have ended meanwhile, and the folder is gone.
            row = self._stored_files()
            if row is None and is_elsewhere:
                raise files.UnpackableError(
                    "The run is executed by another server, which has its files until the run has ended."
                )
        if row is None:
            if not target.exists():
                zipfile.ZipFile(target, "w").close()
            return
        archive, size, problem = row
        if problem:
            raise files.UnpackableError(problem)
        files.check_size(size, max_bytes)
        target.write_bytes(archive)

    def _is_executed_elsewhere(self) -> bool:
        row = self._row("server_id", "claims")
        return row is not None and row[0] != self._db.lease.holder.server_id

    def _stored_files(self) -> tuple[Any, ...] | None:
        return self._row("archive, size, problem", "run_files")

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


class _Archive:
    """The files that the notebook of an ended run has left, packed; blocks."""

    def __init__(self, folder: TableFolder, run: Run, max_bytes: int) -> None:
        self.content: bytes | None = None
        self.size = 0
        self.problem = ""
        if not folder.work.is_dir():
            if run.start_time:
                self.problem = "The run's files were on a machine that was lost."
            return
        self.size = folder_tree.size(folder.work)
        with tempfile.NamedTemporaryFile(dir=folder.path) as target:
            try:
                files.pack(folder.work, Path(target.name), max_bytes, "--store-files-bytes")
                self.content = Path(target.name).read_bytes()
            except files.UnpackableError as error:
                self.problem = f"Not stored: {error}"


class _TableStep:
    def __init__(self, folder: TableFolder, written: WriteBatch, archive: _Archive | None) -> None:
        self._folder = folder
        self._written = written
        self._archive = archive

    def apply(self, db: Connection, position: int) -> None:
        _write(db, position, self._written.start, self._written.chunks)
        if (archive := self._archive) is not None:
            db.execute("DELETE FROM run_inputs WHERE position = ?", (position,))
            db.execute(
                "INSERT INTO run_files (position, archive, size, problem) VALUES (?, ?, ?, ?)",
                (position, archive.content, archive.size, archive.problem),
            )

    async def finish(self) -> None:
        if self._archive is not None:
            await asyncio.to_thread(self._folder.remove)


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
        " + (SELECT COALESCE(SUM(length(archive)), 0) FROM run_files WHERE position = runs.position)"
        f" FROM runs {where}",
        (run_id,) if run_id else (),
    )
    return {name: int(size) for name, size in rows}


def _size(db: Connection) -> int:
    names = ", ".join(f"('{table}')" for table in _TABLES)
    text = f"SELECT SUM(pg_total_relation_size(to_regclass(name))) FROM (VALUES {names}) AS tables (name)"  # noqa: S608 - constants
    return int(db.execute(text).fetchone()[0])
