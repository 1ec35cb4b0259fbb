"""jupyter-cache's executor, as its users start it: the command `jcache`, and a book that reads the cache."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from notebook_runner import Client, RunState
from tests.client.test_cli_papermill import KERNEL
from tests.support.hosts import SECONDS, Host
from tests.support.notebooks import code, markdown, normalised, notebook
from tests.support.polling import pause
from tests.support.server import Server

HOST = "jupyter-cache"
# Adds notebooks to a project with an asset each, executes them, and prints what became of them.
PROGRAM = """
import json, os, sys
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
names, executor, options = json.loads(sys.argv[1])
cache = get_cache("cache")
for name in names:
    cache.add_nb_to_project(name, assets=[os.path.abspath("data/sales.csv")])
done = load_executor(executor, cache).run_and_cache(**options)
records = {record.uri.rpartition("/")[2]: record.traceback for record in cache.list_project_records()}
strip = lambda uris: sorted(uri.rpartition("/")[2] for uri in uris)
print(json.dumps([strip(done.succeeded), strip(done.excepted), strip(done.errored), records]))
"""
NOTEBOOKS: dict[str, list[str | NotebookNode]] = {
    "reads.ipynb": [markdown("# Sales"), "print(open('data/sales.csv').read())", "1 + 1"],
    "raises.ipynb": ["print('so far')", "1/0"],
    "may_raise.ipynb": [code("1/0", "raises-exception")],
}


def write(path: Path, **notebooks: list[Any]) -> None:
    """Writes notebooks, and the file that they read."""
    (path / "data").mkdir()
    (path / "data" / "sales.csv").write_text("a,b\n")
    for name, cells in notebooks.items():
        node = notebook(*cells, **KERNEL)
        for place, cell in enumerate(node.cells):
            cell["id"] = f"cell-{place}"
        nbformat.write(node, path / f"{name}.ipynb")


def project(
    host: Host, target: str, path: Path, *names: str, executor: str = "notebook-runner", **options: Any
) -> Any:
    """Executes notebooks as a project, and returns which succeeded, excepted and errored."""
    argument = json.dumps([names, executor, options])
    done = host.run("python", "-c", PROGRAM, argument, cwd=path, target=target)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def merged(host: Host, path: Path, name: str) -> dict[str, Any]:
    """A notebook with the outputs of the cache, as jupyter-cache merges it."""
    done = host.run("jcache", "notebook", "-p", "cache", "merge", name, "merged.ipynb", cwd=path)
    assert done.returncode == 0, done.stderr + done.stdout
    return normalised(nbformat.read(path / "merged.ipynb", as_version=4))


def test_the_same_as_its_own_executor(host: Host, server: Server, tmp_path: Path) -> None:
    """The same notebooks are cached, the same fail, and the outputs are the same."""
    results = []
    for executor, target in (("temp-serial", ""), ("notebook-runner", server.target)):
        path = tmp_path / executor
        path.mkdir()
        write(path, **{name.removesuffix(".ipynb"): cells for name, cells in NOTEBOOKS.items()})
        *lists, traces = project(host, target, path, *NOTEBOOKS, executor=executor)
        assert lists == [["may_raise.ipynb", "reads.ipynb"], ["raises.ipynb"], []]
        assert [name for name, trace in traces.items() if trace] == ["raises.ipynb"]
        assert "ZeroDivisionError" in traces["raises.ipynb"]
        results.append([merged(host, path, name) for name in ("reads.ipynb", "may_raise.ipynb")])
    assert results[0] == results[1]


def test_the_command_and_a_book(host: Host, server: Server, tmp_path: Path) -> None:
    """`jcache` fills the cache of a book, and MyST-NB builds it from there, without a kernel of its own."""
    write(tmp_path, page=["print(40 + 2)"])
    (tmp_path / "conf.py").write_text(
        "extensions = ['myst_nb']\nnb_execution_mode = 'cache'\nnb_execution_cache_path = 'cache'\n"
        "nb_execution_raise_on_error = True\nroot_doc = 'page'\nexclude_patterns = ['cache']\n"
    )
    for command in (["notebook", "-p", "cache", "add", "page.ipynb"], ["project", "-p", "cache", "execute"]):
        executor = ["--executor", "notebook-runner"] * (command[0] == "project")
        done = host.run("jcache", *command, *executor, cwd=tmp_path, target=server.target, typed="y\n")
        assert done.returncode == 0, done.stdout + done.stderr
    built = host.run("sphinx-build", "-W", "-v", ".", "html", cwd=tmp_path, JUPYTER_PATH=str(tmp_path))
    assert built.returncode == 0, built.stderr
    assert "Using cached notebook" in built.stdout
    assert "42" in (tmp_path / "html" / "page.html").read_text()


def test_limits(host: Host, server: Server, tmp_path: Path) -> None:
    """The time-out of a cell is jupyter-cache's, or the notebook's own; and errors may be allowed."""
    forever = ["import threading; _ = threading.Event().wait()"]
    write(tmp_path, slow=forever, raises=["1/0", "2"])
    limits: dict[str, Any] = {"timeout": 5, "allow_errors": True}
    *lists, traces = project(host, server.target, tmp_path, "slow.ipynb", "raises.ipynb", **limits)
    assert lists == [["raises.ipynb"], ["slow.ipynb"], []]
    assert "timed out" in traces["slow.ipynb"]


def test_what_is_no_failure_of_a_notebook(host: Host, server: Server, tmp_path: Path) -> None:
    """A dead kernel, and a server that cannot be reached, are errors; nothing is cached."""
    write(tmp_path, dies=["import os; os._exit(7)"])
    assert project(host, server.target, tmp_path, "dies.ipynb")[:3] == [[], [], ["dies.ipynb"]]
    assert project(host, "127.0.0.1:1", tmp_path, "dies.ipynb")[:3] == [[], [], ["dies.ipynb"]]


def test_ctrl_c_kills_the_runs(host: Host, server: Server, tmp_path: Path) -> None:
    """Neither a run that is executed nor one that is queued is left."""
    forever = ["import threading; _ = threading.Event().wait()"]
    write(tmp_path, one=forever, two=["2", *forever])
    with Client(server.target) as client:
        before = {run.id for run in client.runs()}
        argument = json.dumps([["one.ipynb", "two.ipynb"], "notebook-runner", {"timeout": 0}])
        command = [host.program(), "-c", PROGRAM, argument]
        with subprocess.Popen(command, cwd=tmp_path, env=host.environment(server.target)) as process:
            while not any(run.state is RunState.RUNNING for run in client.runs() if run.id not in before):
                assert process.poll() is None
                pause()
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) != 0
        assert {run.state for run in client.runs() if run.id not in before} == {RunState.KILLED}
