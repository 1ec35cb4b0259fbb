"""The JUnit report of `run`, of each kind of end, and whatever a notebook says."""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner import RunSnapshot
from notebook_runner.cli._junit import write_junit
from notebook_runner.events import event_of
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.client.test_cli import command_for
from tests.support.notebooks import markdown, notebook, written
from tests.support.server import Server


class Case(NamedTuple):
    """A notebook, the options of its run, and what the report says."""

    cells: list[object]
    options: list[str]
    counts: tuple[str, str, str]  # tests, failures, errors
    names: list[str]
    end: tuple[str, str] | None = None  # the element, and its type


CASES = {
    "success": Case(
        [markdown("# Text"), "x = 1\nprint(x)", "# second\nx"],
        [],
        ("2", "0", "0"),
        ["cell 2: x = 1", "cell 3: # second"],
    ),
    "exception": Case(
        ["'fine'", "1/0", "'never'"],
        [],
        ("2", "1", "0"),
        ["cell 1: 'fine'", "cell 2: 1/0"],
        ("failure", "ZeroDivisionError"),
    ),
    "time-out": Case(
        ["import threading; threading.Event().wait()"],
        ["--cell-timeout", "1"],
        ("1", "0", "1"),
        ["cell 1: import threading; threading.Event().wait()"],
        ("error", "cell_timeout"),
    ),
    "dead kernel": Case(
        ["import os; os._exit(7)"],
        [],
        ("1", "0", "1"),
        ["cell 1: import os; os._exit(7)"],
        ("error", "kernel_exited"),
    ),
    "no code": Case([markdown("# Text")], [], ("1", "0", "0"), ["run"]),
}


@pytest.mark.e2e
@pytest.mark.parametrize("case", CASES)
def test_report(server: Server, tmp_path: Path, case: str) -> None:
    """A case for each executed cell; a failure for an exception, an error for any other end."""
    cells, options, counts, names, end = CASES[case]
    (tmp_path / "sales.ipynb").write_bytes(written(notebook(*cells)))  # type: ignore[arg-type] # of both kinds
    report = tmp_path / "report.xml"
    command = command_for(server.target)
    done = command("run", tmp_path / "sales.ipynb", "--quiet", "--junit", report, *options)
    assert (done.returncode == 0) == (end is None)
    (suite,) = ET.parse(report).getroot()  # noqa: S314 - made here
    assert suite.get("name") == "sales"
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == counts
    assert [element.get("name") for element in suite.iter("testcase")] == names
    shown = [(one.tag, one.get("type")) for element in suite.iter("testcase") for one in element]
    assert shown == ([end] if end else [])
    if case == "exception":
        (failure,) = suite.iter("failure")
        assert failure.get("message") == "ZeroDivisionError: division by zero"
        assert "1/0" in str(failure.text)


@pytest.mark.e2e
def test_a_report_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    """A missing folder is reported before the run."""
    (tmp_path / "a.ipynb").write_bytes(written(notebook("1")))
    done = command_for(server.target)("run", tmp_path / "a.ipynb", "--junit", tmp_path / "no" / "a.xml")
    assert done.returncode == 2
    assert "does not exist" in done.stderr


TEXT = st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace").decode())


@given(TEXT, TEXT, TEXT, TEXT)
def test_any_text(
    tmp_path_factory: pytest.TempPathFactory, name: str, line: str, kind: str, said: str
) -> None:
    """Whatever a notebook and its exception say, the report is XML and names the cell that failed."""
    report = tmp_path_factory.getbasetemp() / "any.xml"
    failure = pb.Failure(cell_index=0, exception_name=f"E{kind}", exception_message=said, traceback=said)
    run = RunSnapshot(pb.Run(run_id="r", name=name, state=pb.RUN_STATE_FAILED, failure=failure))
    started = pb.ProgressResponse(cell_started=pb.CellStarted(cell_index=0, first_line=line))
    finished = pb.ProgressResponse(
        cell_finished=pb.CellFinished(cell_index=0, outcome=pb.CELL_OUTCOME_FAILED)
    )
    write_junit(report, run, [event_of(started), event_of(finished)])
    (suite,) = ET.parse(report).getroot()  # noqa: S314 - made here
    (case,) = suite.iter("testcase")
    assert str(case.get("name")).startswith("cell 1:")
    assert [one.tag for one in case] == ["failure"]
