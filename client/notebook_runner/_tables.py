"""Reads tables from HTML with the standard library; they become DataFrames where pandas is installed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Table", "read_tables", "tables_of"]

_CELLS = ("td", "th")
_HIDDEN = ("style", "script")
# How pandas displays a missing value.
_MISSING = frozenset({"NaN", "NaT", "<NA>", "None"})
_BOOLS = {"True": True, "False": False}
# The most columns or rows that a cell may span, as in browsers.
_MAX_SPAN = 1000
_SPAN_DIGITS = 4
# The most places of a table that are filled without a cell of their own: a page of a few KB could otherwise
# take all memory.
_MAX_FILLED = 100_000
_MAX_COLUMNS = 10_000


@dataclass
class Table:
    """A table as it was displayed. A cell that spans several places is repeated in each of them.

    Attributes:
        header: The rows with the names of the columns.
        body: The other rows.
        index_columns: Number of columns, from the left, that name the rows of the body.
    """

    header: list[list[str]]
    body: list[list[str]]
    index_columns: int = 0

    @property
    def rows(self) -> list[list[str]]:
        """All rows, the header first."""
        return [*self.header, *self.body]

    @property
    def is_even(self) -> bool:
        """Whether its rows are not too long, and can be filled up to the longest one."""
        lengths = [len(row) for row in self.rows]
        width = max(lengths, default=0)
        return width <= _MAX_COLUMNS and len(lengths) * width - sum(lengths) <= _MAX_FILLED

    def frame(self, pandas: Any) -> Any:
        """Return the table as a DataFrame.

        Args:
            pandas: The package.
        """
        width = max(map(len, self.rows), default=0)
        header, index_names = self._names()
        body = [row + [""] * (width - len(row)) for row in self.body]
        frame = pandas.DataFrame([row[self.index_columns :] for row in body], dtype=object)
        if header:
            names = [row[self.index_columns :] + [""] * (width - len(row)) for row in header]
            labels = list(zip(*names, strict=True))
            is_multiple = len(header) > 1
            # A body without rows has no columns yet.
            frame = frame.reindex(columns=range(len(labels))) if len(frame.columns) != len(labels) else frame
            frame.columns = (
                pandas.MultiIndex.from_tuples(labels) if is_multiple else [one for (one,) in labels]
            )
        for place in range(len(frame.columns)):
            frame.isetitem(place, _typed(pandas, frame.iloc[:, place].tolist()))
        if self.index_columns and body:
            levels = [_typed(pandas, [row[place] for row in body]) for place in range(self.index_columns)]
            names = index_names or [None] * self.index_columns
            frame.index = (
                pandas.MultiIndex.from_arrays(levels, names=names)
                if self.index_columns > 1
                else pandas.Index(levels[0], name=names[0])
            )
        return frame

    def _names(self) -> tuple[list[list[str]], list[Any]]:
        """Return the rows with names of columns, and the names of the index."""
        if not (self.index_columns and len(self.header) > 1):
            return self.header, []
        # pandas gives the names of the index a row of their own, below those of the columns.
        last = self.header[-1]
        if any(last[self.index_columns :]) or not any(last[: self.index_columns]):
            return self.header, []
        return self.header[:-1], [name or None for name in last[: self.index_columns]]


def tables_of(pages: Iterable[str]) -> list[Any]:
    """Return the tables of pages of HTML: as DataFrames where pandas is installed, else as lists of rows."""
    found = [table for page in pages for table in read_tables(page)]
    try:
        pandas = importlib.import_module("pandas") if found else None
    except ModuleNotFoundError:
        pandas = None
    return [table.frame(pandas) if pandas and table.is_even else table.rows for table in found]


def read_tables(page: str) -> list[Table]:
    """Return the tables of a page of HTML; a table within a table is text of its cell."""
    parser = _TableParser()
    parser.feed(page)
    parser.close()
    return [table for rows in parser.tables if (table := _table(rows)).rows]


def _typed(pandas: Any, texts: Sequence[Any]) -> Any:
    """Return a column as numbers or bools if all its texts are, else as it is."""
    values = [None if text in _MISSING else text for text in texts]
    bools = [_BOOLS[text] for text in texts if text in _BOOLS]
    if len(bools) == len(values):
        return bools
    try:
        return pandas.to_numeric(pandas.Series(values, dtype=object))
    except (ValueError, TypeError):
        return values


@dataclass
class _Cell:
    is_name: bool
    columns: int
    rows: int
    text: list[str] = field(default_factory=list)


@dataclass
class _Row:
    in_head: bool
    cells: list[_Cell] = field(default_factory=list)


class _TableParser(HTMLParser):
    """Collects the rows of each table."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[_Row]] = []
        self._depth = 0
        self._hidden = False
        self._in_head = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden = True
        elif tag == "table":
            self._depth += 1
            if self._depth == 1:
                self.tables.append([])
                self._in_head = False
        elif self._depth == 1:
            self._start(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag in _HIDDEN:
            self._hidden = False
        elif tag == "table":
            self._depth = max(0, self._depth - 1)
        elif tag == "thead" and self._depth == 1:
            self._in_head = False

    def handle_data(self, data: str) -> None:
        if self._depth and not self._hidden and self.tables[-1] and self.tables[-1][-1].cells:
            self.tables[-1][-1].cells[-1].text.append(data)

    def _start(self, tag: str, attributes: dict[str, str | None]) -> None:
        rows = self.tables[-1]
        if tag in {"thead", "tbody", "tfoot"}:
            self._in_head = tag == "thead"
        elif tag == "tr" or (tag in _CELLS and not rows):
            rows.append(_Row(self._in_head))
        if tag in _CELLS:
            cell = _Cell(tag == "th", _span(attributes.get("colspan")), _span(attributes.get("rowspan")))
            rows[-1].cells.append(cell)
        elif tag == "br" and rows and rows[-1].cells:
            rows[-1].cells[-1].text.append(" ")


def _span(text: str | None) -> int:
    if not (text and text.isdecimal()):
        return 1
    return min(max(1, int(text)), _MAX_SPAN) if len(text) <= _SPAN_DIGITS else _MAX_SPAN


def _table(rows: list[_Row]) -> Table:
    rows = [row for row in rows if row.cells]
    grid = _grid(rows)
    size = 0
    while size < len(rows) and (rows[size].in_head or _is_header(rows[size], rows)):
        size += 1
    # Below the names, polars has the types of the columns in the head as well.
    has_names = any(cell.is_name for row in rows[:size] for cell in row.cells)
    header = [
        grid[place]
        for place in range(size)
        if not has_names or any(cell.is_name for cell in rows[place].cells)
    ]
    body = grid[size:]
    texts = [[text for text, _ in line] for line in body]
    leading = [next((place for place, (_, name) in enumerate(line) if not name), len(line)) for line in body]
    # pandas leaves the names above an index empty, also where no row follows.
    unnamed = int(bool(header) and not header[0][0][0])
    return Table([[text for text, _ in line] for line in header], texts, min(leading, default=unnamed))


def _is_header(row: _Row, rows: list[_Row]) -> bool:
    # Without a head, the first rows that consist of names are the header, unless all rows do.
    is_named = all(cell.is_name for cell in row.cells)
    return (
        is_named
        and not any(other.in_head for other in rows)
        and not all(cell.is_name for other in rows for cell in other.cells)
    )


def _grid(rows: list[_Row]) -> list[list[tuple[str, bool]]]:
    """Return each row as text and whether it is a name, for each column, with spans filled in."""
    left_to_fill = _MAX_FILLED
    grid: list[list[tuple[str, bool]]] = []
    hanging: dict[int, tuple[int, tuple[str, bool]]] = {}
    for place, row in enumerate(rows):
        line: list[tuple[str, bool]] = []
        cells = iter(row.cells)
        cell = next(cells, None)
        while cell or len(line) in hanging:
            if len(line) in hanging:
                left, content = hanging.pop(len(line))
                if left > 1:
                    hanging[len(line)] = (left - 1, content)
                line.append(content)
                continue
            assert cell  # noqa: S101 - for the type checker
            content = (" ".join("".join(cell.text).split()), cell.is_name)
            height = min(cell.rows, len(rows) - place)
            filled = cell.columns * height - 1
            is_kept = filled <= left_to_fill
            left_to_fill -= filled if is_kept else 0
            for _ in range(cell.columns if is_kept else 1):
                if is_kept and height > 1:
                    hanging[len(line)] = (height - 1, content)
                line.append(content)
            cell = next(cells, None)
        grid.append(line)
    return grid
