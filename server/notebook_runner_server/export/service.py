"""Exports notebooks one at a time, each in a process of its own."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.export import formats
from notebook_runner_server.export.banner import Banner
from notebook_runner_server.export.formats import ConversionError
from notebook_runner_server.run_in_subprocess import SubprocessError, SubprocessOptions, start_in_subprocess


class ExportService:
    """Converts notebooks with nbconvert, off the event loop.

    Args:
        formats: The names of the allowed exporters.
        timeout: Seconds that one export may take.
        sweep: Kills processes that have left the converter's process group, after each export; blocks.
        folder: Creates the folder for the temporary files of an export.
        environment: The environment variables of converters.
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

    async def export(
        self,
        notebook: Path,
        to: str,
        target: Path,
        *,
        omit_input: bool = False,
        about: Banner | None = None,
    ) -> str:
        """Write the notebook in another format, and return its media type.

        Args:
            notebook: The notebook's file.
            to: The format.
            target: The file to write.
            omit_input: Leave out the source of code cells, and all prompts.
            about: What a page says about the run at its top; None: nothing.

        Raises:
            ConversionError: nbconvert could not, or took too long.
        """
        async with self._one_at_a_time:
            folder = await asyncio.to_thread(self._folder)
            # A process that is killed has no time to remove its temporary files.
            options = SubprocessOptions({**self._environment, "TMPDIR": str(folder)})
            try:
                async with asyncio.timeout(self._timeout):
                    return await start_in_subprocess(
                        options, formats.export, to, notebook, target, omit_input=omit_input, about=about
                    )
            except TimeoutError:
                raise ConversionError(f"it took longer than {self._timeout:g} s (--export-timeout)") from None
            except SubprocessError as error:
                raise ConversionError(str(error)) from error
            finally:
                # A browser's crash handler leads a session of its own.
                await asyncio.to_thread(self._sweep)
                # By now no process writes into it.
                await asyncio.to_thread(folder_tree.remove_if_possible, folder)
