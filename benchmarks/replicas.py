"""Measure several servers on one PostgreSQL: how they grow, what they cost, and how one replaces another."""

import asyncio
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import grpc
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import flow, notebooks
from benchmarks.cluster import READY_SECONDS, SETTLE_SECONDS, check_lines, service
from benchmarks.postgres import Cost, Replica, Replicas, database, replicated
from benchmarks.report import Figure, Goal, percentile
from benchmarks.server import served
from benchmarks.service import NAME
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.postgres import Postgres

REPLICAS = (1, 2, 4)
SLEEP_SECONDS = 2.0
RUNS_EACH = 5
READERS_EACH = 50
LINES = 100
PAUSE = 0.1
IDLE_SECONDS = 10.0
FAILOVERS = 3
ENOUGH = 0.9
"""The goal for the rate of runs, relative to n times one replica."""

SAME = "the same replica"
SQLITE = "SQLite"


@dataclass(frozen=True)
class Read:
    """Runs that were followed, one on each replica.

    Attributes:
        cost: What that cost.
        readers: Number of concurrent streams.
        events: Events per second to all of them.
        late_median: Median time from a print in the kernel to a reader, in seconds.
        late_p99: The 99th percentile of the same.
    """

    cost: Cost
    readers: int
    events: float
    late_median: float
    late_p99: float


@dataclass(frozen=True)
class Row:
    """The figures for one number of replicas, each with one worker.

    Attributes:
        replicas: Number of replicas.
        idle: The cost of all of them without runs.
        rate: Runs per second, each of which sleeps two seconds.
        rated: The cost of these runs.
        runs: Their number.
        one: One reader of each run.
        many: Many readers of each run, over all replicas.
    """

    replicas: int
    idle: Cost
    rate: float
    rated: Cost
    runs: int
    one: Read
    many: Read


def measure(rounds: int) -> tuple[list[Figure], list[Row]]:
    """Measure replicas, of which each has one worker."""
    with database() as postgres:
        figures = [_one_cell(postgres, 6 * rounds), _lines(postgres, rounds), _failover(postgres)]
        rows = []
        for count in track(REPLICAS, description="replicas"):
            with replicated(postgres, count) as replicas:
                rows.append(_row(replicas, count))
    return [*figures, grown(rows)], rows


def _one_cell(postgres: Postgres, rounds: int) -> Figure:
    """Compare one server on PostgreSQL with one on SQLite."""
    figure = Figure("one cell, history in PostgreSQL", "ms", 1000)
    node = notebooks.small(1)
    with replicated(postgres, 1) as replicas, ExitStack() as stack:
        other = stack.enter_context(service(stack.enter_context(served())))
        sides = {NAME: replicas.all[0].service, SQLITE: other}
        for number in track(range(rounds), description=figure.name):
            for name in sorted(sides, reverse=number % 2 == 1):
                time.sleep(SETTLE_SECONDS)
                figure.add(name, sides[name](node).seconds)
    more = figure.median(NAME) - figure.median(SQLITE)
    figure.goals = [Goal("ms more than with SQLite, of medians", 10, more, at_most=True)]
    return figure


def _lines(postgres: Postgres, rounds: int) -> Figure:
    """Measure the time from a print in the kernel to the event at a reader of another replica."""
    figure = Figure("a printed line to a reader of another replica", "ms", 1000)
    data = notebooks.written(notebooks.ticking(50, 0.02, flush=True))
    with replicated(postgres, 2) as replicas:
        for number in track(range(2 * rounds), description=figure.name):
            time.sleep(SETTLE_SECONDS)
            run_id = replicas.all[0].service.start(data).run_id
            here = _executing(replicas, run_id)
            name, reader = ((NAME, replicas.other(here)), (SAME, here))[number % 2]
            for at, event in reader.service.follow(run_id):
                figure.add(name, *flow.late(at, event))
    figure.goals = [Goal("ms, median", 12, figure.median(NAME), at_most=True)]
    return figure


