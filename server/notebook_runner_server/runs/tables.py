"""The SQL of the store: every statement that reads or writes its tables, in SQLite and in PostgreSQL.

The tables themselves are in `schema` and in `postgres.migrations`.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from notebook_runner_server.errors import DamagedRunError, damaged
from notebook_runner_server.runs import codec
from notebook_runner_server.runs.database import Connection, Cursor
from notebook_runner_server.runs.model import (
    Change,
    ChangeFilter,
    Checkpoint,
    Event,
    ExecutionOptions,
    Notify,
    Run,
    RunChanged,
    RunState,
    Segment,
    label_digest,
)

_SEPARATOR = "\x1f"

MAX_DELETIONS = 100_000
"""How many deletions a history remembers; the cursors of watchers before older ones have expired."""

_CHANGES_PER_READ = 256

_CHANGES_AT_ONCE = 8
"""How many changes are read with their events at a time: an event may have 1 MiB of parameters."""

UNENDED = frozenset(state.value for state in RunState if not state.is_terminal)
ENDED = ", ".join(f"'{state.value}'" for state in RunState if state.is_terminal)
"""The terminal states, as SQL."""

RANDOM_PART = "substr(run_id, length(rtrim(run_id, replace(run_id, '-', ''))) + 1)"
"""What follows the last hyphen of a run's id: `rtrim` removes all characters that are not hyphens."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the store has it; `position` orders runs by the time of their Start."""

    position: int
    run: Run
    options: ExecutionOptions
    last_sequence: int
    request_digest: str

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.run.run_id

    @property
    def owner(self) -> str:
        """The run's owner."""
        return self.run.owner


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A run whose row cannot be decoded."""

    position: int
    run_id: str
    why: str
    owner: str


def insert_change(db: Connection, position: int, sequence: int, state: str) -> Cursor:
    """Insert a change of a run, and return a cursor with its number; arguments as in the table."""
    # By SQL, here and in `delete_run`, because an owner or id that is damaged may be no text.
    return db.execute(
        "INSERT INTO changes (position, sequence, state, owner)"
        " SELECT position, ?, ?, owner FROM runs WHERE position = ? RETURNING change",
        (sequence, state, position),
    )


def check_schema(db: Connection) -> None:
    """Check that all tables and columns exist.

    Raises:
        Exception: One is missing; the error is the database's own.
    """
    for columns, table in _TABLES.items():
        db.execute(f"SELECT {columns} FROM {table} LIMIT 0")  # noqa: S608 - constants


def checksum(*values: Any) -> int:
    """Return a checksum of the values of some columns."""
    # repr() escapes other characters in each version of Python; ascii() escapes the same in all.
    return zlib.crc32(ascii(values).encode())


def insert_run(
    db: Connection,
    run: Run,
    options: ExecutionOptions,
    request_digest: str,
    event: Event,
    segments: Iterable[Segment],
    notify: Notify | None = None,
) -> int:
    """Insert a run with its first event, and return its position."""
    request_id, state = _request_key(run.request_id, run.owner), run.state.value
    encoded = codec.encode_run(replace(run, parameters={}))
    constant = (
        *(run.run_id, request_id, request_digest),
        *(codec.encode_parameters(run.parameters), codec.encode_options(options)),
    )
    position: int = db.execute(
        "INSERT INTO runs"
        " (run_id, request_id, request_digest, parameters, options, start_checksum,"
        "  state, run, last_sequence, checksum, owner)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING position",
        (
            *(*constant, checksum(*constant)),
            *(state, encoded, event.sequence, checksum(state, encoded, event.sequence, None), run.owner),
        ),
    ).fetchall()[0][0]
    labels = ((name, value, position) for name, value in run.labels.items())
    db.executemany("INSERT INTO labels (name, value, position) VALUES (?, ?, ?)", labels)
    if notify is not None:
        text = "INSERT INTO notifications (position, host, uri) VALUES (?, ?, ?)"
        db.execute(text, (position, notify.host, notify.uri))
    _insert_events(db, position, [event], segments)
    return position


def find_notification(db: Connection, position: int) -> Notify | None:
    """Return who is still to be notified of a run's end; None: nobody."""
    row = db.execute("SELECT host, uri FROM notifications WHERE position = ?", (position,)).fetchone()
    return None if row is None else Notify(*row)


