"""Measure the budget of a run of one cell: the time of each step, and processor time by kind of process."""

import os
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import notebooks
from benchmarks.service import Service
from benchmarks.speed import tree
from notebook_runner.v1 import notebook_runner_pb2 as pb

RUNS = 50
SETTLE_SECONDS = 0.5
_TICKS = os.sysconf("SC_CLK_TCK")
SOURCE = "print('cell 0'); 0 * 0"
KINDS = ("server", "worker", "fork server", "kernel", "client")


@dataclass
class Budget:
    """Medians of a run's steps, in seconds since the client called Start.

    Attributes:
        arrived: When the client had the answer or the event.
        recorded: When the server recorded the event.
        processor: The mean processor time of a run, by kind of process.
    """

    arrived: dict[str, float] = field(default_factory=dict)
    recorded: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)


def measure(service: Service, server: int) -> Budget:
    """Execute a notebook of one cell many times, each on an idle machine."""
    data = notebooks.written(notebooks.of([SOURCE]))
    _run(service, data)
    time.sleep(2 * SETTLE_SECONDS)
    before = _processor_seconds(server)
    runs = []
    for _ in track(range(RUNS), description="budget of a run"):
        runs.append(_run(service, data))
        time.sleep(SETTLE_SECONDS)
    after = _processor_seconds(server)
    names = list(runs[0])
    return Budget(
        {name: statistics.median(run[name][0] for run in runs) for name in names},
        {name: statistics.median(run[name][1] for run in runs) for name in names if runs[0][name][1]},
        {kind: (after[kind] - before[kind]) / RUNS for kind in KINDS},
    )


def _run(service: Service, data: bytes) -> dict[str, tuple[float, float]]:
    """Execute once; return for each step when it arrived and when it was recorded (0: it is not an event)."""
    begin = time.time()
    run = service.start(data)
    steps = {"Start answers": (time.time() - begin, 0.0)}
    for at, event in service.follow(run.run_id):
        name = _name(event)
        if name not in steps:
            steps[name] = (at - begin, event.time.ToNanoseconds() / 1e9 - begin)
    return steps


def _name(event: pb.ProgressResponse) -> str:
    kind = event.WhichOneof("event")
    if kind == "run_changed":
        return pb.RunState.Name(event.run_changed.state).removeprefix("RUN_STATE_")
    return {
        "cell_started": "the cell starts",
        "cell_output": "its first output",
        "cell_finished": "the cell has finished",
    }[str(kind)]


def _processor_seconds(server: int) -> dict[str, float]:
    """Return the processor time by kind of process, ended kernels included."""
    found = dict.fromkeys(KINDS, 0.0)
    found["client"] = time.process_time()
    fork_servers: list[tuple[int, float]] = []
    for pid in tree(server):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        user, system, children_user, children_system = (int(ticks) / _TICKS for ticks in fields[11:15])
        own_time, reaped = user + system, children_user + children_system
        if pid == server:
            found["server"] += own_time
        elif b"fork_server.py" in command:
            # A fork has the command of its fork server, which is older.
            fork_servers.append((int(fields[19]), own_time + reaped))
        elif b"spawn_main" in command:
            found["worker"] += own_time
            # It reaps the kernels.
            found["kernel"] += reaped
    fork_servers.sort()
    found["fork server"] += sum(seconds for _, seconds in fork_servers[:1])
    found["kernel"] += sum(seconds for _, seconds in fork_servers[1:])
    return found


def record(budget: Budget) -> dict[str, Any]:
    """Return the budget for a file."""
    return asdict(budget)


def show(budget: Budget) -> None:
    """Print the steps and the processor times."""
    console = Console(width=110)
    table = Table(
        "step", "at the client, ms", "step took, ms", "recorded, ms", title="A run of one cell, medians"
    )
    last = 0.0
    for name, at in budget.arrived.items():
        recorded = f"{1000 * budget.recorded[name]:.1f}" if name in budget.recorded else ""
        table.add_row(name, f"{1000 * at:.1f}", f"{1000 * (at - last):.1f}", recorded)
        last = at
    console.print(table)
    times = ", ".join(f"{kind} {1000 * seconds:.1f}" for kind, seconds in budget.processor.items())
    console.print(f"processor time of a run, ms: {times}")
