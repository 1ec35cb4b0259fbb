"""The banner of a page: what a reader of a result wants to know about its run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from notebook_runner_server.export.banner import Banner
from notebook_runner_server.runs.model import Event, Run, RunState

MAX_PARAMETERS = 40
MAX_VALUE = 200
MAX_MESSAGE = 2000
"""Maximum number of parameters in a banner, and of characters of a value and of the message."""


def banner(run: Run, as_of: Event) -> Banner:
    """Return the banner of a run.

    Args:
        run: The run in the state that the banner shows.
        as_of: The last event that the page contains.
    """
    parameters = list(run.parameters.items())
    failure = run.failure
    return Banner(
        title=run.name,
        state=run.state.value.replace("_", " ").capitalize(),
        tone=_tone(run.state),
        facts=tuple(_facts(run, as_of)),
        parameters=tuple((_cut(name), _value(value)) for name, value in parameters[:MAX_PARAMETERS]),
        parameters_omitted=max(0, len(parameters) - MAX_PARAMETERS),
        message=_cut(failure.message, MAX_MESSAGE) if failure else "",
        cell_index=failure.cell_index if failure else None,
    )


def _tone(state: RunState) -> str:
    if state is RunState.SUCCEEDED:
        return "good"
    return "bad" if state.is_terminal else "neutral"


def _facts(run: Run, as_of: Event) -> list[tuple[str, str]]:
    found = [("Run", run.run_id)]
    if source := run.notebook_path or run.notebook_uri:
        found.append(("Notebook", _cut(source)))
    found.append(("Created", _time(run.create_time)))
    if run.start_time:
        found.append(("Started", _time(run.start_time)))
    if run.end_time:
        found.append(("Ended", _time(run.end_time)))
    if run.start_time and run.end_time:
        found.append(("Duration", _duration((run.end_time - run.start_time) / 1e9)))
    found.append(("Cells", f"{as_of.cells_completed} of {as_of.cells_total} completed"))
    if not run.state.is_terminal:
        found.append(("As of", f"event {as_of.sequence}, {_time(as_of.time)}"))
    return found


def _value(value: Any) -> str:
    return _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str, most: int = MAX_VALUE) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _time(nanoseconds: int) -> str:
    return f"{datetime.fromtimestamp(nanoseconds / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    if seconds < 60:  # noqa: PLR2004 - units of time
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
