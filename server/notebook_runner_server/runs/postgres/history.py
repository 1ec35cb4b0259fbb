"""The history on a PostgreSQL server, as the store takes it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path

from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.postgres.contents import TableContents
from notebook_runner_server.runs.postgres.database import PostgresDatabase, PostgresOptions
from notebook_runner_server.runs.postgres.hints import Hints
from notebook_runner_server.runs.postgres.replicas import PostgresReplicas
from notebook_runner_server.runs.request_digest import KEY_BYTES
from notebook_runner_server.transfer.interface import Archives, TransferError

_logger = logging.getLogger(__name__)


class PostgresHistory:
    """A history on a PostgreSQL server.

    Args:
        folder: The state folder, for the working folders of runs.
        options: How to use the database.
        archives: Where files are stored that are too large for the database; None: nowhere.
        archive_bytes: Maximum size of the files of an ended run that are stored there.

    Attributes:
        database: Its rows.
        contents: The contents of its runs.
        replicas: The servers that share it.
    """

    def __init__(
        self,
        folder: Path,
        options: PostgresOptions,
        archives: Archives | None = None,
        archive_bytes: int = 0,
    ) -> None:
        self.database = PostgresDatabase(options)
        self._archives = archives
        self.contents = TableContents(folder, self.database, options.files_bytes, archives, archive_bytes)
        self._hints = Hints(options.store, self.database.server_id, options.listen)
        self.replicas = PostgresReplicas(self.database, self._hints)

    async def open(self) -> bytes:
        """Open the database, and return the key of the digests of requests.

        Raises:
            NewerHistoryError: A newer server has written the history; nothing was changed.
            RuntimeError: The database, or the place of large files, cannot be used.
        """
        await self.database.open(is_first=True)
        await self._open_archives()
        self.contents.open()
        return await self.database.write(_request_key, secrets.token_bytes(KEY_BYTES))

    async def _open_archives(self) -> None:
        history_id, has_objects = await self.database.read(_objects_of)
        if self._archives is None:
            if has_objects:
                _logger.warning("store_files_uri_missing")
            return
        try:
            await self._archives.open(history_id, is_new=not has_objects)
        except TransferError as error:
            raise RuntimeError(
                f"--store-files-uri {self._archives.uri} cannot be used: {error}. The server must be "
                "able to write, read and remove objects there."
            ) from error

    async def close(self) -> None:
        """Close the database."""
        await self.contents.close()
        await asyncio.to_thread(self._hints.close)
        await self.database.close()


def _objects_of(db: Connection) -> tuple[str, bool]:
    """Return the id of the history, and whether it has objects in `--store-files-uri`."""
    text = "SELECT history_id, EXISTS (SELECT 1 FROM file_objects) FROM history"
    history_id, has_objects = db.execute(text).fetchone()
    return history_id, has_objects


def _request_key(db: Connection, new: bytes) -> bytes:
    text = "UPDATE history SET request_key = COALESCE(request_key, ?) RETURNING request_key"
    key: bytes = db.execute(text, (new,)).fetchall()[0][0]
    return key
