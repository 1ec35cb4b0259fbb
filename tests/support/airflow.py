"""A real Airflow: its API server, scheduler, DAG processor and triggerer, each a process on this machine."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

from tests.support.hosts import Host
from tests.support.polling import pause
from tests.support.ports import free_port
from tests.support.processes import limit, marked, parent, stopped

# A deadline for what must happen; on an idle machine, most of it takes a few seconds.
SECONDS = 240.0
# Their servers of logs would need fixed ports; on one machine, the API server reads the files.
NO_PORT = ["--skip-serve-logs"]
PARTS = {"api-server": [], "scheduler": NO_PORT, "dag-processor": [], "triggerer": NO_PORT}


class NotFoundError(LookupError):
    """The API server has nothing at this path."""


class Airflow:
    """An Airflow with its own folder, database and port; between `with` and its end, its processes run.

    Args:
        host: Its environment.
        home: Its folder; the DAGs are in `dags` there.
        **targets: The addresses of servers, by the ids of connections.
    """

    def __init__(self, host: Host, home: Path, **targets: str) -> None:
        self._host = host
        self._home = home
        self._mark = uuid4().hex
        self._parts: dict[str, subprocess.Popen[bytes]] = {}
        self._others: list[subprocess.Popen[bytes]] = []
        self._port = free_port()
        url = f"http://127.0.0.1:{self._port}"
        self._token = ""
        options = {
            "CORE__DAGS_FOLDER": str(home / "dags"),
            "CORE__LOAD_EXAMPLES": "False",
            "CORE__EXECUTOR": "LocalExecutor",
            "CORE__PARALLELISM": "4",
            # For a task that Airflow itself has failed (apache/airflow#72716); 5 minutes by default.
            "CORE__DEFAULT_TASK_RETRY_DELAY": "1",
            "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "CORE__TEST_CONNECTION": "Enabled",
            "API__BASE_URL": url,
            "API__PORT": str(self._port),
            "API__HOST": "127.0.0.1",
            "API__SECRET_KEY": "tests",
            "API__WORKERS": "1",
            "API_AUTH__JWT_SECRET": "a secret of the tests, long enough for its algorithm: " + "x" * 32,
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
            "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
            "TRIGGERER__JOB_HEARTBEAT_SEC": "1",
            "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
            "TRIGGERER__RUNNER_HEALTH_CHECK_THRESHOLD": "3",
            "USAGE_DATA_COLLECTION__ENABLED": "False",
        }
        self.environment = {
            **host.environment(""),
            "AIRFLOW_HOME": str(home),
            **{f"AIRFLOW_CONN_{name.upper()}": _connection(target) for name, target in targets.items()},
            **{f"AIRFLOW__{name}": value for name, value in options.items()},
        }
        self.command("db", "migrate")

    def __enter__(self) -> Self:
        for part in PARTS:
            self.start(part)
        try:
            self.wait(self._is_up, "Airflow to answer")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def command(self, *arguments: str) -> str:
        """Runs the command `airflow` to its end, and returns what it printed."""
        done = subprocess.run(
            [self._host.program("airflow"), *arguments],
            env=self.environment,
            cwd=self._home,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, part: str) -> None:
        """Starts one of its processes."""
        with (self._home / f"{part}.log").open("ab") as log:
            self._parts[part] = subprocess.Popen(
                [self._host.program("airflow"), part, *PARTS[part]],
                env=self.environment,
                cwd=self._home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # They overwrite their environment with a title.
        most = resource.getrlimit(resource.RLIMIT_RSS)[1]
        resource.prlimit(self._parts[part].pid, resource.RLIMIT_RSS, (limit(self._mark), most))

    def stop(self, part: str) -> None:
        """Ends one of its processes, as an operator does."""
        process = self._parts.pop(part)
        process.terminate()
        process.wait(SECONDS)

    def terminate(self, title: str) -> None:
        """Sends SIGTERM to the process of this title."""
        (pid,) = [pid for pid, line in marked(self._mark).items() if line.strip() == title]
        os.kill(pid, signal.SIGTERM)

    @contextlib.contextmanager
    def frozen(self, part: str) -> Iterator[None]:
        """Freezes what one of its processes has started, while the block goes on.

        The process itself may hold a lock of the database. Another one may take its place in the block; both
        are there afterwards.
        """
        process = self._parts.pop(part)
        self._others.append(process)
        with contextlib.ExitStack() as stack:
            for pid in marked(self._mark):
                if parent(pid) == process.pid:
                    stack.enter_context(stopped(pid))
            yield

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Calls the API server with JSON, and returns its answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            content = answer.read()
        if answer.status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(path)
        assert answer.status < HTTPStatus.BAD_REQUEST, content.decode()
        return json.loads(content or b"null")

    def trigger(self, dag: str, run: str, **conf: Any) -> "DagRun":
        """Starts a DAG, as soon as the DAG processor has read it."""
        path = f"/api/v2/dags/{dag}"

        def is_known() -> bool:
            with contextlib.suppress(NotFoundError):
                self.call("PATCH", path, {"is_paused": False})
                return True
            return False

        self.wait(is_known, f"DAG {dag}")
        self.call("POST", f"{path}/dagRuns", {"dag_run_id": run, "logical_date": None, "conf": conf})
        return DagRun(self, f"{path}/dagRuns/{quote(run)}")

    def wait(self, is_true: Callable[[], bool], what: str) -> None:
        """Waits until a condition is true."""
        end = time.monotonic() + SECONDS
        while not is_true():
            assert time.monotonic() < end, f"{what}: {self.tail()}"
            for part, process in self._parts.items():
                assert process.poll() is None, f"{part} has ended: {self.tail()}"
            pause()

    def _is_up(self) -> bool:
        with contextlib.suppress(OSError):
            self._token = self.call("GET", "/auth/token")["access_token"]
            return True
        return False

    def tail(self) -> str:
        """The last lines of the logs of its processes, for a failed assertion."""
        texts = [(self._home / f"{part}.log").read_text(errors="replace") for part in PARTS]
        return "\n".join(f"--- {part}\n{text[-3000:]}" for part, text in zip(PARTS, texts, strict=True))

    def _end(self) -> None:
        """Ends its processes, and those that they have started."""
        for pid in marked(self._mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in [*self._parts.values(), *self._others]:
            process.wait()


class DagRun:
    """One run of a DAG, by the REST API.

    Args:
        airflow: The Airflow.
        path: The path of the run in the API.
    """

    def __init__(self, airflow: Airflow, path: str) -> None:
        self._airflow = airflow
        self.path = path

    def states(self, task: str) -> list[str | None]:
        """The states of a task's instances, by map index."""
        return [one["state"] for one in self._instances(task)]

    def tries(self, task: str, map_index: int = -1) -> int:
        """How often a task was tried."""
        (one,) = (one for one in self._instances(task) if one["map_index"] == map_index)
        number: int = one["try_number"]
        return number

    def _read(self, path: str) -> dict[str, Any]:
        """What the API has at a path; nothing, if it is not there yet."""
        try:
            found: dict[str, Any] = self._airflow.call("GET", path)
        except NotFoundError:
            return {}
        return found

    def _instances(self, task: str) -> list[dict[str, Any]]:
        found = self._airflow.call("GET", f"{self.path}/taskInstances?limit=100")["task_instances"]
        return sorted((one for one in found if one["task_id"] == task), key=lambda one: int(one["map_index"]))

    def wait(self, task: str, *states: str) -> None:
        """Waits until a task's instances are in these states, by map index."""
        self._airflow.wait(lambda: self.states(task) == list(states), f"{task} in {states}")

    def xcom(self, task: str, key: str = "return_value", map_index: int = -1) -> Any:
        """A value that a task has left; None if it has not."""
        path = f"{self.path}/taskInstances/{task}/xcomEntries/{key}?map_index={map_index}&deserialize=true"
        return self._read(path).get("value")

    def log(self, task: str, try_number: int = 1, map_index: int = -1) -> list[str]:
        """The lines of the log of a task, as Airflow's page shows them; after each, its exceptions."""
        path = f"{self.path}/taskInstances/{task}/logs/{try_number}?map_index={map_index}&full_content=true"
        texts = []
        for line in self._read(path).get("content", []):
            raised = [f"{one['exc_type']}: {one['exc_value']}" for one in line.get("error_detail") or []]
            texts += [line["event"], *raised]
        return texts

    def wait_for_log(self, task: str, line: str, try_number: int = 1) -> None:
        """Waits until the log of a task has a line."""
        self._airflow.wait(lambda: line in self.log(task, try_number), f"{line!r} in the log of {task}")

    def mark(self, task: str, state: str, map_index: int = -1) -> None:
        """Marks a task, as a person does on the page."""
        path = f"{self.path}/taskInstances/{task}"
        path += f"/{map_index}" if map_index >= 0 else ""
        self._airflow.call("PATCH", path, {"new_state": state})

    def terminate(self, task: str) -> None:
        """Sends SIGTERM to the process that executes a task, as a worker does when it is shut down."""
        (one,) = self._instances(task)
        self._airflow.terminate(f"airflow worker -- {one['id']}")

    def clear(self, task: str) -> None:
        """Clears a task, as a person does on the page, so that it starts again."""
        dag, _, run = self.path.removeprefix("/api/v2/dags/").partition("/dagRuns/")
        body = {"dry_run": False, "dag_run_id": run, "task_ids": [task], "only_failed": False}
        self._airflow.call("POST", f"/api/v2/dags/{dag}/clearTaskInstances", body)


def _connection(target: str) -> str:
    """The value of the variable that makes a connection."""
    host, _, port = target.rpartition(":")
    return json.dumps({"conn_type": "notebook_runner", "host": host, "port": int(port)})