def _failover(postgres: Postgres) -> Figure:
    """Kill the replica that executes a run, and measure the time until another one reports its end."""
    figure = Figure("SIGKILL of a replica to INTERRUPTED at another one", "s", 1)
    data = notebooks.written(notebooks.ticking(1, 1000, flush=True))
    with replicated(postgres, 2) as replicas:
        for _ in track(range(FAILOVERS), description=figure.name):
            replicas.grow(2)
            run_id = replicas.all[0].service.start(data).run_id
            here = _executing(replicas, run_id)
            request = pb.ProgressRequest(run_id=run_id)
            stream = replicas.other(here).service.stub.Progress(request, timeout=READY_SECONDS)
            next(event for event in stream if event.HasField("cell_output"))
            begin = time.perf_counter()
            replicas.kill(here)
            *_, last = stream
            figure.add(NAME, time.perf_counter() - begin)
            if last.run_changed.state != pb.RUN_STATE_INTERRUPTED:
                raise RuntimeError(f"not interrupted: {last}")
    figure.goals = [Goal("s, maximum", 15, figure.p99(NAME), at_most=True)]
    return figure


def _executing(replicas: Replicas, run_id: str) -> Replica:
    """Wait until a run is executed, and return the replica that does."""
    stream = replicas.all[0].service.stub.Progress(pb.ProgressRequest(run_id=run_id), timeout=READY_SECONDS)
    next(event for event in stream if event.run_changed.state == pb.RUN_STATE_RUNNING)
    stream.cancel()
    return replicas.executing(run_id)


def _row(replicas: Replicas, count: int) -> Row:
    # A first run of each imports its modules.
    _runs(replicas, count)
    time.sleep(IDLE_SECONDS / 2)
    idle = replicas.cost(lambda: _timed(lambda: time.sleep(IDLE_SECONDS)))
    runs = RUNS_EACH * count
    rated = replicas.cost(lambda: _timed(lambda: _runs(replicas, runs)))
    one, many = (_read(replicas, readers) for readers in (1, READERS_EACH))
    return Row(count, idle, runs / rated.seconds, rated, runs, one, many)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _runs(replicas: Replicas, count: int) -> None:
    """Execute runs that sleep, started at the replicas in turn, so many at a time that all have one."""
    data = notebooks.written(notebooks.of([f"import time; time.sleep({SLEEP_SECONDS})"]))

    def run(number: int) -> None:
        at = replicas.all[number % len(replicas.all)].service
        list(at.follow(at.start(data).run_id))

    # One more than the number of workers, so that a free worker does not wait for a caller.
    with ThreadPoolExecutor(len(replicas.all) + 1) as pool:
        list(pool.map(run, range(count)))


Stream = list[tuple[float, pb.ProgressResponse]]


def _read(replicas: Replicas, readers: int) -> Read:
    """Follow a run on each replica, with readers at all replicas, and check that none misses an event."""
    data = notebooks.written(notebooks.ticking(LINES, PAUSE, flush=True))
    streams: list[Stream] = []

    def work() -> float:
        runs = [one.service.start(data).run_id for one in replicas.all]
        begin = time.perf_counter()
        streams.extend(asyncio.run(_read_all(replicas, runs, readers)))
        return time.perf_counter() - begin

    cost = replicas.cost(work)
    for stream in streams:
        check_lines([event for _, event in stream], LINES)
    late = [seconds for stream in streams for at, event in stream for seconds in flow.late(at, event)]
    events = sum(map(len, streams)) / cost.seconds
    return Read(cost, len(streams), events, statistics.median(late), percentile(late, 0.99))


