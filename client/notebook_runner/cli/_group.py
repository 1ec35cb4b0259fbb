"""The group that all commands hang on: how to reach the server, and what becomes of errors."""

from __future__ import annotations

import contextlib
import errno
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from notebook_runner._connection import DEFAULT_TARGET
from notebook_runner._version import __version__
from notebook_runner.client import Client
from notebook_runner.errors import NotebookRunnerError, RpcFailed, Unavailable

from ._exit import HELP, ExitCode, code_of_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notebook_runner.v1.notebook_runner_pb2 import Run

__all__ = ["Server", "describe_error", "main", "usage_errors"]


@dataclass(frozen=True)
class Server:
    """The server that the command talks to.

    Attributes:
        settings: The arguments of the client, as given by flags and environment.
        command: The command with the flags that reach the same server, to be shown in hints.
    """

    settings: dict[str, Any]
    command: str

    def connect(self) -> Client:
        """Make a client.

        Raises:
            click.UsageError: The settings contradict each other.
        """
        with usage_errors():
            return Client(**self.settings)

    def hint(self, run: Run) -> str:
        """Tell how to go on with a run that this command leaves alone."""
        return (
            f"follow it:  {self.command} progress {run.run_id}\nend it:     {self.command} kill {run.run_id}"
        )


class _Group(click.Group):
    """Turns what the client raises into one clear line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.CTRL_C)
        except NotebookRunnerError as error:
            click.echo(f"error: {describe_error(error)}", err=True)
            ctx.exit(code_of_error(error))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of our output has left, which click knows how to end
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {where}{error.strerror or error}", err=True)
            ctx.exit(ExitCode.USAGE)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn arguments that the client does not accept into click's error."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def describe_error(error: NotebookRunnerError) -> str:
    """Say in a sentence what went wrong."""
    if not isinstance(error, RpcFailed):
        return str(error)
    text = f"the server is unavailable: {error.message}" if isinstance(error, Unavailable) else str(error)
    if error.retry_after is not None:
        text += f" (try again in {error.retry_after:g} s)"
    return text


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=_Group, epilog=HELP)
@click.option(
    "--target",
    envvar="NOTEBOOK_RUNNER_TARGET",
    default=DEFAULT_TARGET,
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="The server's address.",
)
@click.option(
    "--token-file",
    envvar="NOTEBOOK_RUNNER_TOKEN_FILE",
    show_envvar=True,
    type=_FILE,
    help="A file with the bearer token.",
)
@click.option(
    "--tls-ca",
    envvar="NOTEBOOK_RUNNER_TLS_CA",
    show_envvar=True,
    type=_FILE,
    help="The certificates to trust, PEM. Without this and --tls-cert nothing is encrypted.",
)
@click.option(
    "--tls-cert",
    envvar="NOTEBOOK_RUNNER_TLS_CERT",
    show_envvar=True,
    type=_FILE,
    help="The client's certificate chain, PEM.",
)
@click.option(
    "--tls-key",
    envvar="NOTEBOOK_RUNNER_TLS_KEY",
    show_envvar=True,
    type=_FILE,
    help="The key of --tls-cert, PEM.",
)
@click.version_option(__version__, prog_name="notebook-runner")
@click.pass_context
def main(ctx: click.Context, /, **settings: Any) -> None:
    """Run Jupyter notebooks on a notebook-runner server.

    \b
    notebook-runner run report.ipynb -p region north -o done.ipynb
    notebook-runner start report.ipynb      start it and come back at once
    notebook-runner progress                follow the newest run
    """  # noqa: D301 - the control character tells click to keep the lines
    flags = [
        f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in settings.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    ctx.obj = Server(settings, "notebook-runner" + "".join(flags))
