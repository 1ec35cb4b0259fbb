"""Creates the backend that executes runs: worker processes on this machine, or a Dask cluster."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from notebook_runner_server.execution.interface import Backend
from notebook_runner_server.execution.pool import ProcessPoolBackend

if TYPE_CHECKING:
    from notebook_runner_server.config import Settings

PROCESS = "process"
_CLUSTER = re.compile(r"dask(\+tls)?://[^\s/]+:\d+")


def check(executor: str) -> None:
    """Refuse an invalid value of --executor.

    Raises:
        ValueError: The value is invalid.
    """
    if executor != PROCESS and not _CLUSTER.fullmatch(executor):
        raise ValueError(
            f"--executor must be process, dask://HOST:PORT or dask+tls://HOST:PORT (got {executor!r})."
        )


def backend(settings: Settings) -> Backend:
    """Return the backend that the settings ask for; it is not started yet.

    Raises:
        ValueError: The settings ask for Dask, which is not installed.
    """
    if settings.executor == PROCESS:
        return ProcessPoolBackend(
            settings.workers,
            settings.state_folder / "scratch",
            limit_address_space=settings.limit_address_space,
            interrupt_grace=settings.interrupt_grace,
            warm=settings.warm,
            sandbox=settings.sandbox_options,
            has_user=True,
        )
    return _cluster(settings)


def _cluster(settings: Settings) -> Backend:
    try:
        # Dask is loaded by those who use it.
        from notebook_runner_server.execution.cluster import backend, messages  # noqa: PLC0415 - as said
    except ImportError as error:
        raise ValueError(
            f"--executor {settings.executor} needs Dask ({error}). "
            "Install it with: pip install 'notebook-runner[server,dask]'"
        ) from error
    sandbox = settings.sandbox_options
    options = messages.HostOptions(
        timeout=settings.worker_timeout,
        warm=settings.warm,
        # Where workers share it, the history is hidden there as well.
        sandbox=dataclasses.replace(sandbox, hidden=(*sandbox.hidden, settings.state_folder)),
        limit_address_space=settings.limit_address_space,
        interrupt_grace=settings.interrupt_grace,
        max_files_bytes=settings.max_files_bytes,
    )
    return backend.ClusterBackend(settings.executor, options, settings.cluster_runs)
