"""Files of runs on a worker that has no folder in common with the server."""

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import artefact, finish, inline, perform, reach, start, texts
from tests.support.cluster import Cluster
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.killable import KillableServer
from tests.support.notebooks import notebook

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")

Serve = Callable[..., KillableServer]
LARGE = 9_000_000
LEAVES = f"""
import os, pathlib
folder = pathlib.Path(os.environ["NOTEBOOK_RUNNER_RUN_DIR"])
(folder / "deep" / "er").mkdir(parents=True)
(folder / "deep" / "er" / "data.bin").write_bytes(bytes(range(250)) * ({LARGE} // 250))
(folder / "Grüße.txt").write_text("Grüße")
(folder / "empty").touch()
(folder / "program").write_text("#!/bin/sh\\n")
(folder / "program").chmod(0o500)
(folder / "link").symlink_to("/etc/passwd")
os.mkfifo(folder / "pipe")
print(os.getcwd() == str(folder), os.listdir({{hidden!r}}), flush=True)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server has and the worker does not: state folders, and notebooks."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "notebooks" / "deep").mkdir(parents=True)
    source = LEAVES.format(hidden=str(folder))
    nbformat.write(notebook(source), folder / "notebooks" / "deep" / "one.ipynb")
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Cluster]:
    """One worker, to which the server's folder is an empty one."""
    with Cluster(tmp_path_factory.mktemp("cluster"), workers=0) as running:
        blind = 'mount -t tmpfs none "$0" && exec "$@"'
        running.start_worker("blind", "unshare", "--mount", "sh", "-c", blind, str(home))
        running.wait(1)
        yield running


