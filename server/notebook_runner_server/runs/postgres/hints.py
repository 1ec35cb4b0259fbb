"""Hints between servers, by LISTEN and NOTIFY: each has a connection that listens, and one that sends.

Through a pooler that gives each transaction another connection, no hint arrives. A server that has no other
way to the database looks once a second, and still sends hints: other servers may have one.

They are sent after the transaction that they are about, and not in it: a transaction with a NOTIFY holds a
lock of the whole database until its commit is on the disk.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from notebook_runner_server.runs.patience import SOON
from notebook_runner_server.runs.postgres.connection import connect, why
from notebook_runner_server.runs.replicas import Topic

CHANNEL = "notebook_runner"

_WAIT_SECONDS = 0.5
_PAUSE = 1.0
_logger = logging.getLogger(__name__)


class Hints:
    """Sends hints to other servers, and receives theirs.

    Args:
        store: The URL of the database.
        server_id: This server.
        direct: The URL of the same database without a pooler; empty: none is known.
    """

    def __init__(self, store: str, server_id: str, direct: str = "") -> None:
        self._store = direct or store
        self._server_id = server_id
        self._is_direct = bool(direct)
        self._pending: dict[tuple[Topic, int], None] = {}
        self._is_pending = threading.Event()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._is_deaf = False
        # Of the connection that sends: its own hints come back.
        self._own_pid = 0

    def listen(self, on_hint: Callable[[Topic, int], object], *, is_pooled: bool) -> None:
        """Call a function on this event loop with each hint of another server.

        Args:
            on_hint: Called with each hint.
            is_pooled: Whether the store leads to a pooler.
        """
        loop = asyncio.get_running_loop()

        def received(topic: Topic, position: int) -> None:
            if not self._closed.is_set():
                loop.call_soon_threadsafe(on_hint, topic, position)

        threads: dict[str, Callable[[], None]] = {"send": self._send_all}
        if self._is_direct or not is_pooled:
            threads["listen"] = lambda: self._listen(received)
        for name, run in threads.items():
            thread = threading.Thread(target=run, name=f"store-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def send(self, topic: Topic, position: int) -> None:
        """Send a hint, soon; does not block. One that waits to be sent is sent once."""
        self._pending[topic, position] = None
        self._is_pending.set()

    def close(self) -> None:
        """Stop; blocks for a moment."""
        self._closed.set()
        self._is_pending.set()
        for thread in self._threads:
            thread.join(SOON)

    def _listen(self, received: Callable[[Topic, int], object]) -> None:
        while not self._closed.is_set():
            try:
                with connect(self._store, SOON, self._server_id, "listen") as raw:
                    raw.execute(f"LISTEN {CHANNEL}")
                    self._is_deaf = False
                    while not self._closed.is_set():
                        for found in raw.notifies(timeout=_WAIT_SECONDS):
                            self._read(found, received)
            except psycopg.Error as error:
                if not self._is_deaf:
                    _logger.warning("store_hints_lost", extra={"why": why(error)})
                self._is_deaf = True
                self._closed.wait(_PAUSE)

    def _read(self, found: psycopg.Notify, received: Callable[[Topic, int], object]) -> None:
        topic, _, position = found.payload.partition(" ")
        try:
            if found.pid != self._own_pid:
                received(Topic(topic), int(position))
        except (ValueError, RuntimeError):
            # Of another program, or of a newer server; or the event loop has just been closed.
            return

    def _send_all(self) -> None:
        raw: psycopg.Connection[tuple[Any, ...]] | None = None
        while self._is_pending.wait() and not self._closed.is_set():
            self._is_pending.clear()
            pending = [self._pending.popitem()[0] for _ in range(len(self._pending))]
            try:
                if raw is None:
                    raw = connect(self._store, SOON, self._server_id, "send")
                    # Not what the connection says: a pooler makes up its own.
                    ((self._own_pid,),) = raw.execute("SELECT pg_backend_pid()").fetchall()
                with raw.pipeline():
                    for topic, position in pending:
                        raw.execute("SELECT pg_notify($1, $2)", [CHANNEL, f"{topic.value} {position}"])
            except psycopg.Error:
                # Others look by themselves.
                if raw is not None:
                    raw.close()
                raw = None
                self._closed.wait(_PAUSE)
        if raw is not None:
            raw.close()
