"""What a gRPC status becomes, and the tree of the client's exceptions."""

import pickle
import re
from dataclasses import dataclass, field
from typing import cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

import notebook_runner
from notebook_runner import Run, _status, errors
from notebook_runner.v1 import notebook_runner_pb2 as pb

RUN = pb.Run(
    run_id="r1",
    state=pb.RUN_STATE_FAILED,
    cells_total=5,
    failure=pb.Failure(
        cause=pb.FAILURE_CAUSE_CELL_ERROR,
        cell_index=2,
        exception_name="ValueError",
        exception_message="no",
        traceback="Traceback …\nValueError: no",
    ),
)


@dataclass
class Ended:
    """A call that ended with a status, as gRPC's two stacks show it."""

    status: grpc.StatusCode
    message: str | None = "sentence"
    trailers: tuple[tuple[str, str | bytes], ...] | None = field(default=())

    def code(self) -> grpc.StatusCode:
        """The status code."""
        return self.status

    def details(self) -> str | None:
        """The status message."""
        return self.message

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...] | None:
        """What came after the last message."""
        return self.trailers


def translated(
    status: grpc.StatusCode, *details: Message, reason: str = "", **metadata: str
) -> errors.RpcFailed:
    """What the client raises for a status with these details."""
    packed = status_pb2.Status(code=status.value[0], message="sentence")
    info = error_details_pb2.ErrorInfo(domain="notebook-runner", reason=reason, metadata=metadata)
    for detail in (*details, info) if reason else details:
        packed.details.add().Pack(detail)
    trailers = (("other", "x"), ("grpc-status-details-bin", packed.SerializeToString()))
    return _status.to_error(cast("grpc.RpcError", Ended(status, trailers=trailers)))


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        ("INVALID_ARGUMENT", "UNKNOWN_PARAMETER", errors.InvalidRequest),
        ("INVALID_ARGUMENT", "URI_NOT_ALLOWED", errors.InvalidRequest),
        ("NOT_FOUND", "RUN_NOT_FOUND", errors.RunNotFound),
        ("NOT_FOUND", "NOTEBOOK_NOT_FOUND", errors.InvalidRequest),
        ("ALREADY_EXISTS", "REQUEST_ID_REUSED", errors.InvalidRequest),
        ("RESOURCE_EXHAUSTED", "RUNNER_BUSY", errors.RunnerBusy),
        ("RESOURCE_EXHAUSTED", "NOTEBOOK_TOO_LARGE", errors.InvalidRequest),
        ("RESOURCE_EXHAUSTED", "TOO_MANY_STREAMS", errors.RpcFailed),
        ("OUT_OF_RANGE", "OFFSET_PAST_END", errors.InvalidRequest),
        ("OUT_OF_RANGE", "SEQUENCE_AHEAD", errors.InvalidRequest),
        ("OUT_OF_RANGE", "CURSOR_EXPIRED", errors.CursorExpired),
        ("NOT_FOUND", "RUN_EXPIRED", errors.RunExpired),
        ("FAILED_PRECONDITION", "EXPORT_FAILED", errors.RpcFailed),
        ("UNAUTHENTICATED", "MISSING_TOKEN", errors.AccessDenied),
        ("PERMISSION_DENIED", "BAD_TOKEN", errors.AccessDenied),
        ("UNAVAILABLE", "SHUTTING_DOWN", errors.Unavailable),
        ("UNAVAILABLE", "NOTEBOOK_UNREACHABLE", errors.Unavailable),
        ("DEADLINE_EXCEEDED", "", errors.Unavailable),
        ("INTERNAL", "INTERNAL_ERROR", errors.RpcFailed),
    ],
)
def test_reason_decides_the_class(code: str, reason: str, kind: type[errors.RpcFailed]) -> None:
    """Each reason of the contract becomes the exception that the tree says."""
    status = grpc.StatusCode[code]
    error = translated(status, reason=reason)
    assert type(error) is kind
    assert (error.code, error.reason, error.message) == (status, reason, "sentence")


def test_details_are_in_fields() -> None:
    """Metadata, time to wait and field violations are there as the server sent them."""
    error = translated(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)),
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field="labels", description="too long")
            ]
        ),
        reason="RUNNER_BUSY",
        run_id="r1",
    )
    assert isinstance(error, errors.RunnerBusy)
    assert (error.metadata, error.run_id, error.retry_after) == ({"run_id": "r1"}, "r1", 2.5)
    assert error.violations == (errors.FieldViolation("labels", "too long"),)
    assert str(error) == "RUNNER_BUSY: sentence\n  labels: too long"


