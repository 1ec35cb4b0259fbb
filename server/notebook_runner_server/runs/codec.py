"""Encode runs and events as JSON for the store, and decode them again.

Fields that earlier versions did not write get their defaults. Unknown ones are ignored, and so are
further values of an array: servers of later versions may share a database with this one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from notebook_runner_server.execution.interface import (
    MAX_TYPES,
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    ClearOutput,
    DisplayOutput,
    ErrorOutput,
    Failure,
    KeptContent,
    Limits,
    OutputCut,
    ResultValue,
    StreamOutput,
)
from notebook_runner_server.runs.model import (
    Body,
    Event,
    ExecutionOptions,
    RetryPolicy,
    Run,
    RunChanged,
    RunState,
    TraceContext,
)
from notebook_runner_server.runs.names import default_name
from notebook_runner_server.runs.results import Results

_BODIES: dict[str, type[Any]] = {
    "cell_started": CellStarted,
    "stream": StreamOutput,
    "display": DisplayOutput,
    "error": ErrorOutput,
    "clear": ClearOutput,
    "cut": OutputCut,
    "cell_finished": CellFinished,
}
_KINDS = {kind: name for name, kind in _BODIES.items()}
_T = TypeVar("_T")


def encode_run(run: Run) -> str:
    """Return a run as JSON."""
    return json.dumps(_run_to_dict(run))


def decode_run(text: str) -> Run:
    """Return the run that `encode_run` was given."""
    return _run_from_dict(json.loads(text))


def encode_parameters(parameters: Mapping[str, Any]) -> str:
    """Return parameters as JSON, extended by NaN and infinities."""
    return json.dumps(dict(parameters))


def decode_parameters(text: str) -> dict[str, Any]:
    """Return the parameters that `encode_parameters` was given."""
    parameters: dict[str, Any] = json.loads(text)
    return parameters


def encode_options(options: ExecutionOptions) -> str:
    """Return options as JSON."""
    return json.dumps(
        {**_fields(options), "limits": _fields(options.limits), "origin": _fields(options.origin)}
    )


def decode_options(text: str) -> ExecutionOptions:
    """Return the options that `encode_options` was given."""
    data = json.loads(text)
    if "limits" not in data:
        # The first versions had fewer limits, among the other fields.
        names = [one.name for one in fields(Limits) if one.name in data]
        data["limits"] = {name: data.pop(name) for name in names}
    # Earlier versions wrote no origin.
    nested = {
        "limits": _make(Limits, data["limits"]),
        "origin": _make(TraceContext, data.get("origin", {})),
        "owner_groups": tuple(data.get("owner_groups", ())),
    }
    return _make(ExecutionOptions, {**data, **nested})


def encode_event(event: Event) -> str:
    """Return an event as JSON, without its sequence number and time."""
    body = event.body
    if isinstance(body, RunChanged):
        kind, data = "run", _run_to_dict(body.run)
    else:
        kind, data = _KINDS[type(body)], _fields(body)
        if isinstance(body, CellFinished):
            data["outcome"] = body.outcome.value
        if isinstance(body, DisplayOutput):
            data = _display_to_dict(body)
    return json.dumps([event.cells_completed, event.cells_total, kind, data])


def decode_event(sequence: int, time: int, text: str) -> Event:
    """Return the event that `encode_event` was given."""
    completed, total, kind, data, *_ = json.loads(text)
    return Event(sequence, time, completed, total, _body(kind, data))


def _body(kind: str, data: dict[str, Any]) -> Body:
    if kind == "run":
        return RunChanged(_run_from_dict(data))
    if kind == "cell_finished":
        data["outcome"] = CellOutcome(data["outcome"])
    if kind == "display":
        # Earlier versions wrote all types, however many.
        types = data["data"][:MAX_TYPES]
        data["omitted"] = data.get("omitted", 0) + len(data["data"]) - len(types)
        data["data"] = tuple((mime, size) for mime, size, *_ in types)
        data["result"] = _make_in_order(ResultValue, data["result"]) if data.get("result") else None
        data["kept"] = tuple(_make_in_order(KeptContent, one) for one in data.get("kept", ()))
    body: Body = _make(_BODIES[kind], data)
    return body


def _display_to_dict(body: DisplayOutput) -> dict[str, Any]:
    data = _fields(body)
    # The content itself is in the file of segments, and most displays set no result.
    del data["contents"]
    data["result"] = body.result and (body.result.name, body.result.value_json)
    data["kept"] = [tuple(_fields(one).values()) for one in body.kept]
    return {name: value for name, value in data.items() if value not in (None, [])}


def _fields(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}


@cache
def _names(kind: Any) -> frozenset[str]:
    return frozenset(one.name for one in fields(kind))


def _make(kind: Callable[..., _T], data: Mapping[str, Any]) -> _T:
    """Return an object of a dataclass, from its fields among some."""
    names = _names(kind)
    return kind(**{name: value for name, value in data.items() if name in names})


def _make_in_order(kind: Callable[..., _T], values: Sequence[Any]) -> _T:
    """Return an object of a dataclass, from the values of its fields and perhaps further ones."""
    return kind(*values[: len(_names(kind))])


def _run_to_dict(run: Run) -> dict[str, Any]:
    data = _fields(run)
    data["state"] = run.state.value
    data["results"] = run.results.to_dict()
    if run.retry is not None:
        data["retry"] = {**_fields(run.retry), "states": [state.value for state in run.retry.states]}
    if run.failure is not None:
        data["failure"] = {**_fields(run.failure), "cause": run.failure.cause.value}
    return data


def _run_from_dict(data: dict[str, Any]) -> Run:
    failure = data["failure"]
    if failure is not None:
        failure = _make(Failure, {**failure, "cause": Cause(failure["cause"])})
    # Earlier versions wrote no repairs, no name, no results and no retry policy.
    repairs = tuple(data.get("notebook_repairs", ()))
    name = (
        data["name"] if "name" in data else default_name(data["notebook_path"], data.get("notebook_uri", ""))
    )
    retry = data.get("retry")
    if retry is not None:
        retry = _make(RetryPolicy, {**retry, "states": tuple(map(RunState, retry["states"]))})
    changed = {
        "state": RunState(data["state"]),
        "failure": failure,
        "notebook_repairs": repairs,
        "name": name,
        "results": Results.from_dict(data["results"]) if "results" in data else Results(),
        "retry": retry,
    }
    return _make(Run, {**data, **changed})
