"""Converts the runs' data to messages of the contract, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api import parameters
from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.execution.interface import (
    CellFinished,
    CellOutput,
    CellStarted,
    ClearOutput,
    DisplayOutput,
    ErrorOutput,
    Failure,
    InputFile,
    KeptContent,
    Limits,
    OutputCut,
    ResultValue,
    StreamOutput,
)
from notebook_runner_server.runs.deliveries import ReceiverStatus
from notebook_runner_server.runs.model import (
    Change,
    Event,
    RetryPolicy,
    Run,
    RunChanged,
    RunnerInfo,
    RunState,
    StartSpec,
)
from notebook_runner_server.runs.results import Results

_LENGTH_DELIMITED = 2  # protobuf's wire type
_MAX_NANOS = 999_999_999
_MAX_SECONDS = 315_576_000_000  # google.protobuf.Duration's own bound


def start_spec(request: pb.StartRequest) -> StartSpec:
    """Convert a StartRequest.

    Raises:
        InvalidFieldError: A field is invalid.
    """
    values, is_ordered = parameters.parameters_of(request)
    kind = request.WhichOneof("notebook")
    return StartSpec(
        request_id=request.request_id,
        content=request.notebook_content if kind == "notebook_content" else None,
        path=request.notebook_path if kind == "notebook_path" else None,
        parameters=values,
        parameters_are_ordered=is_ordered,
        kernel_name=request.kernel_name,
        limits=Limits(
            run_timeout=seconds(request, "run_timeout") or 0.0,
            cell_timeout=seconds(request, "cell_timeout") or 0.0,
            output_timeout=seconds(request, "output_timeout") or 0.0,
            memory_bytes=request.memory_limit_bytes,
            cell_output_bytes=request.cell_output_limit_bytes,
            run_output_bytes=request.run_output_limit_bytes,
            processes=request.process_limit,
        ),
        allow_errors=request.allow_errors,
        environment=dict(request.environment),
        labels=dict(request.labels),
        retention=seconds(request, "retention"),
        notebook_uri=request.notebook_uri if kind == "notebook_uri" else None,
        output_uri=request.output_uri,
        name=request.name,
        files=tuple(InputFile(file.path, file.content) for file in request.files),
        priority=request.priority,
        retry=_retry_policy(request.retry) if request.HasField("retry") else None,
        notify_uri=request.notify_uri,
    )


def _retry_policy(given: pb.RetryPolicy) -> RetryPolicy:
    states = {domain_state(state, "retry.states") for state in set(given.states)}
    default = RetryPolicy(given.max_retries)
    backoff, max_backoff = (seconds(given, name, "retry.") for name in ("backoff", "max_backoff"))
    return RetryPolicy(
        given.max_retries,
        # In one order, so that the same set is the same request.
        tuple(state for state in RunState if state in states) or default.states,
        default.backoff if backoff is None else backoff,
        default.max_backoff if max_backoff is None else max_backoff,
    )


def seconds(
    request: pb.StartRequest | pb.KillRequest | pb.RetryPolicy, field: str, prefix: str = ""
) -> float | None:
    """Return a duration in seconds; None: the field is absent. Errors name the field with the prefix.

    Raises:
        InvalidFieldError: The duration is negative or malformed.
    """
    if not request.HasField(field):  # type: ignore[arg-type] # its stub wants a literal
        return None
    value: duration_pb2.Duration = getattr(request, field)
    whole = value.seconds + value.nanos / 1e9
    is_valid = 0 <= value.seconds <= _MAX_SECONDS and 0 <= value.nanos <= _MAX_NANOS
    if not is_valid:
        given = f"{value.seconds} seconds and {value.nanos} nanos"
        name = f"{prefix}{field}"
        raise InvalidFieldError(f"{name} must be a duration of zero or more (got {given}).", field=name)
    return min(whole, float(_MAX_SECONDS))


def run_message(run: Run) -> pb.Run:
    """Convert a run."""
    try:
        return _run_message(run)
    except UnicodeEncodeError:
        return _run_message(_as_unicode(run))


def _as_unicode(value: Any) -> Any:
    """Replace the lone surrogates of all text in a value, which protobuf cannot carry.

    New events have none. Earlier versions have stored some, and damaged text is read as such.
    """
    match value:
        case Enum():
            pass
        case str():
            return value.encode(errors="replace").decode()
        case Results():
            texts = {name: json.dumps(_as_unicode(json.loads(text))) for name, text in value.values.items()}
            return replace(value, values=_as_unicode(texts), omitted=_as_unicode(value.omitted))
        case Mapping():
            return {_as_unicode(key): _as_unicode(one) for key, one in value.items()}
        case list() | tuple():
            return type(value)(map(_as_unicode, value))
        case _ if is_dataclass(value) and not isinstance(value, type):
            given = {one.name: getattr(value, one.name) for one in fields(value) if one.init}
            return replace(value, **_as_unicode(given))
    return value


def _run_message(run: Run) -> pb.Run:
    message = pb.Run(
        run_id=run.run_id,
        request_id=run.request_id,
        state=run_state(run.state),
        create_time=timestamp(run.create_time),
        start_time=timestamp(run.start_time),
        end_time=timestamp(run.end_time),
        cells_total=run.cells_total,
        cells_completed=run.cells_completed,
        current_cell=run.current_cell,
        queue_position=run.queue_position,
        kernel_name=run.kernel_name,
        labels=run.labels,
        notebook_path=run.notebook_path,
        failure=None if run.failure is None else _failure(run.failure),
        notebook_uri=run.notebook_uri,
        output_uri=run.output_uri,
        output_error=run.output_error,
        parameters_json=parameters.encode(run.parameters),
        notebook_repairs=run.notebook_repairs,
        name=run.name,
        notebook_sha256=run.notebook_sha256,
        peak_memory_bytes=run.peak_memory_bytes,
        cpu_time=None if run.cpu_seconds is None else _duration(run.cpu_seconds),
        results_json=run.results.to_json(),
        results_omitted=run.results.number_omitted,
        owner=run.owner,
        priority=run.priority,
        retry=None if run.retry is None else _retry_message(run.retry),
        attempt=run.attempt,
        retry_of=run.retry_of,
        retried_by=run.retried_by,
        not_before=timestamp(run.not_before),
    )
    parameters.fill_struct(message.parameters, run.parameters)
    values = {name: json.loads(value) for name, value in run.results.values.items()}
    parameters.fill_struct(message.results, values)
    return message


def _retry_message(policy: RetryPolicy) -> pb.RetryPolicy:
    return pb.RetryPolicy(
        max_retries=policy.max_retries,
        states=map(run_state, policy.states),
        backoff=_duration(policy.backoff),
        max_backoff=_duration(policy.max_backoff),
    )


def info_message(info: RunnerInfo) -> pb.InfoResponse:
    """Convert the description of a server."""
    share = info.share.share
    return pb.InfoResponse(
        kernels=[
            pb.KernelInfo(
                name=kernel.name,
                language=kernel.language,
                is_default=kernel.is_default,
                warm_ready=kernel.warm_counts.ready,
                warm_wanted=kernel.warm_counts.wanted,
            )
            for kernel in info.kernels
        ],
        workers=info.workers,
        runs_active=info.active,
        runs_queued=info.queued,
        queue_size=info.queue_size,
        default_notebook=info.default_notebook,
        has_notebook_root=info.has_notebook_root,
        problem=info.problem,
        uri_schemes=info.uri_schemes,
        share=pb.Share(
            max_active=share.max_active,
            max_queued=share.max_queued,
            max_history_bytes=share.max_history_bytes,
            active=info.share.active,
            queued=info.share.queued,
            history_bytes=info.share.history_bytes,
        ),
    )


def receiver_message(status: ReceiverStatus) -> pb.WebhookReceiver:
    """Convert how far a receiver of webhooks is."""
    return pb.WebhookReceiver(name=status.name, backlog=status.backlog, oldest_time=timestamp(status.oldest))


def run_state(state: RunState) -> pb.RunState.ValueType:
    """Convert a state."""
    return pb.RunState.Value(f"RUN_STATE_{state.name}")


def domain_state(state: int, field: str = "states") -> RunState:
    """Convert a state of the contract that a field of a request has.

    Raises:
        InvalidFieldError: The number is not a state.
    """
    try:
        return RunState[pb.RunState.Name(state).removeprefix("RUN_STATE_")]  # type: ignore[arg-type] # it checks
    except (KeyError, ValueError) as error:
        raise InvalidFieldError(f"{field}: unknown state {state}.", field=field) from error


def timestamp(nanoseconds: int) -> timestamp_pb2.Timestamp | None:
    """Convert a time in nanoseconds since the epoch; zero: absent."""
    if not nanoseconds:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromNanoseconds(nanoseconds)
    return message


def _failure(failure: Failure) -> pb.Failure:
    return pb.Failure(
        cause=pb.FailureCause.Value(f"FAILURE_CAUSE_{failure.cause.name}"),
        message=failure.message,
        cell_index=failure.cell_index,
        cell_id=failure.cell_id,
        exception_name=failure.exception_name,
        exception_message=failure.exception_message,
        traceback=failure.traceback,
        signal=failure.signal,
        exit_code=failure.exit_code,
    )


def is_output(event: Event) -> bool:
    """Return whether an event is output of a cell."""
    return isinstance(event.body, CellOutput)


def wanted_content(event: Event, max_bytes: int) -> tuple[KeptContent, ...]:
    """Return what is kept of the content of an event's representations, up to a size of each."""
    body = event.body
    if not max_bytes or not isinstance(body, DisplayOutput):
        return ()
    return tuple(one for one in body.kept if one.length <= max_bytes)


