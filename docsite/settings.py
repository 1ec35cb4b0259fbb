"""Makes the page of the server's settings, grouped as `--help` groups them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from docsite.tables import table
from notebook_runner_server.config import ENVIRONMENT_PREFIX, flags

_KIB, _UNITS = 1024, ("bytes", "KiB", "MiB", "GiB")
_DAY_SECONDS = 86400.0

# How a help text tells a default that is made where the server runs.
_OWN_DEFAULT = "[default: "


def markdown() -> str:
    """Return the page's generated part."""
    options: dict[str, list[click.Option]] = {}
    for option in flags.options():
        options.setdefault(str(option.name), []).append(option)
    sections = (
        f"## {title}\n\n{table(['flag and variable', 'default', 'meaning'], _rows(settings, options))}"
        for title, settings in flags.groups().items()
    )
    return "\n\n".join(sections)


def _rows(
    settings: Iterable[dataclasses.Field[Any]], options: Mapping[str, Sequence[click.Option]]
) -> Iterator[tuple[str, str, str]]:
    for setting in settings:
        first, *others = options[setting.name]
        names = [*first.opts, *first.secondary_opts, *(flag for other in others for flag in other.opts)]
        shown = [f"`{names[0]}`{{ #{names[0].lstrip('-')} }}", *(f"`{name}`" for name in names[1:])]
        variable = f"`{ENVIRONMENT_PREFIX}_{setting.name.upper()}`"
        yield "\n\n".join([", ".join(shown), variable]), _default(setting), _meaning(setting)


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
