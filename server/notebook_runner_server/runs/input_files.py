"""The files that a request brings: their check, and the archive that keeps them until the run has ended."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence

from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.execution.interface import InputFile

MAX_FILES = 1000
MAX_FOLDERS = 1000
"""Maximum number of folders of the files: each takes space on the disk, and time to create and remove."""

MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
"""Linux's limit of a name."""

_SHOWN = 100


def check(files: Sequence[InputFile], max_bytes: int) -> None:
    """Refuse files that cannot be written into a working folder, or that are too many or too large.

    Args:
        files: The files.
        max_bytes: The maximum size of all files together.

    Raises:
        InvalidFieldError: They are refused.
    """
    if len(files) > MAX_FILES:
        raise _refusal(f"at most {MAX_FILES} files are allowed (got {len(files)}). Send an archive instead.")
    size = sum(len(file.content) for file in files)
    if size > max_bytes:
        raise _refusal(
            f"this server allows {max_bytes} bytes in all files together (got {size}). Let the notebook read "
            "large data from where it is, or start the server with a larger --max-input-files-bytes."
        )
    paths: set[str] = set()
    folders: set[str] = set()
    for file in files:
        if why := _fault(file.path):
            raise _refusal(f"{file.path[:_SHOWN]!r} is not a path within the working folder: {why}.")
        if file.path in paths:
            raise _refusal(f"{file.path[:_SHOWN]!r} is given twice.")
        paths.add(file.path)
        parts = file.path.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if len(folders) > MAX_FOLDERS:
            raise _refusal(f"at most {MAX_FOLDERS} folders are allowed (got more). Send an archive instead.")
    if both := sorted(paths & folders):
        raise _refusal(f"{both[0][:_SHOWN]!r} is a file, and the folder of another one.")


def _fault(path: str) -> str:
    """Return what is wrong with a path; empty: nothing."""
    names = path.split("/")
    faults = {
        "it is empty": not path,
        "it is absolute": path.startswith("/"),
        "it contains NUL": "\0" in path,
        "it contains a backslash; separate names with '/'": "\\" in path,
        "it has an empty name between two '/', or at its end": "" in names,
        "'.' and '..' are not names": "." in names or ".." in names,
        f"a name has more than {MAX_NAME_BYTES} bytes": any(
            len(name.encode()) > MAX_NAME_BYTES for name in names
        ),
        f"it has more than {MAX_PATH_BYTES} bytes": len(path.encode()) > MAX_PATH_BYTES,
    }
    return next((why for why, is_so in faults.items() if is_so), "")


def _refusal(found: str) -> InvalidFieldError:
    return InvalidFieldError(f"files: {found}", field="files")


def pack(files: Iterable[InputFile]) -> bytes:
    """Return an archive of files; it has a checksum of each."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in files:
            archive.writestr(file.path, file.content)
    return buffer.getvalue()


def unpack(data: bytes) -> tuple[InputFile, ...]:
    """Return the files that `pack` was given.

    Raises:
        zipfile.BadZipFile: The archive is damaged.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple(InputFile(info.filename, archive.read(info)) for info in archive.infolist())