def event_message(event: Event, contents: Mapping[int, bytes] | None = None) -> pb.ProgressResponse:
    """Convert an event.

    Args:
        event: The event.
        contents: The content of the representations of a display, by their index.
    """
    try:
        return _event_message(event, contents or {})
    except UnicodeEncodeError:
        return _event_message(_as_unicode(event), contents or {})


def _event_message(event: Event, contents: Mapping[int, bytes]) -> pb.ProgressResponse:
    message = pb.ProgressResponse(
        sequence=event.sequence,
        time=timestamp(event.time),
        cells_completed=event.cells_completed,
        cells_total=event.cells_total,
    )
    match event.body:
        case RunChanged(run):
            message.run_changed.CopyFrom(run_message(run))
        case CellStarted() as body:
            message.cell_started.CopyFrom(
                pb.CellStarted(cell_index=body.cell_index, cell_id=body.cell_id, first_line=body.first_line)
            )
        case CellFinished() as body:
            message.cell_finished.CopyFrom(_cell_finished(body))
        case body:
            message.cell_output.CopyFrom(_cell_output(body))
    for index, content in contents.items():
        message.cell_output.display.data[index].content = content
    return message


def with_bytes(message: Message, field: str, content: bytes | bytearray) -> bytes:
    """Serialize a message with a large content in one of its fields, and copy the content only once.

    Args:
        message: The message, without the content.
        field: The name of its field.
        content: The content.
    """
    key = _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED)
    return b"".join((message.SerializeToString(), key, _varint(len(content)), content))


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def heartbeat_message(last: Event, now: int) -> pb.ProgressResponse:
    """Return a heartbeat after an event; `now` in nanoseconds since the epoch."""
    return pb.ProgressResponse(
        sequence=last.sequence,
        time=timestamp(now),
        cells_completed=last.cells_completed,
        cells_total=last.cells_total,
        heartbeat=pb.Heartbeat(),
    )


