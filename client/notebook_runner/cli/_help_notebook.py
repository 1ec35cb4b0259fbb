"""`--help-notebook`: shows the parameters of a notebook, from its cell tagged `parameters`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from notebook_runner._parameters_cell import Parameter, python_parameters
from notebook_runner._printable import one_line

from ._text import dump
from ._types import rows_of

__all__ = ["show_parameters"]


def show_parameters(file: Path | None, *, as_json: bool) -> None:
    """Print the parameters of a local notebook.

    Raises:
        click.UsageError: The notebook does not exist or cannot be parsed.
    """
    if file is None:
        raise click.UsageError("--help-notebook needs NOTEBOOK, a local file.")
    if not file.is_file():
        raise click.UsageError(f"No such local notebook: {file}.")
    cell = inspect(file)
    if as_json:
        found = cell.parameters if cell else ()
        click.echo(dump([asdict(parameter) for parameter in found]))
    elif cell is None:
        click.echo(f"{file} has no cell tagged `parameters`; values are inserted in a new cell at the top")
    else:
        _show(file, cell)


def _show(file: Path, cell: ParametersCell) -> None:
    if cell.language != "python":
        language = one_line(cell.language)
        click.echo(f"{file} is written in {language}. Its cell tagged `parameters`:\n\n{cell.source}")
        return
    click.echo(
        f"Parameters of {file}:"
        if cell.parameters
        else f"The cell tagged `parameters` of {file} has no parameters."
    )
    rows = [
        (f"  {one_line(one.name)}", one_line(one.type or "any"), one_line(one.default), one_line(one.help))
        for one in cell.parameters
    ]
    for line in rows_of([("  NAME", "TYPE", "DEFAULT", ""), *rows] if rows else []):
        click.echo(line)


@dataclass(frozen=True)
class ParametersCell:
    """The cell tagged `parameters` of a notebook.

    Attributes:
        language: The notebook's language.
        source: The source of the cell.
        parameters: The parameters, if the language is Python.
    """

    language: str
    source: str
    parameters: tuple[Parameter, ...]


def inspect(file: Path) -> ParametersCell | None:
    """Read a notebook's parameters; `None` if it has no cell tagged `parameters`.

    Raises:
        click.UsageError: The file is not a notebook, or its cell is not valid Python.
        OSError: The file cannot be read.
    """
    document = _document(file)
    cell = next((cell for cell in _cells(document) if "parameters" in _tags(cell)), None)
    if cell is None:
        return None
    source, language = _text(cell), _language(document)
    try:
        found = python_parameters(source) if language == "python" else ()
    except SyntaxError as error:
        why = f"{error.msg} (line {error.lineno} of the cell)"
        raise click.UsageError(f"{file}: the cell tagged `parameters` is not valid Python: {why}") from error
    return ParametersCell(language, source, found)


def _document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise click.UsageError(f"{file} is not a notebook: {error}") from error
    if not isinstance(document, dict) or "nbformat" not in document:
        raise click.UsageError(f'{file} is not a notebook: the key "nbformat" is missing.')
    return document


def _cells(document: dict[str, Any]) -> list[dict[str, Any]]:
    # nbformat 3 has its cells in worksheets.
    sheets = document.get("worksheets") or [document]
    return [cell for sheet in sheets for cell in sheet.get("cells", []) if cell.get("cell_type") == "code"]


def _tags(cell: dict[str, Any]) -> list[str]:
    # Like the server, accept tags that are missing, null or a single string.
    tags = (cell.get("metadata") or {}).get("tags") or []
    return [tags] if isinstance(tags, str) else tags


def _text(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    return source if isinstance(source, str) else "".join(source)


def _language(document: dict[str, Any]) -> str:
    metadata = document.get("metadata", {})
    named = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language")
    return str(named or "python").lower()
