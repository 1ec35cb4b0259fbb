"""The command-line options of the server: each setting, grouped, and those that replace serving."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_type_hints

import click

from notebook_runner_server.config.settings import Settings

NEW_TOKEN = "new_token"  # noqa: S105 - the name of an option
CHECK = "check"
_ACTIONS = "Instead of serving"


class _Number(click.FloatRange):
    """A finite number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class ServerCommand(click.Command):
    """The command, whose `--help` groups the settings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in groups (called by click)."""
        titles = {one.name: title for title, names in groups().items() for one in names}
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                sections.setdefault(titles.get(str(param.name), _ACTIONS), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def groups() -> dict[str, list[dataclasses.Field[Any]]]:
    """Return the settings by the title of their group."""
    found: dict[str, list[dataclasses.Field[Any]]] = {}
    title = ""
    for one in dataclasses.fields(Settings):
        title = one.metadata["group"] or title
        found.setdefault(title, []).append(one)
    return found


def options() -> list[click.Option]:
    """Return an option for each setting, and `--no-…` for each that has a value that turns it off."""
    hints = get_type_hints(Settings)
    found = []
    for one in dataclasses.fields(Settings):
        found.append(_option(one, hints[one.name]))
        if off := one.metadata["off"]:
            flag = f"--no-{one.name.replace('_', '-')}"
            found.append(click.Option([flag, one.name], flag_value=off, help=f"Same as --{flag[5:]} {off}."))
    return found


def actions() -> list[click.Option]:
    """Return the options for what the command does instead of serving; they are not settings."""
    return [
        click.Option(
            ["--new-token", NEW_TOKEN],
            metavar="NAME:SCOPE",
            default="",
            help="Create a token with scope run or read, add its hash to the tokens file, "
            "print it, and exit.",
        ),
        click.Option(
            ["--check", CHECK],
            is_flag=True,
            help="Check the configuration, print all errors, and exit. The exit code is 0 if there are none.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the version and exit.",
        ),
    ]


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        # It brings the client, and so gRPC, which takes long to import.
        from notebook_runner import __version__  # noqa: PLC0415 - see the comment

        click.echo(f"{ctx.info_name}, version {__version__}")
        ctx.exit()


def _option(one: dataclasses.Field[Any], kind: type) -> click.Option:
    flag = "--" + one.name.replace("_", "-")
    about = one.metadata
    value_type: Any = kind
    if about["choices"]:
        value_type = click.Choice(about["choices"])
    elif kind is int:
        value_type = click.IntRange(about["minimum"], about["maximum"])
    elif kind is float:
        value_type = _Number(about["minimum"], about["maximum"])
    return click.Option(
        [f"{flag}/--no-{flag[2:]}" if kind is bool else flag],
        type=None if kind is bool else value_type,
        default=one.default,
        help=about["help"],
        show_default=one.default != "",
        show_envvar=True,
    )
