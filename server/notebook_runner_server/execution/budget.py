"""How much output a cell and a run may still have."""

from __future__ import annotations

import json
from typing import Any

from notebook_runner_server.execution.interface import Limits

MAX_TRACEBACK = 1024 * 1024
"""How many bytes of a traceback are kept, whatever the limits are."""


class OutputBudget:
    """Counts the bytes of output that a kernel sends, whether it clears them later or not.

    Args:
        limits: What the run may take.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._run = 0
        self._cell = 0

    def start_cell(self) -> None:
        """Begin to count for another cell."""
        self._cell = 0

    def left(self) -> float:
        """Return how many bytes may still come; infinite: as many as there are."""
        cell, run = self._limits.cell_output_bytes, self._limits.run_output_bytes
        return min(cell - self._cell if cell else float("inf"), run - self._run if run else float("inf"))

    def take(self, size: int) -> None:
        """Count bytes that came."""
        self._cell += size
        self._run += size

    def reached(self) -> tuple[int, bool]:
        """Return the limit in bytes that is nearest, and whether it is the whole run's."""
        cell, run = self._limits.cell_output_bytes, self._limits.run_output_bytes
        whole_run = bool(run) and (not cell or run - self._run <= cell - self._cell)
        return (run, True) if whole_run else (cell, False)


def size(content: dict[str, Any]) -> int:
    """Return how many bytes of output the content of a kernel's message brings."""
    if "text" in content:
        return data_size(content["text"])
    if "data" in content:
        return sum(map(data_size, content["data"].values()))
    return sum(map(data_size, [str(content.get("evalue", "")), *content.get("traceback", [])]))


def data_size(data: object) -> int:
    """Return how many bytes a piece of output has in a notebook: text as UTF-8, anything else as JSON."""
    text = data if isinstance(data, str) else json.dumps(data)
    return len(text.encode(errors="replace"))


def bounded_error(content: dict[str, Any]) -> dict[str, Any]:
    """Return an error's content with as many of its traceback's last lines as may always be kept."""
    kept: list[str] = []
    left = MAX_TRACEBACK
    for line in reversed(content.get("traceback", [])):
        left -= data_size(line)
        if left < 0:
            break
        kept.insert(0, line)
    evalue = str(content.get("evalue", ""))[:MAX_TRACEBACK]
    return {**content, "traceback": kept, "evalue": evalue}


def shortened(content: dict[str, Any], room: int) -> dict[str, Any] | None:
    """Return as much of a message's content as there is room for; None: only text can be shortened."""
    if "text" not in content or room <= 0:
        return None
    return {**content, "text": content["text"].encode(errors="replace")[:room].decode(errors="ignore")}
