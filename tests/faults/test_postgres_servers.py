"""Servers that share a database: what one leaves, the others have, and one that is replaced is fenced."""

import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.faults.history import Told
from tests.support.calls import artefact, executed, finish, history, inline, perform, start, texts
from tests.support.database_server import CountingRun, DatabaseServer, until_more
from tests.support.killable import RUN_MARK, gone, new_mark, remains
from tests.support.notebooks import printed
from tests.support.postgres import Postgres
from tests.support.postgres_proxy import PLAIN, PostgresProxy
from tests.support.processes import stopped

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("on a cluster runs outlive their server"),
]

# Short enough to wait for, and long enough for a server on a busy machine.
LEASE = 10.0
SECONDS = 60.0


class Life(NamedTuple):
    """What a caller knew when a server died, and the server that came after it on another machine."""

    server: DatabaseServer
    requests: list[pb.StartRequest]
    ended: pb.Run
    told: Told
    queued: str


def server_on(url: str, folder: Path, lease: float = LEASE) -> DatabaseServer:
    """A server with a folder of its own, as on another machine."""
    return DatabaseServer(folder, url, lease=lease)


@pytest.fixture(scope="module")
def life(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A server that is killed while one run prints and one is queued, and the next, without its files."""
    url = postgres.url(postgres.create_database())
    folder = tmp_path_factory.mktemp("servers")
    counting = CountingRun(folder)
    whole = inline("open('made.txt', 'w').write('by a run')\nprint('whole')", request_id="whole")
    later = inline("print('later')", request_id="later")
    with server_on(url, folder / "first") as first, ThreadPoolExecutor(1) as pool:
        ended = perform(first.stub, whole).run
        told = Told(start(first.stub, counting.request).run_id)
        queued = start(first.stub, later).run_id
        reader = pool.submit(told.read, first)
        until_more(told, first)
        first.die()
        reader.result()
    with server_on(url, folder / "second") as second:
        yield Life(second, [whole, counting.request, later], ended, told, queued)


def test_the_next_server_has_what_ended(life: Life) -> None:
    """The run, its events, its notebook, its page and its own files, none of which is on this machine."""
    stub, run_id = life.server.stub, life.ended.run_id
    assert stub.Get(pb.GetRequest(run_id=run_id), timeout=SECONDS).run == life.ended
    assert texts(finish(stub, run_id).events) == "whole\n"
    assert printed(executed(stub, run_id), 0) == "whole\n"
    assert b"whole" in artefact(stub, run_id, format="html")
    with zipfile.ZipFile(io.BytesIO(artefact(stub, run_id, format="files"))) as files:
        assert files.read("made.txt") == b"by a run"


def test_a_run_that_was_executed_is_interrupted(life: Life) -> None:
    """With every event that a reader was told, and what these tell of in its notebook."""
    run, events = finish(life.server.stub, life.told.run_id)
    assert run.state == pb.RUN_STATE_INTERRUPTED
    assert run.failure.cause == pb.FAILURE_CAUSE_SERVER_DIED
    assert events[: len(life.told.events)] == life.told.events
    node = executed(life.server.stub, run.run_id)
    assert printed(node, 0) + printed(node, 1) == texts(events)


def test_a_run_that_was_queued_is_executed(life: Life) -> None:
    """The next server has its notebook, which was on no disk but the database's."""
    assert texts(finish(life.server.stub, life.queued).events) == "later\n"


def test_a_request_id_answers_the_same_run(life: Life) -> None:
    """Starting again what was acknowledged starts nothing."""
    again = [start(life.server.stub, request).run_id for request in life.requests]
    assert again == [life.ended.run_id, life.told.run_id, life.queued]
    assert sorted(history(life.server.stub)) == sorted(again)


def test_a_server_that_ended_is_followed_at_once(postgres: Postgres, tmp_path: Path) -> None:
    """It gives its lease back: what it has left is executed within a lease of ten minutes."""
    url = postgres.url(postgres.create_database())
    with DatabaseServer(tmp_path / "first", url, "--drain-timeout", "0") as first:
        run = perform(first.stub, inline("1")).run
        start(first.stub, inline("import time; time.sleep(1000)"))
        waiting = start(first.stub, inline("print('later')"))
    with DatabaseServer(tmp_path / "second", url) as second:
        assert texts(finish(second.stub, waiting.run_id).events) == "later\n"
        assert run.run_id in history(second.stub)


def _marked_run(folder: Path) -> tuple[CountingRun, str]:
    """A run with a process that carries a mark, and the mark: a warm kernel itself would not show it."""
    run, mark = (
        CountingRun(folder, setup="import subprocess; subprocess.Popen(['sleep', '1000'])"),
        new_mark(),
    )
    run.request.environment[RUN_MARK] = mark
    return run, mark


def _is_fenced(first: DatabaseServer, mark: str) -> None:
    """Waits for the end of a server that lost its lease, which says so and leaves no process."""
    code = first.process.wait(SECONDS)
    assert code == 1, first.tail()
    assert first.said("lease_lost"), first.tail()
    gone(mark)
    first.buried()


def test_a_server_that_stood_still_past_its_lease_is_fenced(postgres: Postgres, tmp_path: Path) -> None:
    """Its run is interrupted by another one, when its worker has ended the notebook: it cannot do so itself.

    When it goes on, nothing that it does is written.
    """
    url = postgres.url(postgres.create_database())
    run, mark = _marked_run(tmp_path)
    with server_on(url, tmp_path / "first") as first, server_on(url, tmp_path / "second") as second:
        told = Told(start(first.stub, run.request).run_id)
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(told.read, first)
            until_more(told, first)
            assert remains(mark)
            with stopped(first.process.pid):
                ended = finish(second.stub, told.run_id)
                assert remains(mark) == {}
            assert ended.run.state == pb.RUN_STATE_INTERRUPTED
            _is_fenced(first, mark)
            reader.result()
        assert ended.events[: len(told.events)] == told.events
        assert finish(second.stub, told.run_id).events == ended.events
        assert texts(perform(second.stub, inline("print('on')")).events) == "on\n"


def test_a_server_without_its_database_ends_its_runs_before_another_takes_over(
    postgres: Postgres, tmp_path: Path
) -> None:
    """The network loses all that it sends: its runs are dead when another server says that they are."""
    name = postgres.create_database()
    run, mark = _marked_run(tmp_path)
    with (
        PostgresProxy(postgres.port) as proxy,
        server_on(postgres.url(name, port=proxy.port, options=PLAIN), tmp_path / "first") as first,
        server_on(postgres.url(name), tmp_path / "second") as second,
    ):
        told = Told(start(first.stub, run.request).run_id)
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(told.read, first)
            until_more(told, first)
            assert remains(mark)
            with proxy.silent():
                ended = finish(second.stub, told.run_id)
                assert remains(mark) == {}
                _is_fenced(first, mark)
            assert ended.run.state == pb.RUN_STATE_INTERRUPTED
            assert ended.events[: len(told.events)] == told.events
            reader.result()


def test_of_two_servers_one_replaces_a_third_that_dies(postgres: Postgres, tmp_path: Path) -> None:
    """Its run is interrupted once, and both say the same."""
    url = postgres.url(postgres.create_database())
    run, _ = _marked_run(tmp_path)
    with (
        server_on(url, tmp_path / "first") as first,
        server_on(url, tmp_path / "second") as second,
        server_on(url, tmp_path / "third") as third,
    ):
        told = Told(start(first.stub, run.request).run_id)
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(told.read, first)
            until_more(told, first)
            first.die()
            reader.result()
        ended = [finish(one.stub, told.run_id) for one in (second, third)]
        assert ended[0].events == ended[1].events
        assert ended[0].run.state == pb.RUN_STATE_INTERRUPTED
        assert ended[0].events[: len(told.events)] == told.events
