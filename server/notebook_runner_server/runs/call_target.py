"""Which run a call is about, and what became of it, for what reports on calls, such as the audit log.

What reports sets a `CallTarget` for the current call, and the code below it completes it.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class CallTarget:
    """The run that a call is about.

    Attributes:
        run_id: Its id, or, if there is no such run, the id that the request has.
        owner: Its owner; empty: unknown, or the server asks for no credentials.
        is_repeat: Whether the call repeats an earlier Start, by its request id.
        is_refused: Whether the call was refused before the server read any of it.
    """

    run_id: str = ""
    owner: str = ""
    is_repeat: bool = False
    is_refused: bool = False

    def set_run(self, run_id: str, owner: str) -> None:
        """Set the run."""
        self.run_id, self.owner = run_id, owner


_current: ContextVar[CallTarget] = ContextVar("call_target")


def current_target() -> CallTarget:
    """Return the target of the current call."""
    return _current.get(None) or CallTarget()


def begin_target() -> CallTarget:
    """Set an empty target for the current call, and return it."""
    target = CallTarget()
    _current.set(target)
    return target
