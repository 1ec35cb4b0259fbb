"""From Python's values to the messages of the contract."""

from __future__ import annotations

import json
import numbers
import os
import uuid
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from ._states import parse_state
from .v1 import notebook_runner_pb2 as pb

__all__ = [
    "Notebook",
    "Seconds",
    "StartOptions",
    "duration",
    "kill_request",
    "list_request",
    "seconds",
    "start_request",
]

Notebook: TypeAlias = str | os.PathLike[str] | bytes | Mapping[str, Any]
"""A notebook of the caller's: the path of a file, its content, or its JSON as a dict or NotebookNode."""

Seconds: TypeAlias = float | timedelta
"""A length of time, as seconds or as a timedelta."""

# The most that a Duration holds: 10,000 years.
MAX_SECONDS = 315_576_000_000

# A parameter travels as a double, which holds every integer up to here.
MAX_INTEGER = 2**53


class StartOptions(TypedDict, total=False):
    """What a run may be told besides its notebook. All of it is optional.

    Attributes:
        server_path: Run the notebook at this path under the server's notebook root instead of one of
            the caller's own.
        notebook_uri: Run the notebook that the server reads from this URI, of a scheme that its
            operator allowed.
        output_uri: Where the server writes the executed notebook at the end of the run: a URI of a
            scheme that its operator allowed. Why it is not there says `Run.output_error`.
        parameters: Values for the notebook's parameters, by name: None, bool, int (up to ±2**53), float,
            str, lists and dicts of these, and NumPy's scalars. Anything else (dates, paths, bytes,
            arrays) is refused, because it would be another type in the notebook: send it as a str.
        kernel_name: The kernelspec to run with, instead of the one that the notebook names.
        run_timeout: How long the run may take, in seconds. This and the limits below: zero is the
            server's default.
        cell_timeout: How long one cell may take, in seconds.
        output_timeout: How long a cell may go without any output, in seconds.
        allow_errors: Go on after a cell that raises.
        environment: Plain environment variables for the kernel, by name.
        memory_limit: How many bytes of memory the processes of the run may take together.
        cell_output_limit: How many bytes of output one cell may have; what is over is cut.
        run_output_limit: How many bytes of output all cells may have together; what is over is cut.
        process_limit: How many processes the run may have at once.
        labels: Labels to find the run by.
        retention: How long the run's history and results are kept after its end, in seconds.
        request_id: Makes `start` safe to repeat: the same id with the same request answers the same
            run. A fresh one is made when none is given.
    """

    server_path: str
    notebook_uri: str
    output_uri: str
    parameters: Mapping[str, Any]
    kernel_name: str
    run_timeout: Seconds
    cell_timeout: Seconds
    output_timeout: Seconds
    allow_errors: bool
    environment: Mapping[str, str]
    memory_limit: int
    cell_output_limit: int
    run_output_limit: int
    process_limit: int
    labels: Mapping[str, str]
    retention: Seconds
    request_id: str


def start_request(notebook: Notebook | None, options: StartOptions) -> pb.StartRequest:
    """Build the request that starts a run, reading the notebook when it is given by path.

    Raises:
        TypeError: The notebook or a parameter is of a type that cannot be sent.
        ValueError: More than one notebook is given, or a value is out of range.
        OSError: The notebook's file cannot be read.
    """
    request = pb.StartRequest(
        request_id=options.get("request_id") or str(uuid.uuid4()),
        kernel_name=options.get("kernel_name", ""),
        allow_errors=options.get("allow_errors", False),
        environment=options.get("environment"),
        memory_limit_bytes=options.get("memory_limit", 0),
        cell_output_limit_bytes=options.get("cell_output_limit", 0),
        run_output_limit_bytes=options.get("run_output_limit", 0),
        process_limit=options.get("process_limit", 0),
        labels=options.get("labels"),
        output_uri=options.get("output_uri", ""),
        run_timeout=duration(options.get("run_timeout")),
        cell_timeout=duration(options.get("cell_timeout")),
        output_timeout=duration(options.get("output_timeout")),
        retention=duration(options.get("retention")),
    )
    if parameters := options.get("parameters"):
        request.parameters.CopyFrom(_struct(parameters))
    _set_notebook(request, notebook, options)
    return request


def kill_request(run_id: str, grace_period: Seconds) -> pb.KillRequest:
    """Build the request that ends a run.

    Raises:
        ValueError: The grace period is not finite.
    """
    return pb.KillRequest(run_id=run_id, grace_period=duration(grace_period) if grace_period else None)


def list_request(
    states: Iterable[str | pb.RunState.ValueType], labels: Mapping[str, str] | None, page_size: int
) -> pb.ListRequest:
    """Build the request for the first page of runs.

    Raises:
        ValueError: There is no such state.
    """
    return pb.ListRequest(states=map(parse_state, states), labels=labels, page_size=page_size)


def seconds(value: Seconds) -> float:
    """Give a length of time in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def duration(value: Seconds | None) -> Duration | None:
    """Give a length of time as the contract carries it; None stays absent.

    Raises:
        ValueError: The value is infinite, not a number, or beyond what a Duration holds.
    """
    if value is None:
        return None
    result = Duration()
    if isinstance(value, timedelta):
        result.FromTimedelta(value)
    elif abs(value) <= MAX_SECONDS:  # not so for NaN
        result.FromNanoseconds(round(value * 1e9))
    else:
        raise ValueError(f"a length of time is a number of seconds up to {MAX_SECONDS}, not {value}")
    return result


def _set_notebook(request: pb.StartRequest, notebook: Notebook | None, options: StartOptions) -> None:
    path, uri = options.get("server_path"), options.get("notebook_uri")
    if sum((notebook is not None, bool(path), bool(uri))) > 1:
        raise ValueError("give one of notebook, server_path and notebook_uri, not more")
    if path:
        request.notebook_path = path
    elif uri:
        request.notebook_uri = uri
    elif notebook is not None:
        request.notebook_content = _content(notebook)


def _content(notebook: Notebook) -> bytes:
    if isinstance(notebook, bytes | bytearray | memoryview):
        return bytes(notebook)
    if isinstance(notebook, Mapping):
        return json.dumps(notebook, ensure_ascii=False).encode()
    if isinstance(notebook, str | os.PathLike):
        return _read(Path(notebook))
    raise TypeError(f"a notebook is a path, bytes, a dict or a NotebookNode, not {type(notebook).__name__}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        hint = "no such notebook here (for one under the server's notebook root use server_path)"
        raise FileNotFoundError(error.errno, hint, str(path)) from None


def _struct(parameters: Mapping[str, Any]) -> Struct:
    result = Struct()
    result.update(_plain(parameters, "parameters"))
    return result


def _plain(value: Any, place: str) -> Any:
    """Give the value as the types that a Struct takes, or say where it has one that cannot be sent."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy's, whose bool is no bool
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        if abs(int(value)) > MAX_INTEGER:
            raise ValueError(f"{place} is beyond ±2**53 and would lose digits on the way; send it as a str")
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        return {_key(key, place): _plain(item, f"{place}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"{place} is a {type(value).__name__}; a parameter is None, bool, int, float, str, or a list or dict "
        "of these. Send anything else as a str that the notebook parses"
    )


def _key(key: object, place: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{place} has the key {key!r}; names are str")
    return key
