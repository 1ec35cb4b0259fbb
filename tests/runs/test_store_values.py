"""Any text that a caller or a notebook can bring is kept as it is, whatever the database can store."""

from pathlib import Path
from typing import Any

import pytest

from notebook_runner_server.execution.interface import Cause, ErrorOutput, Failure
from notebook_runner_server.runs.model import Event, ExecutionOptions, RunState, WriteBatch
from tests.runs.samples import a_run, changed, printed, some_options
from tests.runs.stores import insert, opened

NEWEST = 2**63 - 1
NASTY = {
    "NUL": "a\0b",
    "NUL alone": "\0",
    "two names that differ after NUL": "a\0c",
    "escape of NUL": "a\\u0000b",
    "backslashes": "\\\\x00\\",
    "marks of parameters": "'?\"%s%(name)s$1;--",
    "other alphabets": "é日本語😀\u202e",
    "no character": "\ufffe\uffff",
    "private use": "\ue000\uf8ff\U000f0000\U0010ffff",
    "line ends": "\r\n\u2028\x85",
}
# Only what is printed can have these: the contract's texts are UTF-8.
HALVES = {"lone surrogate": "a\ud800b", "bytes": "\udc80\udcff"}


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY.keys())
async def test_what_a_caller_brings(tmp_path: Path, text: str) -> None:
    """It is found by it, and differs from what only looks like it."""
    fields: dict[str, Any] = {
        "request_id": text,
        "labels": {text: text, "plain": text},
        "parameters": {text: [text, {text: 1}]},
        "owner": text,
        "name": text,
        "notebook_path": text,
        "notebook_uri": text,
        "output_error": text,
        "notebook_repairs": (text,),
    }
    options: ExecutionOptions = some_options(working_folder=text, environment={"A": text.replace("\0", "")})
    async with opened(tmp_path) as store:
        await insert(store, "one", options, **fields)
        await insert(store, "other", owner="a", request_id="a", labels={"a": "a"})
    async with opened(tmp_path) as store:
        record = await store.find("one", text)
        assert record is not None
        assert record.run == a_run(run_id="one", **fields)
        assert store.options(record) == options
        assert await store.find_request(text, text) == record
        assert await store.find_request(text, "a") is None
        assert await store.find("one", "a") is None
        for labels in ({text: text}, {"plain": text}):
            assert await store.list(NEWEST, 10, [], labels) == [record]
        assert await store.list(NEWEST, 10, [], {"plain": text + "\0"}) == []
        assert await store.list(NEWEST, 10, [], {}, owner=text) == [record]


@pytest.mark.parametrize("text", [*NASTY.values(), *HALVES.values()], ids=[*NASTY, *HALVES])
async def test_what_a_notebook_prints(tmp_path: Path, text: str) -> None:
    """Every event has it, and so has the run's failure."""
    failure = Failure(Cause.CELL_ERROR, text, 0, text, text, text, text)
    run = a_run(RunState.FAILED, run_id="one", end_time=5, failure=failure)
    told = [printed(2, text), printed(3, text * 1000)]
    told.append(Event(4, 40, 0, 2, ErrorOutput(0, text, text)))
    async with opened(tmp_path) as store:
        position = await insert(store, "one")
        await store.append(position, run, [*told, changed(5, run)], WriteBatch(), 10)
    async with opened(tmp_path) as store:
        assert await store.events(position, 1) == [*told, changed(5, run)]
        record = await store.find("one")
        assert record is not None
        assert record.run == run
