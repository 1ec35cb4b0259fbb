"""The benchmark of several servers: what it computes, and its servers on a real PostgreSQL."""

import io
import time

import pytest
from rich.console import Console

from benchmarks import notebooks, replicas
from benchmarks.postgres import Cost, database, replicated
from benchmarks.replicas import Read, Row
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, finish

COST = Cost(seconds=10.0, server=0.05, postgres=0.2, commits=400, rollbacks=20, sessions=30)


def row(count: int, rate: float) -> Row:
    """The figures of some replicas."""
    read = Read(COST, readers=count, events=1234.4, late_median=0.0051, late_p99=0.0209)
    return Row(count, idle=COST, rate=rate, rated=COST, runs=10, one=read, many=read)


def test_the_rate_is_relative_to_that_of_one() -> None:
    """The least counts, and the goal is missed below it."""
    enough = replicas.grown([row(1, 0.5), row(2, 0.98), row(4, 1.92)])
    assert enough.samples == {"2 replicas": [0.98], "4 replicas": [0.96]}
    assert [str(goal) for goal in enough.goals] == [
        "0.96 of n times one replica's, minimum (goal: at least 0.9)"
    ]
    assert not replicas.grown([row(1, 0.5), row(2, 0.98), row(4, 1.6)]).goals[0].reached


def test_the_table_has_a_column_for_each_number_of_replicas() -> None:
    """With what each run and each line cost."""
    console = Console(width=200, file=io.StringIO())
    console.print(replicas.table([row(1, 0.5), row(4, 1.9)]))
    assert isinstance(console.file, io.StringIO)
    lines = [line.split("│")[1:-1] for line in console.file.getvalue().splitlines() if line.startswith("│")]
    shown = {name.strip(): [value.strip() for value in values] for name, *values in lines}
    assert shown["relative to n times one replica"] == ["1.00", "0.95"]
    assert shown["statements a run"] == ["40", "40"]
    assert shown["rollbacks a run"] == ["2.0", "2.0"]
    assert shown["idle: a server, PostgreSQL, %"] == ["5.0, 20.0"] * 2
    assert shown["idle: statements a second"] == ["40", "40"]
    assert shown["lines a second, one reader each"] == ["10", "40"]
    assert shown["statements a line"] == ["4.0", "1.0"]
    assert shown["events a second to all of them"] == ["1234", "1234"]


@pytest.mark.postgres
def test_it_finds_the_server_of_a_run_and_what_that_costs() -> None:
    """On a database that makes commits durable, as a real one does."""
    with database() as postgres, replicated(postgres, 2) as servers:
        with postgres.admin() as db:
            assert db.execute("SHOW fsync").fetchone() == ("on",)
            assert db.execute("SHOW synchronous_commit").fetchone() == ("on",)
        stub = servers.all[0].service.stub
        run = stub.Start(
            pb.StartRequest(notebook_content=notebooks.written(notebooks.small(1))), timeout=SECONDS
        ).run

        def work() -> float:
            begin = time.perf_counter()
            finish(stub, run.run_id)
            return time.perf_counter() - begin

        cost = servers.cost(work)
        here = servers.executing(run.run_id)
        assert here in servers.all
        assert servers.other(here) is not here
        assert cost.seconds > 0
        assert cost.server > 0
        servers.kill(here)
        assert here not in servers.all
