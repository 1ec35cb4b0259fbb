"""The log: structlog, as JSON for machines or as lines for people; the standard library's goes there too."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import re
import sys
import threading
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

MOST_WAITING = 10_000
"""Lines that may wait until they are written; further ones are left out, and their number is told."""

LAST_SECONDS = 2.0
"""How long the last lines may take to be written when the process ends."""


def configure(form: str, level: str) -> None:
    """Send every log line to stderr.

    Args:
        form: "json" or "console".
        level: The least severe level that is written.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    if form == "json":
        # A traceback as text: with the values of variables it would tell secrets.
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=_shown_traceback
        )
        last = [_shown, renderer]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = PatientHandler(sys.stderr.fileno())
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Papermill remarks on notebooks; that is for their callers, who are told.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_tells_no_header)
    structlog.configure(
        processors=[*shared[:4], structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


# What would steer a terminal, begin a line that looks like another record's, or turn letters round.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _escaped(text: str, keep: str = "") -> str:
    return _UNSHOWN.sub(lambda match: match[0] if match[0] in keep else repr(match[0])[1:-1], text)


def _shown(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what is no text in the values of a line; of lists and the like, `repr` does so."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _escaped(value)
    return event


def _shown_traceback(target: TextIO, exception: Any) -> None:
    """Write a traceback, whose lines are its own, and whose texts may be anybody's."""
    lines = io.StringIO()
    structlog.dev.plain_traceback(lines, exception)
    target.write(_escaped(lines.getvalue(), keep="\n"))


class PatientHandler(logging.Handler):
    """Writes lines on a thread of its own: whoever reads them slowly, or not at all, holds up nobody.

    Args:
        descriptor: Where to write.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._waiting: queue.Queue[str | None] = queue.Queue(MOST_WAITING)
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have a line written (called by logging)."""
        try:
            # Here, where what is bound for the log is known.
            self._waiting.put_nowait(self.format(record))
        except queue.Full:
            self._lost += 1
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            self.handleError(record)

    def close(self) -> None:
        """Write what waits, as far as there is time (called by logging at the end of the process)."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=LAST_SECONDS)
            self._thread.join(LAST_SECONDS)
        super().close()

    def _run(self) -> None:
        told = 0
        while (line := self._waiting.get()) is not None:
            self._write(line)
            if lost := self._lost - told:
                told += lost
                about = {"msg": "log_lines_dropped", "levelname": "WARNING", "levelno": logging.WARNING}
                record = logging.makeLogRecord({**about, "name": __name__, "count": lost})
                self._write(self.format(record))

    def _write(self, line: str) -> None:
        # Not by sys.stderr: a thread that waits inside it would keep the process from ending.
        rest = f"{line}\n".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]


def _tells_no_header(record: logging.LogRecord) -> bool:
    """Drop what gRPC says of a header that is no text: it repeats the value, which may be a token."""
    return not str(record.msg).startswith("Invalid encoding on")
