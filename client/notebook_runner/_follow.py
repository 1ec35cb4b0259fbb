"""The reader's side of Progress, without I/O: what to ask for next, what to pass on, how long to wait.

A connection may break between any two events. The events have sequence numbers, so the reader asks
again for those after the last one that it passed on.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import grpc

from ._retry import is_of_the_way
from ._states import is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from .errors import RpcFailed
    from .v1 import notebook_runner_pb2 as pb

__all__ = ["RECONNECT_TIMEOUT", "ProgressReader"]

RECONNECT_TIMEOUT = 60.0
"""How long a reader tries to get its connection back, in seconds."""

# A server that this client has never reached is more likely a wrong address than one that restarts.
FIRST_CONNECT_TIMEOUT = 3.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class ProgressReader:
    """One reader of one run, over as many connections as it takes.

    Args:
        request: The first request, with the id of the run.
        reconnect_timeout: How long to try after a break, in seconds, counted anew after each message.
        reached: Whether this client has had an answer from the server before.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        request: pb.ProgressRequest,
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
    def request(self) -> pb.ProgressRequest:
        """What to ask for now."""
        return self._request

    @property
    def ended(self) -> bool:
        """Whether the run's terminal event was passed on, so that there is nothing more to ask for."""
        return self._ended

    def accept(self, event: pb.ProgressResponse) -> bool:
        """Take one message from the server, and tell whether the caller is to see it."""
        self._reached = self._had_stream = True
        self._give_up_at = None
        self._attempts = 0
        if event.WhichOneof("event") == "heartbeat" or event.sequence <= self._request.after_sequence:
            return False
        self._request.after_sequence = event.sequence
        self._ended = event.HasField("run_changed") and is_terminal(event.run_changed.state)
        return True

    def pause_after(self, error: RpcFailed) -> float:
        """Give the seconds to wait before the next connection; a break after the end means nothing.

        Raises:
            RpcFailed: The error itself, when another connection would not help or the time is over.
        """
        if self._ended:
            return 0.0
        now = self._clock()
        if self._give_up_at is None:
            patience = self._reconnect_timeout if self._reached else FIRST_CONNECT_TIMEOUT
            self._give_up_at = now + min(patience, self._reconnect_timeout)
        if not self._is_broken_connection(error) or now >= self._give_up_at:
            raise error
        self._attempts += 1
        pause = min(FIRST_PAUSE * 2.0 ** min(self._attempts - 1, 10), LONGEST_PAUSE)
        # The readers of one server must not all come back at the same moment.
        pause *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
        return min(max(pause, error.retry_after or 0.0), self._give_up_at - now)

    def _is_broken_connection(self, error: RpcFailed) -> bool:
        if error.code is grpc.StatusCode.UNAVAILABLE:
            return True
        if error.reason == "TOO_MANY_STREAMS":
            # The server may still count the connection that broke.
            return self._had_stream
        return is_of_the_way(error)