def append(
    db: Connection,
    position: int,
    run: Run,
    events: Sequence[Event],
    segments: Iterable[Segment],
    expire_time: int | None,
) -> None:
    """Add events and segments to a run, and update the run."""
    _insert_events(db, position, events, segments)
    if events:
        encoded = codec.encode_run(replace(run, parameters={}))
        values = (run.state.value, encoded, events[-1].sequence, expire_time)
        db.execute(
            "UPDATE runs SET state = ?, run = ?, last_sequence = ?, expire_time = ?, checksum = ?"
            " WHERE position = ?",
            (*values, checksum(*values), position),
        )


def _insert_events(
    db: Connection, position: int, events: Sequence[Event], segments: Iterable[Segment]
) -> None:
    rows = ((position, event.sequence, event.time, codec.encode_event(event)) for event in events)
    db.executemany(
        "INSERT INTO events (position, sequence, time, event, checksum) VALUES (?, ?, ?, ?, ?)",
        ((*row, checksum(*row)) for row in rows),
    )
    for event in events:
        if isinstance(event.body, RunChanged):
            insert_change(db, position, event.sequence, event.body.run.state.value)
    locations = (
        (position, one.number, one.sequence, one.start, one.length, one.checksum) for one in segments
    )
    db.executemany(
        "INSERT INTO segments"
        " (position, segment, sequence, start, length, content_checksum, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (position, segment, sequence) DO UPDATE SET"
        " start = excluded.start, length = excluded.length,"
        " content_checksum = excluded.content_checksum, checksum = excluded.checksum",
        ((*location, checksum(*location)) for location in locations),
    )


def write_checkpoint(db: Connection, position: int, checkpoint: Checkpoint) -> None:
    """Set where a run continues after a restart of the server."""
    db.execute(
        "INSERT INTO checkpoints (position, mark, segment_start, size) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (position) DO UPDATE SET mark = excluded.mark,"
        " segment_start = excluded.segment_start, size = excluded.size",
        (position, checkpoint.mark, checkpoint.segment_start, checkpoint.size),
    )


def read_checkpoint(db: Connection, position: int) -> Checkpoint | None:
    """Return where a run continues; None: no checkpoint was written."""
    row = db.execute(
        "SELECT mark, segment_start, size FROM checkpoints WHERE position = ?", (position,)
    ).fetchone()
    return None if row is None else Checkpoint(*row)


_COLUMNS = (
    "position, run_id, request_id, request_digest, parameters, options, start_checksum,"
    " state, run, last_sequence, expire_time, checksum, owner"
)

_TABLES = {
    _COLUMNS: "runs",
    "name, value, position": "labels",
    "position, sequence, time, event, checksum": "events",
    "position, segment, sequence, start, length, content_checksum, checksum": "segments",
    "position, mark, segment_start, size": "checkpoints",
    "run_id": "deleted_runs",
    "change, position, sequence, state, owner": "changes",
    "number, change, run_id, labels, is_expired": "deletions",
    "history_id, expired_change": "history",
    "name, change, failing_since": "receivers",
    "position, host, uri": "notifications",
}
_CHECK_EVENTS = 256

_ENOUGH_BYTES = 128 * 1024
"""Bytes of events after which a read ends: a slow reader holds all that was read for it."""


def find_run(db: Connection, run_id: str, owner: str | None) -> RunRecord | None:
    """Return a run of an owner, or of anyone (None), by its id; None: not found."""
    return _find(db, *_of_owner("WHERE run_id = ?", [run_id], owner))


def find_newest(db: Connection, owner: str | None) -> RunRecord | None:
    """Return the newest run of an owner, or of anyone (None); None: there is none."""
    where, values = _of_owner("WHERE 1 = 1", [], owner)
    return _find(db, f"{where} ORDER BY position DESC LIMIT 1", values)


def find_ids(db: Connection, part: str, limit: int, owner: str | None) -> list[str]:
    """Return up to `limit` ids that begin with a part, or whose random part does; latest second first.

    The id that is the part as a whole comes alone. Only runs of an owner, or of anyone (None), count.
    """
    where, values = _of_owner("WHERE run_id = ?", [part], owner)
    if db.execute(f"SELECT 1 FROM runs {where}", values).fetchone():  # noqa: S608 - constants and marks
        return [part]
    found: set[str] = set()
    for column in ("run_id", RANDOM_PART):
        # No character comes after the last one. Compared by its bytes, as the indexes are.
        where, values = _of_owner(f"WHERE {column} >= ? AND {column} < ?", [part, f"{part}\U0010ffff"], owner)
        text = f"SELECT run_id FROM runs {where} ORDER BY {column} DESC LIMIT ?"  # noqa: S608 - constants and marks
        found.update(run_id for (run_id,) in db.execute(text, [*values, limit]))
    return sorted(found, reverse=True)[:limit]


