"""Limits the memory of responses that callers request but do not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from structlog.contextvars import get_contextvars

from notebook_runner_server.api.interceptor import Interceptor
from notebook_runner_server.api.peers import peer_of

_SERVICE = "/notebook_runner.v1.NotebookRunner/"

MAX_RESPONSES = {_SERVICE + "Output": 16, _SERVICE + "List": 16}
"""Maximum number of responses of a method in memory at a time; each takes up to four times its page. One
caller gets at most half of them, so that a caller that reads nothing, or exports large notebooks, leaves the
rest to others."""


MAX_LARGE_EVENTS = 32
"""Maximum number of events with much content (`LARGE_EVENT`) in memory at a time, over all streams; one
caller gets at most half of them."""

LARGE_EVENT = 256 * 1024
"""Bytes of content above which an event waits for its turn: smaller ones never wait for a slow reader."""


class ResponseSlots:
    """Slots for large responses, first come, first served."""

    def __init__(self, number: int) -> None:
        self._per_caller = number // 2
        self._all = asyncio.Semaphore(number)
        # An entry lives as long as a call of its caller does.
        self._callers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def acquire(self, caller: str) -> Callable[[Any], None]:
        """Wait for a slot, and return the function that releases it."""
        own = self._callers.get(caller)
        if own is None:
            own = self._callers[caller] = asyncio.Semaphore(self._per_caller)
        await own.acquire()
        try:
            await self._all.acquire()
        except BaseException:
            own.release()
            raise

        def release(_: Any) -> None:
            self._all.release()
            own.release()

        return release


class ResponseLimiter(Interceptor):
    """Lets calls with large responses wait until fewer are in memory; Start and Kill never wait."""

    def __init__(self) -> None:
        self._slots = {method: ResponseSlots(number) for method, number in MAX_RESPONSES.items()}

    def wrap_unary(self, method: str, call: Any) -> Any:
        """Let a call wait for its slot."""
        slots = self._slots.get(method)
        if slots is None:
            return call

        async def limited(request: Any, context: Any) -> Any:
            # Released when the response has been sent, or nobody waits for it any longer.
            context.add_done_callback(await slots.acquire(caller_of(context)))
            return await call(request, context)

        return limited


def caller_of(context: Any) -> str:
    """Return the name of the caller's token, or its address if no token is required."""
    name: str | None = get_contextvars().get("caller")
    return name or peer_of(context).rpartition(":")[0]
