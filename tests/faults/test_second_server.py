"""A server that is refused changes nothing of the one that runs; what a killed one has left is removed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.execution.runtime_dir import RuntimeDir
from tests.faults import killed_in_startup
from tests.support.calls import inline, perform, reach, started
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.killable import KillableServer, worker_of
from tests.support.polling import pause
from tests.support.processes import marked, stopped
from tests.support.server import PROGRAM, Server
from tests.support.settings import clean
from tests.support.warm import ON, kept, ready

pytestmark = pytest.mark.process_pool("it is about the folders of the server's own workers")

SECONDS = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def first(make_server: Callable[..., Server]) -> Server:
    """A server with a kernel that is ready."""
    server = make_server(*ON, "--log-level", "debug")
    ready(server)
    return server


def sockets(server: Server) -> Path:
    """The folder for the kernels' sockets."""
    return (server.state_dir / "scratch").readlink()


def vanish(folder: Path) -> None:
    """Removes a folder at once, while a server may be writing to it."""
    doomed = folder.rename(folder.with_name(f"{folder.name}-gone"))
    shutil.rmtree(doomed, ignore_errors=True)


def entries(*folders: Path) -> dict[str, tuple[int, ...]]:
    """Every file, folder and link below some folders: which one it is, and when it was changed."""
    found = [one for folder in folders for one in (folder, *folder.rglob("*"))]
    return {str(one): (one.lstat().st_ino, one.lstat().st_mtime_ns) for one in found}


def succeeds(server: Server) -> None:
    """A notebook runs, and may write its folder."""
    ended = perform(server.stub, inline("open('o.txt', 'w').write('x')"))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure


