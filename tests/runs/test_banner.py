"""The facts of a run for the top of its page."""

import math
from dataclasses import replace

import pytest

from notebook_runner_server.execution.interface import Cause, Failure
from notebook_runner_server.runs.banner import MAX_PARAMETERS, banner
from notebook_runner_server.runs.model import Event, Run, RunChanged, RunState

SECOND = 10**9
RUN = Run("id", "", RunState.RUNNING, 1_764_000_000 * SECOND, "python3", 3, start_time=1_764_000_001 * SECOND)


def facts(run: Run) -> dict[str, str]:
    """Return the facts of a run's banner, by name."""
    return dict(banner(run, Event(7, run.create_time, 1, 3, RunChanged(run))).facts)


def test_an_active_run_says_as_of_when() -> None:
    """The state of an active run has the event and the time that it is from, and no end."""
    assert facts(RUN) == {
        "Run": "id",
        "Created": "2025-11-24 16:00:00 UTC",
        "Started": "2025-11-24 16:00:01 UTC",
        "Cells": "1 of 3 completed",
        "As of": "event 7, 2025-11-24 16:00:00 UTC",
    }


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0124, "12 ms"),
        (1.26, "1.3 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7380, "2 h 03 min"),
    ],
)
def test_a_duration_is_read_by_people(seconds: float, shown: str) -> None:
    """A duration has the unit of its size."""
    ended = replace(RUN, state=RunState.SUCCEEDED, end_time=RUN.start_time + int(seconds * SECOND))
    assert facts(ended)["Duration"] == shown
    assert "As of" not in facts(ended)


@pytest.mark.parametrize(
    ("state", "words", "tone"),
    [
        (RunState.QUEUED, "Queued", "neutral"),
        (RunState.SUCCEEDED, "Succeeded", "good"),
        (RunState.TIMED_OUT, "Timed out", "bad"),
    ],
)
def test_a_state_has_words_and_a_tone(state: RunState, words: str, tone: str) -> None:
    """Each state is a word for people, and good, bad or neither."""
    found = banner(replace(RUN, state=state), Event(1, 0, 0, 3, RunChanged(RUN)))
    assert (found.state, found.tone) == (words, tone)


def test_the_title_is_the_name() -> None:
    """Of a run without a name, there is none."""
    assert banner(RUN, Event(1, 0, 0, 3, RunChanged(RUN))).title == ""
    assert banner(replace(RUN, name="weekly"), Event(1, 0, 0, 3, RunChanged(RUN))).title == "weekly"


def test_values_are_bounded() -> None:
    """Any value of a parameter is text of a bounded length, and so is the number of parameters."""
    values = {f"p{number}": number for number in range(MAX_PARAMETERS)}
    run = replace(RUN, parameters={"nan": math.nan, "text": "ä" * 1000, "nested": {"a": [None]}, **values})
    found = banner(run, Event(1, 0, 0, 3, RunChanged(run)))
    assert found.parameters[0] == ("nan", "NaN")
    assert found.parameters[1][1].startswith('"ää')
    assert len(found.parameters[1][1]) == 201
    assert found.parameters[2] == ("nested", '{"a": [null]}')
    assert (len(found.parameters), found.parameters_omitted) == (MAX_PARAMETERS, 3)


def test_a_failure_says_why_and_where() -> None:
    """The message and the cell of a failure are in the banner."""
    failure = Failure(Cause.CELL_ERROR, "The cell raised KeyError: 'a'", cell_index=2)
    found = banner(replace(RUN, state=RunState.FAILED, failure=failure), Event(9, 0, 2, 3, RunChanged(RUN)))
    assert (found.message, found.cell_index) == ("The cell raised KeyError: 'a'", 2)
