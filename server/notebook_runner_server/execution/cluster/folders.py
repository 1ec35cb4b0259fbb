"""The folder of a run on a Dask worker, which need not have any folder in common with the server."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.execution.files import FileEvent, FilePiece, FilesLeft
from notebook_runner_server.execution.interface import Job

PIECE_BYTES = 1024 * 1024
"""How much of a file is in memory at once."""


class WorkerRunFolder:
    """The private folder of a run while it is executed; what the notebook leaves in it goes to the server.

    Args:
        place: Where it is made, in a folder of this name that is the run's alone.
        max_bytes: How much it may hold to be brought to the server.
        root: The server's notebook root, which may be here too, at the same path or by a link of this name.
    """

    def __init__(self, place: Path, max_bytes: int, root: Path | None) -> None:
        self._place = self._path = place
        self._max_bytes = max_bytes
        self._root = root

    def create(self, job: Job) -> Job:
        """Make it, and return the job as it is executed here: in its notebook's folder, if that is here.

        Raises:
            OSError: It cannot be made.
        """
        self._path = self._place / job.run_id
        self._path.mkdir(mode=0o700, parents=True)
        own = str(self._path)
        working = own
        working_folder = Path(job.working_folder)
        if self._root is not None and working_folder.is_relative_to(self._root):
            # The operator may have a link here; below the root one would be a notebook's.
            shared = self._root.resolve() / working_folder.relative_to(self._root)
            working = str(shared) if shared.is_dir() else own
        return replace(job, run_folder=own, working_folder=working)

    def files(self, most: int | None = None) -> Iterator[FileEvent]:
        """Yield what the notebook has left, when no process of it is there; links are not followed.

        A file that cannot be read is left out.

        Args:
            most: How many bytes are brought at the most, if that is less than otherwise.
        """
        total = sum(entry.about.st_size for entry in self._regular_files())
        if total > min(self._max_bytes, self._max_bytes if most is None else most):
            yield FilesLeft(total)
            return
        for entry in self._regular_files():
            # It may have gone.
            with contextlib.suppress(OSError):
                yield from self._pieces(entry)

    def _regular_files(self) -> Iterator[folder_tree.Entry]:
        for entry in folder_tree.walk(self._path):
            readable = os.access(entry.name, os.R_OK, dir_fd=entry.folder)
            if readable and stat.S_ISREG(entry.about.st_mode):
                yield entry

    def _pieces(self, entry: folder_tree.Entry) -> Iterator[FilePiece]:
        with open(entry.open(), "rb") as file:
            about = os.fstat(file.fileno())
            start = 0
            while (data := file.read(PIECE_BYTES)) or not start:
                yield FilePiece(entry.path, start, data, stat.S_IMODE(about.st_mode), about.st_mtime_ns)
                if not data:
                    return
                start += len(data)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        folder_tree.remove_if_possible(self._place)
