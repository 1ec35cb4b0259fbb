"""The commands that log in at an issuer, and out again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from notebook_runner._connection import login_path
from notebook_runner._printable import one_line

if TYPE_CHECKING:
    from ._group import Server

__all__ = ["login", "logout"]


@click.command()
@click.option(
    "--issuer",
    envvar="NOTEBOOK_RUNNER_OIDC_ISSUER",
    show_envvar=True,
    required=True,
    metavar="URL",
    help="OpenID Connect issuer, the same as the server's.",
)
@click.option(
    "--client-id",
    envvar="NOTEBOOK_RUNNER_OIDC_CLIENT_ID",
    show_envvar=True,
    required=True,
    metavar="ID",
    help="Id of this command at the issuer.",
)
@click.option(
    "--scope",
    default="openid offline_access",
    show_default=True,
    help="Scopes to request, separated by blanks. offline_access lets the login last longer than its tokens.",
)
@click.option("--audience", default="", help="Audience to request, if the issuer has such a parameter.")
@click.option(
    "--id-token",
    is_flag=True,
    help="Send the ID token to the server, for an issuer whose access tokens are not JWTs. "
    "Its audience is the client id.",
)
@click.option(
    "--issuer-ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file of CA certificates to trust for the issuer.",
)
@click.pass_context
def login(
    ctx: click.Context,
    /,
    issuer: str,
    client_id: str,
    scope: str,
    audience: str,
    id_token: bool,
    issuer_ca: Path | None,
) -> None:
    """Log in at an OpenID Connect issuer.

    The login is for the server of --target. Prints a URL and a code, and waits until you have approved the
    login in a browser, on any machine. The tokens are kept in a file that only you can read, under
    $XDG_STATE_HOME or ~/.local/state. Commands and clients of the same target use them, and refresh them,
    unless they have another token.
    """
    from notebook_runner import _login  # noqa: PLC0415 - brings urllib, which no other command needs

    server: Server = ctx.obj

    def show(url: str, code: str) -> None:
        click.echo(f"Open {one_line(url)} and enter the code {one_line(code)}", err=True)

    made = _login.log_in(
        issuer,
        client_id,
        show,
        scope=scope,
        audience=audience,
        kind="id_token" if id_token else "access_token",
        issuer_ca=str(issuer_ca.absolute()) if issuer_ca else "",
    )
    target = server.settings["target"]
    _login.save(login_path(target), made)
    click.echo(f"Logged in to {target}.")


@click.command()
@click.pass_context
def logout(ctx: click.Context, /) -> None:
    """Remove the login for the server of --target."""
    from notebook_runner import _login  # noqa: PLC0415 - as above

    server: Server = ctx.obj
    target = server.settings["target"]
    found = _login.log_out(login_path(target))
    click.echo(f"Logged out of {target}." if found else f"You were not logged in to {target}.")
