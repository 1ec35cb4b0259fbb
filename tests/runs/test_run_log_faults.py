"""The log of one run when things go wrong around it: shutdown, a full disk, retention."""

import asyncio
from pathlib import Path

import pytest

from notebook_runner_server.errors import RunNotFoundError, ShuttingDownError, StorageFullError
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.store import Store
from tests.runs.reading import FullStore, a_log, end, everything, first, following, say, sequences
from tests.runs.samples import printed
from tests.runs.stores import a_store


async def test_closing_sends_readers_away_when_they_have_all_there_is(tmp_path: Path) -> None:
    """On close a reader still gets what it lacks, and then that the server is shutting down."""
    async with a_log(a_store(Store, tmp_path)) as log:
        waits = asyncio.ensure_future(everything(log, 1))
        await asyncio.sleep(0)
        log.close()
        with pytest.raises(ShuttingDownError):
            await waits
        async with following(log, 0) as reader:
            assert await first(reader) == [1]
            with pytest.raises(ShuttingDownError):
                await anext(reader)


async def test_closing_does_not_take_the_end_from_a_run_that_ended(tmp_path: Path) -> None:
    """Whoever reads the terminal event has a whole stream, also when the server is on its way out."""
    async with a_log(a_store(Store, tmp_path)) as log:
        await end(log)
        log.close()
        assert await everything(log) == [1, 2]


async def test_what_could_not_be_written_is_shown_to_nobody(tmp_path: Path) -> None:
    """A full disk leaves the log where it was, and the next event takes the number that is free."""
    store = a_store(FullStore, tmp_path)
    async with a_log(store) as log:
        store.full = True
        with pytest.raises(StorageFullError):
            await say(log, "lost")
        assert log.last_sequence == 1
        store.full = False
        await say(log, "kept")
        events = await log.read(0)
        assert events[1].body == printed(2, "kept").body
        assert sequences(events) == [1, 2]


async def test_a_run_that_is_forgotten_under_a_reader_ends_its_stream_with_an_error(tmp_path: Path) -> None:
    """Retention may take a run that somebody reads: the reader is told so, in the contract's words."""
    async with a_log(a_store(Store, tmp_path)) as log:
        await say(log, *("x" for _ in range(600)))
        await end(log)
        row = await log._store.find("one")
        assert row is not None
        stored = RunLog(log._store, log.position, log.last_sequence, ended=True)
        async with following(stored, 0) as reader:
            await anext(reader)
            await log._store.delete(row)
            with pytest.raises(RunNotFoundError):
                await anext(reader)
