"""Writes the audit log: a line for each Start, Kill and Delete, and for each refused call."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from contextvars import Context
from functools import partial
from typing import Any, NoReturn

import grpc
from structlog.contextvars import get_contextvars

from notebook_runner_server.api.interceptor import Interceptor
from notebook_runner_server.api.peers import peer_of
from notebook_runner_server.audit import AuditLog
from notebook_runner_server.runs.call_target import CallTarget, begin_target
from notebook_runner_server.runs.caller import current_caller

_SERVICE = "/notebook_runner.v1.NotebookRunner/"

ACTIONS = {_SERVICE + name: name.lower() for name in ("Start", "Kill", "Delete")}
"""The methods that have a line whatever their status, and what it calls them."""

REFUSED = "refused"
"""The action of a call that was refused for its credentials, scope or owner, whatever its method."""

MORE_REFUSED = "more_refused"
"""The action of a line that counts refused calls of a caller beyond `REFUSALS_PER_SECOND`."""

REFUSALS_PER_SECOND = 10
"""Maximum number of lines a second about refused calls of one caller, so that a flood cannot fill the disk.

All calls without valid credentials together count as one caller, so their flood hides no other refusal."""

_SECOND = 1.0
_MAX_CHARACTERS = 128


class AuditInterceptor(Interceptor):
    """Writes the line of a call before its response or status is sent.

    It encloses the interceptor that authenticates, and so sees what that refuses.

    Args:
        log: The audit log.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        # By the caller, in this second.
        self._refused: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def wrap_unary(self, method: str, call: Any) -> Any:
        """Write the line of a call with one response."""

        async def audited(request: Any, context: Any) -> Any:
            ended = partial(self._ended, method, peer_of(context), begin_target())
            response = await call(request, _AuditedContext(context, ended))
            ended(grpc.StatusCode.OK)
            return response

        return audited

    def wrap_stream(self, method: str, call: Any) -> Any:
        """Write the line of a stream that is refused, also between two messages."""

        async def audited(request: Any, context: Any) -> AsyncIterator[Any]:
            ended = partial(self._ended, method, peer_of(context), begin_target())
            async with aclosing(call(request, _AuditedContext(context, ended))) as messages:
                async for message in messages:
                    yield message

        return audited

    def close(self) -> None:
        """Write the lines that count refused calls; there are no more calls."""
        if self._timer is not None:
            self._timer.cancel()
            self._end_second()

    def _ended(self, method: str, peer: str, target: CallTarget, code: grpc.StatusCode) -> None:
        is_refused = target.is_refused or code is grpc.StatusCode.PERMISSION_DENIED
        action = REFUSED if is_refused else ACTIONS.get(method)
        caller = current_caller().name
        if action is None or (is_refused and not self._has_room(caller)):
            return
        bound = get_contextvars()
        self._log.write(
            action,
            caller=caller,
            method=method[:_MAX_CHARACTERS],
            run_id=target.run_id[:_MAX_CHARACTERS],
            owner=target.owner,
            code=code.name,
            reason=bound.get("reason", ""),
            peer=peer,
            request_id=bound.get("request_id", ""),
            **({"repeat": True} if target.is_repeat else {}),
        )

    def _has_room(self, caller: str) -> bool:
        """Count a refused call, and return whether it gets a line of its own."""
        self._refused[caller] += 1
        if self._timer is None:
            # In an empty context, without the ids of this call.
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_SECOND, self._end_second, context=Context())
        return self._refused[caller] <= REFUSALS_PER_SECOND

    def _end_second(self) -> None:
        self._timer = None
        refused, self._refused = self._refused, Counter()
        for caller, count in refused.items():
            if count > REFUSALS_PER_SECOND:
                self._log.write(MORE_REFUSED, caller=caller, count=count - REFUSALS_PER_SECOND)


class _AuditedContext:
    """A call's context that reports a status before it is sent: grpc.aio sends it within `abort`."""

    def __init__(self, context: Any, ended: Callable[[grpc.StatusCode], None]) -> None:
        self._context = context
        self._ended = ended

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """Report the status, and end the call with it."""
        self._ended(code)
        await self._context.abort(code, details, trailing_metadata)
        raise AssertionError("abort returned")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
