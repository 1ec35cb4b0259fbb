"""Create the notebooks that all competitors execute, and compare their outputs."""

import json
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

LINE = 100 * 1024
# Each line starts with the time at which it is printed, in nanoseconds, and is printed in one piece, so that
# no event contains only a part of a line.
TICKS = """import time
for number in range({count}):
    print(f"{{time.time_ns()}} {{number}}\\n", end="", flush={flush})
    time.sleep({pause})
"""
# As above, from a moment on at a constant rate, whatever a print takes.
PACED = """import time
for number in range({count}):
    time.sleep(max(0.0, {begin} + number / {rate} - time.time()))
    print(f"{{time.time_ns()}} {{number}}\\n", end="", flush=True)
"""


def small(cells: int) -> NotebookNode:
    """Return a notebook of cells that each print one line and have a result."""
    return of([f"print('cell {number}'); {number} * {number}" for number in range(cells)])


def large(cells: int) -> NotebookNode:
    """Return a notebook of cells that each print 100 KB."""
    return of([f"print('{number % 10}' * {LINE - 1})" for number in range(cells)])


def ticking(count: int, pause: float, *, flush: bool) -> NotebookNode:
    """Return a notebook of one cell that prints lines with their time, and pauses after each."""
    return of([TICKS.format(count=count, pause=pause, flush=flush)])


def paced(count: int, rate: float, begin: float) -> NotebookNode:
    """Return a notebook of one cell that prints lines with their time, each with a flush.

    Args:
        count: The number of lines.
        rate: The lines per second.
        begin: When to begin, in seconds of the system's clock.
    """
    return of([PACED.format(count=count, rate=rate, begin=begin)])


def of(sources: list[str]) -> NotebookNode:
    """Return a notebook of code cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    node: NotebookNode = new_notebook(
        cells=[new_code_cell(source) for source in sources], metadata={"kernelspec": kernel}
    )
    return node


def written(node: NotebookNode) -> bytes:
    """Return a notebook as the bytes of a file."""
    text: str = nbformat.writes(node)
    return text.encode()


def read(data: bytes) -> NotebookNode:
    """Return the bytes of a file as a notebook."""
    node: NotebookNode = nbformat.reads(data.decode(), as_version=4)
    return node


def outputs(node: NotebookNode) -> list[Any]:
    """Return the outputs of every cell: the text of each stream in one piece, and the rest."""
    found = []
    for cell in node.cells:
        printed: dict[str, str] = {}
        for out in cell.outputs:
            if out["output_type"] == "stream":
                printed[out["name"]] = printed.get(out["name"], "") + out["text"]
        rest = [out for out in cell.outputs if out["output_type"] != "stream"]
        found.append([printed, json.loads(json.dumps(rest))])
    return found
