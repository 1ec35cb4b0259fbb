"""The backend interface: what executes runs, as the rest of the server sees it.

`Backend.submit(job)` answers a `RunHandle`, whose events end with exactly one `Ended`. Nothing crosses
this line but the frozen dataclasses below, so that a backend may be a process on this machine or a
cluster; nothing above it knows about processes.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A piece of a file that the notebook left in its run folder, which was on another machine.

    Attributes:
        path: Where the file is in the folder.
        start: Where the piece goes, in bytes.
        data: The piece.
        mode: The file's permissions.
        modified: When it was changed last, in nanoseconds since the epoch.
    """

    path: str
    start: int
    data: bytes
    mode: int
    modified: int


@dataclass(frozen=True, slots=True)
class FilesLeft:
    """The run folder was on another machine, and holds too much to be brought from there: `size` in bytes."""

    size: int


FileEvent = FilePiece | FilesLeft


MAX_TYPES = 64
"""Of how many MIME types the event of a display tells; the contract's."""


class Cause(enum.Enum):
    """What ended a run before its end; the contract's FailureCause."""

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
    """What ended a run before its end, and where. Empty strings and None: not known, or none."""

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
    """What a run may take; zero: as much as it likes.

    Attributes:
        run_timeout: Seconds from the start on a worker.
        cell_timeout: Seconds for one cell.
        output_timeout: Seconds that a cell may go without any output.
        memory_bytes: Resident memory of all processes together.
        cell_output_bytes: Output of one cell; what is over is cut.
        run_output_bytes: Output of all cells together; what is over is cut.
        processes: Processes at once.
    """

    run_timeout: float = 0.0
    cell_timeout: float = 0.0
    output_timeout: float = 0.0
    memory_bytes: int = 0
    cell_output_bytes: int = 0
    run_output_bytes: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One run, as a backend needs it.

    Attributes:
        run_id: The run's id.
        notebook: The notebook to execute as it stands, JSON in nbformat 4.
        kernel_name: The kernelspec to execute it with.
        working_folder: Where the kernel is started.
        run_folder: The run's private folder, told to the kernel as NOTEBOOK_RUNNER_RUN_DIR.
        limits: What it may take.
        allow_errors: Go on after a cell that raises.
        environment: Variables for the kernel.
    """

    run_id: str
    notebook: bytes
    kernel_name: str
    working_folder: str
    run_folder: str
    limits: Limits
    allow_errors: bool
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KernelReady:
    """The kernel answers; cells are executed from now on. `is_warm`: it was there before the run."""

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
class DisplayOutput:
    """Rich data: pairs of MIME type and size in bytes. `output_type` is nbformat's.

    There are at most `MAX_TYPES` of them; `omitted` is how many more the kernel sent.
    """

    cell_index: int
    output_type: str
    data: tuple[tuple[str, int], ...]
    omitted: int = 0


@dataclass(frozen=True, slots=True)
class ErrorOutput:
    """The cell raised an exception."""

    cell_index: int
    exception_name: str
    exception_message: str


@dataclass(frozen=True, slots=True)
class ClearOutput:
    """The cell asked to clear its output, at once or (`wait`) when the next output arrives."""

    cell_index: int
    wait: bool


@dataclass(frozen=True, slots=True)
class OutputCut:
    """The cell's further output is left out: a limit in bytes is reached, its own or the whole run's."""

    cell_index: int
    limit_bytes: int
    whole_run: bool


@dataclass(frozen=True, slots=True)
class CellFinished:
    """A cell has ended. `duration` in seconds, by a monotonic clock; `execution_count` 0: none."""

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
    """The number of the batch that this comes with: a later server goes on after it (`Backend.find`)."""

    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The run has ended and every process of it is gone. `failure` None: every cell was executed.

    `peak_memory_bytes` is the most that the kernel's own process had in memory; zero: not known.
    """

    failure: Failure | None
    processes_ended: int = 0
    # A measurement: two runs that end alike differ in it.
    peak_memory_bytes: int = field(default=0, compare=False)


CellOutput = StreamOutput | DisplayOutput | ErrorOutput | ClearOutput | OutputCut
CellEvent = CellStarted | CellOutput | CellFinished
ExecutionEvent = KernelReady | CellEvent | SegmentChunk | FileEvent | ReplayMark | Ended


@dataclass(frozen=True, slots=True)
class WarmCounts:
    """Kernels of one kernelspec that are kept for the next runs, over all workers.

    Attributes:
        ready: How many a run could have at once.
        wanted: How many there are to be.
    """

    ready: int
    wanted: int


class RunHandle(Protocol):
    """A run on a backend."""

    def events(self) -> AsyncGenerator[Sequence[ExecutionEvent]]:
        """Yield what happens, in order, as many events at a time as are there; the last is `Ended`."""

    def stop(self, cause: Cause, grace_period: float) -> None:
        """Ask that the run be ended, and answer at once: `Ended` tells when it is.

        Args:
            cause: What the run's failure shall name.
            grace_period: Seconds that the cell may take after an interrupt; zero: end it now.
        """


class Backend(Protocol):
    """Executes runs. What it tells of itself may be asked from any thread."""

    @property
    def survives_restart(self) -> bool:
        """Whether runs go on without the server, until the next one finds them."""

    @property
    def capacity(self) -> int:
        """How many runs it executes at once, now."""

    @property
    def kernels(self) -> Mapping[str, str]:
        """The kernelspecs it has, by name, and the language of each."""

    @property
    def warm_counts(self) -> Mapping[str, WarmCounts]:
        """The kernels that are kept for the next runs, by kernelspec; one that is not here has none."""

    @property
    def problem(self) -> str:
        """Why no run can start now, as a sentence; empty: runs can start, or wait for a worker."""

    @property
    def worker_deaths(self) -> int:
        """How many workers have died, or had to be ended, and were replaced."""

    async def start(self) -> None:
        """Make it ready to execute runs."""

    async def wait_for_worker(self) -> None:
        """Wait until `submit` may be called."""

    def submit(self, job: Job) -> RunHandle:
        """Execute a job. Call it only when a worker is free."""

    def find(self, run_id: str, mark: int) -> RunHandle | None:
        """Return a run that an earlier server has begun; None: it has ended with that server.

        Args:
            run_id: The run.
            mark: The number of the last `ReplayMark` that is durable; zero: there is none.
        """

    def leave(self) -> None:
        """Let the runs go on without the server; called when it stops, if they outlive it."""

    async def close(self) -> None:
        """End all that it started, but what outlives the server; no process of it is left."""
