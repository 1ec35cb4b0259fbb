"""The description of a server, as typed attributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from ._values import utc
from .v1 import notebook_runner_pb2 as contract

__all__ = ["Kernel", "ServerInfo", "Share", "WebhookReceiver", "info_of"]


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
class Share:
    """The share of a server that one owner has, and what it uses of it.

    A maximum that is None is not set: only the server's own limits apply.

    Attributes:
        max_active: Maximum number of concurrent runs; further ones wait.
        max_queued: Maximum number of queued runs; further ones are refused (`QuotaExceeded`).
        max_history_bytes: Maximum size of all ended runs; as long as it is reached, runs are refused.
        active: Number of runs that are being executed.
        queued: Number of queued runs.
        history_bytes: The size of all ended runs; zero without a maximum, because it is not measured then.
    """

    max_active: int | None
    max_queued: int | None
    max_history_bytes: int | None
    active: int
    queued: int
    history_bytes: int


@dataclass(frozen=True)
class WebhookReceiver:
    """A receiver of webhooks, and what it still has to get.

    Attributes:
        name: Its name; `notify:` and a host for the URIs that runs notify on that host.
        backlog: About how many webhooks are not delivered yet.
        oldest: When the run of the oldest of them started or ended; None if there is none.
    """

    name: str
    backlog: int
    oldest: datetime | None


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
        caller: One's own name, which is the owner of one's runs; empty if the server asks for no credentials.
        scopes: One's own scopes, such as `run` and `read`.
        share: One's own share of the server; None if the server knows no shares.
        webhooks: The receivers of webhooks; none if the caller may not see the runs of all owners.
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
    caller: str
    scopes: tuple[str, ...]
    share: Share | None
    webhooks: tuple[WebhookReceiver, ...]
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
        message.caller,
        tuple(message.scopes),
        _share(message.share) if message.HasField("share") else None,
        tuple(_receiver(one) for one in message.webhooks),
        message,
    )


def _receiver(message: contract.WebhookReceiver) -> WebhookReceiver:
    oldest = utc(message.oldest_time) if message.HasField("oldest_time") else None
    return WebhookReceiver(message.name, message.backlog, oldest)


def _share(message: contract.Share) -> Share:
    return Share(
        message.max_active if message.HasField("max_active") else None,
        message.max_queued if message.HasField("max_queued") else None,
        message.max_history_bytes if message.HasField("max_history_bytes") else None,
        message.active,
        message.queued,
        message.history_bytes,
    )
