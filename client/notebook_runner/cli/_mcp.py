"""The command that offers the server's runs to agents, over the Model Context Protocol."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._group import usage_errors

if TYPE_CHECKING:
    from ._group import Server

__all__ = ["mcp"]

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_MAX_PORT = 65535


def _listen_address(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Parse HOST:PORT, and refuse addresses that other machines can reach."""
    if value is None:
        return None
    host, _separator, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (port.isascii() and port.isdecimal() and int(port) <= _MAX_PORT):
        raise click.BadParameter(f"{value!r} has no valid port. Use HOST:PORT.")
    if host not in _LOOPBACK:
        raise click.BadParameter(
            f"{host!r} is not a loopback address, and this listener has no TLS. Use 127.0.0.1, and for other "
            "machines a proxy with TLS."
        )
    return host, int(port)


@click.command()
@click.option(
    "--allow-changes",
    is_flag=True,
    help="Offer the tools that start and kill runs too, not only those that read.",
)
@click.option(
    "--notebooks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Local folder whose notebooks may be started by path. Needs --allow-changes.",
)
@click.option(
    "--http",
    callback=_listen_address,
    metavar="HOST:PORT",
    help="Serve streamable HTTP on this loopback address, at /mcp, instead of standard input and output.",
)
@click.option(
    "--http-token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a bearer token that each HTTP request must have. Needs --http.",
)
@click.pass_context
def mcp(
    ctx: click.Context,
    /,
    allow_changes: bool,
    notebooks: Path | None,
    http: tuple[str, int] | None,
    http_token_file: Path | None,
) -> None:
    """Serve tools for agents, over the Model Context Protocol.

    An agent's program starts this command and speaks with it over standard input and output. The tools list
    and follow runs, and read their outputs and pictures; with --allow-changes, they start and kill runs as
    well. They use the token and the certificates of this command. Needs pip install 'notebook-runner[mcp]'.
    """
    if notebooks and not allow_changes:
        raise click.UsageError("--notebooks needs --allow-changes.")
    if http_token_file and not http:
        raise click.UsageError("--http-token-file needs --http.")
    try:
        from notebook_runner import _mcp  # noqa: PLC0415 - an optional package
    except ModuleNotFoundError as error:
        raise click.UsageError(
            f"This command needs the MCP SDK ({error.name} is missing): pip install 'notebook-runner[mcp]'"
        ) from error
    server: Server = ctx.obj
    with usage_errors():
        token = _mcp.read_token(http_token_file) if http_token_file else None
        _mcp.serve(server.settings, allow_changes=allow_changes, notebooks=notebooks, http=http, token=token)
