"""Runs as frozen data: the request, the run, its events, and what is written to its folder."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from notebook_runner_server.execution.interface import (
    CellEvent,
    Failure,
    FileEvent,
    InputFile,
    Limits,
    WarmCounts,
)
from notebook_runner_server.runs.results import Results
from notebook_runner_server.runs.shares import ShareUse


class RunState(enum.Enum):
    """The state of a run; the contract's RunState."""

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
        """Whether the run has ended."""
        return self not in _UNENDED


RETRYABLE = (RunState.TIMED_OUT, RunState.CRASHED, RunState.INTERRUPTED)
"""The terminal states after which a run may be repeated."""

_UNENDED = (RunState.QUEUED, RunState.STARTING, RunState.RUNNING, RunState.KILLING)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a run is repeated after an end without success; durations in seconds.

    Attributes:
        max_retries: How often it is repeated.
        states: The terminal states after which it is repeated.
        backoff: The time from its end to the earliest start of the first repetition. It doubles with each
            further one.
        max_backoff: The longest such time.
    """

    max_retries: int
    states: tuple[RunState, ...] = (RunState.CRASHED, RunState.INTERRUPTED)
    backoff: float = 1.0
    max_backoff: float = 300.0

    def delay(self, retry: int) -> float:
        """Return the time in seconds before a repetition, of which the first is 1."""
        return min(self.backoff * 2.0 ** (retry - 1), self.max_backoff)


@dataclass(frozen=True, slots=True)
class StartSpec:
    """A request to start a run.

    At most one of `content`, `path` and `notebook_uri` is set; without any, the server's default notebook is
    run. A limit of zero means the server's default. `retention` is in seconds; None: the server's default.
    `parameters_are_ordered` keeps the parameters in the order in which they are given.
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
    name: str = ""
    files: tuple[InputFile, ...] = ()
    priority: int = 0
    retry: RetryPolicy | None = None
    notify_uri: str = ""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The call that started a run; an empty string: unknown.

    Attributes:
        call_id: The id of the call in the server's log.
        traceparent: The caller's `traceparent` of W3C Trace Context.
        tracestate: Its `tracestate`.
    """

    call_id: str = ""
    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True, slots=True)
class Notify:
    """Who gets to know of a run's end.

    Attributes:
        host: The host of the URI.
        uri: The URI, which may have a secret.
    """

    host: str
    uri: str


@dataclass(frozen=True, slots=True)
class ExecutionOptions:
    """How a run is executed, as decided at its Start; durations in seconds.

    Attributes:
        working_folder: The kernel's working directory; empty: the run's own folder.
        limits: The limits of the run.
        allow_errors: Whether the run continues after a cell that raises an exception.
        environment: Variables for the kernel; stored until the run has ended.
        retention: How long the run is stored after its end.
        output_uri: Where the executed notebook is uploaded to; stored until the run has ended.
        origin: The call that started the run.
        display_data_bytes: Maximum size of a representation whose content is kept with its event; zero: none.
        owner_groups: The groups of the owner at the Start, which decide its share while it makes no call.
    """

    working_folder: str
    limits: Limits
    allow_errors: bool
    environment: Mapping[str, str]
    retention: float
    output_uri: str = ""
    origin: TraceContext = field(default_factory=TraceContext)
    display_data_bytes: int = 0
    owner_groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of one notebook. Times are nanoseconds since the epoch, UTC; zero: not yet.

    URIs are without their secrets. `output_error` says why the notebook of an ended run is not at
    `output_uri`. `notebook_repairs` are sentences. `notebook_sha256` is of the notebook as it was given;
    empty: unknown, admitted by an earlier server. `peak_memory_bytes` (zero: unknown) and `cpu_seconds`
    (None: unknown) are those of all processes of an ended run. `owner` is the name of the caller that started
    it; empty: the server asked for no credentials. `attempt` is 1 for the run of a Start. `retry_of` and
    `retried_by` are the ids of the runs before and after it in a chain of repetitions. `not_before` is the
    earliest start of a repetition. `is_kill_requested` is set once a Kill has reached the run.
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
    name: str = ""
    notebook_sha256: str = ""
    peak_memory_bytes: int = 0
    cpu_seconds: float | None = None
    results: Results = field(default_factory=Results)
    owner: str = ""
    priority: int = 0
    retry: RetryPolicy | None = None
    attempt: int = 1
    retry_of: str = ""
    retried_by: str = ""
    not_before: int = 0
    is_kill_requested: bool = False


@dataclass(frozen=True, slots=True)
class Admitted:
    """An admitted run, which can be stored.

    Attributes:
        run: The run.
        options: How it is executed.
        segments: The bytes of each segment of its notebook.
        files: The files that its request brought.
        notify: Who gets to know of its end; None: nobody.
    """

    run: Run
    options: ExecutionOptions
    segments: Mapping[int, bytes]
    files: Sequence[InputFile] = ()
    notify: Notify | None = None


@dataclass(frozen=True, slots=True)
class RunChanged:
    """The run has changed its state."""

    run: Run


Body = RunChanged | CellEvent


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of a run's log. `time` is in nanoseconds since the epoch, UTC."""

    sequence: int
    time: int
    cells_completed: int
    cells_total: int
    body: Body

    @property
    def is_terminal(self) -> bool:
        """Whether it is the last event of its run."""
        return isinstance(self.body, RunChanged) and self.body.run.state.is_terminal


