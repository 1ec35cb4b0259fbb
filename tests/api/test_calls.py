"""A stream that its peer leaves is told with its own ids, wherever it is cleared away."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context
from typing import Any

from structlog.contextvars import bind_contextvars, get_contextvars

from notebook_runner_server.api.telemetry_interceptor import Call, TelemetryInterceptor


class Witness:
    """Keeps calls that ended, each with what was bound for the log."""

    def __init__(self) -> None:
        self.ended: list[tuple[Call, dict[str, Any]]] = []

    def call_started(self, method: str) -> None:
        """Waits for its end."""

    def call_ended(self, call: Call) -> None:
        """Keeps it."""
        self.ended.append((call, get_contextvars()))


class Caller:
    """What gRPC gives a handler, as far as it is asked for here."""

    def peer(self) -> str:
        """Where the call came from."""
        return "ipv4:127.0.0.1:1"


async def endless(_request: Any, _context: Any) -> AsyncIterator[int]:
    """A stream without an end, of a run."""
    bind_contextvars(run_id="mine")
    while True:
        yield 1


def test_a_stream_that_another_call_clears_away() -> None:
    """Python may do so at any moment, in the midst of whatever else."""
    witness = Witness()

    async def scenario() -> None:
        messages = TelemetryInterceptor([witness]).wrap_stream("Some/Stream", endless)(None, Caller())
        await asyncio.create_task(anext(messages), context=Context())
        elsewhere = Context()
        elsewhere.run(bind_contextvars, run_id="another")
        await asyncio.create_task(messages.aclose(), context=elsewhere)

    asyncio.run(scenario())
    ((call, bound),) = witness.ended
    assert (call.code, call.messages, call.peer) == ("CANCELLED", 1, "ipv4:127.0.0.1:1")
    assert bound == {"run_id": "mine"}
