"""The leases of the servers that share a history.

A server renews its lease by counting up a number in its row, and reads the numbers of the others
(`servers`).

A server that cannot renew its lease stops its runs earlier than others count it as gone: its own time begins
before a renewal, and theirs after it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from notebook_runner_server.runs.patience import SOON
from notebook_runner_server.runs.postgres import migrate
from notebook_runner_server.runs.postgres.connection import connect, end_gone, shown, why
from notebook_runner_server.runs.postgres.servers import RECORDS, ServerRecord, ServerWatch
from notebook_runner_server.runs.replicas import Replica

_MOST_RENEWALS = 1.0
"""Most seconds between two renewals: the rest of the lease is how long the database may be away."""

_MISSED_RENEWALS = 3
"""After so many renewals without an answer, the database counts as unavailable."""

_OWN_SHARE = 0.8
"""The share of the lease after which a server that cannot renew it gives up."""

OTHERS_SHARE = 0.9
"""The share of the lease after which others replace it; in between it ends its runs."""

_ATTEMPT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Holder:
    """A server with a lease.

    Attributes:
        server_id: Its id.
        epoch: The number of this server among all so far.
        place: Its state folder, as `place_of` returns it.
        taken: A time before its lease began, by the monotonic clock.
    """

    server_id: str
    epoch: int
    place: str
    taken: float


def place_of(folder: Path) -> str:
    """Return what identifies a folder among those of all machines until the next boot.

    A server has its state folder locked, so an earlier one with the same place is dead.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    status = folder.stat()
    return f"{boot}/{status.st_dev}/{status.st_ino}"


def take(
    raw: psycopg.Connection[tuple[Any, ...]], store: str, server_id: str, place: str, workers: int
) -> Holder:
    """Take a lease; blocks.

    Args:
        raw: A connection.
        store: The URL of the database.
        server_id: This server.
        place: Its state folder, as `place_of` returns it.
        workers: How many runs it executes at a time.

    Raises:
        NewerHistoryError: A newer server has just upgraded the schema, and this one cannot use it.
    """
    taken = time.monotonic()
    name = f"process {os.getpid()} on {socket.gethostname()}"
    with raw.transaction():
        migrate.limit_waits(raw.cursor())
        # So an upgrade either knows of this lease, or is over.
        raw.execute("SELECT pg_advisory_xact_lock_shared($1)", [migrate.LOCK_KEY])
        migrate.version(raw, store)
        epoch: int = raw.execute(
            "INSERT INTO servers (server_id, name, place, workers, schema_version)"
            " VALUES ($1, $2, $3, $4, $5) RETURNING epoch",
            [server_id, name, place, workers, migrate.VERSION],
        ).fetchall()[0][0]
        raw.execute("INSERT INTO server_commits (server_id, number) VALUES ($1, 0)", [server_id])
    return Holder(server_id, epoch, place, taken)


def release(raw: psycopg.Connection[tuple[Any, ...]], holder: Holder) -> None:
    """Give up a lease, so that others need not wait for its end; blocks."""
    raw.execute("DELETE FROM servers WHERE server_id = $1", [holder.server_id])


