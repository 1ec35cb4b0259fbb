"""What an executed notebook contains: text, pictures and tables."""

import base64
import importlib
import json
import sys
from typing import Any

import pytest

from notebook_runner._contents import Contents, Image
from notebook_runner._tables import read_tables, tables_of

pandas: Any = importlib.import_module("pandas")  # has no types
PNG = base64.b64encode(b"\x89PNG").decode()


def contents(*outputs: dict[str, Any]) -> Contents:
    """The contents of a notebook with some text, and a cell with these outputs."""
    cells = [{"cell_type": "markdown", "source": "<table>"}, {"cell_type": "code", "outputs": outputs}]
    return Contents(json.dumps({"cells": cells}).encode())


def shown(**data: Any) -> dict[str, Any]:
    """An output with these representations, `__` for `/` in their types."""
    return {
        "output_type": "display_data",
        "data": {name.replace("__", "/"): value for name, value in data.items()},
    }


def test_outputs_in_their_order() -> None:
    """Text of both streams, displays and errors, each with the index of its cell and as plain text."""
    result = contents(
        {"output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"]},
        {"output_type": "stream", "name": "stderr", "text": "c\n"},
        shown(text__plain=["x", "y"]) | {"output_type": "execute_result"},
        shown(text__html="<b>only</b>"),
        {"output_type": "error", "traceback": ["\x1b[31mTraceback\x1b[0m", "ValueError"]},
    )
    assert result.text == "a\nb\nc\n"
    assert [(one.kind, one.stream, one.text) for one in result.outputs] == [
        ("stream", "stdout", "a\nb\n"),
        ("stream", "stderr", "c\n"),
        ("execute_result", "", "xy"),
        ("display_data", "", ""),
        ("error", "", "Traceback\nValueError"),
    ]
    assert {one.cell_index for one in result.outputs} == {1}
    assert str(result.outputs[0]) == "cell 2: a b"
    assert str(result.outputs[3]) == "cell 2: [text/html]"
    assert Contents(b"{}").outputs == ()


def test_representations_have_the_type_that_suits() -> None:
    """Pictures are bytes, JSON is parsed, and what is damaged stays text."""
    (output,) = contents(
        shown(
            image__png=PNG,
            application__pdf=[PNG],
            image__jpeg="no base64!",
            application__json=[1],
            text__latex="$",
        )
    ).outputs
    assert output.data == {
        "image/png": b"\x89PNG",
        "application/pdf": b"\x89PNG",
        "image/jpeg": "no base64!",
        "application/json": [1],
        "text/latex": "$",
    }


def test_one_picture_for_each_output() -> None:
    """Of several representations PNG goes first; SVG is the file's content."""
    result = contents(
        shown(**{"image__svg+xml": "<svg/>", "image__png": PNG, "text__plain": "<Figure>"}),
        shown(**{"image__svg+xml": ["<svg>", "</svg>"]}),
        shown(image__bmp=PNG),
        shown(text__plain="no picture"),
    )
    assert result.images == (
        Image(1, "image/png", b"\x89PNG"),
        Image(1, "image/svg+xml", b"<svg></svg>"),
        Image(1, "image/bmp", b"\x89PNG"),
    )
    assert str(result.images[0]) == "cell 2: image/png, 4 B"
    assert "content" not in repr(result.images[0])
    # A picture that can have scripts is not shown by itself.
    assert [set(image._repr_mimebundle_()) for image in result.images[:2]] == [
        {"text/plain", "image/png"},
        {"text/plain"},
    ]


