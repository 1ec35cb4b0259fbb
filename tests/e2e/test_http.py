"""The HTTP API as callers use it: with curl, for each path, against a real server."""

import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from google.protobuf.json_format import MessageToDict

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.http_api.bindings import bindings
from tests.support.calls import artefact, finish, inline, perform, started
from tests.support.gate import Gate
from tests.support.http_client import HttpCaller
from tests.support.notebooks import content, notebook, parsed, printed, written
from tests.support.pages import REPOSITORY, blocks
from tests.support.progress import Validator
from tests.support.server import Server
from tests.support.tools import needs

SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, notebook_root: Path) -> Iterator[Server]:
    """A server with HTTP."""
    options = ["--notebook-root", str(notebook_root), "--default-notebook", "default.ipynb", "--queue", "2"]
    with Server(tmp_path_factory.mktemp("state"), *options, "--http-listen", "127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def caller(server: Server) -> HttpCaller:
    """A caller of that server."""
    return HttpCaller(server.http)


@pytest.fixture(scope="module")
def ended(server: Server) -> pb.Run:
    """A run that has ended."""
    return perform(server.stub, inline("print('hello')\n1/0", labels={"team": "a b"})).run


def curl(server: Server, path: str, *arguments: str) -> str:
    """What curl prints for a request that succeeds."""
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--fail-with-body",
        *arguments,
        f"http://{server.http}{path}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def as_json(message: Any) -> Any:
    """A message in proto3's JSON mapping."""
    return MessageToDict(message)


@needs("curl")
def test_start_and_read_with_curl(server: Server) -> None:
    """Start, List, Get, Progress, Output, Kill and Delete, as a page of a tutorial would have them."""
    run = json.loads(curl(server, "/v1/runs", "--json", '{"parameters": {"who": "curl"}, "name": "c"}'))[
        "run"
    ]
    path = f"/v1/runs/{run['runId']}"
    stream = curl(server, f"{path}/progress", "--no-buffer")
    assert stream.startswith("id: 1\ndata: {")
    assert "RUN_STATE_SUCCEEDED" in stream.rstrip().splitlines()[-1]
    assert json.loads(curl(server, path))["run"]["name"] == "c"
    newest = json.loads(curl(server, "/v1/runs/latest"))["run"]
    assert newest == json.loads(curl(server, "/v1/runs?page_size=1"))["runs"][0]
    assert printed(parsed(curl(server, f"{path}/output").encode()), 2) == "hello curl\n"
    assert curl(server, f"{path}/output?format=error")
    killed = json.loads(curl(server, f"{path}:kill", "-X", "POST"))
    assert killed["alreadyEnded"]
    assert json.loads(curl(server, path, "-X", "DELETE"))["run"]["runId"] == run["runId"]
    assert json.loads(curl(server, "/v1/info"))["workers"] == 1


@needs("curl")
def test_each_line_of_the_page(tmp_path: Path) -> None:
    """What the page on HTTP tells readers to do works as it is, and has a line for each path."""
    page = REPOSITORY / "docs/how-to/http.md"
    (block,) = [one for one in blocks(page) if one.text.count("curl ") > 2]
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    root = str(REPOSITORY / "examples")
    options = ["--notebook-root", root, "--default-notebook", "quickstart.ipynb", "--queue", "5"]
    called = set()
    with Server(tmp_path / "state", *options, "--http-listen", "127.0.0.1:0") as server:
        for line in block.text.splitlines():
            if line.startswith("#"):
                continue
            called.add(asked(line))
            run_id = server.stub.List(pb.ListRequest()).runs[-1].run_id if "/ID" in line else ""
            text = line.replace("127.0.0.1:8080", server.http).replace("/ID", f"/{run_id}")
            program, *arguments = shlex.split(text)
            command = [program, "--silent", "--show-error", "--fail-with-body", *arguments]
            with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                if "/v1/watch" in line:
                    assert process.stdout.readline().startswith("id: ")
                    process.terminate()
                    continue
                printed_text, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, (line, printed_text)
    assert called == {one.name for one in bindings()}
    (saved,) = tmp_path.glob("*.html")
    assert "<html" in saved.read_text()


def asked(line: str) -> str:
    """The name of the call that a line with curl makes."""
    words = shlex.split(line)
    verb = words[words.index("-X") + 1] if "-X" in words else "GET"
    verb = "POST" if {"--json", "--data-binary"} & set(words) else verb
    (url,) = [urlsplit(word) for word in words if word.startswith("http")]
    found = [
        one.name
        for one in bindings()
        if one.verb == verb and re.fullmatch(re.sub(r"\{\w+\}", "[^/:]+", one.path), url.path)
    ]
    assert len(found) == 1, line
    return found[0]


@needs("curl")
def test_the_notebook_itself_with_curl(server: Server, tmp_path: Path) -> None:
    """`curl --data-binary @nb.ipynb` starts the notebook; the other fields are query parameters."""
    (tmp_path / "nb.ipynb").write_bytes(content("print(6 * 7)"))
    path = "/v1/runs?name=file&allow_errors=true&run_timeout=30s&labels%5Bteam%5D=x"
    run = json.loads(curl(server, path, "--data-binary", f"@{tmp_path}/nb.ipynb"))["run"]
    assert (run["name"], run["labels"]) == ("file", {"team": "x"})
    assert finish(server.stub, run["runId"]).run.state == pb.RUN_STATE_SUCCEEDED
    assert printed(parsed(artefact(server.stub, run["runId"])), 0) == "42\n"


@needs("curl")
def test_an_empty_start_runs_the_default_notebook(server: Server) -> None:
    """`curl -X POST` is enough."""
    run = json.loads(curl(server, "/v1/runs", "-X", "POST"))["run"]
    assert run["notebookPath"] == "default.ipynb"
    assert finish(server.stub, run["runId"]).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_over_http(caller: HttpCaller, path: str) -> None:
    """Each path for probes returns 200 while the server serves."""
    answer = caller.get(path)
    assert (answer.status, answer.json) == (200, {"status": "SERVING"})


def test_kill_ends_a_run(server: Server, caller: HttpCaller, gate: Gate) -> None:
    """Kill takes its fields as JSON, and ends the run."""
    with started(server.stub, inline(gate.source)) as run:
        # Some proxies encode the colon.
        answer = caller.call("POST", f"/v1/runs/{run.run_id}%3Akill", {"gracePeriod": "0.5s"})
        assert (answer.status, answer.json["run"]["state"]) == (200, "RUN_STATE_KILLED")


def test_answers_are_those_of_grpc(server: Server, caller: HttpCaller, ended: pb.Run) -> None:
    """Each answer is the message that gRPC returns, in proto3's JSON mapping."""
    stub = server.stub
    assert caller.get(f"/v1/runs/{ended.run_id}").json == as_json(
        stub.Get(pb.GetRequest(run_id=ended.run_id))
    )
    listed = stub.List(pb.ListRequest(states=[pb.RUN_STATE_FAILED], labels={"team": "a b"}))
    assert list(listed.runs)
    query = "states=RUN_STATE_FAILED&states=6&labels%5Bteam%5D=a%20b&pageSize=50"
    assert caller.get(f"/v1/runs?{query}").json == as_json(listed)
    page = stub.Output(pb.OutputRequest(run_id=ended.run_id, max_bytes=7, offset=2))
    path = f"/v1/runs/{ended.run_id}/output?max_bytes=7&offset=2"
    assert caller.get(path, accept="application/json").json == as_json(page)


@pytest.mark.parametrize("omit", ["false", "true"])
def test_events_are_those_of_grpc(server: Server, caller: HttpCaller, ended: pb.Run, omit: str) -> None:
    """Server-sent events and JSON lines keep the guarantees of Progress, with the sequence as the id."""
    request = pb.ProgressRequest(run_id=ended.run_id, omit_cell_output=omit == "true")
    expected = list(server.stub.Progress(request))
    path = f"/v1/runs/{ended.run_id}/progress?omit_cell_output={omit}"
    numbered = list(caller.events(path))
    assert [event for _, event in numbered] == list(caller.messages(path)) == expected
    assert [number for number, _ in numbered] == [str(event.sequence) for event in expected]
    validator = Validator(request)
    for _, event in numbered:
        validator.see(event)
    validator.end()


def test_a_stream_continues_after_the_last_event_id(caller: HttpCaller, ended: pb.Run) -> None:
    """An EventSource gets the events after the last one; 204 tells it that there will be none."""
    path = f"/v1/runs/{ended.run_id}/progress"
    numbers = [number for number, _ in caller.events(path)]
    for after in range(1, len(numbers)):
        assert [number for number, _ in caller.events(path, last_event_id=str(after))] == numbers[after:]
    # nginx and others then buffer none of them.
    assert caller.get(path).headers["X-Accel-Buffering"] == "no"
    answer = caller.get(path, last_event_id=numbers[-1])
    assert (answer.status, answer.body) == (204, b"")
    assert caller.get(f"{path}?after_sequence={numbers[-1]}").body == b""


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "1" * 30, "²"])
def test_an_id_that_no_event_has(caller: HttpCaller, ended: pb.Run, after: str) -> None:
    """It is refused before the stream begins, and names the field."""
    path = f"/v1/runs/{ended.run_id}/progress"
    answer = caller.get(path, last_event_id=after.encode().decode("latin-1"))
    assert (answer.status, answer.reason) == (400, "INVALID_FIELD")
    assert "after_sequence" in json.dumps(answer.json)


