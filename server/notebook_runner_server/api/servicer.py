"""The service NotebookRunner: translates each RPC into one call on the runs."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from structlog.contextvars import bind_contextvars

from notebook_runner import __version__
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as pb_grpc
from notebook_runner_server.api import convert
from notebook_runner_server.api.pacer import Pacer
from notebook_runner_server.api.response_limiter import (
    LARGE_EVENT,
    MAX_LARGE_EVENTS,
    ResponseSlots,
    caller_of,
)
from notebook_runner_server.api.telemetry_interceptor import trace_context
from notebook_runner_server.errors import InvalidFieldError, SequenceAheadError, TooManyStreamsError
from notebook_runner_server.runs.admission import MAX_DURATION
from notebook_runner_server.runs.call_target import current_target
from notebook_runner_server.runs.caller import current_caller
from notebook_runner_server.runs.changes import WatchCursor
from notebook_runner_server.runs.outputs import MESSAGE_BYTES, NOTEBOOK, Outputs

if TYPE_CHECKING:
    from notebook_runner_server.execution.interface import KeptContent
    from notebook_runner_server.runs.deliveries import ReceiverStatus
    from notebook_runner_server.runs.log import RunLog
    from notebook_runner_server.runs.manager import RunManager
    from notebook_runner_server.runs.model import Change, Event, RunState

_PAGE_SIZE = 50
_MAX_PAGE_SIZE = 1000
_NO_POSITION = 2**63 - 1
_MAX_FILTERS = 64
LATEST = "latest"
"""The run id that stands for an empty one; ids of runs begin with digits, so it is none."""

_INVALID_TOKEN = "page_token must be the next_page_token of a List with the same states, labels and owner."  # noqa: S105 - no secret


class Servicer(pb_grpc.NotebookRunnerServicer):
    """Implements the calls of the contract.

    Args:
        manager: The runs.
        outputs: Their artefacts.
        max_streams: Maximum number of open Progress and Watch streams together.
        heartbeat: Seconds without an event after which a stream sends a heartbeat.
        webhooks: Returns how far the receivers of webhooks are.
    """

    def __init__(
        self,
        manager: RunManager,
        outputs: Outputs,
        max_streams: int,
        heartbeat: float,
        webhooks: Callable[[], Sequence[ReceiverStatus]] = tuple,
    ) -> None:
        self._manager = manager
        self._outputs = outputs
        self._max_streams = max_streams
        self._heartbeat = heartbeat
        self._webhooks = webhooks
        self._streams = 0
        self._pacer = Pacer()
        self._large_events = ResponseSlots(MAX_LARGE_EVENTS)

    async def Start(self, request: pb.StartRequest, context: Any) -> pb.StartResponse:  # noqa: N802 - grpc's
        """Admit a run."""
        run = await self._manager.start(
            convert.start_spec(request), trace_context(context.invocation_metadata())
        )
        bind_contextvars(run_id=run.run_id)
        return pb.StartResponse(run=convert.run_message(run))

    async def Progress(  # type: ignore[override] # noqa: N802 - grpc's; its stub knows no serialized responses
        self,
        request: pb.ProgressRequest,
        context: Any,
    ) -> AsyncIterator[bytes]:
        """Stream the events of a run, as serialized responses (`SerializedResponses`)."""
        with self._stream():
            async for message in self._progress(request, caller_of(context)):
                yield message

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """Count an open stream.

        Raises:
            TooManyStreamsError: Too many are open.
        """
        if self._streams >= self._max_streams:
            raise TooManyStreamsError(
                f"Too many open Progress and Watch streams ({self._max_streams}). "
                "Try again later, or start the server with a larger --max-streams.",
                limit=str(self._max_streams),
            )
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def _progress(self, request: pb.ProgressRequest, caller: str) -> AsyncIterator[bytes]:
        run_id, log = await self._manager.log(_named(request.run_id))
        bind_contextvars(run_id=run_id)
        with self._manager.readers.stream(run_id, log):
            async for message in self._follow(request, run_id, log, caller):
                yield message

    async def _follow(
        self, request: pb.ProgressRequest, run_id: str, log: RunLog, caller: str
    ) -> AsyncIterator[bytes]:
        after, known, max_bytes = request.after_sequence, log.last_sequence, request.display_data_max_bytes
        if after > known:
            # Another server has sent the event, which this log does not know yet.
            known = await log.newest()
        _check_progress(request, known)
        if request.snapshot_only and after == known:
            return
        last = next(iter(await log.read(after - 1)), None) if after else None
        sent = time.monotonic()
        async for events in log.follow(after, self._heartbeat):
            for event in events:
                last = event
                if not (request.omit_cell_output and convert.is_output(event)):
                    await self._pacer.take()
                    if kept := convert.wanted_content(event, max_bytes):
                        async with self._turn(caller, kept):
                            encode = partial(self._encode_with_content, run_id, event, kept)
                            yield await log.encoded_with_content(event, [one.index for one in kept], encode)
                    else:
                        yield log.encoded(event, _encode)
                    sent = time.monotonic()
                if request.snapshot_only and event.sequence >= known:
                    return
            # Also if all events are output that the caller omits.
            if last is not None and (not events or time.monotonic() - sent >= self._heartbeat):
                yield convert.heartbeat_message(last, log.clock.now()).SerializeToString()
                sent = time.monotonic()

    @asynccontextmanager
    async def _turn(self, caller: str, kept: Sequence[KeptContent]) -> AsyncIterator[None]:
        """Wait until an event with so much content may be in memory, where it is until it is sent."""
        if sum(one.length for one in kept) <= LARGE_EVENT:
            yield
            return
        release = await self._large_events.acquire(caller)
        try:
            yield
        finally:
            release(None)

    async def _encode_with_content(self, run_id: str, event: Event, kept: Sequence[KeptContent]) -> bytes:
        return convert.event_message(event, await self._manager.contents(run_id, kept)).SerializeToString()

    async def Output(self, request: pb.OutputRequest, context: Any) -> bytes:  # type: ignore[override] # noqa: ARG002, N802 - as above
        """Return one page of an artefact, as a serialized response."""
        run = await self._manager.find(_named(request.run_id))
        bind_contextvars(run_id=run.run_id)
        self._manager.readers.page(run.run_id)
        about = convert.run_message(run)
        page = await self._outputs.page(
            run,
            request.format or NOTEBOOK,
            request.offset,
            request.max_bytes,
            request.as_of_sequence,
            omit_input=request.omit_input,
            beside=about.ByteSize(),
        )
        response = pb.OutputResponse(
            total_bytes=page.total_bytes,
            next_offset=page.next_offset,
            media_type=page.media_type,
            sha256=page.sha256,
            run=about,
            as_of_sequence=page.as_of,
        )
        return convert.with_bytes(response, "content", page.content)

    async def Kill(self, request: pb.KillRequest, context: Any) -> pb.KillResponse:  # noqa: ARG002, N802 - grpc's
        """Kill a run."""
        current_target().run_id = request.run_id
        grace_period = convert.seconds(request, "grace_period") or 0.0
        if grace_period > MAX_DURATION:
            raise InvalidFieldError(
                f"grace_period must not exceed {MAX_DURATION:.0f} s (got {grace_period:g} s).",
                field="grace_period",
            )
        before = await self._manager.run_to_kill(_named(request.run_id))
        bind_contextvars(run_id=before.run_id)
        run, ended = await self._manager.kill(before.run_id, grace_period, wait=not request.no_wait)
        return pb.KillResponse(
            run=convert.run_message(run), processes_ended=ended, already_ended=before.state.is_terminal
        )

    async def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:  # noqa: ARG002, N802 - grpc's
        """Return runs, newest first."""
        if request.page_size < 0:
            given = request.page_size
            raise InvalidFieldError(f"page_size must not be negative (got {given}).", field="page_size")
        states = _states(request)
        size = min(request.page_size or _PAGE_SIZE, _MAX_PAGE_SIZE)
        runs, more = await self._manager.list(
            _position(request), size, states, dict(request.labels), request.owner
        )
        answer = pb.ListResponse()
        remaining, last = MESSAGE_BYTES, 0
        for position, run in runs:
            last_before, last = last, position
            if isinstance(run, str):
                answer.damaged_run_ids.append(run.encode(errors="replace").decode())
                continue
            message = convert.run_message(run)
            remaining -= message.ByteSize()
            if remaining < 0 and answer.runs:
                # The page is full by its size: tracebacks are long, and most clients accept 4 MiB.
                more = last_before
                break
            answer.runs.append(message)
        answer.next_page_token = _token(request, more) if more else ""
        return answer

    async def Watch(  # type: ignore[override] # noqa: N802 - as above
        self,
        request: pb.WatchRequest,
        context: Any,  # noqa: ARG002
    ) -> AsyncIterator[bytes]:
        """Stream the changes of runs, as serialized responses (`SerializedResponses`)."""
        with self._stream():
            async for message in self._watch(request):
                yield message

    async def _watch(self, request: pb.WatchRequest) -> AsyncIterator[bytes]:
        batches = self._manager.watch(
            WatchCursor.parse(request.cursor) if request.cursor else None,
            _states(request),
            dict(request.labels),
            request.owner,
            include_existing=request.include_existing,
            idle=self._heartbeat,
        )
        sent = time.monotonic()
        async for batch in batches:
            for cursor, change in batch.changes:
                await self._pacer.take()
                yield self._encode_change(cursor, change)
            if batch.is_existing_end:
                yield convert.existing_sent_message(batch.cursor).SerializeToString()
            is_message_due = batch.is_heartbeat or time.monotonic() - sent >= self._heartbeat
            if batch.changes or batch.is_existing_end:
                sent = time.monotonic()
            # Also if all changes are of runs that the caller does not watch.
            elif is_message_due:
                yield convert.watch_heartbeat_message(batch.cursor).SerializeToString()
                sent = time.monotonic()

    def _encode_change(self, cursor: WatchCursor, change: Change) -> bytes:
        def encode() -> bytes:
            return convert.change_message(cursor, change).SerializeToString()

        # The cursor of an existing run has its position as well.
        return self._manager.encoded(change, encode) if cursor.position is None else encode()

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:  # noqa: ARG002, N802 - grpc's
        """Return one run."""
        run = await self._manager.get(_named(request.run_id))
        bind_contextvars(run_id=run.run_id)
        return pb.GetResponse(run=convert.run_message(run))

    async def Delete(self, request: pb.DeleteRequest, context: Any) -> pb.DeleteResponse:  # noqa: ARG002, N802 - grpc's
        """Delete a run that has ended."""
        current_target().run_id = request.run_id
        run = await self._manager.delete(request.run_id)
        bind_contextvars(run_id=request.run_id)
        return pb.DeleteResponse(run=None if run is None else convert.run_message(run))

    async def Info(self, request: pb.InfoRequest, context: Any) -> pb.InfoResponse:  # noqa: ARG002, N802 - grpc's
        """Describe this server."""
        answer = convert.info_message(await self._manager.info())
        answer.version = __version__
        caller = current_caller()
        answer.caller = caller.name
        answer.scopes[:] = sorted(caller.scopes)
        answer.formats[:] = self._outputs.formats
        if caller.visible_owner is None:
            # Their backlogs describe the runs of all owners.
            answer.webhooks.extend(map(convert.receiver_message, self._webhooks()))
        return answer


def _check_progress(request: pb.ProgressRequest, known: int) -> None:
    """Check a request about a run whose last event is `known`.

    Raises:
        InvalidFieldError: A field is invalid.
        SequenceAheadError: The run has no such event.
    """
    for name in ("display_data_max_bytes", "after_sequence"):
        if (value := getattr(request, name)) < 0:
            raise InvalidFieldError(f"{name} must not be negative (got {value}).", field=name)
    if request.after_sequence > known:
        raise SequenceAheadError(
            f"after_sequence must be at most {known}, the last event of the run (got "
            f"{request.after_sequence}). If the server sent that event, its history was restored from an "
            "older copy: follow the run from its start.",
            field="after_sequence",
            last_sequence=str(known),
        )


def _states(request: pb.ListRequest | pb.WatchRequest) -> list[RunState]:
    """Return the states that a request asks for.

    Raises:
        InvalidFieldError: One is unknown, or there are too many filters.
    """
    if len(request.states) > _MAX_FILTERS or len(request.labels) > _MAX_FILTERS:
        raise InvalidFieldError(
            f"states and labels must have at most {_MAX_FILTERS} entries each.", field="labels"
        )
    return [convert.domain_state(state) for state in request.states]


def _named(run_id: str) -> str:
    """Return the id in a request; `LATEST` stands for an empty one, which the path of a URL cannot have."""
    return "" if run_id == LATEST else run_id


def _encode(event: Event) -> bytes:
    return convert.event_message(event).SerializeToString()


def _token(request: pb.ListRequest, position: int) -> str:
    return base64.urlsafe_b64encode(f"{position}:{_filter(request)}".encode()).decode()


def _position(request: pb.ListRequest) -> int:
    """Return the position that a page token encodes."""
    if not request.page_token:
        return _NO_POSITION
    try:
        number = int(base64.urlsafe_b64decode(request.page_token).decode().partition(":")[0])
    except ValueError as error:
        raise InvalidFieldError(_INVALID_TOKEN, field="page_token") from error
    if not 0 < number <= _NO_POSITION or request.page_token != _token(request, number):
        raise InvalidFieldError(_INVALID_TOKEN, field="page_token")
    return number


def _filter(request: pb.ListRequest) -> str:
    """Return a digest of the filters of a List, to which its page tokens belong."""
    wanted = json.dumps([sorted(set(request.states)), sorted(request.labels.items()), request.owner])
    return hashlib.sha256(wanted.encode()).hexdigest()[:16]