@dataclass(frozen=True, slots=True)
class Successor:
    """The run that repeats another, with its first event."""

    admitted: Admitted
    event: Event


@dataclass(frozen=True, slots=True)
class Change:
    """A change among all runs of a history: a run's new state, or its deletion.

    Attributes:
        number: Its number; later changes have higher ones.
        run_id: The run.
        owner: The run's owner.
        labels: The run's labels; none after its deletion.
        run: The run in its new state; None: it was deleted.
        size: About how much memory it takes, in bytes.
        label_digests: Digests of a deleted run's labels.
    """

    number: int
    run_id: str
    owner: str
    labels: Mapping[str, str]
    run: Run | None
    size: int
    label_digests: frozenset[str] = frozenset()

    def has_label(self, name: str, value: str) -> bool:
        """Return whether the run has a label, or had it before its deletion."""
        if self.run is None:
            return label_digest(self.run_id, name, value) in self.label_digests
        return self.labels.get(name) == value


def label_digest(run_id: str, name: str, value: str) -> str:
    """Return what is kept of a deleted run's label: it can be compared, and not read."""
    return hashlib.sha256(json.dumps([run_id, name, value]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which changes a watcher gets. Deletions have no state: they match whatever the states are.

    Attributes:
        visible_owner: The owner whose runs it may see; None: it may see those of all owners.
        owner: The owner whose runs it asks for; empty: all.
        states: The states that it asks for; empty: all.
        labels: Labels that its runs have.
    """

    visible_owner: str | None = None
    owner: str = ""
    states: frozenset[RunState] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, change: Change) -> bool:
        """Return whether the watcher gets a change."""
        state = None if change.run is None else change.run.state
        has_labels = all(change.has_label(name, value) for name, value in self.labels.items())
        return has_labels and self.may_match(change.owner, state)

    def may_match(self, owner: str, state: RunState | None) -> bool:
        """Return whether the watcher may get a change of an owner's run to a state (None: its deletion)."""
        is_visible = self.visible_owner in (None, owner) and self.owner in ("", owner)
        return is_visible and (state is None or not self.states or state in self.states)


@dataclass(frozen=True, slots=True)
class Segment:
    """Where a version of a segment is in the run's file of segments, in bytes."""

    number: int
    sequence: int
    start: int
    length: int
    checksum: int | None = field(default=None, compare=False)
    """CRC-32 of its bytes; None: unknown, written by version 1."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a run continues after a restart of the server.

    Attributes:
        mark: The number of the backend's last batch that is in the history.
        segment_start: Where the unfinished segment begins in the file of segments, in bytes.
        size: Where the next chunk goes, in bytes.
    """

    mark: int
    segment_start: int
    size: int


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """What is written to a run's folder and history in one step.

    Attributes:
        start: Where the chunks go in the file of segments, in bytes.
        chunks: The bytes to write, one after the other.
        segments: The segments that are complete with these chunks.
        checkpoint: Where a later server continues after this batch; None: as before.
        files: Files that the notebook wrote on another machine.
    """

    start: int = 0
    chunks: Sequence[bytes] = ()
    segments: Sequence[Segment] = ()
    checkpoint: Checkpoint | None = None
    files: Sequence[FileEvent] = ()


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A kernelspec: its name, its language, its warm kernels, and whether it is the default."""

    name: str
    language: str
    warm_counts: WarmCounts
    is_default: bool


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What a server can run, and how busy it is.

    Attributes:
        kernels: The kernelspecs, by name.
        workers: How many runs are executed concurrently.
        active: How many runs are executed now.
        queued: How many runs wait now.
        queue_size: How many runs may wait.
        default_notebook: The notebook of a Start that names none; empty: there is no default.
        has_notebook_root: Whether a Start can name a notebook by its path.
        uri_schemes: The allowed schemes of URIs; empty: URIs are not allowed.
        problem: Why no run can start now; empty: runs can start.
        share: The caller's share of the server.
    """

    kernels: Sequence[KernelInfo]
    workers: int
    active: int
    queued: int
    queue_size: int
    default_notebook: str
    has_notebook_root: bool
    uri_schemes: Sequence[str]
    problem: str
    share: ShareUse
