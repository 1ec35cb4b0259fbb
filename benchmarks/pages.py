"""Write the figures of the benchmark into README.md and docs/performance.md.

    python -m benchmarks.pages [bench-output/bench.json]

With the file of a measurement, its figures replace those of the same name in `figures.json`, where the others
stay. Then each block of the pages between `<!--figures:NAME-->` and `<!--end-of-figures-->` is written
again; one whose figures are missing stays as it is.
"""

import argparse
import json
import re
import shutil
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
FIGURES = Path(__file__).with_name("figures.json")
PAGES = (REPOSITORY / "README.md", REPOSITORY / "docs" / "performance.md")
CHART = REPOSITORY / "docs" / "bench.svg"
WIDTH = 120
OURS = "this service"
TOOLS = (OURS, "jupyter_client loop", "nbclient", "nbconvert command", "papermill API", "papermill command")
NOTEBOOKS = ("one cell", "100 small cells", "500 small cells", "100 cells of 100 KB output")
_BLOCK = re.compile(r"(?<=<!--figures:)(\w+)(-->\n).*?(?=<!--end-of-figures-->)", re.DOTALL)
Figures = dict[str, Any]


def main() -> None:
    """Take the figures of a measurement, if there is one, and write the pages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("measurement", nargs="?", type=Path, help="the file of `python -m benchmarks`")
    parser.add_argument("--note", help="what the processor's name does not say of the machine: shared")
    asked = parser.parse_args()
    figures = json.loads(FIGURES.read_text())
    if asked.measurement:
        note = figures["machine"]["note"] if asked.note is None else asked.note
        measured = reduced(json.loads(asked.measurement.read_text()), note)
        figures = merged(figures, measured)
        FIGURES.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
        if _by_name(measured).keys() >= set(NOTEBOOKS):
            shutil.copyfile(asked.measurement.with_name("bench.svg"), CHART)
    for page in PAGES:
        page.write_text(written(page.read_text(), figures))


def reduced(document: Figures, note: str) -> Figures:
    """Return what the pages need of the file of a measurement: no single samples.

    Args:
        document: The content of the file.
        note: What to say about the machine beside its processor.
    """
    found: Figures = {
        "machine": {**document["machine"], "note": note},
        "versions": document["versions"],
        "figures": [
            {
                "name": figure["name"],
                "unit": figure["unit"],
                "who": {who: _statistics(samples) for who, samples in figure["samples"].items()},
                "goals": figure["text"],
                "losses": figure["losses"],
            }
            for figure in document["figures"]
        ],
    }
    if "endings" in document:
        ended = document["endings"]
        found["endings"] = {
            "kills": {tree: _statistics(samples) for tree, samples in ended["kills"].items()},
            "server_death": statistics.median(ended["server_death"]),
            "restarts": {runs: statistics.median(samples) for runs, samples in ended["restarts"].items()},
        }
    return found | {name: document[name] for name in ("budget", "pace", "scaling") if name in document}


def _statistics(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {
        "median": _rounded(statistics.median(ordered)),
        "p99": _rounded(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]),
        "samples": len(ordered),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def merged(old: Figures, new: Figures) -> Figures:
    """Return all figures, the new ones in place of old ones of the same name."""
    by_name = {figure["name"]: figure for figure in [*old["figures"], *new["figures"]]}
    return {**old, **new, "figures": list(by_name.values())}


def written(page: str, figures: Figures) -> str:
    """Return a page with its blocks written from the figures."""

    def block(match: re.Match[str]) -> str:
        content = BLOCKS[match[1]](figures)
        return f"{match[1]}{match[2]}\n{content}\n\n" if content else match[0]

    return _BLOCK.sub(block, page)


def _by_name(figures: Figures) -> dict[str, Figures]:
    return {figure["name"]: figure for figure in figures["figures"]}


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _number(value: float) -> str:
    """Return a number with three digits, or all digits before the point."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _table(*rows: tuple[str, ...]) -> str:
    head, *body = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def _cores(machine: Figures) -> str:
    return f"{machine['cpus']} cores ({', '.join(filter(None, [machine['processor'], machine['note']]))})"


def _machine(figures: Figures) -> str:
    """What was measured, on what, and with which versions."""
    machine = figures["machine"]
    versions = [
        f"{name} {number}" for name, number in figures["versions"].items() if name != "notebook-runner"
    ]
    about = ", ".join([_cores(machine), machine["system"], f"Python {machine['python']}", *versions])
    return _filled(f"Measured with `make bench` and `make scale` on {about}.")


def _tools(figures: Figures) -> str:
    """The notebooks that every tool executed."""
    by_name = _by_name(figures)
    rows: list[tuple[str, ...]] = [("milliseconds, median", *TOOLS)]
    for name in NOTEBOOKS:
        who = by_name[name]["who"]
        rows.append((name, *(_cell(tool, who) for tool in TOOLS)))
    return _table(*rows)


def _cell(tool: str, who: Figures) -> str:
    text = f"{who[tool]['median']:,.0f}"
    if tool == OURS:
        return f"**{text}**"
    return f"{text} (once)" if who[tool]["samples"] == 1 else text