@pytest.mark.parametrize("killed", ["", "refused", "stopping"])
@pytest.mark.parametrize("same", ["folder", "port", "both"])
def test_a_refused_server_changes_nothing(first: Server, tmp_path: Path, same: str, killed: str) -> None:
    """Its state folder or its port is taken, and it ends by itself or is killed while it does.

    Its worker process ends with it, or soon after it was killed.
    """
    mine, theirs = first.state_dir, tmp_path / "state"
    before = entries(mine, sockets(first))
    mark = uuid4().hex
    second = subprocess.run(
        [
            *([sys.executable, "-m", killed_in_startup.__name__] if killed else [str(PROGRAM)]),
            *("--state-dir", str(theirs if same == "port" else mine)),
            *("--listen", "127.0.0.1:0" if same == "folder" else first.target),
        ],
        env=clean(**{killed_in_startup.VARIABLE: killed, "NBR_TEST_MARK": mark}),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert second.returncode == (-signal.SIGKILL if killed else 1), second.stderr
    assert not theirs.exists()
    assert entries(mine, sockets(first)) == before
    end = time.monotonic() + SECONDS
    while left := marked(mark):
        assert killed, left
        assert time.monotonic() < end, left
        pause()
    for _ in range(3):
        succeeds(first)


def test_a_lock_that_was_removed_still_keeps_a_second_server_out(first: Server) -> None:
    """The folder itself is locked as well."""
    (first.state_dir / "lock").unlink()
    before = entries(first.state_dir, sockets(first))
    command = [str(PROGRAM), "--state-dir", str(first.state_dir), "--listen", "127.0.0.1:0"]
    second = subprocess.run(
        command, env=clean(), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    told = f"another server uses {first.state_dir}. Stop that server, or choose another folder."
    assert (second.returncode, f"Error: --state-dir: {told}" in second.stderr) == (1, True), second.stderr
    assert entries(first.state_dir, sockets(first)) == before
    succeeds(first)


def test_of_two_that_start_at_once_one_serves(tmp_path: Path) -> None:
    """The other is refused, and what it does then does not reach the one that serves."""
    command = [str(PROGRAM), "--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "state")]
    others = [
        subprocess.Popen(command, env=clean(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    try:
        end = time.monotonic() + SECONDS
        while all(one.poll() is None for one in others):
            assert time.monotonic() < end, "both go on"
            pause()
        (winner,) = [one for one in others if one.poll() is None]
        link = tmp_path / "state" / "scratch"
        while not link.is_symlink():
            assert winner.poll() is None
            pause()
        assert link.resolve().is_dir()
    finally:
        for one in others:
            one.terminate()
        codes = [one.wait(SECONDS) for one in others]
    assert sorted(codes) == [0, 1]
    assert not link.is_symlink()


def test_what_a_killed_server_has_left_is_removed(tmp_path: Path) -> None:
    """The next server on its state folder removes its folder for sockets, and has another."""
    with KillableServer(tmp_path / "state", *ON) as server:
        left = sockets(server)
        server.die()
    assert left.is_dir()
    with KillableServer(tmp_path / "state", *ON) as server:
        assert not left.exists()
        succeeds(server)
        mine = sockets(server)
    assert not mine.exists()


def test_the_folder_of_a_living_server_is_not_removed(first: Server, tmp_path: Path) -> None:
    """A copy of a state folder names it as well, and a server on that copy leaves it alone."""
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "scratch").symlink_to(sockets(first))
    other = RuntimeDir(copy / "scratch")
    other.open()
    assert other.folder != sockets(first)
    other.close()
    assert sockets(first).is_dir()
    succeeds(first)


@pytest.fixture(params=["all of it", "its entries", "a worker's", "a kernel's"])
def cleaned(request: pytest.FixtureRequest, first: Server) -> Iterator[Server]:
    """A server of whose folder for sockets something was removed."""
    folder = sockets(first)
    (worker,) = folder.iterdir()
    removed = {
        "all of it": [folder],
        "its entries": [worker],
        "a worker's": list(worker.iterdir()),
        "a kernel's": [one for one in worker.rglob("*") if one.is_socket()],
    }[request.param]
    assert removed
    for one in removed:
        if one.is_socket():
            one.unlink()
        while one.exists():
            # What lives goes on making files there.
            shutil.rmtree(one, ignore_errors=True)
    yield first
    if request.param == "all of it":
        first.logged("runtime_dir_recreated")


def test_runs_go_on_when_sockets_have_disappeared(cleaned: Server) -> None:
    """The next run works, the one after it has a warm kernel, and the link leads to the folder."""
    succeeds(cleaned)
    kept(cleaned)
    succeeds(cleaned)
    assert [entry["start"] for entry in cleaned.logged("run", count=2)][1:] == ["warm"]
    cleaned.logged("warm_kernel_discarded")
    assert sockets(cleaned).is_dir()


def test_a_run_that_goes_on_is_not_disturbed(first: Server, gate: Gate) -> None:
    """Its sockets are connected, so it does not need their names."""
    with started(first.stub, inline(f"print(1, flush=True)\n{gate.source}", "print(2)")) as run:
        reach(first.stub, run.run_id, "cell_output")
        vanish(sockets(first))
        gate.open()
        events = list(first.stub.Progress(pb.ProgressRequest(run_id=run.run_id), timeout=SECONDS))
    assert events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED


def test_a_worker_that_died_without_the_folder_is_replaced(first: Server) -> None:
    """The folder is made again for it."""
    vanish(sockets(first))
    os.kill(worker_of(first), signal.SIGKILL)
    perform(first.stub, inline("1"))
    succeeds(first)


def test_health_tells_while_no_run_can_start(first: Server) -> None:
    """The name of the folder is taken: NOT_SERVING and NOT_READY until it is free."""
    health = health_pb2_grpc.HealthStub(first.channel)
    states = health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert next(states).status == SERVING
    folder = sockets(first)
    # The server would make the folder again in between.
    with stopped(first.process.pid):
        vanish(folder)
        folder.write_text("not a folder")
    assert next(states).status == NOT_SERVING
    refusal = refused(lambda: first.stub.Start(inline("1"), timeout=SECONDS))
    assert refusal.kind == (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
    assert str(folder) in str(refusal)
    doctor = subprocess.run(
        [str(PROGRAM.with_name("notebook-runner")), "--target", first.target, "doctor", "--json"],
        env=clean(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert doctor.returncode == 1
    assert str(folder) in doctor.stdout
    for service in ("liveness", "readiness"):
        request = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(request, timeout=SECONDS).status == SERVING
    folder.unlink()
    assert next(states).status == SERVING
    first.logged("runs_blocked")
    succeeds(first)
