"""Measure the time until a server serves and until it is warm, and its idle memory."""

import statistics
import tempfile
import time
from pathlib import Path

from rich.progress import track

from benchmarks import server
from benchmarks.report import Figure, Goal
from benchmarks.service import NAME
from benchmarks.speed import tree

IDLE_SECONDS = 3.0


def measure(rounds: int) -> list[Figure]:
    """Start servers, with warm kernels and without."""
    serving, warm = (
        Figure("process start to SERVING", "s", 1),
        Figure("process start to a warm kernel", "s", 1),
    )
    memory = Figure("proportional memory of all processes, idle", "MB", 1e-6)
    for _ in track(range(rounds), description="start"):
        for name, options in ((NAME, []), ("without warm kernels", ["--no-warm-kernels"])):
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                begin = time.perf_counter()
                one = server.start(Path(folder, "state"), *options)
                serving.add(name, time.perf_counter() - begin)
                if not options:
                    one.wait_for("warm_kernel_ready")
                    warm.add(name, time.perf_counter() - begin)
                time.sleep(IDLE_SECONDS)
                memory.add(name, sum(map(proportional, tree(one.pid))))
                one.stop()
    serving.goals = [Goal("s", 0.45, serving.median(NAME), at_most=True)]
    warm.goals = [Goal("s", 0.75, warm.median(NAME), at_most=True)]
    memory.goals = [
        Goal("MB with a warm kernel", 125, memory.median(NAME), at_most=True),
        Goal("MB without", 80, statistics.median(memory.samples["without warm kernels"]), at_most=True),
    ]
    return [serving, warm, memory]


def proportional(pid: int) -> float:
    """Return the proportional memory of a process in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
