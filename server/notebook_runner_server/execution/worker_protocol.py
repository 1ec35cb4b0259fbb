"""The protocol between a server and its workers: messages, their encoding, and the functions of a worker.

A worker process has one connection, a socket pair, on which each message is a frame: its length as a signed
32-bit number, as `multiprocessing.connection.Connection` sends it, and its encoding. The server sends `Job`,
`Stop` and `Deadline`, so that no command can overtake its job; the worker sends lists of events, `WorkerLog`
and `KernelsReady`. On a cluster `Job` and `Stop`, encoded in the same way, go over Dask connections
(`cluster.messages`).

What a worker needs (nbclient, ZeroMQ) is imported in the worker only: the server has no use for it. A process
imports it as soon as it exists, because that takes most of its start, and becomes a worker with `hello`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from notebook_runner_server.confinement import confine
from notebook_runner_server.execution.interface import Cause
from notebook_runner_server.execution.options import WorkerOptions
from notebook_runner_server.execution.own_peak import own_peak

if TYPE_CHECKING:
    from types import ModuleType

_HEADER = struct.Struct("!i")


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's process id, and its kernelspecs with their languages."""

    pid: int
    kernels: dict[str, str]


@dataclass(frozen=True, slots=True)
class WorkerLog:
    """An event for the server's log; `level` is logging's."""

    level: int
    event: str
    fields: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class KernelsReady:
    """How many warm kernels a worker has ready, by kernelspec; sent whenever that changes."""

    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Stop:
    """Ends a run. `grace_period` in seconds; zero: now."""

    run_id: str
    cause: Cause
    grace_period: float


@dataclass(frozen=True, slots=True)
class Deadline:
    """Ends a run at a moment of this machine's monotonic clock, unless another one comes before."""

    run_id: str
    moment: float


def encode(message: object) -> bytes:
    """Return a message as it is sent."""
    return pickle.dumps(message)


def decode(data: bytes | bytearray) -> Any:
    """Return the message that `encode` was given."""
    # Sent by this package: a notebook's processes have no descriptor of a worker's connection, and whoever
    # may connect to a Dask cluster may execute code on it, which is what it is for.
    return pickle.loads(data)  # noqa: S301 - see the comment


def frame(message: object) -> tuple[bytes, bytes]:
    """Return a message's header and encoding, without joining them: a job may be large."""
    encoded = encode(message)
    return _HEADER.pack(len(encoded)), encoded


def take_frames(buffer: bytearray) -> Iterator[bytearray]:
    """Yield the encoded messages that a buffer has whole, then remove them from it."""
    start = 0
    while len(buffer) - start >= _HEADER.size:
        (length,) = _HEADER.unpack_from(buffer, start)
        end = start + _HEADER.size + length
        if len(buffer) < end:
            break
        yield buffer[start + _HEADER.size : end]
        start = end
    del buffer[:start]


def initialize(connection: Connection, kernel_environment: Iterable[str], *, hide: bool) -> None:
    """Import what a worker needs; the process pool's initializer.

    Args:
        connection: The connection to the server.
        kernel_environment: Names of variables to pass to kernels in addition to the usual ones.
        hide: Make this process non-dumpable, so that other processes cannot inspect it.
    """
    own_peak.prepare()
    if hide:
        confine.set_dumpable(False)
    from nbformat.v4 import new_output  # noqa: PLC0415 - see the module's docstring

    # nbformat compiles its schemas, which frees 10 MB that the other imports can use.
    new_output("stream")
    _worker().initialize(connection, kernel_environment)


def hello(options: WorkerOptions) -> WorkerInfo:
    """Make this process a worker, and return what it is."""
    info: WorkerInfo = _worker().hello(options)
    return info


def settle() -> None:
    """Do what would delay the first job."""
    _worker().settle()


def execute() -> None:
    """Execute the next job of the connection; its events go over the connection."""
    _worker().execute()


def _worker() -> ModuleType:
    from notebook_runner_server.execution import worker  # noqa: PLC0415 - see the module's docstring

    return worker
