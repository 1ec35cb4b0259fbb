"""The executed notebook's way to where its caller wants it, before the run is told to have ended."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from typing import IO

from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.log import RunLog
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.tables import Part
from notebook_runner_server.transfer.interface import Transfer, TransferError

_logger = logging.getLogger(__name__)


class OutputUploader:
    """Writes executed notebooks to URIs.

    Args:
        store: Where the notebooks are.
        transfer: What writes to URIs.
    """

    def __init__(self, store: Store, transfer: Transfer) -> None:
        self._store = store
        self._transfer = transfer

    async def deliver(self, run_id: str, log: RunLog, uri: str) -> str:
        """Write a run's notebook as it is now; return why it is not there, or nothing.

        To cancel it is to abandon the write, at once.
        """
        folder = self._store.folder(run_id)
        try:
            # What a worker sent last belongs to the event that is to come.
            parts = await self._store.parts(log.position, log.last_sequence + 1)
            # Without a name, so that nothing of it stays whatever happens.
            with tempfile.TemporaryFile(dir=folder.path) as file:
                await asyncio.to_thread(_assemble, folder, parts, file)
                await self._transfer.write(uri, file.fileno())
        except TransferError as error:
            return f"Not written: {error}."
        except OSError as error:
            return f"Not written: the server cannot keep it for the transfer: {error.strerror}."
        except Exception:
            _logger.exception("a notebook could not be written to its URI", extra={"run_id": run_id})
            return "Not written: the server failed, and its log says more."
        return ""


def _assemble(folder: RunFolder, parts: list[Part], file: IO[bytes]) -> None:
    file.writelines(folder.notebook(parts))
    file.flush()
    file.seek(0)
