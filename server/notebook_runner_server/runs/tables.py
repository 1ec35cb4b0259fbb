"""The SQL of the store: what is kept, and each statement that reads or writes it."""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from notebook_runner_server.errors import damaged
from notebook_runner_server.runs import codec
from notebook_runner_server.runs.model import Checkpoint, Event, ExecutionOptions, Part, Run, RunState

# Not in every history of version 1.
CHECKPOINT_SCHEMA = """
CREATE TABLE IF NOT EXISTS resume ( -- where a run is gone on with after a restart of the server
  position INTEGER PRIMARY KEY, mark INTEGER NOT NULL, part_start INTEGER NOT NULL, size INTEGER NOT NULL
);
"""


def write_checkpoint(db: sqlite3.Connection, position: int, resume: Checkpoint) -> None:
    """Note where a run is gone on with."""
    values = (position, resume.mark, resume.part_start, resume.size)
    db.execute("INSERT OR REPLACE INTO resume (position, mark, part_start, size) VALUES (?, ?, ?, ?)", values)


def read_checkpoint(db: sqlite3.Connection, position: int) -> Checkpoint | None:
    """Return where a run is gone on with; None: nothing was noted."""
    row = db.execute("SELECT mark, part_start, size FROM resume WHERE position = ?", (position,)).fetchone()
    return None if row is None else Checkpoint(*row)


