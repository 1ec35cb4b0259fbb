"""The store on a real SQLite file: what is written is found, under every question that is asked of it."""

import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from notebook_runner_server.errors import DamagedRunError
from notebook_runner_server.execution.interface import Limits
from notebook_runner_server.execution.segments import HEAD
from notebook_runner_server.runs import schema, tables
from notebook_runner_server.runs.model import Event, RunState, Segment, WriteBatch
from notebook_runner_server.runs.store import EVENTS_PER_READ, Store
from tests.runs.samples import GOING_ON, TERMINAL, a_run, changed, printed, some_options
from tests.runs.stores import SEGMENTS, append, check_folders, content, finish, insert, leave_file, opened

NEWEST = 2**63 - 1


async def ids(store: Store, before: int = NEWEST, size: int = 100, **filters: object) -> list[str]:
    """The ids that a List answers."""
    states, labels = filters.get("states", ()), filters.get("labels", {})
    return [row.run_id for row in await store.list(before, size, states, labels)]  # type: ignore[arg-type] # a test's


async def test_an_inserted_run_is_found_with_all_it_came_with(tmp_path: Path) -> None:
    """All of it is there: by run id, by request id, and as the newest run."""
    async with opened(tmp_path) as store:
        options = some_options(environment={"A": "1"}, limits=Limits(run_timeout=1.5))
        fields: dict[str, Any] = {
            "parameters": {"a": [1, 2.0, None]},
            "labels": {"b": "c"},
            "notebook_path": "x.ipynb",
        }
        position = await insert(store, "one", options, request_id="mine", **fields)
        run = a_run(run_id="one", request_id="mine", **fields)
        row = await store.find("one")
        assert row is not None
        assert (row.position, row.run, store.options(row)) == (position, run, options)
        assert (row.last_sequence, row.request_digest) == (1, "digest")
        assert row == await store.newest()
        same = await store.find_request("mine")
        assert same is not None
        assert (same.position, same.run, same.request_digest) == (position, run, "digest")
        assert await store.events(position, 0) == [changed(1, run)]
        segments = await store.segments(position, 0)
        assert content(store, "one", segments) == HEAD + b"first,secondtail"


async def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    """An unknown run, an unknown request and an empty store answer nothing; no request id is none."""
    async with opened(tmp_path) as store:
        assert await store.newest() is None
        assert await store.list(NEWEST, 10, [], {}) == []
        await insert(store, "one")
        await insert(store, "two")
        assert await store.find("three") is None
        assert await store.find_request("") is None
        assert await store.find_request("mine") is None
        newest = await store.newest()
        assert newest is not None
        assert newest.run.run_id == "two"


async def test_appended_events_are_read_after_any_sequence(tmp_path: Path) -> None:
    """A reader gets what is after its cursor, in order, in reads of a bounded size, and no more."""
    async with opened(tmp_path) as store:
        position = await insert(store, "one")
        other = await insert(store, "two")
        run = a_run(RunState.RUNNING, run_id="one")
        count = EVENTS_PER_READ + 10
        events: list[Event] = [printed(number, "x" * number) for number in range(2, count + 1)]
        await append(store, position, run, *events)
        whole = [changed(1, a_run(run_id="one")), *events]
        for after in (0, 1, 5, count - 1, count):
            assert await store.events(position, after) == whole[after : after + EVENTS_PER_READ]
        assert len(await store.events(other, 0)) == 1
        row = await store.find("one")
        assert row is not None
        assert (row.run, row.last_sequence) == (run, count)


async def test_an_append_without_events_keeps_the_run_as_it_was(tmp_path: Path) -> None:
    """Segments that no event tells of yet are written, and the run's row is not touched."""
    async with opened(tmp_path) as store:
        position = await insert(store, "one")
        written = WriteBatch(15, [b"new"], [])
        await store.append(position, a_run(RunState.RUNNING, run_id="one"), [], written, None)
        row = await store.find("one")
        assert row is not None
        assert (row.run.state, row.last_sequence) == (RunState.QUEUED, 1)
        assert store.folder("one").segments_size() == 18


