"""Notebooks that are read from where they live, and results that are written to where they shall live."""

import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import (
    SECONDS,
    artefact,
    duration,
    executed,
    finish,
    follow,
    inline,
    perform,
    reach,
    start,
    started,
    struct,
    texts,
)
from tests.support.errors import refused
from tests.support.gate import Gate
from tests.support.killable import children
from tests.support.notebooks import code, content, printed
from tests.support.server import Server
from tests.support.uris import allowing, objects, shared, uri_server, web
from tests.support.web import ObjectStore, Web

__all__ = ["objects", "shared", "uri_server", "web"]

# Less than a write may take (--uri-timeout).
URI_KILL_SECONDS = 40.0
NOTEBOOK = content(code("who = 'world'", "parameters"), "import os\nprint(who, os.getcwd())")
SIGNATURE = "X-Signature=d0e5f1"


class Places:
    """Where each scheme has notebooks."""

    def __init__(self, web: Web, objects: ObjectStore, shared: Path) -> None:
        self._web = web
        self._objects = objects
        self._shared = shared

    def put(self, scheme: str, name: str, data: bytes) -> str:
        """Puts a notebook there; answers its URI."""
        if scheme == "http":
            return f"{self._web.put(name, data)}?{SIGNATURE}"
        if scheme == "s3":
            return self._objects.put(name, data)
        (self._shared / name).write_bytes(data)
        return self.free(scheme, name)

    def free(self, scheme: str, name: str) -> str:
        """The URI of a place where nothing is yet."""
        if scheme == "http":
            return f"{self._web.url}/objects/{name}?{SIGNATURE}"
        if scheme == "s3":
            return f"s3://notebooks/{name}"
        return f"file://{str(self._shared).replace('a', '%61')}/{name}"

    def get(self, scheme: str, name: str) -> bytes:
        """What is there now."""
        if scheme == "http":
            return self._web.objects[f"/objects/{name}"]
        return self._objects.get(name) if scheme == "s3" else (self._shared / name).read_bytes()


@pytest.fixture
def places(web: Web, objects: ObjectStore, shared: Path) -> Places:
    """Where each scheme has notebooks."""
    return Places(web, objects, shared)


@pytest.mark.parametrize(("source", "target"), [("http", "s3"), ("s3", "file"), ("file", "http")])
def test_a_notebook_is_read_from_one_place_and_written_to_another(
    uri_server: Server, places: Places, source: str, target: str
) -> None:
    """It takes parameters, runs in a folder of its own, and what is written is what Output answers."""
    request = pb.StartRequest(
        notebook_uri=places.put(source, f"in-{source}.ipynb", NOTEBOOK),
        output_uri=places.free(target, f"from {source}.ipynb".replace(" ", "-")),
        parameters=struct({"who": "you"}),
    )
    ended = perform(uri_server.stub, request)
    run = ended.run
    assert (run.state, run.output_error) == (pb.RUN_STATE_SUCCEEDED, "")
    who, folder = texts(ended.events).split()
    assert who == "you"
    assert run.run_id in Path(folder).parts
    assert places.get(target, f"from-{source}.ipynb") == artefact(uri_server.stub, run.run_id)
    assert run.notebook_path == ""
    assert run.notebook_uri == request.notebook_uri.replace(SIGNATURE, "…")
    assert run.output_uri == request.output_uri.replace(SIGNATURE, "…")


def test_a_file_that_is_there_is_replaced_and_nothing_is_left_beside_it(
    uri_server: Server, places: Places, shared: Path
) -> None:
    """The result takes the place of the earlier one, and the draft of it is gone."""
    uri = places.put("file", "again.ipynb", b"old")
    perform(uri_server.stub, inline("1", output_uri=uri))
    assert places.get("file", "again.ipynb").startswith(b"{")
    assert list(shared.glob(".*")) == []


ENDINGS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "failed": ("1 / 0", pb.RUN_STATE_FAILED, {}),
    "timed out": (
        "import threading; threading.Event().wait()",
        pb.RUN_STATE_TIMED_OUT,
        {"cell_timeout": 3},
    ),
    "crashed": ("import os; os.kill(os.getpid(), 9)", pb.RUN_STATE_CRASHED, {}),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_notebook_is_written_after_every_end_of_its_own(
    uri_server: Server, places: Places, name: str
) -> None:
    """What was executed is there also when the run did not succeed."""
    source, state, limits = ENDINGS[name]
    fields = {limit: duration(seconds) for limit, seconds in limits.items()}
    uri = places.free("file", "ended.ipynb")
    run = perform(uri_server.stub, inline("print('kept')", source, output_uri=uri, **fields)).run
    assert (run.state, run.output_error) == (state, "")
    assert places.get("file", "ended.ipynb") == artefact(uri_server.stub, run.run_id)
    assert printed(executed(uri_server.stub, run.run_id), 0) == "kept\n"


