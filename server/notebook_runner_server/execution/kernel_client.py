"""A client of kernels that knows when a kernel is ready, without jupyter_client's wait at each start."""

from __future__ import annotations

import asyncio
import time
from queue import Empty
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from traitlets import Type

from notebook_runner_server.execution.output_limiter import data_size

MAX_LANGUAGE_INFO = 64 * 1024
"""Maximum size of a kernel's language_info in bytes."""

_LISTEN_SECONDS = 0.02
"""Seconds to listen for messages that a request makes a kernel publish, before the next request."""

_TURN_SECONDS = 0.01
"""Seconds that messages may be read before the event loop has its turn."""

_SILENT_SECONDS = 1.0
"""Seconds to listen in all: a kernel may publish nothing at all."""


def _is_small(language: object) -> bool:
    return isinstance(language, dict) and data_size(language) <= MAX_LANGUAGE_INFO


class UnfitKernelError(RuntimeError):
    """This kernel cannot be used; another one may be."""


class _FairChannel(AsyncZMQSocketChannel):
    """A channel that yields to the event loop even while messages are always available."""

    _turn = 0.0

    async def get_msg(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override] # it is async there, too
        # Available messages are returned without a turn of the event loop: while a kernel prints faster than
        # it is read, no timer would be called and no reply seen.
        if time.monotonic() >= self._turn:
            await asyncio.sleep(0)
            self._turn = time.monotonic() + _TURN_SECONDS
        return await super().get_msg(*args, **options)


class KernelClient(AsyncKernelClient):
    """A client that learns from messages that a kernel is ready.

    jupyter_client's own `wait_for_ready` listens until the kernel has been quiet for 0.2 s
    (`jupyter_client/client.py`), so that each start takes that long. What it is for: a subscription takes
    effect a moment after it is made, and what the kernel publishes before is lost. Here a request, which
    makes the kernel publish, is repeated until something was heard: that proves the subscription. What comes
    after it names the request that it belongs to, so no cell takes it for its own.
    """

    iopub_channel_class = Type(_FairChannel)

    def __init__(self, *args: Any, **traits: Any) -> None:
        super().__init__(*args, **traits)
        self._info: dict[str, Any] = {}

    def kernel_info(self, *args: Any, **options: Any) -> Any:
        """Send `kernel_info_request`, unless its reply is here already; return the id of the request."""
        return self._info["parent_header"]["msg_id"] if self._info else super().kernel_info(*args, **options)

    def known_info_reply(self, request: str) -> dict[str, Any] | None:
        """Return the reply to a `kernel_info` request if it is known already."""
        return self._info if self._info and self._info["parent_header"]["msg_id"] == request else None

    async def until_ready(self, seconds: float, first: str = "") -> None:
        """Wait until the kernel answers requests and its published messages arrive.

        Args:
            seconds: The time limit.
            first: Code to execute silently then.

        Raises:
            TimeoutError: The kernel did not answer.
            UnfitKernelError: The code failed.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._answered()
                end = time.monotonic() + _SILENT_SECONDS
                while not await self._publishes() and time.monotonic() < end:
                    await self._answered()
                if first:
                    request = self.execute(first, silent=True, store_history=False)
                    reply = await self._reply(request, "execute_reply")
                    if reply["content"].get("status") != "ok":
                        raise UnfitKernelError(
                            f"it rejected its working folder and variables: {reply['content']}"
                        )
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {seconds:g} s") from error

    async def _answered(self) -> None:
        """Send a `kernel_info` request, and wait for its reply."""
        info = await self._reply(super().kernel_info(), "kernel_info_reply")
        language = info["content"].get("language_info")
        # It becomes part of the notebook, and is not covered by the limits of output.
        if language is not None and not _is_small(language):
            info["content"]["language_info"] = {"name": ""}
        # Older kernels speak older versions of the protocol.
        self._handle_kernel_info_reply(info)
        self._info = info

    async def _reply(self, request: str, kind: str) -> dict[str, Any]:
        while True:
            reply: dict[str, Any] = await self.get_shell_msg()
            if reply["msg_type"] == kind and reply["parent_header"].get("msg_id") == request:
                return reply

    async def _publishes(self) -> bool:
        """Return whether the kernel published anything, which does not belong to the notebook."""
        try:
            await self.get_iopub_msg(timeout=_LISTEN_SECONDS)
        except Empty:
            return False
        return True
