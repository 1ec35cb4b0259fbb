"""papermill's engine, as papermill's users start it: the command and `execute_notebook`."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
import trustme
from nbformat import NotebookNode

from notebook_runner import Client, RunState
from tests.client.test_cli_papermill import CASES, KERNEL
from tests.support.hosts import REPOSITORY, SECONDS, Host
from tests.support.notebooks import normalised, notebook, printed
from tests.support.polling import pause
from tests.support.public_notebooks import folder as public
from tests.support.secure import TlsFolder, issue, new_token
from tests.support.server import Server

HOST = "papermill"
ENGINE = ["--engine", "notebook-runner"]
FOREVER = "import threading; _ = threading.Event().wait()"
PUBLIC = ("Factorials", "Unicode", "Skip Exceptions with Cell Tags")
# Executes `in.ipynb` to `out.ipynb` in the current folder, with arguments of `execute_notebook` in JSON, and
# prints the classes and the message of what it raises.
PROGRAM = """
import json, sys
import papermill
try:
    options = {"engine_name": "notebook-runner", "progress_bar": False, **json.loads(sys.argv[1])}
    papermill.execute_notebook("in.ipynb", "out.ipynb", **options)
except BaseException as error:
    print(json.dumps([[kind.__name__ for kind in type(error).__mro__], str(error)]))
else:
    print(json.dumps([[], ""]))
"""
# Runs papermill's command in each of these folders with these arguments, and prints the exit codes.
COMMANDS = """
import json, os, sys
from papermill.cli import papermill
def code_of(folder, arguments):
    os.chdir(folder)
    try:
        papermill.main(arguments, standalone_mode=False)
    except SystemExit as error:
        return error.code
    except Exception:
        return 1
    return 0
print(json.dumps([code_of(*one) for one in json.loads(sys.argv[1])]))
"""


class Raised(NamedTuple):
    """What `execute_notebook` raised."""

    kinds: list[str]
    message: str


def write(path: Path, *cells: str | NotebookNode) -> None:
    """Writes a notebook for the kernel `python3`."""
    nbformat.write(notebook(*cells, **KERNEL), path / "in.ipynb")


def executed(path: Path) -> NotebookNode:
    """The notebook that papermill wrote."""
    node: NotebookNode = nbformat.read(path / "out.ipynb", as_version=4)
    return node


def execute(host: Host, server: str, path: Path, **options: Any) -> Raised:
    """Executes `in.ipynb` to `out.ipynb` with papermill's function."""
    done = host.run("python", "-c", PROGRAM, json.dumps(options), cwd=path, target=server)
    return Raised(*json.loads(done.stdout.splitlines()[-1]))


def statuses(node: NotebookNode) -> list[str]:
    """The status of each cell in papermill's metadata, without the cells in which it shows an error."""
    return [cell.metadata.papermill.status for cell in node.cells if "papermill" in cell.metadata]


def without_times(node: NotebookNode) -> dict[str, Any]:
    """All that papermill wrote, without times, and without what names the folder or the random cell ids."""
    for record in [node.metadata.papermill, *(cell.metadata.get("papermill", {}) for cell in node.cells)]:
        for name in ("start_time", "end_time", "duration", "output_path"):
            record.pop(name, None)
    for place, cell in enumerate(node.cells):
        cell["id"] = f"cell-{place}"
    return normalised(node)


def commands(host: Host, server: Server, path: Path, called: list[tuple[Path, list[str]]]) -> list[int]:
    """The exit codes of papermill's command, which is imported once for all."""
    argument = json.dumps([(str(folder), arguments) for folder, arguments in called])
    done = host.run("python", "-c", COMMANDS, argument, cwd=path, target=server.target)
    codes: list[int] = json.loads(done.stdout.splitlines()[-1])
    return codes


