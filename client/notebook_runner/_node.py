"""A notebook as nbformat's object, where nbformat is installed: the client itself does without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbformat import NotebookNode

__all__ = ["node_reader"]


def node_reader() -> Callable[[bytes], NotebookNode]:
    """Give the function that reads a notebook's bytes.

    Raises:
        ModuleNotFoundError: nbformat is not installed.
    """
    try:
        import nbformat  # noqa: PLC0415 - only where it is asked for
    except ModuleNotFoundError as error:
        hint = (
            "notebook() needs nbformat (pip install nbformat). Without it, use output(), which returns bytes."
        )
        raise ModuleNotFoundError(hint, name=error.name) from error

    def read(content: bytes) -> NotebookNode:
        node: NotebookNode = nbformat.reads(content.decode(), nbformat.NO_CONVERT)
        return node

    return read
