"""The command in scripts: pipes, JSON, silence, logs, the browser and shells that complete."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.completion import PATIENT
from tests.support.gate import Gate
from tests.support.notebooks import content, parsed, printed
from tests.support.server import Server

pytestmark = pytest.mark.long

PROGRAM = Path(sys.executable).with_name("notebook-runner")
SECONDS = 60.0
BOTH = "import sys; print('out'); print('bad', file=sys.stderr); print('\\x1b[31mred\\x1b[0m')"

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]
Write = Callable[..., Path]


@pytest.fixture
def command(server: Server, tmp_path: Path) -> Command:
    """Runs the command in a folder of its own, with more variables where they are given."""

    def run(
        *arguments: str | Path,
        stdin: bytes = b"",
        program: Sequence[str | Path] = (PROGRAM,),
        **variables: str,
    ) -> subprocess.CompletedProcess[bytes]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("NOTEBOOK_RUNNER_")}
        environment = {**inherited, "NOTEBOOK_RUNNER_TARGET": server.target, **variables}
        return subprocess.run(
            [*program, *arguments],
            cwd=tmp_path,
            env=environment,
            input=stdin,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )

    return run


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a notebook of these cells to the disk."""

    def written_to_disk(*cells: str) -> Path:
        path = tmp_path / "in.ipynb"
        path.write_bytes(content(*cells))
        return path

    return written_to_disk


def test_pipes(command: Command) -> None:
    """A notebook comes in by standard input and goes out by standard output; what happens is on the other."""
    done = command("run", "-", "-o", "-", stdin=content("print('hello')"))
    assert done.returncode == 0
    assert printed(parsed(done.stdout), 0) == "hello\n"
    assert b"cell 1/1 done in" in done.stderr
    assert command("output", "-o", "-").stdout == done.stdout


