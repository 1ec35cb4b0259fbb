"""Time one execution of a notebook by this service, over gRPC."""

import time
from collections.abc import Iterator

from nbformat import NotebookNode

from benchmarks.competitors import SECONDS, Sample
from benchmarks.notebooks import outputs, read, written
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

NAME = "this service"


class Service:
    """Execute notebooks on a server.

    Args:
        stub: The stub for the server.
    """

    def __init__(self, stub: rpc.NotebookRunnerStub) -> None:
        self.stub = stub

    def __call__(self, node: NotebookNode) -> Sample:
        """Measure the time from the call of Start to the terminal event."""
        data = written(node)
        begin = time.perf_counter()
        run = self.start(data)
        events = list(self.follow(run.run_id))
        seconds = time.perf_counter() - begin
        first = next((at for at, event in events if event.HasField("cell_started")), 0.0)
        last = max((at for at, event in events if event.HasField("cell_finished")), default=0.0)
        return Sample(seconds, outputs(read(self.notebook(run.run_id))), last - first)

    def start(self, notebook: bytes) -> pb.Run:
        """Start a run."""
        return self.stub.Start(pb.StartRequest(notebook_content=notebook), timeout=SECONDS).run

    def follow(self, run_id: str) -> Iterator[tuple[float, pb.ProgressResponse]]:
        """Yield every event with its arrival time, in seconds of the system's clock."""
        for event in self.stub.Progress(pb.ProgressRequest(run_id=run_id), timeout=SECONDS):
            yield time.time(), event
        if event.run_changed.state != pb.RUN_STATE_SUCCEEDED:
            raise RuntimeError(f"the run did not succeed: {event}")

    def notebook(self, run_id: str) -> bytes:
        """Return the executed notebook."""
        return b"".join(self.pages(run_id))

    def artefact(self, run_id: str, to: str) -> bytes:
        """Return the result of a run in a format."""
        return b"".join(self.pages(run_id, to=to))

    def pages(self, run_id: str, page: int = 0, to: str = "") -> Iterator[bytes]:
        """Read an artefact page by page, with pages of this many bytes (0: the server's default)."""
        request = pb.OutputRequest(run_id=run_id, max_bytes=page, format=to)
        while True:
            answer = self.stub.Output(request, timeout=SECONDS)
            yield answer.content
            if answer.next_offset == answer.total_bytes:
                return
            request.offset, request.as_of_sequence = answer.next_offset, answer.as_of_sequence
