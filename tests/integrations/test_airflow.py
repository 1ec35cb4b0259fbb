"""Airflow's operator, as its users have it: DAGs, and a scheduler, workers and a triggerer that run them."""

import json
import shutil
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
import trustme
from nbformat import NotebookNode

from notebook_runner import Client, Run, RunState
from tests.client.test_cli_papermill import KERNEL
from tests.support.airflow import Airflow, DagRun
from tests.support.cutting_proxy import CuttingProxy
from tests.support.gate import Gate
from tests.support.hosts import REPOSITORY, Host
from tests.support.notebooks import code, notebook
from tests.support.secure import TlsFolder, issue, new_token
from tests.support.server import Server

HOST = "airflow"
EXAMPLE = REPOSITORY / "examples" / "integrations" / "airflow_dag.py"
FOREVER = "import threading; _ = threading.Event().wait()"
GLUE = """
from IPython.display import display
value = {"name": "total", "data": len(region), "encoder": "json", "version": 1}
display({"application/scrapbook.scrap.json+json": value}, raw=True)
"""
REPORT: list[str | NotebookNode] = [code("region = 'south'", "parameters"), "print('sales of', region)", GLUE]
LINES = 50
COUNT = f"for n in range(first, first + {LINES}): print('line', n)"
DAGS = """
    from datetime import timedelta

    from airflow.sdk import DAG
    from notebook_runner.integrations.airflow import NotebookRunnerOperator

    AGAIN = {"retries": 1, "retry_delay": timedelta(0)}

    with DAG("reports", schedule=None):
        NotebookRunnerOperator(
            task_id="in_worker", notebook="report.ipynb", parameters={"region": "west"}, deferrable=False
        )
        NotebookRunnerOperator(task_id="raises", notebook="raises.ipynb", **AGAIN)
        NotebookRunnerOperator(task_id="refused", notebook="report.ipynb", parameters={"area": 1}, **AGAIN)
        NotebookRunnerOperator(
            task_id="too_long", notebook="forever.ipynb", execution_timeout=timedelta(seconds=15)
        )

    with DAG("stopped", schedule=None):
        NotebookRunnerOperator(task_id="deferred", notebook="forever.ipynb")
        NotebookRunnerOperator(task_id="in_worker", notebook="forever.ipynb", deferrable=False)
        NotebookRunnerOperator(task_id="killed", notebook="forever.ipynb", **AGAIN)
        NotebookRunnerOperator(task_id="unseen", notebook="forever.ipynb")

    with DAG("shut_down", schedule=None):
        NotebookRunnerOperator(task_id="in_worker", notebook="forever.ipynb", deferrable=False, **AGAIN)

    with DAG("long", schedule=None):
        NotebookRunnerOperator(
            task_id="counts", notebook="counts.ipynb", notebook_runner_conn_id="proxy"
        )

    with DAG("busy", schedule=None):
        NotebookRunnerOperator(
            task_id="waits", notebook="raises.ipynb", allow_errors=True, notebook_runner_conn_id="small"
        )
"""


