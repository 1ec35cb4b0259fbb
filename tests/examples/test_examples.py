"""The examples do what they say, as programs of their own against a real server."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from google.protobuf.json_format import MessageToDict

from notebook_runner import Client
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.gate import Gate
from tests.support.notebooks import notebook, parsed
from tests.support.polling import pause
from tests.support.server import Server

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as the examples' page starts it."""
    options = ["--notebook-root", str(REPOSITORY / "examples"), "--workers", "3"]
    with Server(tmp_path_factory.mktemp("state"), *options) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which `examples/` is."""
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    return tmp_path


def environment(server: Server) -> dict[str, str]:
    """What tells a program where the server is."""
    return {**os.environ, "NOTEBOOK_RUNNER_TARGET": server.target, "COLUMNS": "80"}


def example(server: Server, folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs an example."""
    return subprocess.run(
        [sys.executable, f"examples/{name}", *arguments],
        cwd=folder,
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def labelled(server: Server, **labels: str) -> list[pb.Run]:
    """The runs that carry labels."""
    with Client(server.target) as client:
        return [run.pb for run in client.runs(label=labels)]


def written(folder: Path, *cells: str) -> str:
    """A notebook of the test's own, as a path."""
    nbformat.write(notebook(*cells), folder / "own.ipynb")
    return "own.ipynb"


def test_the_blocking_client(server: Server, folder: Path) -> None:
    """It tells cells and text as they come, and writes the page."""
    done = example(server, folder, "sync_client.py")
    assert done.returncode == 0, done.stderr
    assert "[0 of " not in done.stdout
    assert "theory says -0.50." in done.stdout
    assert "<html" in (folder / "quickstart.html").read_text()


def test_the_blocking_client_tells_how_a_run_failed(server: Server, folder: Path) -> None:
    """A notebook that raises is an exit code and a traceback, and the page is there."""
    done = example(server, folder, "sync_client.py", written(folder, "print('before')", "1 / 0"), "page.html")
    assert done.returncode == 1
    assert "before" in done.stdout
    assert "ZeroDivisionError" in done.stderr
    assert "ZeroDivisionError" in (folder / "page.html").read_text()


def test_the_asynchronous_client(server: Server, folder: Path) -> None:
    """It prints what the notebook printed last."""
    done = example(server, folder, "async_client.py", "60", written(folder, "print(1)", "print(2)"))
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_the_asynchronous_client_ends_a_run_that_takes_too_long(
    server: Server, folder: Path, gate: Gate
) -> None:
    """The run is killed when the time is over."""
    done = example(server, folder, "async_client.py", "1", written(folder, gate.source))
    assert done.returncode == 1
    # On a busy machine there may be no kernel yet.
    assert "the run did not finish within 1 s" in done.stderr
    assert labelled(server, **{"from": "async_client"})[0].state == pb.RUN_STATE_KILLED


def going_on(runs: list[pb.Run], moment: int) -> int:
    """How many of these runs went on at a moment."""
    return sum(run.create_time.ToNanoseconds() <= moment < run.end_time.ToNanoseconds() for run in runs)


def refusals(server: Server) -> int:
    """How many calls of Start the server has refused because it was busy."""
    return sum(line.get("reason") == "RUNNER_BUSY" for line in list(server.log))


def swept(server: Server) -> list[pb.Run]:
    """The runs of the newest sweep."""
    newest = labelled(server, **{"from": "sweep"})[0]
    return labelled(server, sweep=newest.labels["sweep"])


@contextmanager
def sweeping(server: Server, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep that goes on until it ends by itself, or by the test's."""
    command = [sys.executable, "examples/sweep.py", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    sweep = subprocess.Popen(command, cwd=folder, env=environment(server), **pipes)
    try:
        yield sweep
    finally:
        sweep.kill()
        sweep.communicate()


def until(true: Callable[[], object]) -> None:
    """Asks again until something is true."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        pause()


def test_the_sweep(server: Server, folder: Path) -> None:
    """No more runs go on than there are workers, none is refused, and what each found is in the table.

    That all workers are used, a test shows whose runs do not end by themselves.
    """
    before = refusals(server)
    done = example(server, folder, "sweep.py", "--sets", "5")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"│ (\d) +│ The error falls", done.stdout) == list("12345")
    runs = swept(server)
    assert [run.state for run in runs] == [pb.RUN_STATE_SUCCEEDED] * 5
    assert max(going_on(runs, run.create_time.ToNanoseconds()) for run in runs) <= 3
    assert refusals(server) == before


def test_the_sweep_waits_where_others_have_taken_the_server(server: Server, folder: Path, gate: Gate) -> None:
    """A refused Start is asked again when a worker is free, and nothing of theirs is touched."""
    before = refusals(server)
    with Client(server.target) as client:
        others = [client.start(folder / written(folder, gate.source)) for _ in range(3)]
        with sweeping(server, folder, "--sets", "2") as sweep:
            until(lambda: refusals(server) > before)
            gate.open(3)
            out, error = sweep.communicate(timeout=SECONDS)
            assert (sweep.returncode, len(re.findall("The error falls", out))) == (0, 2), error
        assert all(run.wait().ok for run in others)


def test_the_sweep_kills_what_goes_on_when_it_is_interrupted(server: Server, folder: Path) -> None:
    """As many runs go on as there are workers; after Ctrl-C none does, and those that did are KILLED."""
    with sweeping(server, folder, "--games", "1000000") as sweep, Client(server.target) as client:
        until(lambda: client.info().runs_active == 3)
        sweep.send_signal(signal.SIGINT)
        out, error = sweep.communicate(timeout=SECONDS)
        assert (sweep.returncode, "killed 3 runs" in out) == (130, True), error
    assert [run.state for run in swept(server)] == [pb.RUN_STATE_KILLED] * 3


def test_the_notebook_that_starts_notebooks(server: Server) -> None:
    """Its runs succeed on the same service while it runs."""
    with Client(server.target) as client:
        given = {"target": server.target, "seeds": [1, 2], "games": 2}
        result = client.run(server_path="notebooks_that_start_notebooks.ipynb", parameters=given)
        table = parsed(result.output()).cells[-1].outputs[0].data["text/plain"]
    assert re.findall(r"^(\w+) +-0\.", table, re.MULTILINE) == ["1", "2", "theory"]
    runs = labelled(server, **{"started-by": "notebooks_that_start_notebooks"})
    assert [run.state for run in runs] == [pb.RUN_STATE_SUCCEEDED] * 2
    assert sorted(MessageToDict(run)["parameters"]["seed"] for run in runs) == [1, 2]
