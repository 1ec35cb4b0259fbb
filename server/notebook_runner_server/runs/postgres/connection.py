"""Connections to PostgreSQL that take the statements of the store."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import conninfo

ROWS_AT_ONCE = 16
"""How many rows a query that may stop early asks for first: all that it asks for are sent."""

_ESCAPE = "\x1a"
# PostgreSQL stores no NUL, and UTF-8 has no surrogates.
_UNSTORABLE = re.compile(f"[\0{_ESCAPE}\ud800-\udfff]")
_ESCAPED = re.compile(f"{_ESCAPE}(....)", re.DOTALL)

# The server does not work now, or not for writes; another attempt may find one that does.
_PASSING = ("08", "57P", "25006", "53300")


class DatabaseLostError(Exception):
    """The database cannot be reached now; the message says why."""


_PREPARE_THRESHOLD = 5
"""How often a connection executes a statement until it prepares it."""


def connect(store: str, seconds: float, server_id: str, purpose: str) -> psycopg.Connection[tuple[Any, ...]]:
    """Return a connection that begins no transaction by itself.

    Args:
        store: The URL of the database.
        seconds: How long to wait for the connection, and for the acknowledgement of what is sent.
        server_id: This server, by which others find its connections when it is gone.
        purpose: What the connection is for.

    Raises:
        psycopg.Error: The database cannot be reached, or refuses the connection.
    """
    raw = psycopg.Connection.connect(
        store, autocommit=True, cursor_factory=psycopg.RawCursor, **arguments(seconds, server_id, purpose)
    )
    with contextlib.ExitStack() as stack:
        stack.callback(raw.close)
        configure(raw)
        stack.pop_all()
    return raw


def configure(raw: psycopg.Connection[Any]) -> None:
    """Let a connection prepare its statements, unless a pooler passes it on, with which they would stay."""
    raw.prepare_threshold = None if is_pooled(raw) else _PREPARE_THRESHOLD


def arguments(seconds: float, server_id: str, purpose: str) -> dict[str, Any]:
    """Return arguments for `connect` that the operator has not to give; as there."""
    return {
        "connect_timeout": max(2, round(seconds)),
        "tcp_user_timeout": round(seconds * 1000),
        "keepalives_idle": max(1, round(seconds / 2)),
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "application_name": _prefix(server_id) + purpose,
        # Until `configure` knows better.
        "prepare_threshold": None,
    }


def _prefix(server_id: str) -> str:
    """Return what the names of all connections of a server begin with; a pooler may add to their ends."""
    return f"notebook-runner {server_id} "


def foreign_name(raw: psycopg.Connection[Any], server_id: str) -> str | None:
    """Return the name that others see of this connection, if it is not that of this server; None: it is."""
    text = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    ((name,),) = raw.execute(text).fetchall()
    return None if (name or "").startswith(_prefix(server_id)) else (name or "")


def shown(store: str) -> str:
    """Return the URL of a database without its password and its options."""
    parts = conninfo.conninfo_to_dict(store)
    user = f"{parts['user']}@" if "user" in parts else ""
    port = f":{parts['port']}" if "port" in parts else ""
    return f"postgresql://{user}{parts.get('host', '')}{port}/{parts.get('dbname', '')}"


def why(error: Exception) -> str:
    """Return what PostgreSQL says of an error, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def is_passing(error: psycopg.Error, raw: psycopg.Connection[Any] | None) -> bool:
    """Return whether an error is about the connection or the server, and not about what was asked of it."""
    is_gone = raw is None or raw.closed or raw.broken
    return is_gone or (error.sqlstate or "").startswith(_PASSING)


class PostgresConnection:
    """A connection for the functions of the store.

    Args:
        raw: The connection.
    """

    last_change = "last_change"
    rows_at_once = ROWS_AT_ONCE

    def __init__(self, raw: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.raw = raw

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> PostgresCursor:
        """Execute a statement."""
        cursor = self.raw.cursor()
        cursor.execute(_translated(sql), _escaped(parameters))
        return PostgresCursor(cursor)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> None:
        """Execute a statement once for each of some parameters."""
        rows = [_escaped(row) for row in parameters]
        if len(rows) == 1:
            self.raw.cursor().execute(_translated(sql), rows[0])
        elif rows:
            self.raw.cursor().executemany(_translated(sql), rows)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let several statements see the same state of the database."""
        self.raw.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            yield
        except BaseException:
            if not self.raw.closed:
                self.raw.execute("ROLLBACK")
            raise
        self.raw.execute("COMMIT")


class PostgresCursor:
    """The result of a statement."""

    def __init__(self, raw: psycopg.Cursor[tuple[Any, ...]]) -> None:
        self._raw = raw

    @property
    def rowcount(self) -> int:
        """How many rows the statement has changed."""
        return self._raw.rowcount

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row; None: there is none."""
        row = self._raw.fetchone()
        return None if row is None else _unescaped(row)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows that are left."""
        return [_unescaped(row) for row in self._raw.fetchall()]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return map(_unescaped, self._raw)

    def close(self) -> None:
        """Drop the rows that are left."""
        self._raw.close()


@lru_cache(maxsize=512)
def _translated(sql: str) -> bytes:
    """Return a statement with PostgreSQL's marks of parameters."""
    first, *others = sql.split("?")
    return (first + "".join(f"${number}{text}" for number, text in enumerate(others, 1))).encode()


def _escaped(row: Sequence[Any]) -> list[Any]:
    return [_escape(value) if isinstance(value, str) else value for value in row]


def _escape(text: str) -> str:
    return _UNSTORABLE.sub(lambda match: f"{_ESCAPE}{ord(match[0]):04x}", text)


def _unescaped(row: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(isinstance(value, str) and _ESCAPE in value for value in row):
        return tuple(_unescape(value) if isinstance(value, str) else value for value in row)
    return row


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def end_others(raw: psycopg.Connection[Any], server_id: str, purpose: str) -> None:
    """End earlier connections of a server for a purpose: a transaction may still hold its locks."""
    raw.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE starts_with(application_name, $1) AND pid <> pg_backend_pid()",
        [_prefix(server_id) + purpose],
    )


def end_gone(raw: psycopg.Connection[Any], server_id: str, renewals: int) -> None:
    """End the connections of a server that is gone, unless it has renewed its lease meanwhile.

    The locks of a transaction in which it has stopped would keep all other servers from writing.
    """
    raw.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name, $1)"
        " AND EXISTS (SELECT 1 FROM servers WHERE server_id = $2 AND renewals = $3)",
        [_prefix(server_id), server_id, renewals],
    )


def is_pooled(raw: psycopg.Connection[Any]) -> bool:
    """Return whether a pooler is between this process and the database, which may pass connections on.

    It keeps the process ids of the database to itself, because a client uses them only to cancel statements.
    """
    ((pid,),) = raw.execute("SELECT pg_backend_pid()").fetchall()
    return bool(pid != raw.info.backend_pid)
