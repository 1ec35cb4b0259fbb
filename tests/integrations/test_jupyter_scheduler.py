"""Jobs of jupyter-scheduler, as JupyterLab makes them: by its dialog, and by the calls of the dialog."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import trustme
from nbformat import NotebookNode

from notebook_runner import Client, Run, RunState
from tests.client.test_cli_papermill import KERNEL
from tests.integrations.lab import OPTIONS, JupyterLab, LabPage, eventually, lab_page
from tests.support.gate import Gate
from tests.support.hosts import Host
from tests.support.killable import KillableServer
from tests.support.notebooks import code, notebook, printed
from tests.support.processes import marked
from tests.support.secure import TlsFolder, issue, new_token
from tests.support.server import Server

HOST = "jupyter-scheduler"
FOREVER = "import threading; _ = threading.Event().wait()"
PARAMETERS = code("region = 'north'\ndays = 30", "parameters")


@pytest.fixture(scope="module")
def lab(host: Host, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterLab]:
    """A JupyterLab whose jobs the server executes."""
    with JupyterLab(host, tmp_path_factory.mktemp("lab"), server.target) as started:
        yield started


@pytest.fixture(scope="module")
def page(lab: JupyterLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabPage]:
    """That JupyterLab in a browser."""
    with lab_page(lab, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of that server."""
    with Client(server.target) as connected:
        yield connected


def write(lab: JupyterLab, name: str, *cells: str | NotebookNode) -> str:
    """Writes a notebook for the kernel `python3`, and returns its path as JupyterLab names it."""
    path = lab.root / name
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook(*cells, **KERNEL), path)
    return name


def output(folder: Path, suffix: str = "ipynb") -> Path:
    """The output of a job in a format; its name has the time."""
    (found,) = folder.glob(f"*-[AP]M.{suffix}")
    return found


def executed(folder: Path) -> NotebookNode:
    """The executed notebook of a job."""
    node: NotebookNode = nbformat.read(output(folder), as_version=4)
    return node


def runs_of(client: Client, job_id: str) -> list[Run]:
    """The runs of a job."""
    return list(client.runs(label={"jupyter-scheduler-job": job_id}))


def running(client: Client, job_id: str) -> Run:
    """The run of a job, once its first cell is being executed."""
    return eventually(lambda: [run for run in runs_of(client, job_id) if run.current_cell is not None])[0]


def test_a_job_of_the_dialog(lab: JupyterLab, page: LabPage, gate: Gate) -> None:
    """The dialog makes the job, the list shows its states, and the outputs open in JupyterLab."""
    write(lab, "dialog.ipynb", PARAMETERS, gate.source, "print('sum:', days + 1, region)")
    page.open_dialog("dialog.ipynb")
    page.create(days="41", region="'south'")
    page.until("dialog", "In progress")
    gate.open()
    page.until("dialog", "Completed")
    assert "sum: 42 south" in page.open_output("dialog", "HTML")


def test_stop_in_the_list(lab: JupyterLab, page: LabPage, client: Client) -> None:
    """Stop kills the run, and the list shows the job as stopped."""
    write(lab, "endless.ipynb", FOREVER)
    page.open_dialog("endless.ipynb")
    page.create()
    page.until("endless", "In progress")
    page.stop("endless")
    page.until("endless", "Stopped")
    (run,) = [run for run in client.runs() if run.name == "endless"]
    assert run.state is RunState.KILLED


def test_a_failure_in_the_details(lab: JupyterLab, page: LabPage) -> None:
    """The details of a failed job say why."""
    write(lab, "wrong.ipynb", "1/0")
    page.open_dialog("wrong.ipynb")
    page.create()
    page.until("wrong", "Failed")
    assert "ZeroDivisionError: division by zero" in page.detail("wrong")


