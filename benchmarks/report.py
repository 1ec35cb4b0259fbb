"""Turns samples into a table for people and a file for programs."""

import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RATIO_TARGET = 1.15
LATENCY_TARGET_MS = 10.0
PACKAGES = ("notebook-runner", "nbclient", "jupyter-client", "ipykernel", "grpcio", "protobuf")


@dataclass
class Pair:
    """The times of both sides for one notebook in one setting, in seconds."""

    nbclient: list[float] = field(default_factory=list)
    service: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median of the service over median of nbclient."""
        return statistics.median(self.service) / statistics.median(self.nbclient)


@dataclass
class Results:
    """Everything that was measured."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    late: dict[str, list[float]] = field(default_factory=dict)


def percentile(values: list[float], share: float) -> float:
    """The value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} … {max(seconds):.3f})"


def show(results: Results) -> None:
    """Prints both tables."""
    times = Table("notebook", "nbclient", "service", "ratio", "target")
    times.title = "Total time in seconds: median (min … max)"
    for name, pair in results.pairs.items():
        sides = _spread(pair.nbclient), _spread(pair.service)
        times.add_row(name, *sides, f"{pair.ratio:.2f}", f"at most {RATIO_TARGET}")
    late = Table("event", "median", "p99", "max", "events", "target of the median")
    late.title = "From the kernel to the client in milliseconds"
    for name, values in results.late.items():
        numbers = [statistics.median(values), percentile(values, 0.99), max(values)]
        shown = [f"{1000 * number:.2f}" for number in numbers]
        late.add_row(name, *shown, str(len(values)), f"under {LATENCY_TARGET_MS:g}")
    console = Console()
    console.print(times)
    console.print(late)


def _document(results: Results) -> dict[str, Any]:
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in PACKAGES},
        "targets": {"ratio": RATIO_TARGET, "latency_ms": LATENCY_TARGET_MS},
        "times": {
            name: {"ratio": pair.ratio, "nbclient": pair.nbclient, "service": pair.service}
            for name, pair in results.pairs.items()
        },
        "latency_ms": {
            name: {
                "median": 1000 * statistics.median(values),
                "p99": 1000 * percentile(values, 0.99),
                "events": len(values),
            }
            for name, values in results.late.items()
        },
    }


def save(results: Results, endings: object, path: Path) -> None:
    """Writes all numbers, also the single ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {**_document(results), "endings": vars(endings)}
    path.write_text(json.dumps(document, indent=2) + "\n")
