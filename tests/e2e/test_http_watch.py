"""Watch over HTTP: what gRPC's watchers get, as server-sent events and as JSON lines."""

import itertools
import random
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, finish, history, inline, perform, start
from tests.support.http_client import HttpCaller, StreamFailedError
from tests.support.killable import KillableServer
from tests.support.progress import TERMINAL
from tests.support.server import Server
from tests.support.watching import Watcher, WatchValidator, watching

HTTP = ("--http-listen", "127.0.0.1:0")
EVENTS, LINES = "events", "lines"
SUCCESS = [pb.RUN_STATE_QUEUED, pb.RUN_STATE_STARTING, pb.RUN_STATE_RUNNING, pb.RUN_STATE_SUCCEEDED]
LIVES = 4
LARGE = 700_000
LARGE_RUNS = 8

each_form = pytest.mark.parametrize("form", [EVENTS, LINES])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with HTTP."""
    with Server(tmp_path_factory.mktemp("state"), "--queue", "20", *HTTP) as running:
        yield running


@pytest.fixture
def labels() -> dict[str, str]:
    """Marks the runs of a test, beside which others may be executed."""
    return {"watched": uuid4().hex}


def query_of(request: pb.WatchRequest) -> str:
    """The path of a request, with its fields as query parameters."""
    pairs = [("states", pb.RunState.Name(state)) for state in request.states]
    pairs += [(f"labels[{name}]", value) for name, value in request.labels.items()]
    pairs += [(name, getattr(request, name)) for name in ("owner", "cursor") if getattr(request, name)]
    pairs += [("include_existing", "true")] * request.include_existing
    return f"/v1/watch?{urlencode(pairs)}"


def received(
    caller: HttpCaller, form: str, request: pb.WatchRequest
) -> Generator[pb.WatchResponse, None, None]:
    """The messages of a stream, which continues by the id of the last event, or by a query parameter."""
    if form == LINES:
        yield from caller.changes(query_of(request))
        return
    plain = pb.WatchRequest()
    plain.CopyFrom(request)
    plain.cursor = ""
    last = {"last_event_id": request.cursor} if request.cursor else {}
    for number, message in caller.change_events(query_of(plain), **last):
        assert number == message.cursor
        yield message


@contextmanager
def watching_http(server: Server, form: str, **fields: Any) -> Iterator[Watcher]:
    """A stream that has begun, unless it continues from a cursor; its connection is cut at the end."""
    request = pb.WatchRequest(**fields)
    with closing(received(HttpCaller(server.http), form, request)) as stream:
        watcher = Watcher(stream, request)
        if not (request.cursor or request.include_existing):
            assert watcher.message().HasField("heartbeat")
        yield watcher


@each_form
def test_the_messages_are_those_of_grpc(server: Server, labels: dict[str, str], form: str) -> None:
    """Existing runs, each state, and deletions, with the same cursors."""
    first = perform(server.stub, inline("1 / 0", labels=labels)).run
    with (
        watching(server.stub, labels=labels, include_existing=True) as expected,
        watching_http(server, form, labels=labels, include_existing=True) as watcher,
    ):
        assert watcher.existing() == expected.existing() == [first]
        second = start(server.stub, inline("1", labels=labels))
        assert watcher.until_end(second.run_id) == expected.until_end(second.run_id)
        server.stub.Delete(pb.DeleteRequest(run_id=first.run_id), timeout=SECONDS)
        assert (
            watcher.change()
            == expected.change()
            == pb.WatchResponse(cursor=watcher.cursor, deleted_run_id=first.run_id)
        )
        assert watcher.seen == expected.seen
    assert [one.run.state for one in watcher.seen[2:6]] == SUCCESS


@each_form
def test_each_cursor_continues_with_the_rest(server: Server, labels: dict[str, str], form: str) -> None:
    """Whichever message was the last, existing runs included, the next stream has exactly what came after."""
    for _ in range(2):
        perform(server.stub, inline("1", labels=labels))
    with watching_http(server, form, labels=labels, include_existing=True) as watcher:
        watcher.existing()
        perform(server.stub, inline("1", labels=labels))
        watcher.take(4)
        whole = watcher.seen
    assert len(whole) == 7
    for number, message in enumerate(whole):
        fields = {"cursor": message.cursor, "labels": labels, "include_existing": number % 2 == 0}
        with watching_http(server, form, **fields) as rest:
            assert rest.take(len(whole) - number - 1) == whole[number + 1 :]


def test_the_last_event_id_precedes_the_query(server: Server, labels: dict[str, str]) -> None:
    """An EventSource repeats its address, with the cursor that it began with, and adds the newest id."""
    with watching_http(server, EVENTS, labels=labels) as watcher:
        first = watcher.cursor
        perform(server.stub, inline("1", labels=labels))
        changes = watcher.take(4)
    path = query_of(pb.WatchRequest(cursor=first, labels=labels))
    stream = HttpCaller(server.http).change_events(path, last_event_id=changes[1].cursor)
    assert [next(stream)[1] for _ in range(2)] == changes[2:]


@each_form
def test_filters(server: Server, labels: dict[str, str], form: str) -> None:
    """State, label and owner restrict existing runs and changes."""
    states = [pb.RUN_STATE_FAILED, pb.RUN_STATE_RUNNING]
    bad = perform(server.stub, inline("1 / 0", labels={**labels, "a b": "c&d=é"})).run
    perform(server.stub, inline("1", labels=labels))
    open_stream = partial(watching_http, server, form, include_existing=True)
    with (
        open_stream(labels=labels, states=states) as by_state,
        open_stream(labels={**labels, "a b": "c&d=é"}) as by_label,
        open_stream(labels=labels, owner="nobody") as by_owner,
    ):
        assert [run.run_id for run in by_state.existing()] == [bad.run_id]
        assert [run.run_id for run in by_label.existing()] == [bad.run_id]
        assert by_owner.existing() == []
        other = perform(server.stub, inline("1 / 0", labels=labels)).run
        assert [one.run.state for one in by_state.take(2)] == [pb.RUN_STATE_RUNNING, pb.RUN_STATE_FAILED]
        for run in (other, bad):
            server.stub.Delete(pb.DeleteRequest(run_id=run.run_id), timeout=SECONDS)
        assert [one.deleted_run_id for one in by_state.take(2)] == [other.run_id, bad.run_id]
        assert by_label.change().deleted_run_id == bad.run_id


@each_form
def test_a_cursor_that_does_not_continue(server: Server, make_server: Any, form: str) -> None:
    """One of another history has expired, and a text that is none is refused, before the stream begins."""
    with watching(make_server().stub) as watcher:
        other = watcher.cursor
    accept = {EVENTS: "text/event-stream", LINES: "application/x-ndjson"}[form]
    for cursor, reason in ((other, "CURSOR_EXPIRED"), ("x", "INVALID_FIELD")):
        by_query = f"/v1/watch?{urlencode({'cursor': cursor})}"
        for path, last in (
            (by_query, ""),
            ("/v1/watch", cursor),
            ("/v1/watch?include_existing=true", cursor),
        ):
            answer = HttpCaller(server.http).get(path, accept=accept, last_event_id=last)
            assert (answer.status, answer.reason) == (400, reason)


def test_headers_and_heartbeats(make_server: Any) -> None:
    """A silent stream begins at once and has a heartbeat with a cursor; proxies do not buffer it."""
    server = make_server("--heartbeat-interval", "0.05", *HTTP)
    caller = HttpCaller(server.http)
    for accept in ("text/event-stream", "application/x-ndjson"):
        with closing(caller.connect()) as connection:
            connection.request("GET", "/v1/watch", headers={"accept": accept})
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith(accept)
            assert answer.headers["X-Accel-Buffering"] == "no"
    for form in (EVENTS, LINES):
        with watching_http(server, form) as idle:
            beats = [idle.message() for _ in range(3)]
            assert all(beat.HasField("heartbeat") for beat in beats)
            cursor = idle.cursor
        run = start(server.stub, inline("1"))
        with watching_http(server, form, cursor=cursor) as rest:
            assert rest.until_end(run.run_id) == SUCCESS


@pytest.mark.fault
@each_form
def test_a_slow_reader(server: Server, labels: dict[str, str], form: str) -> None:
    """Who does not read holds up nobody, and loses nothing when he reads on."""
    request = inline("1", labels=labels, parameters_json=f'{{"text": "{"x" * LARGE}"}}')
    with (
        watching_http(server, form, labels=labels) as slow,
        watching_http(server, form, labels=labels) as quick,
    ):
        # Together more than what the system keeps of a connection.
        for _ in range(LARGE_RUNS):
            run = start(server.stub, request)
            assert quick.until_end(run.run_id) == SUCCESS
        assert slow.take(len(quick.seen)) == quick.seen


@pytest.mark.fault
@pytest.mark.process_pool("on a cluster runs outlive their server")
@pytest.mark.parametrize("seed", [1, 2])
@each_form
def test_a_watcher_over_many_deaths(tmp_path: Path, form: str, seed: int) -> None:
    """Wherever connection and server end, the watcher has each state of each run once."""
    moments = random.Random(seed)  # noqa: S311 - the same again for the same seed
    request = pb.WatchRequest(include_existing=True)
    validator = WatchValidator(request)
    states: dict[str, list[int]] = {}
    options = ("--queue", "50", "--heartbeat-interval", "0.05", "--warm-kernels", "none", *HTTP)
    for life in range(LIVES + 1):
        with KillableServer(tmp_path, *options) as server:
            for _ in range(2):
                start(server.stub, inline("1"))
            known = history(server.stub)
            left = moments.randrange(1, 30)
            is_over = False
            while not is_over:
                with closing(received(HttpCaller(server.http), form, request)) as stream:
                    # Then the connection is cut.
                    for message in itertools.islice(stream, 3):
                        validator.see(message)
                        request.cursor = message.cursor
                        states.setdefault(message.run.run_id, []).append(message.run.state)
                        left -= 1
                        have_ended = TERMINAL.issuperset(states.get(run_id, [0])[-1] for run_id in known)
                        if is_over := have_ended if life == LIVES else left <= 0:
                            break
            if life < LIVES:
                server.die()
                continue
            for run_id in known:
                events = finish(server.stub, run_id).events
                whole = [event.run_changed.state for event in events if event.HasField("run_changed")]
                # Before the first stream began, some may have passed.
                assert states[run_id] == whole[-len(states[run_id]) :]


@each_form
def test_the_end_of_the_server_is_a_status(make_server: Any, form: str) -> None:
    """A server that stops sends all changes, and then says that the stream can be continued."""
    server = make_server("--drain-timeout", "0", *HTTP)
    with watching_http(server, form) as watcher:
        run = start(server.stub, inline("import time; time.sleep(600)"))
        while watcher.change().run.state != pb.RUN_STATE_RUNNING:
            pass
        server.process.terminate()
        assert watcher.until_end(run.run_id) == [pb.RUN_STATE_KILLING, pb.RUN_STATE_INTERRUPTED]
        with pytest.raises(StreamFailedError, match=r"^SHUTTING_DOWN$"):
            watcher.change()
