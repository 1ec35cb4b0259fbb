"""The process pool with real kernels: what it tells, what it survives, and what it leaves behind."""

import json
import math
import time
from collections.abc import Sequence
from itertools import groupby
from uuid import uuid4

import pytest

from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    Ended,
    ExecutionEvent,
)
from notebook_runner_server.execution.segments import TAIL
from tests.execution.pools import CHILDREN, FOR_EVER, Pool, end, everything, said, segments
from tests.support.gate import Gate
from tests.support.notebooks import markdown
from tests.support.processes import is_alive, marked

pytestmark = pytest.mark.integration


def kept(events: Sequence[ExecutionEvent], cell: int) -> str:
    """All text in a cell's segment."""
    outputs = json.loads(dict(segments(events))[cell])["outputs"]
    return "".join("".join(output.get("text", [])) for output in outputs)


def test_events_come_in_order_and_the_segments_are_the_notebook(pool: Pool) -> None:
    """The kernel, then each code cell with its start, text, segment and end, then the tail and the end."""
    events = pool.run("print('one')", markdown("text"), "", "import sys; print('two', file=sys.stderr)\n3")
    # A text and its line end may come in two messages.
    kinds = [kind for kind, _ in groupby(type(event).__name__ for event in events)]
    cell = ["CellStarted", "StreamOutput", "SegmentChunk", "CellFinished"]
    last = ["CellStarted", "StreamOutput", "DisplayOutput", "SegmentChunk", "CellFinished"]
    assert kinds == ["KernelReady", *cell, *last, "SegmentChunk", "Ended"]
    assert [number for number, _ in segments(events)] == [0, 3, TAIL]
    assert end(events).failure is None
    finished = [event for event in events if isinstance(event, CellFinished)]
    assert [(one.cell_index, one.execution_count, one.outcome) for one in finished] == [
        *((0, 1, CellOutcome.SUCCEEDED), (3, 2, CellOutcome.SUCCEEDED)),
    ]
    assert all(0 <= one.duration < 60 for one in finished)
    assert said(events) == "one\ntwo\n"


def test_what_comes_before_a_cells_start_comes_with_it(pool: Pool) -> None:
    """The kernel, and the end of the cell before: each message wakes the server, and is a commit."""

    async def batches() -> list[list[str]]:
        handle = await pool.submit("1", "2")
        return [[type(event).__name__ for event in batch] async for batch in handle.events()]

    received = pool.do(batches())
    assert sum(batch.count("CellStarted") for batch in received) == 2
    assert received[0][:2] == ["KernelReady", "CellStarted"]
    assert not [batch for batch in received if batch[0] == "CellStarted"]


LATE = """
import time
kernel = get_ipython().kernel
def late():
    kernel.post_handler_hook = ordinary
    for number in range(11):
        print(number, flush=True)
        time.sleep(0.5)
ordinary, kernel.post_handler_hook = kernel.post_handler_hook, late
"""


def test_output_that_comes_long_after_the_reply_is_kept(pool: Pool) -> None:
    """A kernel that has replied may have much on the way; nbclient leaves out what takes more than 4 s."""
    events = pool.run(LATE, "print('next')")
    assert said(events).split() == [*map(str, range(11)), "next"]
    assert kept(events, 0).split() == [*map(str, range(11))]


def test_text_comes_while_the_cell_still_runs(pool: Pool, gate: Gate) -> None:
    """What was printed is told before the cell has ended."""

    async def scenario() -> list[ExecutionEvent]:
        handle = await pool.submit(f"print('before', flush=True)\n{gate.source}\nprint('after')")
        events: list[ExecutionEvent] = []
        async for batch in handle.events():
            events += batch
            if said(events) == "before\n" and not isinstance(events[-1], CellFinished):
                gate.open()
        return events

    assert said(pool.do(scenario())) == "before\nafter\n"


def test_a_cell_that_raises_ends_the_run(pool: Pool) -> None:
    """The failure names the cell and the exception, and its traceback is plain text."""
    events = pool.run("1", "def f():\n    raise ValueError('no ä')\nf()", "'never'")
    failure = end(events).failure
    assert failure is not None
    assert (failure.cause, failure.cell_index) == (Cause.CELL_ERROR, 1)
    assert (failure.exception_name, failure.exception_message) == ("ValueError", "no ä")
    assert "\x1b" not in failure.traceback
    assert "in f()" in failure.traceback
    assert [number for number, _ in segments(events)] == [0, 1, TAIL]


