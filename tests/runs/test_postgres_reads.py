"""Reads of a history in PostgreSQL whose callers leave before the answer."""

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from notebook_runner_server.errors import NotReadyError
from notebook_runner_server.runs.postgres.database import PostgresDatabase, PostgresOptions


class SlowDatabase(PostgresDatabase):
    """A database that cannot be reached, which it says only when the test lets it."""

    def __init__(self, options: PostgresOptions) -> None:
        super().__init__(options)
        self.is_reached, self.may_answer = threading.Event(), threading.Event()

    @override
    def read_now(self, function: Any, seconds: float | None = None) -> Any:
        """Waits for the test, and fails."""
        self.is_reached.set()
        self.may_answer.wait()
        raise NotReadyError("later")


async def test_a_caller_that_left_leaves_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A read that fails when nobody waits for it any more is no error of the server."""
    database = SlowDatabase(PostgresOptions("postgresql://nowhere", tmp_path, 15.0, 1, 0, print))
    call = asyncio.create_task(database.read(lambda _: None))
    await asyncio.to_thread(database.is_reached.wait)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    database.may_answer.set()
    await asyncio.to_thread(database._reader.shutdown)
    # The event loop gets the answer of the thread.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del call
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