SCHEMA_VERSION = 2
"""What PRAGMA user_version says of a history that this server has opened."""

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
  expire_time INTEGER,             -- NULL: the run has not ended
  start_checksum INTEGER,          -- of what never changes; checksums are NULL where version 1 wrote
  checksum INTEGER                 -- of what does
);
CREATE INDEX runs_by_state ON runs (state, position);
CREATE INDEX runs_by_expiry ON runs (expire_time) WHERE expire_time IS NOT NULL;
CREATE TABLE labels (
  name TEXT NOT NULL, value TEXT NOT NULL, position INTEGER NOT NULL,
  PRIMARY KEY (name, value, position)
) WITHOUT ROWID;
CREATE TABLE events (
  position INTEGER NOT NULL, sequence INTEGER NOT NULL, time INTEGER NOT NULL, event TEXT NOT NULL,
  checksum INTEGER,
  PRIMARY KEY (position, sequence)
) WITHOUT ROWID;
CREATE TABLE parts (               -- where each version of each part is in the run's file of parts
  position INTEGER NOT NULL, part INTEGER NOT NULL, sequence INTEGER NOT NULL,
  start INTEGER NOT NULL, length INTEGER NOT NULL,
  content_checksum INTEGER,        -- of the bytes there
  checksum INTEGER,
  PRIMARY KEY (position, part, sequence)
) WITHOUT ROWID;
CREATE INDEX parts_by_sequence ON parts (position, sequence);
CREATE TABLE forgotten (           -- runs that were removed, and whose folders may be there yet
  run_id TEXT PRIMARY KEY
) WITHOUT ROWID;
"""

_FROM_VERSION_1 = """
ALTER TABLE runs ADD COLUMN start_checksum INTEGER;
ALTER TABLE runs ADD COLUMN checksum INTEGER;
ALTER TABLE events ADD COLUMN checksum INTEGER;
ALTER TABLE parts ADD COLUMN content_checksum INTEGER;
ALTER TABLE parts ADD COLUMN checksum INTEGER;
CREATE TABLE forgotten (run_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the store keeps it; `position` orders runs by the time of their Start."""

    position: int
    run: Run
    order: ExecutionOptions
    last_sequence: int
    fingerprint: str

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.run.run_id


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A run whose row cannot be understood."""

    position: int
    run_id: str
    why: str


class NewerHistoryError(RuntimeError):
    """The history was written by a newer server.

    Args:
        where: The database file.
        version: What its `PRAGMA user_version` says.
    """

    def __init__(self, where: object, version: int) -> None:
        super().__init__(
            f"The history {where} has version {version}, and this server knows versions up to "
            f"{SCHEMA_VERSION}. Start the newer server that wrote it, or choose another --state-dir."
        )


def create(db: sqlite3.Connection, *, is_first: bool = True) -> None:
    """Make the tables where there are none, and bring those of earlier versions up to date.

    Args:
        db: The database.
        is_first: Whether there may be none.

    Raises:
        sqlite3.DatabaseError: They are not there, and should be.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == 0 and not is_first:
        raise sqlite3.DatabaseError("there are runs, and no history of them")
    if version < SCHEMA_VERSION:
        script = _FROM_VERSION_1 if version else _SCHEMA
        db.executescript(
            f"BEGIN; {CHECKPOINT_SCHEMA} {script} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
    check_schema(db)


def checksum(*values: Any) -> int:
    """Return a checksum of the values of some columns."""
    # Which characters repr() escapes depends on Python's version; what ascii() makes of them does not.
    return zlib.crc32(ascii(values).encode())


def insert_run(
    db: sqlite3.Connection,
    run: Run,
    order: ExecutionOptions,
    fingerprint: str,
    event: Event,
    parts: Iterable[Part],
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
    run_id, request_id, _, state, text, parameters, work_order, last_sequence = row
    sums = (
        checksum(run_id, request_id, fingerprint, parameters, work_order),
        checksum(state, text, last_sequence, None),
    )
    position = db.execute(
        "INSERT INTO runs"
        " (run_id, request_id, fingerprint, state, run, parameters, work_order, last_sequence,"
        "  start_checksum, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, *sums),
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
        values = (run.state.value, encoded, events[-1].sequence, expire_time)
        db.execute(
            "UPDATE runs SET state = ?, run = ?, last_sequence = ?, expire_time = ?, checksum = ?"
            " WHERE position = ?",
            (*values, checksum(*values), position),
        )


def _insert_events(
    db: sqlite3.Connection, position: int, events: Sequence[Event], parts: Iterable[Part]
) -> None:
    rows = ((position, event.sequence, event.time, codec.encode_event(event)) for event in events)
    db.executemany(
        "INSERT INTO events (position, sequence, time, event, checksum) VALUES (?, ?, ?, ?, ?)",
        ((*row, checksum(*row)) for row in rows),
    )
    places = ((position, part.part, part.sequence, part.start, part.length, part.checksum) for part in parts)
    db.executemany(
        "INSERT OR REPLACE INTO parts (position, part, sequence, start, length, content_checksum, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        ((*place, checksum(*place)) for place in places),
    )


_COLUMNS = (
    "position, run_id, request_id, fingerprint, parameters, work_order, start_checksum,"
    " state, run, last_sequence, expire_time, checksum"
)

_TABLES = {
    _COLUMNS: "runs",
    "name, value, position": "labels",
    "position, sequence, time, event, checksum": "events",
    "position, part, sequence, start, length, content_checksum, checksum": "parts",
    "position, mark, part_start, size": "resume",
    "run_id": "forgotten",
}
_EVENTS_A_CHECK = 256


def find_run(db: sqlite3.Connection, run_id: str) -> RunRecord | None:
    """Return a run by its id, or the newest one for an empty id; None: there is none."""
    where = "WHERE run_id = ?" if run_id else "ORDER BY position DESC LIMIT 1"
    return _row(db, where, (run_id,) if run_id else ())


def find_request(db: sqlite3.Connection, request_id: str) -> RunRecord | None:
    """Return the run of a request id; None: there is none."""
    return _row(db, "WHERE request_id = ?", (request_id,))


def unended_runs(db: sqlite3.Connection) -> list[RunRecord | DamagedRecord]:
    """Return the runs that have not ended, oldest first."""
    states = [state.value for state in RunState if not state.is_terminal]
    marks = ", ".join("?" * len(states))
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM runs WHERE state IN ({marks}) ORDER BY position",  # noqa: S608 - only marks
        states,
    ).fetchall()
    return [_row_or_damaged(row) for row in rows]


def list_runs(
    db: sqlite3.Connection,
    before: int,
    size: int,
    states: Sequence[RunState],
    labels: Mapping[str, str],
) -> list[RunRecord | DamagedRecord]:
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
    return [_row_or_damaged(row) for row in db.execute(text, (*values, size)).fetchall()]


_ENOUGH = 128 * 1024
"""Bytes of events after which a read ends: a reader that takes nothing keeps what was read for it."""


def read_events(db: sqlite3.Connection, position: int, after: int, limit: int) -> list[Event]:
    """Return up to `limit` events of a run after a sequence number, and no more when they are large."""
    cursor = db.execute(
        "SELECT position, sequence, time, event, checksum FROM events WHERE position = ? AND sequence > ?"
        " ORDER BY sequence LIMIT ?",
        (position, after, limit),
    )
    events: list[Event] = []
    size = 0
    # A cursor that is not read to its end would keep the connection from seeing what is written later.
    with contextlib.closing(cursor):
        for row in cursor:
            event = _event(db, row)
            if event.sequence != after + 1 + len(events):
                raise damaged(_run_id(db, position), f"event {after + 1 + len(events)} is missing")
            events.append(event)
            size += len(row[3])
            if size >= _ENOUGH:
                break
    return events


def read_events_back(db: sqlite3.Connection, position: int, before: int, limit: int) -> list[Event]:
    """Return up to `limit` events of a run before a sequence number, newest first; fewer when large."""
    cursor = db.execute(
        "SELECT position, sequence, time, event, checksum FROM events WHERE position = ? AND sequence < ?"
        " ORDER BY sequence DESC LIMIT ?",
        (position, before, limit),
    )
    events: list[Event] = []
    size = 0
    with contextlib.closing(cursor):
        for row in cursor:
            events.append(_event(db, row))
            size += len(row[3])
            if size >= _ENOUGH:
                break
    return events


def read_parts(db: sqlite3.Connection, position: int, as_of: int) -> list[Part]:
    """Return the version that each part had at a sequence number, in the order of the parts."""
    rows = db.execute(
        # SQLite takes the other columns from the row that has the maximum.
        "SELECT position, part, MAX(sequence), start, length, content_checksum, checksum FROM parts"
        " WHERE position = ? AND sequence <= ? GROUP BY part ORDER BY part",
        (position, as_of),
    ).fetchall()
    return [_part(db, row) for row in rows]


def newest_part(db: sqlite3.Connection, position: int, as_of: int) -> int:
    """Return the sequence number of the newest part of a run at a sequence number."""
    text = "SELECT MAX(sequence) FROM parts WHERE position = ? AND sequence <= ?"
    newest: int | None = db.execute(text, (position, as_of)).fetchone()[0]
    return newest or 0


def ended_runs(db: sqlite3.Connection, until: int, after: int, limit: int) -> list[RunRecord]:
    """Return ended runs after a position whose time is over at `until`, oldest first."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM runs"  # noqa: S608 - a constant
        " WHERE expire_time <= ? AND position > ? ORDER BY position LIMIT ?",
        (until, after, limit),
    ).fetchall()
    # One that is damaged may not be over, and stays.
    return [row for row in map(_row_or_damaged, rows) if isinstance(row, RunRecord)]


