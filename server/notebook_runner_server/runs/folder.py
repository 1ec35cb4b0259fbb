"""A run's folder: the file of its parts, its private working folder, and its artefacts.

::

    runs/RUN_ID/
    ├── parts        every version of every part of the notebook, appended, synced before it is told of
    ├── environment  the variables for the kernel, until the run has ended
    ├── output-uri   where the executed notebook is to be written, until the run has ended
    ├── work/        NOTEBOOK_RUNNER_RUN_DIR, or what came back of it: what the notebook itself leaves
    ├── files-left   how many bytes that would have been, where it was too much to come back
    └── artefacts/   what Output has made so far; can be made again
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.execution.files import FileEvent, FilesLeft
from notebook_runner_server.execution.parts import HEAD, SEPARATOR, TAIL
from notebook_runner_server.runs.tables import Part

COPY_BYTES = 1024 * 1024
_logger = logging.getLogger(__name__)


def private(path: str | Path, flags: int) -> int:
    """Open a file that, where it is made, is this user's alone; what `open` takes as its `opener`."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def sync_folder(path: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunFolder:
    """The files of one run.

    Args:
        path: The run's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "work"
        self.artefacts = path / "artefacts"
        self._parts = path / "parts"
        self._environment = path / "environment"
        self._output_uri = path / "output-uri"
        self._files_left = path / "files-left"

    def create(self) -> None:
        """Make the folders, for this user alone."""
        for folder in (self.path, self.work, self.artefacts):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove all of it, or as much as can be; not being there is well."""
        try:
            folder_tree.remove(self.path)
        except OSError as error:
            about = {"folder": str(self.path), "why": str(error)}
            _logger.warning("a run's folder could not be removed", extra=about)

    def write(self, start: int, pieces: Iterable[bytes]) -> None:
        """Write bytes to the file of parts from a place on, and make them durable."""
        descriptor = private(self._parts, os.O_WRONLY | os.O_CREAT)
        with open(descriptor, "wb") as file:
            file.seek(start)
            file.writelines(pieces)
            file.flush()
            os.fdatasync(descriptor)

    def bring(self, told: FileEvent) -> None:
        """Take what came of the notebook's files from another machine; once more changes nothing.

        Raises:
            OSError: It is not for a file in the folder, or cannot be written.
        """
        if isinstance(told, FilesLeft):
            self._files_left.write_text(str(told.size))
            return
        parent, name = os.path.split(told.path)
        folder = folder_tree.open_below(self.work, parent, make=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        with open(descriptor, "wb") as file:
            file.seek(told.start)
            file.write(told.data)
            file.flush()
            # The worker forgets it when it is told that it is here.
            os.fdatasync(descriptor)
            # The next piece has to be written as well.
            os.fchmod(descriptor, told.mode & 0o777 | 0o600)
            os.utime(descriptor, ns=(told.modified, told.modified))

    def files_left(self) -> int:
        """Return how many bytes of files did not come from another machine."""
        return int(self._files_left.read_text()) if self._files_left.exists() else 0

    def keep_secrets(self, environment: Mapping[str, str], output_uri: str) -> None:
        """Keep the variables for the kernel and where to write to until the run has ended."""
        for path, secret in ((self._environment, dict(environment)), (self._output_uri, output_uri)):
            if secret:
                descriptor = private(path, os.O_WRONLY | os.O_CREAT)
                with open(descriptor, "w", encoding="utf-8") as file:
                    json.dump(secret, file)
                    file.flush()
                    os.fsync(descriptor)

    def secrets(self) -> tuple[dict[str, str], str]:
        """Return the variables for the kernel of a run that has not ended, and where to write to."""
        variables: dict[str, str] = {}
        output_uri = ""
        # None were given, or the run has just ended.
        with contextlib.suppress(FileNotFoundError):
            variables = json.loads(self._environment.read_text(encoding="utf-8"))
        with contextlib.suppress(FileNotFoundError):
            output_uri = json.loads(self._output_uri.read_text(encoding="utf-8"))
        return variables, output_uri

    def forget_secrets(self) -> None:
        """Remove them: the run has ended."""
        self._environment.unlink(missing_ok=True)
        self._output_uri.unlink(missing_ok=True)

    def parts_size(self) -> int:
        """Return how many bytes the file of parts has."""
        return self._parts.stat().st_size if self._parts.exists() else 0

    def size(self) -> int:
        """Return how many bytes all files of the run have together."""
        return folder_tree.size(self.path)

    def sync(self) -> None:
        """Make the folder's entries durable."""
        sync_folder(self.path)
        sync_folder(self.path.parent)

    def read(self, part: Part) -> bytes:
        """Return one part."""
        with self._parts.open("rb") as file:
            return b"".join(_read(file.fileno(), part))

    def notebook(self, parts: Iterable[Part]) -> Iterator[bytes]:
        """Yield the notebook that is put together from these versions of its parts."""
        by_number = {part.part: part for part in parts}
        tail = by_number.pop(TAIL)
        yield HEAD
        with self._parts.open("rb") as file:
            for place, number in enumerate(sorted(by_number)):
                if place:
                    yield SEPARATOR
                yield from _read(file.fileno(), by_number[number])
            yield from _read(file.fileno(), tail)


def _read(descriptor: int, part: Part) -> Iterator[bytes]:
    for start in range(0, part.length, COPY_BYTES):
        yield os.pread(descriptor, min(COPY_BYTES, part.length - start), part.start + start)
