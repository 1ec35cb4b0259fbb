"""The task log of Airflow's operator: lines from events, and a log that continues where another one ended."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from notebook_runner import CellFinished, CellOutcome, CellRaised, CellStarted, Event, Printed
from notebook_runner.integrations._airflow_log import TaskLog
from notebook_runner.v1 import notebook_runner_pb2 as pb


class Lines(logging.Handler):
    """Keeps each message with the name of its level."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, str]] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a message."""
        self.kept.append((record.levelname, record.getMessage()))


def logged(
    events: list[Event], position: dict[str, Any] | None = None
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """The lines of the log for these events, and its position after them."""
    logger, lines = logging.Logger("task"), Lines()  # noqa: LOG001 - one that no other test has
    logger.addHandler(lines)
    log = TaskLog(logger, position)
    for event in events:
        log.add(event)
    return lines.kept, log.position


def common(sequence: int) -> dict[str, Any]:
    """What all events have."""
    return {
        "sequence": sequence,
        "time": datetime.now(UTC),
        "cells_completed": 0,
        "cells_total": 2,
        "pb": pb.ProgressResponse(),
    }


def printed(*texts: str, stream: str = "stdout") -> list[Event]:
    """Events of one cell that prints."""
    return [Printed(text, stream, 0, **common(number)) for number, text in enumerate(texts, 1)]


def finished(sequence: int, outcome: CellOutcome = CellOutcome.SUCCEEDED) -> Event:
    """The event of the end of a cell."""
    return CellFinished(0, outcome, timedelta(seconds=1.25), 1, "", **common(sequence))


def test_lines_come_whole() -> None:
    """Text that comes in pieces is logged by the line; the rest when the cell ends."""
    assert logged(printed("a\nb", "c\n", "d"))[0] == [("INFO", "a"), ("INFO", "bc")]
    assert logged([*printed("d"), finished(2)])[0] == [
        ("INFO", "d"),
        ("INFO", "Cell 1 succeeded after 1.2 s"),
    ]


def test_standard_error_is_a_warning() -> None:
    """The streams have levels of their own, and do not share a line."""
    events = [*printed("out"), Printed("err\n", "stderr", 0, **common(2))]
    assert logged(events)[0] == [("INFO", "out"), ("WARNING", "err")]


def test_progress_bars() -> None:
    """Of a line that is written over and over, the last state is logged, without control sequences."""
    bar = printed("\r 10%", "\r 50%\r", "\r\x1b[32m100%\x1b[0m\n")
    assert logged(bar)[0] == [("INFO", "100%")]
    assert logged(printed("10%\r", "50%\r", "100%\r\n"))[0] == [("INFO", "100%")]
    assert logged([*printed("\r 10%", "\r 50%\r"), finished(3)])[0][0] == ("INFO", " 50%")


def test_a_line_without_an_end() -> None:
    """It is logged in pieces, so that it does not fill the memory."""
    lines, position = logged(printed(*["x" * 1000] * 100))
    assert sum(len(text) for _, text in lines) + len(position["text"]) == 100_000
    assert len(position["text"]) <= 4096


def test_failures() -> None:
    """What a cell raised is an error."""
    events = [
        CellStarted(0, "1/0", "", **common(1)),
        CellRaised("ZeroDivisionError", "division by zero", 0, **common(2)),
        finished(3, CellOutcome.FAILED),
    ]
    assert logged(events)[0] == [
        ("INFO", "Cell 1 of 2: 1/0"),
        ("ERROR", "Cell 1 raised ZeroDivisionError: division by zero"),
        ("WARNING", "Cell 1 failed after 1.2 s"),
    ]


@given(
    pieces=st.lists(st.tuples(st.text("ab\n\r", max_size=6), st.sampled_from(["stdout", "stderr", ""]))),
    cut=st.integers(0, 10),
)
def test_a_log_continues_where_another_one_ended(pieces: list[tuple[str, str]], cut: int) -> None:
    """Wherever a log is cut, the next one adds what is missing, and nothing twice."""
    events = [
        Printed(text, stream, 0, **common(number)) if stream else finished(number)
        for number, (text, stream) in enumerate(pieces, 1)
    ]
    first, position = logged(events[:cut])
    left = [event for event in events if event.sequence > position["sequence"]]
    second, _ = logged(left, position)
    assert first + second == logged(events)[0]
