"""Every way a run can end has its own state and cause, and the next run is fine."""

from typing import Any, NamedTuple

import pytest
from nbformat import NotebookNode

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import artefact, duration, executed, inline, perform
from tests.support.gate import Gate
from tests.support.notebooks import printed
from tests.support.server import Server

pytestmark = pytest.mark.guarantee

FOREVER = "import threading; _ = threading.Event().wait()"
# Long enough for a busy machine to execute a cell that prints, and to start a kernel before.
CELL_SECONDS, RUN_SECONDS = 3.0, 10.0


class Ending(NamedTuple):
    """A last cell, what the request says beside it, and how the run ends."""

    source: str
    state: int
    cause: int
    fields: dict[str, Any] = {}  # noqa: RUF012 - a named tuple's default, never changed
    signal: str = ""
    exit_code: int | None = None


ENDINGS = {
    "exception": Ending("raise ValueError('no')", pb.RUN_STATE_FAILED, pb.FAILURE_CAUSE_CELL_ERROR),
    "system exit": Ending("raise SystemExit(3)", pb.RUN_STATE_FAILED, pb.FAILURE_CAUSE_CELL_ERROR),
    "syntax error": Ending("for", pb.RUN_STATE_FAILED, pb.FAILURE_CAUSE_CELL_ERROR),
    "cell time-out": Ending(
        FOREVER,
        pb.RUN_STATE_TIMED_OUT,
        pb.FAILURE_CAUSE_CELL_TIMEOUT,
        {"cell_timeout": duration(CELL_SECONDS), "run_timeout": duration(60)},
    ),
    "run time-out": Ending(
        FOREVER,
        pb.RUN_STATE_TIMED_OUT,
        pb.FAILURE_CAUSE_RUN_TIMEOUT,
        {"run_timeout": duration(RUN_SECONDS), "cell_timeout": duration(60)},
    ),
    "output time-out": Ending(
        FOREVER,
        pb.RUN_STATE_TIMED_OUT,
        pb.FAILURE_CAUSE_OUTPUT_TIMEOUT,
        {"output_timeout": duration(CELL_SECONDS), "run_timeout": duration(60)},
    ),
    "exit code": Ending(
        "import os; os._exit(7)", pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_KERNEL_EXITED, exit_code=7
    ),
    "signal": Ending(
        "import os; os.kill(os.getpid(), 9)",
        pb.RUN_STATE_CRASHED,
        pb.FAILURE_CAUSE_KERNEL_SIGNALED,
        signal="SIGKILL",
    ),
    "segmentation fault": Ending(
        "import ctypes; ctypes.string_at(0)",
        pb.RUN_STATE_CRASHED,
        pb.FAILURE_CAUSE_KERNEL_SIGNALED,
        signal="SIGSEGV",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_each_ending_is_told_apart(name: str, server: Server) -> None:
    """State, cause, cell, signal and exit code say what it was; the first cell's output is kept."""
    ending = ENDINGS[name]
    request = inline("print('kept')", ending.source, "print('never')", **ending.fields)
    run = perform(server.stub, request).run
    failure = run.failure
    assert (run.state, failure.cause, failure.cell_index) == (ending.state, ending.cause, 1), run
    assert failure.signal == ending.signal
    assert (failure.exit_code if failure.HasField("exit_code") else None) == ending.exit_code
    node = executed(server.stub, run.run_id)
    assert failure.cell_id == node.cells[1].id
    assert printed(node, 0) == "kept\n"
    assert node.cells[2].outputs == []
    _reported(server, run)
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


def _reported(server: Server, run: pb.Run) -> None:
    """The report in plain text holds what the failure holds."""
    report = artefact(server.stub, run.run_id, format="error").decode()
    assert run.failure.message in report
    assert run.failure.traceback.strip() in report


def test_a_failed_cell_keeps_its_own_output(server: Server) -> None:
    """What the failing cell printed before it raised is in the notebook, with the error."""
    run = perform(server.stub, inline("print('before')\n1 / 0")).run
    node = executed(server.stub, run.run_id)
    assert printed(node, 0) == "before\n"
    assert node.cells[0].outputs[-1].ename == "ZeroDivisionError"


def test_a_stopped_cell_keeps_its_output(server: Server, gate: Gate) -> None:
    """What a cell printed before its time was over is in the notebook."""
    request = inline(f"print('before', flush=True)\n{gate.source}", cell_timeout=duration(CELL_SECONDS))
    ended = perform(server.stub, request)
    assert printed(executed(server.stub, ended.run.run_id), 0) == "before\n"
    outcomes = [event.cell_finished.outcome for event in ended.events if event.HasField("cell_finished")]
    assert outcomes == [pb.CELL_OUTCOME_STOPPED]


def test_a_time_limit_that_is_not_reached_changes_nothing(server: Server) -> None:
    """Limits longer than the run, and zero for none, let it succeed."""
    limits = {name: duration(30) for name in ("run_timeout", "cell_timeout", "output_timeout")}
    assert perform(server.stub, inline("1", **limits)).run.state == pb.RUN_STATE_SUCCEEDED
    none = {name: duration(0) for name in limits}
    assert perform(server.stub, inline("1", **none)).run.state == pb.RUN_STATE_SUCCEEDED


def test_every_output_begins_the_output_time_limit_anew(server: Server) -> None:
    """A cell that goes on printing is not silent, however long it takes."""
    source = (
        "import time\nbegin = time.monotonic()\nwhile time.monotonic() - begin < 6:\n    print(1, flush=True)"
    )
    run = perform(server.stub, inline(f"{source}\n    time.sleep(0.2)", output_timeout=duration(5))).run
    assert run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("cells", [[], [""], ["# only a comment"]])
def test_a_notebook_with_nothing_to_do_succeeds(server: Server, cells: list[str | NotebookNode]) -> None:
    """No cells, an empty cell and a comment are all executed to the end."""
    run = perform(server.stub, inline(*cells)).run
    assert (run.state, run.cells_completed) == (pb.RUN_STATE_SUCCEEDED, len(cells))
