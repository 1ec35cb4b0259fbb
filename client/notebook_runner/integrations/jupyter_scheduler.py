"""The scheduler of JupyterLab's notebook jobs: a server executes them, and Stop kills their runs.

One line of JupyterLab's configuration puts it in the place of jupyter-scheduler's own::

    c.SchedulerApp.scheduler_class = "notebook_runner.integrations.jupyter_scheduler.NotebookRunnerScheduler"
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zipfile import ZipFile

import nbformat
from jupyter_scheduler.exceptions import IdempotencyTokenError, InputUriError, SchedulerError
from jupyter_scheduler.executors import DefaultExecutionManager
from jupyter_scheduler.models import DescribeJob, Status
from jupyter_scheduler.orm import Job
from jupyter_scheduler.parameterize import add_parameters
from jupyter_scheduler.scheduler import Scheduler
from jupyter_scheduler.utils import get_utc_timestamp
from traitlets import Dict
from traitlets import Type as Class
from traitlets.log import get_logger

from notebook_runner import Client, NotebookRunnerError, RpcFailed, RunFailed, RunState, Unavailable
from notebook_runner._requests import StartOptions, start_request
from notebook_runner._waiting import is_temporary

from ._start import split_options, start_when_free

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from jupyter_scheduler.models import CreateJob

    from notebook_runner import Run

__all__ = ["NotebookRunnerExecutionManager", "NotebookRunnerScheduler"]

_LABEL = "jupyter-scheduler-job"
# The runs that a Kill can end.
_ACTIVE = (RunState.QUEUED, RunState.STARTING, RunState.RUNNING, RunState.KILLING)
# Jobs run unattended, and a server that is updated comes back.
_RECONNECT_SECONDS = 600.0
_RETRY_SECONDS = 2.0
# The column of the database has no more.
_MAX_MESSAGE = 1024


class _StoppedError(SchedulerError):  # type: ignore[misc] # jupyter-scheduler has no types
    """The job was stopped, or its run was killed."""


class NotebookRunnerExecutionManager(DefaultExecutionManager):  # type: ignore[misc] # as above
    """Executes one job as a run of a server.

    The run has the job's id as its `request_id` and as its label `jupyter-scheduler-job`, so that another
    manager of the same job continues with it.

    Args:
        job_id: The job.
        root_dir: The root folder of the Jupyter server.
        db_url: The database of jobs.
        staging_paths: The files of the job, by format; `input` is the notebook.
        options: Arguments of `notebook_runner.Client` that say where the server is, and `StartOptions`.
    """

    def __init__(
        self,
        job_id: str,
        root_dir: str,
        db_url: str,
        staging_paths: dict[str, str],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(job_id, root_dir, db_url, staging_paths)
        self._connection, self._options = split_options(options or {})
        self._input = Path(staging_paths["input"])
        self._run: Run | None = None
        self._stopped = threading.Event()
        # Held while a run is started, so that `stop` misses none.
        self._starting = threading.Lock()

    def execute(self) -> None:
        """Start the run or find it, wait until it ends, and write its results to the staging folder.

        Raises:
            SchedulerError: The run did not succeed, or a result cannot be written.
            NotebookRunnerError: A call to the server failed.
        """
        with Client(**self._connection) as client:
            run = self._run = self._find(client) or self._start(client)
            get_logger().info("Job %s: run %s on %s", self.job_id, run.id, client.target)
            self._update(start_time=_milliseconds(run.created))
            try:
                run = self._run = run.wait(reconnect_timeout=_RECONNECT_SECONDS)
            except NotebookRunnerError as error:
                raise SchedulerError(f"{error}\nRun {run.id} may continue on the server.") from error
            # JupyterLab offers no outputs of a stopped job, and exports would delay its Stop.
            problems = [] if run.state is RunState.KILLED else list(self._collect(run))
        if not run.ok:
            problems.insert(0, str(RunFailed(run)))
        if problems:
            kind = _StoppedError if run.state is RunState.KILLED else SchedulerError
            raise kind("\n".join(problems))

    def stop(self) -> None:
        """Kill the run, and return when its processes are gone. A run that is not started yet never will be.

        Raises:
            NotebookRunnerError: A call to the server failed. The run continues.
        """
        self._stopped.set()
        try:
            with self._starting, Client(**self._connection) as client:
                # All attempts of a run that the server repeats have the label.
                for run in client.runs(state=_ACTIVE, label={_LABEL: self.job_id}):
                    run.kill()
        except NotebookRunnerError:
            self._stopped.clear()
            raise

    def before_start(self) -> None:
        """Record that the job is in progress. `start_time` remains empty until its run exists."""
        self._update(status=Status.IN_PROGRESS)

    def on_failure(self, e: Exception) -> None:
        """Record why the job did not succeed."""
        get_logger().warning("Job %s: %s", self.job_id, e)
        if not isinstance(e, _StoppedError):
            self._end(Status.FAILED, str(e))
        elif self._stopped.is_set():
            self._end(Status.STOPPED)  # JupyterLab shows a message as an error
        else:
            self._end(Status.STOPPED, str(e))

    def on_complete(self) -> None:
        """Record that the job has succeeded."""
        self._end(Status.COMPLETED)

    def _find(self, client: Client) -> Run | None:
        """Return the run of a job that Jupyter followed before it was restarted; the last attempt first."""
        had_run = self.model.start_time is not None
        end = time.monotonic() + (_RECONNECT_SECONDS if had_run else 0)
        while True:
            try:
                found = next(client.runs(label={_LABEL: self.job_id}), None)
                break
            except Unavailable:
                if time.monotonic() > end:
                    raise
            time.sleep(_RETRY_SECONDS)
        if found is None and had_run:
            raise SchedulerError(
                f"{client.target} no longer has the run of this job. It was deleted, or Jupyter now uses "
                "another server. Create the job again."
            )
        return found

    def _start(self, client: Client) -> Run:
        job, options = self.model, self._options
        options = {
            "name": job.name[:128],
            **options,
            "files": [*self._files(), *options.get("files", ())],
            "labels": {**options.get("labels", {}), _LABEL: self.job_id},
            "request_id": self.job_id,
        }
        notebook = self._input.read_bytes()
        if job.parameters:
            notebook = add_parameters(nbformat.reads(notebook.decode(), as_version=4), job.parameters)
        with self._starting:
            if not self._stopped.is_set():
                try:
                    return start_when_free(client, notebook, options, self._stopped)
                except RpcFailed as error:
                    if not (is_temporary(error) and self._stopped.is_set()):
                        raise
            raise _StoppedError("The job was stopped before its run started.")

    def _files(self) -> list[Path]:
        """Return the copies of what was in the folder of the notebook."""
        names = self.model.packaged_files if self.model.package_input_folder else None
        return sorted({self._input.parent / Path(name).parts[0] for name in names or []})

    def _collect(self, run: Run) -> Iterator[str]:
        """Write the results that the job asks for, and yield why one cannot be written."""
        formats = self.model.output_formats or []
        # Another Jupyter server with the same database may follow the run as well, and write the same files.
        with tempfile.TemporaryDirectory(dir=self._input.parent) as folder:
            for name in formats:
                target = Path(self.staging_paths[name])
                try:
                    run.save(Path(folder) / target.name)
                    (Path(folder) / target.name).replace(target)
                except (NotebookRunnerError, OSError, ValueError) as error:
                    yield f"The output {name} cannot be written: {error}"
            if self.model.package_input_folder:
                try:
                    run.save(Path(folder) / "files.zip")
                    self._unpack(Path(folder) / "files.zip")
                except (NotebookRunnerError, OSError) as error:
                    yield f"The files of the run cannot be written: {error}"

    def _unpack(self, archive: Path) -> None:
        """Put the files that the run left beside the notebook, where JupyterLab downloads them from."""
        own = {Path(path).name for path in self.staging_paths.values()}
        with ZipFile(archive) as opened:
            names = {name for name in opened.namelist() if not name.endswith("/") and name not in own}
            opened.extractall(self._input.parent, sorted(names))
        self._update(packaged_files=sorted(names | set(self.model.packaged_files or [])))

    def _end(self, status: Status, message: str = "") -> None:
        run = self._run
        times = {"end_time": _milliseconds(run.ended) if run and run.ended else get_utc_timestamp()}
        if run and run.started:
            times["start_time"] = _milliseconds(run.started)
        self._update(status=status, status_message=message[:_MAX_MESSAGE] or None, **times)

    def _update(self, **columns: Any) -> None:
        with self.db_session() as session:
            session.query(Job).filter(Job.job_id == self.job_id).update(columns)
            session.commit()


@dataclass(frozen=True)
class _FollowedJob:
    """A job that has not ended, and the thread that follows its run."""

    manager: NotebookRunnerExecutionManager
    thread: threading.Thread


class NotebookRunnerScheduler(Scheduler):  # type: ignore[misc] # jupyter-scheduler has no types
    """Executes jobs on a server, and kills the run of a job that is stopped or deleted.

    A thread follows each run. A run continues when Jupyter stops; after a restart, its job is followed again.
    """

    execution_manager_class = Class(
        NotebookRunnerExecutionManager,
        NotebookRunnerExecutionManager,
        config=True,
        help="The class that executes one job.",
    )
    options = Dict(
        config=True,
        help="Arguments of notebook_runner.Client that say where the server is (target, token, token_file, "
        "tls_ca, tls_cert, tls_key), and options of its method start, for all jobs. By default, the "
        "environment variables of the client say where the server is.",
    )

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Follow the jobs that had not ended when Jupyter stopped.

        Raises:
            TypeError: An option is unknown, or its value has a type that cannot be sent.
            ValueError: The value of an option is out of range.
            OSError: A token, certificate or key file cannot be read.
        """
        super().__init__(*arguments, **named)
        connection, options = split_options(self.options)
        start_request(b"", cast("StartOptions", options))
        Client(**connection).close()
        self._followed: dict[str, _FollowedJob] = {}
        with self.db_session() as session:
            # Those with a process are jupyter-scheduler's own, from before this class was configured.
            active = session.query(Job).filter(
                Job.status.in_([Status.CREATED, Status.IN_PROGRESS]), Job.pid.is_(None)
            )
            unfinished = [job.job_id for job in active]
        for job_id in unfinished:
            self._follow(job_id)

    def create_job(self, model: CreateJob) -> str:
        """Store a job with its files, and start its run in the background.

        Raises:
            InputUriError: The notebook does not exist.
            IdempotencyTokenError: There is a job with this token.
            SchedulerError: The notebook names no kernel.
        """
        job_id = self._store(model)
        self._follow(job_id)
        return job_id

    async def stop_job(self, job_id: str) -> None:
        """Kill the run of a job, and return when its processes are gone and the job has stopped.

        Raises:
            SchedulerError: The server cannot be reached, or does not permit it. The job continues.
        """
        await asyncio.to_thread(self._stop, job_id)

    async def delete_job(self, job_id: str) -> None:
        """Stop a job, and delete it with its files. The server keeps the run until its retention ends.

        Raises:
            SchedulerError: As for `stop_job`. The job remains.
        """
        await self.stop_job(job_id)
        super().delete_job(job_id)

    async def delete_job_definition(self, job_definition_id: str) -> None:
        """Delete a job definition, and stop and delete its jobs.

        Raises:
            SchedulerError: As for `stop_job`. The definition remains.
        """
        # jupyter-scheduler's own method would not await the deletions. It finds no jobs then.
        while jobs := self._jobs_of(job_definition_id):
            await self.delete_job(jobs[0])
        super().delete_job_definition(job_definition_id)

    def _store(self, model: CreateJob) -> str:
        if not model.job_definition_id and not self.file_exists(model.input_uri):
            raise InputUriError(model.input_uri)
        manager = self.execution_manager_class
        if not manager.validate(manager, str(Path(self.root_dir, model.input_uri))):
            raise SchedulerError(
                f"{model.input_uri} names no kernel. Open it, select a kernel, save it, and create the job "
                "again."
            )
        with self.db_session() as session:
            token = model.idempotency_token
            if token and session.query(Job).filter(Job.idempotency_token == token).count():
                raise IdempotencyTokenError(token)
            values = model.dict(exclude_none=True, exclude={"input_uri"})
            job = Job(**{"output_formats": [], **values})
            session.add(job)
            session.commit()
            target = self.get_staging_paths(DescribeJob.from_orm(job))["input"]
            if model.package_input_folder:
                copied = self.copy_input_folder(model.input_uri, target)
                job.packaged_files = [name for name in copied if name != model.input_filename]
            else:
                self.copy_input_file(model.input_uri, target)
            # Until its files are complete, a job has jupyter-scheduler's default, and no restart starts it.
            job.status = Status.CREATED
            session.commit()
            stored: str = job.job_id
            return stored

    def _follow(self, job_id: str) -> _FollowedJob:
        manager = self.execution_manager_class(
            job_id=job_id,
            root_dir=self.root_dir,
            db_url=self.db_url,
            staging_paths=self.get_staging_paths(self.get_job(job_id, job_files=False)),
            options=self.options,
        )
        # The run outlives Jupyter, so Jupyter need not wait for the thread.
        thread = threading.Thread(target=self._process, args=[manager], name=f"job {job_id}", daemon=True)
        followed = self._followed[job_id] = _FollowedJob(manager, thread)
        thread.start()
        return followed

    def _process(self, manager: NotebookRunnerExecutionManager) -> None:
        try:
            manager.process()
        finally:
            del self._followed[manager.job_id]

    def _stop(self, job_id: str) -> None:
        followed = self._followed.get(job_id)
        if followed is None:
            if self.get_job(job_id, job_files=False).status not in {Status.CREATED, Status.IN_PROGRESS}:
                return  # it has ended
            # Another Jupyter server with the same database has created it.
            followed = self._follow(job_id)
        try:
            followed.manager.stop()
        except NotebookRunnerError as error:
            raise SchedulerError(f"The job cannot be stopped: {error}") from error
        followed.thread.join()

    def _jobs_of(self, job_definition_id: str) -> list[str]:
        with self.db_session() as session:
            jobs = session.query(Job).filter(Job.job_definition_id == job_definition_id)
            return [job.job_id for job in jobs]


def _milliseconds(when: datetime) -> int:
    return int(when.timestamp() * 1000)
