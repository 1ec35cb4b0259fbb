"""Sources of notebooks: files under the notebook root, and allowed URIs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from notebook_runner_server.errors import (
    NotebookNotFoundError,
    NotebookTooLargeError,
    NotebookUnreachableError,
    PathOutsideRootError,
    RunnerError,
    ShuttingDownError,
    UriNotAllowedError,
)
from notebook_runner_server.transfer.interface import (
    MissingError,
    RefusedError,
    StoppedError,
    Transfer,
    TransferError,
    TransferTooLargeError,
    shown,
)

_FIELD = "notebook_path"
_URI_FIELD = "notebook_uri"
_MAX_SHOWN = 200


class NotebookRoot:
    """The folder that notebook paths are relative to.

    Args:
        root: The folder; None: a notebook cannot be named by its path.
        max_bytes: The maximum size of a notebook.
    """

    def __init__(self, root: Path | None, max_bytes: int) -> None:
        self._root = None if root is None else root.resolve()
        self._max_bytes = max_bytes

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._root is not None

    def read(self, path: str) -> tuple[bytes, str]:
        """Return a notebook's bytes, and its folder.

        Raises:
            PathOutsideRootError: The path leads outside the root, by itself or over a symbolic link.
            NotebookNotFoundError: The file does not exist or cannot be read.
            NotebookTooLargeError: It is too large.
        """
        if self._root is None:
            raise NotebookNotFoundError(
                "The server has no notebook root, so a notebook cannot be named by its path. Send its "
                "content, or start the server with --notebook-root.",
                field=_FIELD,
                path=path,
            )
        if "\0" in path or os.path.isabs(path) or ".." in Path(path).parts:
            raise self._outside(path)
        return self._open(path, self._root)

    def _open(self, path: str, root: Path) -> tuple[bytes, str]:
        try:
            # Opened first and checked afterwards, so that nothing can be exchanged in between; not blocking,
            # because it may be a pipe.
            descriptor = os.open(root / path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise self._missing(path, error.strerror or "cannot be opened") from error
        try:
            real = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if not real.is_relative_to(root):
                raise self._outside(path)
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                raise self._missing(path, "not a regular file")
            check_size(about.st_size, self._max_bytes)
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(self._max_bytes + 1)
        finally:
            os.close(descriptor)
        check_size(len(content), self._max_bytes)
        return content, str(real.parent)

    @staticmethod
    def _outside(path: str) -> PathOutsideRootError:
        return PathOutsideRootError(
            "notebook_path must be relative to the server's notebook root and stay inside it.",
            field=_FIELD,
            path=path[:_MAX_SHOWN],
        )

    @staticmethod
    def _missing(path: str, why: str) -> NotebookNotFoundError:
        return NotebookNotFoundError(
            f"Notebook {path[:_MAX_SHOWN]!r} not found under the server's notebook root: {why}.",
            field=_FIELD,
            path=path[:_MAX_SHOWN],
        )


class UriSource:
    """Reads notebooks from URIs that the operator allows.

    Args:
        transfer: Reads from URIs.
        max_bytes: The maximum size of a notebook.
    """

    def __init__(self, transfer: Transfer, max_bytes: int) -> None:
        self._transfer = transfer
        self._max_bytes = max_bytes

    @property
    def schemes(self) -> list[str]:
        """The allowed schemes of URIs; empty: URIs are not allowed."""
        return sorted(self._transfer.schemes)

    def check(self, uri: str, field: str) -> None:
        """Check that a URI of the request's field is allowed.

        Raises:
            UriNotAllowedError: It is not.
        """
        try:
            self._transfer.check(uri)
        except RefusedError as error:
            raise UriNotAllowedError(f"{field} is not allowed: {error}.", field=field) from error

    async def read(self, uri: str) -> bytes:
        """Return the notebook at a URI.

        Raises:
            UriNotAllowedError: It is not allowed, which may show only after a redirect.
            NotebookNotFoundError: It does not exist, or the server may not read it.
            NotebookTooLargeError: It is too large.
            NotebookUnreachableError: Its host does not answer.
            ShuttingDownError: The server is shutting down.
        """
        try:
            return await self._transfer.read(uri)
        except TransferError as error:
            raise self._refusal(uri, error) from error

    def _refusal(self, uri: str, error: TransferError) -> RunnerError:
        where = shown(uri)[:_MAX_SHOWN]
        match error:
            case RefusedError():
                return UriNotAllowedError(f"{_URI_FIELD} is not allowed: {error}.", field=_URI_FIELD)
            case MissingError():
                return NotebookNotFoundError(
                    f"Notebook not found at {where}: {error}.", field=_URI_FIELD, uri=where
                )
            case TransferTooLargeError():
                return _too_large(self._max_bytes)
            case StoppedError():
                return ShuttingDownError("The server is shutting down. Try again after its restart.")
        return NotebookUnreachableError(
            f"Cannot read the notebook at {where}: {error}. Try again later.", field=_URI_FIELD, uri=where
        )

    def stop_reading(self) -> None:
        """Abort all reads: the server is shutting down."""
        self._transfer.stop_reading()


def check_size(size: int, max_bytes: int) -> None:
    """Check the size of a notebook.

    Raises:
        NotebookTooLargeError: It is too large.
    """
    if size > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> NotebookTooLargeError:
    return NotebookTooLargeError(
        f"The notebook exceeds the server's limit of {max_bytes} bytes (--max-notebook-bytes).",
        limit_bytes=str(max_bytes),
    )
