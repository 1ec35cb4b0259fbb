"""The private working folder of a kernel that is started before there is a run."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


class StagingDir:
    """A folder that a kernel may write from its start on, and that is moved to where its run's folder is.

    A rule of Landlock is for the folder and not for its name, and cannot be given to threads that run
    already.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="", dir=folder))

    def move(self, target: str) -> None:
        """Put it in the place of an empty folder.

        Raises:
            OSError: That folder is not there, or not empty.
        """
        os.rename(self.path, target)

    def remove(self) -> None:
        """Remove it, if it was not moved."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