class Setup(NamedTuple):
    """An Airflow: one DAG was tested and has run, another is running. And the client of its server."""

    airflow: Airflow
    client: Client
    tested: str
    sales: DagRun
    reports: DagRun
    gate: Gate
    proxy: CuttingProxy


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without a queue."""
    with Server(tmp_path_factory.mktemp("small"), "--queue", "0") as running:
        yield running


@pytest.fixture(scope="module")
def setup(host: Host, small: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """Airflow, started once for all tests, because that takes long."""
    home = tmp_path_factory.mktemp("airflow")
    dags = home / "dags"
    dags.mkdir()
    gate = Gate(home)
    wait = [gate.source, f"first += {LINES}", COUNT]
    notebooks: dict[str, list[str | NotebookNode]] = {
        "report": REPORT,
        "raises": ["print('so far')", "1/0"],
        "forever": ["print('so far')", FOREVER],
        "counts": ["first = 0", COUNT, *wait, *wait, *wait],
    }
    for name, cells in notebooks.items():
        nbformat.write(notebook(*cells, **KERNEL), dags / f"{name}.ipynb")
    (dags / "dags.py").write_text(textwrap.dedent(DAGS))
    shutil.copy(EXAMPLE, dags)
    with ExitStack() as stack:
        options = ["--workers", "6", "--queue", "20", "--drain-timeout", "0"]
        server = stack.enter_context(Server(tmp_path_factory.mktemp("state"), *options))
        client = stack.enter_context(Client(server.target))
        proxy = stack.enter_context(CuttingProxy(server.target))
        targets = {"notebook_runner_default": server.target, "small": small.target, "proxy": proxy.target}
        airflow = Airflow(host, home, **targets)
        tested = airflow.command("dags", "test", "sales", "--conf", '{"region": "west"}')
        stack.enter_context(airflow)
        sales = airflow.trigger("sales", "first", region="far south")
        # One after the other: a starved scheduler fails deferred tasks (apache/airflow#72716).
        sales.wait("add", "success")
        reports = airflow.trigger("reports", "first")
        yield Setup(airflow, client, tested, sales, reports, gate, proxy)
    gate.close()


def run_of(setup: Setup, run: DagRun, task: str, map_index: int = -1) -> Run:
    """The notebook-runner's run of a task's latest try, as it is now."""
    return setup.client.get(run.xcom(task, "notebook_run_id", map_index))


def until_ended(run: Run) -> Run:
    """The run at its end, which the test waits for no longer than for anything else."""
    return run.wait(timeout=240)


def lines(run: DagRun) -> list[int]:
    """The lines that the notebook `counts` has printed, as far as they are in the task log."""
    return [int(line.removeprefix("line ")) for line in run.log("counts") if line.startswith("line ")]


def test_a_dag_without_a_scheduler(setup: Setup) -> None:
    """`airflow dags test` executes a DAG in its own process, with the same log."""
    assert "sales of west" in setup.tested


def test_kills_by_a_person(setup: Setup) -> None:
    """Whoever clears a task or marks it as failed ends its run, in the triggerer as in a worker.

    A run that was killed on the server is not started again by a retry.
    """
    stopped = setup.airflow.trigger("stopped", "first")
    for task in ("deferred", "in_worker", "killed"):
        stopped.wait_for_log(task, "so far")
    assert [stopped.states(task) for task in ("in_worker", "deferred")] == [["running"], ["deferred"]]
    cleared = run_of(setup, stopped, "deferred")
    stopped.clear("deferred")
    assert until_ended(cleared).state is RunState.KILLED
    in_worker = run_of(setup, stopped, "in_worker")
    stopped.mark("in_worker", "failed")
    assert until_ended(in_worker).state is RunState.KILLED
    killed = run_of(setup, stopped, "killed")
    killed.kill()
    stopped.wait("killed", "failed")
    assert run_of(setup, stopped, "killed").id == killed.id
    stopped.wait_for_log("deferred", "so far", 2)
    again = run_of(setup, stopped, "deferred")
    assert again.id != cleared.id
    stopped.mark("deferred", "success")
    assert until_ended(again).state is RunState.KILLED


def test_mapped_parameters_and_values(setup: Setup) -> None:
    """Each element of a mapped task is a run with its parameters, and the next task has the values of all."""
    sales = setup.sales
    sales.wait("add", "success")
    assert sales.states("report") == ["success"] * 3
    assert sales.xcom("add") == len("north" + "east" + "far south")
    log = sales.log("report", sales.tries("report", 2), 2)
    assert "sales of far south" in log
    assert any(line.startswith("Cell 3 of 4: print(") for line in log)
    run = run_of(setup, sales, "report", 2)
    assert run.parameters == {"region": "far south"}
    assert run.labels == {
        "airflow_dag": "sales",
        "airflow_run": "first",
        "airflow_task": "report",
        "airflow_map_index": "2",
        "airflow_try": str(sales.tries("report", 2)),
    }


def test_without_the_triggerer(setup: Setup) -> None:
    """With `deferrable=False`, the worker follows the run, with the same log and values."""
    setup.reports.wait("in_worker", "success")
    assert setup.reports.xcom("in_worker") == {"total": len("west")}
    assert "sales of west" in setup.reports.log("in_worker")


def test_a_worker_that_is_shut_down(setup: Setup) -> None:
    """It kills the run, and the task starts another one on the next worker."""
    shut_down = setup.airflow.trigger("shut_down", "first")
    shut_down.wait_for_log("in_worker", "so far")
    run = run_of(setup, shut_down, "in_worker")
    shut_down.terminate("in_worker")
    assert until_ended(run).state is RunState.KILLED
    shut_down.wait_for_log("in_worker", "so far", 2)
    assert run_of(setup, shut_down, "in_worker").id != run.id
    shut_down.mark("in_worker", "failed")


def test_failures(setup: Setup) -> None:
    """A retry is a new run; what the server refuses is not tried again; the log says why."""
    setup.reports.wait("raises", "failed")
    label = {"airflow_dag": "reports", "airflow_task": "raises"}
    runs = list(setup.client.runs(label=label))
    assert [run.labels["airflow_try"] for run in runs] == ["2", "1"]
    assert {run.state for run in runs} == {RunState.FAILED}
    assert any("ZeroDivisionError: division by zero" in line for line in setup.reports.log("raises", 2))
    setup.reports.wait("refused", "failed")
    assert setup.reports.tries("refused") == 1
    assert "UNKNOWN_PARAMETER" in "\n".join(setup.reports.log("refused"))


def test_execution_timeout(setup: Setup) -> None:
    """A task that exceeds its time kills its run."""
    setup.reports.wait("too_long", "failed")
    assert until_ended(run_of(setup, setup.reports, "too_long")).state is RunState.KILLED


def test_a_restart_of_the_triggerer_kills_nothing(setup: Setup) -> None:
    """The next triggerer continues the log after the saved event, even if the server is not back yet.

    A task that is cleared meanwhile kills the run of its last try itself. A triggerer that comes back late,
    when another one has taken over, kills nothing.
    """
    airflow, gate, proxy = setup.airflow, setup.gate, setup.proxy
    stopped = airflow.trigger("stopped", "second")
    long = airflow.trigger("long", "first")
    seen = list(range(LINES))
    airflow.wait(lambda: lines(long) == seen, "first lines")
    run = run_of(setup, long, "counts")
    airflow.wait(lambda: is_saved(long, run), "position")
    stopped.wait_for_log("unseen", "so far")
    unseen = run_of(setup, stopped, "unseen")
    airflow.stop("triggerer")
    stopped.clear("unseen")
    assert until_ended(unseen).state is RunState.KILLED
    gate.open()
    proxy.is_down = True
    airflow.start("triggerer")
    # Longer than a client waits for a server that it does not know.
    airflow.wait(lambda: proxy.refused >= 8, "attempts to reconnect")
    proxy.is_down = False
    seen += range(LINES, 2 * LINES)
    airflow.wait(lambda: lines(long) == seen, "each line once after a restart")
    # Triggers stand still for so long that Airflow takes the triggerer for dead, and then continue.
    with airflow.frozen("triggerer"):
        airflow.start("triggerer")
        taken = f"Following run {run.id} again"
        airflow.wait(lambda: sum(one.startswith(taken) for one in long.log("counts")) > 1, "the takeover")
    long.wait_for_log("counts", f"Another triggerer follows run {run.id}.")
    assert not run.refresh().is_terminal
    gate.open(2)
    long.wait("counts", "success")
    assert set(lines(long)) == set(range(4 * LINES))
    assert long.tries("counts") == 1


def is_saved(long: DagRun, run: Run) -> bool:
    """Whether the position of the log is that of the run's last event."""
    position = long.xcom("counts", "notebook_run_position")
    return (
        bool(position)
        and position["sequence"] == [event.sequence for event in run.progress(snapshot_only=True)][-1]
    )


