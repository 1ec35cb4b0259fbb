"""Text for a terminal, safe whatever a notebook or server sent, and how people write sizes and times."""

from __future__ import annotations

import re

__all__ = ["BIDI", "COLOUR", "clean", "clock", "one_line", "size"]

# They reorder the following text, so that it could look like another. Text in Arabic or Hebrew needs none.
BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
# Output of a notebook must not control the terminal: of escape sequences only colours pass, of control
# characters only tab and line feed.
_COLOUR = r"\x1b\[[0-9;:]*m"
_UNSAFE = re.compile(
    rf"({_COLOUR})"
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # window titles, links
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # cursor moves, modes
    r"|\x1b.?"
    rf"|[\x00-\x08\x0b-\x1f\x7f-\x9f{BIDI}]"
)
COLOUR = re.compile(_COLOUR)
_DECIMAL = 1000


def clean(text: str, keep: str = "", *, colours: bool = True) -> str:
    """Remove all control sequences from a text except colours, and the characters that reorder text.

    Args:
        text: The text.
        keep: Control characters to keep.
        colours: Whether to keep colours.
    """

    def left(match: re.Match[str]) -> str:
        if match[1]:
            return match[1] if colours else ""
        return match[0] if match[0] in keep else ""

    return _UNSAFE.sub(left, text)


def one_line(text: str) -> str:
    """Return a text as one line, without colours and without characters that reorder text."""
    return clean(" ".join(text.split()), colours=False)


def size(count: int) -> str:
    """Format a number of bytes with a unit."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < _DECIMAL:
            return f"{value:.3g} {unit}"
        value /= _DECIMAL
    return f"{value:.3g} GB"


def clock(seconds: float) -> str:
    """Format a duration like a clock: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