@pytest.fixture(scope="module")
def compared(host: Host, server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit code and notebook of papermill's own engine and of this one, for each of eleven notebooks."""
    folders, called = {}, []
    for name in [*CASES, *PUBLIC]:
        folders[name] = tmp_path_factory.mktemp("both")
        if name in CASES:
            write(folders[name], *CASES[name][0])
        else:
            (folders[name] / "in.ipynb").write_bytes((public("nbclient") / f"{name}.ipynb").read_bytes())
        arguments = CASES[name][1] if name in CASES else ["-k", "python3"]
        for output, engine in (("theirs.ipynb", []), ("ours.ipynb", ENGINE)):
            called.append((folders[name], ["in.ipynb", output, "--no-progress-bar", *engine, *arguments]))
    codes = iter(commands(host, server, tmp_path_factory.mktemp("commands"), called))
    return {
        name: [
            (next(codes), without_times(nbformat.read(path / output, as_version=4)))
            for output in ("theirs.ipynb", "ours.ipynb")
        ]
        for name, path in folders.items()
    }


@pytest.mark.parametrize("name", [*CASES, *PUBLIC])
def test_the_same_notebook(compared: dict[str, Any], name: str) -> None:
    """The same arguments give the same notebook and exit code as papermill's own engine."""
    theirs, ours = compared[name]
    assert ours == theirs


def test_papermills_own_tests(host: Host, server: Server, tmp_path: Path) -> None:
    """The tests of engines, of autosaves and of executed notebooks pass with this engine as the default."""
    tests = [f"papermill.tests.test_{name}" for name in ("engines", "execute", "autosave")]
    done = host.run(
        *("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "papermill_runs_on_a_server"),
        *("--pyargs", *tests),
        cwd=tmp_path,
        target=server.target,
        PYTHONPATH=str(REPOSITORY / "tests" / "integrations" / "plugins"),
    )
    assert done.returncode == 0, done.stdout
    assert "57 passed, 4 deselected" in done.stdout


class End(NamedTuple):
    """A last cell, the arguments of `execute_notebook`, and the class that papermill's callers expect."""

    source: str
    kind: str
    options: dict[str, Any] = {}  # noqa: RUF012 - a named tuple's default, never changed


ENDS = {
    "exception": End("1/0", "PapermillExecutionError"),
    "exit code": End("raise SystemExit(3)", "PapermillExecutionError"),
    "a magic that does not exist": End("%no-such-magic", "PapermillExecutionError"),
    "cell time-out": End(FOREVER, "CellTimeoutError", {"execution_timeout": 5}),
    "cell time-out by nbclient's name": End(FOREVER, "CellTimeoutError", {"timeout": 5}),
    "run time-out": End(FOREVER, "CellTimeoutError", {"run_timeout": 15}),
    "dead kernel": End("import os; os._exit(7)", "DeadKernelError"),
    "out of memory": End("x = bytearray(2**30)\n" + FOREVER, "DeadKernelError", {"memory_limit": 2**28}),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end(host: Host, server: Server, tmp_path: Path, end: str) -> None:
    """The outputs so far are there, the last cell has failed, and callers get what they expect."""
    source, kind, options = ENDS[end]
    write(tmp_path, "print('so far')", source, "print('never')")
    raised = execute(host, server.target, tmp_path, **options)
    assert raised.kinds[0] == kind
    node = executed(tmp_path)
    assert statuses(node) == ["completed", "failed", "pending"]
    assert node.metadata.papermill.exception is True
    assert "so far\n" in [printed(node, index) for index, cell in enumerate(node.cells) if "outputs" in cell]


def test_the_exit_code_of_a_dead_kernel(host: Host, server: Server, tmp_path: Path) -> None:
    """Papermill's command has one of its own for it."""
    write(tmp_path, "import os; os._exit(7)")
    done = host.run("papermill", "in.ipynb", "out.ipynb", *ENGINE, cwd=tmp_path, target=server.target)
    assert done.returncode == 138


class Running(NamedTuple):
    """A papermill, while the second cell of its notebook prints without an end."""

    process: subprocess.Popen[str]
    path: Path

    def until_saved(self) -> NotebookNode:
        """Waits until papermill has saved a notebook with what the second cell has printed so far."""
        while True:
            assert self.process.poll() is None, self.process.communicate()
            # The file is written in place.
            with contextlib.suppress(FileNotFoundError, nbformat.reader.NotJSONError):
                node = executed(self.path)
                if printed(node, 1):
                    return node
            pause()

    def raised(self) -> Raised:
        """Waits for the end, and returns what papermill raised."""
        out, _ = self.process.communicate(timeout=SECONDS)
        return Raised(*json.loads(out))


@contextlib.contextmanager
def started(host: Host, server: Server, path: Path) -> Iterator[Running]:
    """Starts papermill; the second cell prints until there is a file `end`."""
    # papermill saves when there is output, and at most so often.
    end = str(path / "end")
    prints = f"while not os.path.exists({end!r}):\n    print('half', flush=True)\n    time.sleep(0.02)"
    write(path, "print('so far')", f"import os, time\n{prints}", "print('end')")
    command = [host.program(), "-c", PROGRAM, json.dumps({"autosave_cell_every": 0.001})]
    environment = host.environment(server.target)
    with subprocess.Popen(
        command, cwd=path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield Running(process, path)
        finally:
            process.kill()


def test_the_notebook_fills_while_the_run_goes_on(host: Host, server: Server, tmp_path: Path) -> None:
    """What papermill saves has the outputs so far, of the running cell as well, and each cell's status."""
    with started(host, server, tmp_path) as running:
        node = running.until_saved()
        assert statuses(node) == ["completed", "running", "pending"]
        assert printed(node, 0) == "so far\n"
        (tmp_path / "end").touch()
        assert running.raised().kinds == []
    assert statuses(executed(tmp_path)) == ["completed"] * 3


def test_ctrl_c_kills_the_run(host: Host, server: Server, tmp_path: Path) -> None:
    """The run is gone when papermill ends, and the notebook has the outputs so far and the failed cell."""
    with started(host, server, tmp_path) as running:
        running.until_saved()
        running.process.send_signal(signal.SIGINT)
        assert running.raised().kinds[0] == "KeyboardInterrupt"
    with Client(server.target) as client:
        assert client.get().state is RunState.KILLED
    node = executed(tmp_path)
    assert statuses(node) == ["completed", "failed", "pending"]
    assert printed(node, 0) == "so far\n"


def test_a_kill_never_looks_like_success(host: Host, server: Server, tmp_path: Path) -> None:
    """Someone else kills the run: papermill fails, and says so."""
    with started(host, server, tmp_path) as running:
        running.until_saved()
        with Client(server.target) as client:
            run = client.kill().run
        raised = running.raised()
    assert raised.kinds[0] == "PapermillException"
    assert run.id in raised.message
    assert "killed" in raised.message
    assert statuses(executed(tmp_path)) == ["completed", "failed", "pending"]


def test_a_stopped_server_never_looks_like_success(
    host: Host, make_server: Callable[..., Server], tmp_path: Path
) -> None:
    """The server stops during the run: papermill fails."""
    server = make_server("--drain-timeout", "0")
    with started(host, server, tmp_path) as running:
        running.until_saved()
        server.process.send_signal(signal.SIGTERM)
        assert running.raised().kinds[0] == "PapermillException"
    assert statuses(executed(tmp_path)) == ["completed", "failed", "pending"]


def test_no_server(host: Host, tmp_path: Path) -> None:
    """The exception is one of papermill's and says what to do; no cell looks completed."""
    write(tmp_path, "1", "2")
    raised = execute(host, "127.0.0.1:1", tmp_path)
    assert raised.kinds[:2] == ["PapermillException", "Exception"]
    assert "127.0.0.1:1" in raised.message
    assert statuses(executed(tmp_path)) == ["failed", "pending"]


def test_output_that_papermill_reports(host: Host, server: Server, tmp_path: Path) -> None:
    """The bar counts every cell, the log has what cells print and display, and files get the two streams."""
    source = "import sys; print('out'); print('err', file=sys.stderr); {'a': 1}"
    nodes = [nbformat.v4.new_markdown_cell("text"), source, nbformat.v4.new_markdown_cell("end")]
    write(tmp_path, *nodes)
    files = ("--stdout-file", "stdout", "--stderr-file", "stderr")
    command = ["papermill", "in.ipynb", "out.ipynb", *ENGINE, *files]
    logged = host.run(*command, "--log-output", cwd=tmp_path, target=server.target)
    assert [(tmp_path / name).read_text() for name in ("stdout", "stderr")] == ["out\n", "err\n"]
    for text in ("Executing Cell 2---", "out", "err", "{'a': 1}", "Ending Cell 3---", "Run "):
        assert text in logged.stderr
    shown = host.run(*command, "--progress-bar", cwd=tmp_path, target=server.target)
    assert "3/3" in shown.stderr
    assert statuses(executed(tmp_path)) == ["completed"] * 3


def test_files_instead_of_the_folder(host: Host, server: Server, tmp_path: Path) -> None:
    """The notebook runs elsewhere, so a file has to be sent; it is found in the folder that `cwd` names."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sales.csv").write_text("a,b\n")
    write(tmp_path, "print(open('sales.csv').read())")
    command = ["papermill", "in.ipynb", "out.ipynb", *ENGINE, "--cwd", "data"]
    alone = host.run(*command, cwd=tmp_path, target=server.target)
    assert alone.returncode == 1
    assert f"runs on the server and not in {tmp_path / 'data'}. Send the files" in alone.stderr
    assert "FileNotFoundError" in alone.stderr
    assert execute(host, server.target, tmp_path, cwd="data", files=["sales.csv"]).kinds == []
    assert printed(executed(tmp_path), 0) == "a,b\n\n"


def test_options_that_do_not_exist(host: Host, server: Server, tmp_path: Path) -> None:
    """A misspelt option and one that is papermill's are refused before anything runs."""
    write(tmp_path, "1")
    misspelt = execute(host, server.target, tmp_path, run_timout=5)
    assert misspelt.kinds[0] == "TypeError"
    assert "Did you mean run_timeout?" in misspelt.message
    elsewhere = execute(host, server.target, tmp_path, server_path="a.ipynb")
    assert elsewhere.kinds[0] == "PapermillException"
    assert "server_path" in elsewhere.message
    assert statuses(executed(tmp_path)) == ["failed"]


def test_server_token_and_certificates(
    host: Host, make_server: Callable[..., Server], tmp_path: Path
) -> None:
    """They come from the environment, for the command, or from the arguments of the function."""
    authority = trustme.CA()
    (tmp_path / "tls").mkdir()
    files = TlsFolder(tmp_path / "tls", issue(authority))
    authority.cert_pem.write_to_path(tmp_path / "ca")
    token = new_token(tmp_path / "tokens")
    (tmp_path / "token").write_text(token)
    server = make_server("--tokens-file", str(tmp_path / "tokens"), *files.options)
    write(tmp_path, "print('so far')")
    options = {"target": server.target, "tls_ca": "ca", "token": token}
    assert execute(host, "", tmp_path, **options).kinds == []
    refused = execute(host, "", tmp_path, **{**options, "token": "other"})
    assert refused.kinds[0] == "PapermillException"
    assert "BAD_TOKEN" in refused.message
    variables = {"NOTEBOOK_RUNNER_TLS_CA": "ca", "NOTEBOOK_RUNNER_TOKEN_FILE": "token"}
    command = ["papermill", "in.ipynb", "out.ipynb", *ENGINE]
    done = host.run(*command, cwd=tmp_path, target=server.target, **variables)
    assert done.returncode == 0, done.stderr
    assert token not in (tmp_path / "out.ipynb").read_text()


def test_the_engine_can_be_imported_first(host: Host, tmp_path: Path) -> None:
    """A program that derives an engine of its own imports the module, and papermill has it as well."""
    program = (
        "from notebook_runner.integrations.papermill import NotebookRunnerEngine as own\n"
        "from papermill.engines import papermill_engines\n"
        "assert papermill_engines.get_engine('notebook-runner') is own"
    )
    done = host.run("python", "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