def test_a_run_that_was_killed_is_written_nowhere(
    uri_server: Server, places: Places, shared: Path, gate: Gate
) -> None:
    """The run says so; that goes for one that ran and for one that waited."""
    uri = places.free("file", "killed.ipynb")
    with (
        started(uri_server.stub, inline(gate.source, output_uri=uri)) as run,
        started(uri_server.stub, inline("1", output_uri=uri)) as waiting,
    ):
        reach(uri_server.stub, run.run_id, "cell_started")
        for run_id in (waiting.run_id, run.run_id):
            answer = uri_server.stub.Kill(pb.KillRequest(run_id=run_id), timeout=SECONDS)
            assert answer.run.state == pb.RUN_STATE_KILLED
            assert answer.run.output_error == "Not uploaded: the run was killed."
    assert not (shared / "killed.ipynb").exists()


FAILED_WRITES = {
    "s3://nowhere/a.ipynb": "bucket does not exist",
    "{web}/status/507": "the service answered 507",
    "{web}/status/403": "access denied",
    "{web}/redirect?http://127.0.0.1/": "redirects to another URI",
    "http://127.0.0.1:1/a": "Connection refused",
    "file://{shared}/no-folder/a.ipynb": "No such file or directory",
}


@pytest.mark.parametrize("uri", FAILED_WRITES)
def test_a_failed_write_is_said_and_loses_nothing(
    uri_server: Server, web: Web, shared: Path, uri: str
) -> None:
    """The run succeeds, its terminal event and List say why the notebook is not there, and Output has it."""
    target = uri.format(web=web.url, shared=shared)
    ended = perform(uri_server.stub, inline("print('kept')", output_uri=target))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED
    assert ended.run.output_error.startswith("Not uploaded: ")
    assert FAILED_WRITES[uri] in ended.run.output_error
    assert uri_server.stub.List(pb.ListRequest(page_size=1), timeout=SECONDS).runs[0] == ended.run
    assert printed(executed(uri_server.stub, ended.run.run_id), 0) == "kept\n"
    report = artefact(uri_server.stub, ended.run.run_id, format="error").decode()
    assert ended.run.output_error in report


def test_a_kill_ends_a_write_at_once(uri_server: Server, web: Web) -> None:
    """The run can be followed and listed meanwhile, and is KILLED: it had not ended."""
    request = inline("print('kept')", output_uri=f"{web.url}/silent")
    with started(uri_server.stub, request) as run:
        web.wait()
        seen = list(follow(uri_server.stub, run.run_id, snapshot_only=True))
        assert seen[-1].HasField("cell_finished")
        listed = uri_server.stub.List(pb.ListRequest(page_size=1), timeout=SECONDS).runs[0]
        assert (listed.state, listed.cells_completed) == (pb.RUN_STATE_RUNNING, 1)
        assert _writers(uri_server)
        kill = pb.KillRequest(run_id=run.run_id)
        kills = [uri_server.stub.Kill.future(kill, timeout=URI_KILL_SECONDS) for _ in range(3)]
        answers = [one.result() for one in kills]
        assert not _writers(uri_server)
    ended = answers[0].run
    assert [answer.run for answer in answers] == [ended] * 3
    # One that comes late finds the run ended.
    assert not all(answer.already_ended for answer in answers)
    assert ended.state == pb.RUN_STATE_KILLED
    assert ended.output_error == "Upload aborted; the target may be incomplete: the run was killed."
    assert finish(uri_server.stub, run.run_id).run == ended
    assert printed(executed(uri_server.stub, run.run_id), 0) == "kept\n"


def _writers(server: Server) -> list[str]:
    """The processes of the server that bring a notebook from or to a URI."""
    return [command for command in children(server.process.pid).values() if "transfer.program" in command]


