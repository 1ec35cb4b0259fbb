"""Salvage the printed text of a cell whose worker died.

A worker sends a cell's outputs when the cell ends. When the worker dies first, the log still has the text
that the cell printed; this module encodes the cell with that text. The text may be large, so it is encoded in
chunks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from notebook_runner_server.execution.interface import (
    CellStarted,
    ClearOutput,
    DisplayOutput,
    ErrorOutput,
    StreamOutput,
)
from notebook_runner_server.execution.segments import encode, encode_cell, indented
from notebook_runner_server.runs.model import Event

_NO_OUTPUTS = b'\n   "outputs": []'


def shown_since(backwards: Iterable[Event], *, output_after: bool) -> tuple[int | None, bool]:
    """Find the event after which all output of a cell is still shown: its start, or the last clearing.

    Args:
        backwards: Some events of the cell, newest first.
        output_after: Whether the cell has output after these.

    Returns:
        The event's sequence number (None: not among these), and `output_after` for the events before.
    """
    for event in backwards:
        match event.body:
            case CellStarted():
                return event.sequence, output_after
            case ClearOutput(wait=wait) if output_after or not wait:
                return event.sequence, output_after
            case StreamOutput() | DisplayOutput() | ErrorOutput():
                output_after = True
    return None, output_after


class SalvagedCell:
    """Encode a cell with the text of its events; the chunks together are the cell's segment.

    Args:
        source: The encoded cell before its execution.

    Attributes:
        cell_id: The cell's id; empty: it has none.
        head: The first chunk.
    """

    def __init__(self, source: bytes) -> None:
        document = json.loads(source)
        self.cell_id = str(document.get("id", ""))
        document["outputs"] = []
        document["execution_count"] = None
        head, _, self._tail = encode_cell(document).partition(_NO_OUTPUTS)
        self.head = head + _NO_OUTPUTS[:-1]
        # Name and end of the current output; None: there is no output yet.
        self._output: tuple[str, bytes] | None = None

    def chunk(self, events: Iterable[Event]) -> bytes:
        """Return the chunk for the next events."""
        return b"".join(self._text(event.body) for event in events if isinstance(event.body, StreamOutput))

    def tail(self) -> bytes:
        """Return the last chunk."""
        return (b"]" if self._output is None else self._output[1] + b"\n   ]") + self._tail

    def _text(self, body: StreamOutput) -> bytes:
        if not body.text:
            return b""
        lines = body.text.splitlines(keepends=True)
        text = b",".join(indented(encode(line), 6) for line in lines)
        separator = b""
        if self._output is not None:
            name, end = self._output
            if name == body.name:
                return b"," + text
            separator = end + b","
        output = {"name": body.name, "output_type": "stream", "text": []}
        # The last brackets: a name may contain brackets too.
        opening, _, closing = indented(encode(output), 4).rpartition(b"[]")
        self._output = body.name, b"\n     ]" + closing
        return separator + opening + b"[" + text
