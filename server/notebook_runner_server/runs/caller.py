"""Who makes a call, and what it may do.

`api.auth_interceptor` sets the caller of each call; everything below it reads `current_caller`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a caller may do. `expand` adds the scopes that a scope includes."""

    READ = "read"
    RUN = "run"
    READ_ALL = "read-all"
    RUN_ALL = "run-all"
    ADMIN = "admin"


_INCLUDED = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.RUN: frozenset({Scope.READ, Scope.RUN}),
    Scope.READ_ALL: frozenset({Scope.READ, Scope.READ_ALL}),
    Scope.RUN_ALL: frozenset({Scope.READ, Scope.RUN, Scope.READ_ALL, Scope.RUN_ALL}),
    Scope.ADMIN: frozenset(Scope),
}


def expand(scopes: Iterable[Scope]) -> frozenset[Scope]:
    """Return scopes with all that they include."""
    return frozenset().union(*(_INCLUDED[scope] for scope in scopes))


def parse_scopes(text: str) -> frozenset[Scope]:
    """Read scopes separated by commas, and add what they include.

    Raises:
        ValueError: One of them does not exist.
    """
    return expand(Scope(name) for name in text.split(","))


@dataclass(frozen=True)
class Caller:
    """The caller of a call.

    Attributes:
        name: The name of its token, a claim of its JWT, or the name in its certificate; empty: the server
            asks for no credentials.
        scopes: What it may do, with all that is included.
        groups: The groups in its JWT; empty for all other credentials.
    """

    name: str
    scopes: frozenset[Scope]
    groups: frozenset[str] = frozenset()

    @property
    def visible_owner(self) -> str | None:
        """The owner whose runs it may see; None: it may see those of all owners."""
        return None if Scope.READ_ALL in self.scopes else self.name

    @property
    def own(self) -> str | None:
        """The owner of its own runs; None: all runs are its own, because nobody is asked who calls."""
        return self.name or None

    def may_see(self, owner: str) -> bool:
        """Return whether it may see the runs of an owner."""
        return self.visible_owner in (None, owner)

    def may_change(self, owner: str) -> bool:
        """Return whether it may kill and delete the runs of an owner, if it may see them."""
        return owner == self.name or Scope.RUN_ALL in self.scopes


ANONYMOUS = Caller("", frozenset(Scope))
"""The caller where the server asks for no credentials."""

_current = ContextVar("caller", default=ANONYMOUS)


def current_caller() -> Caller:
    """Return the caller of the current call."""
    return _current.get()


def set_caller(caller: Caller) -> None:
    """Set the caller of the current call."""
    _current.set(caller)
