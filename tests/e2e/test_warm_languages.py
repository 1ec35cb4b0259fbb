"""Kernels of other kernelspecs are started before a run asks for one, and told their place in their words."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.execution.warm.languages import setup_code
from tests.support.calls import SECONDS, inline, perform, texts
from tests.support.polling import pause
from tests.support.processes import marked
from tests.support.server import Server
from tests.support.warm import kept

# Python as well, by another command than ipykernel's own.
PROGRAM = "from ipykernel.kernelapp import launch_new_instance as run; run()"
SPECS = {
    "bash": ([sys.executable, "-m", "bash_kernel"], "bash"),
    "other": ([sys.executable, "-c", PROGRAM], "python"),
    "fixed": ([sys.executable, "-m", "ipykernel_launcher"], "python"),
    "strange": ([sys.executable, "-m", "bash_kernel"], "strange"),
}
pytestmark = [
    pytest.mark.long,
    pytest.mark.process_pool("only the server knows the folder of the kernelspecs"),
]
FIXED = {"GIVEN": "the kernelspec's", "MADE": "of $FIRST"}


@pytest.fixture(scope="module")
def jupyter_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with kernelspecs."""
    folder = tmp_path_factory.mktemp("jupyter")
    for name, (command, language) in SPECS.items():
        spec = folder / "kernels" / name
        spec.mkdir(parents=True)
        about: dict[str, object] = {
            "argv": [*command, "-f", "{connection_file}"],
            "display_name": name,
            "language": language,
        }
        if name == "fixed":
            about["env"] = FIXED
        (spec / "kernel.json").write_text(json.dumps(about))
    return str(folder)


def printed(server: Server, kernel: str, source: str, **fields: object) -> str:
    """What a cell prints."""
    ended = perform(server.stub, inline(source, kernel_name=kernel, **fields))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    return texts(ended.events)


def spare(server: Server, command: str) -> int:
    """Waits for the one process with this in its command line; answers it."""
    end = time.monotonic() + SECONDS
    while len(found := [pid for pid, said in marked(server.runs_mark).items() if command in said]) != 1:
        assert time.monotonic() < end, f"{found}\n{server.tail()}"
        pause()
    return found[0]


def test_a_kernel_of_another_language(make_server: Callable[..., Server], jupyter_path: str) -> None:
    """It was there before the run, and has the run's folder and variables."""
    server = make_server("--warm-kernels", "bash=1", environment={"JUPYTER_PATH": jupyter_path})
    given = {"GIVEN": 'it\'s "a" $value\\ of\ttwo\nlines', "OTHER": "π"}
    for _ in range(2):
        process = spare(server, "bash_kernel")
        source = 'echo "$PPID"; pwd; echo "$NOTEBOOK_RUNNER_RUN_DIR"; echo "$OTHER"; echo "$GIVEN"'
        pid, folder, run, other, *value = printed(server, "bash", source, environment=given).splitlines()
        assert int(pid) == process
        assert folder == run
        assert other == "π"
        assert "\n".join(value) == given["GIVEN"]
    # No shell can be given that name, and so no kernel that runs.
    process = spare(server, "bash_kernel")
    assert int(printed(server, "bash", "echo $PPID", environment={"a.b": "c"})) != process


def test_python_by_another_command(make_server: Callable[..., Server], jupyter_path: str) -> None:
    """What is no ipykernel for all one can tell is told in Python."""
    server = make_server("--warm-kernels", "other=1", environment={"JUPYTER_PATH": jupyter_path})
    process = spare(server, PROGRAM)
    source = "import os\nprint(os.getpid(), os.environ['GIVEN'], os.getcwd() == os.environ[RUN_DIR])"
    source = source.replace("RUN_DIR", "'NOTEBOOK_RUNNER_RUN_DIR'")
    names = "; print([name for name in globals() if not name.startswith('_')])"
    lines = printed(server, "other", source + names, environment={"GIVEN": "'\"\\"}).splitlines()
    assert lines[0] == f"{process} '\"\\ True"
    assert "folder" not in lines[1]


def test_variables_of_the_kernelspec(make_server: Callable[..., Server], jupyter_path: str) -> None:
    """They win over the run's, and may be made of them: then the run has a kernel of its own."""
    server = make_server("--warm-kernels", "fixed=1", environment={"JUPYTER_PATH": jupyter_path})
    source = (
        "import os, sys\nprint(os.environ['GIVEN'], os.environ['MADE'], 'fork_server' in str(sys.orig_argv))"
    )
    kept(server)
    assert printed(server, "fixed", source) == "the kernelspec's of $FIRST True\n"
    assert (
        printed(server, "fixed", source, environment={"GIVEN": "x"}) == "the kernelspec's of $FIRST False\n"
    )
    assert printed(server, "fixed", source, environment={"FIRST": "x"}) == "the kernelspec's of x False\n"


def test_a_language_that_nobody_can_speak(tmp_path: Path, jupyter_path: str) -> None:
    """Such kernels cannot be kept, and the operator is told when the server is started."""
    server = Server(tmp_path, "--warm-kernels", "strange=1", environment={"JUPYTER_PATH": jupyter_path})
    with pytest.raises(AssertionError, match=r"'strange' has the language 'strange'"):
        server.__enter__()


def test_a_default_kernel_of_such_a_language(make_server: Callable[..., Server], jupyter_path: str) -> None:
    """Nobody asked for warm ones: it is started for each run."""
    server = make_server("--default-kernel", "strange", environment={"JUPYTER_PATH": jupyter_path})
    assert printed(server, "strange", "echo here") == "here\n"


def test_r_and_julia_are_told_in_their_own_words() -> None:
    """Neither is here to try it: what they are told is written as their manuals have it."""
    variables = {"A": 'a "b" \\ $c', "B": "line\nπ"}
    assert setup_code("R", "/a b", variables).splitlines() == [
        'Sys.setenv("A" = "a \\"b\\" \\\\ $c")',
        'Sys.setenv("B" = "line\\nπ")',
        'setwd("/a b")',
    ]
    assert setup_code("julia", "/a b", variables).splitlines() == [
        'ENV["A"] = "a \\"b\\" \\\\ \\$c"',
        'ENV["B"] = "line\\nπ"',
        'cd("/a b")',
        "nothing",
    ]
