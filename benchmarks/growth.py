"""Measure one server on a Dask cluster of 1, 2, 4 and 8 workers, and fit lines through the figures."""

import asyncio
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import grpc
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import flow, notebooks
from benchmarks.cluster import READY_SECONDS, check_lines, service, wait_for_workers
from benchmarks.dask import Cluster, clustered
from benchmarks.report import percentile
from benchmarks.server import Server, served
from benchmarks.service import Service
from benchmarks.speed import processor_seconds, tree
from benchmarks.startup import proportional
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

WORKERS = (1, 2, 4, 8)
SLEEP_SECONDS = 2.0
RUNS_EACH = 5
READERS_EACH = 50
LINES = 100
PAUSE = 0.1
IDLE_SECONDS = 10.0
CROWD = 200
MIB = 1024 * 1024


@dataclass
class Crowd:
    """The cost of many workers without slots, in the units of `Row`."""

    workers: int
    server: float
    scheduler: float
    scheduler_memory: float


@dataclass
class Row:
    """The figures for one number of workers; processor time in seconds per second, memory in MiB.

    Attributes:
        workers: Number of workers, with one slot each.
        idle_server: Processor time of the server without runs.
        idle_scheduler: Processor time of the scheduler without runs.
        rate: Runs per second, each of which sleeps two seconds.
        rate_server: Processor time of the server meanwhile.
        rate_scheduler: Processor time of the scheduler meanwhile.
        readers: Number of concurrent streams.
        events: Events per second to all of them.
        late_median: Median time from a print in the kernel to a reader, in seconds.
        late_p99: The 99th percentile of the same.
        readers_server: Processor time of the server meanwhile.
        lines: Printed lines per second, with one reader for each run.
        lines_server: Processor time of the server meanwhile.
        server_memory: Memory of the server with all readers.
        scheduler_memory: Memory of the scheduler then.
        worker_memory: Mean memory of all processes of one worker then.
    """

    workers: int
    idle_server: float = 0.0
    idle_scheduler: float = 0.0
    rate: float = 0.0
    rate_server: float = 0.0
    rate_scheduler: float = 0.0
    readers: int = 0
    events: float = 0.0
    late_median: float = 0.0
    late_p99: float = 0.0
    readers_server: float = 0.0
    lines: float = 0.0
    lines_server: float = 0.0
    server_memory: float = 0.0
    scheduler_memory: float = 0.0
    worker_memory: float = 0.0


def measure() -> tuple[list[Row], list[Crowd]]:
    """Measure one server on a growing cluster."""
    rows, crowds = [], []
    with clustered(1) as cluster:
        options = ("--executor", cluster.executor, "--queue", str(RUNS_EACH * WORKERS[-1]))
        with served(*options, environment=cluster.environment) as server, service(server) as one:
            for count in track(WORKERS, description="a cluster that grows"):
                cluster.grow(count)
                wait_for_workers(one, count)
                rows.append(_row(server, cluster, one, count))
            crowds.append(_crowd(server, cluster))
            with cluster.crowded(CROWD):
                crowds.append(_crowd(server, cluster))
    return rows, crowds


def _crowd(server: Server, cluster: Cluster) -> Crowd:
    time.sleep(IDLE_SECONDS / 2)
    mine, its = _shares((server.pid, cluster.scheduler.pid), lambda: time.sleep(IDLE_SECONDS))
    return Crowd(cluster.count(), mine, its, _mebibytes(cluster.scheduler.pid))


def _row(server: Server, cluster: Cluster, one: Service, workers: int) -> Row:
    row = Row(workers)
    # Let new workers start their kernels, and a first run import its modules.
    _runs(one, workers, workers)
    time.sleep(IDLE_SECONDS / 2)
    pids = (server.pid, cluster.scheduler.pid)
    row.idle_server, row.idle_scheduler = _shares(pids, lambda: time.sleep(IDLE_SECONDS))
    runs = RUNS_EACH * workers
    begin = time.perf_counter()
    row.rate_server, row.rate_scheduler = _shares(pids, lambda: _runs(one, workers, runs))
    row.rate = runs / (time.perf_counter() - begin)
    _read(server, cluster, one, row)
    return row


def _runs(one: Service, workers: int, count: int) -> None:
    """Measure runs that sleep, as many concurrently as the cluster has workers."""
    data = notebooks.written(notebooks.of([f"import time; time.sleep({SLEEP_SECONDS})"]))
    with ThreadPoolExecutor(workers + 1) as pool:
        # One more than the number of workers, so that a free slot does not wait for a caller.
        list(pool.map(lambda _: list(one.follow(one.start(data).run_id)), range(count)))


def _shares(pids: tuple[int, ...], work: Callable[[], object]) -> list[float]:
    """Measure the processor time of processes within the context, as a share of one processor each."""
    before, begin = [processor_seconds(pid) for pid in pids], time.perf_counter()
    work()
    taken = time.perf_counter() - begin
    return [(processor_seconds(pid) - was) / taken for pid, was in zip(pids, before, strict=True)]


def _read(server: Server, cluster: Cluster, one: Service, row: Row) -> None:
    """Follow a run on each worker with one reader and with many, and check that none misses an event."""
    row.lines_server, taken, _ = _followed(server, cluster, one, row, 1)
    row.lines = LINES * row.workers / taken
    row.readers_server, taken, streams = _followed(server, cluster, one, row, READERS_EACH)
    row.readers = len(streams)
    row.events = sum(map(len, streams)) / taken
    late = [seconds for stream in streams for at, event in stream for seconds in flow.late(at, event)]
    row.late_median, row.late_p99 = statistics.median(late), percentile(late, 0.99)


Stream = list[tuple[float, pb.ProgressResponse]]


