"""The interface of backends, which execute runs.

`Backend.submit(job)` returns a `RunHandle`, whose events end with exactly one `Ended`. Only the frozen
dataclasses below cross this interface, so that a backend may be a process on this machine or a cluster;
nothing above it knows about processes.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A piece of a file of a run folder on another machine.

    Attributes:
        path: The file's path in the folder.
        start: The piece's offset in bytes.
        data: The bytes of the piece.
        mode: The file's permissions.
        modified: Time of the last change, in nanoseconds since the epoch.
    """

    path: str
    start: int
    data: bytes
    mode: int
    modified: int


@dataclass(frozen=True, slots=True)
class FilesLeft:
    """A run folder on another machine is too large to be transferred: `size` in bytes."""

    size: int


FileEvent = FilePiece | FilesLeft


MAX_TYPES = 64
"""MIME types in the event of a display; the contract's limit."""


MAX_TEXT_BYTES = 64 * 1024
"""UTF-8 bytes in the event of printed text; the contract's limit."""


MAX_RESULT_NAME = 128
"""Characters in the name of a result value; the contract's limit."""


MAX_RESULT_BYTES = 16 * 1024
"""UTF-8 bytes of a result value as JSON; the contract's limit."""


MAX_CONTENT_BYTES = 2 * 1024 * 1024 - 128 * 1024
"""Content of all representations in the event of a display: the contract's limit of a message, 2 MiB, less
what the message has besides."""


class Cause(enum.Enum):
    """Why a run did not succeed; the contract's FailureCause."""

    CELL_ERROR = "cell_error"
    RUN_TIMEOUT = "run_timeout"
    CELL_TIMEOUT = "cell_timeout"
    OUTPUT_TIMEOUT = "output_timeout"
    KILL_REQUESTED = "kill_requested"
    KERNEL_SIGNALED = "kernel_signaled"
    KERNEL_EXITED = "kernel_exited"
    OUT_OF_MEMORY = "out_of_memory"
    KERNEL_NOT_READY = "kernel_not_ready"
    WORKER_DIED = "worker_died"
    STORAGE_FAILED = "storage_failed"
    SERVER_STOPPED = "server_stopped"
    SERVER_DIED = "server_died"
    PROCESS_LIMIT = "process_limit"


class CellOutcome(enum.Enum):
    """How a cell ended; the contract's CellOutcome."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERROR_ALLOWED = "error_allowed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why and where a run failed. Empty strings and None: unknown, or none."""

    cause: Cause
    message: str
    cell_index: int | None = None
    cell_id: str = ""
    exception_name: str = ""
    exception_message: str = ""
    traceback: str = ""
    signal: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a run; zero: unlimited.

    Attributes:
        run_timeout: Seconds from the start on a worker.
        cell_timeout: Seconds for one cell.
        output_timeout: Seconds that a cell may run without output.
        memory_bytes: Memory of all processes together.
        cell_output_bytes: Output of one cell; the rest is cut.
        run_output_bytes: Output of all cells together; the rest is cut.
        processes: Concurrent processes.
    """

    run_timeout: float = 0.0
    cell_timeout: float = 0.0
    output_timeout: float = 0.0
    memory_bytes: int = 0
    cell_output_bytes: int = 0
    run_output_bytes: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that a request brings: its path in the run's working folder, and its content."""

    path: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Job:
    """The input of one run.

    Attributes:
        run_id: The run's id.
        notebook: The notebook to execute, JSON in nbformat 4.
        kernel_name: The kernelspec to execute it with.
        working_folder: The working folder of the kernel.
        run_folder: The run's private folder, NOTEBOOK_RUNNER_RUN_DIR of the kernel.
        limits: The run's limits.
        allow_errors: Continue after a cell that raises an exception.
        environment: Variables for the kernel.
        files: Files to write into the run's folder before the first cell.
        is_private: Whether the run was given its private folder to work in, and no folder of notebooks.
        display_data_bytes: Maximum size of a representation whose content is sent with its event; zero: none.
    """

    run_id: str
    notebook: bytes
    kernel_name: str
    working_folder: str
    run_folder: str
    limits: Limits
    allow_errors: bool
    environment: Mapping[str, str]
    files: Sequence[InputFile] = ()
    is_private: bool = False
    display_data_bytes: int = 0


