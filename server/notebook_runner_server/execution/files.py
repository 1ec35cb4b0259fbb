"""What a backend tells of the files that a notebook left in its run folder on another machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FilePiece:
    """A piece of a file that the notebook left in its run folder, which was on another machine.

    Attributes:
        path: Where the file is in the folder.
        start: Where the piece goes, in bytes.
        data: The piece.
        mode: The file's permissions.
        modified: When it was changed last, in nanoseconds since the epoch.
    """

    path: str
    start: int
    data: bytes
    mode: int
    modified: int


@dataclass(frozen=True, slots=True)
class FilesLeft:
    """The run folder was on another machine, and holds too much to be brought from there: `size` in bytes."""

    size: int


FileEvent = FilePiece | FilesLeft
