"""Decides when to repeat a call or to reconnect a stream, without I/O.

gRPC repeats calls that end with UNAVAILABLE (the channel's service config). INTERNAL and UNKNOWN may come
from the server, which then sends a reason; without a reason they come from the network, for example from a
proxy that reset the stream or answered with a page, and are repeated here.

A stream may break between any two messages. Messages have sequence numbers or cursors, so the reader
reconnects after the last one that it received.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import grpc

from ._states import is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from .errors import RpcFailed
    from .v1 import notebook_runner_pb2 as pb

__all__ = [
    "ATTEMPTS",
    "BACKOFF_FACTOR",
    "FIRST_BACKOFF",
    "LONGEST_BACKOFF",
    "RECONNECT_TIMEOUT",
    "ProgressReader",
    "Retries",
    "StreamReader",
    "WatchReader",
    "is_unauthenticated",
]

RequestT = TypeVar("RequestT")
MessageT = TypeVar("MessageT")

ATTEMPTS = 5
# In seconds.
FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 2.0
BACKOFF_FACTOR = 3.0

RECONNECT_TIMEOUT = 60.0
"""How long a reader tries to reconnect, in seconds."""

# A server that this client has never reached is more likely a wrong address than one that restarts.
FIRST_CONNECT_TIMEOUT = 3.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

_NETWORK_CODES = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED})


def is_unauthenticated(error: RpcFailed) -> bool:
    """Return whether the server refused a call's token, which may have expired during the call."""
    return error.code is grpc.StatusCode.UNAUTHENTICATED


def _is_network_error(error: RpcFailed) -> bool:
    """Return whether a call failed in the network, and not with a response from the server."""
    return error.code in _NETWORK_CODES and not error.reason


class Retries:
    """The attempts of one call.

    The call must be safe to repeat: Start has a request_id, and repeating the others changes nothing.

    Args:
        timeout: Maximum duration of all attempts together, in seconds.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + timeout
        self._attempts = 0

    def begin(self) -> float:
        """Begin an attempt, and return its deadline in seconds."""
        self._attempts += 1
        return max(self._end - self._clock(), 0.0)

    def pause_after(self, error: RpcFailed) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            RpcFailed: The error itself, if a retry would not help, or if no time is left for one.
        """
        backoff = min(FIRST_BACKOFF * BACKOFF_FACTOR ** (self._attempts - 1), LONGEST_BACKOFF)
        # Callers that one proxy disconnected must not all return at the same moment.
        pause = backoff * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, keeps no secret
        if not _is_network_error(error) or self._attempts >= ATTEMPTS or self._clock() + pause >= self._end:
            raise error
        return pause


class StreamReader(ABC, Generic[RequestT, MessageT]):
    """Reads the messages of a stream, over as many connections as it takes.

    Args:
        request: The first request.
        reconnect_timeout: How long to try to reconnect, in seconds; starts again after each message.
        reached: Whether this client has reached the server before.
        clock: A monotonic clock, in seconds.

    Attributes:
        method: The name of the call.
    """

    method: ClassVar[str]

    def __init__(
        self,
        request: RequestT,
        reconnect_timeout: float = RECONNECT_TIMEOUT,
        *,
        reached: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = request
        self._reconnect_timeout = reconnect_timeout
        self._reached = reached
        self._had_stream = False
        self._clock = clock
        self._ended = False
        self._give_up_at: float | None = None
        self._attempts = 0

    @property
    def request(self) -> RequestT:
        """The next request."""
        return self._request

    @property
    def ended(self) -> bool:
        """Whether nothing is left to read."""
        return self._ended

    def accept(self, message: MessageT) -> bool:
        """Accept a message of the server, and return whether to pass it on."""
        self._reached = self._had_stream = True
        self._give_up_at = None
        self._attempts = 0
        return self._is_news(message)

    @abstractmethod
    def _is_news(self, message: MessageT) -> bool:
        """Let the next request continue after a message, and return whether to pass the message on."""

    def pause_after(self, error: RpcFailed, *, has_new_token: bool = False) -> float:
        """Return the seconds to wait before reconnecting; zero if nothing is left to read.

        Args:
            error: How the stream ended.
            has_new_token: Whether the token that the stream began with has been replaced since.

        Raises:
            RpcFailed: The error itself, if reconnecting would not help, or if the time has run out.
        """
        if self._ended:
            return 0.0
        now = self._clock()
        if self._give_up_at is None:
            patience = self._reconnect_timeout if self._reached else FIRST_CONNECT_TIMEOUT
            self._give_up_at = now + min(patience, self._reconnect_timeout)
        # The same token would be refused again.
        is_expired = has_new_token and self._had_stream and is_unauthenticated(error)
        if not (is_expired or self._is_broken_connection(error)) or now >= self._give_up_at:
            raise error
        self._attempts += 1
        pause = min(FIRST_PAUSE * 2.0 ** min(self._attempts - 1, 10), LONGEST_PAUSE)
        # The readers of one server must not all return at the same moment.
        pause *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
        return min(max(pause, error.retry_after or 0.0), self._give_up_at - now)

    def _is_broken_connection(self, error: RpcFailed) -> bool:
        if error.code is grpc.StatusCode.UNAVAILABLE:
            return True
        if error.reason == "TOO_MANY_STREAMS":
            # The server may still count the connection that broke.
            return self._had_stream
        return _is_network_error(error)


class ProgressReader(StreamReader["pb.ProgressRequest", "pb.ProgressResponse"]):
    """Reads the events of one run, whose id is in the request, until the run ends."""

    method = "Progress"

    def _is_news(self, message: pb.ProgressResponse) -> bool:
        if message.WhichOneof("event") == "heartbeat" or message.sequence <= self._request.after_sequence:
            return False
        self._request.after_sequence = message.sequence
        self._ended = message.HasField("run_changed") and is_terminal(message.run_changed.state)
        return True


class WatchReader(StreamReader["pb.WatchRequest", "pb.WatchResponse"]):
    """Reads the changes of runs, without an end."""

    method = "Watch"

    def _is_news(self, message: pb.WatchResponse) -> bool:
        self._request.cursor = message.cursor
        return not message.HasField("heartbeat")
