"""Bounds the memory of answers that are made and not taken: a caller may ask for pages and read none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

_LARGE = frozenset(f"/notebook_runner.v1.NotebookRunner/{name}" for name in ("Output", "List"))

MOST = 32
"""Answers of Output and List that may be on their way at once; each takes up to four times its page."""


class Pages(grpc.aio.ServerInterceptor):
    """Lets a call with a large answer wait until fewer are on their way; Start and Kill never wait."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MOST)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call (called by grpc)."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method not in _LARGE:
            return handler
        call: Any = handler.unary_unary

        async def waiting(request: Any, context: Any) -> Any:
            await self._places.acquire()
            # When the answer is sent, or nobody waits for it any more.
            context.add_done_callback(lambda _: self._places.release())
            return await call(request, context)

        return grpc.unary_unary_rpc_method_handler(
            waiting, handler.request_deserializer, handler.response_serializer
        )