def test_a_busy_server(setup: Setup, small: Server) -> None:
    """The task waits until the server has a place for its run."""
    with Client(small.target) as client:
        other = client.start(notebook(FOREVER, **KERNEL))
        busy = setup.airflow.trigger("busy", "first")
        setup.airflow.wait(lambda: any("RUNNER_BUSY" in one for one in busy.log("waits")), "refusal")
        other.kill()
    busy.wait("waits", "success")


def test_the_connection(setup: Setup, make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Address, token and certificates come from the connection, and its form says whether they work."""
    authority = trustme.CA()
    (tmp_path / "tls").mkdir()
    files = TlsFolder(tmp_path / "tls", issue(authority))
    authority.cert_pem.write_to_path(tmp_path / "ca")
    token = new_token(tmp_path / "tokens")
    server = make_server("--tokens-file", str(tmp_path / "tokens"), *files.options)
    name, _, port = server.target.rpartition(":")

    def tested(password: str, **extra: str) -> tuple[bool, str]:
        connection: dict[str, Any] = {
            "connection_id": "guarded",
            "conn_type": "notebook_runner",
            "host": name,
        }
        connection |= {"port": int(port), "password": password, "extra": json.dumps(extra)}
        answer = setup.airflow.call("POST", "/api/v2/connections/test", connection)
        return answer["status"], answer["message"]

    ca = str(tmp_path / "ca")
    assert tested(token, tls_ca=ca)[0]
    for refused, word in (
        (tested("other", tls_ca=ca), "BAD_TOKEN"),
        (tested(token, tls_ca=str(tmp_path / "tokens")), "tls_ca"),
        (tested(token, tls_caa=ca), "unknown extra"),
    ):
        assert not refused[0]
        assert word in refused[1]
    (form,) = [
        one
        for one in setup.airflow.call("GET", "/ui/connections/hook_meta")
        if one["connection_type"] == "notebook_runner"
    ]
    assert sorted(form["extra_fields"]) == ["tls_ca", "tls_cert", "tls_key", "token_file"]
