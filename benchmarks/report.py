"""Turn samples into tables and a chart for people, and a file for programs."""

import dataclasses
import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Chart
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from benchmarks.service import NAME

PACKAGES = (
    "notebook-runner",
    "nbclient",
    "papermill",
    "nbconvert",
    "jupyter-client",
    "ipykernel",
    "grpcio",
    "protobuf",
)


MANY = 1000
"""From here on, a figure is shown with all its digits before the point."""


@dataclass
class Goal:
    """A goal, as a minimum or maximum, and the measured value."""

    text: str
    wanted: float
    found: float
    at_most: bool = False

    @property
    def reached(self) -> bool:
        """Whether the goal was reached."""
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted

    @override
    def __str__(self) -> str:
        sign = "at most" if self.at_most else "at least"
        found = f"{self.found:.3g}" if self.found < MANY else f"{self.found:,.0f}"
        return f"{found} {self.text} (goal: {sign} {self.wanted:,g}{'' if self.reached else ', missed'})"


@dataclass
class Figure:
    """The samples of one figure by competitor, in units of 1/`scale` of what was measured.

    Attributes:
        losses: How many executions of a competitor lost output.
    """

    name: str
    unit: str
    scale: float
    samples: dict[str, list[float]] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    losses: dict[str, int] = field(default_factory=dict)

    def add(self, who: str, *values: float) -> None:
        """Add samples of a competitor."""
        self.samples.setdefault(who, []).extend(value * self.scale for value in values)

    def median(self, who: str) -> float:
        """Return the median of a competitor's samples."""
        return statistics.median(self.samples[who])

    def p99(self, who: str) -> float:
        """Return the 99th percentile of a competitor's samples; of fewer than 100, the largest."""
        return percentile(self.samples[who], 0.99)

    def ratio(self, who: str) -> float:
        """Return the ratio of a competitor's median to this service's."""
        return self.median(who) / self.median(NAME)


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(figures: list[Figure]) -> None:
    """Print every figure."""
    console = Console(width=110)
    for figure in figures:
        title = f"{figure.name}, {figure.unit}" if figure.unit else figure.name
        table = Table("who", "median", "p99", "least", "most", "samples", "ratio", title=title)
        for who, values in figure.samples.items():
            numbers = [figure.median(who), figure.p99(who), min(values), max(values)]
            ratio = f"{figure.ratio(who):.2f}" if NAME in figure.samples and figure.median(NAME) else ""
            table.add_row(who, *(f"{number:.4g}" for number in numbers), str(len(values)), ratio)
        console.print(table)
        for goal in figure.goals:
            console.print(f"  {goal}")
        for who, count in figure.losses.items():
            console.print(f"  {who} lost output in {count} of {len(figure.samples[who])} executions")


def save(figures: list[Figure], more: dict[str, Any], folder: Path) -> None:
    """Write all numbers, including single samples, and the chart."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "processor": _processor(),
            "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        },
        "versions": {name: version(name) for name in PACKAGES},
        "figures": [
            {**dataclasses.asdict(figure), "text": list(map(str, figure.goals))} for figure in figures
        ],
        **more,
    }
    (folder / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    _draw(figures, folder / "bench.svg")


def _processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _draw(figures: list[Figure], path: Path) -> None:
    """Draw one row of bars for each notebook that all competitors executed."""
    shown = [figure for figure in figures if len(figure.samples) > 3]
    if not shown:
        return
    chart = Chart(figsize=(9, 2.2 * len(shown)), layout="constrained")
    for axes, figure in zip(chart.subplots(len(shown), squeeze=False).flat, shown, strict=True):
        names = sorted(figure.samples, key=figure.median, reverse=True)
        values = [figure.median(name) for name in names]
        bars = axes.barh(names, values, color=["#1f6f8b" if name == NAME else "#c5ccd3" for name in names])
        axes.bar_label(bars, labels=[f"{value:,.0f} {figure.unit}" for value in values], padding=3)
        axes.set_title(figure.name, loc="left", fontsize=10)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xticks([])
        axes.margins(x=0.15)
    chart.savefig(path)
