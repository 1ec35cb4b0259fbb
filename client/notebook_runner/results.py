"""The results of `run`: the run and its artefacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from ._pages import OutputFile
    from .aio import AsyncClient
    from .client import Client
    from .v1.notebook_runner_pb2 import Run

__all__ = ["AsyncRunResult", "RunResult"]


@dataclass(frozen=True)
class RunResult:
    """A run that succeeded. Its methods need the client to be open.

    Attributes:
        run: The run as it ended.
    """

    run: Run
    _client: Client

    def output(self, *, format: str = "notebook", omit_input: bool = False) -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of the run, as `Client.output` does."""
        return self._client.output(self.run.run_id, format=format, omit_input=omit_input)

    def save_output(
        self,
        file: OutputFile,
        *,
        format: str = "notebook",  # noqa: A002 - as above
        omit_input: bool = False,
    ) -> None:
        """Write an artefact of the run to a file, as `Client.save_output` does."""
        self._client.save_output(file, self.run.run_id, format=format, omit_input=omit_input)

    def notebook(self) -> NotebookNode:
        """Read the executed notebook, as `Client.notebook` does."""
        return self._client.notebook(self.run.run_id)


@dataclass(frozen=True)
class AsyncRunResult:
    """A run that succeeded. Its methods need the client to be open.

    Attributes:
        run: The run as it ended.
    """

    run: Run
    _client: AsyncClient

    async def output(self, *, format: str = "notebook", omit_input: bool = False) -> bytes:  # noqa: A002 - the contract's name
        """Read an artefact of the run, as `AsyncClient.output` does."""
        return await self._client.output(self.run.run_id, format=format, omit_input=omit_input)

    async def save_output(
        self,
        file: OutputFile,
        *,
        format: str = "notebook",  # noqa: A002 - as above
        omit_input: bool = False,
    ) -> None:
        """Write an artefact of the run to a file, as `AsyncClient.save_output` does."""
        await self._client.save_output(file, self.run.run_id, format=format, omit_input=omit_input)

    async def notebook(self) -> NotebookNode:
        """Read the executed notebook, as `AsyncClient.notebook` does."""
        return await self._client.notebook(self.run.run_id)
