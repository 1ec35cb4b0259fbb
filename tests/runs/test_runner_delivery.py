"""The write of an executed notebook between the last event of a run and its end, in every order of things."""

import asyncio
import os
from pathlib import Path

import pytest

from notebook_runner_server.execution.interface import Cause, Ended, Failure, KernelReady
from notebook_runner_server.runs.model import Run, RunState
from notebook_runner_server.runs.store import Store
from notebook_runner_server.transfer.interface import RefusedError, StoppedError
from notebook_runner_server.transfer.policy import SCHEMES
from tests.runs.fakes import (
    DONE,
    WHOLE,
    FakeBackend,
    cell,
    ended,
    events,
    executed,
    reach,
    running,
    settled,
    spec,
    states,
)
from tests.runs.stores import a_store
from tests.support.notebooks import parsed

S = RunState
URI = "s3://bucket/result?signature"
DIED = Ended(Failure(Cause.WORKER_DIED, "died"))


class Carrier:
    """Allows every URI, and writes as the test says.

    Attributes:
        begun: Set when a write has begun.
        go_on: Set by the test to let it end.
        error: What it ends with.
        written: What was written.
    """

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None
        self.written: list[tuple[str, bytes]] = []

    @property
    def schemes(self) -> list[str]:
        """Those of every URI."""
        return list(SCHEMES)

    def check(self, uri: str) -> None:
        """Allows it."""

    async def read(self, uri: str) -> bytes:
        """Reads nothing."""
        raise StoppedError(uri)

    async def write(self, uri: str, notebook: int) -> None:
        """Writes when the test lets it."""
        self.begun.set()
        await self.go_on.wait()
        if self.error:
            raise self.error
        self.written.append((uri, os.pread(notebook, 10**6, 0)))

    def stop_reading(self) -> None:
        """Reads nothing anyway."""


async def delivered(store: Store, carrier: Carrier, *told: object) -> Run:
    """A run whose worker tells this, after its end."""
    backend = FakeBackend(obedient=False)
    async with running(store, backend, transfer=carrier) as runner:
        run = await runner.start(spec(output_uri=URI))
        (await backend.taken()).tell(*told)  # type: ignore[arg-type] # a test's own
        carrier.go_on.set()
        result = await ended(runner, run.run_id)
        for uri, content in carrier.written:
            assert (uri, parsed(content)) == (URI, await executed(store, run.run_id))
        return result


async def test_what_is_written_is_the_notebook_at_its_end(tmp_path: Path) -> None:
    """Whole, with what the worker sent last; the URI is whole there and shown without what follows it."""
    carrier = Carrier()
    run = await delivered(a_store(Store, tmp_path), carrier, *WHOLE)
    assert (run.state, run.output_error, len(carrier.written)) == (S.SUCCEEDED, "", 1)
    assert run.output_uri == "s3://bucket/result?…"
    assert parsed(carrier.written[0][1]).metadata == {"a": 1}


async def test_a_worker_that_dies_has_what_it_told_written(tmp_path: Path) -> None:
    """The text of the cell that went on is in what is written."""
    carrier = Carrier()
    run = await delivered(a_store(Store, tmp_path), carrier, KernelReady(), *cell(0), *cell(1)[:2], DIED)
    assert (run.state, run.output_error) == (S.CRASHED, "")
    assert b"said 1" in carrier.written[0][1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RefusedError("it is not"), "Not uploaded: it is not."),
        (
            OSError(28, "No space left"),
            "Not uploaded: the notebook cannot be written to the state folder: No space left.",
        ),
        (ValueError("secret"), "Not uploaded: internal error; see the server log."),
    ],
)
async def test_whatever_goes_wrong_the_run_ends_as_it_would_have(
    tmp_path: Path, error: Exception, said: str
) -> None:
    """A write that fails, in whatever way, changes nothing but what is said of it."""
    carrier = Carrier()
    carrier.error = error
    run = await delivered(a_store(Store, tmp_path), carrier, *WHOLE)
    assert (run.state, run.failure, run.output_error) == (S.SUCCEEDED, None, said)


@pytest.mark.parametrize("moment", ["before the end", "during the write"])
async def test_a_kill_that_comes_before_the_run_has_ended_ends_it(tmp_path: Path, moment: str) -> None:
    """Also when its worker was done: nothing is written, and the order of its events holds."""
    carrier, backend = Carrier(), FakeBackend(obedient=False)
    async with running(a_store(Store, tmp_path), backend, transfer=carrier) as runner:
        run = await runner.start(spec(output_uri=URI))
        handle = await backend.taken()
        handle.tell(*WHOLE[:-1])
        if moment == "during the write":
            handle.tell(DONE)
            await carrier.begun.wait()
        kill = asyncio.ensure_future(runner.kill(run.run_id, 0.0))
        await reach(runner, run.run_id, S.KILLING)
        if moment == "before the end":
            await handle.asked.wait()
            handle.tell(DONE)
        killed, _ = await kill
        told = await events(runner, run.run_id)
    assert killed.state is S.KILLED
    assert killed.failure is not None
    assert killed.failure.cause is Cause.KILL_REQUESTED
    assert killed.output_error.endswith("the run was killed.")
    assert carrier.written == []
    assert states(told) == [S.QUEUED, S.STARTING, S.RUNNING, S.KILLING, S.KILLED]


async def test_a_write_holds_up_no_reader(tmp_path: Path) -> None:
    """While it goes on the run is RUNNING, all its events are told, and its worker is not free."""
    carrier, backend = Carrier(), FakeBackend(obedient=False)
    store = a_store(Store, tmp_path)
    async with running(store, backend, queue_size=1, transfer=carrier) as runner:
        run = await runner.start(spec(output_uri=URI))
        following = await runner.start(spec())
        (await backend.taken()).tell(*WHOLE)
        await carrier.begun.wait()
        await settled(store)
        found = await runner.find(run.run_id)
        assert (found.state, found.cells_completed, found.output_error) == (S.RUNNING, 2, "")
        assert (await runner.find(following.run_id)).state is S.QUEUED
        carrier.go_on.set()
        (await backend.taken()).tell(KernelReady(), DONE)
        assert (await ended(runner, run.run_id)).state is S.SUCCEEDED
        await ended(runner, following.run_id)
