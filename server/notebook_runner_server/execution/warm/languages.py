"""Code that sets working folder and environment variables in a running kernel, by language."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping


def _python(folder: str, variables: Mapping[str, str]) -> str:
    # In a namespace of its own: the notebook's stays empty.
    source = f"import os\nos.chdir({folder!r})\nos.environ.update({dict(variables)!r})\n"
    return f"exec({source!r}, {{}})"


def _r(folder: str, variables: Mapping[str, str]) -> str:
    lines = [f"Sys.setenv({json.dumps(name)} = {_quoted(value)})" for name, value in variables.items()]
    return "\n".join([*lines, f"setwd({_quoted(folder)})"])


def _julia(folder: str, variables: Mapping[str, str]) -> str:
    lines = [f"ENV[{_quoted(name)}] = {_quoted(value)}" for name, value in variables.items()]
    return "\n".join([*lines, f"cd({_quoted(folder)})", "nothing"]).replace("$", "\\$")


def _shell(folder: str, variables: Mapping[str, str]) -> str:
    lines = [f"export {name}={_quoted_for_bash(value)}" for name, value in variables.items()]
    return "\n".join([*lines, f"cd {_quoted_for_bash(folder)}"])


def _quoted_for_bash(text: str) -> str:
    # The kernel types it at a prompt, where a tab would complete.
    escaped = "".join(f"\\x{ord(one):02x}" if one < " " or one in "\\'\x7f" else one for one in text)
    return f"$'{escaped}'"


def _quoted(text: str) -> str:
    """Return a literal of R and Julia, which have JSON's escapes but not its surrogate pairs."""
    return json.dumps(text, ensure_ascii=False)


_SETUP_CODE: dict[str, Callable[[str, Mapping[str, str]], str]] = {
    "python": _python,
    "r": _r,
    "julia": _julia,
    "bash": _shell,
}
LANGUAGES = tuple(_SETUP_CODE)
"""The supported languages, in lower case."""


def setup_code(language: str, folder: str, variables: Mapping[str, str]) -> str:
    """Return the code for a kernel.

    Args:
        language: The kernelspec's language.
        folder: The working folder.
        variables: The variables to set.
    """
    return _SETUP_CODE[language.lower()](folder, variables)
