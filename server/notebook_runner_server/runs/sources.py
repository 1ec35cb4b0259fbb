"""Where a notebook comes from: the files under the notebook root, and the URIs that the operator allows."""

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
        root: The folder; None: no notebook can be named by a path.
        max_bytes: The largest notebook.
    """

    def __init__(self, root: Path | None, max_bytes: int) -> None:
        self._root = None if root is None else root.resolve()
        self._max_bytes = max_bytes

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._root is not None

    def read(self, path: str) -> tuple[bytes, str]:
        """Return a notebook's bytes, and the folder that it is in.

        Raises:
            PathOutsideRootError: The path leads out of the root, by itself or by a symbolic link.
            NotebookNotFoundError: There is no such file, or it cannot be read.
            NotebookTooLargeError: It is too large.
        """
        if self._root is None:
            raise NotebookNotFoundError(
                "This server has no notebook root: send the notebook itself, or start the server with "
                "--notebook-root.",
                field=_FIELD,
                path=path,
            )
        if "\0" in path or os.path.isabs(path) or ".." in Path(path).parts:
            raise self._outside(path)
        return self._open(path, self._root)

    def _open(self, path: str, root: Path) -> tuple[bytes, str]:
        try:
            # Opened first and looked at afterwards, so that nothing can be exchanged in between; without
            # waiting, for it may be a pipe.
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
            "A notebook path is relative to the server's notebook root and stays in it.",
            field=_FIELD,
            path=path[:_MAX_SHOWN],
        )

    @staticmethod
    def _missing(path: str, why: str) -> NotebookNotFoundError:
        return NotebookNotFoundError(
            f"There is no notebook {path[:_MAX_SHOWN]!r} under the server's notebook root: {why}.",
            field=_FIELD,
            path=path[:_MAX_SHOWN],
        )


class UriSource:
    """The URIs that the operator allows.

    Args:
        transfer: What reads them.
        max_bytes: The largest notebook.
    """

    def __init__(self, transfer: Transfer, max_bytes: int) -> None:
        self._transfer = transfer
        self._max_bytes = max_bytes

    @property
    def schemes(self) -> list[str]:
        """The schemes that URIs may have; none: no URI can be used."""
        return sorted(self._transfer.schemes)

    def check(self, uri: str, field: str) -> None:
        """Refuse a URI that is not allowed.

        Raises:
            UriNotAllowedError: It is not; `field` is at fault.
        """
        try:
            self._transfer.check(uri)
        except RefusedError as error:
            raise UriNotAllowedError(f"{field} is not allowed: {error}.", field=field) from error

    async def read(self, uri: str) -> bytes:
        """Return the notebook that a URI names.

        Raises:
            UriNotAllowedError: It is not allowed, which may be seen only on the way.
            NotebookNotFoundError: There is none, or not for this server.
            NotebookTooLargeError: It is too large.
            NotebookUnreachableError: Whoever holds it does not answer.
            ShuttingDownError: The server is.
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
                    f"There is no notebook at {where}: {error}.", field=_URI_FIELD, uri=where
                )
            case TransferTooLargeError():
                return _too_large(self._max_bytes)
            case StoppedError():
                return ShuttingDownError("The server is shutting down: try again when it is back.")
        return NotebookUnreachableError(
            f"The notebook at {where} cannot be had now: {error}.", field=_URI_FIELD, uri=where
        )

    def stop_reading(self) -> None:
        """Abandon what is being read: the server is shutting down."""
        self._transfer.stop_reading()


def check_size(size: int, max_bytes: int) -> None:
    """Refuse a notebook of too many bytes.

    Raises:
        NotebookTooLargeError: It is too large.
    """
    if size > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> NotebookTooLargeError:
    """Return why a notebook of too many bytes is not taken."""
    return NotebookTooLargeError(
        f"The notebook has more than {max_bytes} bytes, which the server allows (--max-notebook-bytes).",
        limit_bytes=str(max_bytes),
    )
