"""The description of a server, as typed attributes."""

from __future__ import annotations

from dataclasses import dataclass, field

from .v1 import notebook_runner_pb2 as contract

__all__ = ["Kernel", "ServerInfo", "info_of"]


@dataclass(frozen=True)
class Kernel:
    """A kernelspec of a server.

    Attributes:
        name: The name that the option `kernel_name` takes.
        language: The language, such as `python`.
        is_default: Whether it is used for notebooks that name no kernel.
        warm_ready: Number of warm kernels that are ready, over all workers.
        warm_wanted: Number of warm kernels to keep ready, over all workers.
    """

    name: str
    language: str
    is_default: bool
    warm_ready: int
    warm_wanted: int


@dataclass(frozen=True)
class ServerInfo:
    """A server, its capabilities and its load.

    Attributes:
        version: The version of the server, such as `1.2.0`.
        kernels: The available kernelspecs, sorted by name.
        workers: Maximum number of concurrent runs.
        runs_active: Number of runs that are being executed.
        runs_queued: Number of queued runs.
        queue_size: Maximum number of queued runs.
        formats: The available formats of an output, such as `notebook` and `html`.
        uri_schemes: The allowed schemes of URIs. Empty: URIs are not allowed.
        default_notebook: The notebook that `start` runs if it names none; empty if there is none.
        has_notebook_root: Whether runs can name a notebook by `server_path`.
        problem: Why no run can start now, as a sentence; empty if runs can start.
        pb: The message of the contract, `notebook_runner.v1.notebook_runner_pb2.InfoResponse`.
    """

    version: str
    kernels: tuple[Kernel, ...]
    workers: int
    runs_active: int
    runs_queued: int
    queue_size: int
    formats: tuple[str, ...]
    uri_schemes: tuple[str, ...]
    default_notebook: str
    has_notebook_root: bool
    problem: str
    pb: contract.InfoResponse = field(repr=False, compare=False)


def info_of(message: contract.InfoResponse) -> ServerInfo:
    """Return the description in a message."""
    return ServerInfo(
        message.version,
        tuple(
            Kernel(one.name, one.language, one.is_default, one.warm_ready, one.warm_wanted)
            for one in message.kernels
        ),
        message.workers,
        message.runs_active,
        message.runs_queued,
        message.queue_size,
        tuple(message.formats),
        tuple(message.uri_schemes),
        message.default_notebook,
        message.has_notebook_root,
        message.problem,
        message,
    )
