"""The engine of papermill. During the run, its events fill the notebook; then the executed notebook does."""

from __future__ import annotations

import base64
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_output
from papermill.engines import Engine
from papermill.exceptions import PapermillException
from papermill.iorw import papermill_io
from papermill.log import logger

from notebook_runner import (
    CellFinished,
    CellOutcome,
    CellRaised,
    CellStarted,
    Client,
    Displayed,
    NotebookRunnerError,
    OutputCleared,
    Printed,
    RunFailed,
    RunState,
)

from ._merge import merge
from ._start import split_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbformat import NotebookNode
    from papermill.engines import NotebookExecutionManager

    from notebook_runner import Event, Run

__all__ = ["NotebookRunnerEngine"]

# papermill reads the notebook and injects the parameters before it calls an engine.
_BY_PAPERMILL = ("parameters", "server_path", "notebook_uri")
# Until the executed notebook replaces it, a display is what its event has.
_DISPLAY_BYTES = 1024 * 1024


class NotebookRunnerEngine(Engine):  # type: ignore[misc] # papermill has no types
    """Executes the notebook that papermill holds on a server.

    The server, the token and the certificates come from the environment variables of the client, or from the
    arguments of the same names as those of `notebook_runner.Client`.
    """

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        *,
        log_output: bool = False,
        stdout_file: IO[str] | None = None,
        stderr_file: IO[str] | None = None,
        execution_timeout: float | None = None,
        timeout: float | None = None,
        start_timeout: float | None = None,  # noqa: ARG003 - papermill always sets it; the server has its own
        input_path: object = None,
        **options: Any,
    ) -> None:
        """Execute the notebook, and mark its cells as the events of the run come.

        Args:
            nb_man: papermill's hold on the notebook.
            kernel_name: The kernelspec on the server.
            log_output: Log what the cells print and display.
            stdout_file: File for what the cells print to standard output.
            stderr_file: File for what the cells print to standard error.
            execution_timeout: Maximum duration of a cell, in seconds. None: the server's default.
            timeout: The same, by the name that nbclient has for it.
            start_timeout: Ignored: the server's operator sets it for all runs.
            input_path: The path of the notebook, which names the run.
            **options: Arguments of `notebook_runner.Client` that say where the server is, and `StartOptions`.

        Raises:
            CellTimeoutError: The run exceeded a time limit.
            DeadKernelError: The kernel died.
            PapermillException: The run was killed or interrupted, or a call to the server failed.
            TypeError: An option is unknown, or its value is of a type that cannot be sent.
            ValueError: The value of an option is out of range.

        If a cell raises an exception, papermill itself raises `PapermillExecutionError`.
        """
        cells = _Cells(nb_man, log_output=log_output, stdout_file=stdout_file, stderr_file=stderr_file)
        with cells.failing():
            _check(options)
            connection, options = split_options(options)
            options["kernel_name"] = kernel_name
            if limit := execution_timeout or timeout:
                options["cell_timeout"] = limit
            options = {"name": _name_of(input_path), "request_id": str(uuid4()), **options}
            with Client(**connection) as client:
                ended = _execute(client, nb_man.nb, options, cells)
                merge(nb_man.nb, ended.notebook())
            _raise_for(ended)
            if ended.ok:
                cells.complete()


def _check(options: dict[str, Any]) -> None:
    """Refuse the options that are papermill's matter, and warn if the notebook cannot have its folder."""
    if given := [name for name in _BY_PAPERMILL if options.get(name)]:
        raise PapermillException(
            f"{given[0]} cannot be an option of the engine. Pass notebook and parameters to papermill."
        )
    # papermill has changed into the folder of `cwd`, and keeps the one from before for what it writes.
    before = getattr(papermill_io.get_handler("local"), "_cwd", None)
    if before and before != os.getcwd() and not options.get("files"):
        logger.warning(
            f"The notebook runs on the server and not in {os.getcwd()}. Send the files it reads with `files`."
        )


def _execute(client: Client, notebook: NotebookNode, options: dict[str, Any], cells: _Cells) -> Run:
    """Start a run, and apply its events until it ends; if that is interrupted, kill the run."""
    run = None
    try:
        run = client.start(notebook, **options)
        logger.info(f"Run {run.id} on {client.target}")
        logger.info(f"Executing notebook with kernel: {options['kernel_name']}")
        for event in run.progress(display_data_max_bytes=_DISPLAY_BYTES):
            cells.apply(event)
        return run.refresh()
    except NotebookRunnerError as error:
        if run is None:
            raise
        raise NotebookRunnerError(f"{error}\nRun {run.id} may continue on the server.") from error
    except BaseException as error:
        if run is None and isinstance(error, Exception):
            raise  # an option that cannot be sent
        # Ctrl-C, a time limit of the program around papermill, or a file that cannot be written.
        logger.warning("Interrupted: killing the run.")
        with suppress(NotebookRunnerError):
            # The id of the request returns the run that an interrupted call has started.
            run = run or client.start(notebook, **options)
            merge(notebook, run.kill().run.notebook())
        raise