def count_ended(db: sqlite3.Connection) -> int:
    """Return how many runs have ended."""
    count: int = db.execute("SELECT COUNT(*) FROM runs WHERE expire_time IS NOT NULL").fetchone()[0]
    return count


def run_ids(db: sqlite3.Connection) -> set[str]:
    """Return the ids of all runs."""
    return {run_id for (run_id,) in db.execute("SELECT run_id FROM runs")}


def delete_run(db: sqlite3.Connection, position: int) -> None:
    """Remove a run with all that belongs to it but its folder, which may go now."""
    db.execute(
        "INSERT OR IGNORE INTO forgotten (run_id) SELECT run_id FROM runs WHERE position = ?", (position,)
    )
    for table in ("parts", "events", "labels", "resume", "runs"):
        db.execute(f"DELETE FROM {table} WHERE position = ?", (position,))  # noqa: S608 - the names above


def touch(db: sqlite3.Connection) -> None:
    """Write, and change nothing."""
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def check_schema(db: sqlite3.Connection) -> None:
    """Look whether the tables are those that this program makes.

    Raises:
        sqlite3.OperationalError: They are not.
    """
    for columns, table in _TABLES.items():
        db.execute(f"SELECT {columns} FROM {table} LIMIT 0")  # noqa: S608 - constants