def _followed(
    server: Server, cluster: Cluster, one: Service, row: Row, readers: int
) -> tuple[float, float, list[Stream]]:
    """Return the server's processor time while runs were followed, the duration, and each reader's events."""
    data = notebooks.written(notebooks.ticking(LINES, PAUSE, flush=True))
    runs = [one.start(data).run_id for _ in range(row.workers)]
    before, begin = processor_seconds(server.pid), time.perf_counter()
    streams = asyncio.run(_read_all(server, cluster, runs, readers, row))
    taken = time.perf_counter() - begin
    share = (processor_seconds(server.pid) - before) / taken
    for stream in streams:
        check_lines([event for _, event in stream], LINES)
    return share, taken, streams


async def _read_all(
    server: Server, cluster: Cluster, runs: list[str], readers: int, row: Row
) -> list[Stream]:
    """Return the events of every reader, and record the memory after half of them."""

    async def read(stub: Any, run_id: str) -> Stream:
        request = pb.ProgressRequest(run_id=run_id)
        return [(time.time(), event) async for event in stub.Progress(request, timeout=READY_SECONDS)]

    async def read_run(run_id: str) -> list[Stream]:
        # A connection has a maximum of streams, and by default the channels of a process share one.
        alone = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(server.address, alone) as channel:
            stub = rpc.NotebookRunnerStub(channel)
            return await asyncio.gather(*(read(stub, run_id) for _ in range(readers)))

    reading = asyncio.gather(*map(read_run, runs))
    await asyncio.sleep(LINES * PAUSE / 2)
    await asyncio.to_thread(_note_memory, server, cluster, row)
    return list(chain.from_iterable(await reading))


def _note_memory(server: Server, cluster: Cluster, row: Row) -> None:
    row.server_memory, row.scheduler_memory = _mebibytes(server.pid), _mebibytes(cluster.scheduler.pid)
    row.worker_memory = statistics.mean(_mebibytes(nanny.pid) for nanny in cluster.nannies)


def _mebibytes(pid: int) -> float:
    return sum(map(proportional, tree(pid))) / MIB


LINES_THROUGH = (
    ("server's processor time, idle, a worker", "workers", "idle_server"),
    ("scheduler's processor time, idle, a worker", "workers", "idle_scheduler"),
    ("server's processor time, a run", "rate", "rate_server"),
    ("scheduler's processor time, a run", "rate", "rate_scheduler"),
    ("server's processor time, a line with one reader", "lines", "lines_server"),
    ("server's processor time, an event to one of many readers", "events", "readers_server"),
    ("server's memory, a worker with a run and its readers", "workers", "server_memory"),
    ("scheduler's memory, a worker", "workers", "scheduler_memory"),
)


def fitted(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Return intercept and slope of the line through each figure, by least squares."""
    found = {}
    for name, x, y in LINES_THROUGH:
        line = statistics.linear_regression(
            [getattr(row, x) for row in rows], [getattr(row, y) for row in rows]
        )
        found[name] = line.intercept, line.slope
    return found


def record(rows: list[Row], crowds: list[Crowd]) -> dict[str, Any]:
    """Return all figures, for a file."""
    return {"rows": list(map(asdict, rows)), "crowds": list(map(asdict, crowds)), "fitted": fitted(rows)}


def show(rows: list[Row], crowds: list[Crowd]) -> None:
    """Print the table and the lines."""
    console = Console(width=110)
    console.print(_table(rows))
    best = min(row.rate / row.workers / rows[0].rate for row in rows)
    console.print(f"  {best:.2f} of n times one worker's runs a second, minimum (goal: at least 0.8)")
    lines = Table("what", "begins with", "each", title="Lines through them (seconds or MiB)")
    for name, (intercept, slope) in fitted(rows).items():
        lines.add_row(name, f"{intercept:.4g}", f"{slope:.4g}")
    console.print(lines)
    for crowd in crowds:
        shares = f"server {100 * crowd.server:.1f} %, scheduler {100 * crowd.scheduler:.1f} %"
        console.print(f"  {crowd.workers} Dask workers, idle: {shares}, {crowd.scheduler_memory:.0f} MiB")


def _table(rows: list[Row]) -> Table:
    one = rows[0].rate
    shown: dict[str, list[str]] = {
        "runs a second that sleep 2 s": [f"{row.rate:.2f}" for row in rows],
        "relative to n times one worker": [f"{row.rate / row.workers / one:.2f}" for row in rows],
        "server, scheduler meanwhile, %": [
            f"{100 * row.rate_server:.1f}, {100 * row.rate_scheduler:.1f}" for row in rows
        ],
        "server, scheduler idle, %": [
            f"{100 * row.idle_server:.2f}, {100 * row.idle_scheduler:.2f}" for row in rows
        ],
        "lines a second, one reader each": [f"{row.lines:.0f}" for row in rows],
        "server meanwhile, % ": [f"{100 * row.lines_server:.1f}" for row in rows],
        "concurrent readers": [str(row.readers) for row in rows],
        "events a second to all of them": [f"{row.events:.0f}" for row in rows],
        "late, median and p99, ms": [
            f"{1000 * row.late_median:.1f}, {1000 * row.late_p99:.1f}" for row in rows
        ],
        "server meanwhile, %": [f"{100 * row.readers_server:.1f}" for row in rows],
        "MiB of server, scheduler, a worker": [
            f"{row.server_memory:.0f}, {row.scheduler_memory:.0f}, {row.worker_memory:.0f}" for row in rows
        ],
    }
    table = Table("workers", *(str(row.workers) for row in rows), title="One server on a cluster that grows")
    for name, values in shown.items():
        table.add_row(name, *values)
    return table
