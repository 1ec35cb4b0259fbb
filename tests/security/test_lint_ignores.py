"""ruff's rules on security hold for all code: where one is ignored, the line says why."""

import re
import tomllib
from pathlib import Path

from tests.support.pages import REPOSITORY

ROOMS = ["client", "server", "docsite", "benchmarks", "examples", "tests"]
IGNORED = re.compile(r"# noqa: (?P<codes>[A-Z0-9]+(, [A-Z0-9]+)*)(?P<reason> - \w.*)?")
EVERYTHING = re.compile(r"#\s*(noqa(?!:)|ruff: noqa)")


def sources() -> list[Path]:
    """Every program of the project but the generated ones, and this one, which has patterns of ignores."""
    found = [path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")]
    return [path for path in found if "v1" not in path.parts and path != Path(__file__)]


def test_each_ignore_on_a_line_has_a_reason() -> None:
    """And none ignores everything; that each is still needed is seen by ruff itself (RUF100)."""
    lines = [
        (path.name, line)
        for path in sources()
        for line in path.read_text(encoding="utf-8").splitlines()
        if "noqa" in line
    ]
    assert not [one for one in lines if EVERYTHING.search(one[1])]
    found = [(name, match) for name, line in lines if (match := IGNORED.search(line))]
    found = [(name, match) for name, match in found if re.search(r"\bS\d{3}\b", match["codes"])]
    assert len(found) > 10
    assert not [(name, match[0]) for name, match in found if not match["reason"]]


def test_few_rules_are_ignored_in_whole_rooms() -> None:
    """Asserts where they are a test's words, and the start of the project's own programs."""
    lint = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert lint["select"] == ["ALL"]
    assert not [code for code in lint["ignore"] if re.match(r"S\d*$", code)]
    rooms = {
        room: found
        for room, codes in lint["per-file-ignores"].items()
        if (found := {code for code in codes if re.match(r"S\d*$", code)})
    }
    assert rooms == {"tests/**": {"S101", "S603"}, "benchmarks/**": {"S603"}, "examples/**": {"S101", "S603"}}
