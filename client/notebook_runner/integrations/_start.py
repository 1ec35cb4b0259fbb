"""Starts the run of a notebook that another program has, with the options that the program passes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from notebook_runner._waiting import is_temporary
from notebook_runner.errors import QuotaExceeded, RunnerBusy

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from notebook_runner import Client, Run
    from notebook_runner._requests import Notebook

__all__ = ["split_options", "start_when_free"]

_CONNECTION = ("target", "token", "token_file", "tls_ca", "tls_cert", "tls_key")
# If a busy server does not say when to try again.
_RETRY_SECONDS = 1.0


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that say where the server is, for `Client`, and the others, for its `start`."""
    connection = {name: value for name, value in options.items() if name in _CONNECTION}
    return connection, {name: value for name, value in options.items() if name not in _CONNECTION}


def start_when_free(
    client: Client, notebook: Notebook, options: Mapping[str, Any], stopped: threading.Event
) -> Run:
    """Start a run as soon as the server accepts it.

    Args:
        client: The client.
        notebook: The notebook.
        options: Options of `Client.start`.
        stopped: Set by another thread to wait no longer.

    Raises:
        RunnerBusy: All workers are busy and the queue is full, and `stopped` is set.
        QuotaExceeded: The same for the caller's own share of the queue; or the history is full.

    Errors are otherwise those of `Client.start`.
    """
    while True:
        try:
            return client.start(notebook, **options)
        except (RunnerBusy, QuotaExceeded) as error:
            if not is_temporary(error) or stopped.wait(error.retry_after or _RETRY_SECONDS):
                raise
