"""Notebooks of `tests/cases`: what a run gives, through a real server."""

import re

import pytest

from tests.support.cases import FOLDER, Case, carry_out
from tests.support.server import Server

CASES = (Case("cd-magic", shows=("sub\n", "end\n")),)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_case(case: Case, server: Server) -> None:
    """The run ends as it should, and its notebook and its report hold what they should."""
    carry_out(server, case)


def test_each_notebook_has_its_row_and_its_entry() -> None:
    """The table in the folder's README names each notebook, and a test module runs it."""
    notebooks = {path.stem for path in FOLDER.glob("*.ipynb")}
    rows = re.findall(r"^\| `([^`]+)`", (FOLDER / "README.md").read_text(), re.MULTILINE)
    modules = "".join(path.read_text() for path in FOLDER.parent.glob("e2e/test_cases*.py"))
    assert sorted(rows) == sorted(notebooks)
    assert {name for name in notebooks if f'"{name}"' not in modules} == set()
