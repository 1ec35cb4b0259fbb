"""The size of each owner's history: measured once, and then exact after each end and each deletion."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from typing_extensions import override

from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.history_sizes import HistorySizes
from notebook_runner_server.runs.model import RunState, TraceContext
from notebook_runner_server.runs.observer import RunContext
from notebook_runner_server.runs.retention import HistoryLimits, Retention
from notebook_runner_server.runs.store import Store
from tests.runs.samples import a_run, changed
from tests.runs.stores import a_store, append, insert, leave_file

pytestmark = pytest.mark.anyio


async def ended_run(store: Store, run_id: str, owner: str, size: int, expire_time: int = 2**62) -> None:
    """A run that has ended, with a file of a size in its folder."""
    position = await insert(store, run_id, owner=owner)
    leave_file(store, run_id, size)
    run = replace(a_run(RunState.SUCCEEDED, run_id=run_id, owner=owner), end_time=5)
    await append(store, position, run, changed(2, run), expire_time=expire_time)


def tell_end(sizes: HistorySizes, run_id: str, owner: str) -> None:
    """What an active run tells its observers at its end."""
    event = changed(2, a_run(RunState.SUCCEEDED, run_id=run_id, owner=owner))
    sizes.on_event(RunContext(run_id, TraceContext(), [], owner), event)


def actual(store: Store, *run_ids: str) -> int:
    """The size of folders, as they are."""
    return sum(store.folder(run_id).size() for run_id in run_ids)


async def measured(sizes: HistorySizes) -> None:
    """Waits until the history is measured."""
    assert sizes._task is not None
    await sizes._task


@asynccontextmanager
async def measuring(store: Store) -> AsyncIterator[HistorySizes]:
    """Sizes on an open store, which are being measured."""
    sizes = HistorySizes(store)
    sizes.start()
    try:
        yield sizes
    finally:
        await sizes.close()


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[None]:
    """Opens a store until the block is left."""
    await store.open()
    try:
        yield
    finally:
        await store.close()


async def test_what_was_there_before(tmp_path: Path) -> None:
    """More runs than one read takes, of several owners; runs that have not ended do not count."""
    store = a_store(Store, tmp_path)
    async with opened(store):
        for number in range(205):
            await ended_run(store, f"a{number}", "ada", number)
        await ended_run(store, "b", "bob", 7)
        await insert(store, "queued", owner="bob")
        async with measuring(store) as sizes:
            await measured(sizes)
            assert await sizes.size("ada") == actual(store, *(f"a{number}" for number in range(205)))
            assert await sizes.size("bob") == actual(store, "b")
            assert await sizes.size("nobody") == 0


async def test_it_is_unknown_until_it_is_measured(tmp_path: Path) -> None:
    """Neither a run that ends meanwhile nor one that is deleted is counted twice, or stays."""
    gate, arrived = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class SlowFolder(RunFolder):
        @override
        def size(self) -> int:
            loop.call_soon_threadsafe(arrived.set)
            gate.wait(60)
            return super().size()

    class SlowStore(Store):
        @override
        def folder(self, run_id: str) -> RunFolder:
            return SlowFolder(super().folder(run_id).path)

    store = a_store(SlowStore, tmp_path)
    async with opened(store):
        for run_id in ("old", "goes"):
            await ended_run(store, run_id, "ada", 10)
        async with measuring(store) as sizes:
            await arrived.wait()
            assert sizes.latest("ada") is None
            record = await store.find("goes")
            assert record is not None
            await store.delete(record)
            await ended_run(store, "new", "ada", 20)
            tell_end(sizes, "new", "ada")
            gate.set()
            await measured(sizes)
            assert await sizes.size("ada") == actual(store, "old", "new")


async def test_an_end_adds_and_a_deletion_subtracts(tmp_path: Path) -> None:
    """As well if retention deletes, and if files change after the end."""
    store = a_store(Store, tmp_path)
    async with opened(store), measuring(store) as sizes:
        await measured(sizes)
        for run_id, owner, size in (("a1", "ada", 10), ("a2", "ada", 20), ("b", "bob", 5)):
            await ended_run(store, run_id, owner, size, 1 if run_id == "a2" else 2**62)
            tell_end(sizes, run_id, owner)
        assert await sizes.size("ada") == actual(store, "a1", "a2")
        leave_file(store, "a2", 1000, "late")
        await Retention(store, HistoryLimits(), lambda _: False).sweep()
        assert await sizes.size("ada") == actual(store, "a1")
        assert await sizes.size("bob") == actual(store, "b")
        record = await store.find("a1")
        assert record is not None
        await store.delete(record)
        assert await sizes.size("ada") == 0
        assert not await store.delete(record)
        assert await sizes.size("ada") == 0
        assert "ada" not in sizes._totals


async def test_a_run_that_is_deleted_while_it_is_measured(tmp_path: Path) -> None:
    """It leaves nothing behind."""
    store = a_store(Store, tmp_path)
    async with opened(store), measuring(store) as sizes:
        await measured(sizes)
        await ended_run(store, "a", "ada", 10)
        record = await store.find("a")
        assert record is not None
        tell_end(sizes, "a", "ada")
        sizes._on_delete("a")
        assert await sizes.size("ada") == 0
        await asyncio.gather(*sizes._pending)
        assert sizes._known == {}
        assert sizes._totals == {}


async def test_without_a_limit_nothing_is_measured(tmp_path: Path) -> None:
    """A server without a limit of a history visits no folder."""
    sizes = HistorySizes(a_store(Store, tmp_path))
    tell_end(sizes, "a", "ada")
    assert not sizes._pending
    assert sizes.latest("ada") is None
    await sizes.close()
