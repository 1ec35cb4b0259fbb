"""What cells display, as text: values, tables and small texts; everything else by its type and size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from notebook_runner._printable import clean, one_line
from notebook_runner._tables import read_tables

from ._text import describe_display
from ._types import rows_of

if TYPE_CHECKING:
    from notebook_runner.v1 import notebook_runner_pb2 as pb

__all__ = ["Shown", "show_display"]

# A terminal shows so much of a text or a table.
MAX_LINES = 60
MAX_ROWS = 30
MAX_COLUMNS = 20
MAX_VALUE = 1000

_HTML, _PLAIN = "text/html", "text/plain"
# What IPython's Markdown, HTML and the like are as text.
_ONLY_A_NAME = re.compile(r"<[\w.]+ object( at 0x[0-9a-f]+)?>", re.ASCII)
_TEXTS = (_PLAIN, "text/markdown", "text/latex", "application/json")


@dataclass(frozen=True)
class Shown:
    """What to show of a display.

    Attributes:
        text: The text.
        table: The rows of a table, the first of which is the heading, to show instead if there are any.
        is_description: Whether the text only describes what cannot be shown.
    """

    text: str
    table: tuple[tuple[str, ...], ...] = ()
    is_description: bool = False


def show_display(display: pb.DisplayOutput, *, tables: bool = False) -> Shown:
    """Return what to show of a display.

    Args:
        display: The display, with the content of small representations.
        tables: Whether the view can show tables; otherwise they are text.
    """
    if display.HasField("result"):
        value = display.result.value_json
        shown = value if len(value) <= MAX_VALUE else f"{value[:MAX_VALUE]}…"
        return Shown(one_line(f"{display.result.name} = {shown}"))
    # A picture comes with a text that only names it.
    is_picture = any(item.mime_type.startswith("image/") for item in display.data)
    texts = {
        item.mime_type: item.content.decode(errors="replace")
        for item in display.data
        if item.HasField("content") and not is_picture
    }
    if len(display.data) > 1 and _ONLY_A_NAME.fullmatch(texts.get(_PLAIN, "")):
        del texts[_PLAIN]
    rows = table_of(texts[_HTML]) if _HTML in texts and (tables or _PLAIN not in texts) else ()
    if rows and tables:
        return Shown("", rows)
    if rows:
        texts[_PLAIN] = "\n".join(rows_of(rows))
    if found := [mime_type for mime_type in _TEXTS if mime_type in texts]:
        return Shown(_shortened(clean(texts[found[0]])))
    return Shown(describe_display(display), is_description=True)


def table_of(html: str) -> tuple[tuple[str, ...], ...]:
    """Return the rows of the first table in an HTML text, all of the same length; nothing if it has none.

    Large tables are cut: the last row and column then say so.
    """
    rows = next((table.rows for table in read_tables(html)), [])
    width = max(map(len, rows), default=0)
    kept = [_row_of(row, width) for row in rows[: MAX_ROWS + 1]]
    if left := len(rows) - len(kept):
        kept.append((f"… {left:,} more", *[""] * (len(kept[0]) - 1)))
    return tuple(kept)


def _row_of(row: list[str], width: int) -> tuple[str, ...]:
    if width > MAX_COLUMNS:
        row, width = [*row[: MAX_COLUMNS - 1], "…"], MAX_COLUMNS
    return tuple(map(one_line, [*row, *[""] * (width - len(row))]))


def _shortened(text: str) -> str:
    lines = text.rstrip("\n").split("\n")
    if len(lines) <= MAX_LINES:
        return "\n".join(lines)
    return "\n".join(
        [*lines[:MAX_LINES], f"[… {len(lines) - MAX_LINES:,} more lines; the notebook has them]"]
    )
