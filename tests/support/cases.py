"""Cases: small notebooks under `tests/cases` that went wrong once, each with its right value.

A case is one entry of a table in a test module; `carry_out` runs it through a real server and checks what
must hold for each of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import artefact, executed, perform
from tests.support.server import Server

FOLDER = Path(__file__).parents[1] / "cases"


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        run: The run as it ended.
        events: Its events.
        notebook: The executed notebook.
        report: The run's report in plain text (format `error`).
    """

    run: pb.Run
    events: list[pb.ProgressResponse]
    notebook: NotebookNode
    report: str

    @property
    def text(self) -> str:
        """All text in the outputs of the executed notebook: streams, plain text of results, tracebacks."""
        return "\n".join(cell_text(cell) for cell in self.notebook.cells)


@dataclass(frozen=True)
class Case:
    """One notebook, how it is started, and what is right.

    Attributes:
        file: The name of the notebook in `tests/cases`, without its suffix.
        state: The state in which the run ends.
        cause: The cause of its failure.
        fields: Fields of the request beside the notebook.
        shows: Texts that the outputs of the executed notebook contain, in this order.
        reports: Texts that the report in plain text contains.
        check: Called with the outcome, for what texts cannot say.
    """

    file: str
    state: int = pb.RUN_STATE_SUCCEEDED
    cause: int = pb.FAILURE_CAUSE_UNSPECIFIED
    fields: Mapping[str, Any] = field(default_factory=dict)
    shows: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    check: Callable[[Outcome], None] | None = None

    @property
    def content(self) -> bytes:
        """The notebook."""
        return (FOLDER / f"{self.file}.ipynb").read_bytes()


def carry_out(server: Server, case: Case) -> Outcome:
    """Runs a case, and checks its state, its cause, its texts, and what its own function checks."""
    ended = perform(server.stub, pb.StartRequest(notebook_content=case.content, **case.fields))
    run_id = ended.run.run_id
    report = artefact(server.stub, run_id, format="error").decode()
    outcome = Outcome(ended.run, ended.events, executed(server.stub, run_id), report)
    assert (ended.run.state, ended.run.failure.cause) == (case.state, case.cause), report
    at = 0
    for text in case.shows:
        at = outcome.text.find(text, at)
        assert at >= 0, f"{text!r} is missing, or out of order, in: {outcome.text}"
        at += len(text)
    for text in case.reports:
        assert text in report, report
    if case.check is not None:
        case.check(outcome)
    return outcome


def cell_text(cell: NotebookNode) -> str:
    """All text in the outputs of one cell."""
    return "".join(_output_text(output) for output in cell.get("outputs", []))


def _output_text(output: NotebookNode) -> str:
    match output.output_type:
        case "stream":
            return str(output.text)
        case "error":
            return "\n".join([*output.traceback, f"{output.ename}: {output.evalue}"])
        case _:
            return str(output.data.get("text/plain", ""))
