"""Which process waits for a terminal's input, looked at from outside."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from notebook_runner_server.execution.processes import reader_of_terminal
from tests.support.polling import pause


@contextmanager
def on_a_terminal(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command whose standard input is a terminal at which nobody types."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("bash", "-c", "read answer"), "bash"),
        (("cat",), "cat"),
        ((sys.executable, "-c", "input()"), "python"),
        ((sys.executable, "-c", "import readline; input()"), "python"),
    ],
    ids=["builtin", "program", "input", "readline"],
)
def test_who_reads_is_named(command: tuple[str, ...], name: str) -> None:
    """Once it waits, whichever way it reads."""
    with on_a_terminal(*command) as process:
        while not (found := reader_of_terminal([process.pid])):
            assert process.poll() is None
            pause()
        assert found.startswith(name)


def test_who_waits_for_something_else_is_not_named() -> None:
    """A pipe is no terminal, and one that sleeps reads nothing, though its input is a terminal."""
    command = ["cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as piped, on_a_terminal("sleep", "100") as sleeps:
        for process in (piped, sleeps):
            while not os.path.exists(f"/proc/{process.pid}/exe") or _state(process.pid) != "S":
                pause()
        assert reader_of_terminal([piped.pid, sleeps.pid]) == ""
        assert piped.stdin is not None
        piped.stdin.close()


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        return stat.read().rpartition(")")[2].split()[0]
