"""The log: structlog, as JSON for machines or as lines for people; the standard library's goes there too."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


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
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        last = [renderer]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stderr)
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


def _tells_no_header(record: logging.LogRecord) -> bool:
    """Drop what gRPC says of a header that is no text: it repeats the value, which may be a token."""
    return not str(record.msg).startswith("Invalid encoding on")