@pytest.fixture
def serve(cluster: Cluster, home: Path, request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts servers, one after the other on the same state folder."""
    with ExitStack() as servers:

        def one(*options: str) -> KillableServer:
            options = ("--notebook-root", str(home / "notebooks"), "--worker-timeout", "30", *options)
            state = home / f"state-{request.node.name}"
            return servers.enter_context(KillableServer(state, *options, environment=cluster.environment))

        yield one


def files(server: KillableServer, run: pb.Run) -> dict[str, bytes]:
    """What Output answers as the run's files."""
    with zipfile.ZipFile(io.BytesIO(artefact(server.stub, run.run_id, format="files"))) as archive:
        assert archive.testzip() is None
        assert archive.getinfo("program").external_attr >> 16 & 0o100
        return {name: archive.read(name) for name in archive.namelist()}


def assert_all_there(found: dict[str, bytes]) -> None:
    """All regular files that `LEAVES` leaves, whole, and nothing else."""
    assert sorted(found) == ["Grüße.txt", "deep/er/data.bin", "empty", "program"]
    assert found["deep/er/data.bin"] == bytes(range(250)) * (LARGE // 250)
    assert (found["Grüße.txt"], found["empty"]) == ("Grüße".encode(), b"")


@pytest.mark.parametrize("is_inline", [True, False], ids=["sent", "by its path"])
def test_what_a_notebook_leaves_comes_back(serve: Serve, home: Path, *, is_inline: bool) -> None:
    """It works in its private folder, for its own is not there, and all of its files can be had."""
    server = serve()
    source = LEAVES.format(hidden=str(home))
    request = inline(source) if is_inline else pb.StartRequest(notebook_path="deep/one.ipynb")
    ended = perform(server.stub, request)
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    assert texts(ended.events) == "True []\n"
    assert_all_there(files(server, ended.run))


def test_files_of_a_request_reach_the_worker(serve: Serve) -> None:
    """They are written there, and come back with the others."""
    server = serve()
    given = {"deep/data.bin": bytes(range(250)) * 20_000, "module.py": b"ANSWER = 42"}
    source = "import module; print(module.ANSWER, len(open('deep/data.bin', 'rb').read()))"
    request = inline(source, files=[pb.InputFile(path=path, content=one) for path, one in given.items()])
    ended = perform(server.stub, request)
    assert texts(ended.events) == "42 5000000\n", ended.run.failure
    with zipfile.ZipFile(io.BytesIO(artefact(server.stub, ended.run.run_id, format="files"))) as archive:
        left = {name: archive.read(name) for name in archive.namelist()}
    assert {name: data for name, data in left.items() if "__pycache__" not in name} == given


@pytest.mark.parametrize("end", ["raises", "is killed", "kills its kernel"])
def test_files_come_back_after_every_end(serve: Serve, home: Path, gate: Gate, end: str) -> None:
    """Of a run that fails, is killed, or loses its kernel."""
    server = serve()
    last = {"raises": "1 / 0", "is killed": gate.source, "kills its kernel": "os.kill(os.getpid(), 9)"}[end]
    run = start(server.stub, inline(LEAVES.format(hidden=str(home)), last))
    if end == "is killed":
        reach(server.stub, run.run_id, "cell_started", 1)
        server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=60)
    states = (pb.RUN_STATE_FAILED, pb.RUN_STATE_KILLED, pb.RUN_STATE_CRASHED)
    assert finish(server.stub, run.run_id).run.state in states
    assert_all_there(files(server, run))


def test_files_come_to_the_next_server(serve: Serve, home: Path, gate: Gate) -> None:
    """A server that dies before the end of a run loses none of its files."""
    first = serve()
    run = start(first.stub, inline(LEAVES.format(hidden=str(home)), gate.source))
    reach(first.stub, run.run_id, "cell_started", 1)
    first.process.kill()
    first.process.wait()
    gate.open()
    second = serve()
    assert finish(second.stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED
    assert_all_there(files(second, run))


def test_too_much_to_come_back_is_told(serve: Serve, home: Path) -> None:
    """The run ends as it would; that its files are not there has a reason, and says how large they were."""
    server = serve("--max-files-bytes", str(LARGE))
    run = perform(server.stub, inline(LEAVES.format(hidden=str(home)))).run
    assert run.state == pb.RUN_STATE_SUCCEEDED
    request = pb.OutputRequest(run_id=run.run_id, format="files")
    refusal = refused(lambda: server.stub.Output(request, timeout=60))
    assert refusal.reason == "EXPORT_FAILED"
    assert f"({LARGE + 7 + 10} bytes) were too large to be copied" in refusal.message


def test_a_file_comes_back_whose_path_is_too_long_for_linux(serve: Serve, home: Path) -> None:
    """Its folders are opened one after the other, so only its path in the run's folder has to fit a zip."""
    server = serve()
    deep = """
home = os.getcwd()
while (left := 4000 - len(os.getcwd())) > 1:
    name = "d" * min(200, left - 1)
    os.mkdir(name)
    os.chdir(name)
open("f" * 200, "w").close()
os.chdir(home)
"""
    run = perform(server.stub, inline(LEAVES.format(hidden=str(home)), deep)).run
    assert run.state == pb.RUN_STATE_SUCCEEDED, run
    found = files(server, run)
    (deep_file,) = [name for name in found if name.endswith("/" + "f" * 200)]
    assert found.pop(deep_file) == b""
    assert_all_there(found)


def test_kill_does_not_wait_for_much(serve: Serve, gate: Gate) -> None:
    """Files that are too many to be waited for stay where they are; that is said."""
    server = serve()
    run = start(server.stub, inline("open('large', 'wb').truncate(64_000_000)", gate.source))
    reach(server.stub, run.run_id, "cell_started", 1)
    server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=60)
    request = pb.OutputRequest(run_id=run.run_id, format="files")
    refusal = refused(lambda: server.stub.Output(request, timeout=60))
    assert "(64000000 bytes) were too large to be copied" in refusal.message


def test_nothing_of_a_run_stays_on_the_worker(cluster: Cluster, serve: Serve, home: Path) -> None:
    """When a run has ended, its folder there is gone."""
    server = serve()
    for source in (LEAVES.format(hidden=str(home)), "1", "2"):
        perform(server.stub, inline(source))
    (runs,) = cluster.folder.glob("blind/**/notebook-runner/runs")
    # A slot is free for the next run when the folder of the one before is gone; the last one's may be there.
    assert len(list(runs.iterdir())) <= 1
    assert list(runs.rglob("data.bin")) == []
