"""What the event of a display has of its data: sizes, the result value that it sets, and small content."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from typing import Any

from notebook_runner_server.execution.failures import MAX_NAME
from notebook_runner_server.execution.interface import (
    MAX_CONTENT_BYTES,
    MAX_RESULT_BYTES,
    MAX_RESULT_NAME,
    MAX_TYPES,
    DisplayOutput,
    ResultValue,
)
from notebook_runner_server.execution.output_limiter import data_size

RESULT_TYPES = {
    "application/scrapbook.scrap.json+json": "json",
    "application/scrapbook.scrap.text+json": "text",
}
"""The MIME types of scrapbook's scraps that are values, with their encoders. Scraps of other encoders are not
JSON (`pandas` is Parquet in base64), or only displays."""

MAX_RESULT_DEPTH = 30
"""Maximum nesting of a result value: parsers of protobuf refuse more than 100 nested messages."""

_BASE64_TYPES = ("image/", "audio/", "video/", "application/pdf", "application/octet-stream")
_TEXT_TYPES = ("+xml", "+json")


def display_event(kind: str, data: dict[str, Any], cell_index: int, content_bytes: int) -> DisplayOutput:
    """Return the event of a display.

    Args:
        kind: The output's type in nbformat.
        data: The representations by MIME type.
        cell_index: The cell.
        content_bytes: Maximum size of a representation whose content the event has; zero: none.
    """
    sizes, contents, left = [], [], MAX_CONTENT_BYTES
    for index, (mime, value) in enumerate(itertools.islice(data.items(), MAX_TYPES)):
        size = data_size(value)
        sizes.append((unicode(mime[:MAX_NAME]), size))
        # Base64 is a third longer than what it encodes, and has line breaks.
        if content_bytes and size <= 2 * content_bytes:
            content = _content(mime, value)
            if len(content) <= min(content_bytes, left):
                contents.append((index, content))
                left -= len(content)
    return DisplayOutput(
        cell_index,
        kind,
        tuple(sizes),
        max(0, len(data) - MAX_TYPES),
        _result(data),
        tuple(contents),
    )


def _content(mime: str, value: Any) -> bytes:
    """Return a representation as the contract has it: text, JSON, or the bytes that base64 encodes."""
    base = mime.partition(";")[0].strip().lower()
    if base == "application/json" or base.endswith("+json") or not _is_text(value):
        return unicode(json.dumps(value, ensure_ascii=False)).encode()
    text = value if isinstance(value, str) else "".join(value)
    if base.startswith(_BASE64_TYPES) and not base.endswith(_TEXT_TYPES):
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            # Some libraries send text there.
            pass
    return unicode(text).encode()


def _is_text(value: Any) -> bool:
    """Return whether a value is text, as one string or as the list of lines that nbformat also allows."""
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(line, str) for line in value)
    )


def _result(data: dict[str, Any]) -> ResultValue | None:
    """Return the result value that a display sets; None: it sets none, or is malformed."""
    for mime, encoder in RESULT_TYPES.items():
        scrap = data.get(mime)
        if not isinstance(scrap, dict) or "data" not in scrap:
            continue
        name = scrap.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_RESULT_NAME:
            continue
        if scrap.get("encoder", encoder) not in RESULT_TYPES.values():
            continue
        return ResultValue(unicode(name), _value_json(scrap["data"]))
    return None


def _value_json(value: Any) -> str:
    """Return a result value as JSON; empty: it is too large, or nested too deep."""
    if not _is_shallow(value):
        return ""
    text = unicode(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= MAX_RESULT_BYTES and len(text.encode()) <= MAX_RESULT_BYTES else ""


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_RESULT_DEPTH + 1):
        containers = [one for one in level if isinstance(one, dict | list)]
        if not containers:
            return True
        level = [inner for one in containers for inner in (one.values() if isinstance(one, dict) else one)]
        # Each value takes a byte, and its separator another one.
        if len(level) > MAX_RESULT_BYTES:
            return False
    return False


def unicode(text: str) -> str:
    """Replace lone surrogates, which protobuf cannot carry; the notebook keeps them."""
    return text if text.isascii() else text.encode(errors="replace").decode()
