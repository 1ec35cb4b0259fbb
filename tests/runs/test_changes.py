"""The changes of a store: watchers miss nothing and get nothing twice, and learn when that is impossible."""

import asyncio
import base64
import sqlite3
from collections.abc import Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from notebook_runner_server.errors import CursorExpiredError, InvalidFieldError, ShuttingDownError
from notebook_runner_server.runs import changes, tables
from notebook_runner_server.runs.changes import WatchCursor
from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.model import Change, ChangeFilter, RunState
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.waiters import Waiters
from tests.runs.samples import a_run, changed, printed
from tests.runs.stores import append, finish, insert, opened

pytestmark = pytest.mark.integration

DATABASE = "notebook-runner.db"
NOBODY_WAITS = 600.0
ALL = ChangeFilter()
Seen = tuple[WatchCursor, str, RunState | None]


def described(cursor: WatchCursor, change: Change) -> Seen:
    """What a test compares of a change."""
    return cursor, change.run_id, None if change.run is None else change.run.state


async def watched(
    store: Store,
    cursor: WatchCursor | None = None,
    wanted: ChangeFilter = ALL,
    *,
    include_existing: bool = True,
    until: str = "last",
    begun: asyncio.Event | None = None,
) -> list[Seen]:
    """What a watcher gets up to a change of the run `until`; sets `begun` once it has got something."""
    seen: list[Seen] = []
    stream = store.changes.watch(
        cursor, wanted, include_existing=include_existing and cursor is None, idle=NOBODY_WAITS
    )
    async with aclosing(stream) as batches:  # type: ignore[type-var] # a generator
        async for batch in batches:
            if begun is not None:
                begun.set()
            for one in batch.changes:
                seen.append(described(*one))
                if seen[-1][1] == until:
                    return seen
    raise AssertionError("a stream of changes does not end")


async def now(store: Store) -> WatchCursor:
    """The cursor of a watcher that begins now."""
    stream = store.changes.watch(None, ALL, include_existing=False, idle=NOBODY_WAITS)
    async with aclosing(stream) as batches:  # type: ignore[type-var] # a generator
        return (await anext(batches)).cursor


async def delete(store: Store, run_id: str, *, is_expired: bool = False) -> None:
    """Deletes a run."""
    record = await store.find(run_id)
    assert record is not None
    assert await store.delete(record, is_expired=is_expired)


async def ended(store: Store, run_id: str) -> None:
    """A run that has ended."""
    await finish(store, await insert(store, run_id), run_id)


async def test_every_cursor_of_a_long_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever portions it is read, from memory or not: what comes after a cursor is the rest."""
    monkeypatch.setattr(tables, "_CHANGES_PER_READ", 3)
    monkeypatch.setattr(changes, "_AT_ONCE", 2)
    monkeypatch.setattr(changes, "RECENT_BYTES", 12_000)
    async with opened(tmp_path) as store:
        for number in range(10):
            await ended(store, f"run-{number}")
        begin, begun = await now(store), asyncio.Event()
        reading = asyncio.ensure_future(watched(store, begun=begun))
        # Until then, a run that is added would be an existing one.
        await begun.wait()
        while not reading.done():
            await ended(store, f"more-{number}")
            number += 1
            if number == 20:
                await insert(store, "last")
            await asyncio.sleep(0)
        whole = reading.result()
        assert [one[1] for one in whole[:10]] == [f"run-{number}" for number in range(10)]
        for number, (cursor, _, _) in enumerate(whole[:-1]):
            assert await watched(store, cursor) == whole[number + 1 :]
        assert [one for one in whole if one[0].change > begin.change] == await watched(store, begin)
    async with opened(tmp_path) as store:
        for number, (cursor, _, _) in enumerate(whole[:-1]):
            assert await watched(store, WatchCursor.parse(str(cursor))) == whole[number + 1 :]


async def test_existing_runs_are_as_of_one_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes while existing runs are sent comes afterwards, and not twice."""
    monkeypatch.setattr(tables, "_CHANGES_PER_READ", 1)
    async with opened(tmp_path) as store:
        positions = [await insert(store, f"run-{number}") for number in range(3)]
        stream = store.changes.watch(None, ALL, include_existing=True, idle=NOBODY_WAITS)
        seen: list[Seen] = []
        async with aclosing(stream) as batches:  # type: ignore[type-var] # a generator
            seen += [described(*one) for one in (await anext(batches)).changes]
            for number, position in enumerate(positions):
                await finish(store, position, f"run-{number}")
            await insert(store, "last")
            while seen[-1][1] != "last":
                seen += [described(*one) for one in (await anext(batches)).changes]
    states = [(run_id, state) for _, run_id, state in seen]
    queued = [(f"run-{number}", RunState.QUEUED) for number in range(3)]
    killed = [(f"run-{number}", RunState.KILLED) for number in range(3)]
    assert states == [*queued, *killed, ("last", RunState.QUEUED)]