def test_a_run_that_failed_stays_so_when_its_write_is_killed(uri_server: Server, web: Web) -> None:
    """The first cause is the one that is told."""
    with started(uri_server.stub, inline("1 / 0", output_uri=f"{web.url}/silent")) as run:
        web.wait()
        answer = uri_server.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=URI_KILL_SECONDS)
    assert (answer.run.state, answer.run.failure.exception_name) == (pb.RUN_STATE_FAILED, "ZeroDivisionError")
    assert answer.run.output_error.startswith("Upload aborted")


def test_what_takes_too_long_is_given_up(make_server: Callable[..., Server], shared: Path) -> None:
    """After --uri-timeout a Start is refused, and a run ends as it would have; both say so."""
    server = make_server(*allowing(shared, timeout=1))
    with Web() as web:
        request = pb.StartRequest(notebook_uri=f"{web.url}/trickle")
        refusal = refused(lambda: start(server.stub, request))
        run = perform(server.stub, inline("1", output_uri=f"{web.url}/silent")).run
    assert refusal.kind == (grpc.StatusCode.UNAVAILABLE, "NOTEBOOK_UNREACHABLE")
    assert "longer than 1 s" in refusal.message
    assert (run.state, run.output_error) == (
        pb.RUN_STATE_SUCCEEDED,
        "Not uploaded: it took longer than 1 s (--uri-timeout).",
    )


def test_a_service_that_trickles_holds_up_nobody(uri_server: Server, web: Web) -> None:
    """While one Start waits for its notebook, others are admitted and executed; then it is told why."""
    request = pb.StartRequest(notebook_uri=f"{web.url}/trickle")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(refused, lambda: start(uri_server.stub, request))
        web.wait()
        assert perform(uri_server.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED
        assert not waiting.done()
        web.enough.set()
        refusal = waiting.result(SECONDS)
    assert refusal.kind == (grpc.StatusCode.UNAVAILABLE, "NOTEBOOK_UNREACHABLE")


@pytest.mark.state_folder("it reads the files of a run that is executed")
def test_what_a_uri_signs_with_is_nowhere_when_the_run_has_ended(
    uri_server: Server, web: Web, gate: Gate
) -> None:
    """While the run goes on one private file has it; afterwards no file, no answer and no log."""
    signature = "SIGNED1234"
    uri = f"{web.put('signed.ipynb', content(gate.source))}?{signature}"
    request = pb.StartRequest(notebook_uri=uri, output_uri=f"{web.url}/status/500?{signature}")
    with started(uri_server.stub, request) as run:
        reach(uri_server.stub, run.run_id, "cell_started")
        assert _holding(uri_server.state_dir, signature) == ["output-uri"]
        path = uri_server.state_dir / "runs" / run.run_id / "output-uri"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        gate.open()
        ended = finish(uri_server.stub, run.run_id)
    assert f"PUT /status/500?{signature}" in web.requests
    assert (ended.run.output_error, ended.run.output_uri) == (
        "Not uploaded: the service answered 500.",
        f"{web.url}/status/500?…",
    )
    report = artefact(uri_server.stub, run.run_id, format="error").decode()
    for text in (str(ended), report, str(run), json.dumps(uri_server.log), "".join(uri_server.noise)):
        assert signature not in text
    assert _holding(uri_server.state_dir, signature) == []


def _holding(folder: Path, text: str) -> list[str]:
    """The files that have it."""
    # `rglob` fails if the server removes a folder meanwhile.
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return [path.name for path in paths if text.encode() in _content(path)]


def _content(path: Path) -> bytes:
    """The content of a file; nothing if the server has removed it meanwhile."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:
        return b""


def test_the_same_request_is_the_same_run_and_is_not_read_again(
    uri_server: Server, web: Web, places: Places
) -> None:
    """A request id covers both URIs; a repeat asks nobody for the notebook."""
    uri = web.put("once.ipynb", content("1"))
    request = pb.StartRequest(
        request_id="uris", notebook_uri=uri, output_uri=places.free("file", "once.ipynb")
    )
    run = perform(uri_server.stub, request).run
    assert start(uri_server.stub, request) == run
    assert web.requests.count("GET /objects/once.ipynb") == 1
    other: dict[str, Callable[[], object]] = {
        "notebook_uri": lambda: pb.StartRequest(request_id="uris", notebook_uri=f"{uri}?a"),
        "output_uri": lambda: pb.StartRequest(request_id="uris", notebook_uri=uri, output_uri=uri),
    }
    for change in other.values():
        assert refused(lambda change=change: start(uri_server.stub, change())).reason == "REQUEST_ID_REUSED"  # type: ignore[misc]
