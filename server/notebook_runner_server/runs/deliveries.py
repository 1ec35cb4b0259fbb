"""Which ends and starts of runs each receiver of webhooks still has to get.

The changes of a history (`changes`) are the only queue: a receiver has a durable cursor over their numbers.
The end of a run that is deleted before all receivers have it stays in the table `changes`, without the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from notebook_runner_server.errors import DamagedRunError
from notebook_runner_server.runs import tables
from notebook_runner_server.runs.changes import ChangeLog
from notebook_runner_server.runs.database import Connection, Database
from notebook_runner_server.runs.model import Run, RunChanged, RunState, label_digest

NOTIFY = "notify:"
"""Begins the name of the receiver of all notifications for a host, which follows."""

_PER_READ = 256


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """What a receiver gets.

    Attributes:
        states: The states whose beginning it gets.
        owner: The owner of its runs; empty: any.
        labels: Labels that its runs have.
        host: It gets only runs with a notification for this host; empty: all runs.
    """

    states: frozenset[RunState]
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    host: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A change that a receiver has to get.

    Attributes:
        change: The number of the change.
        position: The position of the run.
        run_id: The run.
        owner: Its owner.
        state: The state that began.
        time: When the run ended or started, in nanoseconds since the epoch; zero: unknown, it was deleted.
        run: The run at that time; None: it was deleted, or its event is damaged.
        history_id: The history.
        uri: The URI of its notification; empty: it has none for the receiver.
    """

    change: int
    position: int
    run_id: str
    owner: str
    state: RunState
    time: int
    run: Run | None
    history_id: str
    uri: str = ""


@dataclass(frozen=True, slots=True)
class ReceiverRecord:
    """A receiver as the store has it; times are nanoseconds since the epoch.

    Attributes:
        change: The last change that it no longer needs.
        failing_since: When its attempts began to fail; zero: the last one succeeded.
    """

    change: int
    failing_since: int


@dataclass(frozen=True, slots=True)
class ReceiverStatus:
    """How far a receiver is.

    Attributes:
        name: The receiver.
        backlog: About how many deliveries it still has to get.
        oldest: When the first of them happened, in nanoseconds since the epoch; zero: none, or unknown.
        results: How many attempts had each result, since the start of the server.
    """

    name: str
    backlog: int
    oldest: int
    results: Counter[str]


class Deliveries:
    """The receivers of webhooks, and what they still have to get.

    Args:
        database: Where they are stored.
        changes: Wakes receivers.
    """

    def __init__(self, database: Database, changes: ChangeLog) -> None:
        self._database = database
        self._changes = changes

    @property
    def wakes(self) -> int:
        """How often there was something new."""
        return self._changes.wakes

    async def wait(self, wakes: int, seconds: float) -> None:
        """Wait until there was something new more than `wakes` times, or until a time has passed."""
        await self._changes.wait(wakes, seconds)

    async def set_receivers(self, names: Iterable[str], hosts: Iterable[str]) -> dict[str, ReceiverRecord]:
        """Make these the receivers, and return them; what all others had to get is forgotten.

        Args:
            names: The names of all receivers. A new one begins now, one of notifications with all that there
                are.
            hosts: The hosts that may be notified.
        """
        wanted, allowed = list(names), list(hosts)
        # Most starts change nothing, and a start must not need space on the disk.
        if not await self._database.read(_has_receivers, wanted, allowed):
            await self._database.write(_set_receivers, wanted, allowed)
        return await self._database.read(_receivers)

    async def next(
        self, after: int, wanted: DeliveryFilter, without: Iterable[str] = ()
    ) -> tuple[Delivery | None, int]:
        """Return the first delivery after a change, or None and the change up to which there is none.

        Args:
            after: The change.
            wanted: What the receiver gets.
            without: The owners whose runs it does not get now.
        """
        return await self._database.read(_read_next, after, wanted, list(without))

    async def count(self, after: int, wanted: DeliveryFilter) -> int:
        """Return about how many deliveries there are after a change; labels of deleted runs do not count."""
        return await self._database.read(_count, after, wanted)

    async def done(self, name: str, delivery: Delivery, cursor: int, failing_since: int) -> None:
        """Record that a receiver has got a delivery, or will not get it.

        Args:
            name: The receiver.
            delivery: The delivery.
            cursor: The last change that the receiver no longer needs.
            failing_since: Since when the receiver fails; zero: it does not.
        """
        await self._database.write(_finish, name, delivery, cursor, failing_since)
        if delivery.uri:
            await self._database.truncate_log()

    async def fails(self, name: str, since: int) -> None:
        """Record since when a receiver fails."""
        await self._database.write(_set_failing, name, since)

    async def advance(self, cursors: Mapping[str, int]) -> None:
        """Record changes up to which receivers have nothing to get."""
        await self._database.write(_advance, cursors)


def _receivers(db: Connection) -> dict[str, ReceiverRecord]:
    rows = db.execute("SELECT name, change, failing_since FROM receivers").fetchall()
    return {name: ReceiverRecord(change, since) for name, change, since in rows}


def _has_receivers(db: Connection, names: Sequence[str], hosts: Sequence[str]) -> bool:
    """Return whether the receivers and the hosts of notifications are these already."""
    notified = {host for (host,) in db.execute("SELECT DISTINCT host FROM notifications")}
    return _receivers(db).keys() == set(names) and notified <= set(hosts)


