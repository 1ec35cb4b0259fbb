"""A run's folder: the file of its parts, and its private working folder.

::

    runs/RUN_ID/
    ├── parts        every version of every part of the notebook, appended, synced before it is told of
    ├── begun        there when a worker was to have the run, or it was ended: it is not executed again
    ├── environment  the variables for the kernel, until the run has ended
    ├── output-uri   where the executed notebook is to be written, until the run has ended
    ├── work/        NOTEBOOK_RUNNER_RUN_DIR, or what came back of it: what the notebook itself leaves
    └── files-left   how many bytes that would have been, where it was too much to come back
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TypeVar

from notebook_runner_server import folder_tree
from notebook_runner_server.execution.interface import FileEvent, FilesLeft
from notebook_runner_server.execution.parts import HEAD, SEPARATOR, TAIL
from notebook_runner_server.runs.errors import DamagedRunError, damaged
from notebook_runner_server.runs.tables import Part

COPY_BYTES = 1024 * 1024
_logger = logging.getLogger(__name__)
_T = TypeVar("_T", dict[str, str], str)


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
        self._parts = path / "parts"
        self._environment = path / "environment"
        self._output_uri = path / "output-uri"
        self._files_left = path / "files-left"
        self._begun = path / "begun"

    def create(self) -> None:
        """Make the folders, for this user alone."""
        for folder in (self.path, self.work):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remove(self) -> bool:
        """Remove all of it, or as much as can be, and tell whether it is gone; not being there is well."""
        try:
            folder_tree.remove(self.path)
        except OSError as error:
            about = {"folder": str(self.path), "why": str(error)}
            _logger.warning("a run's folder could not be removed", extra=about)
            return False
        return True

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
                text = json.dumps(secret)
                with open(descriptor, "w", encoding="utf-8") as file:
                    file.write(f"{text}\n{zlib.crc32(text.encode())}")
                    file.flush()
                    os.fsync(descriptor)

    def secrets(self) -> tuple[dict[str, str], str]:
        """Return the variables for the kernel of a run that has not ended, and where to write to.

        Raises:
            DamagedRunError: They cannot be read.
        """
        return self._secret(self._environment, {}), self._secret(self._output_uri, "")

    def _secret(self, path: Path, none: _T) -> _T:
        try:
            text, _, checksum = path.read_text(encoding="utf-8").partition("\n")
            found = json.loads(text)
            # Those of earlier versions have none.
            is_sound = not checksum or int(checksum) == zlib.crc32(text.encode())
        except FileNotFoundError:
            # None was given, or the run has just ended.
            return none
        except (OSError, ValueError) as error:
            raise damaged(self.path.name, f"its file {path.name} cannot be read") from error
        if not is_sound or not isinstance(found, type(none)):
            raise damaged(self.path.name, f"its file {path.name} is not as it was written")
        return found

    def note_begun(self) -> None:
        """Note that the run is not to be executed again; a second net, so a full disk is no fault."""
        with contextlib.suppress(OSError):
            os.close(private(self._begun, os.O_WRONLY | os.O_CREAT))

    @property
    def is_begun(self) -> bool:
        """Whether a worker was to have the run, or its end could not be recorded."""
        return self._begun.exists()

    def forget_secrets(self) -> None:
        """Remove them: the run has ended."""
        self._environment.unlink(missing_ok=True)
        self._output_uri.unlink(missing_ok=True)

    def parts_size(self) -> int:
        """Return how many bytes the file of parts has; 0: there is none."""
        return self._parts.stat().st_size if self._parts.is_file() else 0

    def size(self) -> int:
        """Return how many bytes all files of the run have together."""
        return folder_tree.size(self.path)

    def sync(self) -> None:
        """Make the folder's entries durable."""
        sync_folder(self.path)
        sync_folder(self.path.parent)

    def read(self, part: Part) -> bytes:
        """Return one part.

        Raises:
            DamagedRunError: It is not as it was written.
        """
        with self._opened_parts() as file:
            return b"".join(self._read(file.fileno(), part))

    def notebook(self, parts: Iterable[Part]) -> Iterator[bytes]:
        """Yield the notebook that is put together from these versions of its parts.

        Raises:
            DamagedRunError: One of them is not as it was written.
        """
        by_number = {part.part: part for part in parts}
        if TAIL not in by_number:
            raise damaged(self.path.name, "the history lacks parts of its notebook")
        tail = by_number.pop(TAIL)
        yield HEAD
        with self._opened_parts() as file:
            for place, number in enumerate(sorted(by_number)):
                if place:
                    yield SEPARATOR
                yield from self._read(file.fileno(), by_number[number])
            yield from self._read(file.fileno(), tail)

    def _opened_parts(self) -> IO[bytes]:
        try:
            # Without waiting: something else may be in its place, for whose other end a pipe would wait.
            return open(self._parts, "rb", opener=lambda path, flags: private(path, flags | os.O_NONBLOCK))
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> DamagedRunError:
        return damaged(self.path.name, f"its file of parts cannot be read ({error.strerror})")

    def _read(self, descriptor: int, part: Part) -> Iterator[bytes]:
        total = 0
        for start in range(0, part.length, COPY_BYTES):
            size = min(COPY_BYTES, part.length - start)
            try:
                piece = os.pread(descriptor, size, part.start + start)
            except OSError as error:
                raise self._unreadable(error) from error
            if len(piece) < size:
                raise damaged(self.path.name, f"its file of parts ends within part {part.part}")
            total = zlib.crc32(piece, total)
            yield piece
        if part.checksum not in {None, total}:
            raise damaged(self.path.name, f"checksum mismatch in part {part.part}")
