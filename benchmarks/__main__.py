"""Runs the benchmark: a server and nbclient take turns on the same notebooks."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from nbformat import NotebookNode
from rich.progress import track

from benchmarks import endings
from benchmarks.measure import Sample, with_nbclient, with_service
from benchmarks.notebooks import of_size
from benchmarks.report import Pair, Results, save, show
from benchmarks.server import served
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc

SIZES = (1, 100)
# Before a single execution is timed, what the one before left to do has this long to be done.
SETTLE_SECONDS = 1.0
FILE = Path(__file__).parents[1] / "bench-output" / "bench.json"
Side = Callable[[NotebookNode], Sample]


class Bench:
    """Times both sides in turns, and checks that they give the same."""

    def __init__(self, stub: rpc.NotebookRunnerStub) -> None:
        self.results = Results()
        self._sides: dict[str, Side] = {
            "nbclient": with_nbclient,
            "service": lambda node: with_service(stub, node),
        }

    def single(self, size: int, *, turned: bool) -> None:
        """One execution on each side, each on a machine at rest, in one order or the other."""
        for name in sorted(self._sides, reverse=turned):
            time.sleep(SETTLE_SECONDS)
            self._take(f"{size} cells, at rest", name, size)

    def together(self, size: int, times: int) -> None:
        """Several executions on each side, one right after the other."""
        for name in self._sides:
            for _ in range(times):
                self._take(f"{size} cells, one after another", name, size)

    def _take(self, setting: str, name: str, size: int) -> None:
        sample = self._sides[name](of_size(size))
        expected = [[["cell", str(number)], number * number] for number in range(size)]
        if [[printed, int(rest[0]["data"]["text/plain"])] for printed, rest in sample.outputs] != expected:
            raise RuntimeError(f"{name} gave other outputs: {sample.outputs}")
        pair = self.results.pairs.setdefault(setting, Pair())
        getattr(pair, name).append(sample.seconds)
        if name == "service":
            self.results.late.setdefault("cell finished", []).extend(sample.finished_late)
            self.results.late.setdefault("printed text", []).extend(sample.text_late)


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="executions per notebook and side")
    rounds = parser.parse_args().rounds
    with served() as address, grpc.insecure_channel(address) as channel:
        bench = Bench(rpc.NotebookRunnerStub(channel))
        for number in track(range(rounds), description="at rest"):
            for size in SIZES:
                bench.single(size, turned=number % 2 == 1)
        for size in track(SIZES, description="one after another"):
            bench.together(size, rounds)
    ended = endings.measure(rounds)
    show(bench.results)
    endings.show(ended)
    save(bench.results, ended, FILE)


if __name__ == "__main__":
    main()
