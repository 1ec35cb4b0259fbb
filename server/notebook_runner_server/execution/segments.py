"""The encoding of a notebook as segments: one for each cell, and the tail with all that follows the cells.

`HEAD`, the cells joined by `SEPARATOR`, and the tail together are, byte for byte, what `nbformat.write`
writes, so that an executed notebook can be joined from its segments without parsing. One difference: keys of
future formats that sort before `cells` come after the cells here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TAIL = -1
"""The number of the segment that holds everything but the cells."""

HEAD = b'{\n "cells": ['
SEPARATOR = b","


@dataclass(frozen=True, slots=True)
class PreparedNotebook:
    """A notebook that is ready for execution: valid nbformat 4, parameters injected.

    Attributes:
        cells: The segment of each cell.
        tail: The segment with everything else.
        kernel_name: The kernelspec that the request or the notebook names; empty: neither does.
        repairs: What violated the notebook format's schema and was repaired, as sentences.
    """

    cells: tuple[bytes, ...]
    tail: bytes
    kernel_name: str
    repairs: tuple[str, ...] = ()


def encode(value: object) -> bytes:
    """Encode JSON as it stands in a notebook file, at its left margin."""
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, separators=(",", ": "))
    try:
        return text.encode()
    except UnicodeEncodeError:
        # A kernel may print lone surrogates: as an escape they are kept.
        return json.dumps(value, indent=1, sort_keys=True, separators=(",", ": ")).encode()


def encode_cell(cell: Mapping[str, Any]) -> bytes:
    """Encode a cell as it stands in a notebook file, with its indentation.

    Args:
        cell: The cell, texts split into lines as in a file.
    """
    return indented(encode(cell), 2)


def indented(encoded: bytes, depth: int) -> bytes:
    """Return JSON as it stands in a file on a line of its own, so many characters from the left."""
    margin = b"\n" + b" " * depth
    return margin + encoded.replace(b"\n", margin)
