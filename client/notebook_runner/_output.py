"""Reads artefacts: joins and checks pages, writes files, and parses notebooks."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .errors import NotebookRunnerError
from .v1 import notebook_runner_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from zipfile import ZipFile

    from nbformat import NotebookNode

__all__ = ["OutputFile", "Pages", "format_of", "node_reader", "open_archive", "open_output"]

OutputFile = str | os.PathLike[str] | IO[bytes]
"""The target of an artefact: the path of a file, or a binary file that is open for writing."""


_FORMATS = {
    ".ipynb": "notebook",
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".pdf": "pdf",
    ".tex": "latex",
    ".rst": "rst",
    ".zip": "files",
    # The script is in the language of the notebook.
    ".py": "script",
    ".r": "script",
    ".jl": "script",
}


class Pages:
    """Reads one artefact: `request` is the next request, until `complete`.

    Args:
        run_id: The run; empty for the newest.
        artefact_format: The format.
        omit_input: Whether to omit the code.
    """

    def __init__(self, run_id: str, artefact_format: str, *, omit_input: bool = False) -> None:
        self.request = pb.OutputRequest(run_id=run_id, format=artefact_format, omit_input=omit_input)
        self.complete = False
        self._sha256 = ""
        self._hash = hashlib.sha256()

    def accept(self, page: pb.OutputResponse) -> bytes:
        """Accept the requested page, and return its bytes.

        Raises:
            NotebookRunnerError: The pages do not match the artefact that the server announced.
        """
        if self.request.offset == 0:
            self._sha256 = page.sha256
        if page.next_offset != self.request.offset + len(page.content):
            expected = self.request.offset + len(page.content)
            raise NotebookRunnerError(
                f"The server sent a page that ends at byte {page.next_offset} instead of {expected}."
            )
        self.complete = page.next_offset >= page.total_bytes
        if not self.complete and not page.content:
            raise NotebookRunnerError(f"The server sent an empty page at byte {page.next_offset}.")
        self._hash.update(page.content)
        if self.complete and self._sha256 not in {"", self._hash.hexdigest()}:
            raise NotebookRunnerError(
                "The artefact's SHA-256 does not match the one that the server announced."
            )
        # Later pages must be of the same run, as of the same event, as the first one.
        self.request.run_id = page.run.run_id or self.request.run_id
        self.request.as_of_sequence = page.as_of_sequence
        self.request.offset = page.next_offset
        return page.content


@contextlib.contextmanager
def open_output(file: OutputFile) -> Iterator[IO[bytes]]:
    """Open a file that is replaced only if the block succeeds."""
    if not isinstance(file, str | os.PathLike):
        yield file
        return
    path = Path(file)
    if path.exists() and not path.is_file():
        # A device or a pipe cannot be replaced.
        with path.open("wb") as stream:
            yield stream
        return
    path = path.resolve()
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            yield stream
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def format_of(file: OutputFile) -> str:
    """Return the format for a file by its suffix; `notebook` for a file without a name.

    Raises:
        ValueError: No format belongs to the suffix.
    """
    if not isinstance(file, str | os.PathLike):
        return "notebook"
    suffix = Path(file).suffix
    if suffix.lower() not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise ValueError(
            f"No format belongs to the suffix of {str(file)!r}. Set format, or use one of {known}."
        )
    return _FORMATS[suffix.lower()]


def open_archive(content: bytes) -> ZipFile:
    """Open an archive in memory."""
    import zipfile  # noqa: PLC0415 - few programs need it

    return zipfile.ZipFile(io.BytesIO(content))


def node_reader() -> Callable[[bytes], NotebookNode]:
    """Return the function that parses a notebook.

    Raises:
        ModuleNotFoundError: nbformat is not installed.
    """
    try:
        import nbformat  # noqa: PLC0415 - an optional package
    except ModuleNotFoundError as error:
        hint = (
            "notebook() needs nbformat (pip install nbformat). Without it, use output(), which returns bytes."
        )
        raise ModuleNotFoundError(hint, name=error.name) from error

    def read(content: bytes) -> NotebookNode:
        node: NotebookNode = nbformat.reads(content.decode(), nbformat.NO_CONVERT)
        return node

    return read
