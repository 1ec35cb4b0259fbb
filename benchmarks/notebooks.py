"""The notebooks that both sides execute."""

import json
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

# The first word of what a cell prints is the time at which it printed it, in nanoseconds.
SOURCE = "import time; print(f'{{time.time_ns()}} cell {number}', flush=True); {number} * {number}"


def of_size(cells: int) -> NotebookNode:
    """A notebook of so many small cells, each of which prints one line and has a result."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nodes = [new_code_cell(SOURCE.format(number=number)) for number in range(cells)]
    node: NotebookNode = new_notebook(cells=nodes, metadata={"kernelspec": kernel})
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
    """What every cell put out, without the times in it."""
    found = []
    for cell in node.cells:
        printed = "".join(out["text"] for out in cell.outputs if out["output_type"] == "stream")
        rest = [out for out in cell.outputs if out["output_type"] != "stream"]
        found.append([printed.split()[1:], json.loads(json.dumps(rest))])
    return found
