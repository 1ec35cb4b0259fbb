"""SQLite files with a history: their connections, their schema, and its versions.

A history of an earlier version is brought to the newest one when it is opened.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from notebook_runner_server.errors import DamagedRunError
from notebook_runner_server.runs import tables

SCHEMA_VERSION = 5
"""The `PRAGMA user_version` of a history that this server has opened."""

_APPLICATION_ID = 0x6E620000
"""`nb`: combined with the version by XOR, the `PRAGMA application_id` of a history since version 4.

A damaged version would otherwise look like that of a newer server, whose history no start may touch."""

_FIRST_WITH_ID = 4

_CHANGES = """
CREATE TABLE changes (             -- of the states of all runs, and deletions, in the order of their commits
  change INTEGER PRIMARY KEY AUTOINCREMENT,
  position INTEGER NOT NULL,
  sequence INTEGER NOT NULL,       -- of the event; 0: the run was deleted
  state TEXT NOT NULL,             -- as in the event; '': the run was deleted
  owner TEXT NOT NULL
);
CREATE INDEX changes_by_position ON changes (position, change);
CREATE TABLE deletions (           -- the newest ones (`MAX_DELETIONS`)
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  change INTEGER NOT NULL UNIQUE,
  run_id TEXT NOT NULL,
  labels TEXT NOT NULL,            -- digests of the run's labels (`label_digest`)
  is_expired INTEGER NOT NULL      -- whether retention deleted the run
);
CREATE INDEX deletions_by_run ON deletions (run_id);
CREATE TABLE history (             -- one row, from `_begin_changes`
  history_id TEXT NOT NULL,        -- random: change numbers of another history mean nothing in this one
  expired_change INTEGER NOT NULL  -- the newest change that is no longer known
);
"""

_DELIVERIES = """
CREATE TABLE receivers (           -- of webhooks
  name TEXT PRIMARY KEY,
  change INTEGER NOT NULL,         -- the last change that the receiver no longer needs
  failing_since INTEGER NOT NULL   -- when its attempts began to fail; 0: the last one succeeded
) WITHOUT ROWID;
CREATE TABLE notifications (       -- the URIs that are still to be notified of a run's end
  position INTEGER PRIMARY KEY,
  host TEXT NOT NULL,
  uri TEXT NOT NULL                -- may be a secret
);
CREATE INDEX notifications_by_host ON notifications (host, position);
"""

_SCHEMA = (
    """
