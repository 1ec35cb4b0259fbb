"""Measure how many printed lines a second, over several runs, reach their readers in time.

Each run prints at a constant rate, with a flush, and has one reader. All readers are in this process, on one
event loop. All runs begin to print at the same moment, when their starts are over. The rate is raised until
lines come late, or are not printed in time.
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
from benchmarks.server import Server, served
from benchmarks.service import NAME
from benchmarks.speed import processor_seconds
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

RUNS = 8
RATES = (250, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 8_000, 10_000)
"""Lines a second of all runs together."""

SECONDS = 5.0
LATE_SECONDS = 0.1
"""Maximum 99th percentile of the time from a print to its reader."""

ACHIEVED = 0.95
"""Minimum share of the rate at which the lines are printed."""

TRIES = 2
"""How often a rate is tried: other work of a shared machine must not end the measurement."""

LEAD_SECONDS = 4.0
"""Time for the starts of all runs, and for the warm kernels that replace theirs."""


@dataclass(frozen=True)
class Step:
    """One rate.

    Attributes:
        rate: The lines a second that were asked for.
        printed: The lines a second that were printed.
        median: The median delay of a line in seconds.
        p99: The 99th percentile of the delay.
        server: The server's share of one processor.
        readers: The readers' share of one processor.
    """

    rate: int
    printed: float
    median: float
    p99: float
    server: float
    readers: float

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
                steps.append(asyncio.run(_step(server, rate)))
                if steps[-1].held:
                    break
            else:
                break
    figure.add(NAME, max((step.rate for step in steps if step.held), default=0))
    figure.goals = [Goal("lines a second", 5_000, figure.median(NAME))]
    return figure, steps


async def _step(server: Server, rate: int) -> Step:
    count = round(rate * SECONDS / RUNS)
    begin = time.time() + LEAD_SECONDS
    data = notebooks.written(notebooks.paced(count, rate / RUNS, begin))
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = rpc.NotebookRunnerStub(channel)
        begun = [await stub.Start(pb.StartRequest(notebook_content=data)) for _ in range(RUNS)]
        readers = [asyncio.create_task(_read(stub, one.run.run_id)) for one in begun]
        await asyncio.sleep(begin - time.time())
        before = processor_seconds(server.pid), time.process_time()
        found = await asyncio.gather(*readers)
        after = processor_seconds(server.pid), time.process_time()
    for lines in found:
        if len(lines) != count:
            raise RuntimeError(f"a reader had {len(lines)} of {count} lines")
    delays = sorted(arrived - printed for lines in found for printed, arrived in lines)
    seconds = max(lines[-1][0] for lines in found) - min(lines[0][0] for lines in found)
    shares = [(now - then) / seconds for then, now in zip(before, after, strict=True)]
    return Step(
        rate, RUNS * (count - 1) / seconds, percentile(delays, 0.5), percentile(delays, 0.99), *shares
    )


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
        *("lines a second", "printed", "delay, median, ms", "p99, ms", "server, %", "readers, %"),
        title=f"{RUNS} runs, a reader each",
    )
    for step in steps:
        delays = f"{1000 * step.median:.1f}", f"{1000 * step.p99:.1f}"
        shares = f"{100 * step.server:.0f}", f"{100 * step.readers:.0f}"
        table.add_row(f"{step.rate:,}", f"{step.printed:,.0f}", *delays, *shares)
    Console(width=110).print(table)
