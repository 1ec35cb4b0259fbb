"""Measure the cost of one item among few and among many, to show that the work is linear."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import history, notebooks
from benchmarks.competitors import SECONDS
from benchmarks.server import start
from benchmarks.service import Service
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

PAGE = 1000
REPEATS = 3
LINES = 200
MIB = 1024 * 1024
Rows = list[tuple[str, int, float]]


def measure() -> Rows:
    """Measure everything at three sizes: name, number of items, and seconds for all of them."""
    rows: Rows = []
    parts: list[tuple[str, Callable[[int], float], tuple[int, ...]]] = [
        ("Start of a notebook, a cell", _cells, (500, 5_000, 50_000)),
        ("Progress of an ended run, an event", _events, (1_000, 10_000, 100_000)),
        ("Output, first read, a MB", _output, (3, 30, 300)),
        ("List, a run", _list, (1_000, 10_000, 100_000)),
        ("Restart, a run in the history", _restart, (1_000, 10_000, 100_000)),
        ("Durable lines of as many concurrent runs, a line", _lines, (1, 8, 64)),
    ]
    for name, part, sizes in track(parts, description="scaling"):
        rows += [(name, size, part(size)) for size in sizes]
    return rows


@contextmanager
def _served(runs: int = 0, events: int = 8) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        state = Path(folder, "state")
        history.fill(state, runs, events)
        server = start(state)
        try:
            with grpc.insecure_channel(server.address) as channel:
                yield Service(rpc.NotebookRunnerStub(channel))
        finally:
            server.stop()


def _best(work: Callable[[], object]) -> float:
    """Return the shortest duration of several tries in seconds, to leave out other work of the machine."""
    taken = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _cells(cells: int) -> float:
    with _served() as service:
        data = notebooks.written(notebooks.small(cells))
        service.start(notebooks.written(notebooks.small(1)))
        taken = []
        for _ in range(REPEATS):
            time.sleep(1)
            begin = time.perf_counter()
            run = service.start(data)
            taken.append(time.perf_counter() - begin)
            service.stub.Kill(pb.KillRequest(run_id=run.run_id), timeout=SECONDS)
    return min(taken)


def _events(events: int) -> float:
    with _served(1, events) as service:
        run_id = service.stub.List(pb.ListRequest()).runs[0].run_id
        return _best(lambda: sum(1 for _ in service.follow(run_id)))


def _output(megabytes: int) -> float:
    with _served() as service:
        run = service.start(notebooks.written(notebooks.large(10 * megabytes)))
        for _ in service.follow(run.run_id):
            pass
        begin = time.perf_counter()
        sum(map(len, service.pages(run.run_id, MIB)))
        return time.perf_counter() - begin


def _list(runs: int) -> float:
    with _served(runs) as service:

        def all_pages() -> None:
            request = pb.ListRequest(page_size=PAGE)
            while True:
                answer = service.stub.List(request, timeout=SECONDS)
                if not answer.next_page_token:
                    return
                request.page_token = answer.next_page_token

        return _best(all_pages)


def _restart(runs: int) -> float:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        state = Path(folder, "state")
        history.fill(state, runs)

        def restart() -> None:
            start(state).stop()

        return _best(restart)


def _lines(runs: int) -> float:
    """Return the mean seconds for a durable line in each of the runs, which print in parallel."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        state = Path(folder, "state")
        history.fill(state, runs)
        return min(asyncio.run(history.grow(state, LINES)) for _ in range(REPEATS)) / LINES


def show(rows: Rows) -> None:
    """Print the table."""
    table = Table(
        "what", "how many", "all, ms", "each, µs", title="Cost of an item, the least of three times"
    )
    for name, size, seconds in rows:
        table.add_row(name, f"{size:,}", f"{1000 * seconds:.1f}", f"{1e6 * seconds / size:.2f}")
    Console(width=110).print(table)