CREATE TABLE runs (
  position INTEGER PRIMARY KEY AUTOINCREMENT,
  run_id TEXT NOT NULL UNIQUE,
  request_id TEXT UNIQUE,          -- with its owner (`_request_key`); NULL: the request had none
  request_digest TEXT NOT NULL,
  state TEXT NOT NULL,
  run TEXT NOT NULL,               -- the run without its parameters, which never change
  parameters TEXT NOT NULL,
  options TEXT NOT NULL,
  last_sequence INTEGER NOT NULL,
  expire_time INTEGER,             -- NULL: the run has not ended
  start_checksum INTEGER,          -- of the columns that never change; version 1 wrote no checksums
  checksum INTEGER,                -- of the columns that change
  owner TEXT NOT NULL DEFAULT ''   -- as in the run
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
CREATE TABLE segments (            -- where each version of each segment is in the run's file of segments
  position INTEGER NOT NULL, segment INTEGER NOT NULL, sequence INTEGER NOT NULL,
  start INTEGER NOT NULL, length INTEGER NOT NULL,
  content_checksum INTEGER,        -- of the bytes in the file
  checksum INTEGER,
  PRIMARY KEY (position, segment, sequence)
) WITHOUT ROWID;
CREATE INDEX segments_by_sequence ON segments (position, sequence);
CREATE TABLE checkpoints (         -- where a run continues after a restart of the server
  position INTEGER PRIMARY KEY, mark INTEGER NOT NULL, segment_start INTEGER NOT NULL, size INTEGER NOT NULL
);
CREATE TABLE deleted_runs (        -- runs whose folders (of those in `runs`: whose inputs) may still exist
  run_id TEXT PRIMARY KEY
) WITHOUT ROWID;
"""
    + _CHANGES
    + _DELIVERIES
)

# Some histories of version 1 have a table `resume`, others have not.
_FROM_VERSION_1 = """
CREATE TABLE IF NOT EXISTS resume (
  position INTEGER PRIMARY KEY, mark INTEGER NOT NULL, part_start INTEGER NOT NULL, size INTEGER NOT NULL
);
ALTER TABLE runs ADD COLUMN start_checksum INTEGER;
ALTER TABLE runs ADD COLUMN checksum INTEGER;
ALTER TABLE events ADD COLUMN checksum INTEGER;
ALTER TABLE parts ADD COLUMN content_checksum INTEGER;
ALTER TABLE parts ADD COLUMN checksum INTEGER;
CREATE TABLE forgotten (run_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""

# Only names change, so no row is read: some of them may be damaged. For the same reason the index
# `parts_by_sequence` keeps its name.
_FROM_VERSION_2 = """
ALTER TABLE runs RENAME COLUMN fingerprint TO request_digest;
ALTER TABLE runs RENAME COLUMN work_order TO options;
ALTER TABLE parts RENAME TO segments;
ALTER TABLE segments RENAME COLUMN part TO segment;
ALTER TABLE resume RENAME TO checkpoints;
ALTER TABLE checkpoints RENAME COLUMN part_start TO segment_start;
ALTER TABLE forgotten RENAME TO deleted_runs;
"""

# Version 4 has more fields in the JSON of a run, which a server of version 3 would take for damage. Version 5
# has owners, of which runs from before have none, changes, which `create_indexes` fills in, and webhooks.
_FROM_VERSION_4 = "ALTER TABLE runs ADD COLUMN owner TEXT NOT NULL DEFAULT '';" + _CHANGES + _DELIVERIES

_UPGRADES = {
    0: _SCHEMA,
    1: _FROM_VERSION_1 + _FROM_VERSION_2 + _FROM_VERSION_4,
    2: _FROM_VERSION_2 + _FROM_VERSION_4,
    3: _FROM_VERSION_4,
    4: _FROM_VERSION_4,
}
"""What brings a history of each version, and a new one (0), to the newest."""

_INDEXES = f"""
CREATE INDEX IF NOT EXISTS runs_by_random_part ON runs ({tables.RANDOM_PART});
CREATE INDEX IF NOT EXISTS runs_by_owner ON runs (owner, position);
"""
"""Not part of the upgrades, because to create an index reads each row, some of which may be damaged."""


class SqliteConnection(sqlite3.Connection):
    """A connection to an SQLite file."""

    rows_at_once = 2**31 - 1  # rows are found as they are read
    last_change = "COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'changes'), 0)"

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let several statements see the same state of the database."""
        self.execute("BEGIN")
        try:
            yield
        finally:
            # After some errors, SQLite has ended the transaction.
            if self.in_transaction:
                self.execute("COMMIT")


def connect(path: Path) -> SqliteConnection:
    """Return a connection to a file, which begins no transaction by itself."""
    db = sqlite3.connect(path, isolation_level=None, factory=SqliteConnection)
    # Damaged text can be read; its checksum reveals it.
    db.text_factory = lambda data: data.decode(errors="surrogateescape")
    return db


def create(db: SqliteConnection, *, is_first: bool = True) -> None:
    """Create the tables of a new history, and upgrade those of an earlier version.

    Args:
        db: The database.
        is_first: Whether the history may be new.

    Raises:
        sqlite3.DatabaseError: The tables are missing or differ.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if not is_version_confirmed(version, db.execute("PRAGMA application_id").fetchone()[0]):
        raise sqlite3.DatabaseError(f"the version {version} of the history is damaged")
    if version == 0 and not is_first:
        raise sqlite3.DatabaseError("runs exist, but the history is empty")
    if version < SCHEMA_VERSION:
        db.executescript(f"BEGIN; {_UPGRADES[version]} {_version_pragmas(SCHEMA_VERSION)} COMMIT;")
    tables.check_schema(db)


def is_version_confirmed(version: int, application_id: int) -> bool:
    """Return whether the application id confirms the version of a history."""
    return application_id == _application_id(version)


def restore_version(db: SqliteConnection) -> None:
    """Set a version that is damaged to the one that the tables show."""
    columns = {name for (name,) in db.execute("SELECT name FROM pragma_table_info('runs')")}
    # Between 3 and 4 no column changed.
    marks = (("owner", SCHEMA_VERSION), ("request_digest", 4), ("checksum", 2))
    version = next((version for column, version in marks if column in columns), 1)
    db.executescript(_version_pragmas(version))


def _version_pragmas(version: int) -> str:
    return f"PRAGMA user_version = {version}; PRAGMA application_id = {_application_id(version)};"


def _application_id(version: int) -> int:
    # Not by `|`, which would hide a damaged bit of the version.
    return _APPLICATION_ID ^ version if version >= _FIRST_WITH_ID else 0


def create_indexes(db: SqliteConnection) -> None:
    """Create the indexes that histories of earlier versions lack.

    Raises:
        sqlite3.DatabaseError: The history is damaged.
    """
    db.executescript(_INDEXES)
    if not db.execute("SELECT 1 FROM history").fetchone():
        _begin_changes(db)


def _begin_changes(db: SqliteConnection) -> None:
    """Begin the changes of a history with the current state of each run that it has."""
    db.execute("BEGIN IMMEDIATE")
    try:
        some = f"IN ({', '.join('?' * len(tables.UNENDED))})"
        columns = "INSERT INTO changes (position, sequence, state, owner)"
        ended = f"SELECT position, last_sequence, state, owner FROM runs WHERE state NOT {some}"  # noqa: S608 - marks
        db.execute(f"{columns} {ended}", [*tables.UNENDED])
        unended = f"SELECT position, last_sequence, state FROM runs WHERE state {some}"  # noqa: S608 - marks
        for position, last_sequence, state in db.execute(unended, [*tables.UNENDED]).fetchall():
            # The last event may be of a cell. A damaged run has no change until the next one.
            with contextlib.suppress(DamagedRunError):
                tables.insert_change(
                    db, position, tables.find_state(db, position, last_sequence).sequence, state
                )
        db.execute("INSERT INTO history (history_id, expired_change) VALUES (?, 0)", (secrets.token_hex(8),))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def copy_deletions(source: SqliteConnection, target: SqliteConnection) -> None:
    """Copy the deletions of a history to a new one, where they get new numbers.

    Raises:
        sqlite3.DatabaseError: The source is damaged.
    """
    rows = source.execute(
        "SELECT position, owner, run_id, labels, is_expired FROM deletions JOIN changes USING (change)"
        " ORDER BY number"
    ).fetchall()
    for position, owner, *deletion in rows:
        change = target.execute(
            "INSERT INTO changes (position, sequence, state, owner) VALUES (?, 0, '', ?)", (position, owner)
        ).lastrowid
        target.execute(
            "INSERT INTO deletions (change, run_id, labels, is_expired) VALUES (?, ?, ?, ?)",
            (change, *deletion),
        )


def touch(db: SqliteConnection) -> None:
    """Write without a change, to find out whether the disk takes writes."""
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
