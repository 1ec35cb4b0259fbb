"""What can be saved of a cell whose worker died: the text that it was told to have printed.

A cell's outputs come when it ends. When its worker dies first, the log still has what the cell printed; this
puts it back into the cell, as the notebook would have it. The text may be large, so it goes piece by piece.
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
from notebook_runner_server.execution.parts import encode, encode_cell, indented
from notebook_runner_server.runs.model import Event

_NO_OUTPUTS = b'\n   "outputs": []'


def shown_since(backwards: Iterable[Event], *, output_after: bool) -> tuple[int | None, bool]:
    """Look for the event after which all that a cell printed is still shown: its start, or a clearing.

    Args:
        backwards: Some events of the cell, the newest first.
        output_after: Whether the cell had output after these.

    Returns:
        The event's sequence number, None: it is not among these; and `output_after` for those before.
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
    """Encodes a cell with the text that its events tell of; the pieces together are the cell's part.

    Args:
        source: The cell as it was before it was executed, encoded.

    Attributes:
        cell_id: Its id; empty: it has none.
        head: The first piece.
    """

    def __init__(self, source: bytes) -> None:
        document = json.loads(source)
        self.cell_id = str(document.get("id", ""))
        document["outputs"] = []
        document["execution_count"] = None
        head, _, self._tail = encode_cell(document).partition(_NO_OUTPUTS)
        self.head = head + _NO_OUTPUTS[:-1]
        # Name and end of the output that is being encoded; None: none was begun.
        self._output: tuple[str, bytes] | None = None

    def piece(self, events: Iterable[Event]) -> bytes:
        """Return the piece for the next events."""
        return b"".join(self._text(event.body) for event in events if isinstance(event.body, StreamOutput))

    def tail(self) -> bytes:
        """Return the last piece."""
        return (b"]" if self._output is None else self._output[1] + b"\n   ]") + self._tail

    def _text(self, body: StreamOutput) -> bytes:
        if not body.text:
            return b""
        lines = body.text.splitlines(keepends=True)
        text = b",".join(indented(encode(line), 6) for line in lines)
        before = b""
        if self._output is not None:
            name, end = self._output
            if name == body.name:
                return b"," + text
            before = end + b","
        output = {"name": body.name, "output_type": "stream", "text": []}
        # The last brackets: a name may have some as well.
        opening, _, closing = indented(encode(output), 4).rpartition(b"[]")
        self._output = body.name, b"\n     ]" + closing
        return before + opening + b"[" + text
