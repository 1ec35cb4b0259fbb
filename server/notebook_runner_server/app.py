"""Assemble, start and stop the server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from notebook_runner_server import announcements, memory
from notebook_runner_server.api.auth_interceptor import AuthInterceptor
from notebook_runner_server.api.certificates import Certificates
from notebook_runner_server.api.limits import CallerLimits
from notebook_runner_server.api.server import ApiServer
from notebook_runner_server.api.servicer import Servicer
from notebook_runner_server.api.shares_file import shares_file
from notebook_runner_server.api.tokens import Tokens
from notebook_runner_server.audit import AccessChange, AuditLog
from notebook_runner_server.config import Settings
from notebook_runner_server.confinement.environment import allowed
from notebook_runner_server.errors import NotReadyError, RunnerError, StorageFullError
from notebook_runner_server.execution import notebook as notebooks
from notebook_runner_server.execution import options
from notebook_runner_server.execution.interface import Backend
from notebook_runner_server.execution.runtime_dir import RuntimeDir
from notebook_runner_server.execution.segments import PreparedNotebook
from notebook_runner_server.execution.worker_process import kill_orphans
from notebook_runner_server.export.service import ExportService
from notebook_runner_server.observability.telemetry import Telemetry
from notebook_runner_server.run_in_subprocess import run_in_subprocess
from notebook_runner_server.runs.admission import LARGE_NOTEBOOK, Admission, Defaults
from notebook_runner_server.runs.database import OpeningStoppedError
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.model import Run
from notebook_runner_server.runs.outputs import Outputs
from notebook_runner_server.runs.shares import ShareRules
from notebook_runner_server.runs.sources import NotebookRoot
from notebook_runner_server.runs.state_folder import startup_error
from notebook_runner_server.runs.store import RemoteHistory, Store
from notebook_runner_server.transfer.archives import UriArchives
from notebook_runner_server.transfer.service import TransferService
from notebook_runner_server.webhooks import notifications
from notebook_runner_server.webhooks.receivers_file import receivers_file
from notebook_runner_server.webhooks.service import WebhookService

if TYPE_CHECKING:
    from notebook_runner_server.api.oidc import JwtVerifier
    from notebook_runner_server.http_api.listener import HttpListener

STREAM_GRACE = 5.0
"""Seconds that open calls get to end, after all runs have ended."""

WATCH_SECONDS = 1.0
"""Seconds between two checks of whether runs can start."""

_log = structlog.get_logger(__name__)


class App:
    """One server.

    Args:
        settings: The operator's settings.
        backend: What executes runs.
        connections: Maximum number of open connections.

    Attributes:
        stopping: Set it to stop `startup`, where that waits for others.
    """

    def __init__(self, settings: Settings, backend: Backend, connections: int) -> None:
        self._settings = settings
        self._audit = audit = AuditLog(settings.audit_log)
        self.stopping = threading.Event()
        remote = _remote_history(settings, self.stopping)
        store = Store(settings.state_folder, settings.max_artefact_bytes, remote)
        root = NotebookRoot(
            Path(settings.notebook_root) if settings.notebook_root else None, settings.max_notebook_bytes
        )
        defaults = Defaults(
            notebook=settings.default_notebook,
            kernel_name=settings.default_kernel,
            limits=settings.limits,
            ceilings=settings.ceilings,
            retention=settings.retention,
            input_files_bytes=settings.max_input_files_bytes,
            display_data_bytes=settings.display_data_max_bytes,
        )
        self._export_dir = RuntimeDir(settings.export_folder)
        transfer = TransferService(settings.uris, settings.max_notebook_bytes, settings.uri_timeout)
        admission = Admission(
            *(root, settings.max_notebook_bytes, defaults, prepare, transfer, options.resolve_kernel_name),
            notify=partial(notifications.check, hosts) if (hosts := settings.notified_hosts) else None,
        )
        self._telemetry = Telemetry(settings)
        self._backend, self._store = backend, store
        self._manager = RunManager(
            store,
            backend,
            admission,
            settings.queue,
            settings.history_limits,
            transfer,
            self._telemetry.observers,
            _share_rules(settings),
        )
        outputs = Outputs(
            store,
            ExportService(
                settings.formats,
                settings.export_timeout,
                kill_orphans,
                self._export_dir.subfolder,
                # Converters must not get the server's secrets.
                allowed(os.environ, settings.sandbox_options.kernel_environment),
            ),
            settings.page_bytes,
            settings.max_page_bytes,
            settings.max_files_bytes,
        )
        self._webhooks = _webhook_service(settings, store)
        self._settling: asyncio.Future[None] | None = None
        self._health_task: asyncio.Task[None] | None = None
        servicer = Servicer(
            *(self._manager, outputs, settings.max_streams, settings.heartbeat_interval),
            webhooks=lambda: self._webhooks.status,
        )
        on_change = audit.access_changed
        self._tokens = (
            Tokens(Path(settings.tokens_file), partial(on_change, "tokens_changed"))
            if settings.tokens_file
            else None
        )
        self._jwts = _jwt_verifier(settings, partial(on_change, "scopes_changed"))
        tls_files = settings.tls_files
        limits = CallerLimits(settings.max_notebook_bytes, settings.max_input_files_bytes, connections)
        self._http_dir = RuntimeDir(settings.http_folder)
        self._http = _http_listener(settings, limits)
        self._api = ApiServer(
            servicer,
            limits,
            AuthInterceptor(self._tokens, self._jwts, are_certified=bool(settings.tls_client_ca)),
            None
            if tls_files is None
            else Certificates(tls_files, partial(on_change, "certificates_changed")),
            self._telemetry.call_observers,
            audit,
            with_reflection=settings.reflection == "on",
            with_channelz=settings.channelz,
        )

    @property
    def executing(self) -> Sequence[str]:
        """The ids of the runs that are being executed."""
        return self._manager.executing

    async def startup(self) -> None:
        """Recover runs, start the backend, and serve."""
        # Bound first, so that an unusable address is reported before any run continues.
        port = self._api.bind(self._settings.listen)
        http_port = 0 if self._http is None else self._http.bind()
        self._telemetry.bind()
        try:
            await self._manager.open(self._open_dirs, self._record_recovery)
        except (sqlite3.Error, OSError) as error:
            if self._settings.store or getattr(error, "filename", None):
                raise
            raise startup_error(self._settings.state_folder, error) from error
        # A full disk must not keep the server from starting; `_watch` tries again.
        with contextlib.suppress(StorageFullError):
            await self._apply_webhooks()
        self._telemetry.watch(
            *(self._backend, self._store, lambda: self._manager.load),
            *(self._manager.refusals, self._audit, self._webhooks),
        )
        if self._jwts is not None:
            self._jwts.open()
        private_socket = self._private_socket()
        if private_socket is not None:
            self._api.bind_private(private_socket)
        await self._api.start()
        await self._api.report_serving()
        if self._http is not None and private_socket is not None:
            await self._http.start(private_socket)
            http_host = self._settings.http_listen.rpartition(":")[0]
            _log.info("http_started", address=f"{http_host}:{http_port}")
        self._settling = asyncio.ensure_future(asyncio.to_thread(memory.settle))
        host = self._settings.listen.rpartition(":")[0]
        self._log_access()
        self._health_task = asyncio.create_task(self._watch())
        _log.info("server_started", address=f"{host}:{port}", state_dir=str(self._settings.state_folder))
        announcements.ready(self._settings, port, http_port)

    def _record_recovery(self, run: Run) -> None:
        """Write the line of a run that this server found: the earlier one may have died before it did."""
        self._audit.write("recovered", run_id=run.run_id, owner=run.owner)

    def _open_dirs(self) -> None:
        self._export_dir.open()
        if self._http is not None:
            self._http_dir.open()

    def _private_socket(self) -> Path | None:
        return None if self._http is None else self._http_dir.folder / "grpc.sock"

    async def _stop_serving(self) -> None:
        # Together, because requests over HTTP end when their calls do.
        stopping = [self._api.stop(STREAM_GRACE)]
        if self._http is not None:
            stopping.append(self._http.stop(STREAM_GRACE + 1))
        await asyncio.gather(*stopping)

    def _log_access(self) -> None:
        _log.info(
            "access_configured",
            tls=bool(self._settings.tls_cert),
            mtls=bool(self._settings.tls_client_ca),
            tokens=[] if self._tokens is None else self._tokens.names,
            oidc_issuer=self._settings.oidc_issuer,
            reflection=self._settings.reflection == "on",
            channelz=self._settings.channelz,
        )

    async def _watch(self) -> None:
        """Report to health checks when runs cannot start, and when they can again; apply changed files."""
        problem = ""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                self._manager.apply_shares()
                await self._store.retry_writing()
                before, problem = problem, self._backend.problem or self._store.problem
                if problem and not before:
                    _log.error("runs_blocked", why=problem)
                    await self._api.report_runs_start(False)
                elif before and not problem:
                    _log.info("runs_unblocked")
                    await self._api.report_runs_start(True)
                if not self._store.problem:
                    await self._apply_webhooks()
            except RunnerError as error:
                _log.error("health_check_failed", why=error.message)
            except Exception:  # noqa: BLE001 - a failure must not end the health checks
                _log.exception("health_check_failed")

    async def _apply_webhooks(self) -> None:
        # Of the servers of a history, one sends them.
        if self._manager.is_first:
            # The loss of a database is logged where it was noticed.
            with contextlib.suppress(NotReadyError):
                await self._webhooks.apply()

    async def main_loop(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set."""
        await stop.wait()

    async def shutdown(self, hurry: asyncio.Event) -> None:
        """Accept no more runs, let active runs finish for a while, end the rest, and clean up."""
        if self._settling is not None:
            await self._settling
        if self._health_task is not None:
            self._health_task.cancel()
        runs = self.executing
        _log.info("server_stopping", drain_timeout=self._settings.drain_timeout, runs=list(runs))
        announcements.stopping(self._settings, runs, waits=not self._backend.survives_restart)
        await self._api.report_draining()
        await self._manager.drain(hurry, self._settings.drain_timeout)
        await self._stop_serving()
        if self._jwts is not None:
            self._jwts.close()
        await self._webhooks.close()
        await asyncio.to_thread(self._export_dir.close)
        await asyncio.to_thread(self._http_dir.close)
        await self._manager.close()
        await self._telemetry.close()
        self._audit.close()
        _log.info("server_stopped")
        announcements.stopped()


