"""The ids of runs, and their names: what people see in a list instead of an id."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from urllib.parse import unquote

from notebook_runner_server.errors import InvalidFieldError

MAX_NAME = 128

_SUFFIX = ".ipynb"
# Also those that only Unicode has: a name is one line in a terminal, a log and a page.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def new_run_id() -> str:
    """Return the id of a new run."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def check_name(name: str) -> None:
    """Check the name that a request gives a run.

    Raises:
        InvalidFieldError: It is too long, or cannot be shown in one line.
    """
    if len(name) > MAX_NAME:
        message = f"name must have at most {MAX_NAME} characters (got {len(name)})."
        raise InvalidFieldError(message, field="name")
    if found := _CONTROL.search(name):
        message = f"name must not contain control characters or line breaks (got {found[0]!r})."
        raise InvalidFieldError(message, field="name")


def default_name(path: str, uri: str) -> str:
    """Return the name of a run that was given none: that of its notebook's file; empty: it has no file.

    Args:
        path: The notebook's path under the notebook root; empty: it was not named by a path.
        uri: The notebook's URI; empty: it was not named by a URI.
    """
    file_name = path.rpartition("/")[2] or unquote(uri.partition("?")[0].rpartition("/")[2])
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", file_name.removesuffix(_SUFFIX))[:MAX_NAME]
