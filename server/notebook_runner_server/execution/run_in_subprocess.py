"""Calls a function in a process of its own, which ends with it: for what holds the interpreter for long.

A thread is not enough for that: to parse JSON of 64 MiB takes the interpreter half a second, in which no
other thread can do anything. The process stays in the caller's session, and ends when the caller is gone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, ParamSpec, TypeVar

from notebook_runner_server.execution.confinement import confine

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


class SubprocessError(RuntimeError):
    """The process ended without an answer."""


def run_in_subprocess(
    function: Callable[_Arguments, _Answer], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Answer:
    """Call a function in a process of its own, and return what it returns; blocks.

    Args:
        function: One that a module has by its name; arguments, answer and errors can be pickled.
        args: For the function.
        kwargs: For the function.

    Raises:
        AsideError: The process did not answer: it had no memory, or was killed.
    """
    command = [sys.executable, "-P", "-m", __name__]
    with subprocess.Popen(  # noqa: S603 - this program
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,
    ) as process:
        assert process.stdin is not None  # noqa: S101 - it was asked for
        assert process.stdout is not None  # noqa: S101 - the same
        try:
            pickle.dump((function, args, kwargs), process.stdin)
            process.stdin.flush()
            error, answer = pickle.load(process.stdout)  # noqa: S301 - this program's own
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as failure:
            process.kill()
            # What it did not read, it never will.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            raise SubprocessError(f"a helper process ended with code {process.wait()}") from failure
    if error is not None:
        raise error
    result: _Answer = answer
    return result


def _end_with(lifeline: BinaryIO) -> None:
    lifeline.read()
    os._exit(0)


def main() -> None:
    """Answer the one call that comes on standard input, on standard output."""
    # It has the server's environment, and reads notebooks.
    confine.set_dumpable(False)
    function, args, kwargs = pickle.load(sys.stdin.buffer)  # noqa: S301 - this program's own
    # The caller closes it when it has the answer, or is gone.
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    answer: tuple[Exception | None, Any]
    try:
        answer = None, function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the caller's to know
        answer = error, None
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
