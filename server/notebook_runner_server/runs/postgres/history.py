"""The history on a PostgreSQL server, as the store takes it."""

from __future__ import annotations

import secrets
from pathlib import Path

from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.postgres.contents import TableContents
from notebook_runner_server.runs.postgres.database import PostgresDatabase, PostgresOptions
from notebook_runner_server.runs.request_digest import KEY_BYTES


class PostgresHistory:
    """A history on a PostgreSQL server.

    Args:
        folder: The state folder, for the working folders of runs.
        options: How to use the database.

    Attributes:
        database: Its rows.
        contents: The contents of its runs.
    """

    def __init__(self, folder: Path, options: PostgresOptions) -> None:
        self.database = PostgresDatabase(options)
        self.contents = TableContents(folder, self.database, options.files_bytes)

    async def request_key(self) -> bytes:
        """Return the key of the digests of requests, which the first server has created."""
        return await self.database.write(_request_key, secrets.token_bytes(KEY_BYTES))


def _request_key(db: Connection, new: bytes) -> bytes:
    text = "UPDATE history SET request_key = COALESCE(request_key, ?) RETURNING request_key"
    key: bytes = db.execute(text, (new,)).fetchall()[0][0]
    return key
