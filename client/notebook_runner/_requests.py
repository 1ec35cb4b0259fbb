"""Converts Python's values to requests of the contract."""

from __future__ import annotations

import difflib
import json
import numbers
import os
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from google.protobuf.struct_pb2 import Struct

from ._files import input_files
from ._retry_policy import Retry
from ._states import States, parse_states
from ._values import Seconds, duration
from .v1 import notebook_runner_pb2 as pb

__all__ = [
    "Notebook",
    "Since",
    "StartOptions",
    "delete_request",
    "earliest",
    "kill_request",
    "list_request",
    "name_of",
    "start_request",
    "watch_request",
]

Notebook: TypeAlias = str | os.PathLike[str] | bytes | Mapping[str, Any]
"""A local notebook: the path of a file, its content as bytes, or a dict or NotebookNode."""

Since: TypeAlias = datetime | timedelta
"""A time, or how long ago it was."""

# The most characters of a name.
MAX_NAME = 128

# A Struct has doubles, which hold every integer up to here.
MAX_INTEGER = 2**53


class StartOptions(TypedDict, total=False):
    """Options of a run. All are optional.

    Attributes:
        server_path: Run the notebook at this path under the server's notebook root instead of a local
            one.
        notebook_uri: Run the notebook that the server reads from this URI. The operator decides which
            schemes are allowed.
        output_uri: URI that the server writes the executed notebook to at the end of the run. The
            operator decides which schemes are allowed. If writing fails, `Run.output_error` says why.
        notify_uri: URL that the server sends a POST to at the end of the run and of each of its
            repetitions: a CloudEvent in JSON, without a signature. The operator decides which hosts are
            allowed. Servers of version 0.1 send none.
        parameters: Values for the notebook's parameters, by name: None, bool, int, float, str, lists and
            dicts of these, and NumPy scalars. They arrive unchanged and in order; keys of dicts arrive as
            str, as with papermill. Anything else (dates, paths, bytes, arrays) is refused, because it
            would be another type in the notebook: send it as a str. Servers of version 0.1 turn whole
            floats into int, and get integers beyond ±2**53 as str.
        kernel_name: Kernelspec to use instead of the one that the notebook names.
        run_timeout: Maximum duration of the run, in seconds. Here and for the limits below, zero means
            the server's default.
        cell_timeout: Maximum duration of a cell, in seconds.
        output_timeout: Maximum time a cell may go without output, in seconds.
        allow_errors: Continue after a cell that raises an exception.
        environment: Environment variables of the kernel, by name.
        memory_limit: Maximum memory of all processes of the run, in bytes.
        cell_output_limit: Maximum output of a cell, in bytes; further output is cut.
        run_output_limit: Maximum output of all cells, in bytes; further output is cut.
        process_limit: Maximum number of concurrent processes of the run.
        labels: Labels to find the run by.
        retention: How long to keep the run's history and results after it ends, in seconds.
        request_id: Makes `start` safe to repeat: the same id with the same request returns the same
            run. If none is given, a new one is created.
        name: A name for people, at most 128 characters. If none is given, the name of the notebook's file
            without `.ipynb`.
        files: Local files and folders to write into the run's working folder before the first cell, for a
            notebook that has a private one: any but one named by `server_path`. `data/sales.csv` is written
            as `sales.csv`, and `lib/utils/` with all that it contains as `utils/…`. Folders named
            `__pycache__`, `.git` and `.ipynb_checkpoints` are left out. Servers of version 0.1 write none.
        retry: When to repeat the run after a crash or an interruption; a number is that of repetitions.
            Zero: never. Servers of version 0.1 never repeat a run.
        priority: The order among one's own queued runs, from -100 to 100: those with higher numbers start
            first.
    """

    server_path: str
    notebook_uri: str
    output_uri: str
    notify_uri: str
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
    name: str
    files: Iterable[str | os.PathLike[str]]
    retry: Retry | int
    priority: int


# The options that are fields of the request as they are.
_FIELDS = {
    "kernel_name": "kernel_name",
    "allow_errors": "allow_errors",
    "environment": "environment",
    "memory_limit": "memory_limit_bytes",
    "cell_output_limit": "cell_output_limit_bytes",
    "run_output_limit": "run_output_limit_bytes",
    "process_limit": "process_limit",
    "labels": "labels",
    "output_uri": "output_uri",
    "notify_uri": "notify_uri",
    "request_id": "request_id",
    "server_path": "notebook_path",
    "notebook_uri": "notebook_uri",
    "name": "name",
    "priority": "priority",
}
_DURATIONS = ("run_timeout", "cell_timeout", "output_timeout", "retention")


def start_request(notebook: Notebook | None, options: StartOptions) -> pb.StartRequest:
    """Build the request that starts a run, reading the notebook when it is given by path.

    Raises:
        TypeError: An option is unknown, or the notebook, an option or a parameter is of a type that
            cannot be sent.
        ValueError: More than one notebook is given, or a value is out of range.
        OSError: The notebook's file, or a file to send with it, cannot be read.
    """
    elsewhere = bool(options.get("server_path")) + bool(options.get("notebook_uri"))
    if (notebook is not None) + elsewhere > 1:
        raise ValueError("Set only one of notebook, server_path and notebook_uri.")
    if options.get("files") and options.get("server_path"):
        raise ValueError(
            "files needs a notebook with a private folder, so it cannot be set with server_path."
        )
    request = pb.StartRequest(request_id=str(uuid.uuid4()), name=name_of(notebook))
    for name, value in options.items():
        request.MergeFrom(_option(name, value))
    if notebook is not None:
        request.notebook_content = _content(notebook)
    return request


