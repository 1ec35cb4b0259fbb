"""The page about the client: each of its blocks runs, one after the other, against a real server."""

import ast
import asyncio
import contextlib
import io
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from tests.support.notebooks import code, notebook, written
from tests.support.server import Server

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "python-client.md"
REPORT = written(
    notebook(code("region = ''", "parameters"), "print(region)\nassert region != 'nowhere', region")
)


def run(block: str, names: dict[str, Any]) -> None:
    """Runs a block as a notebook's cell is run."""
    compiled = compile(block, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    pending: Coroutine[Any, Any, None] | None = FunctionType(compiled, names)()
    if pending is not None:
        asyncio.run(pending)


def test_every_block_runs(
    make_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the page shows works as it stands, in its order."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "report.ipynb").write_bytes(REPORT)
    for name in ("data", "utils"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "sales.csv").write_text("region,sold\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTEBOOK_RUNNER_TARGET", make_server("--queue", "1").target)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for block in blocks:
            run(block, names)
    assert b"north" in (tmp_path / "report.html").read_bytes()
    assert "south\n" in printed.getvalue()
    assert "cell 2: AssertionError: nowhere" in printed.getvalue()
    assert "succeeded east\n" in printed.getvalue()
    assert list(names["table"].region) == ["north", "south", "east", "west"]