async def test_only_states_are_changes(tmp_path: Path) -> None:
    """Output changes no state."""
    async with opened(tmp_path) as store:
        begin = await now(store)
        position = await insert(store, "one")
        run = a_run(RunState.RUNNING, run_id="one")
        await append(store, position, run, printed(2), changed(3, run), printed(4))
        await insert(store, "last")
        assert [one[1:] for one in await watched(store, begin)] == [
            ("one", RunState.QUEUED),
            ("one", RunState.RUNNING),
            ("last", RunState.QUEUED),
        ]


async def test_retention_overtakes_a_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cursor before a deletion that is forgotten has expired, also after a restart."""
    monkeypatch.setattr(tables, "MAX_DELETIONS", 2)
    async with opened(tmp_path) as store:
        cursors = [await now(store)]
        for number in range(4):
            await ended(store, f"run-{number}")
            await delete(store, f"run-{number}", is_expired=number % 2 == 0)
            cursors.append(await now(store))
        await insert(store, "last")
        assert str(await store.missing("run-2")).startswith("Run run-2 has expired")
        for unknown in ("run-0", "run-1", "run-3", "other", ""):
            assert (await store.missing(unknown)).reason == "RUN_NOT_FOUND"
    async with opened(tmp_path) as store:
        for cursor in cursors[:2]:
            with pytest.raises(CursorExpiredError):
                await watched(store, cursor)
        for number, cursor in enumerate(cursors[2:], 2):
            left = [f"run-{one}" for one in range(number, 4)]
            assert [one[1] for one in await watched(store, cursor)] == [*left, "last"]


async def test_a_slow_watcher_is_overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, and gets no gap."""
    monkeypatch.setattr(tables, "MAX_DELETIONS", 2)
    monkeypatch.setattr(changes, "RECENT_BYTES", 1)
    async with opened(tmp_path) as store:
        stream = store.changes.watch(None, ALL, include_existing=False, idle=NOBODY_WAITS)
        async with aclosing(stream) as batches:  # type: ignore[type-var] # a generator
            await anext(batches)
            for number in range(4):
                await ended(store, f"run-{number}")
                await delete(store, f"run-{number}")
                await now(store)
            with pytest.raises(CursorExpiredError):
                _ = [batch async for batch in batches]


@pytest.mark.state_folder("it damages SQLite's file")
async def test_a_history_that_was_rebuilt(tmp_path: Path) -> None:
    """Its cursors have expired; its runs exist, each once, and what had expired is still known to have."""
    async with opened(tmp_path) as store:
        cursors = [await now(store)]
        await ended(store, "gone")
        await delete(store, "gone", is_expired=True)
        for name in ("one", "two"):
            await ended(store, name)
        cursors.append(await now(store))
    (tmp_path / f"{DATABASE}-damaged").write_text("found by a test")
    async with opened(tmp_path) as store:
        await insert(store, "last")
        for cursor in cursors:
            with pytest.raises(CursorExpiredError):
                await watched(store, cursor)
        seen = [one[1:] for one in await watched(store)]
        assert seen == [("one", RunState.KILLED), ("two", RunState.KILLED), ("last", RunState.QUEUED)]
        assert (await store.missing("gone")).reason == "RUN_EXPIRED"


