"""Who reads which run, so that retention waits for them."""

import asyncio
import time
from pathlib import Path

import pytest

from notebook_runner_server.errors import RunNotFoundError
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.retention import PAGE_SECONDS, Readers
from notebook_runner_server.runs.store import Store
from tests.runs.stores import a_store

# Nothing is read from it.
LOG = RunLog(a_store(Store, Path("nowhere")), 1, 1, ended=False)


def test_readers_are_counted() -> None:
    """Two streams of one run are two; a page counts for a while; nobody else is meant."""
    readers = Readers()
    assert not readers.is_read("one")
    with readers.stream("one", LOG):
        with readers.stream("one", LOG):
            assert readers.is_read("one")
        assert readers.is_read("one")
        assert not readers.is_read("two")
    assert not readers.is_read("one")
    readers.page("two")
    assert readers.is_read("two")
    assert not readers.is_read("one")


def test_a_page_is_followed_by_the_next_one_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has read a page of a run reads the run for a minute more, from the newest page on."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    readers = Readers()
    readers.page("one")
    now = PAGE_SECONDS - 1
    assert readers.is_read("one")
    readers.page("two")
    now = PAGE_SECONDS
    assert not readers.is_read("one")
    assert readers.is_read("two")
    readers.page("two")
    now = 2 * PAGE_SECONDS - 1
    assert readers.is_read("two")


def test_a_stream_that_fails_is_closed() -> None:
    """A run whose reader went away by an error is not read for ever."""
    readers = Readers()
    with pytest.raises(ZeroDivisionError), readers.stream("one", LOG):
        raise ZeroDivisionError
    assert not readers.is_read("one")


async def test_a_deleted_run_ends_its_streams() -> None:
    """A reader that waits for the next event gets an error; those of other runs go on waiting."""
    readers = Readers()
    logs = [RunLog(a_store(Store, Path("nowhere")), position, 1, ended=False) for position in (1, 2)]

    async def follow(run_id: str, log: RunLog) -> None:
        with readers.stream(run_id, log):
            async for _ in log.follow(1, idle=60):
                raise AssertionError("an event")

    tasks = [asyncio.create_task(follow(name, log)) for name, log in zip("ab", logs, strict=True)]
    await asyncio.sleep(0)
    readers.page("a")
    readers.end("a")
    with pytest.raises(RunNotFoundError, match="deleted during this call"):
        await tasks[0]
    assert not readers.is_read("a")
    assert not tasks[1].done()
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not readers.is_read("b")