def _remote_history(settings: Settings, stopping: threading.Event) -> RemoteHistory | None:
    if not settings.store:
        return None
    from notebook_runner_server.runs.postgres.database import PostgresOptions  # noqa: PLC0415 - an extra
    from notebook_runner_server.runs.postgres.history import PostgresHistory  # noqa: PLC0415 - as above

    options = PostgresOptions(
        *(settings.store, settings.state_folder, settings.replica_timeout, settings.workers),
        *(settings.store_files_bytes, _end_immediately, settings.store_listen),
        stopping=stopping,
    )
    uri = settings.store_files_uri
    archives = UriArchives(uri, settings.uri_timeout) if uri else None
    return PostgresHistory(settings.state_folder, options, archives, settings.max_files_bytes)


def _end_immediately(reason: str) -> None:
    """End this process: another server may have taken over its runs.

    Each worker ends its run when its server is gone, also if the event loop hangs.
    """
    _log.critical("lease_lost", why=reason)
    os._exit(1)


def _share_rules(settings: Settings) -> Callable[[], ShareRules]:
    """Return what returns the newest rules of shares."""
    if not settings.shares_file:
        rules = ShareRules(settings.default_share)
        return lambda: rules
    return shares_file(Path(settings.shares_file), settings.default_share).recent


