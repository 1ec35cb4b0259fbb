"""SIGTERM: no more is taken, what runs may finish, what is queued goes on at the next start."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, Ended, executed, finish, inline, reach, start, texts
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.http_client import HttpCaller
from tests.support.killable import RUN_MARK, KillableServer, figure, gone, new_mark
from tests.support.notebooks import printed
from tests.support.polling import pause
from tests.support.server import Server

pytestmark = pytest.mark.process_pool(
    "on a cluster runs outlive a server that is stopped: tests/cluster has it"
)

CHILDREN = """
import os, subprocess
subprocess.Popen(["sleep", os.environ["NBR_RUN_MARK"]], env={}, start_new_session=True)
"""


def health(server: Server) -> Iterator[int]:
    """The states of the server's health, as they change."""
    stub = health_pb2_grpc.HealthStub(server.channel)
    for answer in stub.Watch(health_pb2.HealthCheckRequest(), timeout=60):
        yield answer.status


def terminate(server: Server) -> None:
    """Asks the server to stop, and waits until it says that it does."""
    states = health(server)
    assert next(states) == health_pb2.HealthCheckResponse.SERVING
    server.process.send_signal(signal.SIGTERM)
    assert next(states) == health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def followed(server: Server, run_id: str) -> Iterator[Future[Ended]]:
    """A reader that follows the run to its end, on another thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(finish, server.stub, run_id)


def is_alive(server: Server) -> bool:
    """What a liveness probe is told."""
    request = health_pb2.HealthCheckRequest(service="liveness")
    answer = health_pb2_grpc.HealthStub(server.channel).Check(request, timeout=60)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def exited(server: KillableServer) -> None:
    """The server ends by itself, with 0, and nothing is left of it."""
    assert server.process.wait(60) == 0, server.tail()
    gone(server.mark)


def test_a_draining_server_takes_no_more_and_lets_the_run_finish(tmp_path: Path, gate: Gate) -> None:
    """NOT_SERVING but alive, SHUTTING_DOWN, and the run that goes on succeeds; readers see its end."""
    with KillableServer(tmp_path / "state", "--drain-timeout", "600", "--queue", "2") as server:
        run = start(server.stub, inline(f"print('begun', flush=True)\n{gate.source}\nprint('ended')"))
        reach(server.stub, run.run_id, "cell_output")
        with followed(server, run.run_id) as reader:
            terminate(server)
            assert is_alive(server)
            refusal = refused(lambda: server.stub.Start(inline("1"), timeout=60))
            assert refusal.kind == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
            assert server.stub.List(pb.ListRequest(), timeout=60).runs[0].state == pb.RUN_STATE_RUNNING
            gate.open()
            ended = reader.result(60)
        exited(server)
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert texts(ended.events) == "begun\nended\n"


def test_probes_by_http_see_the_drain(tmp_path: Path, gate: Gate) -> None:
    """While runs finish, HTTP says that the server is alive, but not ready, and still answers readers."""
    options = ["--drain-timeout", "600", "--http-listen", "127.0.0.1:0"]
    with KillableServer(tmp_path / "state", *options) as server:
        caller = HttpCaller(server.http)
        run = start(server.stub, inline(f"print('begun', flush=True)\n{gate.source}"))
        reach(server.stub, run.run_id, "cell_output")
        assert caller.get("/readyz").status == 200
        terminate(server)
        # The server reports the two one after the other.
        while (ready := caller.get("/readyz")).status == 200:
            pause()
        assert (ready.status, ready.json) == (503, {"status": "NOT_SERVING"})
        assert [caller.get(path).status for path in ("/livez", "/healthz")] == [200, 503]
        assert caller.get(f"/v1/runs/{run.run_id}").status == 200
        gate.open()
        exited(server)


def _interrupted(ended: Ended) -> None:
    """The reader saw the terminal event: ended because the server was stopped."""
    assert ended.run.state == pb.RUN_STATE_INTERRUPTED, ended.run
    assert ended.run.failure.cause == pb.FAILURE_CAUSE_SERVER_STOPPED


def test_a_run_that_does_not_end_in_time_is_interrupted(tmp_path: Path, gate: Gate) -> None:
    """Its readers see the terminal event, its outputs are kept, and no process of it is left."""
    mark = new_mark()
    with KillableServer(tmp_path / "state", "--drain-timeout", "1") as server:
        request = inline(f"{CHILDREN}print('begun', flush=True)\n{gate.source}", environment={RUN_MARK: mark})
        run = start(server.stub, request)
        reach(server.stub, run.run_id, "cell_output")
        with followed(server, run.run_id) as reader:
            terminate(server)
            _interrupted(reader.result(60))
        exited(server)
        gone(mark, 0)
    with KillableServer(tmp_path / "state") as again:
        ended = finish(again.stub, run.run_id)
        node = executed(again.stub, run.run_id)
    _interrupted(ended)
    assert printed(node, 0) == "begun\n"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_hurries(tmp_path: Path, gate: Gate, second: signal.Signals) -> None:
    """Nobody waits for the rest of the drain time."""
    with KillableServer(tmp_path / "state", "--drain-timeout", "600") as server:
        run = start(server.stub, inline(gate.source))
        reach(server.stub, run.run_id, "cell_started")
        with followed(server, run.run_id) as reader:
            terminate(server)
            begin = time.monotonic()
            server.process.send_signal(second)
            _interrupted(reader.result(SECONDS))
        exited(server)
        figure(f"stopped {time.monotonic() - begin:.2f} s after the second signal")


def test_queued_runs_are_for_the_next_server(tmp_path: Path, gate: Gate) -> None:
    """They stay QUEUED while the server stops, readers are told to come back, and they go on in order."""
    order = tmp_path / "order"
    note = f"import os\nopen({str(order)!r}, 'a').write(os.environ['NOTEBOOK_RUNNER_RUN_ID'] + '\\n')"
    with KillableServer(tmp_path / "state", "--drain-timeout", "600", "--queue", "3") as server:
        running = start(server.stub, inline(gate.source))
        reach(server.stub, running.run_id, "cell_started")
        queued = [start(server.stub, inline(note)) for _ in range(3)]
        with followed(server, queued[0].run_id) as reader:
            reach(server.stub, queued[0].run_id, "run_changed")
            terminate(server)
            error = reader.exception(SECONDS)
        assert isinstance(error, grpc.RpcError)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        states = {run.run_id: run.state for run in server.stub.List(pb.ListRequest(), timeout=60).runs}
        assert [states[run.run_id] for run in queued] == [pb.RUN_STATE_QUEUED] * 3
        gate.open()
        exited(server)
    assert not order.exists()
    with KillableServer(tmp_path / "state", "--queue", "3") as again:
        ends = [finish(again.stub, run.run_id).run.state for run in (running, *queued)]
    assert ends == [pb.RUN_STATE_SUCCEEDED] * 4
    assert order.read_text().split() == [run.run_id for run in queued]


def test_a_kill_is_served_while_the_server_drains(tmp_path: Path, gate: Gate) -> None:
    """The run that holds up the stop can be killed, and the stop goes on at once."""
    with KillableServer(tmp_path / "state", "--drain-timeout", "600") as server:
        run = start(server.stub, inline(gate.source))
        reach(server.stub, run.run_id, "cell_started")
        terminate(server)
        answer = server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=60)
        assert answer.run.state == pb.RUN_STATE_KILLED
        exited(server)