def change_message(cursor: object, change: Change) -> pb.WatchResponse:
    """Convert a change, with the cursor after it."""
    if change.run is None:
        # An id that is damaged may be no text.
        deleted = change.run_id.encode(errors="replace").decode()
        return pb.WatchResponse(cursor=str(cursor), deleted_run_id=deleted)
    return pb.WatchResponse(cursor=str(cursor), run=run_message(change.run))


def existing_sent_message(cursor: object) -> pb.WatchResponse:
    """Return the end of the existing runs, with the cursor after it."""
    return pb.WatchResponse(cursor=str(cursor), existing_sent=pb.ExistingSent())


def watch_heartbeat_message(cursor: object) -> pb.WatchResponse:
    """Return a heartbeat of Watch."""
    return pb.WatchResponse(cursor=str(cursor), heartbeat=pb.Heartbeat())


def _duration(seconds: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(math.floor(seconds * 1e9))
    return message


def _cell_finished(body: CellFinished) -> pb.CellFinished:
    return pb.CellFinished(
        cell_index=body.cell_index,
        cell_id=body.cell_id,
        execution_count=body.execution_count,
        duration=_duration(body.duration),
        outcome=pb.CellOutcome.Value(f"CELL_OUTCOME_{body.outcome.name}"),
    )


def _result_value(result: ResultValue | None) -> pb.ResultValue | None:
    if result is None or not result.value_json:
        return None
    return pb.ResultValue(name=result.name, value_json=result.value_json)


def _cell_output(body: CellOutput) -> pb.CellOutput:
    message = pb.CellOutput(cell_index=body.cell_index)
    match body:
        case StreamOutput():
            message.stream.CopyFrom(pb.StreamOutput(name=body.name, text=body.text))
        case DisplayOutput():
            data = [pb.MimeData(mime_type=mime, size_bytes=size) for mime, size in body.data]
            message.display.CopyFrom(
                pb.DisplayOutput(
                    output_type=body.output_type,
                    data=data,
                    omitted=body.omitted,
                    result=_result_value(body.result),
                )
            )
        case ErrorOutput():
            message.error.CopyFrom(
                pb.ErrorOutput(exception_name=body.exception_name, exception_message=body.exception_message)
            )
        case ClearOutput():
            message.clear.CopyFrom(pb.ClearOutput(wait=body.wait))
        case OutputCut():
            message.cut.CopyFrom(pb.OutputCut(limit_bytes=body.limit_bytes, whole_run=body.whole_run))
    return message