def _webhook_service(settings: Settings, store: Store) -> WebhookService:
    named = receivers_file(Path(settings.webhooks_file)).recent if settings.webhooks_file else tuple
    return WebhookService(store.deliveries, named, settings.notified_hosts)


def _http_listener(settings: Settings, limits: CallerLimits) -> HttpListener | None:
    if not settings.http_listen:
        return None
    from notebook_runner_server.http_api.listener import HttpListener  # noqa: PLC0415 - an extra

    host, port = settings.http_address
    # Without authentication, a web page could use a name of its own for this machine.
    any_host = settings.has_token_authentication or settings.insecure
    return HttpListener(
        host,
        port,
        limits,
        settings.tls_files,
        settings.cors_origins,
        any_host=any_host,
        with_page=settings.http_page == "on",
    )


def _jwt_verifier(
    settings: Settings, on_scopes_change: Callable[[AccessChange], object]
) -> JwtVerifier | None:
    options = settings.oidc_options
    if options is None:
        return None
    from notebook_runner_server.api.oidc import JwtVerifier  # noqa: PLC0415 - brings cryptography

    return JwtVerifier(options, on_scopes_change)


def prepare(
    content: bytes,
    parameters: Mapping[str, Any],
    kernel_name: str,
    kernels: Mapping[str, str],
    *,
    is_ordered: bool = False,
) -> PreparedNotebook:
    """Prepare a notebook with `execution.notebook.prepare`, a large one in a subprocess; blocks."""
    if len(content) > LARGE_NOTEBOOK:
        return run_in_subprocess(
            notebooks.prepare, content, parameters, kernel_name, kernels, is_ordered=is_ordered
        )
    return notebooks.prepare(content, parameters, kernel_name, kernels, is_ordered=is_ordered)


async def serve(settings: Settings, backend: Backend, connections: int) -> None:
    """Run a server until SIGTERM or SIGINT; a second signal ends all runs immediately.

    Args:
        settings: The operator's settings.
        backend: What executes runs.
        connections: Maximum number of open connections.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set() and not hurry.is_set():
            announcements.hurrying(app.executing)
        (hurry if stop.is_set() else stop).set()
        app.stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    app = App(settings, backend, connections)
    try:
        with contextlib.suppress(OpeningStoppedError):
            await app.startup()
            await app.main_loop(stop)
    finally:
        await app.shutdown(hurry)