def test_formats_parameters_and_files(lab: JupyterLab) -> None:
    """The outputs, the folder of the notebook and what the run adds to it arrive in JupyterLab's folder."""
    reads = "from lib.helper import double\nprint(open('sales.csv').read(), double(days), region)"
    writes = "open('made/result.txt', 'w').write('new')\nopen('sales.csv', 'a').write('c')"
    name = write(lab, "sales/report.ipynb", PARAMETERS, reads, "import os; os.mkdir('made')", writes)
    (lab.root / "sales" / "lib").mkdir()
    (lab.root / "sales" / "lib" / "helper.py").write_text("def double(n):\n    return 2 * n\n")
    (lab.root / "sales" / "sales.csv").write_text("a,b")
    job_id = lab.create(
        name,
        name="Sales of the month",
        output_formats=["ipynb", "html"],
        parameters={"days": "7", "region": "'south'"},
        package_input_folder=True,
    )
    job = lab.until(job_id, "COMPLETED")
    assert job["status_message"] is None
    assert job["create_time"] <= job["end_time"] >= job["start_time"] > 0
    folder = lab.download(job_id)
    assert printed(executed(folder), 2) == "a,b 14 south\n"
    assert "a,b 14 south" in output(folder, "html").read_text()
    assert (folder / "made" / "result.txt").read_text() == "new"
    assert (folder / "sales.csv").read_text() == "a,bc"
    assert (folder / "lib" / "helper.py").exists()
    assert (folder / "report.ipynb").read_bytes() == (lab.root / name).read_bytes()


def test_without_the_folder(lab: JupyterLab, client: Client) -> None:
    """Only the notebook is sent, and nothing but the outputs comes back; the run has the name of the job."""
    name = write(lab, "alone/report.ipynb", "import os; print(os.listdir())", "open('made', 'w').close()")
    (lab.root / "alone" / "sales.csv").touch()
    job_id = lab.create(name, name="Alone")
    assert lab.until(job_id, "COMPLETED")["packaged_files"] == []
    folder = lab.download(job_id)
    assert printed(executed(folder), 0) == "[]\n"
    assert sorted(path.name for path in folder.iterdir()) == sorted([output(folder).name, "report.ipynb"])
    assert [run.name for run in runs_of(client, job_id)] == ["Alone"]


def test_a_failed_run_keeps_its_outputs(lab: JupyterLab) -> None:
    """The job fails with the exception as its message, and has each format."""
    name = write(lab, "fails.ipynb", "print('so far')", "1/0", "print('never')")
    job_id = lab.create(name, output_formats=["ipynb", "html"])
    job = lab.until(job_id, "FAILED")
    assert "failed in cell 2 of 3: ZeroDivisionError: division by zero" in job["status_message"]
    folder = lab.download(job_id)
    node = executed(folder)
    assert printed(node, 0) == "so far\n"
    assert node.cells[1].outputs[0].ename == "ZeroDivisionError"
    assert "ZeroDivisionError" in output(folder, "html").read_text()


def test_a_dead_kernel_fails_the_job(lab: JupyterLab) -> None:
    """The exit code is in its message, and the outputs so far."""
    job_id = lab.create(write(lab, "dies.ipynb", "print('so far')", "import os; os._exit(7)"))
    assert "exited with code 7" in lab.until(job_id, "FAILED")["status_message"]
    assert printed(executed(lab.download(job_id)), 0) == "so far\n"


def test_stop_kills_every_process(lab: JupyterLab, client: Client, server: Server, gate: Gate) -> None:
    """When Stop returns, the job has stopped, and no process of the run is left on the server."""
    spawns = "import subprocess; subprocess.Popen(['sleep', '987654'], start_new_session=True)"
    job_id = lab.create(write(lab, "stops.ipynb", f"{spawns}\n{gate.source}\n{FOREVER}"))
    running(client, job_id)
    gate.open()
    eventually(lambda: any("987654" in command for command in marked(server.runs_mark).values()))
    lab.stop(job_id)
    assert not any("987654" in command for command in marked(server.runs_mark).values())
    job = lab.job(job_id)
    assert (job["status"], job["status_message"]) == ("STOPPED", None)
    assert [run.state for run in runs_of(client, job_id)] == [RunState.KILLED]
    lab.stop(job_id)  # changes nothing
    assert lab.job(job_id) == job


def test_a_kill_by_others_never_looks_like_success(lab: JupyterLab, client: Client) -> None:
    """Someone else kills the run: the job has stopped, and says which run."""
    job_id = lab.create(write(lab, "killed.ipynb", FOREVER))
    run = running(client, job_id)
    run.kill()
    assert f"run {run.id} killed" in lab.until(job_id, "STOPPED")["status_message"]


