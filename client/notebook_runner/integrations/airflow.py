"""The operator, the hook and the trigger of Airflow: a server executes the notebooks of a DAG."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout

from notebook_runner import NotebookRunnerError, RunFailed, RunnerBusy, RunNotFound, RunState

from ._airflow_hook import NotebookRunnerHook, airflow_errors, patient
from ._airflow_log import TaskLog
from ._airflow_trigger import NotebookRunnerTrigger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from airflow.sdk import Context

    from notebook_runner import Client, Run

__all__ = ["NotebookRunnerHook", "NotebookRunnerOperator", "NotebookRunnerTrigger"]

# The XCom with the id of the run; a task keeps it between its tries by the same name.
_RUN_ID = "notebook_run_id"
# If a busy server does not say when to try again, in seconds.
_RETRY_SECONDS = 5.0
# The most characters of a label's value.
_LONGEST_LABEL = 128


class NotebookRunnerOperator(BaseOperator):  # type: ignore[misc] # Airflow is not installed where types are checked
    """Executes a notebook on a server, and returns its result values.

    Each try of the task is a run of its own. The XCom `notebook_run_id` has its id. The task log has its
    cells and what they print. If the task is cleared or marked as failed or succeeded, or exceeds its
    `execution_timeout`, the run is killed. If the server is busy, the task waits for it.

    The arguments from `server_path` to `priority` are options of the run, as in
    `notebook_runner.StartOptions`; one that is None or empty is left to the server.

    Args:
        notebook: The path of a notebook file where the task runs. A relative path is relative to the folder
            of the DAG's file. Without this, `server_path` and `notebook_uri`, the server runs its default
            notebook.
        parameters: Values for the notebook's parameters, by name.
        notebook_runner_conn_id: The id of the connection, of type `notebook_runner`.
        deferrable: Whether the task waits in the triggerer, where it holds no worker slot.
        reconnect_timeout: How long to try to reconnect to the server during the run, in seconds.
        server_path: Path of a notebook under the server's notebook root, instead of `notebook`.
        notebook_uri: URI that the server reads the notebook from, instead of `notebook`.
        output_uri: URI that the server writes the executed notebook to.
        kernel_name: Kernelspec on the server.
        run_timeout: Maximum duration of the run, in seconds.
        cell_timeout: Maximum duration of a cell, in seconds.
        output_timeout: Maximum time a cell may go without output, in seconds.
        allow_errors: Continue after a cell that raises an exception.
        environment: Environment variables of the kernel, by name.
        memory_limit: Maximum memory of all processes of the run, in bytes.
        labels: Labels of the run, besides those that name the DAG, its run, the task and its try.
        files: Files and folders to send with the notebook; paths are relative as for `notebook`.
        retention: How long to keep the run's history and results, in seconds.
        priority: The order among one's own queued runs, from -100 to 100.
        **kwargs: Arguments of every operator.
    """

    template_fields: Sequence[str] = (
        "notebook",
        "parameters",
        "notebook_runner_conn_id",
        "server_path",
        "notebook_uri",
        "output_uri",
        "kernel_name",
        "environment",
        "labels",
        "files",
    )
    template_fields_renderers = {"parameters": "json", "environment": "json", "labels": "json"}  # noqa: RUF012 - as in Airflow
    ui_color = "#fde6d0"

    def __init__(
        self,
        *,
        notebook: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        notebook_runner_conn_id: str = NotebookRunnerHook.default_conn_name,
        deferrable: bool = True,
        reconnect_timeout: float = 600.0,
        server_path: str | None = None,
        notebook_uri: str | None = None,
        output_uri: str | None = None,
        kernel_name: str | None = None,
        run_timeout: float | None = None,
        cell_timeout: float | None = None,
        output_timeout: float | None = None,
        allow_errors: bool = False,
        environment: Mapping[str, str] | None = None,
        memory_limit: int | None = None,
        labels: Mapping[str, str] | None = None,
        files: Sequence[str] = (),
        retention: float | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.notebook = notebook
        self.parameters = parameters
        self.notebook_runner_conn_id = notebook_runner_conn_id
        self.deferrable = deferrable
        self.reconnect_timeout = reconnect_timeout
        self.server_path = server_path
        self.notebook_uri = notebook_uri
        self.output_uri = output_uri
        self.kernel_name = kernel_name
        self.run_timeout = run_timeout
        self.cell_timeout = cell_timeout
        self.output_timeout = output_timeout
        self.allow_errors = allow_errors
        self.environment = environment
        self.memory_limit = memory_limit
        self.labels = labels
        self.files = files
        self.retention = retention
        self.priority = priority
        self._hook: NotebookRunnerHook | None = None
        self._run_id = ""
        self._has_killed = False

    @property
    def hook(self) -> NotebookRunnerHook:
        """The hook of the connection."""
        if self._hook is None:
            self._hook = NotebookRunnerHook(self.notebook_runner_conn_id)
        return self._hook

    def execute(self, context: Context) -> dict[str, Any]:
        """Start a run, follow it, and return its result values; or defer the task until the run has ended.

        Raises:
            AirflowFailException: The server refuses the run, or somebody killed the run on the server.
            AirflowException: The run did not succeed for another reason, or the server cannot be reached.
            TaskDeferred: The task waits in the triggerer.
        """
        limit = self.execution_timeout
        return self._execute(context, time.time() + limit.total_seconds() if limit else None)

    def try_again(self, context: Context, event: Any, end: float | None) -> dict[str, Any]:  # noqa: ARG002 - Airflow's signature
        """Continue `execute` after the server was busy, until a time in seconds since the epoch."""
        return self._execute(context, end)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - Airflow's signature
        """Return the result values of the run when the trigger has fired; errors are those of `execute`."""
        with airflow_errors(), self.hook.get_conn() as client:
            run_id = event[_RUN_ID]
            if event["error"]:
                self._kill(client, run_id)
                raise AirflowException(f"Cannot follow run {run_id}: {event['error']}")
            wait = patient(client).wait
            return self._values(wait(run_id, retries=False, reconnect_timeout=self.reconnect_timeout))

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> dict[str, Any]:
        """Continue the task after it was deferred; if the trigger failed or took too long, kill the run."""
        self._run_id = context["task_state_store"].get(_RUN_ID, "")
        try:
            values: dict[str, Any] = super().resume_execution(next_method, next_kwargs, context)
        except AirflowException:
            if next_method == "__fail__":
                self.on_kill()
            raise
        return values

    def on_kill(self) -> None:
        """Kill the run, because the task was stopped while it held a worker slot."""
        if not self._run_id:
            return
        with airflow_errors(), self.hook.get_conn() as client:
            self._kill(client, self._run_id)

    def _execute(self, context: Context, end: float | None) -> dict[str, Any]:
        ti = context["ti"]
        with airflow_errors(), self.hook.get_conn() as client:
            options = self._options(ti)
            self._kill_earlier(client, context["task_state_store"].get(_RUN_ID), options["request_id"])
            run = self._start(client, options, end)
            self._run_id = run.id
            context["task_state_store"].set(_RUN_ID, run.id)
            ti.xcom_push(key=_RUN_ID, value=run.id)
            self.log.info("Run %s on %s", run.id, client.target)
            if self.deferrable:
                trigger = NotebookRunnerTrigger(self.notebook_runner_conn_id, run.id, self.reconnect_timeout)
                self.defer(trigger=trigger, method_name="execute_complete", timeout=_left(end))
            error = ""
            try:
                log = TaskLog(self.log)
                for event in run.progress(reconnect_timeout=self.reconnect_timeout):
                    log.add(event)
            except NotebookRunnerError as failed:
                error = str(failed)
        return self.execute_complete(context, {_RUN_ID: run.id, "error": error})

    def _start(self, client: Client, options: dict[str, Any], end: float | None) -> Run:
        """Start the run, as soon as the server has a place for it."""
        notebook = self._path(self.notebook) if self.notebook else None
        while True:
            try:
                return client.start(notebook, **options)
            except RunnerBusy as busy:
                seconds = busy.retry_after or _RETRY_SECONDS
                self.log.info("%s. Trying again in %.0f s.", busy, seconds)
                if self.deferrable:
                    _left(end)
                    pause = TimeDeltaTrigger(timedelta(seconds=seconds))
                    self.defer(trigger=pause, method_name="try_again", kwargs={"end": end})
                time.sleep(seconds)

    def _options(self, ti: Any) -> dict[str, Any]:
        given = {
            "server_path": self.server_path,
            "notebook_uri": self.notebook_uri,
            "output_uri": self.output_uri,
            "parameters": self.parameters,
            "kernel_name": self.kernel_name,
            "run_timeout": self.run_timeout,
            "cell_timeout": self.cell_timeout,
            "output_timeout": self.output_timeout,
            "allow_errors": self.allow_errors,
            "environment": self.environment,
            "memory_limit": self.memory_limit,
            "files": [self._path(one) for one in self.files],
            "retention": self.retention,
            "priority": self.priority,
        }
        names = {"dag": ti.dag_id, "run": ti.run_id, "task": ti.task_id, "try": ti.try_number}
        if ti.map_index is not None and ti.map_index >= 0:
            names["map_index"] = ti.map_index
        labels = {f"airflow_{name}": str(value)[:_LONGEST_LABEL] for name, value in names.items()}
        return {
            **{name: value for name, value in given.items() if value},
            "labels": {**labels, **(self.labels or {})},
            "request_id": _request_id(ti),
        }

    def _path(self, path: str) -> Path:
        return Path(self.dag.fileloc).parent / path

    def _kill_earlier(self, client: Client, run_id: str | None, request_id: str) -> None:
        """Kill the run of an earlier try that is still active: its worker died, or no triggerer ran."""
        if not run_id:
            return
        with suppress(RunNotFound):
            run = client.get(run_id)
            if not run.is_terminal and run.request_id != request_id:
                self.log.warning("Killing run %s of an earlier try.", run_id)
                run.kill()

    def _kill(self, client: Client, run_id: str) -> None:
        self._has_killed = True
        self.log.warning("Killing run %s.", run_id)
        try:
            # The end of its processes takes longer than Airflow may wait, and is certain.
            client.kill(run_id, wait=False)
        except NotebookRunnerError as error:
            self.log.error("Cannot kill run %s, which may continue on the server: %s", run_id, error)  # noqa: TRY400 - the message says it

    def _values(self, run: Run) -> dict[str, Any]:
        """Return the result values of a run.

        Raises:
            AirflowFailException: Somebody killed the run on the server, which a retry would undo.
            AirflowException: The run did not succeed for another reason.
        """
        if not run.ok:
            if run.failure and run.failure.traceback:
                self.log.error("%s", run.failure.traceback)
            # A worker that is shut down kills its runs as well, and another worker may try again.
            is_unwanted = run.state is RunState.KILLED and not self._has_killed
            raise (AirflowFailException if is_unwanted else AirflowException)(str(RunFailed(run)))
        if run.output_error:
            raise AirflowException(
                f"Run {run.id} succeeded, but its output was not written: {run.output_error}"
            )
        return run.values


def _request_id(ti: Any) -> str:
    """Return the id that makes the start of a run safe to repeat within one try of a task.

    The id of the task instance, which is new for each try, tells apart two DAG runs of the same name.
    """
    names = "\n".join([ti.dag_id, ti.run_id, ti.task_id, str(ti.map_index), str(ti.try_number), str(ti.id)])
    return f"airflow-{hashlib.sha256(names.encode()).hexdigest()}"


def _left(end: float | None) -> timedelta | None:
    """Return the time that the task has left.

    Raises:
        AirflowTaskTimeout: It has none.
    """
    if end is None:
        return None
    if (left := end - time.time()) <= 0:
        raise AirflowTaskTimeout("The task exceeded its execution_timeout while the server was busy.")
    return timedelta(seconds=left)
