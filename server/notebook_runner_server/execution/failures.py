"""Describes how processes, cells and runs failed, in the words of a run's failure."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from notebook_runner_server.execution.interface import Cause, Failure

MAX_TRACEBACK = 128 * 1024
MAX_NAME = 256
MAX_EXCEPTION_MESSAGE = 4096  # bytes of UTF-8

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

MESSAGES = {
    Cause.RUN_TIMEOUT: "The run exceeded its time limit of {0.run_timeout:g} s.",
    Cause.CELL_TIMEOUT: "The cell exceeded its time limit of {0.cell_timeout:g} s.",
    Cause.OUTPUT_TIMEOUT: "The cell exceeded its limit of {0.output_timeout:g} s without output.",
    Cause.KILL_REQUESTED: "The run was killed on request.",
    Cause.SERVER_STOPPED: "The server was stopped before the run ended.",
    Cause.SERVER_DIED: "The run's server stopped renewing the run's deadline, and counts as dead.",
    Cause.WORKER_DIED: "The run's worker was stopped before the run ended.",
    Cause.STORAGE_FAILED: "The server could not store the events of the run.",
}
"""The message for each cause that stops a run, to be formatted with the run's limits."""

WAITS_FOR_INPUT = (
    " The process {!r} was waiting for input from a terminal, which a run does not have. "
    "Provide the input in another way, for example from a file."
)
"""Added to the message of a time-out if a process was waiting for input."""


MISSING_FILE = (
    "The run has a private working folder, with no other files than those of its Start: send the file with "
    "`files`, or run the notebook by its path under the server's notebook root."
)
"""Added to the failure of a run with a private working folder whose notebook does not find a file."""

MISSING_MODULE = (
    "The run has a private working folder, with no other modules than those of its Start: send the "
    "notebook's own modules with `files`, or install the package in the environment of the kernel."
)
"""Added to the failure of such a run whose notebook does not find a module."""

# The file's name ends the message of a FileNotFoundError, in quotes.
_ABSOLUTE = re.compile(r"""['"](/|[a-z][a-z0-9+.-]*://)[^'"]*['"]$""")


@dataclass(frozen=True, slots=True)
class CellError:
    """The exception of a cell.

    Attributes:
        name: The exception's class.
        message: Its text.
        traceback: Its traceback, without terminal colours.
        note: An explanation of the server; empty: none.
    """

    name: str
    message: str
    traceback: str
    note: str = ""


def plain(text: str) -> str:
    """Return text without terminal colours and lone surrogates."""
    return _ANSI.sub("", text).encode(errors="replace").decode()


def cut(text: str, size: int = MAX_EXCEPTION_MESSAGE) -> str:
    """Return the beginning of a text, at most `size` bytes of UTF-8."""
    return text.encode(errors="replace")[:size].decode(errors="ignore")


def bounded(traceback: str) -> str:
    """Return the end of a traceback as plain text, as much as a failure may have."""
    return plain(traceback)[-MAX_TRACEBACK:]


def missing_file_hint(error: CellError, folder: str) -> str:
    """Return what to do about a file or module that a private working folder lacks; empty: nothing lacks."""
    if error.name == "ModuleNotFoundError":
        return MISSING_MODULE
    # A program, or a path that no working folder has, is missing for another reason.
    is_elsewhere = _ABSOLUTE.search(error.message) is not None and folder not in error.message
    is_program = "_execute_child" in error.traceback
    return MISSING_FILE if error.name == "FileNotFoundError" and not (is_elsewhere or is_program) else ""


def cell_failure(error: CellError, index: int | None, cell_id: str, hint: str = "") -> Failure:
    """Return the failure of a run whose cell raised an exception; `hint`: added if the error has no note."""
    message = cut(plain(error.message))
    summary = f"The cell raised {error.name}: {message}"
    note = error.note or hint
    return Failure(
        Cause.CELL_ERROR,
        # The note is short, and must remain however long the exception's text is.
        f"{cut(summary, MAX_EXCEPTION_MESSAGE - len(note.encode()) - 2)}. {note}" if note else cut(summary),
        index,
        cell_id,
        exception_name=plain(error.name)[:MAX_NAME],
        exception_message=message,
        traceback=bounded(error.traceback),
    )


def kernel_failure(
    exit_code: int | None, log: str, index: int | None, cell_id: str, *, ready: bool, out_of_memory: bool
) -> Failure:
    """Return the failure of a run whose kernel died.

    Args:
        exit_code: The kernel's; see `describe_exit`.
        log: The end of the kernel's own output.
        index: The cell that it executed.
        cell_id: The cell's id.
        ready: Whether the kernel had become ready.
        out_of_memory: Whether the system killed a process because memory ran out.
    """
    how, name, code = describe_exit(exit_code)
    cause = Cause.KERNEL_SIGNALED if name else Cause.KERNEL_EXITED
    if name == "SIGKILL" and out_of_memory:
        cause, how = Cause.OUT_OF_MEMORY, "was killed by the operating system, which was out of memory"
    elif not ready:
        cause, how = Cause.KERNEL_NOT_READY, f"{how} before it was ready"
    return Failure(cause, f"The kernel {how}.", index, cell_id, traceback=log, signal=name, exit_code=code)


def worker_failure(error: BaseException, index: int | None, cell_id: str) -> Failure:
    """Return the failure of a run whose worker failed."""
    message = plain(f"The worker failed: {type(error).__name__}: {error}")
    return Failure(Cause.WORKER_DIED, cut(message), index, cell_id)


def name_of(number: int) -> str:
    """Return the name of a signal; real-time signals count from SIGRTMIN."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def describe_exit(code: int | None) -> tuple[str, str, int | None]:
    """Describe an exit code: a sentence's end, the signal's name or "", the exit code or None.

    Args:
        code: As of `subprocess`: negative for the signal that killed the process; None: unknown.
    """
    if code is None:
        return "died", "", None
    if code < 0:
        name = name_of(-code)
        return f"was killed by {name}", name, None
    return f"exited with code {code}", "", code
