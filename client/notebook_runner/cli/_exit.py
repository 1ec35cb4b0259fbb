"""The command's exit codes."""

from __future__ import annotations

import enum

from notebook_runner.errors import (
    AccessDenied,
    InvalidRequest,
    LoginFailed,
    NotebookRunnerError,
    QuotaExceeded,
    RunnerBusy,
    RunNotFound,
)
from notebook_runner.v1 import notebook_runner_pb2 as pb

__all__ = ["HELP", "ExitCode", "code_of_error", "code_of_run"]


class ExitCode(enum.IntEnum):
    """The exit codes; `HELP` explains them."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    TIMED_OUT = 3
    KILLED = 4
    CRASHED = 5
    INTERRUPTED = 6
    BUSY = 7
    UNAVAILABLE = 8
    CTRL_C = 130


# \b keeps click from filling the lines into one paragraph.
HELP = """\b
Exit codes:
  0    the run succeeded, or the command completed
  1    the run failed: a cell raised an exception; `doctor` found a problem; or you answered no
  2    the command or the request was invalid
  3    the run timed out
  4    the run was killed
  5    the run crashed: its kernel or worker died
  6    the run was interrupted: the server stopped
  7    the server is busy, or your share of it is used up, and it did not start the run
  8    the server cannot be reached, or is unavailable
  130  Ctrl-C; a run that was started continues
"""

_OF_STATE = {
    pb.RUN_STATE_FAILED: ExitCode.FAILED,
    pb.RUN_STATE_TIMED_OUT: ExitCode.TIMED_OUT,
    pb.RUN_STATE_KILLED: ExitCode.KILLED,
    pb.RUN_STATE_CRASHED: ExitCode.CRASHED,
    pb.RUN_STATE_INTERRUPTED: ExitCode.INTERRUPTED,
}


def code_of_run(run: pb.Run) -> ExitCode:
    """Return the exit code for the state of a run; 0 if it has not ended."""
    return _OF_STATE.get(run.state, ExitCode.SUCCEEDED)


def code_of_error(error: NotebookRunnerError) -> ExitCode:
    """Return the exit code for a call that failed."""
    if isinstance(error, RunnerBusy | QuotaExceeded):
        return ExitCode.BUSY
    if isinstance(error, InvalidRequest | RunNotFound | AccessDenied | LoginFailed):
        return ExitCode.USAGE
    return ExitCode.UNAVAILABLE
