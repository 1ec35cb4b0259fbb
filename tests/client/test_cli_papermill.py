"""Beside papermill's command: the same executed notebook, and a page that knows all its options."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner
from nbformat import NotebookNode
from papermill import cli as papermill_cli

from notebook_runner.cli import main
from notebook_runner.cli._papermill import INSTEAD
from tests.support.notebooks import code, markdown, normalised, notebook
from tests.support.public_notebooks import folder
from tests.support.server import Server

pytestmark = pytest.mark.long

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "how-to" / "from-papermill.md"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
ERROR_TAG = "papermill-error-cell-tag"

HEAD = "region = 'north'\ndays = 30  # how many"
CASES: dict[str, tuple[list[Any], list[str]]] = {
    "parameters after the cell": (
        [markdown("# Report"), code(HEAD, "parameters"), "print(region, days)"],
        ["-p", "days", "7", "-r", "region", "12"],
    ),
    "parameters without a cell": ([markdown("# Report"), "print(days)"], ["-p", "days", "7"]),
    "parameters in all forms": (
        [code(HEAD, "parameters"), code("x = 1", "keep", "me"), "days, region"],
        ["-y", "{days: [1, 2.5, null, {a: true}], region: 2020-01-02}"],
    ),
    "an injected cell is replaced": (
        [code(HEAD, "parameters"), code("days = 1", "injected-parameters"), "print(days)"],
        ["-p", "days", "7"],
    ),
    "no parameters": ([code(HEAD, "parameters", "more"), "print(region)", "days"], []),
    "a cell that raises": (["print('so far')", "1/0", "print('never')"], []),
    "a cell that may raise": ([code("1/0", "raises-exception"), "print('goes on')"], []),
    "rich output": (["from IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))", "{'a': 1}"], []),
}


def executed(source: Path, target: Path, *command: str) -> tuple[int, NotebookNode]:
    """The exit code of a command, and the notebook that it wrote."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NOTEBOOK_RUNNER_")}
    done = subprocess.run(
        command, cwd=source.parent, env=environment, capture_output=True, timeout=120, check=False
    )
    assert target.exists(), done.stderr.decode()
    return done.returncode, nbformat.read(target, as_version=4)


def compared(folder: Path, server: Server, arguments: list[str]) -> tuple[tuple[int, Any], tuple[int, Any]]:
    """What both commands make of `in.ipynb`, without what only one of them writes."""
    source, mine, theirs = folder / "in.ipynb", folder / "ours.ipynb", folder / "theirs.ipynb"
    run = [str(BIN / "notebook-runner"), "--target", server.target, "run", source.name, "-o", mine.name]
    ours = executed(source, mine, *run, *arguments)
    papermill = executed(source, theirs, str(BIN / "papermill"), source.name, theirs.name, *arguments)
    return (ours[0], plain(ours[1])), (papermill[0], plain(papermill[1]))


def plain(node: NotebookNode) -> dict[str, Any]:
    """A notebook of the newest format, without times, and without papermill's notes and banners."""
    node = nbformat.v4.upgrade(node)
    node.metadata.pop("papermill", None)
    node.cells = [cell for cell in node.cells if ERROR_TAG not in cell.metadata.get("tags", [])]
    for place, cell in enumerate(node.cells):
        cell.metadata.pop("papermill", None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = f"cell-{place}"
            # The one has the order of the command line, the other that of the notebook.
            cell.source = "\n".join(sorted(cell.source.splitlines()))
    # What a conversion leaves behind says nothing of the notebook.
    for name in ("orig_nbformat", "orig_nbformat_minor"):
        node.metadata.pop(name, None)
    return normalised(node)


@pytest.mark.parametrize("case", CASES)
def test_the_same_notebook(server: Server, tmp_path: Path, case: str) -> None:
    """The same arguments give the same notebook; a cell that may raise fails the run for papermill alone."""
    cells, arguments = CASES[case]
    nbformat.write(notebook(*cells, **KERNEL), tmp_path / "in.ipynb")
    (code_, ours), (their_code, theirs) = compared(tmp_path, server, arguments)
    assert ours == theirs
    assert code_ == (0 if case == "a cell that may raise" else their_code)


@pytest.mark.parametrize("name", ["Factorials", "Unicode", "Skip Exceptions with Cell Tags"])
def test_the_same_of_real_notebooks(server: Server, tmp_path: Path, name: str) -> None:
    """Notebooks that others wrote come out the same."""
    (tmp_path / "in.ipynb").write_bytes((folder("nbclient") / f"{name}.ipynb").read_bytes())
    (_, ours), (_, theirs) = compared(tmp_path, server, ["-k", "python3"])
    # The one keeps the format that it was sent, the other the newest, where each cell has an id.
    for cell in [*ours["cells"], *theirs["cells"]]:
        cell.pop("id", None)
    assert ours == theirs


def their_options() -> list[str]:
    """Every option of the papermill that is installed."""
    return sorted(
        {
            name
            for option in papermill_cli.papermill.params
            for name in [*option.opts, *option.secondary_opts]
            if name.startswith("-")
        }
    )


def test_the_page_has_every_option() -> None:
    """The page names every option of papermill's command."""
    named = set(re.findall(r"`(--?[\w-]+)`", PAGE.read_text(encoding="utf-8")))
    assert set(their_options()) <= named


def test_every_option_is_known(tmp_path: Path) -> None:
    """An option of papermill's is taken, or answered with what to do instead; never with "no such option"."""
    ours = {name for option in main.commands["run"].params for name in [*option.opts, *option.secondary_opts]}
    long = {name.replace("_", "-") for name in their_options() if name.startswith("--")}
    assert long <= ours | set(INSTEAD) | {"--version"}
    assert not ours & set(INSTEAD)
    for name in INSTEAD:
        done = CliRunner().invoke(main, ["run", str(tmp_path / "in.ipynb"), name])
        assert done.exit_code == 2
        assert f"{name} is an option of papermill: {INSTEAD[name]}." in done.output
