"""Who watches runs is told what readers are shown, but output, and cannot disturb them."""

from pathlib import Path

import pytest

from notebook_runner_server.execution.interface import CellFinished, CellStarted, Ended, KernelReady
from notebook_runner_server.runs.model import Event, RunChanged, RunState, TraceContext
from notebook_runner_server.runs.observer import RunContext
from notebook_runner_server.runs.store import Store
from tests.runs.fakes import WHOLE, FakeBackend, ended, running, spec
from tests.runs.stores import a_store

ORIGIN = TraceContext("call", "parent", "state")


class Witness:
    """Keeps what it is told, and then says that it cannot."""

    def __init__(self) -> None:
        self.courses: set[RunContext] = set()
        self.told: list[object] = []

    def on_event(self, run_context: RunContext, event: Event) -> None:
        """Keeps the state, or what became of a cell, and fails."""
        self.courses.add(run_context)
        body = event.body
        self.told.append(body.run.state if isinstance(body, RunChanged) else type(body))
        raise ValueError("the witness fails")

    def on_left(self, run_context: RunContext) -> None:
        """Is told of no run that leaves: there is one server."""


async def test_what_observers_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """States and cells in order, without output; what observers raise is logged, and the run goes on."""
    witness, second = Witness(), Witness()

    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, observers=[witness, second]) as runner:
        started = await runner.start(spec(environment={"A": "b"}), ORIGIN)
        handle = await backend.taken()
        assert handle.job.environment == {"A": "b", "TRACEPARENT": "parent", "TRACESTATE": "state"}
        handle.tell(KernelReady(is_warm=True), *WHOLE[1:-1], Ended(None, 3, 1000, 1.5))
        last = await ended(runner, started.run_id)
        assert (last.state, last.peak_memory_bytes, last.cpu_seconds) == (RunState.SUCCEEDED, 1000, 1.5)
    cells = [CellStarted, CellFinished] * 2
    states = [RunState.QUEUED, RunState.STARTING, RunState.RUNNING, *cells, RunState.SUCCEEDED]
    assert witness.told == second.told == states
    (run_context,) = witness.courses
    assert (run_context.is_warm, run_context.processes_ended) == (True, 3)
    assert (run_context.peak_memory_bytes, run_context.cpu_seconds) == (1000, 1.5)
    assert run_context.output_bytes == len("said 0\nsaid 1\n")
    assert 0 < run_context.starting <= run_context.ready
    failed = [record for record in caplog.records if record.message == "observer_failed"]
    assert len(failed) == 2 * len(states)
    assert {record.__dict__["request_id"] for record in failed} == {"call"}


async def test_a_queued_run_keeps_its_origin(tmp_path: Path) -> None:
    """A run that waits for the next server is new to its observers, with the call that it came from."""
    witness = Witness()

    async with running(a_store(Store, tmp_path), FakeBackend(), 1) as runner:
        await runner.start(spec())
        waiting = await runner.start(spec(), ORIGIN)
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, observers=[witness]) as runner:
        (await backend.taken(waiting.run_id)).tell(*WHOLE)
        await ended(runner, waiting.run_id)
    (run_context,) = witness.courses
    assert run_context.origin == ORIGIN
    assert witness.told[0] is RunState.QUEUED
