"""Tracebacks for people: repeated frames are folded, and on terminals what matters is coloured."""

from __future__ import annotations

import re

import click

from notebook_runner._printable import clean

__all__ = ["coloured", "folded"]

# Recursion through so many functions is folded.
LONGEST_CYCLE = 8

_PLACE = re.compile(r"(Cell In ?\[|Input In |File |  File )")
_CURRENT_LINE = re.compile(r"-+>")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(:|$)")
_RULE = re.compile(r"-{10,}")


def folded(traceback: str) -> str:
    """Return a traceback in which frames that repeat appear once, with the number of repetitions."""
    # IPython separates frames with empty lines.
    frames = traceback.rstrip("\n").split("\n\n")
    kept: list[str] = []
    place = 0
    while place < len(frames):
        length, count = _cycle(frames, place)
        kept += frames[place : place + length]
        if count > 1:
            what = "frame is" if length == 1 else f"{length} frames are"
            kept.append(f"[… the last {what} repeated {count - 1:,} more times …]")
        place += length * count
    return "\n\n".join(kept)


def coloured(traceback: str) -> str:
    """Return a traceback with colours: places, current lines, and the exception."""
    lines = clean(traceback, colours=False).split("\n")
    in_message = False
    shown = []
    last_place = max((n for n, line in enumerate(lines) if _PLACE.match(line)), default=-1)
    for number, line in enumerate(lines):
        if _PLACE.match(line):
            shown.append(click.style(line, fg="cyan"))
        elif _CURRENT_LINE.match(line):
            shown.append(click.style(line, bold=True))
        elif _RULE.fullmatch(line):
            shown.append(click.style(line, dim=True))
        elif line.startswith("[…"):
            shown.append(click.style(line, fg="yellow"))
        elif in_message or (number > last_place and _EXCEPTION.match(line)):
            # The message may have several lines.
            in_message = True
            shown.append(click.style(line, fg="red", bold=True))
        else:
            shown.append(line)
    return "\n".join(shown)


def _cycle(frames: list[str], place: int) -> tuple[int, int]:
    """Return the length of the shortest cycle of frames that begins at a place, and how often it comes."""
    for length in range(1, LONGEST_CYCLE + 1):
        cycle = frames[place : place + length]
        count = 1
        while frames[place + count * length : place + (count + 1) * length] == cycle and len(cycle) == length:
            count += 1
        if count > 1:
            return length, count
    return 1, 1
