"""A client of kernels that knows when a kernel is ready, without jupyter_client's wait at each start."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Iterator
from queue import Empty
from typing import Any

import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import DELIM
from traitlets import Type

from notebook_runner_server.execution.output_limiter import data_size

MAX_LANGUAGE_INFO = 64 * 1024
"""Maximum size of a kernel's language_info in bytes."""

_LISTEN_SECONDS = 0.02
"""Seconds to listen for messages that a request makes a kernel publish, before the next request."""

_TURN_SECONDS = 0.01
"""Seconds that messages may be read before the event loop has its turn."""

_UNTIMED = frozenset(
    {"stream", "display_data", "execute_result", "update_display_data", "error", "clear_output"}
)
"""Types of messages of which nbclient records no time."""

_PARTS = 5
"""Parts of a message without buffers: signature, header, parent header, metadata, content."""

_SILENT_SECONDS = 1.0
"""Seconds to listen in all: a kernel may publish nothing at all."""


@contextlib.contextmanager
def _as_no_answer(seconds: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error


def _is_small(language: object) -> bool:
    return isinstance(language, dict) and data_size(language) <= MAX_LANGUAGE_INFO


class UnfitKernelError(RuntimeError):
    """This kernel cannot be used; another one may be."""


class DirectChannel(AsyncZMQSocketChannel):
    """A channel that takes available messages immediately, for kernels that print faster than they are read.

    jupyter_client's own channel waits for each message twice, and parses the dates in its headers, which took
    two thirds of the time of a message. Here dates are parsed only in messages that nbclient takes the time
    from, and the header that all messages of a cell repeat is parsed once.
    """

    _turn = 0.0
    _direct: zmq.Socket[bytes] | None = None
    _parent = b"", dict[str, Any]()

    async def get_msg(  # type: ignore[override] # it is async there, too
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - jupyter_client's
    ) -> dict[str, Any]:
        """Return the next message.

        Args:
            timeout: Seconds to wait for it; None: forever.

        Raises:
            Empty: There was none in that time.
            ValueError: Its signature is wrong.
        """
        # While a kernel prints faster than it is read, no timer would be called and no reply seen.
        if time.monotonic() >= self._turn:
            await asyncio.sleep(0)
            self._turn = time.monotonic() + _TURN_SECONDS
        assert self.socket is not None  # noqa: S101 - the channel is open
        if self._direct is None:
            self._direct = zmq.Socket(shadow=self.socket)
        while True:
            with contextlib.suppress(zmq.Again):
                return self._message(self._direct.recv_multipart(zmq.NOBLOCK))
            if not await self.socket.poll(None if timeout is None else int(timeout * 1000)):
                raise Empty

    def _message(self, frames: list[bytes]) -> dict[str, Any]:
        parts = frames[frames.index(DELIM) + 1 :]
        unpack = self.session.unpack
        header = unpack(parts[1])
        # Anything unusual is jupyter_client's: a message of an older protocol, or of a broken kernel.
        if (
            len(parts) != _PARTS
            or not isinstance(header, dict)
            or header.get("msg_type") not in _UNTIMED
            or not str(header.get("version", "")).startswith("5.")
            or "msg_id" not in header
        ):
            return self.session.deserialize(parts)
        if not hmac.compare_digest(self.session.sign(parts[1:]), parts[0]):
            raise ValueError("a message of the kernel has a wrong signature")
        if self._parent[0] != parts[2]:
            self._parent = parts[2], unpack(parts[2])
        return {
            "header": header,
            "msg_id": header["msg_id"],
            "msg_type": header["msg_type"],
            "parent_header": self._parent[1],
            "metadata": unpack(parts[3]),
            "content": _content(unpack, parts[4]),
            "buffers": [],
        }


def _content(unpack: Callable[[bytes], Any], part: bytes) -> Any:
    """Return the content of a message; None: the parser refuses its depth, or the length of a number."""
    try:
        return unpack(part)
    except (ValueError, RecursionError):
        return None


class KernelClient(AsyncKernelClient):
    """A client that learns from messages that a kernel is ready.

    jupyter_client's own `wait_for_ready` listens until the kernel has been quiet for 0.2 s
    (`jupyter_client/client.py`), so that each start takes that long. What it is for: a subscription takes
    effect a moment after it is made, and what the kernel publishes before is lost. Here a request, which
    makes the kernel publish, is repeated until what it published is heard: that proves the subscription. What
    comes after it names the request that it belongs to, so no cell takes it for its own.

    A client may be used on another event loop, on another thread, when its first one has ended: pyzmq's
    sockets follow to the loop that uses them.
    """

    shell_channel_class = Type(DirectChannel)
    iopub_channel_class = Type(DirectChannel)

    def __init__(self, *args: Any, **traits: Any) -> None:
        super().__init__(*args, **traits)
        self._info: dict[str, Any] = {}

    def kernel_info(self, *args: Any, **options: Any) -> Any:
        """Send `kernel_info_request`, unless its reply is here already; return the id of the request."""
        return self._info["parent_header"]["msg_id"] if self._info else super().kernel_info(*args, **options)

    def known_info_reply(self, request: str) -> dict[str, Any] | None:
        """Return the reply to a `kernel_info` request if it is known already."""
        return self._info if self._info and self._info["parent_header"]["msg_id"] == request else None

    def open(self) -> None:
        """Connect to the kernel, on the channels that a run needs."""
        # A pidfd watches the process, cells cannot ask for input, and the manager sends interrupts.
        self.start_channels(stdin=False, hb=False, control=False)

    def close(self) -> None:
        """Close the sockets."""
        # stop_channels() would first open the channels that were not started.
        for channel in (self._shell_channel, self._iopub_channel):
            if channel is not None:
                channel.stop()

    async def until_ready(self, seconds: float) -> None:
        """Wait until the kernel answers requests and its published messages arrive.

        Args:
            seconds: The time limit.

        Raises:
            TimeoutError: The kernel did not answer.
        """
        with _as_no_answer(seconds):
            async with asyncio.timeout(seconds):
                request = await self._answered()
                end = time.monotonic() + _SILENT_SECONDS
                while not await self._hears(request) and time.monotonic() < end:
                    request = await self._answered()

    async def execute_silently(self, code: str, seconds: float) -> None:
        """Execute code without a trace, and drop what it publishes.

        Args:
            code: The code.
            seconds: The time limit.

        Raises:
            TimeoutError: The kernel did not answer.
            UnfitKernelError: The code failed.
        """
        with _as_no_answer(seconds):
            async with asyncio.timeout(seconds), self.discarding():
                request = self.execute(code, silent=True, store_history=False)
                reply = await self._reply(request, "execute_reply")
        if reply["content"].get("status") != "ok":
            raise UnfitKernelError(f"it could not execute the code: {reply['content']}")

    @contextlib.asynccontextmanager
    async def discarding(self) -> AsyncIterator[None]:
        """Drop what the kernel publishes meanwhile, which no cell does: unread, it would stop the kernel."""
        reader = asyncio.ensure_future(self._discard())
        try:
            yield
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _discard(self) -> None:
        while True:
            await self.iopub_channel.socket.recv_multipart()
            # Available messages are returned without a turn of the event loop.
            await asyncio.sleep(0)

    async def _answered(self) -> str:
        """Send a `kernel_info` request, wait for its reply, and return the id of the request."""
        request: str = super().kernel_info()
        info = await self._reply(request, "kernel_info_reply")
        language = info["content"].get("language_info")
        # It becomes part of the notebook, and is not covered by the limits of output.
        if language is not None and not _is_small(language):
            info["content"]["language_info"] = {"name": ""}
        # Older kernels speak older versions of the protocol.
        self._handle_kernel_info_reply(info)
        self._info = info
        return request

    async def _reply(self, request: str, kind: str) -> dict[str, Any]:
        while True:
            reply: dict[str, Any] = await self.get_shell_msg()
            if reply["msg_type"] == kind and reply["parent_header"].get("msg_id") == request:
                return reply

    async def _hears(self, request: str) -> bool:
        """Return whether something arrives that the kernel published for a request.

        What the user's start-up files published comes before it, and does not prove anything: if it was more
        than the sockets hold, the kernel drops messages until some have been received.
        """
        with contextlib.suppress(Empty):
            while True:
                message = await self.get_iopub_msg(timeout=_LISTEN_SECONDS)
                if message["parent_header"].get("msg_id") == request:
                    return True
        return False
