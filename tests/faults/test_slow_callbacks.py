"""Nothing holds the event loop for long, however large what is asked for is."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import artefact, finish, follow, history, inline, perform, start
from tests.support.errors import refused
from tests.support.http_client import HttpCaller
from tests.support.killable import KillableServer, figure
from tests.support.notebooks import code, notebook, written
from tests.support.server import Server

pytestmark = pytest.mark.load

PROGRAM = [sys.executable, str(Path(__file__).with_name("watched_server.py"))]
# gRPC itself takes in what it receives on the loop, some 2.5 ms for each megabyte.
LARGE = 12_000_000
CELLS = 5000
LINES = 20_000
OUTPUT = 50
# A busy machine takes more than a minute for the page.
EXPORT_SECONDS = 600.0
VALUES = 700_000
ENTRIES = 2_000_000


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tells what held its event loop."""
    options = ("--http-listen", "127.0.0.1:0")
    with KillableServer(tmp_path_factory.mktemp("state"), *options, program=PROGRAM) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_slow(watched: Server) -> Iterator[None]:
    """Whatever a test asked for, no callback took 50 ms of a fast processor."""
    before = len(watched.noise)
    yield
    slow = [line for line in watched.noise[before:] if line.startswith("SLOW")]
    assert slow == []


def test_a_large_notebook(watched: Server) -> None:
    """12 MB of text, executed and read again."""
    data = written(notebook(code(f"1\n#{'x' * LARGE}")))
    ended = perform(watched.stub, pb.StartRequest(notebook_content=data, request_id="large"))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert len(artefact(watched.stub, ended.run.run_id)) > LARGE


def test_many_cells(watched: Server) -> None:
    """5,000 cells are admitted, and followed to the end of the first few."""
    run = start(watched.stub, inline(*["1"] * CELLS))
    assert run.cells_total == CELLS
    for event in follow(watched.stub, run.run_id):
        if event.HasField("cell_finished") and event.cell_finished.cell_index == 50:
            break
    watched.stub.Kill(pb.KillRequest(run_id=run.run_id))
    artefact(watched.stub, run.run_id)


def test_many_events(watched: Server) -> None:
    """20,000 lines as they come, and again from the store; adjacent text of one stream would be one event."""
    lines = f"for number in range({LINES}): print(number, file=streams[number % 2], flush=True)"
    source = f"import sys\nstreams = sys.stdout, sys.stderr\n{lines}"
    run = start(watched.stub, inline(source))
    for _ in range(2):
        assert len(finish(watched.stub, run.run_id).events) > LINES / 10
    figure(f"{len(finish(watched.stub, run.run_id).events)} events")


def test_large_outputs_and_an_export(watched: Server) -> None:
    """50 MB of output, read in pages, and as HTML."""
    source = f"for number in range({OUTPUT}): print('x' * 999_999)"
    ended = perform(watched.stub, inline(source))
    assert len(artefact(watched.stub, ended.run.run_id)) > OUTPUT * 900_000
    page = artefact(watched.stub, ended.run.run_id, format="html", timeout=EXPORT_SECONDS)
    assert len(page) > OUTPUT * 900_000
    artefact(watched.stub, ended.run.run_id, format="files")


@pytest.mark.parametrize("fields", ['"parameters":{"x":[%s]}', '"labels":{%s}'])
def test_many_values_in_json(watched: Server, fields: str) -> None:
    """A body over HTTP within all limits of its size, which has far more values than a Start may have."""
    values = ",".join(["1"] * VALUES) if "[" in fields else ",".join(f'"{n}":""' for n in range(VALUES // 5))
    answer = HttpCaller(watched.http).call(
        "POST", "/v1/runs", f"{{{fields % values}}}".encode(), **{"content-type": "application/json"}
    )
    assert (answer.status, answer.reason) == (429, "REQUEST_TOO_LARGE")


@pytest.mark.parametrize(
    ("one", "times"),
    [
        (pb.StartRequest(labels={"a": ""}), ENTRIES),
        (pb.StartRequest(environment={"a": ""}), ENTRIES),
        (pb.StartRequest(files=[pb.InputFile()]), ENTRIES),
        (pb.StartRequest(retry=pb.RetryPolicy(states=[pb.RUN_STATE_FAILED] * ENTRIES)), 3),
    ],
    ids=["labels", "environment", "files", "states"],
)
def test_many_entries(watched: Server, one: pb.StartRequest, times: int) -> None:
    """A Start within its size whose fields have far more entries than it may have."""
    data = one.SerializeToString() * times
    assert refused(partial(watched.raw, "Start", data)).reason == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize("method", ["List", "Watch", "Get"])
def test_many_entries_of_a_small_request(watched: Server, method: str) -> None:
    """Callers with any scope may make these calls, whose requests are small."""
    data = pb.ListRequest(labels={"a": ""}).SerializeToString() * ENTRIES
    assert refused(partial(watched.raw, method, data)).reason == "REQUEST_TOO_LARGE"


def test_the_history(watched: Server) -> None:
    """All runs at once."""
    assert len(history(watched.stub)) >= 4
