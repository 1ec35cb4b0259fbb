"""Configures the log: structlog and the standard library, as JSON for machines or as lines for people."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def _unavailable(module: str) -> Iterator[None]:
    """Have imports not find a module, unless it is imported already."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault(module, None)
    try:
        yield
    finally:
        if modules[module] is None:
            del modules[module]


# structlog imports rich where it is installed, for tracebacks in color that this log has not: a tenth of the
# server's start.
with _unavailable("rich"):
    import structlog

ANNOUNCEMENTS = "announcements"
"""The logger of sentences for people, which a log in JSON leaves out."""

MAX_WAITING = 10_000
"""Maximum number of lines that wait to be written; further lines are dropped, and their number is logged."""

LAST_SECONDS = 2.0
"""Maximum time to write the last lines when the process ends, in seconds."""


def configure(form: str, level: str) -> None:
    """Send every log line to stderr.

    Args:
        form: "json", "console", or "auto": console on a terminal, JSON otherwise.
        level: The minimum level.
    """
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "json"
    shared: list[Any] = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level]
    if form == "json":
        shared += [structlog.stdlib.add_logger_name, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    else:
        shared += [structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)]
    if form == "json":
        # As text, because structured tracebacks have values of variables, which may be secrets.
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
            exception_formatter=_print_traceback,
        )
        last = [_escape_values, renderer]
    formatter = _Formatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = PatientHandler(sys.stderr.fileno())
    handler.setFormatter(formatter)
    if form == "json":
        handler.addFilter(lambda record: record.name != ANNOUNCEMENTS)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Papermill logs remarks on notebooks, which callers get in their responses.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    # It announces features when it is imported, which papermill does where it is installed.
    logging.getLogger("gcsfs").setLevel(logging.WARNING)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_header_value)
    logging.getLogger("traitlets").addFilter(_is_no_excerpt)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


# Characters that control a terminal, start a line that looks like another record, or reorder text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Formats lines, and leaves announcements as they are."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a line (called by logging)."""
        return _escaped(record.getMessage()) if record.name == ANNOUNCEMENTS else super().format(record)


def _escaped(text: str, keep: str = "") -> str:
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)


def _escape_values(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape unsafe characters in the values of a line; in lists and the like, `repr` does so."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _escaped(value)
    return event


def _print_traceback(target: TextIO, exception: Any) -> None:
    """Write a traceback, whose messages may come from a notebook."""
    lines = io.StringIO()
    structlog.dev.plain_traceback(lines, exception)
    target.write(_escaped(lines.getvalue(), keep="\n"))


class PatientHandler(logging.Handler):
    """Writes lines without waiting for a slow or absent reader of the log, which blocks nothing.

    A pipe with space takes a line in the calling thread, because waking another thread for each line costs
    more than the line. What it does not take, and lines for other files, are written on a separate thread.

    Args:
        descriptor: Where to write.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: queue.Queue[bytes | None] = queue.Queue(MAX_WAITING)
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Write or queue a line (called by logging, one line at a time)."""
        try:
            # Format on this thread, which has the logging context.
            line = self._encoded(record)
            if not self._waiting.unfinished_tasks:
                # An error: the pipe is full or has no reader, or the file or Linux does not support this.
                with contextlib.suppress(OSError):
                    line = line[os.pwritev(self._descriptor, [line], -1, os.RWF_NOWAIT) :]
            if line:
                self._waiting.put_nowait(line)
        except queue.Full:
            self._lost += 1
        except Exception:  # noqa: BLE001 - like logging's own handlers
            self.handleError(record)

    def close(self) -> None:
        """Write the queued lines, as far as time permits (called by logging at the end of the process)."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=LAST_SECONDS)
            self._thread.join(LAST_SECONDS)
        super().close()

    def _run(self) -> None:
        reported = 0
        while (line := self._waiting.get()) is not None:
            self._write(line)
            self._waiting.task_done()
            if lost := self._lost - reported:
                reported += lost
                about = {"msg": "log_lines_dropped", "levelname": "WARNING", "levelno": logging.WARNING}
                record = logging.makeLogRecord({**about, "name": __name__, "count": lost})
                self._write(self._encoded(record))

    def _encoded(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _write(self, rest: bytes) -> None:
        # Not with sys.stderr: a thread that blocks inside it would keep the process from ending.
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


def _is_no_header_value(record: logging.LogRecord) -> bool:
    """Drop gRPC's line about a malformed header, which quotes the value: it may be a token."""
    return not str(record.msg).startswith("Invalid encoding on")


def _is_no_excerpt(record: logging.LogRecord) -> bool:
    """Drop nbformat's lines about invalid notebooks, which quote them. Callers get what was repaired."""
    return "nbformat" not in Path(record.pathname).parts
