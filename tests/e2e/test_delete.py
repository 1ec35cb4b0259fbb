"""Delete: an ended run goes with all that it left on the server, and whoever reads it learns so."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import (
    SECONDS,
    artefact,
    finish,
    follow,
    history,
    inline,
    perform,
    reach,
    start,
    started,
)
from tests.support.errors import refusal_of, refused
from tests.support.gate import Gate
from tests.support.polling import pause
from tests.support.server import Server

pytestmark = pytest.mark.guarantee

UNKNOWN = (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
ACTIVE = (grpc.StatusCode.FAILED_PRECONDITION, "RUN_ACTIVE")
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
# More than gRPC sends to a reader that does not read: its stream stays open after the end of the run. Such a
# reader has a connection of its own, whose window nobody makes larger.
UNREAD = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
LARGE = "for n in range(200):\n    print('x' * 30_000, flush=True)"


def delete(server: Server, run_id: str) -> pb.Run:
    """Deletes a run, and returns it as it was."""
    return server.stub.Delete(pb.DeleteRequest(run_id=run_id), timeout=SECONDS).run


def left(state: Path, run_id: str) -> list[Path]:
    """Files and folders of a state folder that are named after a run."""
    # `rglob` fails if the server removes a folder meanwhile.
    found = [Path(parent, name) for parent, *names in os.walk(state) for name in (*names[0], *names[1])]
    return [path for path in found if run_id in path.name]


def test_an_ended_run_goes_with_all_that_it_left(server: Server) -> None:
    """Its history, its folder and its artefacts are gone, and each call about it says so."""
    source = "import os; open(os.environ['NOTEBOOK_RUNNER_RUN_DIR'] + '/file', 'w').write('x' * 1000)"
    run = perform(server.stub, inline(source, "1 / 0", labels={"delete": "me"}, name="mine")).run
    other = perform(server.stub, inline("1", labels={"delete": "not"})).run
    for form in ("notebook", "html", "files"):
        artefact(server.stub, run.run_id, format=form)
    assert left(server.state_dir, run.run_id)
    assert delete(server, run.run_id) == run
    assert left(server.state_dir, run.run_id) == []
    assert run.run_id not in history(server.stub)
    by_label = pb.ListRequest(labels={"delete": "me"})
    assert not server.stub.List(by_label, timeout=SECONDS).runs
    stub, run_id = server.stub, run.run_id
    calls: list[Callable[[], object]] = [
        lambda: stub.Get(pb.GetRequest(run_id=run_id), timeout=SECONDS),
        lambda: stub.Get(pb.GetRequest(run_id=run_id[:-1]), timeout=SECONDS),
        lambda: stub.Output(pb.OutputRequest(run_id=run_id), timeout=SECONDS),
        lambda: list(follow(stub, run_id)),
        lambda: stub.Kill(pb.KillRequest(run_id=run_id), timeout=SECONDS),
        lambda: delete(server, run_id),
    ]
    for call in calls:
        assert refused(call).kind == UNKNOWN
    assert artefact(server.stub, other.run_id)


def test_a_request_id_is_free_again(server: Server) -> None:
    """The request id of a deleted run starts another run."""
    request = inline("1", request_id="deleted")
    first = perform(server.stub, request).run
    delete(server, first.run_id)
    second = perform(server.stub, request).run
    assert second.run_id != first.run_id


def test_a_run_that_has_not_ended_stays(server: Server, gate: Gate) -> None:
    """A running and a queued run are not deleted; the error says what to do first."""
    with started(server.stub, inline(gate.source)) as running:
        reach(server.stub, running.run_id, "cell_started")
        with started(server.stub, inline("1")) as waiting:
            for run in (running, waiting):
                refusal = refused(lambda run=run: delete(server, run.run_id))  # type: ignore[misc] # bound now
                assert refusal.kind == ACTIVE
                assert "Kill it first" in refusal.message
                assert refusal.metadata["run_id"] == run.run_id
            gate.open()
            assert finish(server.stub, running.run_id).run.state == pb.RUN_STATE_SUCCEEDED
            assert finish(server.stub, waiting.run_id).run.state == pb.RUN_STATE_SUCCEEDED


def test_a_run_can_be_deleted_with_its_terminal_event(server: Server) -> None:
    """Who has seen the end may delete: nothing of the run comes afterwards."""
    for _ in range(20):
        run = start(server.stub, inline("print('x')"))
        finish(server.stub, run.run_id)
        delete(server, run.run_id)
        assert left(server.state_dir, run.run_id) == []
    assert perform(server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("run_id", ["nobody", "x" * 10_000, "../runs", "\0"])
def test_a_run_that_there_is_not(server: Server, run_id: str) -> None:
    """An unknown run is not found."""
    assert refused(lambda: delete(server, run_id)).kind == UNKNOWN


def test_a_run_must_be_named_whole(server: Server) -> None:
    """Neither an empty id nor a part of one deletes a run."""
    run_id = perform(server.stub, inline("1")).run.run_id
    refusal = refused(lambda: delete(server, ""))
    assert refusal.kind == INVALID
    assert refusal.fields == ["run_id"]
    for part in (run_id[:-1], run_id.rpartition("-")[2]):
        assert refused(lambda part=part: delete(server, part)).kind == UNKNOWN  # type: ignore[misc] # bound now
    assert run_id in history(server.stub)


def test_an_open_stream_ends_with_the_run(server: Server) -> None:
    """A slow reader of a run gets RUN_NOT_FOUND instead of the rest, whether that is in memory or stored."""
    for is_active_at_first in (True, False):
        run_id = start(server.stub, inline(LARGE)).run_id
        if not is_active_at_first:
            list(follow(server.stub, run_id))
        with grpc.insecure_channel(server.target, UNREAD) as channel:
            request = pb.ProgressRequest(run_id=run_id)
            stream = rpc.NotebookRunnerStub(channel).Progress(request, timeout=2 * SECONDS)
            next(stream)
            for event in follow(server.stub, run_id, omit_cell_output=True):
                assert not event.HasField("cell_output")
            delete(server, run_id)
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
        assert refusal_of(caught.value).kind == UNKNOWN


def test_the_pages_of_a_run_end_with_it(server: Server) -> None:
    """A reader between two pages gets RUN_NOT_FOUND for the next."""
    run_id = perform(server.stub, inline("print('x' * 10_000)")).run.run_id
    for form in ("notebook", "html", "files", "error"):
        request = pb.OutputRequest(run_id=run_id, format=form, max_bytes=10)
        page = server.stub.Output(request, timeout=SECONDS)
        assert page.next_offset < page.total_bytes
    delete(server, run_id)
    for form in ("notebook", "html", "files", "error"):
        request = pb.OutputRequest(run_id=run_id, format=form, offset=10, max_bytes=10)
        assert refused(lambda request=request: server.stub.Output(request, timeout=SECONDS)).kind == UNKNOWN  # type: ignore[misc] # bound now


def test_an_export_leaves_nothing_of_a_deleted_run(server: Server) -> None:
    """A run that is deleted while it is exported leaves no artefact, and the export is not answered."""
    run_id = perform(server.stub, inline("print('x' * 1000)")).run.run_id
    request = pb.OutputRequest(run_id=run_id, format="html")
    with ThreadPoolExecutor(1) as pool:
        export = pool.submit(lambda: server.stub.Output(request, timeout=SECONDS))
        # Its folder is there from the beginning of an export on, which takes half a second.
        folder = server.state_dir / "artefacts" / run_id
        end = time.monotonic() + SECONDS
        while not folder.exists():
            assert time.monotonic() < end
            pause()
        delete(server, run_id)
        error = export.exception()
    if error is not None:
        assert refusal_of(error).kind == UNKNOWN
    assert left(server.state_dir, run_id) == []


def test_many_deletes_of_one_run(server: Server) -> None:
    """Exactly one of many calls at the same time deletes it."""
    run_id = perform(server.stub, inline("1")).run.run_id
    together = threading.Barrier(8)

    def call(_: int) -> str:
        together.wait()
        try:
            return delete(server, run_id).run_id
        except grpc.RpcError as error:
            return refusal_of(error).reason

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(call, range(8)))
    assert sorted(answers) == sorted([run_id, *["RUN_NOT_FOUND"] * 7])
