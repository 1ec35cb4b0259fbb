"""Puts the server together, starts it, and stops it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from notebook_runner_server import logs
from notebook_runner_server.api.certificates import Certificates
from notebook_runner_server.api.server import ApiServer
from notebook_runner_server.api.server import CallerLimits as CallerBounds
from notebook_runner_server.api.servicer import Servicer
from notebook_runner_server.api.tokens import Tokens
from notebook_runner_server.config import Settings
from notebook_runner_server.config.resources import connection_limit, create_backend
from notebook_runner_server.execution import kernel_names
from notebook_runner_server.execution import notebook as notebooks
from notebook_runner_server.execution.confinement import confine
from notebook_runner_server.execution.confinement.environment import allowed
from notebook_runner_server.execution.run_in_subprocess import run_in_subprocess
from notebook_runner_server.execution.runtime_dir import RuntimeDir
from notebook_runner_server.execution.worker_process import kill_orphans
from notebook_runner_server.export.service import ExportService
from notebook_runner_server.observability.telemetry import Telemetry
from notebook_runner_server.runs.admission import LARGE_NOTEBOOK, Admission, Defaults
from notebook_runner_server.runs.errors import (
    InvalidFieldError,
    InvalidNotebookError,
    UnknownParameterError,
)
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.outputs import Outputs
from notebook_runner_server.runs.sources import NotebookRoot
from notebook_runner_server.runs.store import Store
from notebook_runner_server.transfer.service import TransferService

STREAM_GRACE = 5.0
"""Seconds that open calls get to end, when all runs have."""

WATCH_SECONDS = 1.0
"""Seconds between two checks of whether runs can start."""

_SMALLEST = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'

_log = structlog.get_logger(__name__)


class App:
    """One server.

    Args:
        settings: What the operator decided.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        store = Store(settings.state_folder, settings.max_artefact_bytes)
        root = NotebookRoot(
            Path(settings.notebook_root) if settings.notebook_root else None, settings.max_notebook_bytes
        )
        defaults = Defaults(
            notebook=settings.default_notebook,
            kernel_name=settings.default_kernel,
            limits=settings.limits,
            ceilings=settings.ceilings,
            retention=settings.retention,
        )
        self._export_dir = RuntimeDir(settings.export_folder)
        transfer = TransferService(settings.uris, settings.max_notebook_bytes, settings.uri_timeout)
        admission = Admission(
            root, settings.max_notebook_bytes, defaults, prepare, transfer, kernel_names.resolve
        )
        backend = create_backend(settings)
        self._observation = Telemetry(settings)
        self._backend, self._store = backend, store
        self._runner = RunManager(
            store,
            backend,
            admission,
            settings.queue,
            settings.history_limits,
            transfer,
            self._observation.observers,
        )
        outputs = Outputs(
            store,
            ExportService(
                settings.formats,
                settings.export_timeout,
                kill_orphans,
                self._export_dir.subfolder,
                # A converter needs no secret of the server's.
                allowed(os.environ, settings.sandbox_options.kernel_environment),
            ),
            settings.page_bytes,
            settings.max_page_bytes,
            settings.max_files_bytes,
        )
        self._loading: asyncio.Future[notebooks.PreparedNotebook] | None = None
        self._watching: asyncio.Task[None] | None = None
        servicer = Servicer(self._runner, outputs, settings.max_streams, settings.heartbeat_interval)
        self._tokens = Tokens(Path(settings.tokens_file)) if settings.tokens_file else None
        tls_files = settings.tls_files
        self._api = ApiServer(
            servicer,
            CallerBounds(settings.max_notebook_bytes, connection_limit(settings.max_connections)),
            self._tokens,
            None if tls_files is None else Certificates(tls_files),
            self._observation.call_observers,
            with_reflection=settings.reflection == "on",
            with_channelz=settings.channelz,
        )

    async def startup(self) -> None:
        """Recover, get ready, and serve."""
        # First, so that an address that cannot be had is told before any run goes on.
        port = self._api.bind(self._settings.listen)
        self._observation.bind()
        await self._runner.open(self._export_dir.open)
        self._observation.watch(self._backend, self._store)
        await self._api.start()
        await self._api.report_serving()
        # What the first Start would load is loaded before it comes.
        self._loading = asyncio.ensure_future(asyncio.to_thread(prepare, _SMALLEST, {}, "", {}))
        host = self._settings.listen.rpartition(":")[0]
        self._tell_access()
        self._watching = asyncio.create_task(self._watch())
        _log.info("server_started", address=f"{host}:{port}", state_dir=str(self._settings.state_folder))

    def _tell_access(self) -> None:
        _log.info(
            "access_configured",
            tls=bool(self._settings.tls_cert),
            mtls=bool(self._settings.tls_client_ca),
            tokens=[] if self._tokens is None else self._tokens.names,
            reflection=self._settings.reflection == "on",
            channelz=self._settings.channelz,
        )

    async def _watch(self) -> None:
        """Report to health checks when runs cannot start, and when they can again."""
        problem = ""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self._store.look_for_room()
                before, problem = problem, self._backend.problem or self._store.problem
                if problem and not before:
                    _log.error("runs_cannot_start", why=problem)
                    await self._api.report_runs_start(False)
                elif before and not problem:
                    _log.info("runs_can_start")
                    await self._api.report_runs_start(True)
            except Exception:  # noqa: BLE001 - whatever it is, health is told again
                _log.exception("health_check_failed")

    async def main_loop(self, stop: asyncio.Event) -> None:
        """Serve until it is asked to stop."""
        await stop.wait()

    async def shutdown(self, hurry: asyncio.Event) -> None:
        """Take no more, let runs finish for a while, end the rest, and leave nothing behind."""
        if self._loading is not None:
            await self._loading
        if self._watching is not None:
            self._watching.cancel()
        _log.info("server_stopping", drain_timeout=self._settings.drain_timeout)
        await self._api.report_draining()
        await self._runner.drain(hurry, self._settings.drain_timeout)
        await self._api.stop(STREAM_GRACE)
        await asyncio.to_thread(self._export_dir.close)
        await self._runner.close()
        await self._observation.close()
        _log.info("server_stopped")


