"""Result options of `run`: write the result, and open it."""

from __future__ import annotations

import re
import sys
import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from notebook_runner.errors import NotebookRunnerError

from ._exit import ExitCode, code_of_error
from ._group import describe_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_runner.client import Client
    from notebook_runner.v1.notebook_runner_pb2 import Run

__all__ = ["STANDARD_STREAM", "OutputOptions", "result_options"]

STANDARD_STREAM = "-"

_FILE = click.Path(dir_okay=False, path_type=Path)
_OPTIONS = [
    click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
        metavar="FILE",
        help="Write the executed notebook to FILE (- for standard output), however the run ended.",
    ),
    click.option(
        "--html", type=_FILE, metavar="FILE", help="Write it to FILE as HTML, however the run ended."
    ),
    click.option("--no-input", is_flag=True, help="Omit the code from the HTML."),
    click.option("--open", "opened", is_flag=True, help="Open the HTML in a browser."),
]


def result_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the result options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class OutputOptions:
    """The requested results.

    Attributes:
        notebook: The file for the executed notebook.
        html: The file for its HTML.
        no_input: Whether to omit the code from the HTML.
        opened: Whether to open the HTML in a browser.
    """

    notebook: Path | None
    html: Path | None
    no_input: bool
    opened: bool

    @classmethod
    def of(cls, options: dict[str, Any], *, as_json: bool) -> Self:
        """Take them from the options of a command.

        Raises:
            click.UsageError: The options are inconsistent.
        """
        requested = cls(*(options.pop(name) for name in ("output", "html", "no_input", "opened")))
        if requested.no_input and not (requested.html or requested.opened):
            raise click.UsageError("--no-input needs --html FILE or --open.")
        if requested.uses_stdout and (as_json or sys.stdout.isatty()):
            why = "--json uses it" if as_json else "it is a terminal"
            raise click.UsageError(f"Cannot write the notebook to standard output: {why}. Use --output FILE.")
        for file in (requested.notebook, requested.html):
            # Reported now instead of after a run of hours.
            if file and not file.parent.is_dir():
                raise click.UsageError(f"Cannot write {file}: folder {file.parent} does not exist.")
        return requested

    @property
    def uses_stdout(self) -> bool:
        """Whether the executed notebook goes to standard output."""
        return str(self.notebook) == STANDARD_STREAM

    def save(self, client: Client, ended: Run, *, quiet: bool) -> ExitCode:
        """Write and open the requested results, and return the exit code."""
        code = ExitCode.SUCCEEDED
        page = self.html
        if self.opened and page is None:
            # Sanitized, because the id comes from the server.
            name = re.sub(r"[^\w.-]", "_", ended.run_id)
            page = Path(tempfile.mkdtemp(prefix="notebook-runner-")) / f"{name}.html"
        for file, artefact in ((self.notebook, "notebook"), (page, "html")):
            if file:
                code = self._write(client, ended, file, artefact, quiet=quiet) or code
        if self.opened and page and page.exists() and not webbrowser.open(page.resolve().as_uri()):
            click.echo(f"no browser found; the page is in {page}", err=True)
        return code

    def _write(self, client: Client, ended: Run, file: Path, artefact: str, *, quiet: bool) -> ExitCode:
        uses_stdout = str(file) == STANDARD_STREAM
        omit = self.no_input and artefact == "html"
        try:
            client.save_output(
                sys.stdout.buffer if uses_stdout else file, ended.run_id, format=artefact, omit_input=omit
            )
        # Not raised, because the other file and the exit code of the run matter more.
        except NotebookRunnerError as error:
            click.echo(f"error: Cannot write {file}: {describe_error(error)}", err=True)
            return code_of_error(error)
        except OSError as error:
            if uses_stdout:
                raise
            click.echo(f"error: Cannot write {file}: {error.strerror or error}", err=True)
            return ExitCode.USAGE
        if not (quiet or uses_stdout):
            click.echo(f"wrote {file}", err=True)
        return ExitCode.SUCCEEDED
