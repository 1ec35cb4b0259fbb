"""Parameter options, compatible with papermill: typed, raw, from YAML, and from files."""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ASSIGNMENTS", "papermill_value", "parameter_options", "parameters_of"]

ASSIGNMENTS = ("parameters", "parameters_raw")
"""The options that take NAME and VALUE; `PapermillCommand` splits NAME=VALUE for them."""

_FILE = click.Path(path_type=Path)


_OPTIONS = [
    click.option(
        "-p",
        "--parameters",
        nargs=2,
        type=click.UNPROCESSED,
        multiple=True,
        metavar="NAME=VALUE",
        help="Set a parameter (or NAME VALUE). True, False, None, integers and floats are typed as such.",
    ),
    click.option(
        "-r",
        "--parameters-raw",
        nargs=2,
        type=click.UNPROCESSED,
        multiple=True,
        metavar="NAME=VALUE",
        help="Set a parameter to a string.",
    ),
    click.option(
        "-y", "--parameters-yaml", multiple=True, metavar="YAML", help="Set parameters from a YAML mapping."
    ),
    click.option(
        "-f",
        "--parameters-file",
        multiple=True,
        type=_FILE,
        metavar="FILE",
        help="Set parameters from a YAML or JSON file.",
    ),
    click.option(
        "-b", "--parameters-base64", multiple=True, metavar="TEXT", help="Like -y, but Base64-encoded."
    ),
]


def parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the parameter options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parameters_of(options: dict[str, Any]) -> dict[str, Any]:
    """Combine the parameters of a command line, with papermill's precedence: `-r`, `-p`, `-y`, `-f`, `-b`.

    If an option is repeated, the last one applies.

    Raises:
        click.BadParameter: A value is not a mapping of names to values.
    """
    found: dict[str, Any] = {}
    for text in options["parameters_base64"]:
        found.update(_mapping(_decoded(text), "-b"))
    for file in options["parameters_file"]:
        found.update(_mapping(_read(file), f"-f {file}", as_json=file.suffix == ".json"))
    for text in options["parameters_yaml"]:
        found.update(_mapping(text, "-y"))
    found.update({name: papermill_value(text) for name, text in options["parameters"]})
    found.update(options["parameters_raw"])
    return found


def papermill_value(text: str) -> bool | int | float | str | None:
    """Type a parameter's value as papermill's `-p` does: True, False, None, int, float, else str."""
    constants: dict[str, bool | None] = {"True": True, "False": False, "None": None}
    if text in constants:
        return constants[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _mapping(text: str, where: str, *, as_json: bool = False) -> dict[str, Any]:
    found = _json(text, where) if as_json else _yaml(text, where)
    if found is None:  # an empty document
        return {}
    if not isinstance(found, dict):
        raise click.BadParameter(
            f"{where} must be a mapping of names to values (got {type(found).__name__})."
        )
    if odd := [key for key in found if not isinstance(key, str)]:
        raise click.BadParameter(f"{where} has the name {odd[0]!r}, which is not a string. Quote it.")
    return found


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{where} is not valid JSON: {error}") from error


def _yaml(text: str, where: str) -> Any:
    # Most runs have no parameters in YAML.
    import yaml  # noqa: PLC0415 - see above

    class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore] # the package ships no types
        """Keeps dates as strings, like papermill's loader."""

        yaml_implicit_resolvers = {  # noqa: RUF012 - as its base has it
            first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
            for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise click.BadParameter(f"{where} is not valid YAML: {error}") from error


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise click.BadParameter(f"-b is not Base64-encoded text: {error}") from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"-f {file} is not UTF-8: {error.reason}") from error
    except OSError as error:
        raise click.BadParameter(f"-f {file}: {error.strerror}") from error