FRAMES = {
    "plain": pandas.DataFrame({"a": [1, 2], "b": ["x", "<y>"], "c": [1.5, None]}),
    "named index": pandas.DataFrame({"a": [1, 2]}, index=pandas.Index(["p", "q"], name="key")),
    "levels of the index": pandas.DataFrame(
        {"v": range(4)}, index=pandas.MultiIndex.from_product([["A", "B"], [1, 2]], names=["x", "y"])
    ),
    "levels of the columns": pandas.DataFrame({("g", "a"): [1], ("g", "b"): [True], ("h", "a"): [2]}),
    "grouped": pandas.DataFrame({"a": [1, 1, 2], "b": [3, 4, 5]}).groupby("a").agg({"b": ["min", "max"]}),
    "no rows": pandas.DataFrame({"a": [], "b": []}),
    "missing": pandas.DataFrame({"a": ["x", None], "b": [float("nan"), 1]}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_comes_back(name: str) -> None:
    """What pandas displays is read back with its types, columns and index."""
    frame = FRAMES[name]
    (table,) = tables_of([frame._repr_html_()])
    pandas.testing.assert_frame_equal(
        table, frame, check_dtype=False, check_index_type=False, check_column_type=False
    )
    if name == "plain":
        assert [str(kind) for kind in table.dtypes][::2] == ["int64", "float64"]


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is a list of rows, the names of the columns first."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert tables_of([FRAMES["plain"]._repr_html_(), "<p>none</p>"]) == [
        [["", "a", "b", "c"], ["0", "1", "x", "1.5"], ["1", "2", "<y>", "NaN"]]
    ]


@pytest.mark.parametrize(
    ("page", "rows", "names", "index"),
    [
        ("<table><tr><th>a<th>b<tr><td>1<td>2</table>", [["a", "b"], ["1", "2"]], 1, 0),
        ("<TABLE><TR><TD>1<BR>2</TD></TR></TABLE>", [["1 2"]], 0, 0),
        (
            "<table><tr><th>a</th><td>1</td></tr><tr><th>b</th><td>2</td></tr></table>",
            [["a", "1"], ["b", "2"]],
            0,
            1,
        ),
        (
            "<table><tr><td rowspan=2>x</td><td colspan=2>y</td></tr><tr><td>1</td><td>2</td></tr></table>",
            [["x", "y", "y"], ["x", "1", "2"]],
            0,
            0,
        ),
        # polars has the types of the columns below their names.
        (
            "<table><thead><tr><th>a</th></tr><tr><td>i64</td></tr></thead><tbody><tr><td>1</td></tr></tbody></table>",
            [["a"], ["1"]],
            1,
            0,
        ),
        ("<table><tr><td>a<table><tr><td>in</td></tr></table></td></tr></table>", [["ain"]], 0, 0),
        ("<table><tr><td>a<style>td {}</style></td></tr></table>", [["a"]], 0, 0),
        ("<table><td>a</td></table>", [["a"]], 0, 0),
        ("<table><tr><td colspan=x>a</td></tr></table></table><td>", [["a"]], 0, 0),
    ],
)
def test_tables_of_other_origins(page: str, rows: list[list[str]], names: int, index: int) -> None:
    """Whatever made it: header, spans, nesting and what browsers forgive."""
    (table,) = read_tables(page)
    assert (table.rows, len(table.header), table.index_columns) == (rows, names, index)
    assert len(tables_of([page])[0]) == len(rows) - names


@pytest.mark.parametrize(
    "page", ["", "<table></table>", "<table><tr></tr></table>", "<table", "</table><tr><td>x"]
)
def test_pages_without_a_table(page: str) -> None:
    """Nothing comes of nothing."""
    assert read_tables(page) == []


def test_a_table_with_rows_of_several_lengths() -> None:
    """Missing cells are empty."""
    (table,) = tables_of(["<table><tr><th>a<tr><td>1<td>2<tr><td>3</table>"])
    assert table.fillna(0).to_numpy().tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize(
    ("page", "cells"),
    [
        ("<table><tr>" + "<td colspan=1000>x" * 1000, 101_000),
        ("<table>" + "<tr><td rowspan=1000 colspan=1000>x" * 3000, 103_000),
        (f"<table><tr><td colspan={'9' * 5000}>x", 1000),
        ("<table><tr>" + "<td>x" * 5000 + "<tr><td>x" * 30_000, 35_000),
    ],
)
def test_a_small_page_does_not_take_all_memory(page: str, cells: int) -> None:
    """Spans and rows of different lengths are filled in as far as a displayed table needs."""
    (table,) = read_tables(page)
    assert sum(map(len, table.rows)) <= cells
    (shown_as,) = tables_of([page])
    assert isinstance(shown_as, pandas.DataFrame if cells == 1000 else list)
