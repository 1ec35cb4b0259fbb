"""The canonical lines: one for each call and each run, with ids, and nothing of a notebook in them."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, finish, inline, reach, start, struct
from tests.support.gate import Gate
from tests.support.killable import KillableServer
from tests.support.notebooks import code
from tests.support.polling import pause
from tests.support.secure import bearer, new_token, own_channel
from tests.support.server import SERVICE, Server

PRIVATE = "swordfish"


def lines(server: Server, event: str, count: int = 1, **fields: str) -> list[dict[str, Any]]:
    """The lines with this event and these fields, when there are so many."""
    end = time.monotonic() + SECONDS
    while True:
        found = [one for one in [*server.log] if {"event": event, **fields}.items() <= one.items()]
        if len(found) >= count:
            return found
        assert time.monotonic() < end, server.tail()
        pause()


def test_a_run_and_its_calls(server: Server) -> None:
    """Start, Progress and the run's own line have the run's id; the run has the id of its Start."""
    metadata = (("x-request-id", "nightly/2026-11-25:7"),)
    begin = time.monotonic()
    run_id = server.stub.Start(inline("print('äb')", "1"), timeout=SECONDS, metadata=metadata).run.run_id
    messages = list(server.stub.Progress(pb.ProgressRequest(run_id=run_id), timeout=SECONDS))
    elapsed = time.monotonic() - begin
    (line,) = lines(server, "run", run_id=run_id)
    started, followed = lines(server, "rpc", 2, run_id=run_id)
    assert started["request_id"] == line["request_id"] == "nightly/2026-11-25:7"
    assert (started["method"], started["code"]) == ("NotebookRunner/Start", "OK")
    assert started["peer"].startswith("ipv4:127.0.0.1:")
    assert (followed["method"], followed["code"]) == ("NotebookRunner/Progress", "OK")
    # With heartbeats, if the run takes long.
    assert followed["messages"] == len(messages)
    assert followed["request_id"] != line["request_id"]
    assert (line["state"], line["cause"], line["cells"], line["cells_total"]) == ("succeeded", "", 2, 2)
    assert line["kernel_name"] == "python3"
    assert line["start"] in {"warm", "cold"}
    assert line["output_bytes"] == len("äb\n1".encode())
    assert line["peak_memory_bytes"] > 10_000_000
    assert line["processes_ended"] >= 1
    phases = [line[f"{phase}_seconds"] for phase in ("queued", "starting", "running")]
    assert min(phases) > 0
    assert sum(phases) < elapsed
    assert "trace_id" not in line
    assert len(lines(server, "run", run_id=run_id)) == 1


@pytest.mark.parametrize("sent", ["a b", "x" * 129, "", '"}\\n{"event": "forged"'])
def test_an_id_that_is_not_sane(server: Server, sent: str) -> None:
    """An id that is too long, or is no name, is not taken; the call gets one of the server's."""
    run_id = server.stub.Start(inline("1"), timeout=SECONDS, metadata=(("x-request-id", sent),)).run.run_id
    finish(server.stub, run_id)
    (line,) = lines(server, "rpc", run_id=run_id, method="NotebookRunner/Start")
    assert len(line["request_id"]) == 16
    int(line["request_id"], 16)


def test_a_call_that_is_refused(server: Server) -> None:
    """The line has status and reason."""
    with pytest.raises(grpc.RpcError):
        server.stub.Kill(
            pb.KillRequest(run_id="nobody"), timeout=SECONDS, metadata=(("x-request-id", "refused"),)
        )
    (line,) = lines(server, "rpc", request_id="refused")
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "RUN_NOT_FOUND")


def test_a_method_that_there_is_not(server: Server) -> None:
    """It has a line, without the name that its caller gave it."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(SERVICE + "Swordfish")
    with pytest.raises(grpc.RpcError):
        call(b"", timeout=SECONDS, metadata=(("x-request-id", "no-method"),))
    (line,) = lines(server, "rpc", request_id="no-method")
    assert (line["method"], line["code"]) == ("other", "UNIMPLEMENTED")


def test_a_stream_that_is_left(server: Server, gate: Gate) -> None:
    """A caller that goes away is said to have, with what it was sent."""
    run_id = start(server.stub, inline(gate.source)).run_id
    reach(server.stub, run_id, "cell_started")
    stream = server.stub.Progress(
        pb.ProgressRequest(run_id=run_id), metadata=(("x-request-id", "left"),), timeout=SECONDS
    )
    next(stream)
    stream.cancel()
    (line,) = lines(server, "rpc", request_id="left")
    assert (line["code"], line["run_id"]) == ("CANCELLED", run_id)
    assert line["messages"] >= 1
    gate.open()
    finish(server.stub, run_id)


def test_a_reader_that_takes_nothing(server: Server) -> None:
    """A stream that is cut off while a message is on its way has its line, with its ids, as cancelled."""
    run_id = start(server.stub, inline("for _ in range(100): print('x' * 60_000, flush=True)")).run_id
    finish(server.stub, run_id)
    with own_channel(server.target) as channel:
        stub = rpc.NotebookRunnerStub(channel)
        stream = stub.Progress(pb.ProgressRequest(run_id=run_id), metadata=(("x-request-id", "stuck"),))
        next(stream)
    (line,) = lines(server, "rpc", request_id="stuck")
    assert (line["code"], line["run_id"]) == ("CANCELLED", run_id)
    # 100 outputs, and some: it was not sent all.
    assert 1 <= line["messages"] < 100


def test_nothing_of_a_notebook(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """What is printed, raised, or given as parameter or variable is not in the log; no token either."""
    file = tmp_path / "tokens"
    token = new_token(file, "ci")
    server = make_server("--log-level", "debug", "--tokens-file", str(file))
    cells = [
        code("value = ''", "parameters"),
        code("import os, sys; print(value, os.environ['OWN']); print(value, file=sys.stderr)"),
        code("value"),
        code("class Error(Exception): pass\nraise Error(value)"),
    ]
    request = inline(*cells, parameters=struct({"value": PRIVATE}), environment={"OWN": PRIVATE})
    metadata = bearer(token)
    run_id = server.stub.Start(request, timeout=SECONDS, metadata=metadata).run.run_id
    events = list(server.stub.Progress(pb.ProgressRequest(run_id=run_id), timeout=SECONDS, metadata=metadata))
    assert PRIVATE in str(events)
    (line,) = lines(server, "run", run_id=run_id)
    assert (line["state"], line["cause"]) == ("failed", "cell_error")
    (started,) = lines(server, "rpc", method="NotebookRunner/Start")
    assert started["caller"] == "ci"
    server.stop()
    written = json.dumps(server.log) + "".join(server.noise)
    assert PRIVATE not in written
    assert token not in written


def test_calls_without_a_token_are_told_in_sum(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A flood of refused calls writes no canonical lines."""
    file = tmp_path / "tokens"
    token = new_token(file, "ci")
    server = make_server("--tokens-file", str(file))
    for _ in range(20):
        with pytest.raises(grpc.RpcError):
            server.stub.List(pb.ListRequest(), timeout=SECONDS)
    server.stub.List(pb.ListRequest(), timeout=SECONDS, metadata=bearer(token))
    (line,) = lines(server, "rpc")
    assert line["code"] == "OK"


