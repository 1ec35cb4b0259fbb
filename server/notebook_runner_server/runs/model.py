"""What a run is, as frozen data: the request, the run, and the events that tell of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from notebook_runner_server.execution.files import FileEvent
from notebook_runner_server.execution.interface import CellEvent, Failure, Limits


class RunState(enum.Enum):
    """Where a run is in its life; the contract's RunState."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    KILLING = "killing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    KILLED = "killed"
    CRASHED = "crashed"
    INTERRUPTED = "interrupted"

    @property
    def is_terminal(self) -> bool:
        """Whether a run stays in this state for good."""
        return self not in _BEFORE_THE_END


_BEFORE_THE_END = (RunState.QUEUED, RunState.STARTING, RunState.RUNNING, RunState.KILLING)


@dataclass(frozen=True, slots=True)
class StartSpec:
    """What a caller asks for.

    At most one of `content`, `path` and `notebook_uri` is set; with none, the server's default notebook is
    meant. A limit of zero means the server's default. `retention` in seconds; None: the server's default.
    `parameters_are_ordered`: their order is the caller's, and kept.
    """

    request_id: str = ""
    content: bytes | None = None
    path: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    kernel_name: str = ""
    limits: Limits = field(default_factory=Limits)
    allow_errors: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    retention: float | None = None
    notebook_uri: str | None = None
    output_uri: str = ""
    parameters_are_ordered: bool = False


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The call that a run comes from; empty strings: not known, or none.

    Attributes:
        call_id: The id that the log gave the call.
        traceparent: The caller's place in a trace, as W3C Trace Context writes it.
        tracestate: What belongs to it.
    """

    call_id: str = ""
    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class ExecutionOptions:
    """What a worker is to do for a run, as it was decided at Start; durations in seconds.

    Attributes:
        working_folder: Where the kernel is started; empty: the run's own folder.
        environment: Variables for the kernel; the store keeps them until the run has ended.
        retention: How long the run is kept after its end.
        output_uri: Where the executed notebook is to be written; the store keeps it until the run has ended.
        origin: The call that it comes from.
    """

    working_folder: str
    limits: Limits
    allow_errors: bool
    environment: Mapping[str, str]
    retention: float
    output_uri: str = ""
    origin: TraceContext = field(default_factory=TraceContext)


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of one notebook. Times in nanoseconds since the epoch, UTC; zero: not yet.

    URIs are as they may be shown. `output_error` tells why an ended run's notebook is not at `output_uri`.
    `notebook_repairs` are sentences.
    """

    run_id: str
    request_id: str
    state: RunState
    create_time: int
    kernel_name: str
    cells_total: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    notebook_path: str = ""
    start_time: int = 0
    end_time: int = 0
    cells_completed: int = 0
    current_cell: int | None = None
    failure: Failure | None = None
    queue_position: int | None = None
    notebook_uri: str = ""
    output_uri: str = ""
    output_error: str = ""
    notebook_repairs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunChanged:
    """The run is in a new state."""

    run: Run


Body = RunChanged | CellEvent


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a run's log. `time` in nanoseconds since the epoch, UTC."""

    sequence: int
    time: int
    cells_completed: int
    cells_total: int
    body: Body

    @property
    def is_terminal(self) -> bool:
        """Whether it is the last one."""
        return isinstance(self.body, RunChanged) and self.body.run.state.is_terminal


@dataclass(frozen=True, slots=True)
class Part:
    """Where a version of a part is in the run's file of parts, in bytes."""

    part: int
    sequence: int
    start: int
    length: int
    checksum: int | None = field(default=None, compare=False)
    """Of its bytes; None: version 1 wrote it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run is gone on with: the backend's mark, and the run's file of parts as it was at that.

    Attributes:
        mark: The number of the last batch that is in the history.
        part_start: Where the part begins that is not whole yet, in bytes.
        size: Where the next piece goes, in bytes.
    """

    mark: int
    part_start: int
    size: int


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """What is to be written to a run's folder.

    Attributes:
        start: Where the pieces go in the file of parts, in bytes.
        pieces: What to write, one after the other.
        parts: The parts that are whole with these pieces.
        resume: Where a later server goes on after this; None: as before.
        files: What came of the notebook's own files.
    """

    start: int
    pieces: Sequence[bytes] = ()
    parts: Sequence[Part] = ()
    resume: Checkpoint | None = None
    files: Sequence[FileEvent] = ()
