"""The SQL of the store: what is kept, and each statement that reads or writes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from notebook_runner_server.runs import codec, resume
from notebook_runner_server.runs.model import Event, Order, Run, RunState

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE runs (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  run_id TEXT NOT NULL UNIQUE,
  request_id TEXT UNIQUE,          -- NULL: none was given
  fingerprint TEXT NOT NULL,       -- of the request's payload
  state TEXT NOT NULL,
  run TEXT NOT NULL,               -- all of the run but its parameters, which never change
  parameters TEXT NOT NULL,
  work_order TEXT NOT NULL,
  last_sequence INTEGER NOT NULL,
  expire_time INTEGER              -- NULL: the run has not ended
);
CREATE INDEX runs_by_state ON runs (state, position);
CREATE INDEX runs_by_expiry ON runs (expire_time) WHERE expire_time IS NOT NULL;
CREATE TABLE labels (
  name TEXT NOT NULL, value TEXT NOT NULL, position INTEGER NOT NULL,
  PRIMARY KEY (name, value, position)
) WITHOUT ROWID;
CREATE TABLE events (
  position INTEGER NOT NULL, sequence INTEGER NOT NULL, time INTEGER NOT NULL, event TEXT NOT NULL,
  PRIMARY KEY (position, sequence)
) WITHOUT ROWID;
CREATE TABLE parts (               -- where each version of each part is in the run's file of parts
  position INTEGER NOT NULL, part INTEGER NOT NULL, sequence INTEGER NOT NULL,
  start INTEGER NOT NULL, length INTEGER NOT NULL,
  PRIMARY KEY (position, part, sequence)
) WITHOUT ROWID;
CREATE INDEX parts_by_sequence ON parts (position, sequence);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A run as the store keeps it; `position` orders runs by the time of their Start."""

    position: int
    run: Run
    order: Order
    last_sequence: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Part:
    """Where a version of a part is in the run's file of parts, in bytes."""

    part: int
    sequence: int
    start: int
    length: int


def create(db: sqlite3.Connection, *, is_first: bool = True) -> None:
    """Make the tables where there are none.

    Args:
        db: The database.
        is_first: Whether there may be none.

    Raises:
        sqlite3.DatabaseError: They are not there, and should be.
    """
    is_new = db.execute("PRAGMA user_version").fetchone()[0] == 0
    if is_new and not is_first:
        raise sqlite3.DatabaseError("there are runs, and no history of them")
    if is_new:
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    resume.create(db)


def insert_run(
    db: sqlite3.Connection, run: Run, order: Order, fingerprint: str, event: Event, parts: Iterable[Part]
) -> int:
    """Insert a run with its first event, and return its position."""
    row = (
        run.run_id,
        run.request_id or None,
        fingerprint,
        run.state.value,
        codec.encode_run(replace(run, parameters={})),
        codec.encode_parameters(run.parameters),
        codec.encode_order(order),
        event.sequence,
    )
    position = db.execute(
        "INSERT INTO runs"
        " (run_id, request_id, fingerprint, state, run, parameters, work_order, last_sequence)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        row,
    ).lastrowid
    assert position is not None  # noqa: S101 - an INSERT gives one
    pairs = ((name, value, position) for name, value in run.labels.items())
    db.executemany("INSERT INTO labels (name, value, position) VALUES (?, ?, ?)", pairs)
    _insert_events(db, position, [event], parts)
    return position


def append(
    db: sqlite3.Connection,
    position: int,
    run: Run,
    events: Sequence[Event],
    parts: Iterable[Part],
    expire_time: int | None,
) -> None:
    """Add events and parts to a run, and keep the run as it is after them."""
    _insert_events(db, position, events, parts)
    encoded = codec.encode_run(replace(run, parameters={}))
    if events:
        db.execute(
            "UPDATE runs SET state = ?, run = ?, last_sequence = ?, expire_time = ? WHERE position = ?",
            (run.state.value, encoded, events[-1].sequence, expire_time, position),
        )


def _insert_events(
    db: sqlite3.Connection, position: int, events: Sequence[Event], parts: Iterable[Part]
) -> None:
    db.executemany(
        "INSERT INTO events (position, sequence, time, event) VALUES (?, ?, ?, ?)",
        ((position, event.sequence, event.time, codec.encode_event(event)) for event in events),
    )
    db.executemany(
        "INSERT OR REPLACE INTO parts (position, part, sequence, start, length) VALUES (?, ?, ?, ?, ?)",
        ((position, part.part, part.sequence, part.start, part.length) for part in parts),
    )


_COLUMNS = "position, run, parameters, work_order, last_sequence, fingerprint"


def find_run(db: sqlite3.Connection, run_id: str) -> Row | None:
    """Return a run by its id, or the newest one for an empty id; None: there is none."""
    where = "WHERE run_id = ?" if run_id else "ORDER BY position DESC LIMIT 1"
    return _row(db, where, (run_id,) if run_id else ())


