"""Declares settings: their defaults, help texts and allowed values."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help_text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    off: str = "",
) -> Any:
    """Return the field of a setting.

    Args:
        default: The value if the operator sets none.
        help_text: What the setting does, with its unit.
        minimum: The smallest allowed value.
        maximum: The largest allowed value.
        choices: The allowed values; empty: any.
        off: The value that turns the setting off, which gets a `--no-…` flag of its own.
    """
    about = {"help": help_text, "minimum": minimum, "maximum": maximum, "choices": choices, "off": off}
    return field(default=default, metadata=about)


def limit(what: str, default: float, more: str = "") -> Any:
    """Return the field of a limit that holds for a run if Start sets none."""
    help_text = f"Maximum {what} when Start sets none (0: unlimited). {more}"
    return setting(default, help_text.rstrip(), minimum=0)


def ceiling(name: str, default: float) -> Any:
    """Return the field of the maximum of a limit that a request may set."""
    return setting(default, f"Maximum {name} that a request may set (0: unlimited).", minimum=0)
