"""Histories of other versions: earlier ones are served whole, later ones are refused untouched."""

import functools
import hashlib
import hmac
import json
import os
import sqlite3
import subprocess
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.runs.schema import SCHEMA_VERSION
from tests.support.calls import SECONDS, artefact, duration, finish, history, inline, perform, start
from tests.support.errors import refused
from tests.support.killable import KillableServer
from tests.support.notebooks import content
from tests.support.progress import TERMINAL
from tests.support.server import PROGRAM
from tests.support.watching import watching

pytestmark = [
    pytest.mark.process_pool("a state folder that is made by the test has no runs on a cluster"),
    pytest.mark.state_folder("it is about histories in SQLite's file"),
]

DATABASE = "notebook-runner.db"
KEY = bytes(range(32))
NOTEBOOK = content("1")
# As the first version made them; a later one of version 1 added `resume`.
TABLES = """
CREATE TABLE runs (
  position INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL UNIQUE, request_id TEXT UNIQUE,
  fingerprint TEXT NOT NULL, state TEXT NOT NULL, run TEXT NOT NULL, parameters TEXT NOT NULL,
  work_order TEXT NOT NULL, last_sequence INTEGER NOT NULL, expire_time INTEGER
);
CREATE INDEX runs_by_state ON runs (state, position);
CREATE INDEX runs_by_expiry ON runs (expire_time) WHERE expire_time IS NOT NULL;
CREATE TABLE labels (
  name TEXT NOT NULL, value TEXT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (name, value, position)
) WITHOUT ROWID;
CREATE TABLE events (
  position INTEGER NOT NULL, sequence INTEGER NOT NULL, time INTEGER NOT NULL, event TEXT NOT NULL,
  PRIMARY KEY (position, sequence)
) WITHOUT ROWID;
CREATE TABLE parts (
  position INTEGER NOT NULL, part INTEGER NOT NULL, sequence INTEGER NOT NULL,
  start INTEGER NOT NULL, length INTEGER NOT NULL, PRIMARY KEY (position, part, sequence)
) WITHOUT ROWID;
CREATE INDEX parts_by_sequence ON parts (position, sequence);
PRAGMA user_version = 1;
"""
RESUME = """
CREATE TABLE resume (
  position INTEGER PRIMARY KEY, mark INTEGER NOT NULL, part_start INTEGER NOT NULL, size INTEGER NOT NULL
);
"""
# As version 2 made a new history.
TABLES_2 = f"""
{RESUME}
CREATE TABLE runs (
  position INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL UNIQUE, request_id TEXT UNIQUE,
  fingerprint TEXT NOT NULL, state TEXT NOT NULL, run TEXT NOT NULL, parameters TEXT NOT NULL,
  work_order TEXT NOT NULL, last_sequence INTEGER NOT NULL, expire_time INTEGER, start_checksum INTEGER,
  checksum INTEGER
);
CREATE INDEX runs_by_state ON runs (state, position);
CREATE INDEX runs_by_expiry ON runs (expire_time) WHERE expire_time IS NOT NULL;
CREATE TABLE labels (
  name TEXT NOT NULL, value TEXT NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (name, value, position)
) WITHOUT ROWID;
CREATE TABLE events (
  position INTEGER NOT NULL, sequence INTEGER NOT NULL, time INTEGER NOT NULL, event TEXT NOT NULL,
  checksum INTEGER, PRIMARY KEY (position, sequence)
) WITHOUT ROWID;
CREATE TABLE parts (
  position INTEGER NOT NULL, part INTEGER NOT NULL, sequence INTEGER NOT NULL, start INTEGER NOT NULL,
  length INTEGER NOT NULL, content_checksum INTEGER, checksum INTEGER, PRIMARY KEY (position, part, sequence)
) WITHOUT ROWID;
CREATE INDEX parts_by_sequence ON parts (position, sequence);
CREATE TABLE forgotten (run_id TEXT PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = 2;
"""
# How version 2 became version 3.
TO_VERSION_3 = """
ALTER TABLE runs RENAME COLUMN fingerprint TO request_digest;
ALTER TABLE runs RENAME COLUMN work_order TO options;
ALTER TABLE parts RENAME TO segments;
ALTER TABLE segments RENAME COLUMN part TO segment;
ALTER TABLE resume RENAME TO checkpoints;
ALTER TABLE checkpoints RENAME COLUMN part_start TO segment_start;
ALTER TABLE forgotten RENAME TO deleted_runs;
PRAGMA user_version = 3;
"""
# How version 3 became version 4.
TO_VERSION_4 = f"PRAGMA user_version = 4; PRAGMA application_id = {0x6E620000 ^ 4};"
UPGRADES = {"version 3": TO_VERSION_3, "version 4": TO_VERSION_3 + TO_VERSION_4}
# More than a cell of a busy machine takes: a run that waits is executed with it.
CELL_SECONDS = 60.0
LIMITS = {
    "run_timeout": 0.0,
    "cell_timeout": CELL_SECONDS,
    "output_timeout": 0.0,
    "memory_bytes": 0,
    "cell_output_bytes": 0,
    "run_output_bytes": 0,
    "processes": 0,
}
COMMON: dict[str, Any] = {
    "content": hashlib.sha256(NOTEBOOK).hexdigest(),
    "path": None,
    "parameters": {},
    "kernel_name": "",
    "allow_errors": False,
    "environment": {"NBR_A": "b"},
    "labels": {"c": "d"},
    "retention": None,
}


