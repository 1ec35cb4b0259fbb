"""Shows runs in a notebook, live, while its cells continue to work."""

from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING, Any

from ._connection import DEFAULT_TIMEOUT
from ._output import Pages
from ._panel import Panel
from ._printable import size
from ._retry import RECONNECT_TIMEOUT, ProgressReader
from ._snapshot import RunSnapshot
from ._transport import Transport
from .errors import NotebookRunnerError
from .v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._connection import Connection

__all__ = ["Views"]

# Minimum time between two updates, in seconds.
SHORTEST_PAUSE = 0.25
# The elapsed time is updated without events as well, less often the longer the run takes: each update is a
# message that the notebook server may have to keep.
SHORTEST_TICK, LONGEST_TICK, TICK_SHARE = 1.0, 15.0, 0.05
# Maximum time that a cell waits for the server when it shows a run, in seconds.
LOOK_TIMEOUT = 10.0
MAX_RESULT_BYTES = 2 * 1024 * 1024

# A view shows these errors: IPython or a thread updates it, and no caller can catch them there.
_SHOWN_ERRORS = (NotebookRunnerError, OSError, ValueError)


class Views:
    """Shows the runs of one IPython shell: in a kernel as live views, elsewhere as lines of text.

    Args:
        shell: IPython's InteractiveShell.

    Attributes:
        in_cell: Whether a cell is being executed. A program that executes a notebook without a frontend
            receives only what is shown meanwhile.
    """

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self._connections: list[Connection] = []
        self._live: dict[str, _View] = {}
        self.in_cell = True
        self._unseen: list[_View] = []

    def register(self) -> None:
        """Register with the shell's events and formatters."""
        shell = self.shell
        shell.events.register("pre_run_cell", self._cell_begins)
        shell.events.register("post_run_cell", self._cell_ends)
        # A terminal cannot take back what it has shown.
        if shell.has_trait("kernel"):
            shell.display_formatter.ipython_display_formatter.for_type(RunSnapshot, self._show)

    def add(self, connection: Connection) -> None:
        """Try this connection first when looking for a run."""
        self._connections = [connection, *(other for other in self._connections if other != connection)]

    def shown(self, run_id: str) -> threading.Event | None:
        """Return the event that is set once the live view of a run has shown its end; None: no live view."""
        view = self._live.get(run_id)
        return view.over if view else None

    def _show(self, run: RunSnapshot) -> None:
        view = self._live.get(run.id)
        if view is not None:
            # Both outputs have the same display id, so they are updated together.
            view.publish(update=False)
            return
        view = _View(self.shell.display_pub, run.pb)
        view.look(self._connections)
        view.publish(update=False)
        if view.lives:
            self._live[run.id] = view
            view.start(self)

    def end(self, view: _View, *, heard: bool) -> None:
        """Remove a live view; show it again in the next cell unless its end was `heard`."""
        self._live.pop(view.run_id, None)
        if not heard:
            self._unseen.append(view)

    def _cell_begins(self, _: object) -> None:
        self.in_cell = True
        while self._unseen:
            self._unseen.pop().publish(update=True)

    def _cell_ends(self, _: object) -> None:
        self.in_cell = False


class _View:
    """The output that shows one run."""

    def __init__(self, publisher: Any, run: pb.Run) -> None:
        self.over = threading.Event()
        self._publisher = publisher
        self._display_id = uuid.uuid4().hex
        self._panel = Panel(run)
        self._transport: Transport | None = None
        self._changed = threading.Event()
        self._followed = threading.Event()

    @property
    def run_id(self) -> str:
        """The run."""
        return self._panel.run.run_id

    @property
    def lives(self) -> bool:
        """Whether the run is followed."""
        return self._transport is not None and not self._panel.ended

    def publish(self, *, update: bool) -> None:
        """Show the current state."""
        self._publisher.publish(
            self._panel.bundle(), {}, transient={"display_id": self._display_id}, update=update
        )

    def look(self, connections: Iterable[Connection]) -> None:
        """Find the server of the run, and read its events so far; if it has ended, its result as well."""
        for connection in connections:
            caller = Transport(connection, DEFAULT_TIMEOUT)
            try:
                self._read(caller, patience=0.0, snapshot_only=True)
            except _SHOWN_ERRORS as error:
                self._panel.note = str(error)
                caller.close()
            else:
                self._transport, self._panel.note = caller, ""
                break
        if self._transport and self._panel.ended:
            self._finish(self._transport)

    def start(self, views: Views) -> None:
        """Follow the run on separate threads until it ends; then remove the view from `views`."""
        threading.Thread(target=self._follow, daemon=True, name="notebook-runner-follow").start()
        threading.Thread(target=self._refresh, args=[views], daemon=True, name="notebook-runner-show").start()

    def _follow(self) -> None:
        assert self._transport  # noqa: S101 - for the type checker
        try:
            try:
                self._read(self._transport, patience=RECONNECT_TIMEOUT)
            except _SHOWN_ERRORS as error:
                self._panel.note = str(error)
            self._finish(self._transport)
        finally:
            self._followed.set()
            self._changed.set()

    def _refresh(self, views: Views) -> None:
        heard = True
        try:
            while not self._followed.is_set():
                tick = min(max(SHORTEST_TICK, TICK_SHARE * self._panel.elapsed()), LONGEST_TICK)
                self._changed.wait(tick)
                self._changed.clear()
                self.publish(update=True)
                self._followed.wait(SHORTEST_PAUSE)
            heard = views.in_cell
            self.publish(update=True)
        finally:
            views.end(self, heard=heard)
            self.over.set()

    def _read(self, caller: Transport, *, patience: float, snapshot_only: bool = False) -> None:
        request = pb.ProgressRequest(
            run_id=self.run_id,
            after_sequence=self._panel.sequence,
            omit_cell_output=True,
            snapshot_only=snapshot_only,
        )
        timeout = LOOK_TIMEOUT if snapshot_only else None
        for event in caller.follow(ProgressReader(request, patience, reached=caller.reached), timeout):
            self._panel.accept(event)
            self._changed.set()

    def _finish(self, caller: Transport) -> None:
        try:
            if self._panel.ended:
                self._take_result(caller)
        except _SHOWN_ERRORS as error:
            self._panel.note = f"Cannot show the result: {error}"
        finally:
            caller.close()

    def _take_result(self, caller: Transport) -> None:
        pages, content = Pages(self.run_id, "html"), b""
        while not pages.complete:
            page = caller.call(caller.page_stub.Output, pages.request)
            if page.total_bytes > MAX_RESULT_BYTES:
                self._panel.note = (
                    f"The result is too large to show here ({size(page.total_bytes)}). Use save()."
                )
                return
            content += pages.accept(page)
        self._panel.result = content.decode()
