"""Result options of `run`: write the result, and open it."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from notebook_runner._printable import one_line
from notebook_runner._snapshot import RunSnapshot
from notebook_runner.errors import NotebookRunnerError

from ._exit import ExitCode, code_of_error
from ._group import describe_error
from ._text import as_plain, dump

if TYPE_CHECKING:
    from collections.abc import Callable

    from notebook_runner.v1.notebook_runner_pb2 import Run

    from ._calls import CommandClient
    from ._group import Server

__all__ = ["STANDARD_STREAM", "OutputOptions", "check_folder", "result_options"]

STANDARD_STREAM = "-"
# Made here from the events, and no artefact of the server.
_JUNIT = "junit"

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
    click.option(
        "--junit",
        type=_FILE,
        metavar="FILE",
        help="Write a report for CI systems to FILE as JUnit XML: a test case for each executed cell.",
    ),
    click.option(
        "--values",
        is_flag=True,
        help="Print the result values as a JSON object to standard output, and everything else to standard "
        "error.",
    ),
]


def result_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the result options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_folder(file: Path | None) -> None:
    """Refuse a file to be written to a folder that does not exist.

    Raises:
        click.UsageError: It does not.
    """
    if file and not file.parent.is_dir():
        raise click.UsageError(f"Cannot write {file}: folder {file.parent} does not exist.")


@dataclass(frozen=True)
class OutputOptions:
    """The requested results.

    Attributes:
        notebook: The file for the executed notebook.
        html: The file for its HTML.
        no_input: Whether to omit the code from the HTML.
        opened: Whether to open the HTML in a browser.
        junit: The file for the JUnit report.
        values: Whether to print the result values.
    """

    notebook: Path | None
    html: Path | None
    no_input: bool
    opened: bool
    junit: Path | None
    values: bool

    @classmethod
    def of(cls, options: dict[str, Any], *, as_json: bool) -> Self:
        """Take them from the options of a command.

        Raises:
            click.UsageError: The options are inconsistent.
        """
        names = ("output", "html", "no_input", "opened", "junit", "values")
        requested = cls(*(options.pop(name) for name in names))
        if requested.no_input and not (requested.html or requested.opened):
            raise click.UsageError("--no-input needs --html FILE or --open.")
        if requested.values and as_json:
            raise click.UsageError("--json includes the values, in the last event. Omit --values.")
        if requested.values and requested.writes_to_stdout:
            raise click.UsageError("--values and --output - both use standard output.")
        if requested.writes_to_stdout and (as_json or sys.stdout.isatty()):
            why = "--json uses it" if as_json else "it is a terminal"
            raise click.UsageError(f"Cannot write the notebook to standard output: {why}. Use --output FILE.")
        for file in (requested.notebook, requested.html, requested.junit):
            # Reported now instead of after a run of hours.
            check_folder(file)
        return requested

    @property
    def writes_to_stdout(self) -> bool:
        """Whether the executed notebook goes to standard output."""
        return str(self.notebook) == STANDARD_STREAM

    @property
    def uses_stdout(self) -> bool:
        """Whether a result goes to standard output, so that messages must not."""
        return self.writes_to_stdout or self.values

    def later(self, server: Server, run_id: str) -> str:
        """Return the lines that name the commands which get the requested files later."""
        files = [(self.notebook, "notebook"), (self.html, "html")]
        commands = [self._command(server, run_id, file, artefact) for file, artefact in files if file]
        return "".join(f"\nget it:     {command}" for command in commands)

    def save(self, server: Server, client: CommandClient, ended: Run, *, quiet: bool) -> ExitCode:
        """Write, open and print the requested results, and return the exit code."""
        code = ExitCode.SUCCEEDED
        if self.values:
            click.echo(dump(as_plain(ended).get("results", {})))
        page = self.html
        if self.opened and page is None:
            # Sanitized, because the id comes from the server.
            name = re.sub(r"[^\w.-]", "_", ended.run_id)
            page = Path(tempfile.mkdtemp(prefix="notebook-runner-")) / f"{name}.html"
        for file, artefact in ((self.notebook, "notebook"), (page, "html"), (self.junit, _JUNIT)):
            if file:
                code = self._write(server, client, ended, file, artefact, quiet=quiet) or code
        if self.opened and page and page.exists() and not webbrowser.open(page.resolve().as_uri()):
            click.echo(f"no browser found; the page is in {page}", err=True)
        return code

    def _write(
        self, server: Server, client: CommandClient, ended: Run, file: Path, artefact: str, *, quiet: bool
    ) -> ExitCode:
        uses_stdout = str(file) == STANDARD_STREAM
        omit = self.no_input and artefact == "html"
        try:
            if artefact == _JUNIT:
                from ._junit import write_junit  # noqa: PLC0415 - brings an XML library, and few runs need it

                write_junit(file, RunSnapshot(ended), client.progress(ended.run_id, omit_cell_output=True))
            else:
                client.save_output(
                    sys.stdout.buffer if uses_stdout else file, ended.run_id, format=artefact, omit_input=omit
                )
        # Not raised, because the other file and the exit code of the run matter more.
        except NotebookRunnerError as error:
            why, code = describe_error(error), code_of_error(error)
        except OSError as error:
            if uses_stdout:
                raise
            why, code = error.strerror or str(error), ExitCode.USAGE
        else:
            if not (quiet or uses_stdout):
                click.echo(f"wrote {file}", err=True)
            return ExitCode.SUCCEEDED
        click.echo(f"error: Cannot write {file}: {why}", err=True)
        if artefact != _JUNIT:
            click.echo(f"get it:     {self._command(server, ended.run_id, file, artefact)}", err=True)
        return code

    def _command(self, server: Server, run_id: str, file: Path, artefact: str) -> str:
        options = f" -f {artefact}" * (artefact != "notebook")
        options += " --no-input" * (self.no_input and artefact == "html")
        return f"{server.command} output {shlex.quote(one_line(run_id))}{options} -o {shlex.quote(str(file))}"