def test_delete_kills_the_run(lab: JupyterLab, client: Client) -> None:
    """A deleted job, and a job of a deleted definition, leave no run that goes on."""
    name = write(lab, "deleted.ipynb", FOREVER)
    alone = lab.create(name)
    running(client, alone)
    lab.call("DELETE", f"jobs/{alone}")
    fields = {"name": "d", "input_uri": name, "runtime_environment_name": "python3", "output_formats": []}
    definition = lab.call("POST", "job_definitions", fields)["job_definition_id"]
    jobs = [lab.call("POST", f"job_definitions/{definition}/jobs", {})["job_id"] for _ in range(2)]
    # Each job has its thread in JupyterLab, so either of them may be the first.
    one_waits = {RunState.RUNNING, RunState.QUEUED}
    eventually(lambda: {run.state for job_id in jobs for run in runs_of(client, job_id)} == one_waits)
    lab.call("DELETE", f"job_definitions/{definition}")
    for job_id in (alone, *jobs):
        assert {run.state for run in runs_of(client, job_id)} <= {RunState.KILLED}
        assert "Unexpected error" in lab.refusal("GET", f"jobs/{job_id}")
    assert lab.call("GET", f"jobs?job_definition_id={definition}")["jobs"] == []


def test_jobs_on_a_schedule(lab: JupyterLab) -> None:
    """A definition makes jobs by itself, each with its parameters and its folder."""
    name = write(lab, "nightly/report.ipynb", PARAMETERS, "print(open('sales.csv').read(), days)")
    (lab.root / "nightly" / "sales.csv").write_text("a,b")
    definition = lab.call(
        "POST",
        "job_definitions",
        {
            "name": "nightly",
            "input_uri": name,
            "runtime_environment_name": "python3",
            "output_formats": ["ipynb"],
            "parameters": {"days": "7"},
            "package_input_folder": True,
            "schedule": "* * * * * *",  # every second
        },
    )["job_definition_id"]
    jobs = eventually(lambda: lab.call("GET", f"jobs?job_definition_id={definition}")["jobs"])
    lab.call("PATCH", f"job_definitions/{definition}", {"active": False})
    lab.until(jobs[0]["job_id"], "COMPLETED")
    assert printed(executed(lab.download(jobs[0]["job_id"])), 2) == "a,b 7\n"


def test_what_is_refused_at_once(lab: JupyterLab) -> None:
    """A notebook that is missing or names no kernel makes no job, nor does a token that there is already."""
    before = lab.call("GET", "jobs")["total_count"]
    assert "'missing.ipynb' does not exist" in lab.refusal("POST", "jobs", fields("missing.ipynb"))
    nbformat.write(notebook("1"), lab.root / "plain.ipynb")
    assert "plain.ipynb names no kernel. Open it" in lab.refusal("POST", "jobs", fields("plain.ipynb"))
    assert lab.call("GET", "jobs")["total_count"] == before
    name = write(lab, "once.ipynb", "1")
    lab.until(lab.create(name, idempotency_token="once"), "COMPLETED")  # noqa: S106 - no secret
    repeated = {**fields(name), "idempotency_token": "once"}
    assert "'once' already exists" in lab.refusal("POST", "jobs", repeated)


def fields(notebook_path: str) -> dict[str, str]:
    """The fewest fields of a job."""
    return {"name": "a", "input_uri": notebook_path, "runtime_environment_name": "python3"}


def test_an_output_that_cannot_be_written(lab: JupyterLab) -> None:
    """The server refuses what the run left as too large: the job fails and says so, and has the notebook."""
    name = write(lab, "large/report.ipynb", "print('here')", "open('large', 'wb').truncate(2**30)")
    (lab.root / "large" / "sales.csv").touch()
    job_id = lab.create(name, package_input_folder=True)
    job = lab.until(job_id, "FAILED")
    assert "The files of the run cannot be written: EXPORT_FAILED" in job["status_message"]
    assert printed(executed(lab.download(job_id)), 0) == "here\n"


