"""Reads a refused call: its status, its one ErrorInfo and what helps beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "notebook-runner"
DETAILS_KEY = "grpc-status-details-bin"
DETAILS_BYTES = 4096


@dataclass(frozen=True)
class Refusal:
    """What a caller is told when a call cannot be served."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    details: tuple[Message, ...]

    @property
    def kind(self) -> tuple[grpc.StatusCode, str]:
        """Status and reason, as the contract's table pairs them."""
        return self.code, self.reason

    @property
    def retry_seconds(self) -> float:
        """How long the server asks the caller to wait; 0: it does not say."""
        found = [each for each in self.details if isinstance(each, error_details_pb2.RetryInfo)]
        seconds: float = sum(each.retry_delay.ToNanoseconds() for each in found) / 1e9
        return seconds

    @property
    def fields(self) -> list[str]:
        """The fields of the request that are at fault."""
        requests = [each for each in self.details if isinstance(each, error_details_pb2.BadRequest)]
        return [violation.field for each in requests for violation in each.field_violations]


def _unpacked(status: status_pb2.Status) -> tuple[Message, ...]:
    """The details in their own types; one of an unknown type is a mistake."""
    kinds = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)
    messages = []
    for packed in status.details:
        message = next(kind() for kind in kinds if packed.Is(kind.DESCRIPTOR))
        packed.Unpack(message)
        messages.append(message)
    return tuple(messages)


def refusal_of(error: Any) -> Refusal:
    """Reads an RpcError, and checks what every refusal promises."""
    trailers = {key: value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY}
    assert DETAILS_KEY in trailers, f"{error.code()} without details: {error.details()}"
    packed = trailers[DETAILS_KEY]
    assert len(packed) < DETAILS_BYTES, f"{len(packed)} bytes of details"
    status = status_pb2.Status.FromString(packed)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    details = _unpacked(status)
    infos = [detail for detail in details if isinstance(detail, error_details_pb2.ErrorInfo)]
    assert [info.domain for info in infos] == [DOMAIN]
    return Refusal(error.code(), error.details(), infos[0].reason, dict(infos[0].metadata), details)


def refused(call: Callable[[], object]) -> Refusal:
    """Makes a call that must be refused, and answers how it was."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal_of(caught.value)