async def test_a_cursor_ahead_of_the_history(tmp_path: Path) -> None:
    """It is of a history that was replaced by an older copy."""
    async with opened(tmp_path) as store:
        cursor = await now(store)
        with pytest.raises(CursorExpiredError):
            await watched(store, WatchCursor(cursor.history_id, cursor.change + 1))


@pytest.mark.state_folder("it damages SQLite's file")
async def test_a_damaged_change_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Others still come, from memory and from the store; the log has the damage once."""
    async with opened(tmp_path) as store:
        begin = await now(store)
        for name in ("one", "two", "three"):
            await ended(store, name)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.execute("UPDATE events SET event = replace(event, 'killed', 'failed') WHERE position = 1")
        db.execute("UPDATE changes SET state = 'x' WHERE position = 2 AND sequence = 2")
        db.commit()
    async with opened(tmp_path) as store:
        await insert(store, "last")
        # The first watcher loads the changes, the second gets them from memory.
        for _ in range(2):
            seen = [one[1:] for one in await watched(store, begin)]
            queued = [(name, RunState.QUEUED) for name in ("one", "two", "three")]
            assert seen == [*queued, ("three", RunState.KILLED), ("last", RunState.QUEUED)]
    assert [record.message for record in caplog.records].count("run_damaged") == 2


async def test_filters_agree_in_memory_and_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Owner, states and labels, for a run and for its deletion."""
    filters = {
        "visible": ChangeFilter("ada"),
        "owner": ChangeFilter(owner="ada"),
        "hidden": ChangeFilter("bob", "ada"),
        "labels": ChangeFilter(labels={"a": "b"}),
        "states": ChangeFilter(states=frozenset({RunState.KILLED})),
    }
    found: dict[str, list[tuple[str, RunState | None]]] = {}
    async with opened(tmp_path) as store:
        begin = await now(store)
        for name, owner, labels in (("one", "ada", {"a": "b"}), ("two", "bob", {"a": "c"})):
            position = await insert(store, name, owner=owner, labels=labels)
            run = a_run(RunState.KILLED, run_id=name, owner=owner, labels=labels)
            await append(store, position, run, changed(2, run), expire_time=1)
            await delete(store, name)
        position = await insert(store, "three", owner="ada", labels={"a": "b"})
        run = a_run(RunState.KILLED, run_id="three", owner="ada", labels={"a": "b"})
        await append(store, position, run, changed(2, run), expire_time=1)
        position = await insert(store, "last", owner="bob", labels={"a": "b"})
        run = a_run(RunState.KILLED, run_id="last", owner="bob", labels={"a": "b"})
        await append(store, position, run, changed(2, run), expire_time=1)
        for name, one in filters.items():
            until = "three" if name in ("visible", "owner") else "last"
            if name != "hidden":
                found[name] = [seen[1:] for seen in await watched(store, begin, one, until=until)]
    monkeypatch.setattr(changes, "_MAX_BEHIND", 0)
    async with opened(tmp_path) as store:
        for name, seen in found.items():
            until = "three" if name in ("visible", "owner") else "last"
            assert [one[1:] for one in await watched(store, begin, filters[name], until=until)] == seen
    assert [run_id for run_id, _ in found["visible"]] == ["one", "three", "three"][: len(found["visible"])]
    assert found["visible"][0] == ("one", None)
    assert found["owner"] == found["visible"]
    assert {run_id for run_id, _ in found["labels"]} == {"one", "three", "last"}
    assert {state for _, state in found["states"]} == {None, RunState.KILLED}
    assert not filters["hidden"].may_match("ada", None)
    assert not filters["hidden"].may_match("bob", None)


async def test_a_stop_ends_watchers_after_the_last_change(tmp_path: Path) -> None:
    """Whoever waits, and whoever comes later, gets what there is, and then the reason."""
    async with opened(tmp_path) as store:
        begin = await now(store)
        waiting = asyncio.ensure_future(watched(store, begin, until="never"))
        await insert(store, "one")
        store.changes.close()
        for task in (waiting, asyncio.ensure_future(watched(store, begin, until="never"))):
            with pytest.raises(ShuttingDownError):
                await task


