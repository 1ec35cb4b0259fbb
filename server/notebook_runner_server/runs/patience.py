"""How long reads wait for a database that is not available.

A call gets an answer soon, also when that is an error: its caller may try again. What no caller waits for,
such as a run that is being executed, waits until the database is back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SOON = 3.0
"""Seconds after which a call is answered that the database does not serve."""

patience: ContextVar[float] = ContextVar("patience", default=SOON)
"""Seconds that a read of this task may wait for the database."""


@contextmanager
def patient() -> Iterator[None]:
    """Let reads, also those of tasks that begin here, wait until the database is back."""
    token = patience.set(float("inf"))
    try:
        yield
    finally:
        patience.reset(token)
