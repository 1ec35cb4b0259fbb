"""What is seen of a serialized Start without parsing it."""

from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api.wire import MAX_FIELDS, MAX_SMALL_BYTES, is_costly


def many(count: int) -> dict[str, str]:
    """Labels or variables."""
    return {str(number): "" for number in range(count)}


@pytest.mark.parametrize(
    "request_",
    [
        pb.StartRequest(
            notebook_content=b"x" * 2 * MAX_SMALL_BYTES, run_timeout=Duration(seconds=1), priority=-1
        ),
        pb.StartRequest(files=[pb.InputFile(path="a", content=b"x" * 2 * MAX_SMALL_BYTES)] * 2),
        pb.StartRequest(labels=many(MAX_FIELDS)),
        pb.StartRequest(parameters_json="x" * MAX_SMALL_BYTES),
    ],
)
def test_large_requests_that_parse_fast(request_: Any) -> None:
    """Only the notebook and the files may be large, and only so many fields are there."""
    assert not is_costly(request_.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        pb.StartRequest(labels=many(MAX_FIELDS + 1)).SerializeToString(),
        pb.StartRequest(environment=many(MAX_FIELDS), name="x").SerializeToString(),
        pb.StartRequest(
            files=[pb.InputFile(path="a", content=b"b")] * (MAX_FIELDS // 3 + 1)
        ).SerializeToString(),
        pb.StartRequest(parameters_json="x" * MAX_SMALL_BYTES, name="x").SerializeToString(),
        pb.StartRequest(name="x").SerializeToString() * (MAX_FIELDS + 1),
    ],
)
def test_requests_that_parse_slowly(data: bytes) -> None:
    """Many entries of a map, many files, a large field, and one field again and again."""
    assert is_costly(data)


@pytest.mark.parametrize("data", [b"\x0b\x0c", b"\x0a\x05abc", b"\xff" * 20, b"\x09abc", b"\x0a"])
def test_malformed_requests(data: bytes) -> None:
    """A group, a field that ends after its message, and a number without an end."""
    with pytest.raises(ValueError, match=r"a group|ends after|endless"):
        is_costly(data)


@given(st.binary(max_size=60))
def test_whatever_comes(data: bytes) -> None:
    """It is judged or malformed, and what protobuf refuses as well is not judged to be costly."""
    with suppress(ValueError):
        assert not is_costly(data)
