"""The figures in the pages are those of the benchmark, and a new measurement replaces them."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages

pytestmark = pytest.mark.unit

NOTEBOOK = {"this service": [40.04, 41.0, 60.0], "nbclient": [800.0, 820.0]}
TOOLS = ("jupyter_client loop", "nbconvert command", "papermill API", "papermill command")


def measurement(**more: Any) -> pages.Figures:
    """The file of a measurement."""
    samples: dict[str, list[float]] = {**NOTEBOOK, **{tool: [1234.5] for tool in TOOLS}}
    goals = ["20.2 times faster than nbclient (goal: at least 40, missed)"]
    figure = {"name": "one cell", "unit": "ms", "samples": samples, "text": goals, "losses": {}}
    flood = {
        "name": "many lines",
        "unit": "ms",
        "samples": {"this service": [1.0, 3.0], "nbclient": [2.0, 2.0]},
        "text": [],
        "losses": {"nbclient": 1},
    }
    machine = {"cpus": 4, "processor": "RISC-V", "system": "Linux 7.0", "python": "3.14.1"}
    return {"machine": machine, "versions": {"nbclient": "1.0"}, "figures": [figure, flood], **more}


def figures(**more: Any) -> pages.Figures:
    """The committed figures with those of the measurement."""
    return pages.merged(json.loads(pages.FIGURES.read_text()), pages.reduced(measurement(**more), "shared"))


def block(name: str, content: str = "") -> str:
    """A page with one block."""
    return f"<!--figures:{name}-->\n{content}<!--end-of-figures-->\n"


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_a_page_has_what_the_tool_writes(page: Path) -> None:
    """Nobody has typed a figure."""
    assert pages.written(page.read_text(), json.loads(pages.FIGURES.read_text())) == page.read_text()


def test_each_block_is_in_a_page() -> None:
    """Every block that the tool can write is used."""
    whole = "".join(page.read_text() for page in pages.PAGES)
    assert [name for name in pages.BLOCKS if f"<!--figures:{name}-->\n" not in whole] == []


def test_a_measurement_replaces_what_it_measured() -> None:
    """Medians, single executions, the machine and the goals; other notebooks stay."""
    page = pages.written(block("readme", "old\n"), figures())
    assert "| one cell | **41** | 1,234 (once) | 810 | 1,234 (once) |" in page
    assert "4 cores (RISC-V, shared) with Python 3.14.1" in page
    assert "p99 is 60 ms (3 runs)" in page
    known = {figure["name"]: figure for figure in json.loads(pages.FIGURES.read_text())["figures"]}
    median = known["500 small cells"]["who"][pages.OURS]["median"]
    assert f"| 500 small cells | **{median:,.0f}** |" in page
    assert "old" not in page
    page = pages.written(block("goals"), figures())
    assert "- one cell: 20.2 times faster than nbclient (goal: at least 40, missed)\n" in page


def test_losses_of_a_competitor_are_shown() -> None:
    """Its time alone would be unfair to a service that loses nothing."""
    assert "| many lines | **2** | 2 | 1 of 2 times |" in pages.written(block("floods"), figures())


def test_a_block_without_figures_stays() -> None:
    """What was not measured is not removed."""
    page = block("budget", "old\n")
    without = {name: value for name, value in figures().items() if name != "budget"}
    assert pages.written(page, without) == page
    budget = {"arrived": {"Start answers": 0.002, "QUEUED": 0.0031}, "recorded": {"QUEUED": 0.001}}
    made = pages.written(page, figures(budget={**budget, "processor": {"server": 0.0125}}))
    assert "| QUEUED | 3.1 | 1.1 | 1.0 |" in made
    assert "server 12.5." in made


def test_what_else_was_measured_is_written() -> None:
    """The rates of lines, the ends of runs, and the cost of an item."""
    more = {
        "pace": [
            {"rate": 5000, "printed": 4999.0, "median": 0.01, "p99": 0.0991, "server": 0.9, "readers": 0.2}
        ],
        "endings": {
            "kills": {"a fork storm": [0.01, 0.02, 0.03]},
            "server_death": [0.02],
            "restarts": {"1000": [0.5, 0.6, 0.7]},
        },
        "scaling": [["List, a run", 1000, 0.0222], ["List, a run", 10000, 0.23]],
    }
    page = pages.written(block("pace") + block("endings") + block("items"), figures(**more))
    for row in (
        "| 5,000 | 4,999 | 10.0 | 99.1 | 90 | 20 |",
        "| a fork storm | 20.0 | 30.0 |",
        "0.60 s with 1,000 runs",
        "| List, a run | 1,000 | 22.2 | 22.2 |\n| | 10,000 | 230 | 23.0 |",
    ):
        assert row in page
