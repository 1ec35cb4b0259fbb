"""The largest run that the limits allow leaves room for a page, and fits each message that has it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api import convert, parameters
from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.execution.failures import MAX_EXCEPTION_MESSAGE, MAX_NAME, MAX_TRACEBACK
from notebook_runner_server.execution.interface import MAX_RESULT_BYTES, Cause, Failure, ResultValue
from notebook_runner_server.runs.admission import MAX_LABEL, MAX_LABELS, MAX_REQUEST_ID
from notebook_runner_server.runs.changes import WatchCursor
from notebook_runner_server.runs.model import Change, RunState
from notebook_runner_server.runs.outputs import MESSAGE_BYTES
from notebook_runner_server.runs.results import Results
from notebook_runner_server.transfer.policy import MAX_URI
from tests.runs.samples import a_run

MESSAGE_LIMIT = 4 * 1024 * 1024
# A page is at least so large beside any run.
LEAST_PAGE = 256 * 1024
WIDEST = "\U0001f600"
# Parameters that are large in one form, in the other, or in both.
SHAPES: dict[str, Any] = {
    "text": {"a": "x" * (parameters.MAX_BYTES - 32)},
    "wide text": {"a": WIDEST * (parameters.MAX_BYTES // 4 - 8)},
    "escaped text": {"a": "\n" * (parameters.MAX_BYTES // 2 - 8)},
    "numbers": {"a": [1] * (parameters.MAX_VALUES - 1)},
    "names": {f"{number:0100}": 1.5 for number in range(parameters.MAX_VALUES - 1000)},
    "many texts": {f"{number}": "y" * 80 for number in range(parameters.MAX_VALUES - 1)},
}


def largest(values: dict[str, Any], character: str, result: str) -> Any:
    """A run that is as large as it can be beside these parameters."""
    labels = {
        f"{number:03}".ljust(MAX_LABEL, character): character * MAX_LABEL for number in range(MAX_LABELS)
    }
    results = Results()
    for number in range(100):
        results = results.with_value(ResultValue(f"{number}", result))
    failure = Failure(
        Cause.CELL_ERROR,
        character * (MAX_EXCEPTION_MESSAGE // 4),
        cell_index=2**31 - 1,
        cell_id=character * 64,
        exception_name=character * MAX_NAME,
        exception_message=character * (MAX_EXCEPTION_MESSAGE // 4),
        traceback=character * MAX_TRACEBACK,
        signal="SIGSEGV",
    )
    return a_run(
        RunState.FAILED,
        request_id=character * MAX_REQUEST_ID,
        parameters=values,
        labels=labels,
        failure=failure,
        notebook_path=character * 1024,
        notebook_uri=character * MAX_URI,
        output_uri=character * MAX_URI,
        output_error=character * 1024,
        notebook_repairs=(character * 200,) * 20,
        name=character * 128,
        notebook_sha256="f" * 64,
        results=results,
        owner=character * 128,
    )


def check(run: Any) -> None:
    """Each message that has the run fits, with a page beside it in Output."""
    message = convert.run_message(run)
    assert message.ByteSize() <= MESSAGE_BYTES - LEAST_PAGE
    cursor = WatchCursor("f" * 16, 2**63 - 1, 2**63 - 1)
    change = convert.change_message(cursor, Change(1, run.run_id, run.owner, run.labels, run, 0))
    assert change.ByteSize() < MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("shape", "result"),
    [*((shape, "numbers") for shape in SHAPES), ("numbers", "text"), ("numbers", "names")],
)
def test_the_largest_run(shape: str, result: str) -> None:
    """Whichever of its parts is the largest."""
    values = {
        "numbers": json.dumps([1] * (MAX_RESULT_BYTES // 3), separators=(",", ":")),
        "text": json.dumps(WIDEST * (MAX_RESULT_BYTES // 8), ensure_ascii=False),
        "names": json.dumps({f"{number}": [] for number in range(MAX_RESULT_BYTES // 12)}),
    }
    given_json = json.dumps(SHAPES[shape], ensure_ascii=False)
    accepted, _ = parameters.parameters_of(pb.StartRequest(parameters_json=given_json))
    check(largest(accepted, WIDEST, values[result]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=40)
@given(value=json_values, times=st.integers(1, 2000), name=st.text(max_size=4))
def test_any_accepted_parameters(value: Any, times: int, name: str) -> None:
    """Whatever is accepted takes at most its limit in each of its two forms."""
    text = json.dumps({name: [value] * times}, ensure_ascii=False)
    try:
        accepted, _ = parameters.parameters_of(pb.StartRequest(parameters_json=text))
    except (InvalidFieldError, UnicodeEncodeError):
        return
    size = convert.run_message(a_run(parameters=accepted)).ByteSize()
    assert size <= convert.run_message(a_run()).ByteSize() + 2 * (parameters.MAX_BYTES + 8)
