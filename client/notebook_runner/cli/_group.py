"""The command group: connection options and error messages."""

from __future__ import annotations

import contextlib
import errno
import io
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from notebook_runner._connection import DEFAULT_TARGET, check_target
from notebook_runner._printable import one_line
from notebook_runner._status import problem_of
from notebook_runner._version import __version__
from notebook_runner._waiting import is_temporary
from notebook_runner.errors import NotebookRunnerError, QuotaExceeded, RpcFailed, Unavailable

from ._calls import CommandClient
from ._exit import HELP, ExitCode, code_of_error
from ._options import request_json, wants_json
from ._terminal import clean_terminals, grpc_silenced
from ._text import LOGIN_ADVICE, dump

if TYPE_CHECKING:
    from collections.abc import Iterator

    from notebook_runner.v1.notebook_runner_pb2 import Run

__all__ = ["Server", "describe_error", "main", "usage_errors"]


@dataclass(frozen=True)
class Server:
    """The server that the command talks to.

    Attributes:
        settings: The arguments of the client, from flags and environment.
        command: The command with the flags that reach the same server, for hints.
    """

    settings: dict[str, Any]
    command: str

    def connect(self, **more: Any) -> CommandClient:
        """Create a client.

        Args:
            **more: Further arguments of the client.

        Raises:
            click.UsageError: The settings contradict each other.
        """
        with usage_errors():
            return CommandClient(**self.settings, **more)

    def hint(self, run: Run) -> str:
        """Return the commands to follow or kill a run that continues."""
        run_id = shlex.quote(one_line(run.run_id))
        return f"follow it:  {self.command} watch {run_id}\nkill it:    {self.command} kill {run_id}"


class _Group(click.Group):
    """Turns the client's exceptions into a message and an exit code, and cleans text for terminals."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        with grpc_silenced(), clean_terminals():
            return super().main(*arguments, **options)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        # Known before the arguments are parsed, because a usage error must be JSON as well.
        as_json = "--json" in args
        with _usage_errors_as_json(as_json):
            ctx = super().make_context(info_name, args, parent, **extra)
        request_json(ctx, as_json)
        return ctx

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name.endswith(".ipynb") and self.get_command(ctx, name) is None:
            raise click.UsageError(
                f"Unknown command {name!r}. To run it: notebook-runner run {shlex.join(args)}", ctx
            )
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _usage_errors_as_json(wants_json(ctx)):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(ExitCode.CTRL_C)
        except NotebookRunnerError as error:
            code = code_of_error(error)
            text = _as_json(error, code) if wants_json(ctx) else f"error: {_with_advice(error)}"
            click.echo(text, err=True)
            ctx.exit(code)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of the output has gone, which click handles
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or error}"
            shown = _error_object(message, ExitCode.USAGE) if wants_json(ctx) else f"error: {message}"
            click.echo(shown, err=True)
            ctx.exit(ExitCode.USAGE)


class _UsageErrorAsJson(click.UsageError):
    """A usage error that shows itself as JSON."""

    def show(self, file: Any = None) -> None:
        click.echo(_error_object(self.message, self.exit_code), file=file, err=file is None)


@contextlib.contextmanager
def _usage_errors_as_json(as_json: bool) -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        if not as_json:
            raise
        raise _UsageErrorAsJson(error.format_message()) from error


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn invalid arguments of the client into usage errors."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error


def describe_error(error: NotebookRunnerError) -> str:
    """Describe an error in a sentence, with advice if there is any."""
    if not isinstance(error, RpcFailed):
        return one_line(str(error))
    # Without a reason the message is the client's own, and the name of the status would add nothing.
    is_plain = isinstance(error, Unavailable) and error.message and not error.reason
    text = error.message if is_plain else str(error)
    if problem := problem_of(error):
        text += f" {problem.advice}"
    if is_temporary(error):
        return one_line(f"{text} To wait until it starts, use --wait.")
    if error.retry_after is not None:
        text += f" (try again in {error.retry_after:g} s)"
    if isinstance(error, QuotaExceeded) and error.quota == "history":
        text += " `notebook-runner delete RUN...` deletes ended runs, and `list` names them."
    return one_line(text)


def _with_advice(error: NotebookRunnerError) -> str:
    text = describe_error(error)
    is_tokenless = isinstance(error, RpcFailed) and error.reason == "MISSING_TOKEN"
    return f"{text} {LOGIN_ADVICE}" if is_tokenless else text


def _as_json(error: NotebookRunnerError, code: ExitCode) -> str:
    """Return an error as JSON, with all details of the status."""
    if not isinstance(error, RpcFailed):
        return _error_object(str(error), code)
    return _error_object(
        error.message,
        code,
        code=error.code.name,
        reason=error.reason,
        metadata=error.metadata,
        retry_after=error.retry_after,
        violations=[asdict(violation) for violation in error.violations],
    )


def _error_object(message: str, exit_code: int, **details: Any) -> str:
    return dump({"error": {"message": message, "exit_code": int(exit_code), **details}})


def _address(_: click.Context, __: click.Parameter, value: str) -> str:
    """Refuse addresses that gRPC would misinterpret."""
    try:
        check_target(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    if ":" not in value:
        raise click.BadParameter(f"{value!r} has no port. Use HOST:PORT.")
    return value


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=_Group, epilog=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--target",
    envvar="NOTEBOOK_RUNNER_TARGET",
    default=DEFAULT_TARGET,
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    callback=_address,
    help="Server address.",
)
@click.option(
    "--token-file",
    envvar="NOTEBOOK_RUNNER_TOKEN_FILE",
    show_envvar=True,
    type=_FILE,
    help="File with the bearer token.",
)
@click.option(
    "--tls-ca",
    envvar="NOTEBOOK_RUNNER_TLS_CA",
    show_envvar=True,
    type=_FILE,
    help="PEM file of CA certificates to trust. Without this and --tls-cert, nothing is encrypted.",
)
@click.option(
    "--tls-cert",
    envvar="NOTEBOOK_RUNNER_TLS_CERT",
    show_envvar=True,
    type=_FILE,
    help="PEM file with the client's certificate chain.",
)
@click.option(
    "--tls-key",
    envvar="NOTEBOOK_RUNNER_TLS_KEY",
    show_envvar=True,
    type=_FILE,
    help="PEM file with the private key of --tls-cert.",
)
@click.version_option(__version__, prog_name="notebook-runner")
@click.pass_context
def main(ctx: click.Context, /, **settings: Any) -> None:
    """Run Jupyter notebooks on a notebook-runner server.

    \b
    notebook-runner run report.ipynb -p region=north -o done.ipynb
    notebook-runner start report.ipynb      start it and return immediately
    notebook-runner watch                   follow the newest run
    notebook-runner show                    show its state, parameters and values
    notebook-runner doctor                  diagnose problems

    RUN is the id of a run, or an unambiguous part of it: its beginning, or the beginning of its last part.
    """  # noqa: D301 - the control character tells click to keep the lines
    for stream in (sys.stdout, sys.stderr):
        # A character that the encoding lacks is shown as an escape.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    flags = [
        f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in settings.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    ctx.obj = Server(settings, "notebook-runner" + "".join(flags))
