"""Streams over HTTP when connections break, readers stop reading, and servers stop."""

import json
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, finish, inline, start, started
from tests.support.gate import Gate
from tests.support.http_client import HttpCaller
from tests.support.notebooks import content
from tests.support.polling import pause
from tests.support.progress import Validator
from tests.support.server import Server

CUTS = 100
STREAMS = 500
HTTP = ("--http-listen", "127.0.0.1:0")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with HTTP, whose streams send a heartbeat often."""
    options = ("--queue", "3", "--heartbeat-interval", "0.1", *HTTP)
    with Server(tmp_path_factory.mktemp("state"), *options) as running:
        yield running


PRINTS = """
import itertools, os, time
for number in itertools.count():
    print(number, flush=True)
    if os.path.exists({end!r}):
        break
    time.sleep(0.01)
"""


@pytest.mark.parametrize("kind", ["events", "messages"])
def test_cut_connections(server: Server, tmp_path: Path, kind: str) -> None:
    """Through a hundred cut connections, each event of a run arrives once and in order, up to the end."""
    caller = HttpCaller(server.http)
    # However much text comes as one event, there is more until the last cut.
    end = tmp_path / "end"
    run = start(server.stub, inline(PRINTS.format(end=str(end)), "print('last')"))
    path, last, cuts = f"/v1/runs/{run.run_id}/progress", 0, 0
    validator = Validator(pb.ProgressRequest(run_id=run.run_id))
    is_over = False
    while not is_over:
        stream: Generator[pb.ProgressResponse, None, None]
        if kind == "events":
            stream = (event for _, event in caller.events(path, last_event_id=str(last) if last else ""))
        else:
            stream = caller.messages(f"{path}?after_sequence={last}")
        taken = 0
        for event in stream:
            validator.see(event)
            last = event.sequence
            is_over = event.run_changed.state == pb.RUN_STATE_SUCCEEDED
            taken += not event.HasField("heartbeat")
            if taken >= 3 and cuts < CUTS and not is_over:
                cuts += 1
                if cuts == CUTS:
                    end.touch()
                break
        stream.close()
    validator.end()
    assert cuts == CUTS
    assert last == finish(server.stub, run.run_id).events[-1].sequence


def test_a_disconnected_caller_cancels_its_call(server: Server, gate: Gate) -> None:
    """The gRPC stream ends with its HTTP request, and so does a Kill that waits."""
    caller = HttpCaller(server.http)
    with started(server.stub, inline(gate.source)) as run:
        lines = caller.lines(f"/v1/runs/{run.run_id}/progress", x_request_id="gone-1")
        assert next(lines) == "id: 1"
        lines.close()
        (line,) = server.logged("rpc", "gone-1")
        assert line["code"] == "CANCELLED"
        with closing(caller.connect()) as connection:
            body = json.dumps({"gracePeriod": "600s"})
            headers = {"content-type": "application/json", "x-request-id": "gone-2"}
            connection.request("POST", f"/v1/runs/{run.run_id}:kill", body, headers)
            events = server.stub.Progress(pb.ProgressRequest(run_id=run.run_id), timeout=SECONDS)
            next(one for one in events if one.run_changed.state >= pb.RUN_STATE_KILLING)
        assert server.logged("rpc", "gone-2")


def test_open_streams_delay_nothing(server: Server, gate: Gate) -> None:
    """With 500 open streams that nobody reads, runs start, print megabytes, and are killed."""
    host, port = server.http.split(":")
    source = f"print('x' * 2_000_000)\n{gate.source}"
    with ExitStack() as opened:
        run = opened.enter_context(started(server.stub, inline(source)))
        request = f"GET /v1/runs/{run.run_id}/progress HTTP/1.1\r\nhost: {server.http}\r\n\r\n".encode()
        for _ in range(STREAMS):
            connection = opened.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(SECONDS)
            connection.connect((host, int(port)))
            connection.sendall(request)
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        caller = HttpCaller(server.http)
        other = caller.call("POST", "/v1/runs", content("1")).json["run"]["runId"]
        assert caller.call("POST", f"/v1/runs/{other}:kill").json["run"]["state"] == "RUN_STATE_KILLED"
        assert caller.call("POST", f"/v1/runs/{run.run_id}:kill").json["run"]["state"] == "RUN_STATE_KILLED"
        events = [event for _, event in caller.events(f"/v1/runs/{run.run_id}/progress")]
        assert events[-1].run_changed.state == pb.RUN_STATE_KILLED


def test_streams_end_when_the_server_stops(tmp_path: Path, gate: Gate) -> None:
    """A stop lets runs and their streams end, refuses new connections, and waits for nothing else."""
    with Server(tmp_path / "state", "--drain-timeout", "600", *HTTP) as server:
        caller = HttpCaller(server.http)
        run = start(server.stub, inline(gate.source))
        told: list[str] = []
        reader = threading.Thread(
            target=lambda: told.extend(caller.lines(f"/v1/runs/{run.run_id}/progress")), daemon=True
        )
        reader.start()
        until = time.monotonic() + SECONDS
        while not told:
            assert time.monotonic() < until
            pause()
        server.process.terminate()
        server.logged("server_stopping")
        gate.open()
        reader.join(SECONDS)
        assert "RUN_STATE_SUCCEEDED" in told[-2]
        assert server.process.wait(SECONDS) == 0
        with pytest.raises(ConnectionRefusedError):
            caller.get("/v1/info")