def test_the_id_of_a_later_event(caller: HttpCaller, ended: pb.Run) -> None:
    """It is refused with a reason of its own: the history may be older than the caller's."""
    answer = caller.get(f"/v1/runs/{ended.run_id}/progress", last_event_id="99999")
    assert (answer.status, answer.reason) == (400, "SEQUENCE_AHEAD")


@pytest.mark.long
def test_an_artefact_is_a_file(server: Server, caller: HttpCaller, ended: pb.Run) -> None:
    """Its bytes, type, name, and the hash of its content as entity tag."""
    for name, kind in [
        ("notebook", "application/x-ipynb+json"),
        ("html", "text/html; charset=utf-8"),
        ("error", "text/plain; charset=utf-8"),
        ("files", "application/zip"),
    ]:
        answer = caller.get(f"/v1/runs/{ended.run_id}/output?format={name}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
        assert answer.body == artefact(server.stub, ended.run_id, format=name)
        assert answer.headers["ETag"] == f'"{hashlib.sha256(answer.body).hexdigest()}"'
        assert answer.headers["Content-Disposition"].startswith(f'inline; filename="{ended.run_id}.')
        head = caller.call("HEAD", f"/v1/runs/{ended.run_id}/output?format={name}")
        assert head.body == b""
        assert head.headers["Content-Length"] == str(len(answer.body))


def test_ranges(caller: HttpCaller, server: Server) -> None:
    """Every range is what it would be of the whole, also across pages."""
    run = perform(server.stub, inline("print('x' * 700_000)")).run
    path = f"/v1/runs/{run.run_id}/output"
    whole = caller.get(path)
    size = len(whole.body)
    for first, last, expected in [
        ("0", "0", (0, 1)),
        ("5", "20", (5, 21)),
        ("262143", "262144", (262143, 262145)),
        ("100", "600000", (100, 600001)),
        (str(size - 1), "", (size - 1, size)),
        ("7", str(size + 100), (7, size)),
        ("", "10", (size - 10, size)),
        ("", str(size + 1), (0, size)),
    ]:
        answer = caller.get(path, range=f"bytes={first}-{last}")
        begin, end = expected
        assert (answer.status, answer.body) == (206, whole.body[begin:end])
        assert answer.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{size}"
    for unsatisfiable in (f"bytes={size}-", "bytes=9-3", "bytes=-0"):
        answer = caller.get(path, range=unsatisfiable)
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
    for ignored in ("bytes=0-1,4-5", "lines=1-2", "bytes=x-"):
        assert caller.get(path, range=ignored).body == whole.body
    assert caller.get(path, range="bytes=0-1", if_range='"other"').body == whole.body
    assert caller.get(path, range="bytes=0-1", if_range=whole.headers["ETag"]).status == 206
    unchanged = caller.get(path, if_none_match=f'"x", W/{whole.headers["ETag"]}')
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert caller.get(path, if_none_match='"x"').body == whole.body


def test_an_artefact_of_an_active_run(server: Server, caller: HttpCaller, gate: Gate) -> None:
    """It has no entity tag, and a range of it is the whole, because the next may be of another artefact."""
    with started(server.stub, inline("print('done')", gate.source)) as run:
        next(one for one in server.stub.Progress(pb.ProgressRequest(run_id=run.run_id)) if one.sequence == 4)
        answer = caller.get(f"/v1/runs/{run.run_id}/output", range="bytes=0-3")
        assert (answer.status, answer.headers["ETag"]) == (200, None)
        assert parsed(answer.body)


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "reason"),
    [
        ("GET", "/v1/runs/none", None, 404, "RUN_NOT_FOUND"),
        ("GET", "/v1/runs/none/progress", None, 404, "RUN_NOT_FOUND"),
        ("GET", "/v1/runs/none/output", None, 404, "RUN_NOT_FOUND"),
        ("GET", "/v1/runs/latest/output?format=x", None, 400, "UNKNOWN_FORMAT"),
        ("GET", "/v1/runs/latest/output?offset=1", None, 400, "INVALID_FIELD"),
        ("GET", "/v1/runs?page_size=-1", None, 400, "INVALID_FIELD"),
        ("GET", "/v1/runs?page_size=1e3", None, 400, "INVALID_FIELD"),
        ("GET", "/v1/runs?states=NOPE", None, 400, "INVALID_FIELD"),
        ("GET", "/v1/runs?nope=1", None, 400, "INVALID_FIELD"),
        ("GET", "/v1/runs?labels=1", None, 400, "INVALID_FIELD"),
        ("GET", "/v1/runs?page_size=1&page_size=2", None, 400, "INVALID_FIELD"),
        ("DELETE", "/v1/runs/none", None, 404, "RUN_NOT_FOUND"),
        ("DELETE", "/v1/runs/latest", None, 404, "RUN_NOT_FOUND"),
        ("POST", "/v1/runs/none:kill", None, 404, "RUN_NOT_FOUND"),
        ("POST", "/v1/runs/none:kill", {"gracePeriod": "soon"}, 400, "INVALID_FIELD"),
        ("POST", "/v1/runs", {"nope": 1}, 400, "INVALID_FIELD"),
        ("POST", "/v1/runs", [], 400, "INVALID_FIELD"),
        ("POST", "/v1/runs", {"notebookPath": "none.ipynb"}, 404, "NOTEBOOK_NOT_FOUND"),
        ("POST", "/v1/runs", {"parameters": {"nope": 1}}, 400, "UNKNOWN_PARAMETER"),
        ("POST", "/v1/runs?name=x", {"name": "y"}, 400, "INVALID_FIELD"),
        ("POST", "/v1/runs", b"no notebook", 400, "INVALID_NOTEBOOK"),
        ("GET", "/v1/nope", None, 404, "UNKNOWN_METHOD"),
        ("PUT", "/v1/runs", None, 405, "UNKNOWN_METHOD"),
        ("HEAD", "/v1/runs/latest/progress", None, 405, ""),
    ],
)
def test_failed_calls(caller: HttpCaller, verb: str, path: str, body: Any, status: int, reason: str) -> None:
    """Each is google.rpc.Status in JSON with a reason, and the HTTP status that means the same."""
    answer = caller.call(verb, path, body)
    assert answer.status == status
    if reason:
        assert answer.reason == reason
        assert answer.json["message"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff", b'{"name": "\\ud800"}', b"[" * 100_000, b'{"priority": 1e999}', b'{"name":1}', b"NaN"],
)
def test_bodies_that_are_no_request(caller: HttpCaller, body: bytes) -> None:
    """Malformed JSON of every kind is refused in the same way."""
    answer = caller.call("POST", "/v1/runs", body, content_type="application/json")
    assert (answer.status, answer.reason) == (400, "INVALID_FIELD")


def test_a_busy_server_says_when_to_try_again(server: Server, caller: HttpCaller, gate: Gate) -> None:
    """The status is 429, with Retry-After."""
    with (
        started(server.stub, inline(gate.source)),
        started(server.stub, inline("1")),
        started(server.stub, inline("2")),
    ):
        answer = caller.call("POST", "/v1/runs", content("3"))
        assert (answer.status, answer.reason) == (429, "RUNNER_BUSY")
        assert answer.headers["Retry-After"] == "1"


@pytest.mark.long
def test_a_large_notebook(server: Server, caller: HttpCaller) -> None:
    """Megabytes arrive as they are and in JSON, which another process parses."""
    large = written(notebook("print('large')", f"'{'x' * 3_000_000}'"))
    raw = caller.call("POST", "/v1/runs", large)
    assert raw.status == 200
    coded = caller.call("POST", "/v1/runs", as_json(pb.StartRequest(notebook_content=large)))
    assert coded.status == 200
    for answer in (raw, coded):
        sent = answer.json["run"]
        assert sent["notebookSha256"] == hashlib.sha256(large).hexdigest()
        assert finish(server.stub, sent["runId"]).run.state == pb.RUN_STATE_SUCCEEDED
    broken = caller.call("POST", "/v1/runs", b'{"x":' + large + b"}", content_type="application/json")
    assert (broken.status, broken.reason) == (400, "INVALID_FIELD")


def test_the_log_has_the_request(server: Server, caller: HttpCaller) -> None:
    """The call's line has the caller's id and address, and the response has the id."""
    answer = caller.get("/v1/info", x_request_id="http-test-1")
    assert answer.headers["x-request-id"] == "http-test-1"
    (line,) = server.logged("rpc", "http-test-1")
    assert line["method"] == "NotebookRunner/Info"
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    malformed = caller.get("/v1/info", x_request_id="no good").headers["x-request-id"]
    assert server.logged("rpc", malformed)


def test_the_description_and_its_page(caller: HttpCaller) -> None:
    """Both are served without anything from other hosts."""
    assert caller.get("/openapi.json").json["openapi"] == "3.1.0"
    page = caller.get("/docs")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for path in ("/docs/init.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"):
        assert path in page.body.decode()
        assert caller.get(path).status == 200
    assert "://" not in page.body.decode()
