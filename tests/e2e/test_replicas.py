"""Several servers on one history: any of them answers any call, and one queue has the runs of all."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import (
    SECONDS,
    artefact,
    executed,
    finish,
    follow,
    inline,
    perform,
    reach,
    start,
    texts,
)
from tests.support.database_server import until
from tests.support.errors import refusal_of, refused
from tests.support.gate import Gate
from tests.support.killable import RUN_MARK, new_mark, remains
from tests.support.notebooks import printed
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Postgres
from tests.support.server import STORE, Server
from tests.support.watching import watching

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("a history in PostgreSQL excludes a cluster"),
]

BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, "RUNNER_BUSY")
REUSED = (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


class Pair(NamedTuple):
    """Two servers on one history, with one worker each."""

    one: Server
    two: Server

    @property
    def both(self) -> tuple[Server, Server]:
        """The servers."""
        return self.one, self.two


def info(server: Server) -> pb.InfoResponse:
    """What a server says of all."""
    return server.stub.Info(pb.InfoRequest(), timeout=SECONDS)


def _knows(server: Server, workers: int) -> bool:
    """Whether a server knows of so many workers of all servers."""
    return info(server).workers == workers


def _counts(server: Server, counts: tuple[int, int]) -> bool:
    """Whether a server knows of so many active and queued runs of all servers."""
    found = info(server)
    return (found.runs_active, found.runs_queued) == counts


@pytest.fixture(scope="module", params=["postgres", "pgbouncer"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two servers that know each other, also behind a pooler, where no hint reaches them."""
    folder = tmp_path_factory.mktemp("replicas")
    source: Postgres | PgBouncer = request.getfixturevalue(request.param)
    environment = {STORE: source.url(source.create_database())}
    servers = [
        Server(folder / name, "--heartbeat-interval", "0.5", environment=environment) for name in ("1", "2")
    ]
    with servers[0] as one, servers[1] as two:
        for server in (one, two):
            until(partial(_knows, server, 2), server.tail)
        yield Pair(one, two)


def test_a_stream_begins_at_one_and_goes_on_at_the_other(pair: Pair, gate: Gate) -> None:
    """The events are the same, numbered without a gap, whichever server sends them."""
    run = start(pair.one.stub, inline("print('before')", gate.source, "print('after')"))
    first = [reach(pair.one.stub, run.run_id, "cell_output")]
    before = []
    for event in follow(pair.two.stub, run.run_id):
        before.append(event)
        if event == first[0]:
            break
    gate.open()
    after = list(follow(pair.one.stub, run.run_id, after_sequence=before[-1].sequence))
    whole = [event for event in before + after if not event.HasField("heartbeat")]
    assert whole == finish(pair.two.stub, run.run_id).events == finish(pair.one.stub, run.run_id).events
    assert texts(whole) == "before\nafter\n"


def test_all_calls_at_the_other_server(pair: Pair) -> None:
    """Get, List, Output and Delete know the run that another server has executed."""
    run = perform(pair.one.stub, inline("print('hello')", "open('made.txt', 'w').write('by a run')")).run
    stub = pair.two.stub
    assert stub.Get(pb.GetRequest(run_id=run.run_id), timeout=SECONDS).run == run
    assert stub.List(pb.ListRequest(page_size=1), timeout=SECONDS).runs[0] == run
    assert printed(executed(stub, run.run_id), 0) == "hello\n"
    for form in ("notebook", "html", "files"):
        assert artefact(stub, run.run_id, format=form) == artefact(pair.one.stub, run.run_id, format=form)
    stub.Delete(pb.DeleteRequest(run_id=run.run_id), timeout=SECONDS)
    for server in pair.both:
        missing = refused(partial(server.stub.Get, pb.GetRequest(run_id=run.run_id)))
        assert missing.code is grpc.StatusCode.NOT_FOUND


def test_the_notebook_of_an_active_run(pair: Pair, gate: Gate) -> None:
    """Its output so far is read at any server; its files are at the one that executes it."""
    run = start(pair.one.stub, inline("print('so far')", gate.source))
    at_two = reach(pair.two.stub, run.run_id, "cell_started", 1)
    assert at_two.cells_completed == 1
    assert printed(executed(pair.two.stub, run.run_id), 0) == "so far\n"
    here = [server for server in pair.both if not _refuses_files(server, run.run_id)]
    assert len(here) == 1
    gate.open()
    finish(pair.two.stub, run.run_id)
    assert artefact(pair.one.stub, run.run_id, format="files") == artefact(
        pair.two.stub, run.run_id, format="files"
    )


