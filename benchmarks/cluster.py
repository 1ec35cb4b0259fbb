"""Compare runs on a Dask cluster with the process pool, and measure restarts of the server."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from rich.progress import track

from benchmarks import endings, flow, notebooks
from benchmarks.dask import Cluster, clustered
from benchmarks.report import Figure, Goal
from benchmarks.server import Server, served, start
from benchmarks.service import NAME, Service
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

POOL = "the process pool"
SETTLE_SECONDS = 0.5
READY_SECONDS = 120.0
KILLS = 100
RUNS_LEFT = 8
LINES_LEFT = 100


def measure(rounds: int) -> list[Figure]:
    """Measure one run at a time on a cluster and on this machine, and restarts of the server."""
    with clustered(1) as cluster, ExitStack() as stack:
        sides = {
            NAME: stack.enter_context(on_cluster(cluster, 1)),
            POOL: stack.enter_context(service(stack.enter_context(served("--queue", "1")))),
        }
        other = stack.enter_context(on_cluster(cluster, 1))
        figures = [_one_cell(sides, 6 * rounds), _lines(sides, rounds)]
        figures += [_kills(sides), _kills_in_line(sides), _kills_behind(sides[NAME], other)]
    return [*figures, *_restarts(max(2, rounds // 3))]


@contextmanager
def service(server: Server) -> Iterator[Service]:
    """Return a service that executes notebooks on a server."""
    with grpc.insecure_channel(server.address) as channel:
        yield Service(rpc.NotebookRunnerStub(channel))


@contextmanager
def on_cluster(cluster: Cluster, workers: int) -> Iterator[Service]:
    """Start a server on a cluster, and wait until it has `workers` workers."""
    options = ("--executor", cluster.executor, "--queue", "1")
    with served(*options, environment=cluster.environment) as server, service(server) as found:
        wait_for_workers(found, workers)
        yield found


def wait_for_workers(service: Service, count: int) -> None:
    """Wait until a server can execute `count` runs concurrently."""
    end = time.monotonic() + READY_SECONDS
    while service.stub.Info(pb.InfoRequest()).workers != count:
        if time.monotonic() > end:
            raise RuntimeError(f"the server did not get {count} workers")
        time.sleep(0.05)


def _in_turns(
    sides: dict[str, Service], rounds: int, label: str, work: Callable[[str, Service], None]
) -> None:
    for number in track(range(rounds), description=label):
        for name in sorted(sides, reverse=number % 2 == 1):
            time.sleep(SETTLE_SECONDS)
            work(name, sides[name])


def _one_cell(sides: dict[str, Service], rounds: int) -> Figure:
    figure = Figure("one cell, on a cluster", "ms", 1000)
    node = notebooks.small(1)
    _in_turns(sides, rounds, figure.name, lambda name, side: figure.add(name, side(node).seconds))
    more = figure.median(NAME) - figure.median(POOL)
    figure.goals = [Goal("ms more than the process pool, of medians", 12, more, at_most=True)]
    return figure


def _lines(sides: dict[str, Service], rounds: int) -> Figure:
    """Measure the time from a print in the kernel to the event with its line."""
    figure = Figure("a printed line to the client, on a cluster", "ms", 1000)
    data = notebooks.written(notebooks.ticking(50, 0.02, flush=True))

    def follow(name: str, side: Service) -> None:
        for at, event in side.follow(side.start(data).run_id):
            figure.add(name, *flow.late(at, event))

    _in_turns(sides, rounds, figure.name, follow)
    figure.goals = [Goal("ms, median", 10, figure.median(NAME), at_most=True)]
    return figure


def _kills(sides: dict[str, Service]) -> Figure:
    """Kill runs with processes in other process groups."""
    figure = Figure("Kill of an active run, on a cluster", "ms", 1000)
    tree = endings.TREES["children forked twice"]

    def kill(name: str, side: Service) -> None:
        figure.add(name, endings.kill(side.stub, endings.running(side.stub, tree)))

    _in_turns(sides, KILLS, figure.name, kill)
    figure.goals = [_answered(figure)]
    return figure


def _kills_in_line(sides: dict[str, Service]) -> Figure:
    """Kill runs that wait in the server because no worker is free."""
    figure = Figure("Kill of a run in the server's queue, on a cluster", "ms", 1000)
    for name, side in sides.items():
        first = endings.running(side.stub, endings.TREES["the kernel alone"])
        figure.add(name, *(_kill_waiting(side) for _ in range(KILLS)))
        endings.kill(side.stub, first)
    figure.goals = [_answered(figure)]
    return figure


def _kills_behind(behind: Service, other: Service) -> Figure:
    """Kill runs that wait for Dask because another server has taken their slot."""
    figure = Figure("Kill of a run that waits for Dask", "ms", 1000)
    first = endings.running(other.stub, endings.TREES["the kernel alone"])
    figure.add(NAME, *(_kill_waiting(behind) for _ in range(KILLS)))
    endings.kill(other.stub, first)
    figure.goals = [_answered(figure)]
    return figure


def _kill_waiting(side: Service) -> float:
    return endings.kill(side.stub, side.start(notebooks.written(notebooks.small(1))).run_id)


def _answered(figure: Figure) -> Goal:
    return Goal("ms, p99", 250, figure.p99(NAME), at_most=True)


def _restarts(rounds: int) -> tuple[Figure, Figure]:
    """Kill servers during runs, and check that every printed line is in the history once."""
    serving = Figure(f"restart with {RUNS_LEFT} runs on the cluster, to SERVING", "s", 1)
    followed = Figure("…, to the first new event of every run", "s", 1)
    with clustered(RUNS_LEFT) as cluster:
        for _ in track(range(rounds), description="restart"):
            _restart(cluster, serving, followed)
    serving.goals = [Goal("s", 2, serving.median(NAME), at_most=True)]
    followed.goals = [Goal("s", 5, followed.median(NAME), at_most=True)]
    return serving, followed


def _restart(cluster: Cluster, serving: Figure, followed: Figure) -> None:
    options = ("--executor", cluster.executor, "--queue", str(RUNS_LEFT))
    data = notebooks.written(notebooks.ticking(LINES_LEFT, 0.1, flush=True))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        state = Path(folder, "state")
        first = start(state, *options, environment=cluster.environment)
        with service(first) as before:
            wait_for_workers(before, RUNS_LEFT)
            runs = [before.start(data).run_id for _ in range(RUNS_LEFT)]
            seen = [_first_line(before, run, 0) for run in runs]
            begin = time.perf_counter()
            first.process.kill()
            first.process.wait()
        second = start(state, *options, environment=cluster.environment)
        serving.add(NAME, time.perf_counter() - begin)
        with service(second) as after:
            for run, sequence in zip(runs, seen, strict=True):
                _first_line(after, run, sequence)
            followed.add(NAME, time.perf_counter() - begin)
            for run in runs:
                check_lines([event for _, event in after.follow(run)], LINES_LEFT)
        second.stop()


def _first_line(side: Service, run_id: str, after: int) -> int:
    """Return the number of the first event with printed text after the given one."""
    request = pb.ProgressRequest(run_id=run_id, after_sequence=after)
    stream = side.stub.Progress(request, timeout=READY_SECONDS)
    sequence = next(event.sequence for event in stream if event.HasField("cell_output"))
    stream.cancel()
    return sequence


def check_lines(events: list[pb.ProgressResponse], count: int) -> None:
    """Check a complete stream: no gap, and every printed line exactly once.

    Raises:
        RuntimeError: A number or a line is missing or repeated.
    """
    sequences = [event.sequence for event in events if not event.HasField("heartbeat")]
    texts = [event.cell_output.stream.text for event in events if event.HasField("cell_output")]
    lines = [int(line.split()[1]) for line in "".join(texts).splitlines()]
    if sequences != list(range(1, len(sequences) + 1)) or lines != list(range(count)):
        raise RuntimeError(f"a stream with a gap: {sequences}, {lines}")
