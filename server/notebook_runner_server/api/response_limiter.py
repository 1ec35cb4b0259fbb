"""Bounds the memory of answers that are made and not taken: a caller may ask for pages and read none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

import grpc
from structlog.contextvars import get_contextvars

_SERVICE = "/notebook_runner.v1.NotebookRunner/"

PLACES = {_SERVICE + "Output": 16, _SERVICE + "List": 16}
"""Answers of each kind that may be on their way at once; each takes up to four times its page. Half of them
may be one caller's: who reads nothing, or has large notebooks exported, leaves others the rest."""


class _Places:
    """The places of one kind of answer, given to those who came first."""

    def __init__(self, number: int) -> None:
        self._a_callers = number // 2
        self._all = asyncio.Semaphore(number)
        # One lives as long as a call of its caller does.
        self._callers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def take(self, caller: str) -> Callable[[Any], None]:
        """Wait for a place, and return what gives it back."""
        own = self._callers.get(caller)
        if own is None:
            own = self._callers[caller] = asyncio.Semaphore(self._a_callers)
        await own.acquire()
        try:
            await self._all.acquire()
        except BaseException:
            own.release()
            raise

        def give_back(_: Any) -> None:
            self._all.release()
            own.release()

        return give_back


class ResponseLimiter(grpc.aio.ServerInterceptor):
    """Lets a call with a large answer wait until fewer are on their way; Start and Kill never wait."""

    def __init__(self) -> None:
        self._places = {method: _Places(number) for method, number in PLACES.items()}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call (called by grpc)."""
        handler = await continuation(handler_call_details)
        places = self._places.get(handler_call_details.method)
        if handler is None or places is None:
            return handler
        call: Any = handler.unary_unary

        async def waiting(request: Any, context: Any) -> Any:
            # When the answer is sent, or nobody waits for it any more.
            context.add_done_callback(await places.take(_caller(context)))
            return await call(request, context)

        return grpc.unary_unary_rpc_method_handler(
            waiting, handler.request_deserializer, handler.response_serializer
        )


def _caller(context: Any) -> str:
    """Return the name of the caller's token, or the address where no token is needed."""
    name: str | None = get_contextvars().get("caller")
    return name or context.peer().rpartition(":")[0]