def find_request(db: sqlite3.Connection, request_id: str) -> Row | None:
    """Return the run of a request id; None: there is none."""
    return _row(db, "WHERE request_id = ?", (request_id,))


def unended_runs(db: sqlite3.Connection) -> list[Row]:
    """Return the runs that have not ended, oldest first."""
    states = [state.value for state in RunState if not state.is_terminal]
    marks = ", ".join("?" * len(states))
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM runs WHERE state IN ({marks}) ORDER BY position",  # noqa: S608 - only marks
        states,
    )
    return [_decode(row) for row in rows]


def list_runs(
    db: sqlite3.Connection,
    before: int,
    size: int,
    states: Sequence[RunState],
    labels: Mapping[str, str],
) -> list[Row]:
    """Return up to `size` runs before a position, newest first, that match states and labels."""
    where: list[str] = ["position < ?"]
    values: list[str | int] = [before]
    if states:
        where.append(f"state IN ({', '.join('?' * len(states))})")
        values += [state.value for state in states]
    for name, value in labels.items():
        where.append("position IN (SELECT position FROM labels WHERE name = ? AND value = ?)")
        values += [name, value]
    text = f"SELECT {_COLUMNS} FROM runs WHERE {' AND '.join(where)} ORDER BY position DESC LIMIT ?"  # noqa: S608 - only marks
    return [_decode(row) for row in db.execute(text, (*values, size))]


_ENOUGH = 128 * 1024
"""Bytes of events after which a read ends: a reader that takes nothing keeps what was read for it."""


def read_events(db: sqlite3.Connection, position: int, after: int, limit: int) -> list[Event]:
    """Return up to `limit` events of a run after a sequence number, and no more when they are large."""
    rows = db.execute(
        "SELECT sequence, time, event FROM events WHERE position = ? AND sequence > ?"
        " ORDER BY sequence LIMIT ?",
        (position, after, limit),
    )
    return _enough(rows)


def _enough(rows: Iterable[tuple[int, int, str]]) -> list[Event]:
    events: list[Event] = []
    size = 0
    for sequence, time, text in rows:
        events.append(codec.decode_event(sequence, time, text))
        size += len(text)
        if size >= _ENOUGH:
            break
    return events


def read_events_back(db: sqlite3.Connection, position: int, before: int, limit: int) -> list[Event]:
    """Return up to `limit` events of a run before a sequence number, newest first; fewer when large."""
    rows = db.execute(
        "SELECT sequence, time, event FROM events WHERE position = ? AND sequence < ?"
        " ORDER BY sequence DESC LIMIT ?",
        (position, before, limit),
    )
    return _enough(rows)


def read_parts(db: sqlite3.Connection, position: int, as_of: int) -> list[Part]:
    """Return the version that each part had at a sequence number, in the order of the parts."""
    rows = db.execute(
        # SQLite takes the other columns from the row that has the maximum.
        "SELECT part, MAX(sequence), start, length FROM parts WHERE position = ? AND sequence <= ?"
        " GROUP BY part ORDER BY part",
        (position, as_of),
    )
    return [Part(*row) for row in rows]


def newest_part(db: sqlite3.Connection, position: int, as_of: int) -> int:
    """Return the sequence number of the newest part of a run at a sequence number."""
    text = "SELECT MAX(sequence) FROM parts WHERE position = ? AND sequence <= ?"
    newest: int | None = db.execute(text, (position, as_of)).fetchone()[0]
    return newest or 0


def ended_runs(db: sqlite3.Connection, until: int, after: int, limit: int) -> list[Row]:
    """Return ended runs after a position whose time is over at `until`, oldest first."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM runs"  # noqa: S608 - a constant
        " WHERE expire_time <= ? AND position > ? ORDER BY position LIMIT ?",
        (until, after, limit),
    )
    return [_decode(row) for row in rows]


def count_ended(db: sqlite3.Connection) -> int:
    """Return how many runs have ended."""
    count: int = db.execute("SELECT COUNT(*) FROM runs WHERE expire_time IS NOT NULL").fetchone()[0]
    return count


def run_ids(db: sqlite3.Connection) -> set[str]:
    """Return the ids of all runs."""
    return {run_id for (run_id,) in db.execute("SELECT run_id FROM runs")}


def delete_run(db: sqlite3.Connection, position: int) -> None:
    """Remove a run with all that belongs to it."""
    for table in ("parts", "events", "labels", "resume", "runs"):
        db.execute(f"DELETE FROM {table} WHERE position = ?", (position,))  # noqa: S608 - the names above


def _row(db: sqlite3.Connection, where: str, values: tuple[str, ...]) -> Row | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM runs {where}", values).fetchone()  # noqa: S608 - constants
    return None if row is None else _decode(row)


def _decode(row: tuple[int, str, str, str, int, str]) -> Row:
    position, run, parameters, order, last_sequence, fingerprint = row
    whole = replace(codec.decode_run(run), parameters=codec.decode_parameters(parameters))
    return Row(position, whole, codec.decode_order(order), last_sequence, fingerprint)