def _refuses_files(server: Server, run_id: str) -> bool:
    """Whether the run is executed by another server, which the refusal says."""
    try:
        artefact(server.stub, run_id, format="files")
    except grpc.RpcError as error:
        return "another server" in refusal_of(error).message
    return False


def test_whichever_server_is_free_executes(pair: Pair, gate: Gate) -> None:
    """Two Starts at one server take both workers; the third is refused by both, until they end."""
    first = start(pair.one.stub, inline(gate.source))
    second = start(pair.one.stub, inline(gate.source))
    for run in (first, second):
        reach(pair.two.stub, run.run_id, "cell_started")
    for server in pair.both:
        until(partial(_counts, server, (2, 0)), server.tail)
        assert refused(partial(start, server.stub, inline("1"))).kind == BUSY
    gate.open(2)
    finish(pair.one.stub, second.run_id)
    finish(pair.one.stub, first.run_id)
    # An end that one server has reported counts at the other.
    assert perform(pair.two.stub, inline("1")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("killer", [0, 1])
def test_kill_at_any_server(pair: Pair, gate: Gate, killer: int) -> None:
    """It answers when no process is left, with their number, whichever server executes the run."""
    mark = new_mark()
    hidden = "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    request = inline(hidden, gate.source)
    request.environment[RUN_MARK] = mark
    run = start(pair.one.stub, request)
    reach(pair.two.stub, run.run_id, "cell_started", 1)
    assert remains(mark)
    answer = pair.both[killer].stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS)
    assert remains(mark) == {}
    assert answer.run.state == pb.RUN_STATE_KILLED
    # The kernel, and what it has started.
    assert answer.processes_ended == 2
    for server in pair.both:
        assert finish(server.stub, run.run_id).run == answer.run


def test_a_request_id_counts_at_all_servers(pair: Pair) -> None:
    """Twenty Starts of one request at both servers at once are one run; another request is refused."""
    request = inline("print('once')", request_id="the same")
    with ThreadPoolExecutor(20) as pool:
        runs = list(pool.map(lambda n: start(pair.both[n % 2].stub, request).run_id, range(20)))
    assert len(set(runs)) == 1
    assert texts(finish(pair.two.stub, runs[0]).events) == "once\n"
    other = inline("print('other')", request_id="the same")
    for server in pair.both:
        assert refused(partial(start, server.stub, other)).kind == REUSED


def test_a_watcher_sees_the_runs_of_all(pair: Pair) -> None:
    """Each change once and in order, and heartbeats while there is none."""
    labels = {"watched": "at the other"}
    with watching(pair.two.stub, labels=labels) as watcher:
        run = perform(pair.one.stub, inline("1", labels=labels)).run
        states = [change.run.state for change in watcher.take(4)]
    assert states[0] == pb.RUN_STATE_QUEUED
    assert states[-1] == run.state == pb.RUN_STATE_SUCCEEDED


def test_a_server_that_stops_leaves_its_queue_to_the_others(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, gate: Gate
) -> None:
    """It finishes what it executes, refuses nothing, and the others execute what waits."""
    folder = tmp_path_factory.mktemp("rolled")
    environment = {STORE: postgres.url(postgres.create_database())}
    # The run goes on until the test lets it end.
    options = ("--queue", "5", "--drain-timeout", "600")
    with Server(folder / "old", *options, environment=environment) as old:
        run = start(old.stub, inline(gate.source, "print('finished')"))
        waiting = start(old.stub, inline("print('taken over')"))
        with Server(folder / "new", "--queue", "5", environment=environment) as new:
            assert texts(finish(new.stub, waiting.run_id).events) == "taken over\n"
            until(partial(_knows, old, 2), old.tail)
            old.process.terminate()
            until(partial(_knows, new, 1), new.tail)
            # Not refused, and not executed by the one that stops.
            late = start(old.stub, inline("print('late')"))
            assert texts(finish(new.stub, late.run_id).events) == "late\n"
            gate.open()
            assert texts(finish(new.stub, run.run_id).events) == "finished\n"
            assert old.process.wait(SECONDS) == 0, old.tail()
