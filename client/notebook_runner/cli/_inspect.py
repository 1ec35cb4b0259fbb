"""What parameters a notebook has, read from its cell tagged `parameters`."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

__all__ = ["Parameter", "ParametersCell", "inspect", "python_parameters"]

_TYPE_COMMENT = re.compile(r"type:\s*(\S+)\s*")
_MAGIC = re.compile(r"\s*[%!?]")


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: The name that a run gives a value to.
        type: The annotation, else the type of the default where it is a literal, else empty.
        default: The default, as it is written in the cell.
        help: The comment at the end of the line, without `#`.
    """

    name: str
    type: str
    default: str
    help: str


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
        why = f"{error.msg} in its line {error.lineno}"
        raise click.UsageError(f"{file}: the cell tagged `parameters` is not valid Python: {why}") from error
    return ParametersCell(language, source, found)


def python_parameters(source: str) -> tuple[Parameter, ...]:
    """Give the names that Python source assigns at its top level, in their order.

    Raises:
        SyntaxError: It is not Python.
    """
    # Magics are IPython's and no Python; they assign no parameter.
    source = "\n".join("" if _MAGIC.match(line) else line for line in source.splitlines())
    comments = _comments(source)
    found: dict[str, Parameter] = {}
    for statement in ast.parse(source).body:
        for name, annotation, value in _assignments(statement):
            comment = comments.get(statement.end_lineno or 0, "")
            said = _TYPE_COMMENT.match(comment)
            kind = (annotation or (said[1] if said else "") or _literal_type(value)).strip("'\"")
            default = " ".join((ast.get_source_segment(source, value) or "").split())
            found[name] = Parameter(name, kind, default, comment[said.end() :] if said else comment)
    return tuple(found.values())


def _assignments(statement: ast.stmt) -> list[tuple[str, str, ast.expr]]:
    """Each name that a statement assigns, with its annotation and value."""
    if isinstance(statement, ast.AnnAssign) and statement.value and isinstance(statement.target, ast.Name):
        return [(statement.target.id, ast.unparse(statement.annotation), statement.value)]
    if isinstance(statement, ast.Assign):
        names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
        return [(name, "", statement.value) for name in names]
    return []


def _literal_type(value: ast.expr) -> str:
    try:
        kind = type(ast.literal_eval(value)).__name__
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return ""
    return "" if kind == "NoneType" else kind


def _comments(source: str) -> dict[int, str]:
    """The comment of each line, without its sign."""
    tokens = tokenize.generate_tokens(io.StringIO(source + "\n").readline)
    try:
        return {
            token.start[0]: token.string.lstrip("#").strip()
            for token in tokens
            if token.type == tokenize.COMMENT
        }
    except tokenize.TokenError as error:
        raise SyntaxError(error.args[0], ("", error.args[1][0], None, None)) from error


def _document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise click.UsageError(f"{file} is not a notebook: {error}") from error
    if not isinstance(document, dict) or "nbformat" not in document:
        raise click.UsageError(f'{file} is not a notebook: it has no "nbformat"')
    return document


def _cells(document: dict[str, Any]) -> list[dict[str, Any]]:
    # nbformat 3 has its cells in worksheets.
    sheets = document.get("worksheets") or [document]
    return [cell for sheet in sheets for cell in sheet.get("cells", []) if cell.get("cell_type") == "code"]


def _tags(cell: dict[str, Any]) -> list[str]:
    tags: list[str] = cell.get("metadata", {}).get("tags", [])
    return tags


def _text(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    return source if isinstance(source, str) else "".join(source)


def _language(document: dict[str, Any]) -> str:
    metadata = document.get("metadata", {})
    named = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language")
    return str(named or "python").lower()
