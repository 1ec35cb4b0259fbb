"""How a process ended, in words and in names."""

from __future__ import annotations

import signal


def name_of(number: int) -> str:
    """Return the name of a signal; real-time signals count from SIGRTMIN."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def describe_exit(code: int | None) -> tuple[str, str, int | None]:
    """Return what an exit code says: in words, the name of the signal or "", the exit code or None.

    Args:
        code: As `subprocess` gives it: negative, the signal that ended the process; None: not known.
    """
    if code is None:
        return "died", "", None
    if code < 0:
        name = name_of(-code)
        return f"was ended by {name}", name, None
    return f"exited with code {code}", "", code
