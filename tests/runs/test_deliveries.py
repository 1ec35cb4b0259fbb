"""What receivers of webhooks still have to get, over deletions, restarts and many changes."""

import shutil
from contextlib import aclosing
from pathlib import Path

import pytest

from notebook_runner_server.runs import deliveries, sqlite, tables
from notebook_runner_server.runs.deliveries import Delivery, DeliveryFilter
from notebook_runner_server.runs.model import ChangeFilter, Notify, RunState
from notebook_runner_server.runs.state_folder import DATABASE
from notebook_runner_server.runs.store import Store
from tests.runs.samples import a_run, changed, some_options
from tests.runs.stores import SEGMENTS, append, insert, opened

pytestmark = pytest.mark.integration

ENDS = DeliveryFilter(frozenset(state for state in RunState if state.is_terminal))


async def ended(store: Store, run_id: str, **labels: str) -> None:
    """A run that has ended."""
    position = await insert(store, run_id, labels=labels)
    run = a_run(RunState.KILLED, run_id=run_id, labels=labels)
    await append(store, position, run, changed(2, run), expire_time=1)


async def delete(store: Store, run_id: str) -> None:
    """Deletes a run."""
    record = await store.find(run_id)
    assert record is not None
    assert await store.delete(record)


async def rest(store: Store, after: int, wanted: DeliveryFilter = ENDS) -> list[Delivery]:
    """All that comes after a change."""
    found: list[Delivery] = []
    while True:
        delivery, after = await store.deliveries.next(after, wanted)
        if delivery is None:
            return found
        found.append(delivery)


async def receiver(store: Store, name: str = "a") -> int:
    """The cursor of a receiver, which is the only one."""
    return (await store.deliveries.set_receivers([name], []))[name].change


async def test_a_new_receiver_begins_now_and_an_old_one_where_it_was(tmp_path: Path) -> None:
    """Also after a restart; one that was removed meanwhile begins now again."""
    async with opened(tmp_path) as store:
        await ended(store, "before")
        cursor = await receiver(store)
        await ended(store, "first")
        await ended(store, "second")
        first, second = await rest(store, cursor)
        assert (first.run_id, second.run_id) == ("first", "second")
        await store.deliveries.done("a", first, first.change, 7)
    async with opened(tmp_path) as store:
        record = (await store.deliveries.set_receivers(["a"], []))["a"]
        assert (record.change, record.failing_since) == (first.change, 7)
        assert [one.run_id for one in await rest(store, record.change)] == ["second"]
        await receiver(store, "b")
        assert await rest(store, await receiver(store)) == []


async def test_the_end_of_a_deleted_run_is_kept_until_all_have_it(tmp_path: Path) -> None:
    """Its id, owner and state are; the run is not, and watchers see only the deletion."""
    async with opened(tmp_path) as store:
        cursor = await receiver(store)
        await ended(store, "gone")
        await ended(store, "there")
        await delete(store, "gone")
        gone, there = await rest(store, cursor)
        assert (gone.run_id, gone.run, gone.state, gone.time) == ("gone", None, RunState.KILLED, 0)
        assert there.run is not None
        stream = store.changes.watch(None, ChangeFilter(), include_existing=True, idle=60)
        async with aclosing(stream) as batches:  # type: ignore[type-var] # a generator
            seen = [change.run_id for _, change in (await anext(batches)).changes]
        assert seen == ["there"]
        await store.deliveries.done("a", there, there.change, 0)
        await delete(store, "there")
        await ended(store, "last")
        assert [one.run_id for one in await rest(store, there.change)] == ["last"]


async def test_watchers_from_memory_and_store_do_not_see_a_kept_end(tmp_path: Path) -> None:
    """A cursor from before the run gets the deletion alone."""
    async with opened(tmp_path) as store:
        await receiver(store)
        stream = store.changes.watch(None, ChangeFilter(), include_existing=False, idle=60)
        async with aclosing(stream) as batches:  # type: ignore[type-var] # a generator
            await anext(batches)
            await ended(store, "gone")
            await delete(store, "gone")
            changes = [change for _, change in (await anext(batches)).changes]
        assert [(one.run_id, one.run) for one in changes] == [("gone", None)]


async def test_filters(tmp_path: Path) -> None:
    """State, owner and labels, of runs that are there and of deleted ones."""
    async with opened(tmp_path) as store:
        cursor = await receiver(store)
        await ended(store, "run-a", team="data")
        await ended(store, "run-b", team="ops")
        labelled = DeliveryFilter(ENDS.states, labels={"team": "data"})
        for count in (1, 0):
            assert [one.run_id for one in await rest(store, cursor, labelled)] == ["run-a"]
            assert await store.deliveries.count(cursor, labelled) == count
            for run_id in ("run-a", "run-b") if count else ():
                await delete(store, run_id)
        assert await rest(store, cursor, DeliveryFilter(ENDS.states, owner="ada")) == []
        assert await rest(store, cursor, DeliveryFilter(frozenset({RunState.FAILED}))) == []
        assert [one.run_id for one in await rest(store, cursor)] == ["run-a", "run-b"]


