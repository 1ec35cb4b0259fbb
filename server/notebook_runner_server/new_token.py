"""The option `--new-token`: creates a token instead of serving."""

from __future__ import annotations

from pathlib import Path

import click

from notebook_runner_server.api import tokens

NAME = "new_token"


def option() -> click.Option:
    """Return the command-line option; it is not a setting, and has no variable."""
    return click.Option(
        ["--new-token", NAME],
        metavar="NAME:SCOPE",
        default="",
        help="Create a token with scope run or read, add its hash to the tokens file, print it, and exit.",
    )


def write(tokens_file: str, asked: str) -> None:
    """Create a token and print it.

    Args:
        tokens_file: The path of the tokens file, which is created if it does not exist.
        asked: NAME:SCOPE.

    Raises:
        OSError: The file cannot be written.
        ValueError: The path is empty, or the name, the scope or the tokens file is invalid.
    """
    if not tokens_file:
        raise ValueError("--new-token needs --tokens-file, the file to add the token's hash to.")
    name, _, scope = asked.rpartition(":")
    click.echo(tokens.add_new(Path(tokens_file), name, scope))
