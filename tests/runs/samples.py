"""Runs, orders and events as tests begin with them, and strategies that make any."""

import functools
import json
from typing import Any

from hypothesis import strategies as st

from notebook_runner_server.execution.interface import (
    Cause,
    CellFinished,
    CellOutcome,
    CellStarted,
    ClearOutput,
    DisplayOutput,
    ErrorOutput,
    Failure,
    KeptContent,
    Limits,
    OutputCut,
    ResultValue,
    StreamOutput,
)
from notebook_runner_server.runs.model import (
    Body,
    Event,
    ExecutionOptions,
    Run,
    RunChanged,
    RunState,
    TraceContext,
)
from notebook_runner_server.runs.results import Results

RUN_ID = "20260101-000000-00000001"
WORDS = ["QUEUED", "STARTING", "RUNNING", "KILLING"]
GOING_ON = [RunState[name] for name in WORDS]
TERMINAL = [state for state in RunState if state not in GOING_ON]


def a_run(state: RunState = RunState.QUEUED, **changes: Any) -> Run:
    """A run in a state, with two cells."""
    fields: dict[str, Any] = {
        "run_id": RUN_ID,
        "request_id": "",
        "state": state,
        "create_time": 1,
        "kernel_name": "python3",
        "cells_total": 2,
    }
    return Run(**{**fields, **changes})


def some_options(**changes: Any) -> ExecutionOptions:
    """What a worker is to do when nothing special was asked for."""
    fields: dict[str, Any] = {
        "working_folder": "",
        "limits": Limits(),
        "allow_errors": False,
        "environment": {},
        "retention": 1000.0,
    }
    return ExecutionOptions(**{**fields, **changes})


def changed(sequence: int, run: Run) -> Event:
    """The event that tells of a run's state."""
    return Event(sequence, sequence * 10, run.cells_completed, run.cells_total, RunChanged(run))


def printed(sequence: int, text: str = "text") -> Event:
    """The event that tells of printed text."""
    return Event(sequence, sequence * 10, 0, 2, StreamOutput(0, "stdout", text))


# Text of any kind, also such that cannot be encoded: a kernel may print it.
text = st.text(st.characters(exclude_categories=[]), max_size=8)
whole = st.integers(0, 2**40)
index = st.integers(0, 2**31 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
labels = st.dictionaries(text, text, max_size=3)
durations = st.floats(0, 1e9)
limits = st.builds(Limits, durations, durations, durations, whole, whole, whole, index)
failures = st.builds(
    Failure,
    cause=st.sampled_from(Cause),
    message=text,
    cell_index=st.none() | index,
    cell_id=text,
    exception_name=text,
    exception_message=text,
    traceback=text,
    signal=text,
    exit_code=st.none() | st.integers(-255, 255),
)
runs = st.builds(
    Run,
    run_id=text,
    request_id=text,
    state=st.sampled_from(RunState),
    create_time=whole,
    kernel_name=text,
    cells_total=index,
    parameters=st.dictionaries(text, json_values, max_size=3),
    labels=labels,
    notebook_path=text,
    start_time=whole,
    end_time=whole,
    cells_completed=index,
    current_cell=st.none() | index,
    failure=st.none() | failures,
    queue_position=st.none() | index,
    notebook_uri=text,
    output_uri=text,
    output_error=text,
    notebook_repairs=st.lists(text, max_size=3).map(tuple),
    name=text,
    notebook_sha256=text,
    peak_memory_bytes=index,
    cpu_seconds=st.none() | st.floats(0, 1e9),
    results=st.lists(st.builds(ResultValue, text, json_values.map(json.dumps) | st.just("")), max_size=3).map(
        lambda values: functools.reduce(Results.with_value, values, Results())
    ),
)
orders = st.builds(
    ExecutionOptions,
    working_folder=text,
    limits=limits,
    allow_errors=st.booleans(),
    environment=labels,
    retention=durations,
    output_uri=text,
    origin=st.builds(TraceContext, text, text, text),
)
cell_events = st.one_of(
    st.builds(CellStarted, index, text, text),
    st.builds(StreamOutput, index, text, text),
    st.builds(
        DisplayOutput,
        index,
        text,
        st.lists(st.tuples(text, whole), max_size=3).map(tuple),
        result=st.none() | st.builds(ResultValue, text, text),
        kept=st.lists(st.builds(KeptContent, index, whole, whole, whole), max_size=3).map(tuple),
    ),
    st.builds(ErrorOutput, index, text, text),
    st.builds(ClearOutput, index, st.booleans()),
    st.builds(OutputCut, index, whole, st.booleans()),
    st.builds(CellFinished, index, text, index, durations, st.sampled_from(CellOutcome)),
)
bodies: st.SearchStrategy[Body] = st.one_of(cell_events, runs.map(RunChanged))
events = st.builds(Event, index, whole, index, index, bodies)