async def test_many_watchers_read_the_store_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait for a change, it is read once."""
    async with opened(tmp_path) as store:
        begin = await now(store)
        reads: list[object] = []
        read = store._db.read

        async def counted(function: object, *args: object) -> object:
            reads.append(function)
            return await read(function, *args)  # type: ignore[arg-type] # any function

        streams = [
            store.changes.watch(begin, ALL, include_existing=False, idle=NOBODY_WAITS) for _ in range(100)
        ]
        await insert(store, "first")
        for stream in streams:
            assert (await anext(stream)).changes
        monkeypatch.setattr(store._db, "read", counted)
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await insert(store, "last")
        batches = await asyncio.gather(*waiting)
        assert [described(*batch.changes[0])[1] for batch in batches] == ["last"] * 100
        # Whether some began to wait before the insertion or not.
        assert len([one for one in reads if one is tables.read_changes]) == 1
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined] # a generator


async def test_a_look_without_news_wakes_nobody(tmp_path: Path) -> None:
    """The server looks for changes of other servers each second; watchers sleep until it finds one."""
    async with opened(tmp_path) as store:
        await ended(store, "first")
        await store.changes.look()
        wakes = store.changes.wakes
        await store.changes.look()
        assert store.changes.wakes == wakes


async def test_a_look_wakes_all_watchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look does so even if a new watcher has already read the change of the other server."""
    async with opened(tmp_path) as store:
        await store.changes.look()
        begin, waiters = await now(store), Noted()
        store.changes._waiters = waiters
        waiting = asyncio.ensure_future(watched(store, begin))
        await waiters.begun.wait()
        with monkeypatch.context() as patched:
            # As another server would.
            patched.setattr(store.changes, "wake", lambda: None)
            await insert(store, "last")
        # As after a change of this server for which the waiting watcher has already been woken.
        store.changes._is_stale = True
        assert [run_id for _, run_id, _ in await watched(store, begin)] == ["last"]
        assert not waiting.done()
        wakes = store.changes.wakes
        await store.changes.look()
        assert [run_id for _, run_id, _ in await waiting] == ["last"]
        assert store.changes.wakes == wakes + 1


class Noted(Waiters):
    """Waiters that tell when the first one begins to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()

    @override
    async def wait(self, seconds: float) -> bool:
        self.begun.set()
        return await super().wait(seconds)


async def test_a_watcher_of_other_servers_is_woken_by_looks(tmp_path: Path) -> None:
    """It gets what has changed meanwhile with the next look, and all of it."""
    async with opened(tmp_path) as store:
        begin, waiters = await now(store), Noted()
        store.changes._others_waiters = waiters
        stream = store.changes.watch(begin, ALL, include_existing=False, idle=NOBODY_WAITS, own=False)
        async with aclosing(stream) as batches:  # type: ignore[type-var] # a generator
            waiting = asyncio.ensure_future(anext(batches))
            other = asyncio.ensure_future(watched(store, begin))
            await waiters.begun.wait()
            await insert(store, "first")
            await insert(store, "last")
            assert [run_id for _, run_id, _ in await other] == ["first", "last"]
            assert not waiting.done()
            await store.changes.look()
            changes_of_batch = (await waiting).changes
        assert [change.run_id for _, change in changes_of_batch] == ["first", "last"]


async def test_large_changes_are_read_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read ends when it has enough bytes, of what the filter drops too; all of them come, in order."""
    monkeypatch.setattr(tables, "_CHANGES_AT_ONCE", 2)
    monkeypatch.setattr(tables, "_ENOUGH_BYTES", 1)
    async with opened(tmp_path) as store:
        begin = (await now(store)).change
        for number in range(5):
            await ended(store, f"run-{number}")
        killed = ChangeFilter(states=frozenset({RunState.KILLED}))
        first = await store._db.read(tables.read_changes, begin, killed)
        assert ([one.run_id for _, one in first.changes], first.last) == (["run-0", "run-1"], begin + 4)
        nothing = await store._db.read(tables.read_changes, begin, ChangeFilter(labels={"a": "b"}))
        assert (nothing.changes, nothing.last) == ([], begin + 2)
        await insert(store, "last")
        runs = [f"run-{number}" for number in range(5)]
        assert [one[1] for one in await watched(store)] == [*runs, "last"]
        cursor = WatchCursor((await now(store)).history_id, begin)
        assert [one[1] for one in await watched(store, cursor, killed, until="run-4")] == runs