def prepare(
    content: bytes,
    parameters: Mapping[str, Any],
    kernel_name: str,
    kernels: Mapping[str, str],
    *,
    is_ordered: bool = False,
) -> notebooks.PreparedNotebook:
    """Read a notebook, check it and inject parameters; what is wrong with it is the caller's to know.

    A small one is read here, a large one in a process of its own; blocks.

    Raises:
        InvalidNotebookError: It is none that can be executed.
        UnknownParameterError: It lacks a parameter that was given.
        InvalidFieldError: A parameter's name is none in the notebook's language.
    """
    arguments = (content, parameters, kernel_name, kernels)
    try:
        if len(content) > LARGE_NOTEBOOK:
            return run_in_subprocess(notebooks.prepare, *arguments, is_ordered=is_ordered)
        return notebooks.prepare(*arguments, is_ordered=is_ordered)
    except notebooks.NotebookError as error:
        raise InvalidNotebookError(str(error)) from error
    except notebooks.UndeclaredParameterError as error:
        unknown, known = ", ".join(error.unknown), ", ".join(error.known)
        message = f"The notebook has no parameter {unknown}; its parameters are: {known or 'none'}."
        names = {"unknown": ",".join(error.unknown), "known": ",".join(error.known)}
        raise UnknownParameterError(message, field="parameters", **names) from error
    except notebooks.ParameterNameError as error:
        raise InvalidFieldError(f"parameters: {error}", field="parameters") from error


async def serve(settings: Settings) -> None:
    """Run a server until SIGTERM or SIGINT; a second signal hurries it."""
    if settings.sandbox_options.is_on:
        confine.set_dumpable(False)
    logs.configure(settings.log_format, settings.log_level)
    stop, hurry = asyncio.Event(), asyncio.Event()

    def asked() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
    app = App(settings)
    try:
        await app.startup()
        await app.main_loop(stop)
    finally:
        await app.shutdown(hurry)
