"""The `error` format: a plain-text report of how a run ended."""

from __future__ import annotations

from datetime import UTC, datetime

from notebook_runner_server.runs.model import Run


def report(run: Run) -> str:
    """Return a report of a run's end, or of its current state; never empty."""
    lines = [
        f"Run       {run.run_id}",
        f"State     {run.state.name}",
        f"Notebook  {run.notebook_path or run.notebook_uri or '(sent inline)'}",
        f"Kernel    {run.kernel_name}",
        f"Created   {_time(run.create_time)}",
        f"Started   {_time(run.start_time)}",
        f"Ended     {_time(run.end_time)}",
        f"Took      {_duration(run)}",
        f"Cells     {run.cells_completed} of {run.cells_total} completed",
    ]
    if run.output_uri:
        lines += [f"Output    {run.output_uri}", *([run.output_error] if run.output_error else [])]
    failure = run.failure
    if failure is not None:
        lines.append(f"Cause     {failure.cause.name}")
        if failure.cell_index is not None:
            name = f", id {failure.cell_id}" if failure.cell_id else ""
            # People count from one.
            cell = f"cell {failure.cell_index + 1} of {run.cells_total}"
            lines.append(f"In        {cell} (index {failure.cell_index}{name})")
        lines += ["", failure.message]
        if failure.traceback:
            lines += ["", failure.traceback.rstrip()]
    return "\n".join(lines) + "\n"


def _duration(run: Run) -> str:
    if not (run.start_time and run.end_time):
        return "-"
    return f"{(run.end_time - run.start_time) / 1e9:.3f} s"


def _time(nanoseconds: int) -> str:
    if not nanoseconds:
        return "-"
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="milliseconds")