def find_to_delete(db: Connection, run_id: str, owner: str | None) -> RunRecord | DamagedRecord | None:
    """Return a run of an owner, or of anyone (None), also if its row is damaged; None: not found."""
    return next(iter(_select(db, *_of_owner("WHERE run_id = ?", [run_id], owner))), None)


def find_request(db: Connection, request_id: str, owner: str) -> RunRecord | None:
    """Return the run of an owner's request id; None: not found."""
    key = _request_key(request_id, owner)
    return None if key is None else _find(db, "WHERE request_id = ?", [key])


def _of_owner(where: str, values: Sequence[str | int], owner: str | None) -> tuple[str, list[str | int]]:
    """Restrict a condition to the runs of an owner; None: do not restrict it."""
    return (where, [*values]) if owner is None else (f"{where} AND owner = ?", [*values, owner])


def _request_key(request_id: str, owner: str) -> str | None:
    """Return the value of the column `request_id`, which is unique for each owner's request id.

    Without an owner it is the request id, as earlier versions wrote it. No name of an owner has the character
    that separates it.
    """
    if not owner and not request_id.startswith(_SEPARATOR):
        return request_id or None
    return f"{_SEPARATOR}{owner}{_SEPARATOR}{request_id}" if request_id else None


def unended_runs(db: Connection) -> list[RunRecord | DamagedRecord]:
    """Return the runs that have not ended, oldest first."""
    states = f"WHERE state IN ({', '.join('?' * len(UNENDED))}) ORDER BY position"
    return _select(db, states, [*UNENDED])


def list_runs(
    db: Connection,
    before: int,
    size: int,
    states: Sequence[RunState],
    labels: Mapping[str, str],
    owner: str | None,
) -> list[RunRecord | DamagedRecord]:
    """Return up to `size` runs before a position, newest first, that match states and labels.

    Only runs of an owner, or of anyone (None), are returned.
    """
    where: list[str] = ["position < ?"]
    values: list[str | int] = [before]
    if owner is not None:
        where.append("owner = ?")
        values.append(owner)
    if states:
        where.append(f"state IN ({', '.join('?' * len(states))})")
        values += [state.value for state in states]
    for name, value in labels.items():
        where.append("position IN (SELECT position FROM labels WHERE name = ? AND value = ?)")
        values += [name, value]
    return _select(db, f"WHERE {' AND '.join(where)} ORDER BY position DESC LIMIT ?", [*values, size])


def ended_runs(db: Connection, until: int, after: int, limit: int) -> list[RunRecord]:
    """Return ended runs after a position that expire up to `until`, oldest first."""
    rows = _select(
        db, "WHERE expire_time <= ? AND position > ? ORDER BY position LIMIT ?", (until, after, limit)
    )
    # The expiry of a damaged run may be wrong, so that run stays.
    return [row for row in rows if isinstance(row, RunRecord)]


def count_ended(db: Connection) -> int:
    """Return how many runs have ended."""
    count: int = db.execute("SELECT COUNT(*) FROM runs WHERE expire_time IS NOT NULL").fetchone()[0]
    return count


def run_ids(db: Connection) -> set[str]:
    """Return the ids of all runs."""
    return {run_id for (run_id,) in db.execute("SELECT run_id FROM runs")}


def read_events(db: Connection, position: int, after: int, limit: int) -> list[Event]:
    """Return up to `limit` events of a run after a sequence number, in order; fewer when they are large.

    Raises:
        DamagedRunError: One is damaged or missing.
    """
    events: list[Event] = []
    for event in _read_events(db, "sequence > ? ORDER BY sequence", position, after, limit):
        if event.sequence != after + 1 + len(events):
            raise damaged(_run_id(db, position), f"event {after + 1 + len(events)} is missing")
        events.append(event)
    return events


