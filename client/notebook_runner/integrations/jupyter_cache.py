"""The executor `notebook-runner` of jupyter-cache: a server executes the notebooks of a project."""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_cache.executors.base import ExecutionError, ExecutorRunResult, JupyterExecutorAbstract
from jupyter_cache.executors.basic import ExecutionWorkerBase, ProcessData
from jupyter_cache.executors.utils import ExecutionResult, copy_assets
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from notebook_runner import Client, NotebookRunnerError, RunFailed, RunState

from ._merge import merge
from ._start import split_options, start_when_free

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping
    from concurrent.futures import Future

    from jupyter_cache.base import ProjectNb

    from notebook_runner import Run

__all__ = ["NotebookRunnerExecutor"]


class NotebookRunnerExecutor(JupyterExecutorAbstract):  # type: ignore[misc] # jupyter-cache has no types
    """Executes notebooks on a server, as many concurrently as it has workers, and caches their outputs.

    A notebook runs in a private folder with its assets. The server, the token and the certificates come from
    the environment variables of the client.
    """

    def run_and_cache(
        self,
        *,
        filter_uris: list[str] | None = None,
        filter_pks: list[int] | None = None,
        timeout: int | None = 30,
        allow_errors: bool = False,
        force: bool = False,
        **options: Any,
    ) -> ExecutorRunResult:
        """Execute the notebooks that are not cached yet.

        Args:
            filter_uris: Execute only the notebooks with these paths.
            filter_pks: Execute only the notebooks with these keys.
            timeout: Maximum duration of a cell, in seconds. None: the server's default. A notebook may set
                its own in its metadata, as with jupyter-cache's own executors.
            allow_errors: Continue after a cell that raises an exception.
            force: Execute cached notebooks as well.
            **options: Arguments of `notebook_runner.Client` that say where the server is, and `StartOptions`.

        Returns:
            The paths of the notebooks that succeeded, of those whose cells failed or took too long, and of
            those that could not be executed: the server cannot be reached or refuses them, or the run was
            killed or crashed.
        """
        records = self.get_records(filter_uris, filter_pks, clear_tracebacks=True, force=force)
        connection, options = split_options(options)
        by_code: dict[int, list[str]] = {0: [], 1: [], 2: []}
        with Client(**connection) as client:
            self.logger.info("Executing %s notebook(s) on %s", len(records), client.target)
            runs = _Runs(client, options, timeout=timeout, allow_errors=allow_errors)
            try:
                for record in records:
                    runs.submit(record.pk, self.cache)
                for record in records:
                    data = ProcessData(record.pk, record.uri, self.cache, timeout, allow_errors)
                    code, uri = _Worker(self.logger, runs)(data)
                    by_code[code].append(uri)
            finally:
                runs.close()
        return ExecutorRunResult(succeeded=by_code[0], excepted=by_code[1], errored=by_code[2])


class _Runs:
    """The runs of the notebooks of one call, by the keys of the notebooks."""

    def __init__(
        self, client: Client, options: Mapping[str, Any], *, timeout: int | None, allow_errors: bool
    ) -> None:
        self._client = client
        self._options = dict(options)
        self._limits = {"timeout": timeout, "allow_errors": allow_errors}
        self._closed = threading.Event()
        self._active: dict[str, Run] = {}
        self._runs: dict[int, Future[Run]] = {}
        self._pool = ThreadPoolExecutor(self._workers())

    def submit(self, key: int, cache: Any) -> None:
        """Start a notebook as soon as a worker is free, unless the notebook cannot be read."""
        try:
            project = cache.get_project_notebook(key)
        except Exception:  # noqa: BLE001 - the worker reads it again, and reports why it cannot be read
            return
        self._runs[key] = self._pool.submit(self._run, project)

    def ended(self, key: int) -> Run:
        """Return the run of a notebook when it has ended."""
        return self._runs[key].result()

    def close(self) -> None:
        """Kill the runs that have not ended: jupyter-cache was interrupted."""
        self._closed.set()
        for run in list(self._active.values()):
            run.kill()
        self._pool.shutdown(cancel_futures=True)

    def _workers(self) -> int:
        try:
            return max(1, self._client.info().workers)
        except NotebookRunnerError:
            return 1  # each notebook reports it

    def _run(self, project: ProjectNb) -> Run:
        own = {**self._limits, **project.nb.metadata.get("execution", {})}
        options = {"name": Path(project.uri).stem[:128], "allow_errors": own["allow_errors"], **self._options}
        if own["timeout"] and own["timeout"] > 0:
            options["cell_timeout"] = own["timeout"]
        with tempfile.TemporaryDirectory() as folder:
            copy_assets(project.uri, project.assets, folder)
            options = {"files": list(Path(folder).iterdir()), **options}
            # Others use the server as well.
            run = start_when_free(self._client, project.nb, options, self._closed)
        self._active[run.id] = run
        if self._closed.is_set():
            run.kill()
        ended = run.wait()
        del self._active[run.id]
        return ended


class _Worker(ExecutionWorkerBase):  # type: ignore[misc] # jupyter-cache has no types
    """Reports and caches a notebook as jupyter-cache's own executors do."""

    def __init__(self, logger: logging.Logger, runs: _Runs) -> None:
        super().__init__()
        self._logger = logger
        self._runs = runs

    @property
    def logger(self) -> logging.Logger:
        """The logger of the executor."""
        return self._logger

    def execute(self, project_nb: ProjectNb, data: ProcessData) -> ExecutionResult:
        """Wait for the run of a notebook, and merge its outputs.

        Raises:
            ExecutionError: The run was killed or interrupted, or crashed.
        """
        run = self._runs.ended(data.pk)
        # The cache finds a notebook by its metadata as well, which therefore must not change.
        merge(project_nb.nb, run.notebook(), times=False)
        failed = "" if run.ok else str(RunFailed(run))
        error: Exception | None = None
        if run.state is RunState.FAILED and run.failure:
            error = CellExecutionError(
                run.failure.traceback, run.failure.exception_name, run.failure.exception_message
            )
        elif run.state is RunState.TIMED_OUT:
            error = CellTimeoutError(failed)
        elif not run.ok:
            raise ExecutionError(failed)
        seconds = run.duration.total_seconds() if run.duration else 0.0
        trace = f"{failed}\n{run.failure.traceback}" if run.failure else None
        return ExecutionResult(project_nb.nb, "", seconds, error, trace)