def _readme(figures: Figures) -> str:
    """The README's section."""
    machine, by_name = figures["machine"], _by_name(figures)
    one, rate, processor = (
        by_name[name]["who"] for name in ("one cell", "one-cell runs a second", "processor time of a run")
    )
    return "\n\n".join(
        [
            _filled(
                f"Measured on {_cores(machine)} with Python {machine['python']}; this service "
                "from `Start` to the terminal event over gRPC:"
            ),
            _tools(figures),
            "![The same figures as bars](docs/bench.svg)",
            _filled(
                f"For one cell, p99 is {one[OURS]['p99']:.0f} ms ({one[OURS]['samples']} runs). "
                f"In sequence, each in a fresh kernel: {rate[OURS]['median']:.2g} runs per second "
                f"(nbclient: {rate['nbclient']['median']:.2g}), "
                f"{processor[OURS]['median']:.0f} ms of processor time each "
                f"(nbclient: {processor['nbclient']['median']:.0f}). "
                "[All figures](docs/performance.md), including missed goals."
            ),
        ]
    )


def _goals(figures: Figures) -> str:
    """The table of all tools, and each goal."""
    goals = [f"- {figure['name']}: {goal}" for figure in figures["figures"] for goal in figure["goals"]]
    return f"{_tools(figures)}\n\n" + "\n".join(goals)


def _floods(figures: Figures) -> str:
    """The cells that print or display very often."""
    rows = [("milliseconds, median", OURS, "nbclient", "nbclient lost output")]
    for figure in figures["figures"]:
        who = figure["who"]
        if (
            set(who) == {OURS, "nbclient"}
            and figure["unit"] == "ms"
            and figure["name"] != "processor time of a run"
        ):
            lost = f"{figure['losses'].get('nbclient', 0)} of {who['nbclient']['samples']} times"
            rows.append((figure["name"], *(_cell(tool, who) for tool in (OURS, "nbclient")), lost))
    return f"## Floods of output\n\n{_table(*rows)}" if rows[1:] else ""


def _pace(figures: Figures) -> str:
    """The delay of printed lines at each rate."""
    rows = [
        (
            *(f"{step['rate']:,}", f"{step['printed']:,.0f}", _ms(step["median"]), _ms(step["p99"])),
            *(f"{100 * step[who]:.0f}" for who in ("server", "readers")),
        )
        for step in figures.get("pace", [])
    ]
    head = "lines a second, asked for", "printed", "delay, median, ms", "p99, ms", "server, %", "readers, %"
    return f"## Printed lines of 8 runs, with a reader each\n\n{_table(head, *rows)}" if rows else ""


def _budget(figures: Figures) -> str:
    """The steps of a run."""
    if "budget" not in figures:
        return ""
    budget = figures["budget"]
    rows = [
        (
            "since the call of Start, ms, median",
            "at the client",
            "of that, this step",
            "recorded by the server",
        )
    ]
    last = 0.0
    for name, at in budget["arrived"].items():
        recorded = _ms(budget["recorded"][name]) if name in budget["recorded"] else ""
        rows.append((name, _ms(at), _ms(at - last), recorded))
        last = at
    times = ", ".join(f"{kind} {_ms(seconds)}" for kind, seconds in budget["processor"].items())
    note = _filled(f"Processor time of such a run in ms, by kind of process: {times}.")
    return f"## A budget of one run\n\n{_table(*rows)}\n\n{note}"


def _endings(figures: Figures) -> str:
    """Kill for each process tree, the death of the server, and its restarts."""
    if "endings" not in figures:
        return ""
    ended = figures["endings"]
    rows = [(tree, _ms(found["median"]), _ms(found["p99"])) for tree, found in ended["kills"].items()]
    count = min(found["samples"] for found in ended["kills"].values())
    restarts = ", ".join(
        f"{seconds:.2f} s with {int(runs):,} runs" for runs, seconds in ended["restarts"].items()
    )
    after = _filled(
        f"From a SIGKILL of the server until no process is left: {ended['server_death']:.3f} s. "
        f"From the start of the server until it is ready, by its history: {restarts} (median)."
    )
    head = f"Duration of Kill in milliseconds ({count} runs of each process tree):"
    return f"{head}\n\n{_table(('what the run started', 'median', 'p99'), *rows)}\n\n{after}"


def _items(figures: Figures) -> str:
    """The cost of an item among few and among many."""
    rows, last = [("what", "how many", "all, ms", "each, µs")], ""
    for name, size, seconds in figures.get("scaling", []):
        each = _number(1e6 * seconds / size)
        rows.append(("" if name == last else name, f"{size:,}", _number(1e3 * seconds), each))
        last = name
    return _table(*rows) if rows[1:] else ""


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"


BLOCKS: dict[str, Callable[[Figures], str]] = {
    "readme": _readme,
    "machine": _machine,
    "goals": _goals,
    "floods": _floods,
    "pace": _pace,
    "budget": _budget,
    "endings": _endings,
    "items": _items,
}


if __name__ == "__main__":
    main()
