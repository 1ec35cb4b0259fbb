"""Get: one run, by its id or by a part of it that only one run has; and the name and hash of a run."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, finish, history, inline, perform, reach, start, started
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.notebooks import content
from tests.support.server import Server

UNKNOWN = (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
AMBIGUOUS = (grpc.StatusCode.INVALID_ARGUMENT, "AMBIGUOUS_RUN_ID")


def get(server: Server, run_id: str) -> pb.Run:
    """Returns the run with this id, or with this part of an id."""
    return server.stub.Get(pb.GetRequest(run_id=run_id), timeout=SECONDS).run


def test_a_run_by_its_id_and_by_each_part(server: Server) -> None:
    """The whole id, its beginning, and the beginning of its random part name the run as it is in List."""
    run = perform(server.stub, inline("1")).run
    random_part = run.run_id.rpartition("-")[2]
    for part in (run.run_id, run.run_id[:-1], random_part, random_part[:6]):
        assert get(server, part) == run
    (newest,) = server.stub.List(pb.ListRequest(page_size=1), timeout=SECONDS).runs
    assert get(server, "") == newest == run


def test_a_part_that_several_runs_have(server: Server) -> None:
    """The error has some of the ids, the newest first; the whole id of one of them is not ambiguous."""
    runs = [perform(server.stub, inline("1")).run.run_id for _ in range(2)]
    refusal = refused(lambda: get(server, runs[-1][:4]))
    assert refusal.kind == AMBIGUOUS
    assert refusal.fields == ["run_id"]
    listed = refusal.metadata["run_ids"].split(",")
    assert 2 <= len(listed) <= 5
    # Ids of one second have no order of their own.
    assert listed == sorted(listed, reverse=True)
    assert all(run_id.startswith(runs[-1][:4]) for run_id in listed)
    assert set(listed) <= set(history(server.stub))
    assert listed[0] in refusal.message
    assert get(server, runs[-1]).run_id == runs[-1]


@pytest.mark.parametrize("part", ["nobody", "x" * 10_000, "%%%%", "____", "é" * 4, "\0" * 4])
def test_a_part_that_no_run_has(server: Server, part: str) -> None:
    """A part is text: it has no wildcards."""
    perform(server.stub, inline("1"))
    assert refused(lambda: get(server, part)).kind == UNKNOWN


def test_a_part_from_the_middle_of_an_id(server: Server) -> None:
    """Only beginnings count."""
    run_id = perform(server.stub, inline("1")).run.run_id
    assert refused(lambda: get(server, run_id[1:])).kind == UNKNOWN


def test_a_part_that_is_too_short(server: Server) -> None:
    """The error says how long a part must be, whether a run has it or not."""
    run_id = perform(server.stub, inline("1")).run.run_id
    for part in (run_id[:3], "xyz"):
        refusal = refused(lambda part=part: get(server, part))  # type: ignore[misc] # bound now
        assert refusal.kind == INVALID
        assert refusal.fields == ["run_id"]
        assert "at least 4 characters" in refusal.message


def test_no_run_at_all(make_server: Callable[..., Server]) -> None:
    """Without a run, an empty id is not found."""
    assert refused(lambda: get(make_server("--warm-kernels", "none"), "")).kind == UNKNOWN


def test_a_run_on_its_way(server: Server, gate: Gate) -> None:
    """The run is in its newest state, a queued one with its place in the queue."""
    with started(server.stub, inline(gate.source)) as running:
        reach(server.stub, running.run_id, "cell_started")
        with started(server.stub, inline("1")) as waiting:
            assert get(server, running.run_id).state == pb.RUN_STATE_RUNNING
            assert get(server, running.run_id).current_cell == 0
            queued = get(server, "")
            assert (queued.run_id, queued.state, queued.queue_position) == (
                waiting.run_id,
                pb.RUN_STATE_QUEUED,
                0,
            )


def test_a_name_is_everywhere(server: Server) -> None:
    """A given name is in Start, Progress, List, Get, Output and Kill."""
    name = "Umsätze, 3. Quartal 📈"
    run = start(server.stub, inline("1", name=name))
    events = finish(server.stub, run.run_id).events
    states = [event.run_changed for event in events if event.HasField("run_changed")]
    output = server.stub.Output(pb.OutputRequest(run_id=run.run_id), timeout=SECONDS).run
    killed = server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS).run
    (listed,) = server.stub.List(pb.ListRequest(page_size=1), timeout=SECONDS).runs
    found = [run, *states, output, killed, listed, get(server, run.run_id)]
    assert {one.name for one in found} == {name}
    assert len(found) == 9


def test_the_name_of_a_notebook_file(server: Server) -> None:
    """Without a name, a run has that of the notebook's file; a notebook that was sent has none."""
    by_path = perform(server.stub, pb.StartRequest(notebook_path="folder/place.ipynb")).run
    assert by_path.name == "place"
    assert perform(server.stub, pb.StartRequest()).run.name == "default"
    assert perform(server.stub, inline("1")).run.name == ""
    named = perform(server.stub, pb.StartRequest(notebook_path="folder/place.ipynb", name="mine")).run
    assert named.name == "mine"


def test_the_name_of_a_notebook_at_a_uri(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """The last part of the URI is the name, as people write it."""
    (tmp_path / "Umsätze 2026.ipynb").write_bytes(content("1"))
    server = make_server("--warm-kernels", "none", "--uri-schemes", "file", "--uri-folders", str(tmp_path))
    uri = f"file://{tmp_path}/Ums%C3%A4tze%202026.ipynb"
    run = perform(server.stub, pb.StartRequest(notebook_uri=uri)).run
    assert run.name == "Umsätze 2026"


@pytest.mark.parametrize("name", ["x" * 129, "a\nb", "a\x1b[31mb", "a\x7f", "a\u2028b", "\0"])
def test_a_name_that_cannot_be_shown(server: Server, name: str) -> None:
    """A name is at most 128 characters, without control characters, and the error says so."""
    refusal = refused(lambda: start(server.stub, inline("1", name=name)))
    assert refusal.kind == INVALID
    assert refusal.fields == ["name"]


def test_a_name_of_greatest_length(server: Server) -> None:
    """128 characters are allowed, whatever their size in bytes."""
    assert perform(server.stub, inline("1", name="😀" * 128)).run.name == "😀" * 128


def test_a_name_belongs_to_the_request(server: Server) -> None:
    """A repeated request id with another name is another request."""
    request = inline("1", request_id="named", name="a")
    first = perform(server.stub, request).run
    assert start(server.stub, request).run_id == first.run_id
    for name in ("", "b"):
        request.name = name
        refusal = refused(lambda: start(server.stub, request))
        assert refusal.kind == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_the_hash_of_a_notebook(server: Server, notebook_root: Path) -> None:
    """The hash is that of the bytes that were given, before any parameter is injected."""
    given = content("who = 1")
    run = perform(server.stub, pb.StartRequest(notebook_content=given)).run
    assert run.notebook_sha256 == hashlib.sha256(given).hexdigest()
    by_path = perform(server.stub, pb.StartRequest(parameters_json='{"who": "you"}')).run
    default = (notebook_root / "default.ipynb").read_bytes()
    assert by_path.notebook_sha256 == hashlib.sha256(default).hexdigest()
