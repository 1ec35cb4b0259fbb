"""When a call that has one answer is made again, without I/O: which error, how often, after what time.

gRPC itself repeats a call that ended UNAVAILABLE (the channel's service config). It cannot repeat by anything
else than the status code, and INTERNAL and UNKNOWN may be answers of the server's own: those carry a reason.
One without a reason comes from the way to the server: a proxy that reset the stream, or answered with a page.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from .errors import RpcFailed

__all__ = ["ATTEMPTS", "BACKOFF_FACTOR", "FIRST_BACKOFF", "LONGEST_BACKOFF", "Retries", "is_of_the_way"]

ATTEMPTS = 5
# In seconds.
FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 2.0
BACKOFF_FACTOR = 3.0

_CODES_OF_THE_WAY = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED})


def is_of_the_way(error: RpcFailed) -> bool:
    """Tell whether a call failed on the way to the server or back, and not by an answer of the server's."""
    return error.code in _CODES_OF_THE_WAY and not error.reason


class Retries:
    """The attempts of one call.

    The call must be safe to repeat: Start carries a request_id, and the others change nothing when they are
    repeated.

    Args:
        timeout: How long all attempts may take together, in seconds.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + timeout
        self._attempts = 0

    def begin(self) -> float:
        """Begin an attempt, and return how long it may take, in seconds."""
        self._attempts += 1
        return max(self._end - self._clock(), 0.0)

    def pause_after(self, error: RpcFailed) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            RpcFailed: The error itself, when another attempt would not help or there is no time for it.
        """
        backoff = min(FIRST_BACKOFF * BACKOFF_FACTOR ** (self._attempts - 1), LONGEST_BACKOFF)
        # Callers that one proxy cut off must not all come back at the same moment.
        pause = backoff * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, keeps no secret
        if not is_of_the_way(error) or self._attempts >= ATTEMPTS or self._clock() + pause >= self._end:
            raise error
        return pause
