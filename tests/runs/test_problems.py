"""What the log says of problems: a reason where there is one, and a traceback of mistakes only."""

import logging
import sqlite3
from contextlib import closing

import pytest

from notebook_runner_server.errors import damaged
from notebook_runner_server.runs.problems import ProblemLogger

LOGGER = ProblemLogger("tests")


def lock() -> None:
    """Meets a database that somebody else writes to."""
    with closing(sqlite3.connect("file:shared?mode=memory&cache=shared", uri=True)) as first:
        first.execute("CREATE TABLE x (y)")
        first.execute("BEGIN EXCLUSIVE")
        first.execute("INSERT INTO x VALUES (1)")
        with closing(sqlite3.connect("file:shared?mode=memory&cache=shared", uri=True)) as second:
            second.execute("SELECT * FROM x")


def misspell() -> None:
    """Executes text that is not an SQL statement."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("SELEKT 1")


def tear() -> None:
    """Meets a damaged run."""
    raise damaged("run-1", "its end is missing")


def fill() -> None:
    """Meets a full disk."""
    raise OSError(28, "No space left on device", "/state")


def logged(act: object, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The line about the error that this raises."""
    assert callable(act)
    try:
        act()
    except Exception:
        LOGGER.exception("failed", extra={"run_id": "run-1"})
    (record,) = caplog.records
    return record


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (tear, "its end is missing"),
        (fill, "No space left on device: '/state'"),
        (lock, "is locked"),
    ],
)
def test_a_known_condition_is_its_reason(act: object, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line says why; what the event is about is in the same line."""
    record = logged(act, caplog)
    fields = vars(record)
    assert (record.levelname, record.exc_info, fields["run_id"]) == ("ERROR", None, "run-1")
    assert why in fields["why"]


@pytest.mark.parametrize("act", [misspell, lambda: int("x")], ids=["statement", "number"])
def test_a_mistake_has_its_traceback(act: object, caplog: pytest.LogCaptureFixture) -> None:
    """A person has to find it in the code."""
    record = logged(act, caplog)
    assert record.exc_info
    assert "why" not in vars(record)