class StoreLease:
    """Renews the lease of a server on a thread of its own, until it is released or lost.

    Args:
        store: The URL of the database.
        holder: The server.
        seconds: How long the lease lasts after each renewal.
        on_lost: Called with the reason when the lease is lost, on any thread.

    Attributes:
        lost: Why the lease is lost; empty: it is not.
        holder: The server.
        deadline: Until when the runs of this server may continue, by the monotonic clock.
        is_draining: Tells the others that this server begins no more runs.
        on_renewed: Called on any thread when `deadline` has moved.
        on_change: Called on any thread when other servers have come, gone or changed.
    """

    def __init__(
        self,
        store: str,
        holder: Holder,
        seconds: float,
        on_lost: Callable[[str], object],
    ) -> None:
        self._store = store
        self.holder = holder
        self._seconds = seconds
        self.deadline = holder.taken + seconds * _OWN_SHARE
        self._on_lost = on_lost
        self.on_renewed: Callable[[], object] = lambda: None
        self.on_change: Callable[[], object] = lambda: None
        self._stop = threading.Event()
        self._losing = threading.Lock()
        self._threads = [
            threading.Thread(target=run, name=f"store-{name}", daemon=True)
            for run, name in ((self._renew_all, "lease"), (self._watch, "lease-end"))
        ]
        self._interval = min(seconds / 10, _MOST_RENEWALS)
        self._renewed = time.monotonic()
        self._problem = ""
        self.lost = ""
        self.is_draining = False
        # As of the last renewal.
        self._servers = ServerWatch(holder.server_id, holder.place, seconds * OTHERS_SHARE)
        self._told: object = None

    @property
    def problem(self) -> str:
        """Why it could not be renewed last; empty: it was."""
        silence = time.monotonic() - self._renewed
        if self._problem or silence < _MISSED_RENEWALS * self._interval + _ATTEMPT_SECONDS:
            return self._problem
        # A database that stands still refuses nothing.
        return f"no answer for {silence:.0f} s"

    @property
    def others(self) -> Sequence[Replica]:
        """The other servers that are not gone, as of the last renewal."""
        return [
            Replica(one.server_id, one.name, one.workers, is_draining=one.is_draining)
            for one in self._servers.others
        ]

    @property
    def gone(self) -> Sequence[ServerRecord]:
        """The servers that are gone, and that no other server has replaced."""
        return self._servers.gone

    @property
    def is_first(self) -> bool:
        """Whether this server is the oldest one, which does what one server has to do for all."""
        # One that is gone counts until it is replaced: it may not know yet.
        return not self.lost and all(self.holder.epoch <= one.epoch for one in self._servers.all)

    def start(self, raw: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Begin to renew the lease, for the first time with this connection.

        Raises:
            psycopg.Error: The database cannot be reached.
        """
        self._renew(raw)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the renewals; blocks for a moment if one is in progress."""
        self._stop.set()
        for thread in self._threads:
            # A database that does not answer must not keep the server from stopping.
            thread.join(SOON)

    def lose(self, reason: str) -> None:
        """Record that the lease is lost, and report it once."""
        with self._losing:
            if self.lost or self._stop.is_set():
                return
            self.lost = reason
        self._stop.set()
        self._on_lost(reason)

    def _watch(self) -> None:
        # A renewal that hangs must not keep this server from stopping.
        while not self._stop.wait(max(self.deadline - time.monotonic(), 0.0)):
            if time.monotonic() >= self.deadline:
                self.lose(
                    f"The lease on the store {shown(self._store)} could not be renewed for"
                    f" {self._seconds * _OWN_SHARE:g} s (--replica-timeout is {self._seconds:g} s):"
                    f" {self.problem or 'no answer'}."
                )

    def _until_next_renewal(self) -> float:
        """Return the seconds until the next renewal, which also looks for servers that are gone."""
        if self._problem:
            return _ATTEMPT_SECONDS
        # One that is gone and not replaced yet must not make it hurry.
        return min([self._interval, *(left for left in self._servers.seconds_left if left > 0)])

    def _renew_all(self) -> None:
        raw: psycopg.Connection[tuple[Any, ...]] | None = None
        while not self._stop.wait(self._until_next_renewal()):
            try:
                seconds = min(self._seconds / 3, SOON)
                raw = raw or connect(self._store, seconds, self.holder.server_id, "lease")
                self._renew(raw)
            except psycopg.Error as error:
                self._problem = why(error)
                if raw is not None:
                    raw.close()
                raw = None
        if raw is not None:
            raw.close()

    def _renew(self, raw: psycopg.Connection[tuple[Any, ...]]) -> None:
        asked = time.monotonic()
        with raw.pipeline():
            renewed = raw.execute(
                "UPDATE servers SET renewals = renewals + 1, is_draining = $1 WHERE server_id = $2",
                [self.is_draining, self.holder.server_id],
            )
            found = raw.execute(RECORDS)
        if not renewed.rowcount:
            self.lose(migrate.why_replaced(raw, self._store))
            return
        self.deadline = asked + self._seconds * _OWN_SHARE
        self._renewed = time.monotonic()
        self._problem = ""
        self._see([ServerRecord(*row) for row in found.fetchall()])
        self.on_renewed()
        for one in self.gone:
            # Not where its runs are taken over: the write before that may wait for its locks.
            end_gone(raw, one.server_id, one.renewals)

    def _see(self, records: Sequence[ServerRecord]) -> None:
        """Take note of all servers, after this one has renewed its lease."""
        self._servers.see(records)
        seen = ([(one.server_id, one.is_draining) for one in records], [one.server_id for one in self.gone])
        if seen != self._told:
            self._told = seen
            self.on_change()
