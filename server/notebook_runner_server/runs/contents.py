"""Where the contents of runs are stored: their notebooks, inputs and files, apart from their rows.

With SQLite they are in a folder of the run (`FolderContents`), with PostgreSQL in tables
(`postgres.contents`). Either way they are durable before the events that announce them are visible.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from notebook_runner_server import folder_tree
from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.runs import state_folder, tables
from notebook_runner_server.runs.database import Connection, Database
from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.model import Admitted, Run, WriteBatch

_logger = logging.getLogger(__name__)


class ContentsStep(Protocol):
    """Contents that are stored together with events of a run."""

    def apply(self, db: Connection, position: int) -> None:
        """Store them in the transaction of the events; may be called again after a rollback; blocks."""

    async def finish(self) -> None:
        """Do what may only be done once the transaction is durable."""


class Contents(Protocol):
    """Stores the contents of all runs."""

    def folder(self, run_id: str) -> RunFolder:
        """Return the contents of a run, for reading."""

    def insert(self, db: Connection, position: int, admitted: Admitted) -> None:
        """Store the contents of a new run in the transaction that inserts it; blocks."""

    async def stage(self, run_id: str, copy: Callable[[], Admitted]) -> Admitted:
        """Prepare the contents of a run that repeats another, for `insert_staged`; return the run.

        Args:
            run_id: The new run.
            copy: Returns it with the contents of the other one; blocks.

        Raises:
            OSError: They cannot be written; nothing of them is left.
        """

    def insert_staged(self, db: Connection, position: int, admitted: Admitted) -> None:
        """Store staged contents in the transaction that inserts the run; blocks."""

    async def discard(self, run_id: str) -> None:
        """Remove the contents of a run that was not inserted."""

    async def step(self, run: Run, written: WriteBatch) -> ContentsStep:
        """Return what stores contents together with events of a run.

        Args:
            run: The run after the events.
            written: The contents.
        """

    async def prepare_end(self, run: Run, stopped: asyncio.Event) -> bool:
        """Store the run's files before its end is recorded; the `step` with the end needs this.

        Args:
            run: The run before its end, which has no processes.
            stopped: Set when the run must end soon, with or without its files.

        Returns:
            Whether the run would have had its files if it had not been stopped.

        Raises:
            StorageFullError: The history has no space; a later attempt continues.
            ShuttingDownError: Another server may use the history now.
        """

    async def mark_begun(self, run_id: str) -> None:
        """Mark a run so that no later server executes it, whatever its rows say."""

    async def remove(self, run_id: str) -> None:
        """Remove the contents of a run whose rows were deleted."""

    def sizes(self) -> dict[str, int]:
        """Return the size of the contents of each run in bytes; blocks."""

    def size(self) -> int:
        """Return the size of the history with all contents in bytes; blocks."""


class FolderContents:
    """Stores the contents of runs in their folders.

    Args:
        folder: The state folder.
        database: The database of the runs.
    """

    def __init__(self, folder: Path, database: Database) -> None:
        self._state_folder = folder
        self._runs = folder / state_folder.RUNS
        self._db = database

    def folder(self, run_id: str) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(self._runs / run_id)

    def insert(self, _: Connection, __: int, admitted: Admitted) -> None:
        """Write the folder of a new run, and make it durable; blocks."""
        self._write(admitted)

    async def stage(self, run_id: str, copy: Callable[[], Admitted]) -> Admitted:
        """Write the folder of a run that repeats another.

        If the server dies before the run is inserted, the next start removes the folder.
        """

        def write() -> Admitted:
            admitted = copy()
            self._write(admitted)
            return admitted

        await self._db.write(tables.mark_folders, [run_id])
        try:
            return await self._db.run_in_order(write)
        except Exception:
            await self.discard(run_id)
            raise

    def _write(self, admitted: Admitted) -> None:
        folder, options = self.folder(admitted.run.run_id), admitted.options
        folder.create()
        folder.write(0, admitted.segments.values())
        # Values may be secrets, so they are only in a file that is removed at the run's end.
        folder.write_secrets(options.environment, options.output_uri)
        folder.write_input_files(admitted.files)
        folder.sync()

    def insert_staged(self, db: Connection, _: int, admitted: Admitted) -> None:
        """Keep the folder of a staged run."""
        tables.folders_removed(db, [admitted.run.run_id])

    async def discard(self, run_id: str) -> None:
        """Remove the folder of a run that was not inserted."""
        await self._db.run_in_order(self.folder(run_id).remove)

    async def step(self, run: Run, written: WriteBatch) -> ContentsStep:
        """Return what writes to a run's folder."""
        return _FolderStep(self, self.folder(run.run_id), run, written)

    async def prepare_end(self, _: Run, __: asyncio.Event) -> bool:
        """Leave the files where they are."""
        return False

    async def mark_begun(self, run_id: str) -> None:
        """Mark a run in its folder."""
        await self._db.run_in_order(self.folder(run_id).mark_begun)

    async def remove(self, run_id: str) -> None:
        """Remove the folder of a run whose rows were deleted."""
        if await asyncio.to_thread(self.folder(run_id).remove):
            await self.record_removal(run_id)
        await self._db.truncate_log()

    async def remove_inputs(self, run_id: str) -> bool:
        """Remove the inputs of a run that has ended; return whether they are gone."""
        folder = self.folder(run_id)
        try:
            await asyncio.to_thread(folder.delete_inputs)
        except OSError as error:
            _logger.warning("run_inputs_not_removed", extra={"folder": str(folder.path), "why": str(error)})
            return False
        return True

    async def record_removal(self, *run_ids: str) -> None:
        """Record that what was to go is gone from the folders of runs, if the disk has space for that."""
        # The next start does it otherwise.
        with contextlib.suppress(StorageFullError):
            await self._db.write(tables.folders_removed, run_ids)

    def sizes(self) -> dict[str, int]:
        """Return the size of each run's folder in bytes; blocks."""
        return {path.name: folder_tree.size(path) for path in self._runs.iterdir()}

    def size(self) -> int:
        """Return the size of the state folder in bytes; blocks."""
        files = [path for path in self._state_folder.iterdir() if path.is_file()]
        folders = [self._state_folder / state_folder.ARTEFACTS, *state_folder.quarantines(self._state_folder)]
        others = sum(map(folder_tree.size, folders))
        return sum(path.stat().st_size for path in files) + sum(self.sizes().values()) + others


class _FolderStep:
    def __init__(self, contents: FolderContents, folder: RunFolder, run: Run, written: WriteBatch) -> None:
        self._contents = contents
        self._folder = folder
        self._run = run
        self._written = written
        # Until its end is durable, a run needs its inputs: a later server may copy them for its successor.
        self._keeps_inputs = run.state.is_terminal and run.retry is not None and folder.has_inputs

    def apply(self, db: Connection, _: int) -> None:
        written = self._written
        if written.chunks:
            self._folder.write(written.start, written.chunks)
        for file in written.files:
            self._folder.write_file(file)
        if self._keeps_inputs:
            tables.mark_folders(db, [self._run.run_id])
        elif self._run.state.is_terminal:
            self._folder.delete_inputs()

    async def finish(self) -> None:
        run_id = self._run.run_id
        if self._keeps_inputs and await self._contents.remove_inputs(run_id):
            await self._contents.record_removal(run_id)
