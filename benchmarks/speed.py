"""Measure notebooks with this service and each competitor, in turns, and check that the outputs are equal."""

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from rich.progress import track

from benchmarks import notebooks
from benchmarks.competitors import OTHERS, Competitor, Sample, nbclient
from benchmarks.report import Figure, Goal
from benchmarks.service import NAME, Service

# A pause before each single execution, in which the work that the previous one left behind can finish.
SETTLE_SECONDS = 0.5
PER_ROUND = 6
IN_A_ROW = 10
MOST_FOR_PAPERMILL = 200
PAPERMILL = ("papermill API", "papermill command")
_TICKS = os.sysconf("SC_CLK_TCK")


def one_cell(service: Service, rounds: int) -> Figure:
    """Measure a notebook of one cell, each time on an idle machine."""
    figure = Figure("one cell", "ms", 1000)
    in_turns(service, notebooks.small(1), figure, rounds, "one cell", PER_ROUND)
    figure.goals = [
        Goal("times faster than nbclient", 40, figure.ratio("nbclient")),
        Goal("times faster than the papermill command", 25, figure.ratio("papermill command")),
        Goal("p99 over median", 2, figure.p99(NAME) / figure.median(NAME), at_most=True),
    ]
    return figure


def many_cells(service: Service, cells: int, rounds: int, goal: float) -> tuple[Figure, Figure]:
    """Measure notebooks of many small cells: the total time, and the time of the cells alone.

    Args:
        service: This service.
        cells: The number of cells.
        rounds: The number of executions by each.
        goal: The maximum ratio of the time of the cells alone to the jupyter_client loop's.
    """
    whole, alone = Figure(f"{cells} small cells", "ms", 1000), Figure(f"each of {cells} cells", "ms", 1000)

    def note(name: str, sample: Sample) -> None:
        if sample.cells:
            alone.add(name, sample.cells / cells)

    # papermill writes the complete notebook after each cell, and takes 45 s for 500.
    once = PAPERMILL if cells > MOST_FOR_PAPERMILL else ()
    in_turns(service, notebooks.small(cells), whole, rounds, f"{cells} cells", note=note, once=once)
    ratio = 1 / alone.ratio("jupyter_client loop")
    alone.goals = [Goal("of the jupyter_client loop's time", goal, ratio, at_most=True)]
    return whole, alone


def large_outputs(service: Service, rounds: int) -> Figure:
    """Measure 100 cells that print 100 KB each."""
    figure = Figure("100 cells of 100 KB output", "ms", 1000)
    in_turns(service, notebooks.large(100), figure, rounds, "large outputs")
    figure.goals = [
        Goal("of nbclient's time", 1.2, 1 / figure.ratio("nbclient"), at_most=True),
        Goal("of papermill's time", 0.25, 1 / figure.ratio("papermill API"), at_most=True),
    ]
    return figure


def in_turns(
    service: Service,
    node: NotebookNode,
    figure: Figure,
    rounds: int,
    label: str,
    per_round: int = 1,
    note: Callable[[str, Sample], None] = lambda *_: None,
    others: Mapping[str, Competitor] = OTHERS,
    once: Collection[str] = (),
    expected: list[Any] | None = None,
    lossy: Collection[str] = (),
) -> None:
    """Execute a notebook with this service and competitors in turns, and check that the outputs are equal.

    Args:
        service: This service.
        node: The notebook.
        figure: Gets the durations.
        rounds: The number of turns.
        label: What to show meanwhile.
        per_round: How often this service executes it in each turn.
        note: Called with each sample.
        others: The competitors.
        once: The competitors that have one turn only, because they take very long.
        expected: The outputs; None: those of the first execution.
        lossy: The competitors that may lose output; the figure counts how often they do.

    Raises:
        RuntimeError: Outputs differ.
    """
    sides: dict[str, Competitor] = {NAME: service, **others}
    for number in track(range(rounds), description=label):
        in_turn = set(sides) if number == 0 else set(sides).difference(once)
        for name in sorted(in_turn, reverse=number % 2 == 1):
            for _ in range(per_round if name == NAME else 1):
                time.sleep(SETTLE_SECONDS)
                sample = sides[name](node)
                expected = expected or sample.outputs
                if sample.outputs != expected:
                    if name not in lossy:
                        raise RuntimeError(f"{name} produced other outputs")
                    figure.losses[name] = figure.losses.get(name, 0) + 1
                figure.add(name, sample.seconds)
                note(name, sample)


def back_to_back(service: Service, server: int, rounds: int) -> tuple[Figure, Figure]:
    """Measure notebooks of one cell in immediate sequence: runs per second, and processor time."""
    rate, processor = Figure("one-cell runs a second", "", 1), Figure("processor time of a run", "ms", 1000)
    node = notebooks.small(1)
    sides: dict[str, Competitor] = {NAME: service, "nbclient": nbclient}
    for _ in track(range(rounds), description="one after another"):
        for name, side in sides.items():
            time.sleep(2 * SETTLE_SECONDS)
            before, begin = _processor_seconds(server), time.perf_counter()
            for _ in range(IN_A_ROW):
                side(node)
            rate.add(name, IN_A_ROW / (time.perf_counter() - begin))
            # The warm kernel for the next run is part of the cost of this one.
            time.sleep(2 * SETTLE_SECONDS)
            processor.add(name, (_processor_seconds(server) - before) / IN_A_ROW)
    rate.goals = [Goal("times nbclient's", 25, 1 / rate.ratio("nbclient"))]
    share = 1 / processor.ratio("nbclient")
    processor.goals = [Goal("of nbclient's", 0.10, share, at_most=True)]
    return rate, processor


def _processor_seconds(server: int) -> float:
    """Return the processor time of this process, the server, and all of their children."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for pid in tree(server):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        total += sum(map(int, fields[11:15])) / _TICKS
    return total


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process from its Linux clock, because /proc counts only hundredths."""
    return time.clock_gettime(~pid << 3 | 2)


def tree(pid: int) -> list[int]:
    """Return a process and all of its descendants."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
