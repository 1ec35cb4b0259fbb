"""The client alone, from its wheel, with the oldest and the newest packages that it allows."""

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tests.support.notebooks import notebook, written
from tests.support.server import Server
from tests.support.terminal import on_a_terminal
from tests.support.warm import settled

ROOT = Path(__file__).parents[2]
SECONDS = 600.0
NEWEST_PROTOBUF = "7"

pytestmark = pytest.mark.long

# What a user's first script looks like; it also says what it ran with.
SCRIPT = """
import importlib.util
import sys
import google.protobuf
import grpc
from notebook_runner import Client

for module in ("nbclient", "nbconvert", "nbformat", "papermill", "structlog"):
    assert importlib.util.find_spec(module) is None, module

with Client(sys.argv[1]) as client:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None}
    cells = [{**cell, "source": "print('hello')"}]
    run = client.start({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    assert [event for event in run.progress()][-1].state == "succeeded"
    assert run.wait().text == "hello\\n"
    try:
        run.notebook()
    except ModuleNotFoundError as error:
        assert "pip install nbformat" in str(error)
    else:
        raise AssertionError("nbformat is here")
print(grpc.__version__, google.protobuf.__version__)
"""


def lower_bounds() -> dict[str, str]:
    """The oldest version of each package that the plain install allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [re.match(r"([\w-]+)>=([\w.]+)", requirement) for requirement in project["dependencies"]]
    assert all(found), "a dependency without a lower bound"
    return {match[1]: match[2] for match in found if match}


def requirements(age: str) -> list[str]:
    """What pip installs beside the wheel."""
    if age == "oldest":
        return [f"{name}=={version}" for name, version in lower_bounds().items()]
    return [f"protobuf=={NEWEST_PROTOBUF}.*"]


def readme_block() -> str:
    """What the README shows of the client, without what needs pandas."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(block).partition("import pandas")[0]


def checked(*command: str | Path) -> str:
    """Runs a program that must succeed, and answers what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution's wheel, as it would be published."""
    folder = tmp_path_factory.mktemp("wheel")
    checked(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.parametrize("age", ["oldest", "newest"])
def test_client_alone(wheel: Path, server: Server, tmp_path: Path, age: str) -> None:
    """The wheel without extras installs, runs a notebook from a script and from the command line."""
    home = tmp_path / "venv"
    venv.create(home)
    python = home / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    checked(*pip, "--disable-pip-version-check", "--only-binary", ":all:", wheel, *requirements(age))

    grpc_version, protobuf_version = checked(python, "-I", "-c", SCRIPT, server.target).split()
    if age == "oldest":
        bounds = lower_bounds()
        assert (grpc_version, protobuf_version) == (bounds["grpcio"], bounds["protobuf"])
    else:
        assert protobuf_version.split(".")[0] == NEWEST_PROTOBUF

    if age == "newest":
        block = readme_block().replace("127.0.0.1:50051", server.target)
        checked(python, "-I", "-c", block.replace("done.html", str(tmp_path / "done.html")))
        assert (tmp_path / "done.html").exists()

    path = tmp_path / "hello.ipynb"
    path.write_bytes(written(notebook("print('hello')")))
    command: list[str | Path] = [home / "bin" / "notebook-runner", "--target", server.target]
    values = ["-p", "a=1", "-p", "b", "2", "-y", "c: [3]"]
    assert "\nhello\n" in checked(*command, "run", path, *values, "-o", tmp_path / "out.ipynb")
    assert "a = 1\\n" in (tmp_path / "out.ipynb").read_text()
    settled(server)
    assert "all checks passed" in checked(*command, "doctor")
    assert "_NOTEBOOK_RUNNER_COMPLETE" in checked(*command, "completion", "zsh")
    code, screen = on_a_terminal(*command, "run", path)
    assert (code, "hello" in screen, "1/1" in screen) == (0, True, True), screen
    assert "succeeded" in checked(*command, "list", "--limit", "1")
    checked(*command, "kill", "--grace-period", "1s")
    assert "Exit codes" in checked(*command, "run", "--help")
