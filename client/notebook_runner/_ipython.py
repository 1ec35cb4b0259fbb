"""Registers the display of runs with IPython, when the package is imported in a shell or as an extension."""

from __future__ import annotations

import sys
from typing import Any

from ._notebook import use_display

__all__ = ["load_ipython_extension", "register"]

_shell: Any = None


def register() -> None:
    """Show runs in the IPython shell of this process, if there is one; costs a lookup in `sys.modules`."""
    ipython = sys.modules.get("IPython")
    if shell := ipython and getattr(ipython, "get_ipython", lambda: None)():
        load_ipython_extension(shell)


def load_ipython_extension(shell: Any) -> None:
    """Show runs in a shell (called by `%load_ext notebook_runner`)."""
    global _shell  # noqa: PLW0603 - IPython has one shell in a process, too
    if shell is _shell:
        return
    from ._views import Views  # noqa: PLC0415 - only where there is something to show

    views = Views(shell)
    views.register()
    use_display(views)
    _shell = shell
