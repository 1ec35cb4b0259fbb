"""The README tells the truth: its commands and its Python run as they stand, against a real server."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.server import Server

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:50051"
SECONDS = 120


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
CALLS = [line for line in COMMANDS if not line.startswith("make ")]


@pytest.fixture
def served(make_server: Callable[..., Server]) -> Server:
    """A server as `make serve` starts it."""
    return make_server(
        "--notebook-root", str(REPOSITORY / "examples"), "--default-notebook", "quickstart.ipynb"
    )


def run(command: list[str], served: Server, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command of the README in a folder that looks like the repository, against the server."""
    for name in ("examples", ".venv"):
        target = REPOSITORY / name if name == "examples" else Path(sys.prefix)
        (folder / name).symlink_to(target)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NOTEBOOK_RUNNER_TARGET": served.target}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_the_commands_are_there() -> None:
    """The README shows how every call is made with grpcurl, and how to run the tests."""
    for name in ("Start", "Progress", "Output", "Kill", "List", "Health/Check", " list", " describe"):
        assert any(line.startswith("grpcurl") and name in line for line in CALLS), name
    assert {"make demo", "make test", "make check"} <= set(COMMANDS)


def test_the_commands_work(served: Server, tmp_path: Path) -> None:
    """Every line, in its order, ends well."""
    for place, line in enumerate(CALLS):
        folder = tmp_path / str(place)
        folder.mkdir()
        done = run(["bash", "-c", line.replace(ADDRESS, served.target)], served, folder)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_python_works(served: Server, tmp_path: Path) -> None:
    """Every Python block runs, and prints what the notebook prints."""
    assert blocks("python")
    for block in blocks("python"):
        done = run([sys.executable, "-c", block.replace(ADDRESS, served.target)], served, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "theory says -0.50" in done.stdout