def check_run(db: sqlite3.Connection, position: int) -> RunRecord:
    """Return a run of which all is there as it was written.

    Raises:
        DamagedRunError: It is not.
    """
    row = db.execute(f"SELECT {_COLUMNS} FROM runs WHERE position = ?", (position,)).fetchone()  # noqa: S608 - a constant
    if row is None:
        raise damaged("", f"there is no row {position}")
    found = _row_or_damaged(row)
    if isinstance(found, DamagedRecord):
        raise damaged(found.run_id, found.why)
    last = 0
    while events := read_events(db, position, last, _EVENTS_A_CHECK):
        last = events[-1].sequence
    if last != found.last_sequence:
        raise damaged(found.run.run_id, f"its last event is {last} and not {found.last_sequence}")
    read_parts(db, position, last)
    return found


def forgotten_ids(db: sqlite3.Connection) -> set[str]:
    """Return the ids of removed runs whose folders may be there yet."""
    return {run_id for (run_id,) in db.execute("SELECT run_id FROM forgotten")}


def folders_removed(db: sqlite3.Connection, run_ids: Iterable[str]) -> None:
    """Note that the folders of removed runs are gone."""
    db.executemany("DELETE FROM forgotten WHERE run_id = ?", ((run_id,) for run_id in run_ids))


def _run_id(db: sqlite3.Connection, position: int) -> str:
    row = db.execute("SELECT run_id FROM runs WHERE position = ?", (position,)).fetchone()
    return "" if row is None else str(row[0])


def _row(db: sqlite3.Connection, where: str, values: tuple[str, ...]) -> RunRecord | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM runs {where}", values).fetchone()  # noqa: S608 - constants
    if row is None:
        return None
    found = _row_or_damaged(row)
    if isinstance(found, DamagedRecord):
        raise damaged(found.run_id, found.why)
    return found


def _row_or_damaged(row: tuple[Any, ...]) -> RunRecord | DamagedRecord:
    position, run_id, request_id, fingerprint, parameters, order, start_checksum, *rest = row
    state, run, last_sequence, expire_time, run_checksum = rest
    try:
        _compare(start_checksum, run_id, request_id, fingerprint, parameters, order)
        _compare(run_checksum, state, run, last_sequence, expire_time)
        whole = replace(codec.decode_run(run), parameters=codec.decode_parameters(parameters))
        if (whole.run_id, whole.request_id, whole.state.value) != (run_id, request_id or "", state):
            raise ValueError("its row speaks of another run or state")
        return RunRecord(position, whole, codec.decode_order(order), int(last_sequence), str(fingerprint))
    except _MEANINGLESS as error:
        return DamagedRecord(position, str(run_id), _why(error))


def _event(db: sqlite3.Connection, row: tuple[Any, ...]) -> Event:
    position, sequence, time, text, found = row
    try:
        _compare(found, position, sequence, time, text)
        return codec.decode_event(sequence, time, text)
    except _MEANINGLESS as error:
        raise damaged(_run_id(db, position), f"event {sequence}: {_why(error)}") from error


def _part(db: sqlite3.Connection, row: tuple[Any, ...]) -> Part:
    *values, found = row
    try:
        _compare(found, *values)
    except ValueError as error:
        raise damaged(_run_id(db, values[0]), f"part {values[1]}: {_why(error)}") from error
    return Part(*values[1:])


# What decoding something else than was encoded raises.
_MEANINGLESS = (ValueError, TypeError, LookupError, AttributeError)


def _compare(expected: int | None, *values: Any) -> None:
    """Refuse columns that are not as they were written.

    Raises:
        ValueError: They are not.
    """
    # Version 1 wrote no checksum; all that it wrote is text.
    if expected is not None and checksum(*values) != expected:
        raise ValueError("checksum mismatch")


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
