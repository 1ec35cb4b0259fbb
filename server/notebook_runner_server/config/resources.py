"""Creates the backend that `--executor` names, and raises the limit of file descriptors."""

from __future__ import annotations

import dataclasses
import resource

import structlog

from notebook_runner_server.config.settings import PROCESS, Settings
from notebook_runner_server.execution.interface import Backend
from notebook_runner_server.execution.pool import ProcessPoolBackend

RESERVED_DESCRIPTORS = 512
"""File descriptors for everything except connections: state, workers, runs, artefacts."""

_log = structlog.get_logger(__name__)


def create_backend(settings: Settings) -> Backend:
    """Create the backend that the settings ask for; it is not started yet, but its processes load already.

    Raises:
        ValueError: The settings ask for Dask, which is not installed.
        OSError: A process cannot be created.
    """
    if settings.executor == PROCESS:
        pool = ProcessPoolBackend(
            settings.workers,
            settings.state_folder / "scratch",
            limit_address_space=settings.limit_address_space,
            interrupt_grace=settings.interrupt_grace,
            warm=settings.warm,
            sandbox=settings.sandbox_options,
            has_user=True,
        )
        pool.spawn()
        return pool
    return _cluster(settings)


def _cluster(settings: Settings) -> Backend:
    try:
        from notebook_runner_server.execution.cluster import backend, messages  # noqa: PLC0415 - Dask is an extra
    except ImportError as error:
        raise ValueError(
            f"--executor {settings.executor} needs Dask ({error}). "
            "Install it with: pip install 'notebook-runner[server,dask]'"
        ) from error
    sandbox = settings.sandbox_options
    options = messages.HostOptions(
        timeout=settings.worker_timeout,
        warm=settings.warm,
        # Workers may share the state folder, so notebooks must not see it there either.
        sandbox=dataclasses.replace(sandbox, hidden=(*sandbox.hidden, settings.state_folder)),
        limit_address_space=settings.limit_address_space,
        interrupt_grace=settings.interrupt_grace,
        max_files_bytes=settings.max_files_bytes,
    )
    return backend.ClusterBackend(settings.executor, options, settings.cluster_runs)


def connection_limit(wanted: int) -> int:
    """Raise the soft limit of file descriptors for connections, as far as the hard limit allows.

    The soft limit is not raised further than needed, because workers and kernels inherit it.

    Args:
        wanted: The number of connections to allow.

    Returns:
        The number of connections that can be allowed. If the hard limit is too low for `wanted`, at least
        half of the descriptors stay for runs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft >= needed:
        return wanted
    allowed = max(soft - RESERVED_DESCRIPTORS, soft // 2)
    _log.warning("max_connections_reduced", allowed=allowed, wanted=wanted, descriptors=soft)
    return allowed
