"""Protects terminals from control sequences in the text of notebooks and servers."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import IO, TYPE_CHECKING, Any

from notebook_runner._printable import COLOUR, clean

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Terminal", "bytes_to", "clean_terminals", "grpc_silenced", "terminal_of", "write_printed"]

_RESET = "\x1b[0m"
_ENDS = {_RESET, "\x1b[m"}


class Terminal(io.TextIOWrapper):
    """A standard stream on a terminal; of control sequences, only colours pass.

    Args:
        beneath: The underlying stream, for code that draws on the terminal.

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
        """Write a text without its control sequences, starting in the terminal's default colours."""
        self.reset()
        return self._write(text)

    def reset(self) -> None:
        """Reset colours that a notebook has set: they could make messages of the command invisible."""
        if self._is_coloured:
            self._write(_RESET)

    def write_printed(self, text: str) -> None:
        """Write output of a notebook, which may contain carriage returns."""
        self._write(text, keep="\r")

    def _write(self, text: str, keep: str = "") -> int:
        cleaned = clean(text, keep, colours=self._has_colours)
        if colours := COLOUR.findall(cleaned):
            self._is_coloured = colours[-1] not in _ENDS
        super().write(cleaned)
        return len(text)


class _Decoded(io.RawIOBase):
    """Decodes bytes, and writes them to a terminal as text."""

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
    """Replace each standard stream on a terminal by a `Terminal`."""
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
            # The terminal may be gone.
            with contextlib.suppress(OSError):
                terminal.reset()
                terminal.flush()
            with contextlib.suppress(OSError):
                terminal.detach()


@contextlib.contextmanager
def grpc_silenced() -> Iterator[None]:
    """Keep the lines that gRPC writes to standard error out of the views; the command reports the errors.

    gRPC reads GRPC_VERBOSITY when it is imported, which is too late for a default of this command. So its
    descriptor gets another target, unless the user has set this variable or GRPC_TRACE.
    """
    if os.environ.keys() & {"GRPC_VERBOSITY", "GRPC_TRACE"} or not _is_standard_error(sys.stderr):
        yield
        return
    before, descriptor = sys.stderr, sys.stderr.fileno()
    before.flush()
    own = open(os.dup(descriptor), "w", encoding=before.encoding, errors=before.errors, buffering=1)  # noqa: SIM115 - see `finally`
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
    sys.stderr = own
    try:
        yield
    finally:
        sys.stderr = before
        with contextlib.suppress(OSError):  # the terminal may be gone
            own.flush()
        os.dup2(own.fileno(), descriptor)
        with contextlib.suppress(OSError):
            own.close()


def _is_standard_error(stream: object) -> bool:
    return isinstance(stream, io.TextIOWrapper) and stream is sys.__stderr__


def terminal_of(stream: IO[str]) -> IO[str]:
    """Return the terminal itself to draw on; the caller must clean what it writes."""
    return stream.beneath if isinstance(stream, Terminal) else stream


def write_printed(stream: IO[str], text: str) -> None:
    """Write output of a notebook; a file gets it unchanged."""
    if isinstance(stream, Terminal):
        stream.write_printed(text)
    else:
        stream.write(text)
    stream.flush()


def bytes_to(stream: IO[str]) -> IO[bytes]:
    """Return a binary stream for an artefact: a file gets it unchanged, a terminal as clean text."""
    return _Decoded(stream) if isinstance(stream, Terminal) else stream.buffer  # type: ignore[attr-defined,return-value] # both take bytes
