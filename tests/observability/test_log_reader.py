"""Whoever reads the log slowly, or not at all, holds up nobody."""

import json
import logging
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from notebook_runner_server import logs
from tests.support.calls import SECONDS, finish, inline, reach, start
from tests.support.server import PROGRAM

pytestmark = pytest.mark.integration

PIPE_BYTES = 64 * 1024


@contextmanager
def unread(state: Path) -> Iterator[tuple[subprocess.Popen[bytes], rpc.NotebookRunnerStub]]:
    """A server whose log is read until it serves, and not after."""
    command = [str(PROGRAM), "--listen", "127.0.0.1:0", "--state-dir", str(state), "--drain-timeout", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            lines = (json.loads(line) for line in process.stderr if line.startswith(b"{"))
            address = next(line["address"] for line in lines if line["event"] == "server_started")
            with grpc.insecure_channel(address) as channel:
                yield process, rpc.NotebookRunnerStub(channel)
        finally:
            process.kill()


def test_a_log_that_nobody_reads(tmp_path: Path) -> None:
    """Calls are answered, a run can be killed, and the server ends as it is told."""
    with unread(tmp_path) as (process, stub):
        run = start(stub, inline("import time; time.sleep(100_000)"))
        reach(stub, run.run_id, "cell_started")
        # Each has a line of 250 bytes and more.
        for _ in range(PIPE_BYTES // 250 * 2):
            stub.Info(pb.InfoRequest(), timeout=SECONDS)
        killed = stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS).run
        assert killed.state == pb.RUN_STATE_KILLED
        finish(stub, start(stub, inline("1")).run_id)
        process.terminate()
        assert process.wait(SECONDS) == 0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes one page until somebody reads."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_lines_that_are_lost_are_counted(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many wait, further ones are left out; the log says how many, when it is read again."""
    monkeypatch.setattr(logs, "MAX_WAITING", 10)
    reader, writer = pipe
    handler = logs.PatientHandler(writer)
    handler.setFormatter(logging.Formatter("%(message)s %(count)s", defaults={"count": ""}))
    long = "x" * PIPE_BYTES
    with closing(handler):
        for _ in range(100):
            handler.handle(logging.makeLogRecord({"msg": long}))
        text = ""
        # Until none waits: while as many wait as may, the next one would be left out as well.
        while (counted := told(text, long)) < 100:
            assert select.select([reader], [], [], SECONDS)[0], f"only {counted} of 100 lines"
            text += os.read(reader, PIPE_BYTES).decode()
        handler.handle(logging.makeLogRecord({"msg": "the last"}))
        while "the last" not in text:
            text += os.read(reader, PIPE_BYTES).decode()
    assert "log_lines_dropped" in text
    assert told(text, long) == 100


def told(text: str, long: str) -> int:
    """How many of the long lines are in a log, whole or counted as lost."""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    lost = sum(int(line.rpartition(" ")[2]) for line in lines if line.startswith("log_lines_dropped"))
    return lost + sum(line.startswith(long) for line in lines)


def test_lines_stay_whole_and_in_order(pipe: tuple[int, int]) -> None:
    """Also where some are written in the calling thread and others, for want of space, in the log's own."""
    reader, writer = pipe
    handler = logs.PatientHandler(writer)
    lines = [f"{number} {'x' * 1000}" for number in range(500)]
    text = ""
    with closing(handler):
        for line in lines:
            handler.handle(logging.makeLogRecord({"msg": line}))
            if line.startswith("250 "):
                text += os.read(reader, 100 * len(line)).decode()
        while text.count("\n") < len(lines):
            text += os.read(reader, PIPE_BYTES).decode()
    assert text.splitlines() == lines


def test_a_log_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has gone is no reason to fail, nor to wait at the end."""
    monkeypatch.setattr(logs, "LAST_SECONDS", 3600.0)
    reader, writer = os.pipe()
    os.close(reader)
    handler = logs.PatientHandler(writer)
    handler.handle(logging.makeLogRecord({"msg": "nobody"}))
    handler.close()
    os.close(writer)
