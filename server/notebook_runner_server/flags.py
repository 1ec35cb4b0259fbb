"""The settings as flags of the command."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_type_hints

import click

from notebook_runner_server.config import Settings


class _Number(click.FloatRange):
    """A finite number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def options() -> list[click.Option]:
    """Return an option for each setting, and a `--no-…` option for each that can be turned off by a value."""
    hints = get_type_hints(Settings)
    found = []
    for one in dataclasses.fields(Settings):
        found.append(_option(one, hints[one.name]))
        if off := one.metadata["off"]:
            flag = f"--no-{one.name.replace('_', '-')}"
            found.append(click.Option([flag, one.name], flag_value=off, help=f"Same as --{flag[5:]} {off}."))
    return found


def check() -> click.Option:
    """Return the option that checks the configuration instead of serving; it is not a setting."""
    return click.Option(
        ["--check"],
        is_flag=True,
        help="Check the configuration, print all errors, and exit. The exit code is 0 if there are none.",
    )


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
