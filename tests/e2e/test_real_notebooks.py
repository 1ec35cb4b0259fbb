"""Notebooks that others wrote: what the server gives equals what nbclient gives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from nbformat import NotebookNode

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import duration, executed, finish, perform, started
from tests.support.notebooks import normalised
from tests.support.public_notebooks import folder
from tests.support.reference import Reference
from tests.support.server import Server

pytestmark = pytest.mark.long

FOLDER = folder("nbclient")
PARALLEL = ("Parallel Execute A", "Parallel Execute B")
PARALLEL_FOLDER = "NBEXECUTE_TEST_PARALLEL_TMPDIR"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb") if path.stem not in PARALLEL)


class Case(NamedTuple):
    """How to execute a notebook on both sides, and how it ends."""

    options: dict[str, Any] = {}  # noqa: RUF012 - a named tuple's default, never changed
    fields: dict[str, Any] = {}  # noqa: RUF012 - the same
    error: str = ""
    state: int = pb.RUN_STATE_SUCCEEDED
    cause: int = pb.FAILURE_CAUSE_UNSPECIFIED
    torn: bool = False


CELL_ERROR = Case(error="CellExecutionError", state=pb.RUN_STATE_FAILED, cause=pb.FAILURE_CAUSE_CELL_ERROR)
CASES = {
    "Autokill": Case(
        error="DeadKernelError",
        state=pb.RUN_STATE_CRASHED,
        cause=pb.FAILURE_CAUSE_KERNEL_SIGNALED,
        torn=True,
    ),
    "Disable Stdin": CELL_ERROR,
    "Error": CELL_ERROR,
    "Interrupt": Case(
        # Long enough for a busy machine to come to the line in which it is interrupted.
        options={"timeout": 3, "interrupt_on_timeout": True},
        fields={"cell_timeout": duration(3)},
        error="CellExecutionError",
        state=pb.RUN_STATE_TIMED_OUT,
        cause=pb.FAILURE_CAUSE_CELL_TIMEOUT,
    ),
    "Skip Exceptions": Case(options={"allow_errors": True}, fields={"allow_errors": True}),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose notebook root is the folder of these notebooks, with two workers."""
    options = ["--notebook-root", str(FOLDER), "--workers", "2"]
    with Server(tmp_path_factory.mktemp("state"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> Iterator[Reference]:
    """Nbclient itself."""
    with Reference() as running:
        yield running


def by_path(name: str, **fields: Any) -> pb.StartRequest:
    """A request for one of the notebooks."""
    return pb.StartRequest(notebook_path=f"{name}.ipynb", **fields)


def without_earlier_outputs(node: NotebookNode) -> NotebookNode:
    """Nbclient keeps earlier outputs of cells that it does not execute; papermill clears them."""
    for cell in node.cells:
        if cell.cell_type == "code" and "execution" not in cell.metadata:
            cell.outputs, cell.execution_count = [], None
    return node


def test_the_notebooks_are_there() -> None:
    """The folder holds what these tests were written for."""
    assert len(NAMES) == 21
    assert set(CASES) < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_equals_nbclient_each_time(name: str, shelf: Server, reference: Reference) -> None:
    """Two runs end alike, and leave the notebook that nbclient leaves."""
    case = CASES.get(name, Case())
    # The server ends kernels at once, so nbclient does here.
    expected = reference.execute(FOLDER / f"{name}.ipynb", shutdown_kernel="immediate", **case.options)
    assert expected.error == case.error
    whole = normalised(without_earlier_outputs(expected.notebook), torn=case.torn)
    for _ in range(2):
        run = perform(shelf.stub, by_path(name, **case.fields)).run
        assert (run.state, run.failure.cause) == (case.state, case.cause), run
        assert normalised(executed(shelf.stub, run.run_id), torn=case.torn) == whole


def test_two_notebooks_run_at_once_as_with_nbclient(shelf: Server, tmp_path: Path) -> None:
    """Each of two notebooks that wait for one another sees the other, on both sides."""
    theirs, ours = tmp_path / "nbclient", tmp_path / "server"
    theirs.mkdir()
    ours.mkdir()
    paths = [patient(name, tmp_path) for name in PARALLEL]
    first, second = (
        pb.StartRequest(notebook_content=path.read_bytes(), environment={PARALLEL_FOLDER: str(ours)})
        for path in paths
    )
    with started(shelf.stub, first) as one, started(shelf.stub, second) as two:
        runs = [finish(shelf.stub, run.run_id).run for run in (one, two)]
    assert [run.state for run in runs] == [pb.RUN_STATE_SUCCEEDED] * 2
    expected = _both_with_nbclient(theirs, paths)
    assert [normalised(executed(shelf.stub, run.run_id)) for run in runs] == expected


def patient(name: str, folder: Path) -> Path:
    """A copy of a notebook that waits a minute for the other one: a busy machine starts that later."""
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert text.count("timeout = 5") == 1
    copy = folder / f"{name}.ipynb"
    copy.write_text(text.replace("timeout = 5", "timeout = 60"))
    return copy


def _both_with_nbclient(folder: Path, paths: list[Path]) -> list[dict[str, Any]]:
    environment = {PARALLEL_FOLDER: str(folder)}
    with Reference(environment) as one, Reference(environment) as two:
        for each, path in zip((one, two), paths, strict=True):
            each.ask(path, shutdown_kernel="immediate")
        answers = [one.answer(), two.answer()]
    assert [answer.error for answer in answers] == ["", ""]
    return [normalised(answer.notebook) for answer in answers]


def test_the_failure_is_told_in_text(shelf: Server) -> None:
    """A cell that raises is told with its place, its exception and a traceback without colours."""
    failure = perform(shelf.stub, by_path("Error")).run.failure
    assert (failure.cell_index, failure.exception_name) == (0, "ZeroDivisionError")
    assert failure.exception_message == "division by zero"
    assert "ZeroDivisionError: division by zero" in failure.traceback
    assert "0 / 0" in failure.traceback
    assert "\x1b" not in failure.traceback


def test_a_question_to_the_user_is_an_error(shelf: Server) -> None:
    """Nobody answers input(), so the cell raises what it raises in nbclient."""
    failure = perform(shelf.stub, by_path("Disable Stdin")).run.failure
    assert failure.exception_name == "StdinNotImplementedError"


def test_a_kernel_that_kills_itself_is_told_with_its_signal(shelf: Server) -> None:
    """A kernel that was ended by a signal is no failed cell, and the signal is named."""
    failure = perform(shelf.stub, by_path("Autokill")).run.failure
    assert (failure.cause, failure.signal) == (pb.FAILURE_CAUSE_KERNEL_SIGNALED, "SIGTERM")
    assert not failure.HasField("exit_code")
