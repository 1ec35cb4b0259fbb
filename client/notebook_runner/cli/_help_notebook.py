"""`--help-notebook`: shows what parameters a notebook has."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._inspect import inspect
from ._text import dump, one_line
from ._types import rows_of

if TYPE_CHECKING:
    from ._inspect import ParametersCell

__all__ = ["show_parameters"]


def show_parameters(file: Path | None, *, as_json: bool) -> None:
    """Print the parameters of a notebook of the caller's.

    Raises:
        click.UsageError: There is no such notebook here, or it cannot be read.
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
