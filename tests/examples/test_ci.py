"""The action and the template for CI, with the inputs of the examples that use them, as a job runs them."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import nbformat
import pytest
import yaml

from tests.support.notebooks import notebook
from tests.support.ports import free_port
from tests.support.server import PROGRAM, Server
from tests.support.settings import clean

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SECONDS = 300.0


def read(name: str) -> Any:
    """A YAML file of the repository."""
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def action_step() -> tuple[str, dict[str, str]]:
    """The script of the action that runs notebooks, and its variables with the inputs of the example."""
    action = read("ci/github/action.yml")
    (job,) = read("examples/ci/github-workflow.yml")["jobs"].values()
    (used,) = [step for step in job["steps"] if step["uses"] == "./ci/github"]
    assert set(used["with"]) <= set(action["inputs"])
    inputs = {name: one["default"] for name, one in action["inputs"].items()} | used["with"]
    step = action["runs"]["steps"][-1]
    values = {name: inputs[text.split(".")[1].split(" ")[0]] for name, text in step["env"].items()}
    return step["run"], values


def template_step() -> tuple[str, dict[str, str]]:
    """The same of the template."""
    job = read("ci/gitlab/notebooks.yml")[".notebooks"]
    variables = read("examples/ci/gitlab-ci.yml")["notebooks"]["variables"]
    assert set(variables) <= set(job["variables"])
    (script,) = job["script"]
    return script, job["variables"] | variables


STEPS = {"action": ("bash", action_step), "template": ("sh", template_step)}


def run_job(path: Path, kind: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the step in a folder with the example's notebooks, with the programs of this environment."""
    shell, step = STEPS[kind]
    script, values = step()
    environment = clean(PATH=f"{PROGRAM.parent}:{os.environ['PATH']}", **values)
    environment |= {"NOTEBOOKS_PORT": str(free_port()), **variables}
    command = [shell, "-c", script]
    return subprocess.run(
        command, cwd=path, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def suites(path: Path) -> dict[str, ET.Element]:
    """The suites of all reports, by name."""
    return {
        str(suite.get("name")): suite
        for report in path.glob("notebook-reports/**/*.xml")
        for suite in ET.parse(report).getroot()  # noqa: S314 - made here
    }


@pytest.mark.parametrize("kind", STEPS)
def test_the_example(tmp_path: Path, kind: str) -> None:
    """The job starts its own server, runs this repository's notebook, and reports each executed cell."""
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "quickstart.ipynb", tmp_path / "examples")
    done = run_job(tmp_path, kind)
    assert done.returncode == 0, done.stderr
    (suite,) = suites(tmp_path).values()
    assert suite.get("name") == "examples/quickstart.ipynb"
    cells = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4).cells
    assert suite.get("tests") == str(sum(cell.cell_type == "code" for cell in cells))
    executed = nbformat.read(tmp_path / "notebook-reports" / "examples" / "quickstart.ipynb", as_version=4)
    assert any(cell.get("outputs") for cell in executed.cells)


@pytest.mark.parametrize("kind", STEPS)
def test_a_notebook_that_fails(server: Server, tmp_path: Path, kind: str) -> None:
    """The other notebooks run all the same, in a server that is there, and the job fails."""
    (tmp_path / "a folder").mkdir()
    for name, source in {"bad": "1/0", "a folder/good": "1"}.items():
        nbformat.write(notebook(source), tmp_path / f"{name}.ipynb")
    variables = {"NOTEBOOKS": "**/*.ipynb", "NOTEBOOK_RUNNER_TARGET": server.target}
    done = run_job(tmp_path, kind, **variables)
    assert done.returncode == 1, done.stderr
    found = {name: suite.get("failures") for name, suite in suites(tmp_path).items()}
    assert found == {"bad.ipynb": "1", "a folder/good.ipynb": "0"}


@pytest.mark.parametrize("kind", STEPS)
def test_no_notebook(server: Server, tmp_path: Path, kind: str) -> None:
    """A pattern that matches nothing is an error, and not a green job."""
    variables = {"NOTEBOOKS": "missing/*.ipynb", "NOTEBOOK_RUNNER_TARGET": server.target}
    done = run_job(tmp_path, kind, **variables)
    assert done.returncode == 2
    assert "No notebook matches 'missing/*.ipynb'." in done.stderr


def test_both_run_the_same_script() -> None:
    """The template repeats the script of the action, in bash."""
    script, _ = template_step()
    assert script == f"bash <<'SCRIPT'\n{action_step()[0]}SCRIPT\n"