def plain(payload: dict[str, Any]) -> str:
    """A digest without a key."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def keyed(payload: dict[str, Any]) -> str:
    """A digest with one."""
    return hmac.digest(KEY, json.dumps(payload, sort_keys=True).encode(), "sha256").hex()


# What each form has of a request with a time-out of a cell: digest, and limits of the order.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "first": (
        plain({**COMMON, "run_timeout": None, "cell_timeout": CELL_SECONDS}),
        {"run_timeout": 0.0, "cell_timeout": CELL_SECONDS},
    ),
    "output timeout": (
        plain({**COMMON, "run_timeout": None, "cell_timeout": CELL_SECONDS, "output_timeout": None}),
        {"run_timeout": 0.0, "cell_timeout": CELL_SECONDS, "output_timeout": 0.0},
    ),
    "limits": (plain({**COMMON, "limits": LIMITS}), {"limits": LIMITS}),
    "key": (
        keyed({**COMMON, "limits": LIMITS, "notebook_uri": None, "output_uri": ""}),
        {"limits": LIMITS, "output_uri": ""},
    ),
    "origin": (
        keyed({**COMMON, "limits": LIMITS, "notebook_uri": None, "output_uri": ""}),
        {"limits": LIMITS, "output_uri": "", "origin": {"call_id": "a", "traceparent": "", "tracestate": ""}},
    ),
}
ORIGIN = FORMS["origin"][1]
GIVEN = {name: COMMON[name] for name in ("content", "environment", "labels")}
KEY_NAME = hashlib.sha256(KEY).hexdigest()[:16]
FORMS["version 2"] = f"2:{KEY_NAME}:{keyed({**GIVEN, 'limits': {'cell_timeout': CELL_SECONDS}})}", ORIGIN
FORMS["version 2, damaged"] = FORMS["version 3"] = FORMS["version 3, damaged"] = FORMS["version 2"]
FORMS["version 4"] = FORMS["version 4, damaged"] = FORMS["version 2"]


def run(name: str, state: str, **fields: Any) -> dict[str, Any]:
    """A run as the first version wrote it."""
    return {
        "run_id": name,
        "request_id": f"id-{name}",
        "state": state,
        "create_time": 1,
        "cells_total": 1,
        "kernel_name": "python3",
        "parameters": {},
        "labels": {"c": "d"},
        "notebook_path": "",
        "start_time": 0,
        "end_time": 0,
        "cells_completed": 0,
        "current_cell": None,
        "failure": None,
        "queue_position": None,
        **fields,
    }


def insert(db: sqlite3.Connection, state: Path, one: dict[str, Any], form: str) -> None:
    """Writes a run, its events and its folder."""
    digest, limits = FORMS[form]
    order = {"working_folder": "", "allow_errors": False, "environment": {}, "retention": 6e5, **limits}
    if one["state"] == "queued":
        # Early versions kept them here.
        order["environment"] = {"NBR_A": "b"}
    events = [[0, 1, "run", run(one["run_id"], "queued")]]
    if one["state"] in {"succeeded", "failed"}:
        events.append([0, 1, "run", run(one["run_id"], "running", start_time=2)])
    if one["state"] != "queued":
        events.append([one["cells_completed"], 1, "run", one])
    values = (
        *(one["run_id"], one["request_id"], digest, one["state"], json.dumps(one), "{}", json.dumps(order)),
        *(len(events), None if one["state"] in {"queued", "running"} else 2**62),
    )
    text = (
        "INSERT INTO runs (run_id, request_id, fingerprint, state, run, parameters, work_order,"
        " last_sequence, expire_time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    position = db.execute(text, values).lastrowid
    db.execute("INSERT INTO labels VALUES ('c', 'd', ?)", (position,))
    for number, event in enumerate(events, 1):
        db.execute(
            "INSERT INTO events (position, sequence, time, event) VALUES (?, ?, ?, ?)",
            (position, number, number, json.dumps(event)),
        )
    cell = (
        b'\n  {\n   "cell_type": "code",\n   "execution_count": null,\n   "id": "one",\n   "metadata": {},\n'
        b'   "outputs": [],\n   "source": [\n    "import os; print(os.environ.get(\'NBR_A\'))"\n   ]\n  }'
    )
    tail = b'\n ],\n "metadata": {},\n "nbformat": 4,\n "nbformat_minor": 5\n}\n'
    db.executemany(
        "INSERT INTO parts (position, part, sequence, start, length) VALUES (?, ?, 0, ?, ?)",
        [(position, 0, 0, len(cell)), (position, -1, len(cell), len(tail))],
    )
    if form.startswith("version"):
        seal(db, cell + tail)
    folder = state / "runs" / str(one["run_id"])
    (folder / "work").mkdir(parents=True)
    (folder / "artefacts").mkdir()
    (folder / "parts").write_bytes(cell + tail)


def seal(db: sqlite3.Connection, content: bytes) -> None:
    """Writes the checksums of all rows, as version 2 did, and where a run goes on."""

    def checksum(*values: object) -> int:
        return zlib.crc32(ascii(values).encode())

    def content_checksum(start: int, length: int) -> int:
        return zlib.crc32(content[start : start + length])

    db.create_function("checksum", -1, checksum)
    db.create_function("content_checksum", 2, content_checksum)
    db.executescript(
        """
        UPDATE runs SET start_checksum = checksum(run_id, request_id, fingerprint, parameters, work_order),
          checksum = checksum(state, run, last_sequence, expire_time);
        UPDATE events SET checksum = checksum(position, sequence, time, event);
        UPDATE parts SET content_checksum = content_checksum(start, length);
        UPDATE parts SET checksum = checksum(position, part, sequence, start, length, content_checksum);
        INSERT OR REPLACE INTO resume SELECT position, 1, 0, 0 FROM runs WHERE state = 'running';
        """
    )


def request(name: str, /, **fields: Any) -> pb.StartRequest:
    """The request that was made then."""
    return pb.StartRequest(
        **{
            "notebook_content": NOTEBOOK,
            "request_id": f"id-{name}",
            "environment": {"NBR_A": "b"},
            "labels": {"c": "d"},
            "cell_timeout": duration(CELL_SECONDS),
            **fields,
        }
    )


CHANGES: list[dict[str, Any]] = [
    {"allow_errors": True},
    {"cell_timeout": duration(3.0)},
    {"kernel_name": "python3"},
]


def watched(server: KillableServer) -> list[str]:
    """The runs that exist for a watcher; each has ended."""
    with watching(server.stub, include_existing=True) as watcher:
        existing = watcher.existing()
    assert {run.state for run in existing} <= TERMINAL
    return [run.run_id for run in existing]


@pytest.mark.parametrize("form", FORMS)
def test_an_earlier_history_is_served_whole(tmp_path: Path, form: str) -> None:
    """Each earlier form: runs are listed, followed and read, those that wait go on, requests are known.

    Also when its database has to be made again from what is whole of it.
    """
    state = tmp_path / "state"
    (state / "runs").mkdir(parents=True)
    is_keyed = form not in {"first", "output timeout", "limits"}
    if is_keyed:
        (state / "request-key").write_bytes(KEY)
    failure = {"cause": "cell_error", "message": "m", "cell_index": 0, "cell_id": "one"}
    failure = {**failure, "exception_name": "E", "exception_message": "e", "traceback": "t"}
    with closing(sqlite3.connect(state / DATABASE)) as db:
        has_checksums = form.startswith("version")
        db.executescript(TABLES_2 if has_checksums else TABLES + (RESUME if form == "origin" else ""))
        insert(db, state, run("done", "succeeded", start_time=2, end_time=3, cells_completed=1), form)
        failed = run(
            "bad",
            "failed",
            start_time=2,
            end_time=3,
            failure={**failure, "signal": "", "exit_code": None},
            notebook_path="folder/of a file.ipynb",
        )
        insert(db, state, failed, form)
        insert(db, state, run("going", "running", start_time=2), form)
        insert(db, state, run("waits", "queued"), form)
        if has_checksums:
            (state / "runs" / "removed" / "work").mkdir(parents=True)
            db.execute("INSERT INTO forgotten VALUES ('removed')")
        db.commit()
        db.executescript(UPGRADES.get(form.partition(",")[0], ""))
    if form.endswith("damaged"):
        (state / f"{DATABASE}-damaged").write_text("found by the server before")
    for _ in range(2):
        with KillableServer(state, "--warm-kernels", "none") as server:
            assert history(server.stub) == ["waits", "going", "bad", "done"]
            waited = finish(server.stub, "waits")
            assert waited.run.state == pb.RUN_STATE_SUCCEEDED
            if not is_keyed:
                assert "b\n" in [event.cell_output.stream.text for event in waited.events]
            assert finish(server.stub, "going").run.state == pb.RUN_STATE_INTERRUPTED
            assert finish(server.stub, "bad").run.failure.exception_name == "E"
            assert b'"id": "one"' in artefact(server.stub, "done")
            assert watched(server) == ["done", "bad", "going", "waits"]
            for part, name in (("bad", "of a file"), ("done", ""), ("wait", "")):
                found = server.stub.Get(pb.GetRequest(run_id=part), timeout=SECONDS).run
                assert found.run_id.startswith(part)
                assert (found.name, found.notebook_sha256) == (name, "")
                assert found.HasField("cpu_time") == (part == "wait")
            for name in ("done", "bad", "going", "waits"):
                assert start(server.stub, request(name)).run_id == name
                for change in [*CHANGES, {"name": "given"}]:
                    refusal = refused(functools.partial(start, server.stub, request(name, **change)))
                    assert refusal.kind == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
            server.die()
    assert {path.name for path in (state / "runs").iterdir()} == {"done", "bad", "going", "waits"}
    assert bool(list(state.glob("damaged-*"))) == form.endswith("damaged")
    with closing(sqlite3.connect(state / DATABASE)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {"segments", "checkpoints", "deleted_runs"} <= tables
        assert not {"parts", "resume", "forgotten"} & tables


def test_a_repeated_request_is_known_when_the_key_was_lost(tmp_path: Path) -> None:
    """Its payload cannot be compared any more: the id decides, and nothing is executed a second time."""
    with KillableServer(tmp_path, "--warm-kernels", "none") as server:
        ended = perform(server.stub, inline("1", request_id="once")).run
    (tmp_path / "request-key").write_bytes(os.urandom(32))
    with KillableServer(tmp_path, "--warm-kernels", "none") as server:
        assert start(server.stub, inline("1", request_id="once")).run_id == ended.run_id
        assert history(server.stub) == [ended.run_id]


def untouched(state: Path) -> dict[str, bytes]:
    """All files of a state folder but what SQLite shares between processes."""
    files = [path for path in state.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return {str(path.relative_to(state)): path.read_bytes() for path in files}


def _in_the_file(_: KillableServer, db: sqlite3.Connection) -> None:
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _in_the_log(_: KillableServer, __: sqlite3.Connection) -> None:
    """The database's log has it, and its file has not."""


