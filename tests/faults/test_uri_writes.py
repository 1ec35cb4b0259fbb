"""A server that stops or dies while notebooks are on their way from and to URIs."""

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, artefact, executed, finish, inline, reach, start
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.killable import KillableServer, gone
from tests.support.notebooks import printed
from tests.support.uris import web
from tests.support.web import Web

__all__ = ["web"]

OPTIONS = ["--uri-schemes", "http", "--uri-hosts", "127.0.0.1", "--queue", "3"]


@pytest.mark.process_pool("on a cluster the next server goes on with the run, and writes again")
def test_a_server_that_dies_during_a_write_claims_nothing(tmp_path: Path, web: Web, gate: Gate) -> None:
    """The run is INTERRUPTED, who wrote is gone, and a run that waited is written by the next server."""
    later = f"{web.url}/objects/later.ipynb?signature"
    with KillableServer(tmp_path / "state", *OPTIONS) as first:
        run = start(first.stub, inline("print('kept')", output_uri=f"{web.url}/silent"))
        waiting = start(first.stub, inline(gate.source, output_uri=later))
        web.wait()
        first.die()
    gate.open()
    with KillableServer(tmp_path / "state", *OPTIONS) as second:
        listed = second.stub.List(pb.ListRequest(), timeout=SECONDS).runs[1]
        assert listed.run_id == run.run_id
        assert listed.state == pb.RUN_STATE_INTERRUPTED
        assert listed.output_error == "Upload unknown: the server died."
        assert printed(executed(second.stub, run.run_id), 0) == "kept\n"
        ended = finish(second.stub, waiting.run_id).run
        assert (ended.state, ended.output_error) == (pb.RUN_STATE_SUCCEEDED, "")
        assert web.objects["/objects/later.ipynb"] == artefact(second.stub, waiting.run_id)
    assert f"PUT {later.removeprefix(web.url)}" in web.requests


@pytest.mark.process_pool("on a cluster the next server goes on with the run, and writes again")
def test_a_server_that_stops_waits_for_a_write_as_for_a_run(tmp_path: Path, web: Web) -> None:
    """When the drain time is over the write is given up, and the run is INTERRUPTED."""
    with KillableServer(tmp_path / "state", *OPTIONS, "--drain-timeout", "1") as server:
        run = start(server.stub, inline("1", output_uri=f"{web.url}/silent"))
        web.wait()
        server.process.send_signal(signal.SIGTERM)
        ended = finish(server.stub, run.run_id).run
        assert server.process.wait(SECONDS) == 0
        gone(server.mark)
    assert (ended.state, ended.failure.cause) == (
        pb.RUN_STATE_INTERRUPTED,
        pb.FAILURE_CAUSE_SERVER_STOPPED,
    )
    assert ended.output_error.endswith("may be incomplete: the server was stopped.")


def test_a_server_that_stops_does_not_wait_for_a_read(tmp_path: Path, web: Web) -> None:
    """The Start is told to come back, at once, however long the drain may take."""
    with KillableServer(tmp_path / "state", *OPTIONS, "--drain-timeout", "600") as server:
        request = pb.StartRequest(notebook_uri=f"{web.url}/trickle")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(refused, lambda: start(server.stub, request))
            web.wait()
            server.process.send_signal(signal.SIGTERM)
            refusal = waiting.result(SECONDS)
        assert server.process.wait(SECONDS) == 0
        gone(server.mark)
    assert refusal.kind == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


def test_a_run_has_its_worker_until_its_write_is_over(tmp_path: Path, web: Web, gate: Gate) -> None:
    """The next run waits meanwhile, and begins when the write is given up."""
    with KillableServer(tmp_path / "state", *OPTIONS) as server:
        run = start(server.stub, inline("1", output_uri=f"{web.url}/silent"))
        following = start(server.stub, inline(gate.source))
        web.wait()
        assert server.stub.List(pb.ListRequest(), timeout=SECONDS).runs[0].state == pb.RUN_STATE_QUEUED
        server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS)
        reach(server.stub, following.run_id, "cell_started")
        gate.open()
        assert finish(server.stub, following.run_id).run.state == pb.RUN_STATE_SUCCEEDED