async def test_lists_are_filtered_and_paged(tmp_path: Path) -> None:
    """States are alternatives, labels all have to be there, pages go from the newest to the oldest."""
    async with opened(tmp_path) as store:
        for number in range(6):
            labels = {"even": str(number % 2 == 0), "number": str(number), "same": "x"}
            position = await insert(store, f"run-{number}", labels=labels)
            if number >= 4:
                await finish(store, position, f"run-{number}")
        assert await ids(store) == [f"run-{number}" for number in range(5, -1, -1)]
        assert await ids(store, states=[RunState.KILLED]) == ["run-5", "run-4"]
        assert await ids(store, states=[RunState.KILLED, RunState.QUEUED], size=3) == [
            *("run-5", "run-4", "run-3")
        ]
        assert await ids(store, labels={"even": "True"}) == ["run-4", "run-2", "run-0"]
        assert await ids(store, labels={"even": "True", "number": "2"}) == ["run-2"]
        assert await ids(store, labels={"even": "True", "number": "1"}) == []
        assert await ids(store, states=[RunState.QUEUED], labels={"even": "True"}) == ["run-2", "run-0"]
        pages = []
        before = NEWEST
        while rows := await store.list(before, 2, [], {"same": "x"}):
            pages.append([row.run_id for row in rows])
            before = rows[-1].position
        assert pages == [["run-5", "run-4"], ["run-3", "run-2"], ["run-1", "run-0"]]


async def test_runs_that_have_not_ended_are_told_oldest_first(tmp_path: Path) -> None:
    """What recovery has to look at: every state that is no end, and no other."""
    async with opened(tmp_path) as store:
        for state in RunState:
            position = await insert(store, state.name)
            run = a_run(state, run_id=state.name)
            await append(store, position, run, changed(2, run))
        assert [row.run.state for row in await store.unended()] == GOING_ON
        assert len(TERMINAL) + len(GOING_ON) == len(await store.list(NEWEST, 100, [], {}))


async def test_segments_are_kept_in_every_version(tmp_path: Path) -> None:
    """As of any sequence number, the notebook is put together from what was the newest segment then."""
    async with opened(tmp_path) as store:
        position = await insert(store, "one")
        run = a_run(RunState.RUNNING, run_id="one")
        size = sum(map(len, SEGMENTS.values()))
        for sequence, number, data in ((2, 0, b"FIRST"), (4, 1, b"SECOND"), (6, 0, b"again")):
            segment = Segment(number, sequence, size, len(data))
            written = WriteBatch(size, [data[:2], data[2:]], [segment])
            told = [printed(sequence), printed(sequence + 1)]
            await store.append(position, run, told, written, None)
            size += len(data)
        texts = []
        for as_of in range(8):
            segments = await store.segments(position, as_of)
            texts.append(content(store, "one", segments).removeprefix(HEAD))
        first, second, third = b"FIRST,secondtail", b"FIRST,SECONDtail", b"again,SECONDtail"
        assert texts == [b"first,secondtail"] * 2 + [first] * 2 + [second] * 2 + [third] * 2
        newest = [await store.newest_segment(position, as_of) for as_of in range(8)]
        assert newest == [0, 0, 2, 2, 4, 4, 6, 6]


async def test_a_deleted_run_is_gone_with_all_that_was_its(tmp_path: Path) -> None:
    """Row, events, segments, labels, request id and folder go; the other run keeps its own."""
    async with opened(tmp_path) as store:
        gone = await insert(store, "gone", request_id="mine", labels={"a": "b"})
        stays = await insert(store, "stays", labels={"a": "b"})
        row = await store.find("gone")
        assert row is not None
        leave_file(store, "gone", 4)
        await store.delete(row)
        assert await store.find("gone") is None
        assert await store.find_request("mine") is None
        assert await store.events(gone, 0) == []
        assert await store.segments(gone, 9) == []
        assert await store.newest_segment(gone, 9) == 0
        assert await ids(store, labels={"a": "b"}) == ["stays"]
        assert not store.folder("gone").path.exists()
        assert len(await store.events(stays, 0)) == 1
        assert content(store, "stays", await store.segments(stays, 0)).endswith(b"first,secondtail")
        assert await insert(store, "new", request_id="mine") > stays


