"""The command against a real server: what it prints, what it writes, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from notebook_runner import Client
from tests.support.calls import reach
from tests.support.cases import FOLDER as CASES
from tests.support.gate import Gate
from tests.support.notebooks import code, notebook, parsed, printed, written
from tests.support.server import Server
from tests.support.terminal import on_a_terminal

pytestmark = [pytest.mark.e2e, pytest.mark.whole_run]

PROGRAM = Path(sys.executable).with_name("notebook-runner")
SECONDS = 60.0


class Command(Protocol):
    """Runs the command with these arguments."""

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Answers what it printed and how it ended."""


def environment(target: str) -> dict[str, str]:
    """The test's environment, with the server's address."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NOTEBOOK_RUNNER_")}
    return {**inherited, "NOTEBOOK_RUNNER_TARGET": target}


def command_for(target: str) -> Command:
    """The command, talking to this server."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *arguments],
            env=environment(target),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    return run


@pytest.fixture
def command(server: Server) -> Command:
    """The command, talking to the shared server."""
    return command_for(server.target)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a notebook of these cells to the disk."""

    def written_to_disk(*cells: str) -> Path:
        path = tmp_path / "in.ipynb"
        path.write_bytes(written(notebook(*cells)))
        return path

    return written_to_disk


def test_run_shows_and_writes(command: Command, tmp_path: Path) -> None:
    """A run prints what the notebook prints, and writes the notebook and its HTML."""
    path = tmp_path / "in.ipynb"
    path.write_bytes(written(notebook(code("n = 0\nwho = ''", "parameters"), "print(who, n + 1)")))
    out, html = tmp_path / "out.ipynb", tmp_path / "out.html"
    done = command("run", path, "-p", "n", "41", "-r", "who", "12", "-o", out, "--html", html)
    assert (done.returncode, done.stderr) == (0, f"wrote {out}\nwrote {html}\n")
    assert "\n12 42\n" in done.stdout
    assert "succeeded after" in done.stdout.splitlines()[-1]
    assert printed(parsed(out.read_bytes()), 2) == "12 42\n"
    assert "12 42" in html.read_text()


def test_failed_run(command: Command, write: Callable[..., Path], tmp_path: Path) -> None:
    """A cell that raises ends with the traceback and 1, and the notebook is written all the same."""
    out = tmp_path / "out.ipynb"
    done = command("run", write("print('so far')", "1/0"), "--output", out)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("ZeroDivisionError: division by zero")
    assert printed(parsed(out.read_bytes()), 0) == "so far\n"


@pytest.mark.parametrize(
    ("source", "options", "exit_code"),
    [
        ("import time; time.sleep(600)", ["--cell-timeout", "500ms"], 3),
        ("import os; os._exit(1)", [], 5),
        ("1/0", ["--allow-errors"], 0),
    ],
)
def test_exit_codes(
    command: Command, write: Callable[..., Path], source: str, options: list[str], exit_code: int
) -> None:
    """How the run ended is the exit code."""
    assert command("run", write(source), *options).returncode == exit_code


def test_run_as_json(command: Command, write: Callable[..., Path]) -> None:
    """With --json standard output is one event per line."""
    done = command("run", write("print('hello')"), "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["run_changed"]["state"] == "succeeded"


def test_start_follow_read_and_kill(command: Command, write: Callable[..., Path], gate: Gate) -> None:
    """The commands on one run, from its start to its end by kill."""
    run_id = command("start", write(gate.source), "--label", "test=cli").stdout.strip()
    assert json.loads(command("watch", run_id, "--snapshot", "--json").stdout.splitlines()[0])
    killed = command("kill", run_id, "--json")
    assert json.loads(killed.stdout)["run"]["state"] == "killed"
    assert command("watch", run_id).returncode == 4
    assert "killed" in command("output", run_id, "--format", "error").stdout.lower()
    listed = command("list", "--label", "test=cli", "--state", "killed").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["RUN", run_id]
    assert json.loads(command("list", "--limit", "1", "--json").stdout)["run_id"] == run_id


def test_kill_names_the_run_before_it_ends(
    make_server: Callable[..., Server], write: Callable[..., Path], gate: Gate
) -> None:
    """Without an id the command names the run that is executed, ends that one, and says when it had ended."""
    server = make_server("--queue", "1")
    command = command_for(server.target)
    running = command("start", write(gate.source)).stdout.strip()
    # A server that has just started has no worker yet.
    reach(server.stub, running, "cell_started")
    queued = command("start", write(gate.source)).stdout.strip()
    killed = command("kill")
    assert killed.stderr.startswith(f"killing run {running}: ")
    assert killed.stdout.startswith(f"run {running} killed, ")
    assert command("kill").stdout.startswith(f"run {queued} killed, ")
    for arguments, named in (((), queued), ((running,), running)):
        again = command("kill", *arguments)
        said = f"run {named} had already ended: killed\n"
        assert (again.returncode, again.stdout, again.stderr) == (0, said, "")


def test_output_to_standard_output(command: Command, write: Callable[..., Path], tmp_path: Path) -> None:
    """Without a file the notebook goes to standard output, with one it goes there."""
    command("run", write("print('hello')"))
    file = tmp_path / "out.ipynb"
    content = command("output").stdout
    assert printed(parsed(content.encode()), 0) == "hello\n"
    assert command("output", "-o", file).returncode == 0
    assert file.read_text() == content


def test_ctrl_c_leaves_the_run(server: Server, write: Callable[..., Path], gate: Gate) -> None:
    """Ctrl-C says how to get back to the run and leaves it running."""
    path = write("print('running')", gate.source)
    running = subprocess.Popen(
        [PROGRAM, "--target", server.target, "run", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        assert running.stdout
        while running.stdout.readline() != "running\n":
            pass
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=SECONDS)
    assert running.returncode == 130
    assert f"notebook-runner --target {server.target} kill " in said
    run_id = said.split()[-1]
    state = command_for(server.target)("kill", run_id).stdout
    assert state.startswith(f"run {run_id} killed")


def test_busy_server(make_server: Callable[..., Server], write: Callable[..., Path], gate: Gate) -> None:
    """A server without room is 7, and names the run in the way."""
    command = command_for(make_server().target)
    run_id = command("start", write(gate.source)).stdout.strip()
    refused = command("run", write("1"))
    assert (refused.returncode, refused.stdout) == (7, "")
    assert run_id in refused.stderr
    assert command("kill", run_id).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "none.ipynb"],
        ["run", "--server-path", "../x.ipynb"],
        ["run", "--run-timeout", "soon"],
        ["run", "-p", "unheard_of", "1"],
        ["start", "-p", "n", str(2**60)],
        ["watch", "none"],
        ["output", "none"],
        ["kill", "none"],
        ["list", "--state", "gone"],
        ["--tls-ca", "none.pem", "list"],
    ],
)
def test_wrong_usage(command: Command, arguments: list[str]) -> None:
    """A request that cannot be served is 2, with a clear line and no traceback."""
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "rror: " in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server(write: Callable[..., Path]) -> None:
    """A server that is not there is 8, with one line."""
    done = command_for("127.0.0.1:1")("run", write("1"))
    assert (done.returncode, done.stdout) == (8, "")
    advice = "Start the server or set --target."
    assert done.stderr == f"error: Cannot reach 127.0.0.1:1: connection refused. {advice}\n"


def test_terminal_shows_the_live_view(server: Server, write: Callable[..., Path]) -> None:
    """On a terminal the bar, the printed text and the cell's first line, cut to the width, are there."""
    path = write("print('hello')", "x = 1" + " + 1" * 40)
    code, screen = on_a_terminal(PROGRAM, "--target", server.target, "run", path)
    assert code == 0
    for piece in ("hello\r\n", "━━━━", "2/2", "succeeded after"):
        assert piece in screen
    assert " + 1" * 20 not in screen


