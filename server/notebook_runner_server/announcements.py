"""What the server says to a person who starts it on a terminal: that it is ready, and what it waits for."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from notebook_runner_server.config import Settings
from notebook_runner_server.logs import ANNOUNCEMENTS

DEFAULT_PORT = 50051
"""The port that the command uses without --target."""

MAX_IDS = 3
"""Maximum number of runs to name."""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - to be replaced

_log = logging.getLogger(ANNOUNCEMENTS)


def ready(settings: Settings, port: int, http_port: int) -> None:
    """Say that the server is ready, and what to try.

    Args:
        settings: The settings.
        port: The port that the server listens on.
        http_port: The port of the HTTP API; 0: none.
    """
    if http_port:
        scheme, path = "https" if settings.tls_cert else "http", "" if settings.http_page == "on" else "docs"
        http_host = settings.http_listen.rpartition(":")[0]
        _log.info(
            "In a browser: %s://%s:%s/%s", scheme, _EVERYWHERE.get(http_host, http_host), http_port, path
        )
    host = settings.listen.rpartition(":")[0]
    _log.info("Ready on %s:%s. Try: %s", host, port, _command(settings, _EVERYWHERE.get(host, host), port))


def stopping(settings: Settings, runs: Sequence[str], *, waits: bool) -> None:
    """Say that the server stops, and which runs it waits for.

    Args:
        settings: The settings.
        runs: The ids of the runs that are being executed.
        waits: Whether the server waits for them; otherwise they continue without it.
    """
    if not runs:
        _log.info("Stopping.")
        return
    if waits:
        _log.info(
            "Stopping: waiting up to %g s for %s to end. Press Ctrl-C again to end %s now.",
            settings.drain_timeout,
            _named(runs),
            "it" if len(runs) == 1 else "them",
        )
    else:
        _log.info("Stopping. On the cluster, this continues: %s.", _named(runs))


def hurrying(runs: Sequence[str]) -> None:
    """Say that the server ends the runs that it waited for.

    Args:
        runs: The ids of the runs that are being executed.
    """
    if runs:
        _log.info("Ending %s.", _named(runs))


def stopped() -> None:
    """Say that the server has stopped."""
    _log.info("Stopped.")


def _named(runs: Sequence[str]) -> str:
    named = ", ".join(runs[:MAX_IDS]) + (f" and {len(runs) - MAX_IDS} more" if len(runs) > MAX_IDS else "")
    return f"run {named}" if len(runs) == 1 else f"{len(runs)} runs ({named})"


def _command(settings: Settings, host: str, port: int) -> str:
    """Return a command that starts a run on this server."""
    # The same folder of commands that the server was started from.
    program = Path(sys.argv[0])
    is_named = program.name == "notebook-runner-server"
    words = [sys.argv[0].removesuffix("-server") if is_named else "notebook-runner"]
    if (host, port) not in {("127.0.0.1", DEFAULT_PORT), ("localhost", DEFAULT_PORT)}:
        words += ["--target", f"{host}:{port}"]
    if settings.tls_cert:
        words += ["--tls-ca", "CA.pem"]
    if settings.tls_client_ca:
        words += ["--tls-cert", "CERT.pem", "--tls-key", "KEY.pem"]
    if settings.tokens_file:
        words += ["--token-file", "TOKEN"]
    return shlex.join([*words, "run", *([] if settings.default_notebook else ["NOTEBOOK.ipynb"])])
