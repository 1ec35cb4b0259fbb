"""A full disk, a damaged history, and a history that is to be forgotten."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import duration, executed, finish, follow, history, inline, perform, reach, start
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.killable import FOLDERS, KillableServer, figure, forgotten
from tests.support.notebooks import printed
from tests.support.server import Server

DATABASE = "notebook-runner.db"


@contextmanager
def full_disk(server: Server) -> Iterator[None]:
    """No file of the server can grow any more, as when the disk is full."""
    pid, kind = server.process.pid, resource.RLIMIT_FSIZE
    _, most = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (0, most))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it may have died of it, or been killed
            resource.prlimit(pid, kind, (most, most))


def succeeds(server: Server) -> None:
    """The server executes a run."""
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.state_folder("it fills the disk of a state folder")
def test_a_start_on_a_full_disk_leaves_nothing(make_server: Callable[..., Server]) -> None:
    """STORAGE_FULL, no run, no folder; the same request is taken when there is room again."""
    server = make_server()
    request = inline("print('x')", request_id="again")
    succeeds(server)
    known = history(server.stub)
    with full_disk(server):
        for _ in range(3):
            refusal = refused(lambda: server.stub.Start(request, timeout=60))
            assert refusal.kind == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert history(server.stub) == known
        assert os.listdir(server.state_dir / FOLDERS) == known
    assert perform(server.stub, request).run.state == pb.RUN_STATE_SUCCEEDED


def told_to_wait(server: Server, run_id: str, last: int) -> pb.ProgressResponse:
    """Waits for the heartbeat of a run whose end is held back, which is not told to have ended."""
    with closing(follow(server.stub, run_id, after_sequence=last)) as events:
        for event in events:
            if event.HasField("heartbeat") and server.said("run_end_held"):
                return event
    raise AssertionError("the run was told to have ended")


@pytest.mark.state_folder("it fills the disk of a state folder")
def test_the_end_of_a_run_is_told_when_it_can_be_written(
    make_server: Callable[..., Server], gate: Gate
) -> None:
    """Until then streams have heartbeats, and health and Info say why; finished cells and text are kept."""
    server = make_server("--heartbeat-interval", "0.1")
    health = health_pb2_grpc.HealthStub(server.channel)
    run = start(server.stub, inline("print('done')", gate.source, "print('x' * 100000, flush=True)"))
    last = reach(server.stub, run.run_id, "cell_started", cell=1).sequence
    with full_disk(server):
        gate.open()
        told_to_wait(server, run.run_id, last)
        refusal = refused(lambda: server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=60))
        assert refusal.kind == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert "state folder" in server.stub.Info(pb.InfoRequest(), timeout=60).problem
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60)
        assert any(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING for answer in watch)
        watch.cancel()
        assert server.stub.List(pb.ListRequest(), timeout=60).runs[0].state == pb.RUN_STATE_RUNNING
    ended = finish(server.stub, run.run_id).run
    assert (ended.state, ended.failure.cause) == (pb.RUN_STATE_CRASHED, pb.FAILURE_CAUSE_STORAGE_FAILED)
    assert printed(executed(server.stub, run.run_id), 0) == "done\n"
    watch = health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60)
    assert any(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in watch)
    watch.cancel()
    succeeds(server)
    assert run.run_id in history(server.stub)


@pytest.mark.state_folder("it fills the disk of a state folder")
def test_an_end_that_could_not_be_written_is_told_by_the_next_server(tmp_path: Path, gate: Gate) -> None:
    """It was told to nobody, so nothing changes; finished cells are there, and nothing is half-written."""
    with KillableServer(tmp_path / "state", "--heartbeat-interval", "0.1") as server:
        run = start(server.stub, inline("print('done')", gate.source, "print('x' * 100000, flush=True)"))
        last = reach(server.stub, run.run_id, "cell_started", cell=1).sequence
        with full_disk(server):
            gate.open()
            told_to_wait(server, run.run_id, last)
            server.die()
    with KillableServer(tmp_path / "state") as again:
        ended = finish(again.stub, run.run_id).run
        assert ended.state == pb.RUN_STATE_INTERRUPTED
        assert printed(executed(again.stub, run.run_id), 0) == "done\n"
        succeeds(again)


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def _nothing(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.state_folder("it damages SQLite's file")
@pytest.mark.parametrize("damage", [_garbage, _nothing])
def test_a_history_of_which_nothing_is_left_is_set_aside(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """The server starts with a new history, says so, and keeps the old files for whoever can mend them."""
    state = tmp_path / "state"
    with KillableServer(state) as server:
        for number in range(3):
            run = perform(server.stub, inline(f"print({number})", labels={"x" * 100: "y" * 100})).run
    # The process pool has "places" there besides.
    assert {path.name for path in state.iterdir()} >= {"lock", DATABASE, "request-key", FOLDERS}
    damage(state / DATABASE)
    with KillableServer(state) as server:
        assert history(server.stub) == []
        succeeds(server)
    aside = list(state.glob("damaged-*"))
    assert len(aside) == 1
    assert (aside[0] / DATABASE).exists()
    assert (aside[0] / FOLDERS / run.run_id).is_dir()
    server.logged("damaged_file_moved", str(aside[0]))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A state folder with four ended runs, oldest first, of which the second is kept for a moment only."""
    state = tmp_path_factory.mktemp("state")
    big = "import os; open(os.environ['NOTEBOOK_RUNNER_RUN_DIR'] + '/file', 'w').write('x' * 100_000)"
    with KillableServer(state) as server:
        requests = [inline(big), inline(big, retention=duration(0.001)), inline(big), inline(big)]
        runs = [perform(server.stub, request).run.run_id for request in requests]
    return state, runs


@pytest.mark.state_folder("it knows the size of runs in a state folder")
def test_the_history_is_forgotten_oldest_first(kept: tuple[Path, list[str]]) -> None:
    """What is over its time goes first, then what is too much by count, then by bytes."""
    state, (first, short, third, fourth) = kept
    with KillableServer(state) as server:
        forgotten(server, short)
        assert history(server.stub) == [fourth, third, first]
    with KillableServer(state, "--max-runs", "2") as server:
        forgotten(server, first)
        assert history(server.stub) == [fourth, third]
    with KillableServer(state, "--max-state-bytes", "150000") as server:
        forgotten(server, third)
        assert history(server.stub) == [fourth]
        refusal = refused(lambda: list(follow(server.stub, third)))
        assert refusal.kind == (grpc.StatusCode.NOT_FOUND, "RUN_EXPIRED")
        assert "number or size of runs" in refusal.message
        figure(f"kept {sum(path.stat().st_size for path in state.rglob('*'))} bytes")


def test_a_queued_or_running_run_is_never_forgotten(tmp_path: Path, gate: Gate) -> None:
    """Bounds count ended runs alone."""
    with KillableServer(tmp_path / "state", "--queue", "2") as server:
        ended = perform(server.stub, inline("1")).run.run_id
        running = start(server.stub, inline(gate.source))
        reach(server.stub, running.run_id, "cell_started")
        queued = [start(server.stub, inline(gate.source)).run_id for _ in range(2)]
        server.die()
    # It goes on where runs outlive their server.
    if server.is_on_cluster:
        gate.open()
    with KillableServer(tmp_path / "state", "--queue", "2", "--max-state-bytes", "1") as server:
        forgotten(server, ended)
        for one in queued:
            # Once it has ended, only its reader keeps it from being forgotten.
            with closing(follow(server.stub, one)) as events:
                next(events)
                gate.open()
                assert list(events)[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED
