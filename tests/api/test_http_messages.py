"""What the HTTP listener makes of queries, bodies and paths, without a server."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from docsite import openapi
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.http_api.bindings import SERVICE, bindings
from notebook_runner_server.http_api.gate import _is_address
from notebook_runner_server.http_api.statuses import HTTP_STATUSES
from notebook_runner_server.http_api.streams import translated
from notebook_runner_server.http_api.transcoding import read_json, read_query, request_from_json, to_json

VIEWER = Path(openapi.FILE).parent / "viewer"
# Of the files of swagger-ui-dist that the viewer's README names.
HASHES = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}


def query(text: str, message: Any) -> Any:
    """A message with the parameters of a query."""
    read_query(parse_qsl(text, keep_blank_values=True), message)
    return message


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_message_is_translated_once_for_all_readers(size: int) -> None:
    """Also a large one: a run with many parameters takes long, and a thousand pages may follow it."""
    data = pb.WatchResponse(run=pb.Run(name="x" * size)).SerializeToString()
    path = "/notebook_runner.v1.NotebookRunner/Watch"
    first = translated(path, data, lines=True)
    # A copy, as each reader has it.
    assert translated(path, bytes(bytearray(data)), lines=True) is first
    assert json.loads(first)["run"]["name"] == "x" * size


def test_each_call_has_one_path() -> None:
    """The contract names a path for each call, and no path twice."""
    found = [(one.verb, one.path) for one in bindings()]
    assert [one.name for one in bindings()] == [method.name for method in SERVICE.methods]
    assert len(set(found)) == len(found)
    assert {path.split("/")[1] for _, path in found} == {"v1"}


def test_the_description_is_of_this_contract() -> None:
    """`make openapi` was run after the last change of the contract, and the document is OpenAPI 3.1."""
    assert openapi.FILE.read_text(encoding="utf-8") == openapi.text()
    document = json.loads(openapi.text())
    validate(document)
    operations = {one["operationId"] for path in document["paths"].values() for one in path.values()}
    assert operations == {method.name for method in SERVICE.methods}


def test_the_viewer_is_the_one_of_npm() -> None:
    """Its files are unchanged, and its page loads nothing from other hosts."""
    for name, expected in HASHES.items():
        assert hashlib.sha256((VIEWER / name).read_bytes()).hexdigest() == expected
    for name in ("index.html", "init.js"):
        assert "://" not in (VIEWER / name).read_text()


def test_each_grpc_status_has_an_http_status() -> None:
    """Every code but OK is an error in HTTP as well."""
    assert set(HTTP_STATUSES) == {code.value[0] for code in grpc.StatusCode} - {0}
    assert all(400 <= number < 600 for number in HTTP_STATUSES.values())


def test_a_query_is_a_message() -> None:
    """Names of both kinds, lists, maps, fields of fields and well-known types."""
    found = query(
        "pageSize=5&page_token=t&states=RUN_STATE_FAILED&states=5&labels[a]=b&labels[c.d]=&labels[[x]]=y",
        pb.ListRequest(),
    )
    assert found == pb.ListRequest(
        page_size=5,
        page_token="t",  # noqa: S106 - no secret
        states=[pb.RUN_STATE_FAILED, pb.RUN_STATE_SUCCEEDED],
        labels={"a": "b", "c.d": "", "[x]": "y"},
    )
    started = query(
        "run_timeout=1.5s&retry.maxRetries=2&allow_errors=true&memoryLimitBytes=7", pb.StartRequest()
    )
    assert started == pb.StartRequest(
        run_timeout=Duration(seconds=1, nanos=500_000_000),
        retry=pb.RetryPolicy(max_retries=2),
        allow_errors=True,
        memory_limit_bytes=7,
    )


@pytest.mark.parametrize(
    "text",
    [
        "nope=1",
        "name.x=1",
        "labels=1",
        "labels[a][b=1",
        "name[a]=1",
        "name=1&name=2",
        "allow_errors=1",
        "allow_errors=TRUE",
        "priority=1_0",
        "priority=%201",
        "priority=9999999999",
        "run_timeout=1",
        "retry=1",
        "retry.nope=1",
        "retry=1&retry.max_retries=1",
        "files=x",
        "parameters=%7B%7D",
        "run_timeout=1s&run_timeout.seconds=1",
        "=",
    ],
)
def test_a_query_that_is_no_message(text: str) -> None:
    """It is refused, whatever protobuf makes of it."""
    with pytest.raises(InvalidFieldError):
        query(text, pb.StartRequest())


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=4))
@settings(max_examples=100)
def test_any_query(pairs: list[tuple[str, str]]) -> None:
    """It is a message, or it is refused."""
    text = "&".join(
        f"{quote(name, errors='replace')}={quote(value, errors='replace')}" for name, value in pairs
    )
    for message in (pb.ListRequest(), pb.StartRequest(), pb.OutputRequest()):
        with suppress(InvalidFieldError):
            query(text, message)


NAMES = st.sampled_from([field.json_name for field in pb.StartRequest.DESCRIPTOR.fields]) | st.text(
    max_size=5
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, VALUES, max_size=4) | VALUES)
@settings(max_examples=100)
def test_any_json(value: Any) -> None:
    """A body is a message, or it is refused; another process makes the same of it."""
    body = json.dumps(value).encode()
    message = pb.StartRequest()
    try:
        read_json(body, message)
    except InvalidFieldError:
        return
    assert isinstance(value, dict)
    assert pb.StartRequest.FromString(request_from_json("StartRequest", body)) == message
    again = pb.StartRequest()
    read_json(to_json(message).encode(), again)
    assert again == message


@given(st.binary(max_size=30))
def test_any_body(body: bytes) -> None:
    """Bytes that are no JSON are refused."""
    with suppress(InvalidFieldError):
        read_json(body, pb.KillRequest())


@pytest.mark.parametrize(
    ("host", "is_address"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8080", True),
        ("10.1.2.3:1", True),
        ("[::1]:8080", True),
        ("localhost", True),
        ("localhost:8080", True),
        ("LOCALHOST", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8080", False),
        ("x@127.0.0.1", True),
        ("", False),
        ("[::1", False),
        ("127.0.0.1:x", True),
    ],
)
def test_hosts_that_no_other_machine_can_have(host: str, is_address: bool) -> None:
    """Addresses and localhost, with any port; a name may be that of a page."""
    assert _is_address(host) is is_address
