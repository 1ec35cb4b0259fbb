"""One name, one thing: what a reader finds under a name is what it was elsewhere."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "package", ["server/notebook_runner_server", "client/notebook_runner", "tests/support"]
)
def test_no_class_name_is_used_twice(package: str) -> None:
    """Each public class of a package has a name of its own."""
    found = Counter(
        node.name
        for path in (ROOT / package).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in found.items() if count > 1] == []