@dataclass(frozen=True, slots=True)
class KernelReady:
    """The kernel is ready, and cells are executed from now on. `is_warm`: it was a warm kernel."""

    is_warm: bool = False


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A code cell was sent to the kernel. `first_line` has at most 200 characters."""

    cell_index: int
    cell_id: str
    first_line: str


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """Printed text, at most 64 KiB of UTF-8; `name` is "stdout" or "stderr"."""

    cell_index: int
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class ResultValue:
    """A named value that a notebook displayed; `value_json` is empty if the value is too large."""

    name: str
    value_json: str


@dataclass(frozen=True, slots=True)
class KeptContent:
    """Where the server keeps the content of one representation: a range of the run's file of segments.

    Attributes:
        index: The representation's index in the display.
        start: Where the content begins, in bytes.
        length: Its length in bytes.
        checksum: Its CRC-32.
    """

    index: int
    start: int
    length: int
    checksum: int


@dataclass(frozen=True, slots=True)
class DisplayOutput:
    """Rich data: pairs of MIME type and size in bytes. `output_type` is nbformat's.

    There are at most `MAX_TYPES` pairs; `omitted` is the number of further ones. `result` is the result value
    that the display sets. `contents` are representations, by their index in `data`, on their way to the
    server; `kept` says where it keeps them.
    """

    cell_index: int
    output_type: str
    data: tuple[tuple[str, int], ...]
    omitted: int = 0
    result: ResultValue | None = None
    contents: tuple[tuple[int, bytes], ...] = ()
    kept: tuple[KeptContent, ...] = ()


@dataclass(frozen=True, slots=True)
class ErrorOutput:
    """The cell raised an exception."""

    cell_index: int
    exception_name: str
    exception_message: str


@dataclass(frozen=True, slots=True)
class ClearOutput:
    """The cell asked to clear its output, immediately or (`wait`) when the next output arrives."""

    cell_index: int
    wait: bool


@dataclass(frozen=True, slots=True)
class OutputCut:
    """Further output of the cell is dropped: its own limit in bytes, or the whole run's, is reached."""

    cell_index: int
    limit_bytes: int
    whole_run: bool


@dataclass(frozen=True, slots=True)
class CellFinished:
    """A cell ended. `duration` in seconds of a monotonic clock; `execution_count` 0: none."""

    cell_index: int
    cell_id: str
    execution_count: int
    duration: float
    outcome: CellOutcome


@dataclass(frozen=True, slots=True)
class SegmentChunk:
    """A chunk of one segment of the executed notebook: a cell by its index, or the `TAIL`.

    The chunks of a segment (`execution.segments`) follow each other without another segment's in between;
    `last` ends the segment. A segment that is sent again replaces its earlier version. A segment comes before
    the event that announces it.
    """

    segment: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class ReplayMark:
    """The number of this batch, after which a later server continues (`Backend.find`)."""

    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The run has ended, and none of its processes is left. `failure` None: every cell was executed.

    `peak_memory_bytes` is the largest memory that its processes had together (zero: unknown), and
    `cpu_seconds` their processor time, user and system (None: unknown).
    """

    failure: Failure | None
    processes_ended: int = 0
    # Measurements: two runs that end alike differ in them.
    peak_memory_bytes: int = field(default=0, compare=False)
    cpu_seconds: float | None = field(default=None, compare=False)


CellOutput = StreamOutput | DisplayOutput | ErrorOutput | ClearOutput | OutputCut
CellEvent = CellStarted | CellOutput | CellFinished
ExecutionEvent = KernelReady | CellEvent | SegmentChunk | FileEvent | ReplayMark | Ended


@dataclass(frozen=True, slots=True)
class WarmCounts:
    """Numbers of warm kernels of one kernelspec, over all workers.

    Attributes:
        ready: Kernels that runs can use now.
        wanted: Kernels to keep.
    """

    ready: int
    wanted: int


class RunHandle(Protocol):
    """A run on a backend."""

    def events(self) -> AsyncGenerator[Sequence[ExecutionEvent]]:
        """Yield events in order, all that are available at a time; the last is `Ended`."""

    def stop(self, cause: Cause, grace_period: float) -> None:
        """Request the end of the run, and return immediately; `Ended` follows.

        Args:
            cause: The cause in the run's failure.
            grace_period: Seconds that the cell may take after an interrupt; zero: end it now.
        """


class Backend(Protocol):
    """Executes runs. Its properties may be read from any thread."""

    @property
    def survives_restart(self) -> bool:
        """Whether runs continue without the server until the next server finds them."""

    @property
    def capacity(self) -> int:
        """Number of runs that it can execute concurrently now."""

    @property
    def kernels(self) -> Mapping[str, str]:
        """The kernelspecs with their languages."""

    @property
    def warm_counts(self) -> Mapping[str, WarmCounts]:
        """The warm kernels by kernelspec; a missing kernelspec has none."""

    @property
    def problem(self) -> str:
        """Why no run can start now, as a sentence; empty: runs can start, or wait for a worker."""

    @property
    def worker_deaths(self) -> int:
        """Number of workers that died or had to be killed, and were replaced."""

    async def start(self) -> None:
        """Get ready to execute runs."""

    async def wait_for_worker(self) -> None:
        """Wait until `submit` may be called."""

    def submit(self, job: Job) -> RunHandle:
        """Execute a job; call it only after `wait_for_worker`."""

    def find(self, run_id: str, mark: int) -> RunHandle | None:
        """Return a run that an earlier server started; None: it has ended with that server.

        Args:
            run_id: The run.
            mark: The number of the last durable `ReplayMark`; zero: none.
        """

    def set_deadline(self, moment: float) -> None:
        """End all runs at a moment of the monotonic clock, unless a later one follows.

        Runs that survive a restart of the server have deadlines of their own.
        """

    def leave(self) -> None:
        """Let the runs continue without the server, which stops; called if `survives_restart`."""

    async def close(self) -> None:
        """End all workers and runs, except runs that survive a restart."""
