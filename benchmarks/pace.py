"""Measure how many printed lines a second, over several runs, reach their readers in time.

Each run prints at a constant rate, with a flush, and has one reader. All readers are in this process, on one
event loop. The rate is raised until the lines come late, or are not printed in time.
"""

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Any

import grpc
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import notebooks
from benchmarks.report import Figure, Goal, percentile
from benchmarks.server import served
from benchmarks.service import NAME
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

RUNS = 8
RATES = (500, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 8_000, 10_000)
"""Lines a second of all runs together."""

SECONDS = 5.0
LATE_SECONDS = 0.1
"""Maximum 99th percentile of the time from a print to its reader."""

ACHIEVED = 0.95
"""Minimum share of the rate at which the lines are printed."""

TRIES = 2
"""How often a rate is tried: other work of a shared machine must not end the measurement."""

SETTLE_SECONDS = 4.0
"""Time in which the workers get new warm kernels."""


@dataclass(frozen=True)
class Step:
    """One rate: what was asked for and printed, in lines a second, and the delay of the lines in seconds."""

    rate: int
    printed: float
    median: float
    p99: float

    @property
    def held(self) -> bool:
        """Whether the lines were printed in time and came in time."""
        return self.p99 <= LATE_SECONDS and self.printed >= ACHIEVED * self.rate


def measure() -> tuple[Figure, list[Step]]:
    """Raise the rate until it does not hold; return the highest one that did, and all steps."""
    figure = Figure(f"printed lines a second over {RUNS} runs, p99 below {1000 * LATE_SECONDS:g} ms", "", 1)
    steps: list[Step] = []
    with served("--workers", str(RUNS)) as server:
        for rate in track(RATES, description=figure.name):
            for _ in range(TRIES):
                time.sleep(SETTLE_SECONDS)
                steps.append(asyncio.run(_step(server.address, rate)))
                if steps[-1].held:
                    break
            else:
                break
    figure.add(NAME, max((step.rate for step in steps if step.held), default=0))
    figure.goals = [Goal("lines a second", 5_000, figure.median(NAME))]
    return figure, steps


async def _step(address: str, rate: int) -> Step:
    count = round(rate * SECONDS / RUNS)
    data = notebooks.written(notebooks.paced(count, rate / RUNS))
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = rpc.NotebookRunnerStub(channel)
        begun = [await stub.Start(pb.StartRequest(notebook_content=data)) for _ in range(RUNS)]
        found = await asyncio.gather(*(_read(stub, one.run.run_id) for one in begun))
    for lines in found:
        if len(lines) != count:
            raise RuntimeError(f"a reader had {len(lines)} of {count} lines")
    delays = sorted(arrived - printed for lines in found for printed, arrived in lines)
    # Each run's own rate: they do not begin at the same moment.
    rates = [(count - 1) / (lines[-1][0] - lines[0][0]) for lines in found]
    return Step(rate, sum(rates), percentile(delays, 0.5), percentile(delays, 0.99))


async def _read(stub: Any, run_id: str) -> list[tuple[float, float]]:
    """Read a run to its end, and return when each line was printed, and when it arrived."""
    lines: list[tuple[float, float]] = []
    rest = ""
    async for event in stub.Progress(pb.ProgressRequest(run_id=run_id)):
        if event.HasField("cell_output"):
            now = time.time()
            *whole, rest = (rest + event.cell_output.stream.text).split("\n")
            lines += [(int(line.split()[0]) / 1e9, now) for line in whole]
    return lines


def record(steps: list[Step]) -> list[dict[str, float]]:
    """Return the steps for a file."""
    return [asdict(step) for step in steps]


def show(steps: list[Step]) -> None:
    """Print the steps."""
    table = Table(
        "lines a second", "printed", "delay, median, ms", "p99, ms", title=f"{RUNS} runs, a reader each"
    )
    for step in steps:
        delays = f"{1000 * step.median:.1f}", f"{1000 * step.p99:.1f}"
        table.add_row(f"{step.rate:,}", f"{step.printed:,.0f}", *delays)
    Console(width=110).print(table)
