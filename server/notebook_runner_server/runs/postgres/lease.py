"""The lease of the one server that uses a history, by the clock of the database.

A server that cannot renew its lease in time may have been replaced. So it stops its runs before the lease
runs out by its own clock, which begins with each renewal before that of the database does.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from notebook_runner_server.runs.patience import SOON
from notebook_runner_server.runs.postgres.connection import connect, end_others, shown, why

_MOST_RENEWALS = 1.0
"""Most seconds between two renewals: the rest of the lease is how long the database may be away."""

_MISSED_RENEWALS = 3
"""After so many renewals without an answer, the database counts as unavailable."""

_LAST_SHARE = 0.1
"""The share of the lease that is left when a server gives up: it takes that time to end its runs."""

_ATTEMPT_SECONDS = 0.2


class StoreInUseError(RuntimeError):
    """Another server uses the history."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A server with a lease.

    Attributes:
        server_id: Its id.
        epoch: The number of this server among all so far.
        taken: A time before its lease began, by the monotonic clock.
    """

    server_id: str
    epoch: int
    taken: float


def acquire(raw: psycopg.Connection[tuple[Any, ...]], store: str, server_id: str, seconds: float) -> Holder:
    """Take the lease of a history, and wait for that of another server if it is about to run out; blocks.

    Args:
        raw: A connection.
        store: The URL of the database.
        server_id: This server.
        seconds: How long the lease lasts.

    Raises:
        StoreInUseError: Another server keeps renewing its lease.
    """
    deadline = time.monotonic() + seconds + _ATTEMPT_SECONDS
    while True:
        with raw.transaction():
            # One server after the other.
            raw.execute("LOCK TABLE servers IN SHARE ROW EXCLUSIVE MODE")
            expired = "FROM servers WHERE lease_end <= clock_timestamp()"
            for (other_id,) in raw.execute(f"SELECT server_id {expired}").fetchall():
                end_others(raw, other_id)
            # Waits for the end of their transactions.
            raw.execute(f"DELETE {expired}")
            other = raw.execute(
                "SELECT name, extract(epoch FROM lease_end - clock_timestamp())::float8 FROM servers"
            ).fetchone()
            if other is None:
                return _insert(raw, server_id, seconds)
        name, rest = other
        if time.monotonic() > deadline:
            raise StoreInUseError(
                f"Another server uses the store {shown(store)}: {name}. Stop it first, or choose another"
                " --store."
            )
        time.sleep(min(max(rest, 0.0), _ATTEMPT_SECONDS))


def _insert(raw: psycopg.Connection[tuple[Any, ...]], server_id: str, seconds: float) -> Holder:
    taken = time.monotonic()
    name = f"process {os.getpid()} on {socket.gethostname()}"
    epoch: int = raw.execute(
        "INSERT INTO servers (server_id, name, lease_end)"
        " VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3)) RETURNING epoch",
        [server_id, name, seconds],
    ).fetchall()[0][0]
    raw.execute("INSERT INTO server_commits (server_id, number) VALUES ($1, 0)", [server_id])
    return Holder(server_id, epoch, taken)


def release(raw: psycopg.Connection[tuple[Any, ...]], holder: Holder) -> None:
    """Give up a lease, so that the next server need not wait for its end; blocks."""
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
    """

    def __init__(self, store: str, holder: Holder, seconds: float, on_lost: Callable[[str], object]) -> None:
        self._store = store
        self._holder = holder
        self._seconds = seconds
        self._deadline = holder.taken + seconds * (1 - _LAST_SHARE)
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._losing = threading.Lock()
        self._threads = [
            threading.Thread(target=run, name=f"store-{name}", daemon=True)
            for run, name in ((self._renew_all, "lease"), (self._watch, "lease-end"))
        ]
        self._interval = min(seconds / 3, _MOST_RENEWALS)
        self._renewed = time.monotonic()
        self._problem = ""
        self.lost = ""

    @property
    def problem(self) -> str:
        """Why it could not be renewed last; empty: it was."""
        silence = time.monotonic() - self._renewed
        if self._problem or silence < _MISSED_RENEWALS * self._interval:
            return self._problem
        # A database that stands still refuses nothing.
        return f"no answer for {silence:.0f} s"

    def start(self) -> None:
        """Begin to renew the lease."""
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
        while not self._stop.wait(max(self._deadline - time.monotonic(), 0.0)):
            if time.monotonic() >= self._deadline:
                self.lose(
                    f"The lease on the store {shown(self._store)} could not be renewed for"
                    f" {self._seconds:g} s (--replica-timeout): {self.problem or 'no answer'}."
                )

    def _renew_all(self) -> None:
        raw: psycopg.Connection[tuple[Any, ...]] | None = None
        while not self._stop.wait(self._interval if not self._problem else _ATTEMPT_SECONDS):
            try:
                raw = raw or connect(self._store, min(self._seconds / 3, SOON), name="lease")
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
        renewed = raw.execute(
            "UPDATE servers SET lease_end = clock_timestamp() + make_interval(secs => $1)"
            " WHERE server_id = $2 AND epoch = $3",
            [self._seconds, self._holder.server_id, self._holder.epoch],
        ).rowcount
        if renewed:
            self._deadline = asked + self._seconds * (1 - _LAST_SHARE)
            self._renewed = time.monotonic()
            self._problem = ""
        else:
            self.lose(f"Another server has taken over the store {shown(self._store)}.")
