"""Printed text as a terminal shows it in the end: progress bars once, in their last state."""

from __future__ import annotations

import re
from itertools import groupby

# Text without these is shown as it is.
_MOVES = re.compile(r"[\r\b]|\x1b(?!\[[\d;:]*m)")
_TOKEN = re.compile(
    r"(?P<newline>\r?\n)|(?P<control>[\r\b])"
    # Sequences of a terminal, of which some move, some erase, and some colour.
    r"|\x1b\[(?P<numbers>[0-?]*)[ -/]*(?P<command>[@-~])"
    # Titles, links, character sets: nothing that can be seen. An incomplete sequence is nothing, too.
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[()*+][0-9A-Za-z]|\x1b."
    r"|\x1b|(?P<text>[^\r\n\b\x1b]+)",
    re.DOTALL,
)
_COLOURS = 80
_COLUMNS = 200
"""Maximum number of characters of the colours in force, and of columns that a move to the right can add."""


def final_text(text: str) -> str:
    """Return what a terminal of any width shows after a text; colours stay, as their sequences."""
    if not _MOVES.search(text):
        return text
    screen = _Screen()
    for token in _TOKEN.finditer(text):
        if token["text"]:
            screen.write(token["text"])
        elif token["newline"]:
            screen.new_line()
        elif token["control"]:
            screen.column = 0 if token["control"] == "\r" else max(0, screen.column - 1)
        elif token["command"]:
            screen.command(token["command"], token["numbers"], token[0])
    return screen.text()


class _Screen:
    """The lines of a terminal, each a list of characters with the colours in force.

    Attributes:
        column: Where the next character goes, from 0.
    """

    def __init__(self) -> None:
        self._lines: list[list[tuple[str, str]]] = [[]]
        self._row = self.column = 0
        self._colours = ""

    def write(self, text: str) -> None:
        """Write characters over what is there."""
        line = self._lines[self._row]
        if len(line) < self.column:
            line += [(" ", "")] * (self.column - len(line))
        line[self.column : self.column + len(text)] = [(one, self._colours) for one in text]
        self.column += len(text)

    def new_line(self) -> None:
        """Go to the beginning of the next line."""
        self._row += 1
        self.column = 0
        if self._row == len(self._lines):
            self._lines.append([])

    def command(self, name: str, numbers: str, sequence: str) -> None:
        """Apply a control sequence; an unknown one changes nothing."""
        if name == "m":
            is_reset = numbers in {"", "0"}
            self._colours = "" if is_reset else (self._colours + sequence)[-_COLOURS:]
            return
        number = int(numbers) if numbers.isdecimal() and len(numbers) < 5 else 0  # noqa: PLR2004 - as large as none
        if name == "K":
            self._erase(self._lines[self._row], number)
        elif name == "J" and number == 0:
            del self._lines[self._row][self.column :], self._lines[self._row + 1 :]
        elif name == "J" and number in {2, 3}:
            self._lines[:] = [[]]
            self._row = self.column = 0
        else:
            self._move(name, max(1, number))

    def _move(self, name: str, count: int) -> None:
        most = max(len(self._lines[self._row]), _COLUMNS)
        match name:
            case "A" | "F":
                self._row = max(0, self._row - count)
            case "B" | "E":
                self._row = min(len(self._lines) - 1, self._row + count)
            case "C":
                self.column = min(most, self.column + count)
            case "D":
                self.column = max(0, self.column - count)
            case "G":
                self.column = min(most, count - 1)
        if name in {"E", "F"}:
            self.column = 0

    def _erase(self, line: list[tuple[str, str]], what: int) -> None:
        """Erase the line from the cursor on (0), up to it (1), or all of it (2)."""
        if what == 1:
            line[: self.column + 1] = [(" ", "")] * min(len(line), self.column + 1)
        else:
            del line[self.column if what == 0 else 0 :]

    def text(self) -> str:
        """Return all lines, without the spaces that end those that were changed."""
        return "\n".join(map(_line, self._lines))


def _line(line: list[tuple[str, str]]) -> str:
    end = len(line)
    while end and line[end - 1] == (" ", ""):
        end -= 1
    pieces = []
    for colours, characters in groupby(line[:end], lambda one: one[1]):
        text = "".join(character for character, _ in characters)
        pieces.append(f"{colours}{text}\x1b[0m" if colours else text)
    return "".join(pieces)