async def _read_all(replicas: Replicas, runs: list[str], readers: int) -> list[Stream]:
    """Return the events of every reader; the first reader of a run is at the replica after its own."""

    async def read(stub: Any, run_id: str) -> Stream:
        request = pb.ProgressRequest(run_id=run_id)
        return [(time.time(), event) async for event in stub.Progress(request, timeout=READY_SECONDS)]

    async def read_run(number: int, run_id: str) -> list[Stream]:
        # A connection has a maximum of streams, and by default the channels of a process share one.
        alone = [("grpc.use_local_subchannel_pool", 1)]
        targets = [one.process.address for one in replicas.all]
        channels = [grpc.aio.insecure_channel(target, alone) for target in targets]
        stubs = [rpc.NotebookRunnerStub(channel) for channel in channels]
        following = (read(stubs[(number + 1 + one) % len(stubs)], run_id) for one in range(readers))
        try:
            return await asyncio.gather(*following)
        finally:
            for channel in channels:
                await channel.close()

    found = await asyncio.gather(*(read_run(number, run_id) for number, run_id in enumerate(runs)))
    return list(chain.from_iterable(found))


def grown(rows: list[Row]) -> Figure:
    """Return the rate of runs of each number of replicas, relative to n times one."""
    figure = Figure("runs a second that sleep 2 s, relative to n times one replica", "", 1)
    for row in rows[1:]:
        figure.add(f"{row.replicas} replicas", relative(rows, row))
    least = min(relative(rows, row) for row in rows)
    figure.goals = [Goal("of n times one replica's, minimum", ENOUGH, least)]
    return figure


def relative(rows: list[Row], row: Row) -> float:
    """Return the rate of runs in a row, relative to n times that of the first row, which has one replica."""
    return row.rate / (row.replicas * rows[0].rate)


def record(rows: list[Row]) -> list[dict[str, Any]]:
    """Return all figures, for a file."""
    return list(map(asdict, rows))


def show(rows: list[Row]) -> None:
    """Print the table."""
    Console(width=110).print(table(rows))


def table(rows: list[Row]) -> Table:
    """Return the table of all rows."""
    shown: dict[str, list[str]] = {
        "runs a second that sleep 2 s": [f"{row.rate:.2f}" for row in rows],
        "relative to n times one replica": [f"{relative(rows, row):.2f}" for row in rows],
        "a server, PostgreSQL meanwhile, %": [_shares(row.rated) for row in rows],
        "statements a run": [f"{_each(row.rated.commits, row):.0f}" for row in rows],
        "rollbacks a run": [f"{_each(row.rated.rollbacks, row):.1f}" for row in rows],
        "new connections a run": [f"{_each(row.rated.sessions, row):.1f}" for row in rows],
        "idle: a server, PostgreSQL, %": [_shares(row.idle) for row in rows],
        "idle: statements a second": [f"{row.idle.commits / row.idle.seconds:.0f}" for row in rows],
        "lines a second, one reader each": [
            f"{LINES * row.replicas / row.one.cost.seconds:.0f}" for row in rows
        ],
        "late, median and p99, ms": [_late(row.one) for row in rows],
        "a server, PostgreSQL meanwhile, % ": [_shares(row.one.cost) for row in rows],
        "statements a line": [f"{row.one.cost.commits / (LINES * row.replicas):.1f}" for row in rows],
        "concurrent readers": [str(row.many.readers) for row in rows],
        "events a second to all of them": [f"{row.many.events:.0f}" for row in rows],
        "late, median and p99, ms ": [_late(row.many) for row in rows],
        "a server, PostgreSQL meanwhile, %  ": [_shares(row.many.cost) for row in rows],
        "statements a line ": [f"{row.many.cost.commits / (LINES * row.replicas):.1f}" for row in rows],
    }
    found = Table("replicas", *(str(row.replicas) for row in rows), title="Replicas on one PostgreSQL")
    for name, values in shown.items():
        found.add_row(name, *values)
    return found


def _shares(cost: Cost) -> str:
    return f"{100 * cost.server:.1f}, {100 * cost.postgres:.1f}"


def _each(count: int, row: Row) -> float:
    """Return how many of something there were for each run, with what the replicas do without runs."""
    return count / row.runs


def _late(read: Read) -> str:
    return f"{1000 * read.late_median:.1f}, {1000 * read.late_p99:.1f}"
