"""The command-line options of the server: each setting, grouped, and those that replace serving."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_type_hints

import click

from notebook_runner_server.config.settings import ENVIRONMENT_PREFIX, Settings

NEW_TOKEN = "new_token"  # noqa: S105 - the name of an option
CHECK = "check"
_ACTIONS = "Instead of serving"
_SIZE, _TIME = "SIZE", "TIME"


class _Number(click.FloatRange):
    """A finite number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class _Quantity(click.ParamType):  # type: ignore[type-arg, unused-ignore] # generic since click 8.4
    """A number, optionally with a unit.

    Args:
        name: What it is, for the help: TIME or SIZE.
        minimum: The smallest allowed value.
        maximum: The largest allowed value.
    """

    def __init__(self, name: str, minimum: float | None, maximum: float | None) -> None:
        self.name = name
        kind: Any = click.IntRange if name == _SIZE else _Number
        self._number = kind(minimum, maximum)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value[-1:].isalpha() and value[:1].isdigit():
            # It brings the client, and so gRPC, which takes long to import.
            from notebook_runner import _quantities  # noqa: PLC0415 - see the comment

            try:
                parse = _quantities.parse_size if self.name == _SIZE else _quantities.parse_duration
                value = parse(value)
            except ValueError as error:
                self.fail(str(error), param, ctx)
        return self._number.convert(value, param, ctx)


class _SettingOption(click.Option):
    """An option whose default, given as text, is shown without the parentheses of click."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the names and the help (called by click)."""
        record = super().get_help_record(ctx)
        if record is None or not isinstance(self.show_default, str):
            return record
        names, text = record
        return names, text.replace(f"default: ({self.show_default})", f"default: {self.show_default}")


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
            help="Create a token with a scope (read, run, read-all, run-all or admin; several separated by "
            "commas), add its hash to the tokens file, print it, and exit.",
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


def is_size(one: dataclasses.Field[Any]) -> bool:
    """Return whether a setting is a number of bytes."""
    return isinstance(one.default, int) and "bytes" in one.metadata["help"]


def shown_default(one: dataclasses.Field[Any]) -> str | bool:
    """Return the default of a setting with its unit, as people write it; false: there is none to show."""
    default: Any = one.default
    if is_size(one):
        return _with_unit(default, ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))
    if isinstance(default, float):
        return _with_unit(default, ("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    return bool(default != "")


def _with_unit(value: float, *units: tuple[str, int]) -> str:
    whole = ((unit, length) for unit, length in units if value and value % length == 0)
    unit, length = next(whole, ("", 1))
    return f"{value / length:g}{unit}"


def _option(one: dataclasses.Field[Any], kind: type) -> click.Option:
    flag = "--" + one.name.replace("_", "-")
    about = one.metadata
    value_type: Any = kind
    if about["choices"]:
        value_type = click.Choice(about["choices"])
    elif is_size(one) or kind is float:
        value_type = _Quantity(_SIZE if is_size(one) else _TIME, about["minimum"], about["maximum"])
    elif kind is int:
        value_type = click.IntRange(about["minimum"], about["maximum"])
    return _SettingOption(
        [f"{flag}/--no-{flag[2:]}" if kind is bool else flag],
        type=None if kind is bool else value_type,
        default=one.default,
        help=about["help"],
        metavar=about["metavar"],
        show_default=shown_default(one),
        # Named here, so that an error about a value names the variable as well.
        envvar=f"{ENVIRONMENT_PREFIX}_{one.name.upper()}",
        show_envvar=True,
    )
