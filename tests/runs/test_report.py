"""The `error` format: a report of how a run ended, or of where it is, for a person."""

import pytest
from hypothesis import given

from notebook_runner_server.execution.interface import Cause, Failure
from notebook_runner_server.runs.model import Run, RunState
from notebook_runner_server.runs.report import report
from tests.runs.samples import a_run, runs

SECOND = 1_000_000_000


def test_a_failed_run_is_reported_with_its_traceback() -> None:
    """Every line that somebody who reads it needs, in one order, with times in UTC."""
    failure = Failure(
        Cause.CELL_ERROR,
        "The cell raised ValueError: no",
        cell_index=1,
        cell_id="abc",
        traceback="Traceback:\n  line\nValueError: no\n\n",
    )
    run = a_run(
        RunState.FAILED,
        run_id="the-run",
        notebook_path="a/b.ipynb",
        create_time=SECOND,
        start_time=2 * SECOND,
        end_time=3 * SECOND + 4_000_000,
        cells_completed=1,
        failure=failure,
    )
    assert report(run) == (
        "Run       the-run\n"
        "State     FAILED\n"
        "Notebook  a/b.ipynb\n"
        "Kernel    python3\n"
        "Created   1970-01-01T00:00:01.000+00:00\n"
        "Started   1970-01-01T00:00:02.000+00:00\n"
        "Ended     1970-01-01T00:00:03.004+00:00\n"
        "Took      1.004 s\n"
        "Cells     1 of 2 completed\n"
        "Cause     CELL_ERROR\n"
        "In        cell 2 of 2 (index 1, id abc)\n"
        "\n"
        "The cell raised ValueError: no\n"
        "\n"
        "Traceback:\n"
        "  line\n"
        "ValueError: no\n"
    )


def test_a_queued_run_has_a_report_too() -> None:
    """Times that have not come are dashes, an inline notebook says so, and no cause is made up."""
    lines = report(a_run(RunState.QUEUED)).splitlines()
    assert lines[2:8] == [
        "Notebook  (sent inline)",
        "Kernel    python3",
        "Created   1970-01-01T00:00:00.000+00:00",
        "Started   -",
        "Ended     -",
        "Took      -",
    ]
    assert len(lines) == 9


@pytest.mark.parametrize("error", ["", "Not uploaded: the run was killed."])
def test_the_report_says_where_the_notebook_came_from_and_went_to(error: str) -> None:
    """By URI, and why it is not there when it is not."""
    run = a_run(notebook_uri="https://host/a", output_uri="s3://bucket/b", output_error=error)
    lines = report(run).splitlines()
    assert lines[2] == "Notebook  https://host/a"
    assert lines[9:] == ["Output    s3://bucket/b", *([error] if error else [])]


def test_times_are_exact() -> None:
    """To the millisecond, also of a run that took weeks."""
    start = 1_767_225_600 * SECOND
    run = a_run(RunState.SUCCEEDED, create_time=start, start_time=start, end_time=start + 2_000_000 * SECOND)
    text = report(run)
    assert "\nCreated   2026-01-01T00:00:00.000+00:00\n" in text
    assert "\nTook      2000000.000 s\n" in text


def test_a_run_that_goes_on_has_taken_no_time_yet() -> None:
    """How long it took is said at its end; a run that never started took none."""
    assert "\nTook      -\n" in report(a_run(RunState.RUNNING, start_time=SECOND))
    assert "\nTook      -\n" in report(a_run(RunState.KILLED, end_time=SECOND))


@pytest.mark.parametrize("index", [0, 1])
def test_a_cell_without_an_id_is_named_by_its_place(index: int) -> None:
    """People count from one, and a cell of an old notebook has no id to show."""
    failure = Failure(Cause.WORKER_DIED, "gone", cell_index=index)
    text = report(a_run(RunState.CRASHED, failure=failure))
    assert text.endswith(f"\nIn        cell {index + 1} of 2 (index {index})\n\ngone\n")


@given(runs)
def test_every_run_can_be_reported(run: Run) -> None:
    """Whatever is in a run, there is a report that names it."""
    text = report(run)
    assert run.run_id in text
    assert run.state.name in text
