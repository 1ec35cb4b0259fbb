"""Exports notebooks one at a time, each in a process of its own that ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from notebook_runner_server import folder_tree

NO_INPUT = "--no-input"
"""Tells the converter to leave out what the code cells say."""


class ConversionError(RuntimeError):
    """A notebook cannot be converted; the message says why."""


class ExportService:
    """Converts notebooks with nbconvert, off the event loop.

    Args:
        formats: The names of the exporters that are allowed.
        timeout: Seconds that one export may take.
        sweep: Ends, after an export, what has left the converter's process group; blocks.
        folder: Makes the folder for the temporary files of an export.
        environment: The variables of a converter, and of what it starts.
    """

    def __init__(
        self,
        formats: Collection[str],
        timeout: float,
        sweep: Callable[[], object] = lambda: None,
        folder: Callable[[], Path] = lambda: Path(tempfile.mkdtemp(prefix="export-")),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.formats = frozenset(formats)
        self._timeout = timeout
        self._sweep = sweep
        self._folder = folder
        self._environment = environment
        self._one_at_a_time = asyncio.Lock()

    async def export(self, notebook: Path, to: str, target: Path, *, omit_input: bool = False) -> str:
        """Write the notebook in another format, and return its media type.

        Args:
            notebook: The notebook's file.
            to: The format.
            target: The file to write.
            omit_input: Leave out what the code cells say, and all prompts.

        Raises:
            ConversionError: nbconvert could not, or took too long.
        """
        async with self._one_at_a_time:
            folder = await asyncio.to_thread(self._folder)
            try:
                options = [NO_INPUT] if omit_input else []
                answer = await self._convert(str(folder), to, str(notebook), str(target), *options)
            finally:
                # By now nothing writes into it any more.
                await asyncio.to_thread(folder_tree.remove_if_possible, folder)
        if "error" in answer:
            raise ConversionError(answer["error"])
        return answer["media_type"]

    async def _convert(self, folder: str, *arguments: str) -> Mapping[str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "notebook_runner_server.export.formats", *arguments),
            # What is ended has no time to remove its files.
            env={**self._environment, "TMPDIR": folder},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            process_group=0,
        )
        try:
            printed, _ = await asyncio.wait_for(process.communicate(), self._timeout)
        except TimeoutError:
            raise ConversionError(f"it took longer than {self._timeout:g} s (--export-timeout)") from None
        finally:
            # With whatever it started: pandoc, a browser.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            await asyncio.to_thread(_reap, process.pid)
            # What collects a browser's crashes leads a session of its own.
            await asyncio.to_thread(self._sweep)
        if process.returncode:
            raise ConversionError(f"the converter ended with code {process.returncode}")
        answer: Mapping[str, str] = json.loads(printed.splitlines()[-1])
        return answer


def _reap(group: int) -> None:
    """Wait for what a converter has left to this process, which is the nearest subreaper; it was killed."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)