def test_quiet(command: Command, write: Write) -> None:
    """With --quiet a success says nothing at all, and a failure what it was."""
    done = command("run", write("print('hello')"), "--quiet", "-o", "out.ipynb", "--html", "out.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    failed = command("run", write("1/0"), "-q")
    assert (failed.returncode, failed.stdout) == (1, b"")
    assert failed.stderr.splitlines()[-1].endswith(b"ZeroDivisionError: division by zero")
    for silent in (["watch", "-q"], ["output", "-q", "-o", "x.ipynb"], ["kill", "-q"]):
        assert command(*silent).stdout == b""


def test_files_that_cannot_be_written(command: Command, write: Write, tmp_path: Path) -> None:
    """A folder that is not there is told before the run; what fails later costs neither file nor code."""
    missing = command("run", write("1"), "-o", "none/out.ipynb")
    assert (missing.returncode, missing.stdout) == (2, b"")
    assert b"folder none does not exist" in missing.stderr
    path = write("1/0")
    (tmp_path / "long").mkdir()
    long_name = "long/" + "x" * 254
    done = command("run", path, "-o", long_name, "--html", "out.html")
    assert done.returncode == 1
    assert f"error: Cannot write {long_name}: ".encode() in done.stderr
    assert (tmp_path / "out.html").exists()


def test_logs_are_what_was_printed(command: Command, write: Write) -> None:
    """Standard output and standard error come on their own, as they were printed, and nothing else."""
    command("run", write(BOTH, "1/0"))
    done = command("logs")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n\x1b[31mred\x1b[0m\n", b"bad\n")
    pieces = [json.loads(line) for line in command("logs", "--json").stdout.splitlines()]
    assert {piece["name"] for piece in pieces} == {"stdout", "stderr"}
    assert all(set(piece) == {"time", "cell_index", "name", "text"} for piece in pieces)


def test_logs_of_a_run_that_goes_on(command: Command, write: Write, server: Server, gate: Gate) -> None:
    """Without --follow they end with what is known, with it when the run ends."""
    run_id = command(
        "start", write("print('one', flush=True)", f"{gate.source}; print('two')")
    ).stdout.strip()
    with subprocess.Popen(
        [PROGRAM, "--target", server.target, "logs", "--follow", run_id.decode()], stdout=subprocess.PIPE
    ) as following:
        assert following.stdout
        assert following.stdout.readline() == b"one\n"
        assert command("logs", run_id.decode()).stdout == b"one\n"
        gate.open()
        assert following.stdout.read() == b"two\n"
        assert following.wait(SECONDS) == 0


def test_everything_as_json(command: Command, write: Write, gate: Gate) -> None:
    """Each command prints objects for scripts, one a line."""
    started = json.loads(command("start", write(gate.source), "--json").stdout)
    for arguments in (["watch", "--snapshot"], ["list", "-n", "1"], ["doctor"], ["kill"], ["logs"]):
        lines = command(*arguments, "--json").stdout.splitlines()
        assert all(isinstance(json.loads(line), dict) for line in lines), arguments
        assert lines or arguments == ["logs"]
    told = json.loads(command("output", "--json", "-o", "out.ipynb").stdout)
    assert (told["run_id"], told["format"], told["file"]) == (started["run_id"], "notebook", "out.ipynb")


def test_errors_as_json(command: Command) -> None:
    """With --json an error is an object too, with the reason and what belongs to it."""
    done = command("kill", "nobody", "--json")
    assert (done.returncode, done.stdout) == (2, b"")
    error = json.loads(done.stderr)["error"]
    assert (error["reason"], error["code"], error["exit_code"]) == ("RUN_NOT_FOUND", "NOT_FOUND", 2)
    assert error["metadata"] == {"run_id": "nobody"}
    away = command("list", "--json", NOTEBOOK_RUNNER_TARGET="127.0.0.1:1")
    assert json.loads(away.stderr)["error"]["exit_code"] == away.returncode == 8


def test_html_without_code(command: Command, write: Write, tmp_path: Path) -> None:
    """--no-input leaves the code out of the HTML, of a run and of what is read later."""
    path = write("print('shown' + ' only-in-code'[:0])")
    assert command("run", path, "--html", "out.html", "--no-input").returncode == 0
    page = (tmp_path / "out.html").read_text()
    assert "shown" in page
    assert "only-in-code" not in page
    assert b"only-in-code" not in command("output", "-f", "html", "--no-input").stdout
    assert b"only-in-code" in command("output", "-f", "html").stdout


@pytest.mark.parametrize("page", ["out.html", ""])
def test_open(command: Command, write: Write, tmp_path: Path, page: str) -> None:
    """--open hands the page to the browser, also when it has no name."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    named = ["--html", page] if page else []
    done = command("run", write("print('hello')"), "--open", *named, BROWSER=str(browser))
    assert done.returncode == 0
    opened = (tmp_path / "opened").read_text().strip()
    assert opened.startswith("file:///")
    assert "hello" in Path(opened.removeprefix("file://")).read_text()


def test_open_where_no_browser_is(command: Command, write: Write) -> None:
    """Without a browser the command says where the page is, and the run counts."""
    done = command(
        "run", write("1"), "--open", "--html", "out.html", BROWSER="/bin/false", PATH="", DISPLAY=""
    )
    assert done.returncode == 0
    assert b"no browser found; the page is in out.html" in done.stderr


def completed(command: Command, line: str) -> list[str]:
    """What bash offers at the end of a line."""
    words = str(len(line.split(" ")) - 1)
    settings = {"_NOTEBOOK_RUNNER_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": words}
    done = command(program=PATIENT, **settings)
    return [offer.split(",")[1] for offer in done.stdout.decode().split()]


def test_completion(command: Command, write: Write) -> None:
    """Commands, options, states, and what the server knows: runs, formats and kernels."""
    run_id = command("start", write("1")).stdout.decode().strip()
    assert {"run", "watch", "doctor"} <= set(completed(command, "notebook-runner "))
    assert completed(command, "notebook-runner run --parameters-r") == ["--parameters-raw"]
    assert completed(command, "notebook-runner list --state time") == ["timed-out"]
    assert run_id in completed(command, "notebook-runner watch ")
    assert completed(command, f"notebook-runner kill {run_id}") == [run_id]
    assert completed(command, "notebook-runner output -f htm") == ["html"]
    assert "python3" in completed(command, "notebook-runner run -k ")
    command("watch", run_id)


def test_completion_without_a_server(command: Command) -> None:
    """A server that is away costs nothing but its names."""
    words = {
        "COMP_WORDS": "notebook-runner watch ",
        "COMP_CWORD": "2",
        "_NOTEBOOK_RUNNER_COMPLETE": "bash_complete",
    }
    done = command(NOTEBOOK_RUNNER_TARGET="127.0.0.1:1", **words)
    assert (done.stdout.strip(), done.stderr) == (b"", b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(command: Command, shell: str) -> None:
    """Each shell gets a script that calls this command; bash takes it."""
    script = command("completion", shell)
    assert script.returncode == 0
    assert b"_NOTEBOOK_RUNNER_COMPLETE" in script.stdout
    if shell == "bash":
        taken = subprocess.run(
            ["bash", "-n"],  # noqa: S607 - the tester's own
            input=script.stdout,
            capture_output=True,
            check=False,
        )
        assert (taken.returncode, taken.stderr) == (0, b"")
