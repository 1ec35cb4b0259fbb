"""Short forms of the calls that most tests make, each with a deadline."""

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from nbformat import NotebookNode

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.notebooks import content, parsed
from tests.support.progress import checked

# Far more than any call of a test takes; a call that needs it hangs.
SECONDS = 60.0


class Ended(NamedTuple):
    """A run that has ended, and all events of it."""

    run: pb.Run
    events: list[pb.ProgressResponse]


def duration(seconds: float) -> Duration:
    """Seconds as the contract carries them."""
    value = Duration()
    value.FromNanoseconds(round(seconds * 1e9))
    return value


def struct(values: dict[str, Any]) -> Struct:
    """Parameters as the contract carries them."""
    value = Struct()
    value.update(values)
    return value


def inline(*cells: str | NotebookNode, **fields: Any) -> pb.StartRequest:
    """A request that brings its own notebook; a string is the source of a code cell."""
    return pb.StartRequest(notebook_content=content(*cells), **fields)


def start(stub: rpc.NotebookRunnerStub, request: pb.StartRequest) -> pb.Run:
    """Starts a run."""
    return stub.Start(request, timeout=SECONDS).run


def follow(
    stub: rpc.NotebookRunnerStub, run_id: str, *, after_terminal: bool = False, **fields: Any
) -> Generator[pb.ProgressResponse, None, None]:
    """The run's events as they come, through the validator."""
    request = pb.ProgressRequest(run_id=run_id, **fields)
    stream = stub.Progress(request, timeout=2 * SECONDS)
    try:
        yield from checked(stream, request, after_terminal=after_terminal)
    finally:
        stream.cancel()


def reach(stub: rpc.NotebookRunnerStub, run_id: str, kind: str, cell: int = 0) -> pb.ProgressResponse:
    """Waits for the first event of this kind (of this cell), and leaves the stream."""
    with closing(follow(stub, run_id)) as events:
        return next(
            event
            for event in events
            if event.HasField(kind)  # type: ignore[arg-type] # a test's literal
            and getattr(getattr(event, kind), "cell_index", cell) == cell
        )


def finish(stub: rpc.NotebookRunnerStub, run_id: str) -> Ended:
    """Follows the run to its end."""
    events = [event for event in follow(stub, run_id) if not event.HasField("heartbeat")]
    return Ended(events[-1].run_changed, events)


def perform(stub: rpc.NotebookRunnerStub, request: pb.StartRequest) -> Ended:
    """Starts a run and follows it to its end."""
    with started(stub, request) as run:
        return finish(stub, run.run_id)


@contextmanager
def started(stub: rpc.NotebookRunnerStub, request: pb.StartRequest) -> Iterator[pb.Run]:
    """Starts a run that is killed at the latest when the test leaves the block."""
    run = start(stub, request)
    try:
        yield run
    finally:
        stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS)


def pages(
    stub: rpc.NotebookRunnerStub, *, timeout: float = SECONDS, **fields: Any
) -> Iterator[pb.OutputResponse]:
    """Every page of an artefact, read as the contract tells a caller to."""
    request = pb.OutputRequest(**fields)
    while True:
        page = stub.Output(request, timeout=timeout)
        assert page.next_offset == request.offset + len(page.content)
        yield page
        if page.next_offset == page.total_bytes:
            return
        assert page.content, "an empty page that is not the last"
        request.offset, request.as_of_sequence = page.next_offset, page.as_of_sequence


def artefact(stub: rpc.NotebookRunnerStub, run_id: str, *, timeout: float = SECONDS, **fields: Any) -> bytes:
    """A whole artefact, with its size and its sum checked."""
    answers = list(pages(stub, timeout=timeout, run_id=run_id, **fields))
    data = b"".join(page.content for page in answers)
    assert {page.total_bytes for page in answers} == {len(data)}
    sums = {page.sha256 for page in answers if page.sha256}
    assert sums <= {hashlib.sha256(data).hexdigest()}
    return data


def executed(stub: rpc.NotebookRunnerStub, run_id: str) -> NotebookNode:
    """The notebook as far as it was executed."""
    return parsed(artefact(stub, run_id))


def texts(events: list[pb.ProgressResponse], name: str = "stdout") -> str:
    """All text of one stream that the events carry."""
    outputs = [event.cell_output.stream for event in events if event.HasField("cell_output")]
    return "".join(stream.text for stream in outputs if stream.name == name)


def listed(stub: rpc.NotebookRunnerStub) -> Iterator[pb.ListResponse]:
    """All runs, newest first, page by page."""
    request = pb.ListRequest(page_size=1000)
    while True:
        answer = stub.List(request, timeout=SECONDS)
        yield answer
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token


def history(stub: rpc.NotebookRunnerStub) -> list[str]:
    """The ids of all runs, newest first."""
    return [run.run_id for page in listed(stub) for run in page.runs]
