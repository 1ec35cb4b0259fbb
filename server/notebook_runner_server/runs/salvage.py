"""What can be saved of a cell whose worker died: the text that it was told to have printed.

A cell's outputs come when it ends. When its worker dies first, the log still has what the cell printed; this
puts it back into the cell, as the notebook would have it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from notebook_runner_server.execution.interface import ClearOutput, StreamOutput
from notebook_runner_server.runs.model import Event


def salvage(cell: bytes, events: Iterable[Event]) -> bytes:
    """Return a cell with the text that its events tell of.

    Args:
        cell: The cell as it was before it was executed, encoded (`execution.notebook.encode_cell`).
        events: The events since it was started.
    """
    document = json.loads(cell)
    document["outputs"] = _outputs(events)
    document["execution_count"] = None
    text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True, separators=(",", ": "))
    return b"\n  " + text.encode(errors="replace").replace(b"\n", b"\n  ")


def _outputs(events: Iterable[Event]) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    clear = False
    for event in events:
        match event.body:
            case ClearOutput(wait=wait):
                clear = True
                if not wait:
                    outputs.clear()
                    clear = False
            case StreamOutput(name=name, text=text):
                if clear:
                    outputs.clear()
                    clear = False
                outputs.append(
                    {"name": name, "output_type": "stream", "text": text.splitlines(keepends=True)}
                )
    return outputs