async def test_a_run_is_deleted_once(tmp_path: Path) -> None:
    """The second deletion of a row changes nothing, neither the number of runs nor another run."""
    async with opened(tmp_path) as store:
        for name in ("one", "two"):
            await finish(store, await insert(store, name), name)
        row = await store.find("one")
        assert row is not None
        assert await store.delete(row)
        assert not await store.delete(row)
        assert store.count == 1
        assert await ids(store) == ["two"]


async def test_ids_are_found_by_a_part(tmp_path: Path) -> None:
    """A part is the beginning of an id or of what follows its last hyphen; it is text without wildcards."""
    names = [
        "20260101-000000-aaaa0001",
        "20260101-000000-aaaa0002",
        "20260102-000000-bbbb0001",
        "plain",
        "%-%_",
    ]
    async with opened(tmp_path) as store:
        for name in names:
            await insert(store, name)
        for part, found in {
            "20260101": names[1::-1],
            "20260102-": names[2:3],
            "aaaa": names[1::-1],
            "aaaa0001": names[:1],
            "bbbb": names[2:3],
            "plain": ["plain"],
            "plai": ["plain"],
            "%": ["%-%_"],
            "000000-aaaa": [],
            "aaaa_": [],
            "BBBB": [],
            "20260103": [],
        }.items():
            assert await store.find_ids(part, 5) == found, part
        assert await store.find_ids("2026", 2) == [names[2], names[1]]
        assert await store.find_ids(names[0], 5) == names[:1]
        await insert(store, "aaaa")
        assert await store.find_ids("aaaa", 5) == ["aaaa"]
        assert len(await store.find_ids("aaa", 5)) == 3


@pytest.mark.state_folder("it reads SQLite's plan")
async def test_an_index_answers_every_part(tmp_path: Path) -> None:
    """A part is searched for with an index, however many runs there are."""
    async with opened(tmp_path) as store:
        await insert(store, "one")
    with closing(schema.connect(tmp_path / "notebook-runner.db")) as db:
        statements: list[str] = []
        db.set_trace_callback(statements.append)
        tables.find_ids(db, "part", 5, None)
        db.set_trace_callback(None)
        assert len(statements) == 3
        for statement in statements:
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}")]
            assert len(plan) == 1
            assert plan[0].startswith("SEARCH runs USING")


async def test_a_second_run_with_the_same_request_id_is_refused(tmp_path: Path) -> None:
    """A request id is unique in the store; what was there stays, and nothing of the second is left."""
    async with opened(tmp_path) as store:
        await insert(store, "one", request_id="mine")
        before = await store.find("one")
        with pytest.raises(Exception, match=r"(?i)unique constraint"):
            await insert(store, "two", request_id="mine")
        assert await store.find("one") == before
        assert await ids(store) == ["one"]
        check_folders(tmp_path, ["one"])


async def test_damaged_events_do_not_hide_later_runs(tmp_path: Path) -> None:
    """Whoever is told of damage keeps no cursor open, whatever keeps the error: what comes later is seen."""
    async with opened(tmp_path) as store:
        position = await insert(store, "one")
        await append(store, position, a_run(RunState.RUNNING, run_id="one"), printed(2), printed(3))
        await store._db.write(lambda db: db.execute("UPDATE events SET event = '[]' WHERE sequence = 2"))
        with pytest.raises(DamagedRunError) as kept:
            await store.events(position, 0)
        await insert(store, "two")
        assert await store.find("two") is not None
        assert kept.value.metadata == {"run_id": "one"}


def test_a_checksum_is_the_same_for_every_python() -> None:
    """Which characters are printable depends on the tables of Unicode that a Python has."""
    assert tables.checksum("é", 1, None) == zlib.crc32(b"('\\xe9', 1, None)")