def test_terminal_shows_the_traceback(server: Server, write: Callable[..., Path]) -> None:
    """On a terminal a failed run ends with its traceback."""
    code, screen = on_a_terminal(PROGRAM, "--target", server.target, "run", write("1/0"))
    assert code == 1
    assert "Traceback (most recent call last)" in screen


def test_dumb_terminal_gets_plain_lines(server: Server, write: Callable[..., Path]) -> None:
    """A terminal that cannot move its cursor gets the lines that a file gets."""
    code, screen = on_a_terminal(PROGRAM, "--target", server.target, "run", write("1"), kind="dumb")
    assert code == 0
    assert "\x1b" not in screen
    assert "cell 1/1 done in" in screen


@pytest.mark.parametrize(
    ("case", "code"), [("exit-zero", 0), ("exit-call", 0), ("exit-three", 1), ("run-broken", 1)]
)
def test_an_exit_is_the_same_for_command_client_and_start(
    case: str, code: int, command: Command, server: Server
) -> None:
    """`sys.exit(0)` is a success and a script that raises a failure, whoever asks."""
    path = CASES / f"{case}.ipynb"
    assert command("run", path, "-o", os.devnull).returncode == code
    with Client(server.target) as client:
        run = client.start(path).wait()
    assert run.state == ("failed" if code else "succeeded")
    assert (run.cells_completed == run.cells_total) is (code == 0)


def test_rerun_with_another_parameter(command: Command, tmp_path: Path) -> None:
    """The same cells with the parameters of before, of which one is changed, found by a part of the id."""
    path, out = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    path.write_bytes(written(notebook(code("n = 0\nwho = ''", "parameters"), "print(who, n + 1)")))
    run_id = command("start", path, "-p", "n", "41", "-r", "who", "12", "-l", "test=rerun").stdout.strip()
    assert command("watch", run_id).returncode == 0
    done = command("rerun", run_id.rpartition("-")[2], "-p", "n", "1.5", "-o", out)
    assert (done.returncode, done.stderr) == (0, f"wrote {out}\n")
    again = parsed(out.read_bytes())
    tags = [cell.metadata.get("tags") for cell in again.cells]
    assert tags == [["parameters"], ["injected-parameters"], []]
    assert printed(again, 2) == "12 2.5\n"
    runs = [json.loads(line) for line in command("list", "-l", "test=rerun", "--json").stdout.splitlines()]
    assert [run["parameters"] for run in runs] == [{"n": 1.5, "who": "12"}, {"n": 41, "who": "12"}]


def test_show_and_list_since(command: Command, write: Callable[..., Path]) -> None:
    """What is known of a run that failed, as text and as JSON, and the runs of the last hour."""
    assert command("run", write("{}['x']"), "-l", "test=show").returncode == 1
    text = command("show").stdout
    assert "failed in cell 1 of 1\n" in text
    assert text.count("KeyError: 'x'") == 2
    run = json.loads(command("show", "--json").stdout)
    assert (run["state"], run["failure"]["exception_name"]) == ("failed", "KeyError")
    heading, row = command("list", "--since", "1h", "-l", "test=show").stdout.splitlines()
    assert row[heading.index("REASON") :] == "KeyError: 'x'"
    assert command("list", "--since", "2999-01-01", "--json").stdout == ""
