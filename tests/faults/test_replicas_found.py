"""What two servers on one database must not do to each other's runs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import finish, inline, perform, reach, start, texts
from tests.support.database_server import CountingRun, DatabaseServer, until
from tests.support.postgres import Postgres
from tests.support.processes import stopped
from tests.support.scrape import ON, scrape

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.process_pool("on a cluster runs outlive their server"),
]

SECONDS = 60.0
NOT_FOUND = grpc.StatusCode.NOT_FOUND

Pair = tuple[DatabaseServer, DatabaseServer]


@pytest.fixture
def pair(postgres: Postgres, tmp_path: Path) -> Iterator[Pair]:
    """Two servers on one database, which know each other."""
    url = postgres.url(postgres.create_database())
    with (
        DatabaseServer(tmp_path / "first", url) as first,
        DatabaseServer(tmp_path / "second", url) as second,
    ):
        for server in (first, second):
            until(lambda server=server: _workers(server) == 2, server.tail)  # type: ignore[misc]
        yield first, second


def _workers(server: DatabaseServer) -> int:
    return server.stub.Info(pb.InfoRequest(), timeout=SECONDS).workers


def test_a_run_of_another_server_cannot_be_deleted(pair: Pair, tmp_path: Path) -> None:
    """Neither server deletes a run that one of them executes; the run goes on."""
    counting = CountingRun(tmp_path)
    run = start(pair[0].stub, counting.request)
    reach(pair[0].stub, run.run_id, "cell_output")
    for server in pair:
        with pytest.raises(grpc.RpcError) as refused:
            server.stub.Delete(pb.DeleteRequest(run_id=run.run_id), timeout=SECONDS)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    counting.stop()
    assert finish(pair[1].stub, run.run_id).run.state == pb.RUN_STATE_SUCCEEDED


def test_the_same_request_at_both_servers_starts_one_run(pair: Pair) -> None:
    """Both answer with the same run, each time, and go on to start others."""
    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            request = inline("print('once')", request_id=f"request-{number}")
            answers = [pool.submit(start, server.stub, request) for server in pair]
            run_id, same = (answer.result().run_id for answer in answers)
            assert run_id == same
            assert texts(finish(pair[1].stub, run_id).events) == "once\n"


def test_an_owner_has_no_more_workers_than_its_share(postgres: Postgres, tmp_path: Path) -> None:
    """Of many runs that wait at both servers, one is executed at a time."""
    url = postgres.url(postgres.create_database())
    shares = tmp_path / "shares"
    shares.write_text("anyone active=1\n")
    options = ("--shares-file", str(shares))
    with (
        DatabaseServer(tmp_path / "first", url, *options) as first,
        DatabaseServer(tmp_path / "second", url, *options) as second,
    ):
        until(lambda: _workers(first) == _workers(second) == 2, first.tail)
        ids = [start(first.stub, inline("import time; time.sleep(0.2)")).run_id for _ in range(8)]
        runs = [finish(second.stub, run_id).run for run_id in ids]
    times = sorted((run.start_time.ToNanoseconds(), run.end_time.ToNanoseconds()) for run in runs)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(times))


def test_a_damaged_run_hides_no_other(postgres: Postgres, tmp_path: Path) -> None:
    """A queued run is damaged before another server learns of it; later runs are known there all the same."""
    url = postgres.url(name := postgres.create_database())
    with (
        DatabaseServer(tmp_path / "first", url) as first,
        DatabaseServer(tmp_path / "second", url) as second,
    ):
        until(lambda: _workers(first) == _workers(second) == 2, first.tail)
        blocking = [CountingRun(tmp_path, f"blocking-{number}") for number in range(2)]
        busy = [start(first.stub, one.request).run_id for one in blocking]
        for run_id in busy:
            reach(second.stub, run_id, "cell_output")
        with postgres.admin(name) as db, stopped(second.process.pid):
            damaged = start(first.stub, inline("1")).run_id
            db.execute("UPDATE runs SET run = '{' WHERE run_id = %s", [damaged])
        later = start(second.stub, inline("print('later')")).run_id
        for one in blocking:
            one.stop()
        assert texts(finish(second.stub, later).events) == "later\n"
        assert second.logged("run_damaged", damaged)


def test_a_refused_start_counts_once(postgres: Postgres, tmp_path: Path) -> None:
    """The server looks again whether the other one has room meanwhile, and counts one refusal."""
    url = postgres.url(postgres.create_database())
    shares = tmp_path / "shares"
    shares.write_text("anyone queued=0\n")
    options = ("--shares-file", str(shares), *ON)
    with (
        DatabaseServer(tmp_path / "first", url, *options) as first,
        DatabaseServer(tmp_path / "second", url, *options) as second,
    ):
        until(lambda: _workers(first) == _workers(second) == 2, first.tail)
        blocking = [CountingRun(tmp_path, f"blocking-{number}") for number in range(2)]
        for one in blocking:
            start(first.stub, one.request)
        for number in (1, 2):
            with pytest.raises(grpc.RpcError) as refused:
                start(second.stub, inline("1"))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert scrape(second).value("owner_quota_exceeded_total", quota="queued") == number
        for one in blocking:
            one.stop()


def test_two_servers_delete_a_run_at_once(pair: Pair) -> None:
    """One of them deletes it, and the other one does not find it."""

    def delete(server: DatabaseServer, run_id: str) -> None:
        server.stub.Delete(pb.DeleteRequest(run_id=run_id), timeout=SECONDS)

    ids = [perform(pair[0].stub, inline("1")).run.run_id for _ in range(20)]
    with ThreadPoolExecutor(2) as pool:
        for run_id in ids:
            calls = [pool.submit(delete, server, run_id) for server in pair]
            errors = [error for one in calls if (error := one.exception()) is not None]
            assert [isinstance(error, grpc.RpcError) and error.code() for error in errors] == [NOT_FOUND]
