"""A run's folder: its file of segments, its secrets, and its private working directory.

::

    runs/RUN_ID/
    ├── segments     every version of every segment of the notebook, and in between the content of small
    │                representations of displays; synced before an event announces them
    ├── begun        exists once a worker gets the run, or the run has ended: it is not executed again
    ├── environment  the variables for the kernel, until the run has ended
    ├── output-uri   where the executed notebook is uploaded to, until the run has ended
    ├── input-files  the files of the request, until the run has ended: a worker writes them to work/
    ├── work/        NOTEBOOK_RUNNER_RUN_DIR, or its copy from another machine: the notebook's own files
    └── files-left   the size of those files in bytes, if they were too large to be copied
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from notebook_runner_server import folder_tree
from notebook_runner_server.errors import DamagedRunError, damaged
from notebook_runner_server.execution.interface import FileEvent, FilesLeft, InputFile, KeptContent
from notebook_runner_server.execution.segments import HEAD, SEPARATOR, TAIL
from notebook_runner_server.runs import files, input_files
from notebook_runner_server.runs.model import Segment

COPY_BYTES = 1024 * 1024
_logger = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T", dict[str, str], str)


def private(path: str | Path, flags: int) -> int:
    """Open a file; a new one is readable for this user alone. For `open` as its `opener`.

    A notebook has the same user, and may have changed the modes of file and folder, which are restored.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except PermissionError:
        is_granted = folder_tree.grant_owner(os.path.dirname(path))
        is_granted |= folder_tree.grant_owner(path)
        if not is_granted:
            raise
        return os.open(path, flags | os.O_CLOEXEC, 0o600)