def _set_receivers(db: Connection, names: Sequence[str], hosts: Sequence[str]) -> None:
    known = _receivers(db).keys()
    db.executemany("DELETE FROM receivers WHERE name = ?", [(name,) for name in known - set(names)])
    last = tables.changes_state(db).last
    new = [(name, 0 if name.startswith(NOTIFY) else last) for name in names if name not in known]
    db.executemany("INSERT INTO receivers (name, change, failing_since) VALUES (?, ?, 0)", new)
    where = f"WHERE host NOT IN ({', '.join('?' * len(hosts))})" if hosts else ""
    db.execute(f"DELETE FROM notifications {where}", hosts)  # noqa: S608 - marks


def _read_next(
    db: Connection, after: int, wanted: DeliveryFilter, without: Sequence[str]
) -> tuple[Delivery | None, int]:
    where, values = _where(wanted)
    if without:
        where += f" AND owner NOT IN ({', '.join('?' * len(without))})"
        values += without
    with db.snapshot():
        state = tables.changes_state(db)
        while True:
            rows = db.execute(
                f"SELECT change, position, sequence, state, owner FROM changes WHERE change > ? AND {where}"  # noqa: S608 - constants and marks
                " ORDER BY change LIMIT ?",
                [after, *values, _PER_READ],
            ).fetchall()
            for row in rows:
                if (found := _read(db, row, wanted, state.history_id)) is not None:
                    return found, found.change
                after = row[0]
            if len(rows) < _PER_READ:
                return None, max(after, state.last)


def _read(db: Connection, row: tuple[Any, ...], wanted: DeliveryFilter, history_id: str) -> Delivery | None:
    """Return a delivery; None: its run does not have the labels, or nothing is known of it."""
    number, position, _, state, owner = row
    run, time = _read_run(db, row)
    if run is None:
        deleted = db.execute(
            "SELECT run_id, labels FROM deletions JOIN changes USING (change) WHERE position = ?", (position,)
        ).fetchone()
        found = deleted or _find_damaged(db, position)
        if found is None:
            return None
        run_id, digests = found
        has_labels = all(label_digest(run_id, *label) in digests for label in wanted.labels.items())
    else:
        run_id = run.run_id
        has_labels = wanted.labels.items() <= run.labels.items()
    if not has_labels:
        return None
    notification = None
    if wanted.host:
        notification = db.execute("SELECT uri FROM notifications WHERE position = ?", (position,)).fetchone()
    uri = "" if notification is None else notification[0]
    return Delivery(number, position, run_id, owner, RunState(state), time, run, history_id, uri)


def _read_run(db: Connection, row: tuple[Any, ...]) -> tuple[Run | None, int]:
    """Return a run as its event has it, and when it ended or started; None: it was deleted or is damaged."""
    _, position, sequence, _, _ = row
    if not db.execute("SELECT 1 FROM runs WHERE position = ?", (position,)).fetchone():
        return None, 0
    try:
        event = tables.find_state(db, position, sequence)
    except DamagedRunError:
        return None, 0
    if not isinstance(event.body, RunChanged):
        return None, 0
    # Not the event's time: it is written a little later than what it tells.
    return event.body.run, event.body.run.end_time or event.body.run.start_time


def _find_damaged(db: Connection, position: int) -> tuple[str, str] | None:
    """Return the id of a run whose event is damaged, and digests of its labels; None: it does not exist."""
    row = db.execute("SELECT run_id FROM runs WHERE position = ?", (position,)).fetchone()
    if row is None:
        return None
    labels = db.execute("SELECT name, value FROM labels WHERE position = ?", (position,)).fetchall()
    return row[0], " ".join(label_digest(row[0], name, value) for name, value in labels)


def _count(db: Connection, after: int, wanted: DeliveryFilter) -> int:
    where, values = _where(wanted)
    for label in wanted.labels.items():
        where += " AND position IN (SELECT position FROM labels WHERE name = ? AND value = ?)"
        values += label
    text = f"SELECT COUNT(*) FROM changes WHERE change > ? AND {where}"  # noqa: S608 - constants and marks
    count: int = db.execute(text, [after, *values]).fetchone()[0]
    return count


def _where(wanted: DeliveryFilter) -> tuple[str, list[str | int]]:
    where = f"sequence > 0 AND state IN ({', '.join('?' * len(wanted.states))})"
    values: list[str | int] = [state.value for state in wanted.states]
    if not any(state.is_terminal for state in wanted.states):
        # Only ends of deleted runs are kept.
        where += " AND position IN (SELECT position FROM runs)"
    if wanted.owner:
        where += " AND owner = ?"
        values.append(wanted.owner)
    if wanted.host:
        where += " AND position IN (SELECT position FROM notifications WHERE host = ?)"
        values.append(wanted.host)
    return where, values


def _finish(db: Connection, name: str, delivery: Delivery, cursor: int, failing_since: int) -> None:
    db.execute(
        "UPDATE receivers SET change = CASE WHEN change < ? THEN ? ELSE change END, failing_since = ?"
        " WHERE name = ?",
        (cursor, cursor, failing_since, name),
    )
    if delivery.uri:
        db.execute("DELETE FROM notifications WHERE position = ?", (delivery.position,))


def _set_failing(db: Connection, name: str, since: int) -> None:
    db.execute("UPDATE receivers SET failing_since = ? WHERE name = ?", (since, name))


def _advance(db: Connection, cursors: Mapping[str, int]) -> None:
    rows = [(change, name, change) for name, change in cursors.items()]
    db.executemany("UPDATE receivers SET change = ? WHERE name = ? AND change < ?", rows)