def kill_request(run_id: str, grace_period: Seconds, *, wait: bool = True) -> pb.KillRequest:
    """Build the request that ends a run.

    Raises:
        ValueError: The grace period is not finite.
    """
    return pb.KillRequest(
        run_id=run_id, grace_period=duration(grace_period) if grace_period else None, no_wait=not wait
    )


def delete_request(run_id: str) -> pb.DeleteRequest:
    """Build the request that deletes a run.

    Raises:
        ValueError: The id is empty.
    """
    if not run_id:
        raise ValueError("run_id must not be empty. Only a run that is named can be deleted.")
    return pb.DeleteRequest(run_id=run_id)


def list_request(
    states: States, labels: Mapping[str, str] | None, page_size: int, owner: str = ""
) -> pb.ListRequest:
    """Build the request for the first page of runs.

    Raises:
        ValueError: A state is unknown.
    """
    return pb.ListRequest(states=parse_states(states), labels=labels, page_size=page_size, owner=owner)


def watch_request(
    cursor: str, states: States, labels: Mapping[str, str] | None, owner: str, *, existing: bool
) -> pb.WatchRequest:
    """Build the request for the changes of runs.

    Raises:
        ValueError: A state is unknown.
    """
    return pb.WatchRequest(
        cursor=cursor,
        include_existing=existing,
        states=parse_states(states),
        labels=labels,
        owner=owner,
    )


def earliest(since: Since | None) -> datetime | None:
    """Return the oldest creation time to include; None: no limit.

    Raises:
        TypeError: The value is neither a time nor a duration.
    """
    if since is None:
        return None
    if isinstance(since, timedelta):
        return datetime.now(UTC) - since
    value: object = since
    if not isinstance(value, datetime):
        raise TypeError(f"since must be a datetime or a timedelta (got {type(since).__name__}).")
    return value.astimezone(UTC)


def _option(name: str, value: Any) -> pb.StartRequest:
    """Return the part of the request that one option sets."""
    if name not in StartOptions.__annotations__:
        raise TypeError(_no_option(name))
    if value is None or (isinstance(value, str | Mapping) and not value):
        return pb.StartRequest()
    if name == "parameters":
        return _parameters(value)
    if name == "files":
        return pb.StartRequest(files=input_files(value))
    try:
        if name == "retry":
            return _retry(value)
        field: dict[str, Any] = {name: duration(value)} if name in _DURATIONS else {_FIELDS[name]: value}
        return pb.StartRequest(**field)
    except (TypeError, ValueError) as error:
        # protobuf does not name the field. The value is not shown, because it may be a secret.
        kind = StartOptions.__annotations__[name].__forward_arg__
        known = ValueError if isinstance(error, ValueError) else TypeError
        about = name if name in _DURATIONS else f"{name} must be {kind}"
        raise known(f"{about}: {error}") from None


def _retry(value: Any) -> pb.StartRequest:
    policy = value if isinstance(value, Retry) else Retry(value)
    return pb.StartRequest(retry=policy.message() if policy.max_retries else None)


def _no_option(name: str) -> str:
    known = list(StartOptions.__annotations__)
    near = difflib.get_close_matches(name, known)
    hint = f"Did you mean {near[0]}?" if near else f"Available: {', '.join(known)}."
    return f"Unknown option {name!r}. {hint}"


def name_of(notebook: Notebook | None) -> str:
    """Return the default name of a run: the file name of its notebook, if it is a file."""
    if not isinstance(notebook, str | os.PathLike):
        return ""
    path = Path(notebook)
    name = path.stem if path.suffix == ".ipynb" else path.name
    return name[:MAX_NAME]


def _content(notebook: Notebook) -> bytes:
    if isinstance(notebook, bytes | bytearray | memoryview):
        return bytes(notebook)
    if isinstance(notebook, Mapping):
        return json.dumps(notebook, ensure_ascii=False).encode()
    if isinstance(notebook, str) and notebook.lstrip().startswith("{"):
        raise ValueError("A notebook given as a str must be a path. Pass the content as bytes or as a dict.")
    if isinstance(notebook, str | os.PathLike):
        return _read(Path(notebook))
    raise TypeError(
        f"A notebook must be a path, bytes, a dict or a NotebookNode (got {type(notebook).__name__})."
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        hint = "No such local notebook (use server_path for one on the server, or notebook_uri for a URI)"
        raise FileNotFoundError(error.errno, hint, str(path)) from None


def _parameters(parameters: Mapping[str, Any]) -> pb.StartRequest:
    """Return the fields for parameters: exact JSON, and a Struct for servers that only know this."""
    if not isinstance(parameters, Mapping):
        raise TypeError(f"parameters must be a dict of values by name (got {type(parameters).__name__}).")
    if odd := [name for name in parameters if not isinstance(name, str)]:
        raise TypeError(f"The names of parameters must be str (got {odd[0]!r}).")
    plain = _plain(parameters, "parameters")
    struct = Struct()
    struct.update(_rounded(plain))
    return pb.StartRequest(parameters=struct, parameters_json=json.dumps(plain, ensure_ascii=False))


def _plain(value: Any, path: str) -> Any:
    """Convert a value to the types that JSON has.

    Raises:
        TypeError: It contains a value that cannot be sent.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy, whose bool is not Python's
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        # Keys become strings, as papermill writes them.
        return {str(key): _plain(item, f"{path}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise TypeError(
        f"{path} is of type {type(value).__name__}. A parameter must be None, bool, int, float, str, or a "
        "list or dict of these. Send anything else as a str that the notebook parses."
    )


def _rounded(value: Any) -> Any:
    """Return a value as a Struct can represent it; integers that are too large become strings."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    is_large = isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER
    return str(value) if is_large else value
