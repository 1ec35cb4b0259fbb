"""Notebooks of `tests/cases`: what a run gives, through a real server."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import duration
from tests.support.cases import FOLDER, Case, Outcome, carry_out, cell_text
from tests.support.server import Server


def one_text_for_each_stream(outcome: Outcome) -> None:
    """Texts of a stream that follow each other are one output; events stay as they came."""
    outputs = [(output.name, output.text) for output in outcome.notebook.cells[0].outputs]
    assert outputs == [("stdout", "0\n1\n2\n3\n4\n"), ("stderr", "other\n"), ("stdout", "last\nline\n")]
    # How many there are depends on how fast the text is stored.
    events = [event.cell_output.stream.text for event in outcome.events if event.HasField("cell_output")]
    assert "".join(events) == "".join(text for _, text in outputs)


def only_the_first_cell(outcome: Outcome) -> None:
    """Later cells were not executed."""
    assert [bool(cell.execution_count) for cell in outcome.notebook.cells] == [True, False]
    assert cell_text(outcome.notebook.cells[1]) == ""


def stopped(outcome: Outcome) -> None:
    """The cell is told to have been stopped, however it took the interrupt, and no later one was executed."""
    ended = [event.cell_finished.outcome for event in outcome.events if event.HasField("cell_finished")]
    assert ended == [pb.CELL_OUTCOME_STOPPED]
    only_the_first_cell(outcome)


def shows_where_it_hung(outcome: Outcome) -> None:
    """The traceback of the interrupt is in the notebook and in the failure."""
    stopped(outcome)
    assert outcome.notebook.cells[0].outputs[-1].ename == "KeyboardInterrupt"
    assert "----> 5     time.sleep(1000)" in outcome.run.failure.traceback


def no_earlier_traceback(outcome: Outcome) -> None:
    """The traceback is not that of the exception that an earlier cell was allowed to raise."""
    assert "not this one" not in outcome.run.failure.traceback


def no_word_of_the_sandbox(outcome: Outcome) -> None:
    """What is not the sandbox's doing is not said to be."""
    assert "sandbox" not in outcome.report
    assert "sandbox" not in outcome.text


failed = partial(Case, state=pb.RUN_STATE_FAILED, cause=pb.FAILURE_CAUSE_CELL_ERROR)
# Long enough for a busy machine to come to the line in which a cell hangs.
HUNG_SECONDS = 3.0
timed_out = partial(
    Case,
    state=pb.RUN_STATE_TIMED_OUT,
    cause=pb.FAILURE_CAUSE_CELL_TIMEOUT,
    fields={"cell_timeout": duration(HUNG_SECONDS)},
)
DENIED = ("sandbox (--sandbox) denies '/usr/share/notebook-runner-case'", "--writable-folders")
HANGS: dict[str, Any] = {
    "shows": ("begins\n", "cleans up\n", "KeyboardInterrupt"),
    "check": shows_where_it_hung,
}

CASES = (
    Case("cd-magic", shows=("sub\n", "end\n")),
    failed("write-outside", shows=DENIED, reports=DENIED),
    failed("read-denied", shows=("--sandbox",), reports=("--sandbox",)),
    failed("denied-by-chain", shows=("RuntimeError", *DENIED), reports=DENIED),
    failed("not-denied", check=no_word_of_the_sandbox),
    failed(
        "exception-group",
        reports=("raised ExceptionGroup: unhandled", "ValueError: the cause of it", "in fail"),
    ),
    failed(
        "exception-group-later",
        reports=("KeyError: 'first'", "OSError: second"),
        check=no_earlier_traceback,
    ),
    failed(
        "display-fails",
        reports=("The cell raised LookupError: nothing to show", "----> 6 "),
    ),
    failed(
        "image-missing",
        reports=("The cell raised FileNotFoundError: ", "no-such-picture.png", "Traceback"),
    ),
    timed_out("cell-hangs", **HANGS, reports=("exceeded its time limit of 3 s", "time.sleep(1000)")),
    timed_out(
        "cell-hangs",
        **HANGS,
        cause=pb.FAILURE_CAUSE_RUN_TIMEOUT,
        # With the start of a kernel.
        fields={"run_timeout": duration(10)},
    ),
    timed_out(
        "cell-hangs",
        **HANGS,
        cause=pb.FAILURE_CAUSE_OUTPUT_TIMEOUT,
        fields={"output_timeout": duration(HUNG_SECONDS)},
    ),
    timed_out(
        "cell-swallows-interrupt",
        fields={"cell_timeout": duration(HUNG_SECONDS), "allow_errors": True},
        shows=("goes on\n",),
        check=stopped,
    ),
    pytest.param(
        timed_out(
            "waits-for-input",
            # Long enough for a busy machine to start the shell, for only who reads already can be named.
            fields={"cell_timeout": duration(10)},
            # By whatever is the shell here.
            reports=("waiting for input", "sh' was waiting for input"),
            check=stopped,
        ),
        marks=pytest.mark.long,
    ),
    Case("one-text", check=one_text_for_each_stream),
    Case("exit-zero", shows=("before\n",), check=only_the_first_cell),
    Case("exit-call", shows=("before\n",), check=only_the_first_cell),
    failed(
        "exit-three",
        shows=("before\n",),
        reports=("SystemExit: 3",),
        check=only_the_first_cell,
    ),
    failed("run-broken", reports=("The cell raised ZeroDivisionError", "----> 2 1 / 0")),
    failed(
        "run-exits",
        shows=("in script\n", "in script\n", "goes on\n", "in script\n"),
        reports=("The cell raised SystemExit: 5",),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_case(case: Case, server: Server) -> None:
    """The run ends as it should, and its notebook and its report hold what they should."""
    carry_out(server, case)


def test_the_grace_period_ends(make_server: Callable[..., Server]) -> None:
    """A cell that goes on after the interrupt is killed when the operator's grace period is over."""
    case = timed_out("cell-ignores-interrupt", shows=("goes on\n",), check=stopped)
    carry_out(make_server("--interrupt-grace", "3"), case)


def test_no_grace_period_is_no_interrupt(make_server: Callable[..., Server]) -> None:
    """With zero the cell sees no interrupt, and cleans up nothing."""
    outcome = carry_out(
        make_server("--interrupt-grace", "0"), timed_out("cell-hangs", shows=("begins\n",), check=stopped)
    )
    assert "cleans up" not in outcome.text


def test_each_notebook_has_its_row_and_its_entry() -> None:
    """The table in the folder's README names each notebook, and a test module runs it."""
    notebooks = {path.stem for path in FOLDER.glob("*.ipynb")}
    table = re.findall(r"^\| (`.*?`) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    rows = re.findall(r"`([^`]+)`", " ".join(table))
    modules = "".join(path.read_text() for path in FOLDER.parent.glob("e2e/test_cases*.py"))
    assert sorted(rows) == sorted(notebooks)
    assert {name for name in notebooks if f'"{name}"' not in modules} == set()
