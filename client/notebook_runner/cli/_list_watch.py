"""The newest runs, kept up to date: a table on a terminal, lines or JSON elsewhere."""

from __future__ import annotations

import itertools
import sys
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Protocol

import click

from notebook_runner._printable import one_line
from notebook_runner._states import state_name
from notebook_runner.v1 import notebook_runner_pb2 as pb

from ._calls import MAX_PAGE
from ._details import table
from ._terminal import terminal_of
from ._text import about, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from rich.console import Console
    from rich.text import Text

    from ._calls import CommandClient

__all__ = ["watch_runs"]

REFRESHES_PER_SECOND = 1


def watch_runs(
    client: CommandClient,
    labels: Mapping[str, str],
    is_wanted: Callable[[pb.Run], bool],
    limit: int,
    *,
    as_json: bool,
) -> None:
    """Show the newest runs, and then each change of runs, without an end.

    Args:
        client: The client.
        labels: Labels that the runs have.
        is_wanted: Whether to show a run in its state.
        limit: Maximum number of runs to begin with.
        as_json: Show JSON.
    """
    view = _make_view(is_wanted, limit, as_json=as_json)
    with (
        view.shown(),
        closing(client.changes(labels=labels, on_lost=view.lost, on_back=view.back)) as changes,
    ):
        # The first message says from where on changes come, so that none is missed after the list.
        next(changes, None)
        found = filter(is_wanted, client.list_runs(labels=labels, page_size=min(limit, MAX_PAGE)))
        newest = list(itertools.islice(found, limit))
        for run in reversed(newest):
            view.change(pb.WatchResponse(run=run))
        listed = {run.run_id: run.state for run in newest}
        for message in changes:
            # The list may have what changed since the first message.
            is_listed = message.HasField("run") and message.run.state <= listed.get(message.run.run_id, 0)
            if not is_listed and not message.HasField("heartbeat"):
                view.change(message)


class _View(Protocol):
    """Shows runs."""

    def shown(self) -> AbstractContextManager[object]:
        """Return the context in which the view is shown."""

    def change(self, message: pb.WatchResponse) -> None:
        """Show a change."""

    def lost(self) -> None:
        """Show that the connection is lost, and that the client reconnects."""

    def back(self) -> None:
        """Show that the connection is back."""


def _make_view(is_wanted: Callable[[pb.Run], bool], limit: int, *, as_json: bool) -> _View:
    if as_json or not sys.stdout.isatty():
        return _LinesView(is_wanted, as_json=as_json)
    # rich takes longer to import than everything else here together.
    from rich.console import Console  # noqa: PLC0415 - see above

    console = Console(file=terminal_of(sys.stdout), highlight=False)
    if console.is_dumb_terminal:
        return _LinesView(is_wanted, as_json=False)
    return _TableView(console, is_wanted, limit)


class _LinesView:
    """Shows each change as a line.

    Args:
        is_wanted: Whether to show a run in its state.
        as_json: Show JSON.
    """

    def __init__(self, is_wanted: Callable[[pb.Run], bool], *, as_json: bool) -> None:
        self._is_wanted = is_wanted
        self._as_json = as_json

    def shown(self) -> AbstractContextManager[object]:
        """Return a context that does nothing."""
        return nullcontext()

    def change(self, message: pb.WatchResponse) -> None:
        """Print a change."""
        run = message.run
        if message.HasField("run") and not self._is_wanted(run):
            return
        if self._as_json:
            click.echo(to_json(message))
        elif message.HasField("run"):
            click.echo(one_line(f"run {run.run_id} {state_name(run.state)}: {about(run)}"))
        elif message.HasField("deleted_run_id"):
            click.echo(one_line(f"run {message.deleted_run_id} deleted"))

    def lost(self) -> None:
        """Print that the connection is lost."""
        click.echo("connection lost, reconnecting …", err=True)

    def back(self) -> None:
        """Print that the connection is back."""
        click.echo("connected again", err=True)


class _TableView:
    """Shows a table of the newest runs on a terminal.

    Args:
        console: The terminal.
        is_wanted: Whether to show a run in its state.
        limit: Maximum number of rows.
    """

    def __init__(self, console: Console, is_wanted: Callable[[pb.Run], bool], limit: int) -> None:
        self._console = console
        self._is_wanted = is_wanted
        self._limit = limit
        self._runs: list[pb.Run] = []
        self._is_lost = False

    def shown(self) -> AbstractContextManager[object]:
        """Return the context in which the table is on the terminal."""
        from rich.live import Live  # noqa: PLC0415 - see above

        return Live(
            console=self._console,
            get_renderable=self._rendered,
            refresh_per_second=REFRESHES_PER_SECOND,
        )

    def change(self, message: pb.WatchResponse) -> None:
        """Update the table."""
        changed = message.run.run_id or message.deleted_run_id
        others = [run for run in self._runs if run.run_id != changed]
        if message.HasField("run") and self._is_wanted(message.run):
            others.append(message.run)
        newest = sorted(others, key=lambda run: run.create_time.ToNanoseconds(), reverse=True)
        # A new list, because another thread draws it.
        self._runs = newest[: self._limit]

    def lost(self) -> None:
        """Say below the table that the connection is lost."""
        self._is_lost = True

    def back(self) -> None:
        """Remove that again."""
        self._is_lost = False

    def _rendered(self) -> Text:
        from rich.text import Text  # noqa: PLC0415 - see above

        lines = list(table(self._runs))
        if self._is_lost:
            lines.append("connection lost, reconnecting …")
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
