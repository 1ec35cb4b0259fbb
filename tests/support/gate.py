"""A named pipe on which a notebook waits until the test lets it go on."""

import os
from pathlib import Path


class Gate:
    """Holds a cell that runs `source` until `open()` is called, once for every time it is held.

    The test keeps the pipe open for both ways, so neither side ever waits for the other to arrive.
    """

    def __init__(self, folder: Path, name: str = "gate") -> None:
        self.path = folder / name
        os.mkfifo(self.path)
        self._descriptor = os.open(self.path, os.O_RDWR)

    @property
    def source(self) -> str:
        """One line of Python that blocks in the kernel until the gate opens."""
        return f"import os; _ = os.read(os.open({str(self.path)!r}, os.O_RDONLY), 1)"

    def open(self, times: int = 1) -> None:
        """Lets so many waits pass."""
        os.write(self._descriptor, b"." * times)

    def close(self) -> None:
        """Gives the pipe back."""
        os.close(self._descriptor)
