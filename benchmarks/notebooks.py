"""The notebooks that all competitors execute, and what has to come out."""

import json
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

LINE = 100 * 1024
# Each line begins with the time at which it was printed, in nanoseconds, and is printed in one piece, so that
# no event has a part of one.
TICKS = """import time
for number in range({count}):
    print(f"{{time.time_ns()}} {{number}}\\n", end="", flush={flush})
    time.sleep({pause})
"""


def small(cells: int) -> NotebookNode:
    """So many cells, each of which prints one line and has a result."""
    return of([f"print('cell {number}'); {number} * {number}" for number in range(cells)])


def large(cells: int) -> NotebookNode:
    """So many cells, each of which prints 100 KB."""
    return of([f"print('{number % 10}' * {LINE - 1})" for number in range(cells)])


def ticking(count: int, pause: float, *, flush: bool) -> NotebookNode:
    """One cell that prints so many lines, each with its time, and pauses after each."""
    return of([TICKS.format(count=count, pause=pause, flush=flush)])


def of(sources: list[str]) -> NotebookNode:
    """So many code cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    node: NotebookNode = new_notebook(
        cells=[new_code_cell(source) for source in sources], metadata={"kernelspec": kernel}
    )
    return node


def written(node: NotebookNode) -> bytes:
    """The notebook as the bytes of a file."""
    text: str = nbformat.writes(node)
    return text.encode()


def read(data: bytes) -> NotebookNode:
    """The bytes of a file as a notebook."""
    node: NotebookNode = nbformat.reads(data.decode(), as_version=4)
    return node


def outputs(node: NotebookNode) -> list[Any]:
    """What every cell put out: its printed text in one piece, and the rest."""
    found = []
    for cell in node.cells:
        printed = "".join(out["text"] for out in cell.outputs if out["output_type"] == "stream")
        rest = [out for out in cell.outputs if out["output_type"] != "stream"]
        found.append([printed, json.loads(json.dumps(rest))])
    return found
