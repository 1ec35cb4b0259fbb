"""Shares: how much of the server one owner may use, by name, by group, or by default."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

UNLIMITED = math.inf
"""The value of a limit that a rule lifts."""


class Quota(StrEnum):
    """A part of a share that can be used up, so that a Start is refused."""

    QUEUED = "queued"
    HISTORY = "history"


@dataclass(frozen=True, slots=True)
class Share:
    """The limits of one owner; None: unlimited.

    Attributes:
        max_active: How many of its runs may have a worker.
        max_queued: How many of its runs may wait.
        max_history_bytes: The size of its ended runs' folders from which it can start none.
    """

    max_active: int | None = None
    max_queued: int | None = None
    max_history_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ShareRule:
    """The limits that one rule sets, as in `Share`, or `UNLIMITED`; None: it does not set this limit."""

    max_active: float | None = None
    max_queued: float | None = None
    max_history_bytes: float | None = None


_LIMITS = tuple(one.name for one in fields(Share))


@dataclass(frozen=True)
class ShareRules:
    """Which share each owner has.

    Each limit comes from the rule of the owner's name, else from the largest of its groups' rules, else from
    the rule of anyone, else from the default.

    Attributes:
        default: The limits of an owner for which no rule sets them.
        names: The rules of names.
        groups: The rules of groups.
        anyone: The rule of every owner.
    """

    default: ShareRule = field(default_factory=ShareRule)
    names: Mapping[str, ShareRule] = field(default_factory=dict)
    groups: Mapping[str, ShareRule] = field(default_factory=dict)
    anyone: ShareRule = field(default_factory=ShareRule)

    def share(self, name: str, groups: Iterable[str]) -> Share:
        """Return the share of an owner with this name that is a member of these groups."""
        of_groups = [self.groups[one] for one in groups if one in self.groups]
        return Share(**{limit: self._limit(limit, name, of_groups) for limit in _LIMITS})

    def _limit(self, limit: str, name: str, of_groups: Iterable[ShareRule]) -> int | None:
        of_name = getattr(self.names.get(name), limit, None)
        given = (getattr(rule, limit) for rule in of_groups)
        largest = max((one for one in given if one is not None), default=None)
        order = (of_name, largest, getattr(self.anyone, limit), getattr(self.default, limit))
        value = next((one for one in order if one is not None), UNLIMITED)
        return None if value == UNLIMITED else int(value)

    @property
    def limit_history(self) -> bool:
        """Whether a rule limits a history."""
        rules = (self.default, self.anyone, *self.names.values(), *self.groups.values())
        return any(rule.max_history_bytes not in (None, UNLIMITED) for rule in rules)


@dataclass(frozen=True, slots=True)
class ShareUse:
    """The share of an owner, and what it uses of it.

    Attributes:
        share: The share.
        active: How many of its runs have a worker.
        queued: How many of its runs wait.
        history_bytes: The size of its ended runs' folders; zero: unlimited, or not measured yet.
    """

    share: Share
    active: int
    queued: int
    history_bytes: int
