"""The history on a PostgreSQL server, as the store takes it."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.postgres.contents import TableContents
from notebook_runner_server.runs.postgres.database import PostgresDatabase, PostgresOptions
from notebook_runner_server.runs.postgres.hints import Hints
from notebook_runner_server.runs.postgres.replicas import PostgresReplicas
from notebook_runner_server.runs.request_digest import KEY_BYTES
from notebook_runner_server.transfer.interface import TransferError


class PostgresHistory:
    """A history on a PostgreSQL server.

    Args:
        folder: The state folder, for the working folders of runs.
        options: How to use the database.

    Attributes:
        database: Its rows.
        contents: The contents of its runs.
        replicas: The servers that share it.
    """

    def __init__(self, folder: Path, options: PostgresOptions) -> None:
        self.database = PostgresDatabase(options)
        self._archives = options.archives
        self.contents = TableContents(
            *(folder, self.database, options.files_bytes, options.archives, options.archive_bytes)
        )
        self._hints = Hints(options.store, self.database.server_id, options.listen)
        self.replicas = PostgresReplicas(self.database, self._hints)

    async def open(self) -> bytes:
        """Open the database, and return the key of the digests of requests.

        Raises:
            NewerHistoryError: A newer server has written the history; nothing was changed.
            RuntimeError: The database, or the place of large files, cannot be used.
        """
        if self._archives is not None:
            try:
                await self._archives.check()
            except TransferError as error:
                raise RuntimeError(
                    f"--store-files-uri {self._archives.uri} cannot be used: {error}. The server must be "
                    "able to write, read and remove objects there."
                ) from error
        await self.database.open(is_first=True)
        self.contents.open()
        return await self.database.write(_request_key, secrets.token_bytes(KEY_BYTES))

    async def close(self) -> None:
        """Close the database."""
        await self.contents.close()
        await asyncio.to_thread(self._hints.close)
        await self.database.close()


def _request_key(db: Connection, new: bytes) -> bytes:
    text = "UPDATE history SET request_key = COALESCE(request_key, ?) RETURNING request_key"
    key: bytes = db.execute(text, (new,)).fetchall()[0][0]
    return key
