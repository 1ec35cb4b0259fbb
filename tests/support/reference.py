"""nbclient itself in a process of its own, asked for one execution after the other.

Run as a program, it reads one JSON request a line and answers one JSON line.
"""

import contextlib
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

import nbformat
import zmq
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from typing_extensions import override

# Far more than nbclient takes for any notebook of the tests.
SECONDS = 90.0


class Executed(NamedTuple):
    """The notebook as nbclient leaves it, and the exception it raised, by name."""

    notebook: NotebookNode
    error: str


class Reference:
    """Executes notebooks with nbclient between `with` and its end, in the notebook's own folder."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> Self:
        self._start()
        return self

    def _start(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(
            command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    def execute(self, path: Path, **options: Any) -> Executed:
        """Executes one notebook with these options of NotebookClient."""
        self.ask(path, **options)
        return self.answer()

    def ask(self, path: Path, **options: Any) -> None:
        """Begins an execution, whose answer is read later."""
        assert self._process.stdin is not None
        print(json.dumps({"path": str(path), "options": options}), file=self._process.stdin, flush=True)

    def answer(self) -> Executed:
        """Waits for the execution that was asked for."""
        assert self._process.stdout is not None
        is_there = select.select([self._process.stdout], [], [], SECONDS)[0]
        if not is_there:
            # It says where it hangs. The next execution is not to wait for this one.
            self._process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            self._process.kill()
            self._process.wait()
            self._start()
            raise AssertionError("nbclient itself did not come to an end")
        answer = json.loads(self._process.stdout.readline())
        return Executed(nbformat.from_dict(answer["notebook"]), answer["error"])


class Client(NotebookClient):
    """nbclient as it is, but for a lost wake-up that makes it hang on output widgets now and then.

    It sends on the shell socket past pyzmq's asyncio layer while it awaits the reply there; asking for
    the socket's events makes pyzmq look again.
    """

    @override
    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> Any:
        """Takes a message as nbclient does, then has pyzmq look for the reply."""
        try:
            return super().process_message(msg, cell, cell_index)
        finally:
            if msg["msg_type"].startswith("comm") and self.kc is not None:
                self.kc.shell_channel.socket.get(zmq.EVENTS)


def _execute(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    node = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    error = ""
    try:
        Client(node, resources=resources, **options).execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as raised:
        error = type(raised).__name__
    return {"notebook": node, "error": error}


def _serve(answers: TextIO) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        answer = _execute(Path(request["path"]), request["options"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # What kernels write to the inherited standard output must not mix with the answers.
    with os.fdopen(os.dup(1), "w") as own_output:
        os.dup2(2, 1)
        _serve(own_output)
