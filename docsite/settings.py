"""Makes the page of the server's settings from `config`, where each has its meaning, unit and default."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import click

from docsite.tables import table
from notebook_runner_server import config
from notebook_runner_server.flags import options as all_options

_KIB, _UNITS = 1024, ("bytes", "KiB", "MiB", "GiB")
_DAY_SECONDS = 86400.0

# How a help text tells a default that is made where the server runs.
_OWN_DEFAULT = "[default: "


def markdown() -> str:
    """Return the page's generated part."""
    return table(["flag and variable", "default", "meaning"], _rows())


def _rows() -> Iterator[tuple[str, str, str]]:
    options: dict[str, list[click.Option]] = {}
    for option in all_options():
        options.setdefault(str(option.name), []).append(option)
    for setting in dataclasses.fields(config.Settings):
        first, *others = options[setting.name]
        flags = [*first.opts, *first.secondary_opts, *(flag for other in others for flag in other.opts)]
        names = [f"`{flags[0]}`{{ #{flags[0].lstrip('-')} }}", *(f"`{flag}`" for flag in flags[1:])]
        variable = f"`{config.ENVIRONMENT_PREFIX}_{setting.name.upper()}`"
        yield "\n\n".join([", ".join(names), variable]), _default(setting), _meaning(setting)


def _default(setting: dataclasses.Field[Any]) -> str:
    value = setting.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if value == "":
        return "" if _OWN_DEFAULT in setting.metadata["help"] else "none"
    text = f"`{value:g}`" if isinstance(value, float) and value < _KIB * _KIB else f"`{value}`"
    return f"{text} ({readable})" if (readable := _readable(value)) else text


def _meaning(setting: dataclasses.Field[Any]) -> str:
    about = setting.metadata
    text = str(about["help"])
    if about["choices"]:
        text += f" One of {', '.join(f'`{choice}`' for choice in about['choices'])}."
    return text.replace(_OWN_DEFAULT, "Default: ").replace("]", ".")


def _readable(value: object) -> str:
    """Return a number of bytes or seconds as people say it; empty where that is no easier to read."""
    if isinstance(value, float) and value >= _DAY_SECONDS and value % _DAY_SECONDS == 0:
        return f"{value / _DAY_SECONDS:g} days"
    if not isinstance(value, int) or value < _KIB:
        return ""
    power = 0
    while value >= _KIB and value % _KIB == 0:
        value, power = value // _KIB, power + 1
    return f"{value} {_UNITS[power]}" if power else ""
