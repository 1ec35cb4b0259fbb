"""Clients in a notebook: where one is made inside IPython, runs show themselves there.

Everywhere else this costs a look into `sys.modules`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading

    from ._connection import Connection
    from ._views import Views

__all__ = ["SHOWN_TIMEOUT", "attach", "shown"]

SHOWN_TIMEOUT = 10.0
"""How long to wait until a view has shown the end of a run, in seconds: it fetches the result."""

_views: Views | None = None


def attach(connection: Connection) -> None:
    """Have IPython, if the caller is in it, show runs by this connection."""
    global _views  # noqa: PLW0603 - IPython has one shell in a process, too
    ipython = sys.modules.get("IPython")
    shell = ipython and getattr(ipython, "get_ipython", lambda: None)()
    if shell is None:
        return
    if _views is None or _views.shell is not shell:
        from ._views import Views  # noqa: PLC0415 - only where there is something to show

        _views = Views(shell)
    _views.add(connection)


def shown(run_id: str) -> threading.Event | None:
    """Give what is set when the live view of a run has shown its end; None: it has none, or has shown it."""
    return _views.shown(run_id) if _views else None
