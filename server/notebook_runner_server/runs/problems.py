"""A logger for problems: known conditions are one line with a reason, mistakes have a traceback."""

from __future__ import annotations

import logging
import sqlite3
import sys
from collections.abc import MutableMapping
from typing import Any

from typing_extensions import override

from notebook_runner_server.errors import RunnerError

# A statement that SQLite does not accept, or a call that it does not.
_MISTAKES = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE}


class ProblemLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs the errors that end an attempt.

    Args:
        name: The name of the module.
    """

    def __init__(self, name: str) -> None:
        super().__init__(logging.getLogger(name))

    @override
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    @override
    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Log the error that is being handled: with `why` if disk, data or another system is the reason."""
        error = sys.exception()
        if _is_known(error):
            why = error.message if isinstance(error, RunnerError) else str(error) or type(error).__name__
            self.error(msg, *args, **{**kwargs, "extra": {**kwargs.get("extra", {}), "why": why}})
        else:
            super().exception(msg, *args, **kwargs)


def _is_known(error: BaseException | None) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF not in _MISTAKES
    return isinstance(error, (OSError, RunnerError))