def _raise_for(run: Run) -> None:
    """Raise what papermill's callers expect of a run that did not succeed."""
    failed = str(RunFailed(run)) if run.failure else str(run)
    match run.state:
        case RunState.SUCCEEDED | RunState.FAILED:
            return  # papermill itself raises the error of a cell, and shows it in the notebook
        case RunState.TIMED_OUT:
            raise CellTimeoutError(failed)
        case RunState.CRASHED:
            raise DeadKernelError(failed)
        case _:
            raise PapermillException(failed)


def _name_of(input_path: object) -> str:
    """Return the name of a run: that of the notebook's file, if papermill read one."""
    if not isinstance(input_path, str) or input_path == "-" or input_path.lstrip().startswith("{"):
        return ""
    return Path(input_path).stem[:128]


class _Cells:
    """The cells of the notebook that papermill holds, marked and filled as the events of the run come."""

    def __init__(
        self,
        nb_man: NotebookExecutionManager,
        *,
        log_output: bool,
        stdout_file: IO[str] | None,
        stderr_file: IO[str] | None,
    ) -> None:
        self._nb_man = nb_man
        self._log_output = log_output
        self._files = {"stdout": stdout_file, "stderr": stderr_file}
        self._next = 0  # the first cell that is not marked yet
        self._running: int | None = None
        self._has_failed = False
        self._has_exited = False  # by SystemExit, which a notebook may end itself with
        self._clears = False

    @property
    def notebook(self) -> NotebookNode:
        """The notebook."""
        held: NotebookNode = self._nb_man.nb
        return held

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Mark a cell as failed if the block raises, and raise the errors of calls as papermill's own.

        Without a failed cell, papermill takes all cells that were not executed for completed.
        """
        try:
            yield
        except BaseException as error:
            self._fail()
            if isinstance(error, NotebookRunnerError):
                raise PapermillException(str(error)) from error
            raise

    def apply(self, event: Event) -> None:
        """Apply an event of the run."""
        match event:
            case CellStarted(cell_index=index):
                self._start(index)
            case CellFinished(cell_index=index):
                self._finish(index, event)
            case Printed(cell_index=index) | Displayed(cell_index=index) | CellRaised(cell_index=index):
                self._add(self.notebook.cells[index], event)
            case OutputCleared(cell_index=index, wait=wait):
                self._clears = wait
                if not wait:
                    self.notebook.cells[index].outputs = []
        self._nb_man.autosave_cell()

    def complete(self) -> None:
        """Mark the cells after the last code cell, unless the notebook ended itself before them."""
        if not self._has_exited:
            self._pass_until(len(self.notebook.cells))

    def _fail(self) -> None:
        if self._has_failed:
            return
        index = self._next if self._running is None else self._running
        if index < len(self.notebook.cells):
            self._nb_man.cell_exception(self.notebook.cells[index], cell_index=index)
        if self._running is not None:
            self._nb_man.cell_complete(self.notebook.cells[index], cell_index=index)
            self._running = None

    def _start(self, index: int) -> None:
        self._pass_until(index)
        self._nb_man.cell_start(self.notebook.cells[index], index)
        self._next, self._running = index + 1, index
        self._has_exited = self._clears = False

    def _finish(self, index: int, event: CellFinished) -> None:
        cell = self.notebook.cells[index]
        cell.execution_count = event.execution_count
        self._has_failed = event.outcome not in {CellOutcome.SUCCEEDED, CellOutcome.ERROR_ALLOWED}
        # papermill marks the cell that ends a notebook in the same way, and succeeds.
        if self._has_failed or self._has_exited:
            self._nb_man.cell_exception(cell, cell_index=index)
        self._nb_man.cell_complete(cell, cell_index=index)
        self._running = None

    def _pass_until(self, index: int) -> None:
        """Mark the cells that the kernel does not get, such as those of text."""
        for passed in range(self._next, index):
            self._nb_man.cell_start(self.notebook.cells[passed], passed)
            self._nb_man.cell_complete(self.notebook.cells[passed], cell_index=passed)
        self._next = max(self._next, index)

    def _add(self, cell: NotebookNode, event: Printed | Displayed | CellRaised) -> None:
        """Add an output, as far as its event has it."""
        if self._clears:
            cell.outputs, self._clears = [], False
        match event:
            case Printed(text, stream):
                self._log(text, stream)
                last = cell.outputs[-1] if cell.outputs else None
                if last and last.output_type == "stream" and last.name == stream:
                    last.text += text
                else:
                    cell.outputs.append(new_output("stream", name=stream, text=text))
            case Displayed(data=data, kind="execute_result" | "display_data" as kind):
                if self._log_output and isinstance(plain := data.get("text/plain"), str):
                    logger.info(plain)
                content = {
                    name: base64.b64encode(one).decode() if isinstance(one, bytes) else one
                    for name, one in data.items()
                }
                cell.outputs.append(new_output(kind, data=content))
            case CellRaised(exception_name=raised, exception_message=message):
                self._has_exited = raised == "SystemExit"
                cell.outputs.append(new_output("error", ename=raised, evalue=message, traceback=[]))

    def _log(self, text: str, stream: str) -> None:
        if self._log_output:
            (logger.info if stream == "stdout" else logger.warning)(text)
        if file := self._files.get(stream):
            file.write(text)
            file.flush()