async def test_a_deletion_that_is_forgotten_during_a_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cursor has expired then; no watcher continues as if there had been no deletion."""
    monkeypatch.setattr(tables, "MAX_DELETIONS", 1)
    read_rows, loop = tables._change_rows, asyncio.get_running_loop()
    async with opened(tmp_path) as store:
        await ended(store, "one")
        other = await insert(store, "two")
        await finish(store, other, "two")
        begin = await now(store)
        await delete(store, "one")

        def read_after_a_deletion(db: Connection, numbers: Sequence[int]) -> dict[int, tuple[Any, ...]]:
            monkeypatch.setattr(tables, "_change_rows", read_rows)
            write = store._db.write(lambda db: tables.delete_run(db, other, is_expired=False))
            assert asyncio.run_coroutine_threadsafe(write, loop).result()
            return read_rows(db, numbers)

        monkeypatch.setattr(tables, "_change_rows", read_after_a_deletion)
        with pytest.raises(CursorExpiredError):
            await watched(store, begin)


@pytest.mark.state_folder("it takes changes out of SQLite's file")
async def test_changes_that_the_database_has_lost(tmp_path: Path) -> None:
    """As after a failover: a watcher that has got them learns that its cursor has expired."""
    async with opened(tmp_path) as store:
        await ended(store, "kept")
        kept, waiters = (await now(store)).change, Noted()
        await ended(store, "lost")
        store.changes._waiters = waiters
        waiting = asyncio.ensure_future(watched(store, await now(store)))
        await waiters.begun.wait()

        def lose(db: Connection) -> None:
            db.execute("DELETE FROM changes WHERE change > ?", (kept,))
            db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'changes'", (kept,))

        await store._db.write(lose)
        await store.changes.look()
        with pytest.raises(CursorExpiredError):
            await waiting


async def test_watchers_have_heartbeats_while_a_read_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every watcher has heartbeats, whichever of them began the read, and then gets what the read finds."""
    async with opened(tmp_path) as store:
        begin, read, let_through = await now(store), store._db.read, asyncio.Event()

        async def held(function: object, *args: object) -> object:
            if function is tables.read_changes:
                await let_through.wait()
            return await read(function, *args)  # type: ignore[arg-type] # any function

        monkeypatch.setattr(store._db, "read", held)
        await insert(store, "last")
        streams = [store.changes.watch(begin, ALL, include_existing=False, idle=0.01) for _ in range(3)]
        for _ in range(3):
            for stream in streams:
                assert (await anext(stream)).is_heartbeat
        let_through.set()
        for stream in streams:
            while not (batch := await anext(stream)).changes:
                pass
            assert [change.run_id for _, change in batch.changes] == ["last"]
            await stream.aclose()  # type: ignore[attr-defined] # a generator


@settings(max_examples=300)
@given(
    history=st.text("0123456789abcdef", min_size=1),
    number=st.integers(0, 2**63 - 1),
    position=st.none() | st.integers(0, 2**63 - 1),
)
def test_a_cursor_is_read_as_it_was_written(history: str, number: int, position: int | None) -> None:
    """Any cursor, with or without a position."""
    cursor = WatchCursor(history, number, position)
    assert WatchCursor.parse(str(cursor)) == cursor


@settings(max_examples=300)
@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_any_other_text_is_refused(text: str) -> None:
    """It is refused, or is exactly the text of a cursor."""
    try:
        cursor = WatchCursor.parse(text)
    except InvalidFieldError:
        return
    assert str(cursor) == text
