"""Measure cells that print, display, update and clear very often, against nbclient, with equal outputs.

Text comes in pieces of other sizes from each, and displays are updated or cleared at other moments. What
counts is what stands in the notebook at the end: the text of each stream in one piece, and all other outputs.
"""

from benchmarks import notebooks
from benchmarks.competitors import nbclient
from benchmarks.report import Figure, Goal
from benchmarks.service import Service
from benchmarks.speed import in_turns

FLUSHED = "for number in range(10_000):\n    print(number, flush=True)"
# Without a flush, a kernel would collect the text of each stream for 0.2 s.
ALTERNATING = """import sys
for number in range(1_000):
    print(number, flush=True)
    print(number, file=sys.stderr, flush=True)
"""
DISPLAYS = "for number in range(500):\n    display(number)"
UPDATES = """shown = display(-1, display_id=True)
for number in range(1_000):
    shown.update(number)
"""
CLEARED = """from IPython.display import clear_output
for number in range(1_000):
    clear_output()
    print(number)
"""
UNFLUSHED = "for number in range(100_000):\n    print(number)"
LARGE = "for number in range(50):\n    print(str(number % 10) * 1_000_000)"


def _lines(count: int) -> str:
    return "".join(f"{number}\n" for number in range(count))


FLOODS: dict[str, tuple[str, dict[str, str], float]] = {
    "10,000 flushed lines": (FLUSHED, {"stdout": _lines(10_000)}, 0.7),
    "2,000 lines, alternating between stdout and stderr": (
        ALTERNATING,
        {"stdout": _lines(1_000), "stderr": _lines(1_000)},
        0.7,
    ),
    "500 displays": (DISPLAYS, {}, 0.7),
    "1,000 updates of a display": (UPDATES, {}, 0.7),
    "1,000 times clear_output": (CLEARED, {"stdout": "999\n"}, 0.7),
    "100,000 unflushed lines": (UNFLUSHED, {"stdout": _lines(100_000)}, 0.5),
    "50 times 1 MB printed": (
        LARGE,
        {"stdout": "".join(str(number % 10) * 1_000_000 + "\n" for number in range(50))},
        0.8,
    ),
}
"""The source of the cell, the text that it prints, and the maximum ratio to nbclient's time."""


def measure(service: Service, rounds: int) -> list[Figure]:
    """Measure each flood, from Start to the terminal event and from nbclient's start to its end.

    nbclient loses output when it cannot keep up, because ZeroMQ then drops messages: its time counts all the
    same, and the figure says how often that was.

    Raises:
        RuntimeError: This service lost text, or its outputs differ from nbclient's where that lost none.
    """
    figures = []
    for name, (source, text, goal) in FLOODS.items():
        node = notebooks.of([source])
        expected = service(node).outputs
        if expected[0][0] != text:
            raise RuntimeError(f"{name}: this service lost text")
        figure = Figure(name, "ms", 1000)
        others = {"nbclient": nbclient}
        in_turns(service, node, figure, rounds, name, others=others, expected=expected, lossy=others)
        figure.goals = [Goal("of nbclient's time", goal, 1 / figure.ratio("nbclient"), at_most=True)]
        figures.append(figure)
    return figures