def test_a_restart_of_jupyter_loses_no_job(
    host: Host, server: Server, client: Client, gate: Gate, tmp_path: Path
) -> None:
    """Jobs continue when Jupyter is killed: those that end meanwhile, that run and that wait in the queue."""
    (tmp_path / "lab").mkdir()
    last = Gate(tmp_path, "last")
    with JupyterLab(host, tmp_path / "lab", server.target) as lab:
        ends, runs = f"{gate.source}\nprint('ended meanwhile')", f"{last.source}\nprint('ended after')"
        jobs = []
        for source in (ends, runs, FOREVER, FOREVER):
            jobs.append(lab.create(write(lab, "restarted.ipynb", source)))
            eventually(lambda: lab.job(jobs[-1])["start_time"])
        lab.process.kill()
    gate.open()
    running(client, jobs[1])
    for run in runs_of(client, jobs[3]):
        run.kill()
        run.delete()
    with JupyterLab(host, tmp_path / "lab", server.target) as lab:
        lab.until(jobs[0], "COMPLETED")
        assert printed(executed(lab.download(jobs[0])), 0) == "ended meanwhile\n"
        assert "no longer has the run" in lab.until(jobs[3], "FAILED")["status_message"]
        assert lab.job(jobs[1])["status"] == "IN_PROGRESS"
        last.open()
        lab.until(jobs[1], "COMPLETED")
        assert printed(executed(lab.download(jobs[1])), 0) == "ended after\n"
        running(client, jobs[2])
        lab.stop(jobs[2])
        assert lab.job(jobs[2])["status"] == "STOPPED"
    assert [len(runs_of(client, job_id)) for job_id in jobs] == [1, 1, 1, 0]
    last.close()


def test_options_a_busy_server_and_none(host: Host, tmp_path: Path) -> None:
    """The configuration says where the server is and limits runs; a job waits for a place, or is stopped.

    Without the server, Stop says so and the job continues; a new job fails.
    """
    authority = trustme.CA()
    (tmp_path / "tls").mkdir()
    files = TlsFolder(tmp_path / "tls", issue(authority))
    authority.cert_pem.write_to_path(tmp_path / "ca")
    (tmp_path / "token").write_text(new_token(tmp_path / "tokens"))
    options = ["--queue", "0", "--tokens-file", str(tmp_path / "tokens"), *files.options]
    ca, token = str(tmp_path / "ca"), str(tmp_path / "token")
    (tmp_path / "lab").mkdir()
    with KillableServer(tmp_path / "state", *options) as server:
        more = f"\nc.NotebookRunnerScheduler.options |= {{'tls_ca': {ca!r}, 'output_timeout': 15}}"
        configuration = OPTIONS.replace("127.0.0.1:50051", server.target) + more
        configuration = configuration.replace("/run/secrets/notebook-runner-token", token)
        with (
            JupyterLab(host, tmp_path / "lab", "127.0.0.1:1", configuration) as lab,
            Client(server.target, tls_ca=ca, token_file=token) as client,
        ):
            end = tmp_path / "end"
            prints = "import pathlib, threading\n"
            prints += f"while not pathlib.Path({str(end)!r}).exists():\n"
            prints += "    print('here')\n    threading.Event().wait(0.2)"
            first = lab.create(write(lab, "prints.ipynb", prints))
            running(client, first)
            silent = write(lab, "silent.ipynb", FOREVER)
            stopped, later = lab.create(silent), lab.create(silent)
            for job_id in (stopped, later):
                lab.until(job_id, "IN_PROGRESS")
            lab.stop(stopped)
            assert (lab.job(stopped)["status"], runs_of(client, stopped)) == ("STOPPED", [])
            end.touch()
            lab.until(first, "COMPLETED")
            end.unlink()
            assert "timed out" in lab.until(later, "FAILED")["status_message"]
            lost = lab.create("prints.ipynb")
            running(client, lost)
            server.die()
            refusal = lab.refusal("PATCH", f"jobs/{lost}", {"status": "STOPPED"})
            assert f"The job cannot be stopped: UNAVAILABLE: Cannot reach {server.target}" in refusal
            assert lab.job(lost)["status"] == "IN_PROGRESS"
            away = lab.until(lab.create(silent), "FAILED")
            assert f"Cannot reach {server.target}" in away["status_message"]


def test_options_that_do_not_exist(host: Host, tmp_path: Path) -> None:
    """A misspelt option is an error when Jupyter starts, and not of each job."""
    program = (
        "from notebook_runner.integrations.jupyter_scheduler import NotebookRunnerScheduler\n"
        "from jupyter_scheduler.environments import CondaEnvironmentManager\n"
        "from jupyter_scheduler.orm import create_tables\n"
        "create_tables('sqlite:///jobs')\n"
        "options = {'run_timout': 5}\n"
        "NotebookRunnerScheduler('.', CondaEnvironmentManager(), 'sqlite:///jobs', options=options)"
    )
    done = host.run("python", "-c", program, cwd=tmp_path)
    assert "TypeError: Unknown option 'run_timout'. Did you mean run_timeout?" in done.stderr
