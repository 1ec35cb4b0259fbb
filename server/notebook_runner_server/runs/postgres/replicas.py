"""The servers that share a database: who executes which run, and what they ask of each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from notebook_runner_server.runs import tables
from notebook_runner_server.runs.database import Connection
from notebook_runner_server.runs.model import RunState
from notebook_runner_server.runs.postgres.connection import PostgresConnection
from notebook_runner_server.runs.postgres.database import PostgresDatabase
from notebook_runner_server.runs.postgres.hints import Hints
from notebook_runner_server.runs.postgres.servers import ServerRecord
from notebook_runner_server.runs.replicas import (
    Claim,
    ClaimedError,
    KillRequest,
    OutdatedError,
    Replica,
    Topic,
)

_UNENDED = ", ".join(f"'{state}'" for state in sorted(tables.UNENDED))
# Claims are ordered by the commits of their changes: a transaction with this lock sees all earlier ones.
_ORDERED = "SELECT 1 FROM history FOR NO KEY UPDATE"

_AT_WORK = ", ".join(f"'{state}'" for state in sorted(set(tables.UNENDED) - {RunState.QUEUED.value}))
_COUNT_AT_WORK = (
    f"SELECT COUNT(*) FROM runs WHERE state IN ({_AT_WORK})"  # noqa: S608 - constants
    " AND owner = (SELECT owner FROM runs WHERE position = ?)"
)

_ORPHANED = f"state IN ({_UNENDED}) AND server_id NOT IN (SELECT server_id FROM servers)"  # noqa: S608 - constants


class PostgresReplicas:
    """The servers of a database, as one of them sees them.

    Args:
        database: The database, which has the lease of this server.
        hints: Tells the others what is new.
    """

    def __init__(self, database: PostgresDatabase, hints: Hints) -> None:
        self._db = database
        self._hints = hints

    @property
    def _id(self) -> str:
        return self._db.lease.holder.server_id

    @property
    def others(self) -> Sequence[Replica]:
        """The other servers that are not gone."""
        return self._db.lease.others if self._db.is_open else []

    @property
    def is_first(self) -> bool:
        """Whether this server is the oldest one."""
        return self._db.is_open and self._db.lease.is_first

    def listen(self, on_hint: Callable[[Topic, int], object], on_renewed: Callable[[float], object]) -> None:
        """Call functions on the event loop with each hint, and with the end of each new lease."""
        loop, lease = asyncio.get_running_loop(), self._db.lease

        def call(function: Callable[..., object], *args: object) -> None:
            # The event loop is closed before the thread of the lease has ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *args)

        lease.on_change = lambda: call(on_hint, Topic.SERVERS, 0)
        lease.on_renewed = lambda: call(on_renewed, lease.deadline)
        on_renewed(lease.deadline)
        self._hints.listen(on_hint, is_pooled=self._db.is_pooled)

    def tell(self, topic: Topic, position: int = 0) -> None:
        """Give the others a hint, if there are any."""
        if self.others:
            self._hints.send(topic, position)

    def drain(self) -> None:
        """Let the others know, with the next renewal of the lease, that this server begins no more runs."""
        if self._db.is_open:
            self._db.lease.is_draining = True

    def claim(self, db: Connection, position: int, max_active: int | None = None) -> None:
        """Claim a run that is queued.

        Raises:
            ClaimedError: Another server has claimed it, or it has ended.
            OutdatedError: So many runs of its owner have a worker.
        """
        db.execute(_ORDERED)
        claimed = db.execute(
            "INSERT INTO claims (position, server_id) SELECT position, ? FROM runs WHERE position = ?"
            " AND state = ? ON CONFLICT DO NOTHING RETURNING position",
            (self._id, position, RunState.QUEUED.value),
        )
        if claimed.fetchone() is None:
            raise ClaimedError
        if max_active is not None and db.execute(_COUNT_AT_WORK, (position,)).fetchall()[0][0] >= max_active:
            raise OutdatedError

    def lock(self, db: Connection) -> None:
        """Let the changes of other servers wait until this transaction ends."""
        db.execute(_ORDERED)

    def check_known(self, db: Connection, unended: int) -> None:
        """Check that no more runs than these have not ended.

        Raises:
            OutdatedError: There are more.
        """
        db.execute(_ORDERED)
        count = f"SELECT COUNT(*) FROM runs WHERE state IN ({_UNENDED})"  # noqa: S608 - constants
        if db.execute(count).fetchall()[0][0] > unended:
            raise OutdatedError

    async def claimed(self) -> dict[int, Claim]:
        """Return the claims of runs that have not ended, by their positions."""
        text = (
            f"SELECT position, server_id FROM claims JOIN runs USING (position) WHERE state IN ({_UNENDED})"  # noqa: S608 - constants
        )
        rows = await self._db.read(lambda db: db.execute(text).fetchall())
        return {position: Claim(position, server_id, server_id == self._id) for position, server_id in rows}

    async def find_claim(self, run_id: str) -> Claim | None:
        """Return the claim of a run; None: it has none, or does not exist."""
        text = "SELECT position, server_id, state FROM claims JOIN runs USING (position) WHERE run_id = ?"
        row = await self._db.read(lambda db: db.execute(text, (run_id,)).fetchone())
        if row is None:
            return None
        position, server_id, state = row
        return Claim(position, server_id, server_id == self._id, RunState(state).is_terminal)

    async def take_over(self) -> Sequence[int]:
        """Claim the runs of servers that are gone, or that left runs behind; return their positions."""
        gone = self._db.lease.gone
        if not gone and not await self._db.read(_has_orphans):
            return []
        positions: list[int] = await self._db.write(self._take_over, gone)
        return positions

    def _take_over(self, db: PostgresConnection, gone: Sequence[ServerRecord]) -> list[int]:
        for one in gone:
            known = (one.server_id, one.renewals)
            text = "SELECT 1 FROM servers WHERE server_id = ? AND renewals = ?"
            if db.execute(text, known).fetchone() is None:
                # This server has not looked for a while: that one has renewed its lease meanwhile.
                continue
            db.execute("DELETE FROM servers WHERE server_id = ? AND renewals = ?", known)
        db.execute(_ORDERED)
        where = f"claims.position = runs.position AND {_ORPHANED}"
        text = f"UPDATE claims SET server_id = ? FROM runs WHERE {where} RETURNING claims.position"  # noqa: S608 - constants
        return [position for (position,) in db.execute(text, (self._id,)).fetchall()]

    async def request_kill(self, position: int, grace_period: float) -> None:
        """Ask the server that has claimed a run to end it; of several grace periods the shortest counts."""
        await self._db.write_soon(_request_kill, position, grace_period)
        self.tell(Topic.KILLS)

    async def kill_requests(self) -> Sequence[KillRequest]:
        """Return the requests for runs that this server, or none, has claimed."""
        rows = await self._db.read(_kill_requests, self._id)
        return [KillRequest(*row) for row in rows]

    async def kill_done(self, position: int, processes_ended: int) -> None:
        """Record that a run was ended on request."""
        text = "UPDATE kill_requests SET processes_ended = ? WHERE position = ?"
        await self._db.write(lambda db: db.execute(text, (processes_ended, position)))
        self.tell(Topic.KILLS)

    async def find_kill(self, position: int) -> int | None:
        """Return how many processes a requested Kill has ended by force; None: it is not carried out yet."""
        text = "SELECT processes_ended FROM kill_requests WHERE position = ?"
        row = await self._db.read(lambda db: db.execute(text, (position,)).fetchone())
        return None if row is None else row[0]


def _has_orphans(db: Connection) -> bool:
    text = f"SELECT 1 FROM claims JOIN runs USING (position) WHERE {_ORPHANED} LIMIT 1"  # noqa: S608 - constants
    return db.execute(text).fetchone() is not None


def _request_kill(db: Connection, position: int, grace_period: float) -> None:
    db.execute(
        "INSERT INTO kill_requests (position, grace_period) SELECT position, ? FROM runs WHERE position = ?"
        " ON CONFLICT (position) DO UPDATE"
        " SET grace_period = LEAST(kill_requests.grace_period, excluded.grace_period)",
        (grace_period, position),
    )


def _kill_requests(db: Connection, server_id: str) -> list[tuple[int, str, float]]:
    return db.execute(
        "SELECT position, run_id, grace_period FROM kill_requests JOIN runs USING (position)"
        " LEFT JOIN claims USING (position) WHERE processes_ended IS NULL"
        " AND (server_id = ? OR server_id IS NULL)",
        (server_id,),
    ).fetchall()
