"""Generate the page of the command line from the help of its commands."""

from __future__ import annotations

from collections.abc import Iterator

import click

from notebook_runner.cli import main

_WIDTH = 90  # characters of a line that the page shows without scrolling


def markdown() -> str:
    """Return the page's generated part."""
    return "\n\n".join(_sections(main, "notebook-runner", None))


def _sections(command: click.Command, name: str, above: click.Context | None) -> Iterator[str]:
    with click.Context(command, info_name=name, parent=above, terminal_width=_WIDTH) as context:
        yield f"## {context.command_path}\n\n```text\n{command.get_help(context).rstrip()}\n```"
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                below = command.get_command(context, each)
                if below and not below.hidden:
                    yield from _sections(below, each, context)
