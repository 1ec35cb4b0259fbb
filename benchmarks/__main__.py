"""Run the benchmark: this service and its competitors, in turns, on the same notebooks."""

import argparse
import os
from pathlib import Path
from typing import Any

import grpc

from benchmarks import cluster, endings, flow, growth, scaling, speed, startup
from benchmarks.report import Figure, save, show
from benchmarks.server import served
from benchmarks.service import Service
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

FOLDER = Path(__file__).parents[1] / "bench-output"
PARTS = ("speed", "flow", "startup", "endings")
MORE = ("scaling", "cluster")


def main() -> None:
    """Measure, print and save all figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="number of executions of each kind")
    parser.add_argument(
        "--only", choices=PARTS + MORE, action="append", help="measure only this part; can be repeated"
    )
    asked = parser.parse_args()
    parts, rounds = asked.only or PARTS, asked.rounds
    figures: list[Figure] = []
    # The load of the machine, because figures of a busy machine differ from those of an idle one.
    more: dict[str, Any] = {"load_before": os.getloadavg()}
    with served() as server, grpc.insecure_channel(server.address) as channel:
        service = Service(rpc.NotebookRunnerStub(channel))
        if "speed" in parts:
            few = max(2, rounds // 3)
            figures.append(speed.one_cell(service, rounds))
            figures += speed.back_to_back(service, server.pid, few)
            figures += speed.many_cells(service, 100, few)
            figures += speed.many_cells(service, 500, few)
            figures.append(speed.large_outputs(service, few))
        if "flow" in parts:
            figures.append(flow.printed(service, flush=True, rounds=3))
            figures.append(flow.printed(service, flush=False, rounds=3))
            figures.append(flow.output(service, 100, 5))
            figures.append(flow.deaths(service, 2 * rounds))
    if "flow" in parts:
        with served("--workers", "2") as server, grpc.insecure_channel(server.address) as channel:
            figures += flow.many_readers(Service(rpc.NotebookRunnerStub(channel)), server.address, 10)
    if "startup" in parts:
        figures += startup.measure(max(3, rounds // 2))
    if "endings" in parts:
        ended = endings.measure(rounds)
        more["endings"] = vars(ended)
    if "scaling" in parts:
        more["scaling"] = rows = scaling.measure()
        scaling.show(rows)
    if "cluster" in parts:
        figures += cluster.measure(rounds)
        grown = growth.measure()
        more["growth"] = growth.record(*grown)
        growth.show(*grown)
    show(figures)
    if "endings" in parts:
        endings.show(ended)
    save(figures, more, FOLDER)


if __name__ == "__main__":
    main()