def last_sequences(db: Connection, positions: Sequence[int]) -> dict[int, int]:
    """Return the sequence number of the newest event of each of some runs."""
    marks = ", ".join("?" * len(positions))
    rows = db.execute(f"SELECT position, last_sequence FROM runs WHERE position IN ({marks})", positions)  # noqa: S608 - marks
    return dict(rows.fetchall())


def read_events_back(db: Connection, position: int, before: int, limit: int) -> list[Event]:
    """Return up to `limit` events of a run before a sequence number, newest first; fewer when large."""
    return _read_events(db, "sequence < ? ORDER BY sequence DESC", position, before, limit)


def _read_events(db: Connection, where: str, position: int, sequence: int, limit: int) -> list[Event]:
    columns = "position, sequence, time, event, checksum"
    text = f"SELECT {columns} FROM events WHERE position = ? AND {where} LIMIT ?"  # noqa: S608 - constants
    events: list[Event] = []
    size = 0
    while len(events) < limit and size < _ENOUGH_BYTES:
        rest = min(limit - len(events), db.rows_at_once)
        if events:
            sequence = events[-1].sequence
            # About as many as are still needed.
            rest = min(limit - len(events), max(1, (_ENOUGH_BYTES - size) * len(events) // size))
        before = len(events)
        # An unfinished cursor would keep the connection from seeing later writes.
        with contextlib.closing(db.execute(text, (position, sequence, rest))) as cursor:
            for row in cursor:
                events.append(_event(db, row))
                size += len(row[3])
                if size >= _ENOUGH_BYTES:
                    break
        if len(events) < before + rest:
            break
    return events


def read_segments(db: Connection, position: int, as_of: int) -> list[Segment]:
    """Return the version that each segment had at a sequence number, in the order of the segments."""
    rows = db.execute(
        "SELECT position, segment, sequence, start, length, content_checksum, checksum FROM segments AS one"
        " WHERE position = ? AND sequence = (SELECT MAX(sequence) FROM segments"
        " WHERE position = one.position AND segment = one.segment AND sequence <= ?) ORDER BY segment",
        (position, as_of),
    ).fetchall()
    return [_segment(db, row) for row in rows]


def newest_segment(db: Connection, position: int, as_of: int) -> int:
    """Return the sequence number of the newest segment of a run at a sequence number."""
    text = "SELECT MAX(sequence) FROM segments WHERE position = ? AND sequence <= ?"
    newest: int | None = db.execute(text, (position, as_of)).fetchone()[0]
    return newest or 0


def find_state(db: Connection, position: int, as_of: int) -> Event:
    """Return the event that brought a run into the state that it had at a sequence number.

    Raises:
        DamagedRunError: It is damaged or missing.
    """
    # An event begins with two numbers and its kind; a look at the beginning is enough for nearly all others.
    cursor = db.execute(
        "SELECT position, sequence, time, event, checksum FROM events WHERE position = ? AND sequence <= ?"
        " AND substr(event, 1, 60) LIKE '%\"run\"%'"
        " ORDER BY sequence DESC",
        (position, as_of),
    )
    with contextlib.closing(cursor):
        for row in cursor:
            event = _event(db, row)
            if isinstance(event.body, RunChanged):
                return event
    raise damaged(_run_id(db, position), f"no state is known at event {as_of}")


def find_versions(db: Connection, run_id: str, as_of: int) -> tuple[RunRecord, int, int] | None:
    """Return a run, and the sequence numbers of its newest segment: now, and as of one; None: not found.

    Args:
        db: The database.
        run_id: The run.
        as_of: The sequence number; zero: the newest.
    """
    record = find_run(db, run_id, None)
    if record is None:
        return None
    now = newest_segment(db, record.position, record.last_sequence)
    then = newest_segment(db, record.position, as_of) if 0 < as_of < record.last_sequence else now
    return record, now, then


def delete_run(db: Connection, position: int, *, is_expired: bool = False) -> bool:
    """Delete a run with all its rows; its folder can be removed afterwards. False: it was deleted before.

    Args:
        db: The database.
        position: The run's position.
        is_expired: Whether retention deletes it.
    """
    if not db.execute("SELECT 1 FROM runs WHERE position = ?", (position,)).fetchone():
        return False
    labels = db.execute(
        "SELECT run_id, name, value FROM labels JOIN runs USING (position) WHERE position = ?", (position,)
    )
    digests = [label_digest(str(run_id), name, value) for run_id, name, value in labels.fetchall()]
    _delete_changes(db, position)
    change: int = insert_change(db, position, 0, "").fetchall()[0][0]
    number: int = db.execute(
        "INSERT INTO deletions (change, run_id, labels, is_expired)"
        " SELECT ?, run_id, ?, ? FROM runs WHERE position = ? RETURNING number",
        (change, json.dumps(digests), int(is_expired), position),
    ).fetchall()[0][0]
    _forget_deletions(db, number - MAX_DELETIONS)
    db.execute(
        "INSERT INTO deleted_runs (run_id) SELECT run_id FROM runs WHERE position = ? ON CONFLICT DO NOTHING",
        (position,),
    )
    for table in ("segments", "events", "labels", "checkpoints", "runs"):
        db.execute(f"DELETE FROM {table} WHERE position = ?", (position,))  # noqa: S608 - the names above
    return True


def _delete_changes(db: Connection, position: int) -> None:
    """Delete the changes of a run, except for its end if a receiver of webhooks does not have it yet."""
    # The row of the end has nothing of the run but its state and owner. Watchers do not get it, because its
    # event is missing.
    db.execute(
        f"DELETE FROM changes WHERE position = ? AND (state NOT IN ({ENDED})"  # noqa: S608 - constants
        " OR change <= (SELECT COALESCE(MIN(change), 9223372036854775807) FROM receivers))",
        (position,),
    )
    db.execute(
        "DELETE FROM notifications WHERE position = ?"
        " AND NOT EXISTS (SELECT 1 FROM changes WHERE position = ?)",
        (position, position),
    )


def _forget_deletions(db: Connection, until: int) -> None:
    """Remove deletions up to a number."""
    newest = db.execute("SELECT MAX(change) FROM deletions WHERE number <= ?", (until,)).fetchone()[0]
    if newest is not None:
        db.execute("UPDATE history SET expired_change = ?", (newest,))
        old = "(SELECT position FROM changes JOIN deletions USING (change) WHERE number <= ?)"
        # With the ends of these runs.
        db.execute(f"DELETE FROM changes WHERE position IN {old}", (until,))  # noqa: S608 - a constant
        db.execute("DELETE FROM deletions WHERE number <= ?", (until,))


def is_expired(db: Connection, run_id: str, owner: str | None) -> bool:
    """Return whether retention has deleted a run of an owner, or of anyone (None)."""
    where, values = _of_owner("WHERE run_id = ? AND is_expired = 1", [run_id], owner)
    text = f"SELECT 1 FROM deletions JOIN changes USING (change) {where}"  # noqa: S608 - constants and marks
    return db.execute(text, values).fetchone() is not None


@dataclass(frozen=True, slots=True)
class ChangesState:
    """How far the changes of a history are.

    Attributes:
        history_id: The history.
        last: The number of the newest change.
        expired: The newest change that is no longer known: what comes after it is complete.
    """

    history_id: str
    last: int
    expired: int


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Changes that were read together.

    Attributes:
        changes: The changes that match, each with the position of its run.
        damaged: The ids of runs whose change is damaged, and so left out, each with the reason.
        last: Where the next read continues; None: this one has reached the end.
        state: How far the changes were at that moment.
    """

    changes: Sequence[tuple[int, Change]]
    damaged: Sequence[tuple[str, str]]
    last: int | None
    state: ChangesState


def changes_state(db: Connection) -> ChangesState:
    """Return how far the changes are."""
    text = f"SELECT history_id, {db.last_change}, expired_change FROM history"  # noqa: S608 - a constant
    return ChangesState(*db.execute(text).fetchone())


def read_changes(db: Connection, after: int, wanted: ChangeFilter) -> ChangeBatch:
    """Return some changes after a number that match a filter, in order; `last` is a number of a change."""
    some = (
        f"SELECT change AS key, {_CHANGE_COLUMNS} FROM changes WHERE change > ?"  # noqa: S608 - constants
        f" ORDER BY change LIMIT {_CHANGES_PER_READ}"
    )
    return _read_batch(db, some, [after], wanted)


def read_existing(db: Connection, as_of: int, after: int, wanted: ChangeFilter) -> ChangeBatch:
    """Return the newest change up to a number of some runs, if it matches a filter; `last` is a position.

    Args:
        db: The database.
        as_of: The number of the last change that counts.
        after: The position after which to begin.
        wanted: The filter.
    """
    some = (
        f"SELECT position AS key, {_CHANGE_COLUMNS} FROM changes WHERE change IN"  # noqa: S608 - constants
        " (SELECT MAX(change) FROM changes WHERE position > ? AND change <= ? AND sequence > 0"
        f" GROUP BY position ORDER BY position LIMIT {_CHANGES_PER_READ})"
    )
    return _read_batch(db, some, [after, as_of], wanted)


_CHANGE_COLUMNS = "change, position, state, owner"


def _read_batch(db: Connection, some: str, values: Sequence[int], wanted: ChangeFilter) -> ChangeBatch:
    """Return changes of up to `_CHANGES_PER_READ` rows; fewer when they are large."""
    # By one statement, which sees one state of the history. Without changes it finds that state alone.
    rows = db.execute(
        f"SELECT history_id, {db.last_change}, expired_change, key, {_CHANGE_COLUMNS}"  # noqa: S608 - constants
        f" FROM history LEFT JOIN ({some}) AS one ON 1 = 1 ORDER BY key",
        values,
    ).fetchall()
    state = ChangesState(*rows[0][:3])
    found = [row[3:] for row in rows if row[3] is not None]
    last = found[-1][0] if len(found) == _CHANGES_PER_READ else None
    damaged_runs: list[tuple[str, str]] = []
    passing: list[tuple[int, int]] = []
    for key, number, position, state_text, owner in found:
        try:
            if wanted.may_match(owner, RunState(state_text) if state_text else None):
                passing.append((key, number))
        except ValueError as error:
            damaged_runs.append((_run_id(db, position), f"change {number}: {_describe(error)}"))
    changes: list[tuple[int, Change]] = []
    size = 0
    while passing:
        some_passing, passing = passing[:_CHANGES_AT_ONCE], passing[_CHANGES_AT_ONCE:]
        read, damaged_some = _read_some(db, [number for _, number in some_passing])
        if len(read) + len(damaged_some) < len(some_passing):
            # Their runs were deleted meanwhile, which is a change itself, or such changes were forgotten.
            state = replace(state, expired=changes_state(db).expired)
        changes += [(position, change) for position, change in read if wanted.matches(change)]
        damaged_runs += damaged_some
        size += sum(change.size for _, change in read)
        if passing and size >= _ENOUGH_BYTES:
            last = some_passing[-1][0]
            break
    return ChangeBatch(changes, damaged_runs, last, state)


def _read_some(
    db: Connection, numbers: Sequence[int]
) -> tuple[list[tuple[int, Change]], list[tuple[str, str]]]:
    """Return changes in the order of these numbers, each with the position of its run; then the damaged."""
    rows = _change_rows(db, numbers)
    changes: list[tuple[int, Change]] = []
    damaged_runs: list[tuple[str, str]] = []
    for number, position, *columns in [rows[number] for number in numbers if number in rows]:
        try:
            changes.append((position, _change(db, number, position, *columns)))
        except DamagedRunError as error:
            damaged_runs.append((error.metadata["run_id"], error.message))
        except _DECODING_ERRORS as error:
            damaged_runs.append((_run_id(db, position), f"change {number}: {_describe(error)}"))
    return changes, damaged_runs


def _change_rows(db: Connection, numbers: Sequence[int]) -> dict[int, tuple[Any, ...]]:
    """Return changes by their numbers, each with its event or its deletion."""
    rows = db.execute(
        "SELECT changes.change, changes.position, changes.sequence, owner, time, event, checksum, run_id,"  # noqa: S608 - marks
        " labels FROM changes LEFT JOIN events ON events.position = changes.position"
        " AND events.sequence = changes.sequence LEFT JOIN deletions ON deletions.change = changes.change"
        f" WHERE changes.change IN ({', '.join('?' * len(numbers))})",
        numbers,
    ).fetchall()
    return {row[0]: row for row in rows}


def _change(db: Connection, number: int, position: int, sequence: int, owner: str, *columns: Any) -> Change:
    """Return a change of a run, of which the columns are those of its event, or of its deletion.

    Raises:
        DamagedRunError: It is damaged or missing.
    """
    time, text, expected, run_id, labels = columns
    if not sequence:
        return Change(number, run_id, owner, {}, None, len(labels), frozenset(json.loads(labels)))
    if text is None:
        raise damaged(_run_id(db, position), f"event {sequence} is missing")
    body = _event(db, (position, sequence, time, text, expected)).body
    if not isinstance(body, RunChanged):
        raise damaged(_run_id(db, position), f"event {sequence} has no state")
    run = body.run
    return Change(number, run.run_id, owner, run.labels, run, len(text))


def deleted_run_ids(db: Connection) -> set[str]:
    """Return the ids of runs with something to remove, as in `mark_folders`."""
    return {run_id for (run_id,) in db.execute("SELECT run_id FROM deleted_runs")}


def mark_folders(db: Connection, run_ids: Iterable[str]) -> None:
    """Record folders of runs for removal; of runs that are in the history, only the inputs."""
    db.executemany(
        "INSERT INTO deleted_runs (run_id) VALUES (?) ON CONFLICT DO NOTHING", ((one,) for one in run_ids)
    )


def folders_removed(db: Connection, run_ids: Iterable[str]) -> None:
    """Record that what was to go is gone from the folders of runs."""
    db.executemany("DELETE FROM deleted_runs WHERE run_id = ?", ((run_id,) for run_id in run_ids))


def check_run(db: Connection, position: int) -> RunRecord:
    """Return a run after a check of its row, events and segments.

    Raises:
        DamagedRunError: Something of it is damaged or missing.
    """
    found = _find(db, "WHERE position = ?", (position,))
    if found is None:
        raise damaged("", f"row {position} is missing")
    last = 0
    while events := read_events(db, position, last, _CHECK_EVENTS):
        last = events[-1].sequence
    if last != found.last_sequence:
        raise damaged(found.run_id, f"its last event is {last} and not {found.last_sequence}")
    read_segments(db, position, last)
    return found


def _run_id(db: Connection, position: int) -> str:
    row = db.execute("SELECT run_id FROM runs WHERE position = ?", (position,)).fetchone()
    return "" if row is None else str(row[0])


def _select(db: Connection, where: str, values: Sequence[str | int]) -> list[RunRecord | DamagedRecord]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM runs {where}", values).fetchall()  # noqa: S608 - constants and marks
    return [_decode_row(row) for row in rows]


def _find(db: Connection, where: str, values: Sequence[str | int]) -> RunRecord | None:
    found = next(iter(_select(db, where, values)), None)
    if isinstance(found, DamagedRecord):
        raise damaged(found.run_id, found.why)
    return found


def _decode_row(row: tuple[Any, ...]) -> RunRecord | DamagedRecord:
    position, run_id, request_id, request_digest, parameters, options, start_checksum, *rest = row
    state, encoded, last_sequence, expire_time, run_checksum, owner = rest
    try:
        _verify(start_checksum, run_id, request_id, request_digest, parameters, options)
        _verify(run_checksum, state, encoded, last_sequence, expire_time)
        run = replace(codec.decode_run(encoded), parameters=codec.decode_parameters(parameters))
        # Earlier versions wrote any request id as it is.
        is_its_request = request_id in (_request_key(run.request_id, run.owner), run.request_id or None)
        if not is_its_request or (run.run_id, run.state.value, run.owner) != (run_id, state, owner):
            raise ValueError("its row describes another run, owner or state")
        return RunRecord(
            position, run, codec.decode_options(options), int(last_sequence), str(request_digest)
        )
    except _DECODING_ERRORS as error:
        return DamagedRecord(position, str(run_id), _describe(error), str(owner))


def _event(db: Connection, row: tuple[Any, ...]) -> Event:
    position, sequence, time, text, expected = row
    try:
        _verify(expected, position, sequence, time, text)
        return codec.decode_event(sequence, time, text)
    except _DECODING_ERRORS as error:
        raise damaged(_run_id(db, position), f"event {sequence}: {_describe(error)}") from error


def _segment(db: Connection, row: tuple[Any, ...]) -> Segment:
    *values, expected = row
    try:
        _verify(expected, *values)
    except ValueError as error:
        raise damaged(_run_id(db, values[0]), f"segment {values[1]}: {_describe(error)}") from error
    return Segment(*values[1:])


# What decoding raises when the text is not what was encoded.
_DECODING_ERRORS = (ValueError, TypeError, LookupError, AttributeError)


def _verify(expected: int | None, *values: Any) -> None:
    """Compare columns with their checksum.

    Raises:
        ValueError: They differ.
    """
    # Version 1 wrote no checksums, and only text.
    if expected is not None and checksum(*values) != expected:
        raise ValueError("checksum mismatch")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
