"""A server that answers as a test tells it to, for what a real one cannot do on demand."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from typing_extensions import override

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1.notebook_runner_pb2_grpc import (
    NotebookRunnerServicer,
    add_NotebookRunnerServicer_to_server,
)

WAIT_SECONDS = 60.0
RUNNING = pb.Run(run_id="r", state=pb.RUN_STATE_RUNNING)
ENDED = pb.Run(run_id="r", state=pb.RUN_STATE_SUCCEEDED)
FAILED = pb.Run(run_id="r", state=pb.RUN_STATE_FAILED, failure=pb.Failure(message="no"))
Collect = Callable[..., list[Any]]  # calls a method of a client, and gives what it answers
Answer = Any  # a message, a callable that makes one, or the status code or refusal to end with


@dataclass(frozen=True)
class CallStatus:
    """A status with details, as a server of the contract answers it."""

    code: grpc.StatusCode
    details: bytes


def refusal(code_: grpc.StatusCode, reason: str, message: str, **metadata: str) -> CallStatus:
    """A status as the server answers it."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(domain="notebook-runner", reason=reason, metadata=metadata))
    status = status_pb2.Status(code=code_.value[0], message=message, details=[detail])
    return CallStatus(code_, status.SerializeToString())


def changed(sequence: int, run: pb.Run) -> pb.ProgressResponse:
    """The event of a new state."""
    return pb.ProgressResponse(sequence=sequence, run_changed=run)


def beat(sequence: int) -> pb.ProgressResponse:
    """A heartbeat."""
    return pb.ProgressResponse(sequence=sequence, heartbeat=pb.Heartbeat())


def printed(sequence: int) -> pb.ProgressResponse:
    """An event of a cell's output."""
    return pb.ProgressResponse(sequence=sequence, cell_output=pb.CellOutput())


class FakeServer(NotebookRunnerServicer):
    """Answers each call with the next answer of its script, and keeps what it was asked, and until when.

    With credentials it serves by TLS.
    """

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self._credentials = credentials
        self.script: dict[str, deque[list[Answer]]] = {}
        self.asked: list[Any] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.seconds_left: list[float] = []
        self._port = 0
        self.serve()

    def serve(self) -> None:
        """Starts serving, again at the same address."""
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_NotebookRunnerServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self._port}"
        if self._credentials:
            self._port = self._server.add_secure_port(address, self._credentials)
        else:
            self._port = self._server.add_insecure_port(address)
        self._server.start()

    def stop(self) -> None:
        """Drops all connections."""
        self._server.stop(None).wait(WAIT_SECONDS)

    def restart(self) -> None:
        """Drops all connections, and serves again."""
        self.stop()
        self.serve()

    @property
    def target(self) -> str:
        """The address."""
        return f"127.0.0.1:{self._port}"

    def answers(self, method: str, *answers: Answer) -> None:
        """Adds what the next call of this method is answered with."""
        self.script.setdefault(method, deque()).append(list(answers))

    def _next(self, method: str, request: Any, context: Any) -> Iterator[Any]:
        # A list that a client reuses must not change what was asked before.
        self.asked.append(type(request).FromString(request.SerializeToString()))
        self.metadata.append(dict(context.invocation_metadata()))
        self.seconds_left.append(context.time_remaining())
        for answer in self.script[method].popleft():
            if isinstance(answer, grpc.StatusCode):
                context.abort(answer, "scripted")
            if isinstance(answer, CallStatus):
                context.set_trailing_metadata((("grpc-status-details-bin", answer.details),))
                context.abort(answer.code, "scripted")
            yield answer() if callable(answer) else answer

    @override
    def Watch(self, request: Any, context: Any) -> Iterator[Any]:
        """Answers as scripted."""
        yield from self._next("Watch", request, context)

    @override
    def Start(self, request: Any, context: Any) -> Any:
        """Answers as scripted."""
        return next(self._next("Start", request, context))

    @override
    def Progress(self, request: Any, context: Any) -> Any:
        """Answers as scripted."""
        return self._next("Progress", request, context)

    @override
    def Output(self, request: Any, context: Any) -> Any:
        """Answers as scripted."""
        return next(self._next("Output", request, context))

    @override
    def Kill(self, request: Any, context: Any) -> Any:
        """Answers as scripted."""
        return next(self._next("Kill", request, context))

    @override
    def List(self, request: Any, context: Any) -> Any:
        """Answers as scripted."""
        return next(self._next("List", request, context))

    @override
    def Get(self, request: Any, context: Any) -> Any:
        """Answers as scripted; without a script, as a server that does not know the method."""
        if not self.script.get("Get"):
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no script")
        return next(self._next("Get", request, context))

    @override
    def Delete(self, request: Any, context: Any) -> Any:
        """Answers as scripted."""
        return next(self._next("Delete", request, context))

    @override
    def Info(self, request: Any, context: Any) -> Any:
        """Answers as scripted; without a script, as a server that does not know the method."""
        if not self.script.get("Info"):
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no script")
        return next(self._next("Info", request, context))
