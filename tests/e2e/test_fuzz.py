"""A few thousand mutated requests: every answer is one of the contract's, and none is missing."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import inline, perform, struct
from tests.support.errors import refusal_of
from tests.support.notebooks import code, content
from tests.support.server import Server

pytestmark = pytest.mark.long

ANSWER_SECONDS = 60.0
REQUESTS = 1000
Code = grpc.StatusCode
# What the contract lets a call answer; all else is a fault of the server's.
REASONS = {
    Code.INVALID_ARGUMENT: {
        *("INVALID_NOTEBOOK", "UNKNOWN_PARAMETER", "INVALID_FIELD", "UNKNOWN_KERNEL"),
        *("PATH_OUTSIDE_ROOT", "URI_NOT_ALLOWED", "UNKNOWN_FORMAT"),
    },
    Code.NOT_FOUND: {"RUN_NOT_FOUND", "NOTEBOOK_NOT_FOUND"},
    Code.ALREADY_EXISTS: {"REQUEST_ID_REUSED"},
    Code.RESOURCE_EXHAUSTED: {"RUNNER_BUSY", "NOTEBOOK_TOO_LARGE"},
    Code.OUT_OF_RANGE: {"OFFSET_PAST_END", "SEQUENCE_AHEAD"},
    Code.FAILED_PRECONDITION: {"EXPORT_FAILED", "RUN_ACTIVE"},
}
METHODS = ("Start", "Progress", "Output", "Kill", "List", "Get", "Delete")
SEEDS: dict[str, list[bytes]] = {
    "Start": [
        inline("1 + 1", "2", labels={"a": "b"}, request_id="seed").SerializeToString(),
        inline(code("a = 1", "parameters"), "a", parameters=struct({"a": [1]})).SerializeToString(),
        pb.StartRequest(notebook_path="default.ipynb", kernel_name="python3").SerializeToString(),
        pb.StartRequest(run_timeout=Duration(seconds=9), environment={"A": "1"}).SerializeToString(),
        inline("'\\ud800'", allow_errors=True, memory_limit_bytes=2**40).SerializeToString(),
    ],
    "Progress": [
        pb.ProgressRequest(snapshot_only=True).SerializeToString(),
        pb.ProgressRequest(after_sequence=3, omit_cell_output=True, snapshot_only=True).SerializeToString(),
    ],
    "Output": [
        pb.OutputRequest(offset=10, max_bytes=100, as_of_sequence=5).SerializeToString(),
        pb.OutputRequest(format="files").SerializeToString(),
        pb.OutputRequest(format="script").SerializeToString(),
    ],
    "Kill": [pb.KillRequest(grace_period=Duration(seconds=1)).SerializeToString()],
    "List": [
        pb.ListRequest(page_size=5, states=[pb.RUN_STATE_FAILED], labels={"a": "b"}).SerializeToString(),
        pb.ListRequest(page_token="a" * 20).SerializeToString(),
    ],
    "Get": [pb.GetRequest(run_id="20260101-000000-0123abcd").SerializeToString()],
    "Delete": [pb.DeleteRequest(run_id="20260101-000000-0123abcd").SerializeToString()],
}

whole = st.sampled_from([0, 1, -1, 7, 2**31 - 1, -(2**31)])
long = st.one_of(whole, st.sampled_from([2**53, 2**63 - 1, -(2**63)]))
text = st.one_of(st.sampled_from(["", "x", "python3", "a/b", "\0", "%s", "x" * 2000]), st.text(max_size=20))
mapping = st.dictionaries(text, text, max_size=3)
durations = st.builds(Duration, seconds=long, nanos=whole)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=5,
)
documents = st.one_of(
    st.binary(max_size=50),
    st.just(content("1 + 1")),
    st.builds(lambda data, n: data[: n % (len(data) + 1)], st.just(content("1 + 1")), st.integers(0, 999)),
)
paths = st.one_of(
    text, st.sampled_from(["default.ipynb", "folder", "folder/..", ".", "..", "/", "x" * 300, "~", "a//b"])
)
wheres = st.one_of(
    st.builds(lambda path: {"notebook_path": path}, paths),
    st.builds(lambda uri: {"notebook_uri": uri}, text),
    st.builds(lambda data: {"notebook_content": data}, documents),
)
MESSAGES: dict[str, st.SearchStrategy[bytes]] = {
    "Start": st.builds(
        lambda where, **fields: pb.StartRequest(**where, **fields),
        where=wheres,
        request_id=text,
        parameters=st.dictionaries(text, values, max_size=3).map(struct),
        kernel_name=text,
        run_timeout=durations,
        cell_timeout=durations,
        environment=mapping,
        memory_limit_bytes=long,
        labels=mapping,
        retention=durations,
        output_uri=st.just("") | text,
        name=text,
    ).map(pb.StartRequest.SerializeToString),
    "Progress": st.builds(
        pb.ProgressRequest,
        run_id=text,
        after_sequence=long,
        omit_cell_output=st.booleans(),
        snapshot_only=st.just(True),
    ).map(pb.ProgressRequest.SerializeToString),
    "Output": st.builds(
        pb.OutputRequest, run_id=text, format=text, offset=long, max_bytes=whole, as_of_sequence=long
    ).map(pb.OutputRequest.SerializeToString),
    "Kill": st.builds(pb.KillRequest, run_id=text, grace_period=durations).map(
        pb.KillRequest.SerializeToString
    ),
    "List": st.builds(
        pb.ListRequest,
        page_size=whole,
        page_token=text,
        states=st.lists(whole, max_size=3),
        labels=mapping,
    ).map(pb.ListRequest.SerializeToString),
    "Get": st.builds(pb.GetRequest, run_id=text).map(pb.GetRequest.SerializeToString),
    "Delete": st.builds(pb.DeleteRequest, run_id=text).map(pb.DeleteRequest.SerializeToString),
}


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """The bytes of a good request, cut, filled, swapped or changed in a few places."""
    method = draw(st.sampled_from(METHODS))
    data = bytearray(draw(st.sampled_from(SEEDS[method])))
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(data))), draw(st.integers(0, 8))
        data[place : place + length] = draw(st.binary(max_size=8))
    return method, bytes(data)


structured = st.sampled_from(METHODS).flatmap(lambda m: st.tuples(st.just(m), MESSAGES[m]))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, notebook_root: Path) -> Iterator[Server]:
    """A server of its own, on which one run has ended."""
    options = ["--notebook-root", str(notebook_root), "--default-notebook", "default.ipynb"]
    with Server(tmp_path_factory.mktemp("state"), *options) as running:
        perform(running.stub, inline("1"))
        yield running


def send(server: Server, method: str, data: bytes) -> None:
    """Sends bytes, reads all of the answer, and judges a refusal."""
    try:
        if method == "Progress":
            list(server.raw_stream(method, data, timeout=ANSWER_SECONDS))
        else:
            server.raw(method, data, timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        refusal = refusal_of(error)
        assert refusal.reason in REASONS.get(refusal.code, set()), refusal


def survives(server: Server) -> None:
    """The server still answers, and the next good run succeeds."""
    send(server, "Kill", b"")
    assert perform(server.stub, inline("'well'")).run.state == pb.RUN_STATE_SUCCEEDED


thousand = settings(
    max_examples=REQUESTS,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@thousand
@given(request=mutated())
def _mutated_bytes(target: Server, request: tuple[str, bytes]) -> None:
    send(target, *request)


@thousand
@given(request=structured)
def _strange_values(target: Server, request: tuple[str, bytes]) -> None:
    send(target, *request)


def test_mutated_bytes_are_answered(target: Server) -> None:
    """A thousand good requests with changed bytes: never a fault, never a hang."""
    _mutated_bytes(target)
    survives(target)


def test_strange_values_are_answered(target: Server) -> None:
    """A thousand readable requests with strange values: never a fault, never a hang."""
    _strange_values(target)
    survives(target)
