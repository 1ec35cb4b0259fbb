"""Clears what earlier executions left in a notebook, so that a run shows nothing that is not its own."""

from __future__ import annotations

from nbformat import NotebookNode

ERROR_MARKER_TAG = "papermill-error-cell-tag"
"""The tag of the cells in which papermill shows an exception (`papermill.execute`, 0.3 s to import)."""

_RECORDS = ("start_time", "end_time", "duration", "exception", "input_path", "output_path")


def clear_execution(notebook: NotebookNode) -> None:
    """Remove outputs, execution counts, times and papermill's record, in place.

    Papermill does the same when it executes a notebook again, before it writes its record anew; what it keeps
    of parameters is kept.
    """
    notebook.cells = [
        cell for cell in notebook.cells if ERROR_MARKER_TAG not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    record = notebook.metadata.get("papermill")
    if isinstance(record, dict):
        for name in _RECORDS:
            record.pop(name, None)
    else:
        notebook.metadata.pop("papermill", None)
