"""The option `--new-token`: makes a token instead of serving."""

from __future__ import annotations

from pathlib import Path

import click

from notebook_runner_server.api import tokens

NAME = "new_token"


def option() -> click.Option:
    """Return the option of the command line; it is no setting, and has no variable."""
    return click.Option(
        ["--new-token", NAME],
        metavar="NAME:SCOPE",
        default="",
        help="Create a token with scope run or read, add its hash to the tokens file, print it, and exit.",
    )


def write(tokens_file: str, asked: str) -> None:
    """Make the token and print it.

    Args:
        tokens_file: The path of the tokens file; it is made where there is none.
        asked: NAME:SCOPE.

    Raises:
        OSError: The file cannot be written.
        ValueError: There is no file to write to, or that is no name, no scope or no tokens file.
    """
    if not tokens_file:
        raise ValueError("--new-token needs --tokens-file, the file to add the token's hash to.")
    name, _, scope = asked.rpartition(":")
    click.echo(tokens.add_new(Path(tokens_file), name, scope))
