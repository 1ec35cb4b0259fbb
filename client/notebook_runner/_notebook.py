"""Connects clients with the display of runs in an IPython shell, if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading

    from ._connection import Connection

__all__ = ["SHOWN_TIMEOUT", "Display", "attach", "shown", "use_display"]

SHOWN_TIMEOUT = 10.0
"""Maximum time until a view has shown the end of a run, in seconds: it fetches the result."""


class Display(Protocol):
    """Shows runs in a notebook."""

    def add(self, connection: Connection) -> None:
        """Use a connection to read runs."""

    def shown(self, run_id: str) -> threading.Event | None:
        """Return the event that is set once the live view of a run has shown its end; None: no live view."""


_display: Display | None = None


def use_display(display: Display | None) -> None:
    """Show runs with this display from now on."""
    global _display  # noqa: PLW0603 - IPython has one shell in a process, too
    _display = display


def attach(connection: Connection) -> None:
    """Pass a client's connection to the display."""
    if _display:
        _display.add(connection)


def shown(run_id: str) -> threading.Event | None:
    """Return the event that is set once the live view of a run has shown its end; None: no live view."""
    return _display.shown(run_id) if _display else None
