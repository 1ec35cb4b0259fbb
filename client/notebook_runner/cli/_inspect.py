"""What parameters a notebook has, read from its cell tagged `parameters`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from notebook_runner._parameters_cell import Parameter, python_parameters

__all__ = ["ParametersCell", "inspect"]


@dataclass(frozen=True)
class ParametersCell:
    """The cell tagged `parameters` of a notebook.

    Attributes:
        language: The notebook's language.
        source: What the cell says.
        parameters: The parameters, where the language is Python.
    """

    language: str
    source: str
    parameters: tuple[Parameter, ...]


def inspect(file: Path) -> ParametersCell | None:
    """Read a notebook's parameters; `None` when it has no cell tagged `parameters`.

    Raises:
        click.UsageError: It is no notebook, or its cell is not valid Python.
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
    # The server reads tags that are missing, null or a string alone as they are meant, and so does this.
    tags = (cell.get("metadata") or {}).get("tags") or []
    return [tags] if isinstance(tags, str) else tags


def _text(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    return source if isinstance(source, str) else "".join(source)


def _language(document: dict[str, Any]) -> str:
    metadata = document.get("metadata", {})
    named = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language")
    return str(named or "python").lower()