def test_same_sentence_is_said_once() -> None:
    """A violation that repeats the message adds only the field's name."""
    violations = [errors.FieldViolation("a", "no"), errors.FieldViolation("b", "why")]
    error = errors.InvalidRequest("no", grpc.StatusCode.INVALID_ARGUMENT, "R", violations=violations)
    assert str(error) == "R: no (a)\n  b: why"


def test_a_field_that_the_message_names_is_not_repeated() -> None:
    """Most messages begin with it."""
    violations = [errors.FieldViolation("page_size", "page_size must not be negative (got -1).")]
    error = errors.InvalidRequest(
        violations[0].description, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", violations=violations
    )
    assert str(error) == "INVALID_FIELD: page_size must not be negative (got -1)."


def test_other_domains_are_not_ours() -> None:
    """An ErrorInfo that a proxy added gives no reason."""
    foreign = error_details_pb2.ErrorInfo(domain="proxy.example", reason="RUNNER_BUSY")
    error = translated(grpc.StatusCode.RESOURCE_EXHAUSTED, foreign)
    assert type(error) is errors.RpcFailed
    assert (error.reason, error.retry_after) == ("", None)
    assert str(error) == "RESOURCE_EXHAUSTED: sentence"


@pytest.mark.parametrize("trailers", [None, (), (("grpc-status-details-bin", b"\xff\xff"),)])
def test_status_without_readable_details(trailers: tuple[tuple[str, str | bytes], ...] | None) -> None:
    """A status that carries no details, or broken ones, is still told by its code."""
    ended = Ended(grpc.StatusCode.UNAVAILABLE, message=None, trailers=trailers)
    error = _status.to_error(cast("grpc.RpcError", ended))
    assert type(error) is errors.Unavailable
    assert (error.message, error.reason) == ("", "")


@pytest.mark.parametrize(
    "error",
    [
        errors.RunnerBusy(
            "busy",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "RUNNER_BUSY",
            {"run_id": "r1"},
            2.0,
            [errors.FieldViolation("f", "d")],
        ),
        errors.RunFailed(Run(RUN)),
    ],
)
def test_errors_survive_pickle(error: errors.NotebookRunnerError) -> None:
    """An exception comes out of another process with all its fields."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_run_failed_tells_the_exception() -> None:
    """A failed run's exception says where it ended and why."""
    error = errors.RunFailed(Run(RUN))
    assert (error.cell_index, error.exception_name, error.exception_message) == (2, "ValueError", "no")
    assert error.traceback.endswith("ValueError: no")
    assert str(error) == "run r1 failed in cell 3 of 5: ValueError: no"


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (pb.Failure(message="It took too long."), "run r1 timed out: It took too long."),
        (pb.Failure(cause=pb.FAILURE_CAUSE_RUN_TIMEOUT), "run r1 timed out: run timeout"),
        (pb.Failure(cause=cast("pb.FailureCause.ValueType", 99)), "run r1 timed out: unknown (99)"),
    ],
)
def test_run_failed_without_an_exception(failure: pb.Failure, text: str) -> None:
    """A run that no cell ended says what did, also in the words of a newer server."""
    error = errors.RunFailed(Run(pb.Run(run_id="r1", state=pb.RUN_STATE_TIMED_OUT, failure=failure)))
    assert str(error) == text
    assert error.cell_index is None


def test_tree_is_drawn_as_it_is() -> None:
    """The tree in the module's docstring has every class, below the one it derives from."""
    drawn: list[tuple[int, str]] = [
        (len(match[1]), match[2])
        for match in re.finditer(r"^    ([├└│─ ]*)([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)
    ]
    parents: dict[int, str] = {}
    for depth, name in drawn:
        parents[depth] = name
        if depth:
            assert getattr(errors, name).__base__ is getattr(errors, parents[depth - 4])
    classes = {name for name in errors.__all__ if issubclass(getattr(errors, name), Exception)}
    assert {name for _, name in drawn} == classes


def test_package_exports_the_whole_tree() -> None:
    """Every exception can be imported from the package, and all that it promises is there."""
    assert set(errors.__all__) <= set(notebook_runner.__all__)
    assert all(hasattr(notebook_runner, name) for name in notebook_runner.__all__)
