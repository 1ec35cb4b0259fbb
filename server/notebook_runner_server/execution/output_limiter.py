"""Limits the output of cells and runs, and bounds the messages of kernels."""

from __future__ import annotations

import json
from typing import Any

from notebook_runner_server.execution.interface import Limits

MAX_TRACEBACK = 1024 * 1024
"""Bytes of a traceback that are kept, whatever the limits are."""

_LINE_BYTES = 8
"""Bytes around each line of a traceback in a notebook, at least: quotes, comma, line break, indentation."""

FREE_MESSAGES = 10_000
"""Number of messages of a cell that count with their output alone; further ones also count their overhead."""

FREE_BYTES = 1024
"""Bytes of names and metadata of a message that do not count while messages are few."""

MESSAGE_BYTES = 128
"""Size of an empty message in history and memory."""

_MAX_NAME = 256


class OutputLimiter:
    """Counts the bytes of output that a kernel sends, including output that it clears later.

    Args:
        limits: The run's limits.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._run = 0
        self._cell = 0
        self._messages = 0

    def start_cell(self) -> None:
        """Start counting for another cell."""
        self._cell = self._messages = 0

    def cost(self, content: dict[str, Any]) -> int:
        """Return the bytes that the next message counts."""
        self._messages += 1
        around = overhead(content)
        is_free = around <= FREE_BYTES and self._messages <= FREE_MESSAGES
        return size(content) + (0 if is_free else around + MESSAGE_BYTES)

    def left(self) -> float:
        """Return the remaining bytes; infinite: no limit."""
        cell, run = self._limits.cell_output_bytes, self._limits.run_output_bytes
        return min(cell - self._cell if cell else float("inf"), run - self._run if run else float("inf"))

    def take(self, size: int) -> None:
        """Count bytes."""
        self._cell += size
        self._run += size

    def reached(self) -> tuple[int, bool]:
        """Return the nearest limit in bytes, and whether it is the whole run's."""
        cell, run = self._limits.cell_output_bytes, self._limits.run_output_bytes
        whole_run = bool(run) and (not cell or run - self._run <= cell - self._cell)
        return (run, True) if whole_run else (cell, False)


def sound(kind: str, content: object) -> dict[str, Any] | None:
    """Return the content of a kernel's message with the types of the protocol; None: it is malformed.

    Overlong names are cut.
    """
    if not isinstance(content, dict):
        return None
    if not isinstance(content.get("execution_count", 0), int):
        content = {**content, "execution_count": None}
    if kind == "error":
        return bounded_error(content)
    if kind == "stream" and isinstance(content.get("name"), str):
        content = {**content, "name": content["name"][:_MAX_NAME]}
    if kind.startswith("comm_"):
        content = {"data": {}, **content}
    return content if _has_types(kind, content) else None


def _has_types(kind: str, content: dict[str, Any]) -> bool:
    """Return whether a message has the fields of its kind, with the types of the protocol."""
    if kind == "stream":
        return isinstance(content.get("name"), str) and isinstance(content.get("text"), str)
    if kind.startswith("comm_"):
        return isinstance(content.get("comm_id"), str) and isinstance(content["data"], dict)
    if kind in {"display_data", "execute_result", "update_display_data"}:
        parts = [content.get("data"), content.get("metadata", {}), content.get("transient", {})]
        return all(isinstance(part, dict) for part in parts)
    return True


def size(content: dict[str, Any]) -> int:
    """Return the bytes of output in the content of a kernel's message."""
    data, lines = content.get("data", {}), content.get("traceback", [])
    pieces = [content.get("text", ""), content.get("evalue", "")]
    pieces += data.values() if isinstance(data, dict) and "comm_id" not in content else [data]
    pieces += lines if isinstance(lines, list) else [lines]
    return sum(map(data_size, pieces))


def overhead(content: dict[str, Any]) -> int:
    """Return the bytes of a message besides its output: names of types, metadata, ids."""
    names = sum(map(data_size, content["data"])) if isinstance(content.get("data"), dict) else 0
    rest = [
        content[key] for key in ("metadata", "transient", "comm_id", "ename", "target_name") if key in content
    ]
    return names + sum(map(data_size, rest))


def data_size(data: object) -> int:
    """Return the size of a piece of output in a notebook: text as UTF-8, anything else as JSON."""
    text = data if isinstance(data, str) else json.dumps(data)
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def bounded_error(content: dict[str, Any]) -> dict[str, Any]:
    """Return an error's content with the last lines of its traceback, up to `MAX_TRACEBACK`."""
    kept: list[str] = []
    left = MAX_TRACEBACK
    lines = content.get("traceback", [])
    for line in map(str, reversed(lines if isinstance(lines, list) else [])):
        # There may be many lines without a letter, and each is validated as one.
        left -= data_size(line) + _LINE_BYTES
        if left < 0:
            break
        kept.append(line)
    name, value = str(content.get("ename", ""))[:_MAX_NAME], str(content.get("evalue", ""))[:MAX_TRACEBACK]
    return {**content, "traceback": kept[::-1], "ename": name, "evalue": value}


def shortened(kind: str, content: dict[str, Any], room: int) -> dict[str, Any] | None:
    """Return a message's content cut to a size; None: only streams can be cut."""
    if kind != "stream" or room <= 0:
        return None
    return {**content, "text": content["text"].encode(errors="replace")[:room].decode(errors="ignore")}