@pytest.mark.parametrize("per_read", [1, 2, 3])
async def test_any_portion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_read: int) -> None:
    """However many rows a read takes, each end comes once, and the cursor passes what does not match."""
    monkeypatch.setattr(deliveries, "_PER_READ", per_read)
    async with opened(tmp_path) as store:
        cursor = await receiver(store)
        for number in range(5):
            await ended(store, f"run-{number}", even=str(number % 2 == 0))
        even = DeliveryFilter(ENDS.states, labels={"even": "True"})
        assert [one.run_id for one in await rest(store, cursor, even)] == ["run-0", "run-2", "run-4"]
        nothing = DeliveryFilter(ENDS.states, labels={"even": "neither"})
        delivery, last = await store.deliveries.next(cursor, nothing)
        assert delivery is None
        await store.deliveries.advance({"a": last})
        assert await receiver(store) == last == (await rest(store, cursor))[-1].change


async def test_a_forgotten_deletion_takes_the_kept_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that is away for very long does not keep rows for ever."""
    monkeypatch.setattr(tables, "MAX_DELETIONS", 1)
    async with opened(tmp_path) as store:
        cursor = await receiver(store)
        for number in range(3):
            await ended(store, f"run-{number}")
            await delete(store, f"run-{number}")
        assert [one.run_id for one in await rest(store, cursor)] == ["run-2"]


NOTIFY = Notify("host", "https://host/?token")
OF_HOST = DeliveryFilter(ENDS.states, host="host")


async def notifying(store: Store, run_id: str) -> None:
    """A run that has ended, and has to notify."""
    run = a_run(run_id=run_id)
    position = await store.insert(run, some_options(), "digest", changed(1, run), SEGMENTS, notify=NOTIFY)
    run = a_run(RunState.KILLED, run_id=run_id)
    await append(store, position, run, changed(2, run), expire_time=1)


async def notified(store: Store, *hosts: str) -> int:
    """The cursor of the receiver of the first host."""
    names = [f"{deliveries.NOTIFY}{host}" for host in hosts]
    return (await store.deliveries.set_receivers(names, hosts))[names[0]].change


async def test_notifications_of_a_host(tmp_path: Path) -> None:
    """Only runs that name it, deleted or not, over a restart; a delivery leaves no byte of the URI."""
    async with opened(tmp_path) as store:
        await notified(store, "host")
        await ended(store, "other")
        await notifying(store, "gone")
        await notifying(store, "there")
        await delete(store, "gone")
        await delete(store, "other")
    async with opened(tmp_path) as store:
        cursor = await notified(store, "host")
        found = await rest(store, cursor, OF_HOST)
        assert [(one.run_id, one.uri) for one in found] == [("gone", NOTIFY.uri), ("there", NOTIFY.uri)]
        assert await store.deliveries.count(cursor, OF_HOST) == 2
        for one in found:
            await store.deliveries.done("notify:host", one, one.change, 0)
        assert await rest(store, 0, OF_HOST) == []
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"?token" in path.read_bytes()]


async def test_a_host_that_is_no_longer_allowed(tmp_path: Path) -> None:
    """What it had to get is forgotten."""
    async with opened(tmp_path) as store:
        await notified(store, "host")
        await notifying(store, "run")
        await notified(store, "elsewhere")
        assert await rest(store, 0, OF_HOST) == []
        assert await rest(store, await notified(store, "host"), OF_HOST) == []


@pytest.mark.state_folder("it damages SQLite's file")
async def test_a_rebuilt_history_still_notifies(tmp_path: Path) -> None:
    """Notifications are copied with their runs, and their receiver begins with all of them."""
    async with opened(tmp_path / "old") as store:
        await notified(store, "host")
        await notifying(store, "run")
    (tmp_path / "new").mkdir()
    sqlite.rebuild(tmp_path / "old" / DATABASE, tmp_path / "new" / "draft" / DATABASE)
    (tmp_path / "new" / "draft" / DATABASE).rename(tmp_path / "new" / DATABASE)
    shutil.copytree(tmp_path / "old" / "runs", tmp_path / "new" / "runs")
    async with opened(tmp_path / "new") as store:
        found = await rest(store, await notified(store, "host"), OF_HOST)
        assert [(one.run_id, one.uri) for one in found] == [("run", NOTIFY.uri)]