def sync_folder(path: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def call_to_end(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Call a function on a thread; a task that is cancelled meanwhile ends after the call."""
    calling = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(calling)
    finally:
        await asyncio.wait({calling})


class RunFolder:
    """The files of one run.

    Args:
        path: The run's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / "work"
        self._environment = path / "environment"
        self._output_uri = path / "output-uri"
        self._input_files = path / "input-files"
        self._files_left = path / "files-left"
        self._begun = path / "begun"

    @property
    def _segments(self) -> Path:
        # Its name was `parts` up to version 2 of the history.
        current, earlier = self.path / "segments", self.path / "parts"
        # Both are missing where the mode of the folder denies access.
        return earlier if not os.path.exists(current) and os.path.exists(earlier) else current

    def create(self) -> None:
        """Create the folders, for this user alone."""
        for folder in (self.path, self.work):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _restore_modes(self) -> None:
        """Give this user access to the folders, whose modes a notebook may have changed."""
        for folder in (self.path, self.work):
            folder_tree.grant_owner(folder)

    def remove(self) -> bool:
        """Remove the folder as far as possible; return whether it is gone. A missing folder is no error."""
        try:
            folder_tree.remove(self.path)
        except OSError as error:
            _logger.warning("run_folder_not_removed", extra={"folder": str(self.path), "why": str(error)})
            return False
        return True

    def write(self, start: int, chunks: Iterable[bytes]) -> None:
        """Write bytes to the file of segments from an offset on, and make them durable."""
        descriptor = private(self._segments, os.O_WRONLY | os.O_CREAT)
        with open(descriptor, "wb") as file:
            file.seek(start)
            file.writelines(chunks)
            file.flush()
            os.fdatasync(descriptor)

    def write_file(self, file_event: FileEvent) -> None:
        """Write a piece of a file that the notebook left on another machine; can be repeated.

        Raises:
            OSError: The path leads outside the folder, or cannot be written.
        """
        if isinstance(file_event, FilesLeft):
            self._files_left.write_text(str(file_event.size))
            return
        parent, name = os.path.split(file_event.path)
        folder = folder_tree.open_below(self.work, parent, make=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        with open(descriptor, "wb") as file:
            file.seek(file_event.start)
            file.write(file_event.data)
            file.flush()
            # The worker drops the piece once the server confirms it.
            os.fdatasync(descriptor)
            # The owner must be able to write the next piece.
            os.fchmod(descriptor, file_event.mode & 0o777 | 0o600)
            os.utime(descriptor, ns=(file_event.modified, file_event.modified))

    def files_left(self) -> int:
        """Return the size of files that were too large to be copied from another machine, in bytes."""
        return int(self._files_left.read_text()) if self._files_left.exists() else 0

    def write_secrets(self, environment: Mapping[str, str], output_uri: str) -> None:
        """Store the variables for the kernel and the output URI until the run has ended."""
        for path, secret in ((self._environment, dict(environment)), (self._output_uri, output_uri)):
            if secret:
                descriptor = private(path, os.O_WRONLY | os.O_CREAT)
                text = json.dumps(secret)
                with open(descriptor, "w", encoding="utf-8") as file:
                    file.write(f"{text}\n{zlib.crc32(text.encode())}")
                    file.flush()
                    os.fsync(descriptor)

    def secrets(self) -> tuple[dict[str, str], str]:
        """Return the variables for the kernel of a run that has not ended, and its output URI.

        Raises:
            DamagedRunError: They cannot be read.
        """
        return self._secret(self._environment, {}), self._secret(self._output_uri, "")

    def _secret(self, path: Path, default: _T) -> _T:
        try:
            with open(path, encoding="utf-8", opener=private) as file:
                text, _, checksum = file.read().partition("\n")
            secret = json.loads(text)
            # Earlier versions wrote no checksum.
            is_sound = not checksum or int(checksum) == zlib.crc32(text.encode())
        except FileNotFoundError:
            # It was never set, or the run has just ended.
            return default
        except (OSError, ValueError) as error:
            raise damaged(self.path.name, f"its file `{path.name}` cannot be read") from error
        if not is_sound or not isinstance(secret, type(default)):
            raise damaged(self.path.name, f"its file `{path.name}` is damaged")
        return secret

    def write_input_files(self, files: Sequence[InputFile]) -> None:
        """Store the files that the request brought until the run has ended."""
        if files:
            descriptor = private(self._input_files, os.O_WRONLY | os.O_CREAT)
            with open(descriptor, "wb") as archive:
                archive.write(input_files.pack(files))
                archive.flush()
                os.fsync(descriptor)

    def input_files(self) -> tuple[InputFile, ...]:
        """Return the files that the request of a run that has not ended brought.

        Raises:
            DamagedRunError: They cannot be read.
        """
        try:
            with open(self._input_files, "rb", opener=private) as archive:
                return input_files.unpack(archive.read())
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise damaged(self.path.name, f"its file `{self._input_files.name}` cannot be read") from error

    def mark_begun(self) -> None:
        """Mark the run so that it is not executed again; a second safeguard, so errors are ignored."""
        with contextlib.suppress(OSError):
            os.close(private(self._begun, os.O_WRONLY | os.O_CREAT))

    @property
    def is_begun(self) -> bool:
        """Whether a worker was to get the run, or its end could not be recorded."""
        self._restore_modes()
        return self._begun.exists()

    @property
    def has_inputs(self) -> bool:
        """Whether it has what only a run that has not ended needs: secrets, or the files of its request."""
        self._restore_modes()
        return any(path.exists() for path in self._inputs)

    def delete_inputs(self) -> None:
        """Delete what only a run that has not ended needs: its secrets, and the files of its request."""
        for path in self._inputs:
            path.unlink(missing_ok=True)

    @property
    def _inputs(self) -> tuple[Path, ...]:
        return self._environment, self._output_uri, self._input_files

    def segments_size(self) -> int:
        """Return the size of the file of segments in bytes; 0: it does not exist."""
        self._restore_modes()
        return self._segments.stat().st_size if self._segments.is_file() else 0

    def size(self) -> int:
        """Return the size of all files of the run in bytes."""
        return folder_tree.size(self.path)

    async def pack_files(self, target: Path, max_bytes: int) -> None:
        """Write a zip of the notebook's own files. Once it returns or is cancelled, nothing writes there.

        Args:
            target: The zip.
            max_bytes: The maximum size of all files together.

        Raises:
            UnpackableError: The files are too large, or were not stored.
            DamagedRunError: They are missing or damaged.
            NotReadyError: They cannot be read now.
            OSError: The zip cannot be written.
        """
        await call_to_end(self._pack_work, target, max_bytes)

    def _pack_work(self, target: Path, max_bytes: int) -> None:
        if left := self.files_left():
            raise files.UnpackableError(
                f"The run's files ({left} bytes) were too large to be copied from its worker."
            )
        self._restore_modes()
        files.pack(self.work, target, max_bytes)

    def sync(self) -> None:
        """Make the folder's entries durable."""
        sync_folder(self.path)
        sync_folder(self.path.parent)

    def read(self, segment: Segment) -> bytes:
        """Return one segment.

        Raises:
            DamagedRunError: It is missing or damaged.
        """
        with self._opened_segments() as pread:
            return b"".join(self._read(pread, segment))

    def notebook(self, segments: Iterable[Segment]) -> Iterator[bytes]:
        """Yield the notebook that these versions of its segments make, in chunks.

        Raises:
            DamagedRunError: One of them is missing or damaged.
        """
        by_number = {segment.number: segment for segment in segments}
        if TAIL not in by_number:
            raise damaged(self.path.name, "the history lacks segments of its notebook")
        tail = by_number.pop(TAIL)
        yield HEAD
        with self._opened_segments() as pread:
            for index, number in enumerate(sorted(by_number)):
                if index:
                    yield SEPARATOR
                yield from self._read(pread, by_number[number])
            yield from self._read(pread, tail)

    def contents(self, kept: Iterable[KeptContent]) -> dict[int, bytes]:
        """Return the kept content of a display's representations, by their index.

        Raises:
            DamagedRunError: One of them is missing or damaged.
        """
        with self._opened_segments() as pread:
            return {one.index: b"".join(self._read(pread, one)) for one in kept}

    @contextlib.contextmanager
    def _opened_segments(self) -> Iterator[Callable[[int, int], bytes]]:
        """Open the file of segments, to read a number of bytes at an offset; fewer: it ends there."""
        try:
            # Not blocking: somebody may have put a pipe there.
            descriptor = private(self._segments, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            yield lambda size, offset: os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _unreadable(self, error: OSError) -> DamagedRunError:
        return damaged(self.path.name, f"its file of segments cannot be read ({error.strerror})")

    def _read(self, pread: Callable[[int, int], bytes], segment: Segment | KeptContent) -> Iterator[bytes]:
        total = 0
        what = f"segment {segment.number}" if isinstance(segment, Segment) else "the content of a display"
        for start in range(0, segment.length, COPY_BYTES):
            size = min(COPY_BYTES, segment.length - start)
            try:
                chunk = pread(size, segment.start + start)
            except OSError as error:
                raise self._unreadable(error) from error
            if len(chunk) < size:
                raise damaged(self.path.name, f"its file of segments ends within {what}")
            total = zlib.crc32(chunk, total)
            yield chunk
        if segment.checksum not in {None, total}:
            raise damaged(self.path.name, f"checksum mismatch in {what}")
