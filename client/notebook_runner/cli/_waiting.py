"""Waits until a busy server accepts a run."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

import click

from notebook_runner._printable import one_line
from notebook_runner._states import state_name
from notebook_runner.errors import NotebookRunnerError, QuotaExceeded, RpcFailed, RunnerBusy

from ._terminal import terminal_of
from ._text import about, age

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.status import Status

    from ._calls import CommandClient

__all__ = ["Waiting"]

# Seconds between two attempts.
SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 5.0


class Waiting:
    """Pauses between attempts to start a run, and shows on standard error what the run waits for.

    Args:
        client: The client.
        quiet: Whether to show nothing.
    """

    def __init__(self, client: CommandClient, *, quiet: bool) -> None:
        self._client = client
        self._quiet = quiet
        self._began = time.monotonic()
        self._status: Status | None = None
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def pause(self, error: RpcFailed) -> None:
        """Show what occupies the server or the caller's share, and return when it may be asked again."""
        if not self._quiet:
            self._show(self._reason(error))
        time.sleep(min(max(error.retry_after or 0.0, SHORTEST_PAUSE), LONGEST_PAUSE))

    def _reason(self, error: RpcFailed) -> str:
        if isinstance(error, QuotaExceeded):
            size = "" if error.limit is None else f" ({error.limit})"
            return f"waiting: your share of the queue{size} is full"
        reason = "the server is busy"
        with contextlib.suppress(NotebookRunnerError):
            if isinstance(error, RunnerBusy) and error.run_id:
                run = self._client.find_run(error.run_id)
                reason = f"run {run.run_id} ({about(run)}) is {state_name(run.state)}"
            info = self._client.info()
            taken = f"{info.runs_queued} of {info.queue_size} places in the queue are taken"
            reason += f", {taken if info.queue_size else 'the server has no queue'}"
        return one_line(f"waiting: {reason}")

    def _show(self, reason: str) -> None:
        if not sys.stderr.isatty():
            if reason != self._said:
                click.echo(reason, err=True)
            self._said = reason
            return
        if self._status is None:
            # rich takes longer to import than everything else here together.
            from rich.console import Console  # noqa: PLC0415 - see above
            from rich.status import Status  # noqa: PLC0415 - see above

            console = Console(file=terminal_of(sys.stderr), highlight=False)
            self._status = Status("", console=console)
            self._status.start()
        from rich.text import Text  # noqa: PLC0415 - see above

        self._status.update(Text(f"{reason} … {age(time.monotonic() - self._began)}"))
