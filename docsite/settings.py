"""Makes the page of the server's settings, grouped as `--help` groups them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from docsite.tables import table
from notebook_runner_server.config import ENVIRONMENT_PREFIX, flags

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
    shown = flags.shown_default(setting)
    return f"`{shown if isinstance(shown, str) else value}`"


def _meaning(setting: dataclasses.Field[Any]) -> str:
    about = setting.metadata
    text = str(about["help"])
    if about["choices"]:
        text += f" One of {', '.join(f'`{choice}`' for choice in about['choices'])}."
    return text.replace(_OWN_DEFAULT, "Default: ").replace("]", ".")
