"""One execution on either side, timed."""

import subprocess
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nbclient import NotebookClient
from nbformat import NotebookNode

from benchmarks.notebooks import outputs, read, written
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

CALL_SECONDS = 120.0
# What happens last in a cell: the kernel has answered, and it is idle.
LAST = ("shell.execute_reply", "iopub.status.idle")


@dataclass(frozen=True)
class Sample:
    """How long one execution took, what came out, and how late its events were, in seconds."""

    seconds: float
    outputs: list[Any]
    finished_late: list[float] = field(default_factory=list)
    text_late: list[float] = field(default_factory=list)


def with_nbclient(node: NotebookNode) -> Sample:
    """Executes a notebook as a program does that calls nbclient: a new kernel, used once."""
    copy = read(written(node))
    begin = time.perf_counter()
    NotebookClient(copy).execute(stderr=subprocess.DEVNULL)
    return Sample(time.perf_counter() - begin, outputs(copy))


def with_service(stub: rpc.NotebookRunnerStub, node: NotebookNode) -> Sample:
    """The same through the service: from the call of Start until the terminal event is here."""
    data = written(node)
    begin = time.perf_counter()
    run = stub.Start(pb.StartRequest(notebook_content=data), timeout=CALL_SECONDS).run
    stream = stub.Progress(pb.ProgressRequest(run_id=run.run_id), timeout=CALL_SECONDS)
    events = [(time.time(), event) for event in stream]
    seconds = time.perf_counter() - begin
    ended = events[-1][1].run_changed
    if ended.state != pb.RUN_STATE_SUCCEEDED:
        raise RuntimeError(f"the run did not succeed: {ended}")
    executed = read(_content(stub, run.run_id))
    return Sample(seconds, outputs(executed), _finished_late(events, executed), _text_late(events))


def _content(stub: rpc.NotebookRunnerStub, run_id: str) -> bytes:
    data = b""
    while True:
        page = stub.Output(pb.OutputRequest(run_id=run_id, offset=len(data)), timeout=CALL_SECONDS)
        data += page.content
        if page.next_offset == page.total_bytes:
            return data


Arrivals = list[tuple[float, pb.ProgressResponse]]


def _finished_late(events: Arrivals, executed: NotebookNode) -> list[float]:
    """From the kernel's last message about a cell to the event that tells the cell's end."""
    late = []
    for here, event in events:
        if event.HasField("cell_finished"):
            times = executed.cells[event.cell_finished.cell_index].metadata.execution
            ended = max(datetime.fromisoformat(times[name]).timestamp() for name in LAST)
            late.append(here - ended)
    return late


def _text_late(events: Arrivals) -> list[float]:
    """From the print in the kernel to the event that carries its text."""
    texts = [(here, event.cell_output.stream.text) for here, event in events if event.HasField("cell_output")]
    return [here - int(text.split()[0]) / 1e9 for here, text in texts if " cell " in text]
