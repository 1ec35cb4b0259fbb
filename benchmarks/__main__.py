"""Run the benchmark: this service and its competitors, in turns, on the same notebooks."""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from benchmarks import (
    budget,
    cluster,
    endings,
    floods,
    flow,
    growth,
    open_pages,
    pace,
    replicas,
    scaling,
    speed,
    startup,
)
from benchmarks.report import Figure, save, show
from benchmarks.server import Server, compiled, served
from benchmarks.service import Service
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

FOLDER = Path(__file__).parents[1] / "bench-output"


@dataclass
class Results:
    """What was measured.

    Attributes:
        figures: The figures.
        more: What else the file of results gets, by name.
        shown: Functions that print the other results.
    """

    figures: list[Figure] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    shown: list[Callable[[], None]] = field(default_factory=list)


def _speed(results: Results, rounds: int) -> None:
    few = max(2, rounds // 3)
    with _service() as (service, server):
        results.figures.append(speed.one_cell(service, rounds))
        results.figures += speed.back_to_back(service, server.pid, few)
        results.figures += speed.many_cells(service, 100, few, 0.95)
        results.figures += speed.many_cells(service, 500, few, 1.00)
        results.figures.append(speed.large_outputs(service, few))


def _floods(results: Results, rounds: int) -> None:
    with _service() as (service, _):
        results.figures += floods.measure(service, max(2, rounds // 3))


def _flow(results: Results, rounds: int) -> None:
    with _service() as (service, _):
        results.figures.append(flow.printed(service, flush=True, rounds=3))
        results.figures.append(flow.printed(service, flush=False, rounds=3))
        results.figures.append(flow.output(service, 100, 5))
        results.figures.append(flow.deaths(service, 2 * rounds))
    with _service("--workers", "2") as (service, server):
        results.figures += flow.many_readers(service, server.address, 10)


def _open_pages(results: Results, rounds: int) -> None:  # noqa: ARG001 - it takes a p99 of many calls
    with _service("--workers", "2", "--http-listen", "127.0.0.1:0") as (service, server):
        address = str(server.wait_for("http_started")["address"])
        results.figures += open_pages.measure(service, address)


def _pace(results: Results, rounds: int) -> None:  # noqa: ARG001 - the rates are the rounds
    figure, steps = pace.measure()
    results.figures.append(figure)
    results.more["pace"] = pace.record(steps)
    results.shown.append(partial(pace.show, steps))


def _budget(results: Results, rounds: int) -> None:  # noqa: ARG001 - it is a median of many runs
    with _service() as (service, server):
        found = budget.measure(service, server.pid)
    results.more["budget"] = budget.record(found)
    results.shown.append(partial(budget.show, found))


def _startup(results: Results, rounds: int) -> None:
    results.figures += startup.measure(max(3, rounds // 2))


def _endings(results: Results, rounds: int) -> None:
    ended = endings.measure(rounds)
    results.more["endings"] = vars(ended)
    results.shown.append(partial(endings.show, ended))


def _scaling(results: Results, rounds: int) -> None:  # noqa: ARG001 - it takes the least of three times
    results.more["scaling"] = rows = scaling.measure()
    results.shown.append(partial(scaling.show, rows))


def _cluster(results: Results, rounds: int) -> None:
    results.figures += cluster.measure(rounds)
    grown = growth.measure()
    results.more["growth"] = growth.record(*grown)
    results.shown.append(partial(growth.show, *grown))


def _replicas(results: Results, rounds: int) -> None:
    figures, rows = replicas.measure(rounds)
    results.figures += figures
    results.more["replicas"] = replicas.record(rows)
    results.shown.append(partial(replicas.show, rows))


@contextmanager
def _service(*options: str) -> Iterator[tuple[Service, Server]]:
    with served(*options) as server, grpc.insecure_channel(server.address) as channel:
        yield Service(rpc.NotebookRunnerStub(channel)), server


MEASURE = {
    "speed": _speed,
    "floods": _floods,
    "flow": _flow,
    "open-pages": _open_pages,
    "pace": _pace,
    "budget": _budget,
    "startup": _startup,
    "endings": _endings,
    "scaling": _scaling,
    "cluster": _cluster,
    "replicas": _replicas,
}
PARTS = ("speed", "floods", "flow", "open-pages", "pace", "budget", "startup", "endings")
MORE = ("scaling", "cluster", "replicas")


def main() -> None:
    """Measure, print and save all figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="number of executions of each kind")
    parser.add_argument(
        "--only", choices=PARTS + MORE, action="append", help="measure only this part; can be repeated"
    )
    asked = parser.parse_args()
    # The load of the machine, because figures of a busy machine differ from those of an idle one.
    results = Results(more={"load_before": os.getloadavg(), "seconds": {}})
    compiled()
    for part in PARTS + MORE:
        if part in (asked.only or PARTS):
            begin = time.monotonic()
            MEASURE[part](results, asked.rounds)
            results.more["seconds"][part] = round(time.monotonic() - begin)
    show(results.figures)
    for show_more in results.shown:
        show_more()
    taken = ", ".join(f"{part} {seconds}" for part, seconds in results.more["seconds"].items())
    print(f"seconds: {taken}")
    save(results.figures, results.more, FOLDER)


if __name__ == "__main__":
    main()
