"""What stands between the command and a terminal: what notebooks and servers say is shown, and not obeyed."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import IO, TYPE_CHECKING, Any

from ._text import COLOUR, clean

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Terminal", "bytes_to", "clean_terminals", "terminal_of", "write_printed"]

_RESET = "\x1b[0m"
_ENDS = {_RESET, "\x1b[m"}


class Terminal(io.TextIOWrapper):
    """A standard stream that leads to a terminal; of all that would steer it, only colours pass.

    Args:
        beneath: The stream itself, for what draws on the terminal.

    Attributes:
        beneath: The same.
    """

    def __init__(self, beneath: io.TextIOWrapper) -> None:
        super().__init__(
            beneath.buffer, encoding=beneath.encoding, errors="backslashreplace", line_buffering=True
        )
        self.beneath = beneath
        is_dumb = os.environ.get("TERM", "dumb") in {"dumb", "unknown"}
        self._has_colours = not is_dumb and not os.environ.get("NO_COLOR")
        self._is_coloured = False

    def write(self, text: str, /) -> int:
        """Write what is not harmful of a text, in the terminal's own colours where it begins."""
        self.reset()
        return self._write(text)

    def reset(self) -> None:
        """End the colours that a notebook has begun: what the command says could not be seen in them."""
        if self._is_coloured:
            self._write(_RESET)

    def write_printed(self, text: str) -> None:
        """Write what a notebook printed, which may begin a line anew."""
        self._write(text, keep="\r")

    def _write(self, text: str, keep: str = "") -> int:
        cleaned = clean(text, keep, colours=self._has_colours)
        if colours := COLOUR.findall(cleaned):
            self._is_coloured = colours[-1] not in _ENDS
        super().write(cleaned)
        return len(text)


class _Decoded(io.RawIOBase):
    """Takes bytes, and writes them to a terminal as text."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        self._terminal.write(self._decoder.decode(bytes(content)))
        self._terminal.flush()
        return len(content)


@contextlib.contextmanager
def clean_terminals() -> Iterator[None]:
    """Put a `Terminal` in the place of each standard stream that leads to one."""
    before = sys.stdout, sys.stderr
    terminals = [
        Terminal(stream) if isinstance(stream, io.TextIOWrapper) and stream.isatty() else None
        for stream in before
    ]
    sys.stdout, sys.stderr = (new or old for new, old in zip(terminals, before, strict=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for terminal in filter(None, terminals):
            # A terminal that is gone takes nothing any more.
            with contextlib.suppress(OSError):
                terminal.reset()
                terminal.flush()
            with contextlib.suppress(OSError):
                terminal.detach()


def terminal_of(stream: IO[str]) -> IO[str]:
    """Give the terminal itself, to draw on: who writes there cleans what is not its own."""
    return stream.beneath if isinstance(stream, Terminal) else stream


def write_printed(stream: IO[str], text: str) -> None:
    """Write what a notebook printed: a file gets it as it is."""
    if isinstance(stream, Terminal):
        stream.write_printed(text)
    else:
        stream.write(text)
    stream.flush()


def bytes_to(stream: IO[str]) -> IO[bytes]:
    """Give what takes the bytes of an artefact: a file gets them as they are, a terminal as clean text."""
    return _Decoded(stream) if isinstance(stream, Terminal) else stream.buffer  # type: ignore[attr-defined,return-value] # both take bytes
