"""Merges what a run made of a notebook into the notebook that another program holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from notebook_runner.errors import NotebookRunnerError

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = ["merge"]

# What execution adds to the metadata of a notebook.
_METADATA = ("language_info", "widgets")


def merge(notebook: NotebookNode, executed: NotebookNode, *, times: bool = True) -> None:
    """Put the results of a run into the notebook that was sent, and leave all else in it as it is.

    Args:
        notebook: The notebook that was sent.
        executed: The same notebook, as the run left it.
        times: Whether to put the times of execution into the metadata of cells.

    Raises:
        NotebookRunnerError: The notebooks do not have the same number of cells.
    """
    if len(notebook.cells) != len(executed.cells):
        raise NotebookRunnerError(
            f"The server returned {len(executed.cells)} cells of a notebook with {len(notebook.cells)}. "
            "Read the executed notebook with `notebook-runner output`."
        )
    for cell, done in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
            if times and "execution" in done.metadata:
                cell.metadata["execution"] = done.metadata["execution"]
    for name in _METADATA:
        if name in executed.metadata:
            notebook.metadata[name] = executed.metadata[name]
