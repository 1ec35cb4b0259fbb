"""The interface of servers that share one history, each of which is a replica of the service.

A run belongs to the server that has claimed it, in the transaction of its first step: it is executed at most
once. What is new at one server, others learn from the history. Hints tell them when to look, and may be
lost: each also looks from time to time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from notebook_runner_server.runs.database import Connection

LOOK_SECONDS = 1.0
"""Seconds after which a server looks for what it got no hint of."""


@dataclass(frozen=True, slots=True)
class Replica:
    """Another server.

    Attributes:
        server_id: Its id.
        name: Its name, for people.
        workers: How many runs it executes at a time.
        is_draining: Whether it begins no more runs.
    """

    server_id: str
    name: str
    workers: int
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class KillRequest:
    """A Kill that another server has received.

    Attributes:
        position: The run's position.
        run_id: The run.
        grace_period: Seconds between an interrupt and the kill.
    """

    position: int
    run_id: str
    grace_period: float


@dataclass(frozen=True, slots=True)
class Claim:
    """Which server executes a run, or has executed it.

    Attributes:
        position: The run's position.
        server_id: The server.
        is_here: Whether it is this one.
        has_ended: Whether the run has ended.
    """

    position: int
    server_id: str
    is_here: bool
    has_ended: bool = False


class Topic(Enum):
    """What a hint is about."""

    CHANGES = "changes"
    EVENTS = "events"
    KILLS = "kills"
    SERVERS = "servers"


class ClaimedError(RuntimeError):
    """Another server has claimed the run; nothing is stored."""


class OutdatedError(RuntimeError):
    """Other servers have admitted or begun runs that this one does not know yet; nothing is stored."""


class DuplicateError(RuntimeError):
    """Another server has stored a run with the same request id; nothing is stored."""


class Replicas(Protocol):
    """The servers of one history, as one of them sees them."""

    @property
    def others(self) -> Sequence[Replica]:
        """The other servers that are not gone, at most a second old."""

    @property
    def is_first(self) -> bool:
        """Whether this server does what one server has to do for all."""

    def listen(self, on_hint: Callable[[Topic, int], object], on_renewed: Callable[[float], object]) -> None:
        """Call functions on the event loop when something is new.

        Args:
            on_hint: Gets each hint, which is about a topic and the position of a run.
            on_renewed: Gets the moment of the monotonic clock by which the runs of this server must have
                ended, unless a later one follows: others may replace it then.
        """

    def tell(self, topic: Topic, position: int = 0) -> None:
        """Give the others a hint, soon; does not block."""

    def drain(self) -> None:
        """Let the others know that this server begins no more runs."""

    def claim(self, db: Connection, position: int, max_active: int | None = None) -> None:
        """Claim a run for this server, in the transaction of its first step; blocks.

        Args:
            db: The connection of the transaction.
            position: The run's position.
            max_active: How many runs of its owner may have a worker of any server; None: do not compare.

        Raises:
            ClaimedError: Another server has claimed it.
            OutdatedError: So many have one.
        """

    def lock(self, db: Connection) -> None:
        """Let the changes of other servers wait until this transaction ends; blocks."""

    def check_known(self, db: Connection, unended: int) -> None:
        """Check in the transaction of a Start that no more runs than these have not ended; blocks.

        Raises:
            OutdatedError: There are more.
        """

    async def claimed(self) -> dict[int, Claim]:
        """Return the claims of runs that have not ended, by their positions."""

    async def find_claim(self, run_id: str) -> Claim | None:
        """Return the claim of a run; None: it has none, or does not exist."""

    async def take_over(self) -> Sequence[int]:
        """Claim the runs of servers that are gone, and return their positions."""

    async def request_kill(self, position: int, grace_period: float) -> None:
        """Ask the server that has claimed a run to end it."""

    async def kill_requests(self) -> Sequence[KillRequest]:
        """Return the requests that this server has to carry out."""

    async def kill_done(self, position: int, processes_ended: int) -> None:
        """Record that a run was ended on request, and how many of its processes were ended by force."""

    async def find_kill(self, position: int) -> int | None:
        """Return how many processes a requested Kill has ended by force; None: it is not carried out yet."""