def test_no_run_sees_the_one_before(pool: Pool) -> None:
    """Names, environment, modules and history: each run has a kernel that nobody used before."""
    first = pool.run("a = 1\nimport os, sys; os.environ['LEFT'] = 'x'; sys.left = 1", "print(os.getpid())")
    second = pool.run("import os, sys\nprint('a' in globals(), 'LEFT' in os.environ, hasattr(sys, 'left'))")
    assert end(first).failure is end(second).failure is None
    assert said(second) == "False False False\n"
    assert not is_alive(int(said(first)))


def test_the_environment_is_the_jobs(pool: Pool) -> None:
    """Its variables are there, the run's own are told, and the next run has none of them."""
    source = "import os; print(os.environ.get('GIVEN'), 'NOTEBOOK_RUNNER_RUN_DIR' in os.environ)"
    assert said(pool.run(source, environment={"GIVEN": "ä b"})) == "ä b True\n"
    assert said(pool.run(source)) == "None True\n"


def test_no_process_outlives_its_run(pool: Pool) -> None:
    """Children of all kinds go with a run that ends by itself, and are counted."""
    mark = uuid4().hex
    events = pool.run(CHILDREN, environment={"NBR_RUN_MARK": mark})
    assert end(events).failure is None
    assert end(events).processes_ended >= 4
    assert marked(mark) == {}


@pytest.mark.parametrize("grace", [0.0, 3600.0])
def test_a_run_can_be_stopped(pool: Pool, gate: Gate, grace: float) -> None:
    """At once, or after the cell saw an interrupt; what it printed until then is in its segment."""
    mark = uuid4().hex
    source = (
        f"{CHILDREN}\ntry:\n    print('here', flush=True)\n    {gate.source}\nfinally:\n    print('cleaned')"
    )

    async def scenario() -> list[ExecutionEvent]:
        handle = await pool.submit(source, "'never'", environment={"NBR_RUN_MARK": mark})
        events: list[ExecutionEvent] = []
        was_said = False
        async for batch in handle.events():
            events += batch
            # The line end may come in a message of its own.
            if not was_said and said(events) == "here\n":
                was_said = True
                handle.stop(Cause.KILL_REQUESTED, grace)
        handle.stop(Cause.KILL_REQUESTED, 0.0)
        return events

    events = pool.do(scenario())
    failure = end(events).failure
    assert failure is not None
    assert (failure.cause, failure.cell_index) == (Cause.KILL_REQUESTED, 0)
    text = "here\ncleaned\n" if grace else "here\n"
    assert said(events) == kept(events, 0) == text
    assert marked(mark) == {}
    assert pool.run("1")[-1] == Ended(None, 1)


def test_a_run_ends_at_its_deadline(pool: Pool) -> None:
    """The server that does not move it in time has lost the run, and not the worker."""
    mark = uuid4().hex
    before = pool.backend.worker_deaths

    async def scenario() -> list[ExecutionEvent]:
        handle = await pool.submit(FOR_EVER, environment={"NBR_RUN_MARK": mark})
        events: list[ExecutionEvent] = []
        was_said = False
        async for batch in handle.events():
            events += batch
            # The line end may come in a message of its own.
            if not was_said and said(events) == "here\n":
                was_said = True
                pool.backend.set_deadline(time.monotonic())
        return events

    events = pool.do(scenario())
    failure = end(events).failure
    assert failure is not None
    assert (failure.cause, failure.cell_index) == (Cause.SERVER_DIED, 0)
    assert "deadline" in failure.message
    assert said(events) == kept(events, 0) == "here\n"
    assert marked(mark) == {}
    pool.backend.set_deadline(math.inf)
    assert end(pool.run("1")).failure is None
    assert pool.backend.worker_deaths == before


def test_an_order_that_overtakes_its_job_is_kept(pool: Pool) -> None:
    """A run that is stopped in the moment of its submission ends, and its successor does not."""

    async def scenario() -> Ended:
        handle = await pool.submit("import time; time.sleep(10000)")
        handle.stop(Cause.KILL_REQUESTED, 0.0)
        return end(await everything(handle))

    for _ in range(3):
        failure = pool.do(scenario()).failure
        assert failure is not None
        assert failure.cause is Cause.KILL_REQUESTED
    assert end(pool.run("1")).failure is None
