"""Calls a function in a process of its own that ends with the call, or with the caller.

For what a thread cannot do: to parse 64 MiB of JSON holds the interpreter for half a second, and a thread
that waits for a slow service cannot be ended. The process stays in the caller's session, leads a process
group, and executes `subprocess_program`, which documents the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")

END_SECONDS = 1.0
"""How long a process that has closed its output may take to end."""

_NO_ANSWER = (EOFError, BrokenPipeError, pickle.UnpicklingError)


class SubprocessError(RuntimeError):
    """The process ended without an answer, because it was out of memory or was killed, or did not start."""

    def __init__(self, code: int | None, why: str = "") -> None:
        super().__init__(why or f"a helper process exited with code {code}")
        self.code = code


def run_in_subprocess(
    function: Callable[_Arguments, _Answer], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Answer:
    """Call a function in a process of its own, and return what it returns; blocks.

    Args:
        function: A function of a module; arguments, answer and errors can be pickled.
        args: For the function.
        kwargs: For the function.

    Raises:
        SubprocessError: The process did not answer.
        Exception: Whatever the function raises.
    """
    with subprocess.Popen(  # noqa: S603 - this program
        command(function),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,
    ) as process:
        assert process.stdin is not None  # noqa: S101 - it was asked for
        assert process.stdout is not None  # noqa: S101 - the same
        try:
            pickle.dump((args, kwargs), process.stdin)
            process.stdin.flush()
            error, answer = _AnswerUnpickler(process.stdout).load()
        except _NO_ANSWER as failure:
            # Input that the process did not read would be flushed once more.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()
            raise SubprocessError(process.wait()) from failure
    result: _Answer = _checked(error, answer)
    return result


@dataclasses.dataclass(frozen=True, slots=True)
class SubprocessOptions:
    """How `start_in_subprocess` runs its process.

    Attributes:
        environment: The environment variables; None: those of this process.
        descriptors: Descriptors that the process inherits under their numbers.
        grace: Seconds that the process may take to clean up when the call is cancelled.
    """

    environment: Mapping[str, str] | None = None
    descriptors: Sequence[int] = ()
    grace: float = 0.0


async def start_in_subprocess(
    options: SubprocessOptions,
    function: Callable[_Arguments, _Answer],
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> _Answer:
    """Do the same without blocking, for small arguments; a call that is cancelled ends the process.

    Whatever the process has started in its group ends with it.

    Raises:
        SubprocessError: The process did not start, or did not answer.
        Exception: Whatever the function raises.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command(function),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=options.environment,
            pass_fds=options.descriptors,
            process_group=0,
        )
    # The limit of processes, descriptors or memory, or of the threads that wait for processes.
    except (OSError, RuntimeError) as failure:
        raise SubprocessError(None, f"a helper process cannot be started: {failure}") from failure
    assert process.stdin is not None  # noqa: S101 - it was asked for
    assert process.stdout is not None  # noqa: S101 - the same
    try:
        process.stdin.write(pickle.dumps((args, kwargs)))
        output = await process.stdout.read()
        await process.wait()
    finally:
        # Shielded, because the caller may be cancelled a second time.
        await asyncio.shield(_end(process, options.grace))
    try:
        error, answer = _AnswerUnpickler(io.BytesIO(output)).load()
    except _NO_ANSWER as failure:
        raise SubprocessError(process.returncode) from failure
    result: _Answer = _checked(error, answer)
    return result


def command(function: Callable[..., object]) -> list[str]:
    """Return the command of a process that calls a function; its arguments follow on standard input."""
    # -P: the working folder may have files named as modules.
    program = "notebook_runner_server.subprocess_program"
    return [sys.executable, "-P", "-m", program, function.__module__, function.__qualname__]


async def _end(process: asyncio.subprocess.Process, grace: float) -> None:
    """End a process with its group, and reap all of it."""
    assert process.stdin is not None  # noqa: S101 - it was asked for
    assert process.stdout is not None  # noqa: S101 - the same
    # At the end of its input the process cleans up; the end of its output shows that it has ended.
    process.stdin.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.stdout.read(), grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    await asyncio.to_thread(_reap, process.pid)


def _reap(group: int) -> None:
    """Reap the killed processes of a group that were handed to this process, the nearest subreaper."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


class _AnswerUnpickler(pickle.Unpickler):
    """Reads plain data, and this package's dataclasses and errors, so that an answer calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that an answer may have."""
        if module == "builtins" or module.startswith("notebook_runner_server."):
            found = super().find_class(module, name)
            if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, Exception)):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in an answer")


def _checked(error: Exception | None, answer: Any) -> Any:
    if error is not None:
        raise error
    return answer