def test_health_checks(make_server: Callable[..., Server]) -> None:
    """They are told at level debug alone: probes would drown the rest."""
    loud, quiet = make_server("--log-level", "debug"), make_server()
    for server in (loud, quiet):
        health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        server.stub.Info(pb.InfoRequest(), timeout=SECONDS)
        lines(server, "rpc", method="NotebookRunner/Info")
    assert lines(loud, "rpc", method="Health/Check")
    assert len(lines(quiet, "rpc")) == 1


def test_a_run_that_another_server_began(tmp_path: Path, gate: Gate) -> None:
    """Its line says how it ended, and not what only the dead server knew; a queued run keeps its ids."""
    with KillableServer(tmp_path, "--queue", "1") as first:
        metadata = (("x-request-id", "queued"),)
        lost = start(first.stub, inline(gate.source)).run_id
        kept = first.stub.Start(inline("1"), timeout=SECONDS, metadata=metadata).run.run_id
        reach(first.stub, lost, "cell_started")
        first.die()
    with KillableServer(tmp_path) as second:
        finish(second.stub, kept)
        (line,) = lines(second, "run", run_id=lost)
        assert (line["state"], line["cause"]) == ("interrupted", "server_died")
        assert not {"queued_seconds", "running_seconds", "start", "output_bytes"} & line.keys()
        (line,) = lines(second, "run", run_id=kept)
        assert (line["state"], line["request_id"]) == ("succeeded", "queued")


def test_lines_for_people(tmp_path: Path) -> None:
    """With the console's format, a line is text with the same in it."""
    server = KillableServer(tmp_path, "--log-format", "console")
    # The test's own server waits for a line in JSON.
    server._keep = lambda line: _kept(server, line)  # type: ignore[method-assign] # as said
    with server:
        run_id = finish(server.stub, start(server.stub, inline("1")).run_id).run.run_id
    (line,) = [one for one in server.noise if "state=" in one]
    assert f"run_id={run_id}" in line
    assert "succeeded" in line


@pytest.mark.parametrize("nbformat", [3, 4])
def test_an_invalid_notebook_is_not_quoted(make_server: Callable[..., Server], nbformat: int) -> None:
    """The schema of nbformat is checked with log lines that have an excerpt; it belongs to the caller."""
    cell = code("1") | {"metadata": {"collapsed": PRIVATE}}
    old = {"cell_type": "code", "input": "1", "language": "python", "collapsed": PRIVATE, "metadata": {}}
    contents = {"cells": [cell]} if nbformat == 4 else {"worksheets": [{"cells": [{**old, "outputs": []}]}]}
    document = {"nbformat": nbformat, "nbformat_minor": 0, "metadata": {"kernelspec": PRIVATE}, **contents}
    server = make_server()
    run_id = start(server.stub, pb.StartRequest(notebook_content=json.dumps(document).encode())).run_id
    (line,) = lines(server, "run", run_id=run_id)
    assert line["state"] == "succeeded"
    assert PRIVATE not in json.dumps([*server.log, *server.noise])


def test_a_line_for_people_is_one_line(tmp_path: Path) -> None:
    """What a value or an exception says neither steers a terminal nor looks like another record."""
    program = """
import logging, sys, structlog
from notebook_runner_server import logs
logs.configure("console", "info")
evil = sys.argv[1]
structlog.get_logger("a").info("first", kernel=evil, names=[evil])
logging.getLogger("b").warning("second %s", evil)
try:
    raise ValueError(evil)
except ValueError:
    logging.getLogger("c").exception("third")
"""
    evil = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\u2028\nfake"
    done = subprocess.run(
        [sys.executable, "-c", program, evil], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", done.stderr) is None, repr(done.stderr)
    before_the_traceback = done.stderr.partition("third")[0]
    assert before_the_traceback.count("\n") == 2
    assert "\\x1b[2J" in done.stderr


def _kept(server: Server, line: str) -> None:
    server.noise.append(line)
    if "server_started" in line:
        server.target = line.partition("address=")[2].split()[0]
        server._told.set()