def set_version(db: sqlite3.Connection, version: int) -> None:
    """Marks a history as a server of this version does."""
    db.execute(f"PRAGMA user_version = {version}")
    db.execute(f"PRAGMA application_id = {0x6E620000 ^ version}")


@pytest.mark.parametrize("where", [_in_the_file, _in_the_log])
def test_a_later_history_is_refused_untouched(
    tmp_path: Path, where: Callable[[KillableServer, sqlite3.Connection], None]
) -> None:
    """One sentence says what was found, what this server knows, and what to do; no file has changed."""
    with KillableServer(tmp_path, "--warm-kernels", "none") as server:
        ended = perform(server.stub, inline("print('x')")).run
        with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
            set_version(db, SCHEMA_VERSION + 1)
            where(server, db)
            server.die()
    before = untouched(tmp_path)
    (tmp_path / "runs" / "stray").mkdir()
    command = [
        str(PROGRAM),
        "--listen",
        "127.0.0.1:0",
        "--state-dir",
        str(tmp_path),
        "--warm-kernels",
        "none",
    ]
    refusal = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert refusal.returncode == 1
    assert (
        f"has version {SCHEMA_VERSION + 1}, but this server supports versions up to {SCHEMA_VERSION}."
        in refusal.stderr
    )
    assert "Start the newer server" in refusal.stderr
    assert "Traceback" not in refusal.stderr
    assert untouched(tmp_path) == before
    assert (tmp_path / "runs" / "stray").is_dir()
    assert not list(tmp_path.glob("damaged-*"))
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        set_version(db, SCHEMA_VERSION)
    with KillableServer(tmp_path, "--warm-kernels", "none") as server:
        assert history(server.stub) == [ended.run_id]
