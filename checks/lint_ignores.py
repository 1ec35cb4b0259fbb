"""Check that every ignore of a security rule of ruff is on the line that needs it, with a reason.

Ruff itself reports unused ignores (RUF100).
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ["benchmarks", "checks", "client", "docsite", "examples", "server", "tests"]
IGNORE = re.compile(r"# noqa: (?P<codes>[A-Z0-9]+(, [A-Z0-9]+)*)(?P<reason> - \w.*)?")
IGNORE_ALL = re.compile(r"#\s*(noqa(?!:)|ruff: noqa)")
IS_SECURITY = re.compile(r"\bS\d*\b")
# Tests consist of asserts, and tests, benchmarks and examples start the project's own programs.
ALLOWED = {"tests/**": {"S101", "S603"}, "benchmarks/**": {"S603"}, "examples/**": {"S101", "S603"}}


def sources() -> Iterator[Path]:
    """Yield every source file, except generated ones and this one, which contains the patterns."""
    for folder in FOLDERS:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if "v1" not in path.parts and path != Path(__file__).resolve():
                yield path


def faults_of_lines() -> Iterator[str]:
    """Yield the lines that ignore every rule, or a security rule without a reason."""
    for path in sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            place = f"{path.relative_to(REPOSITORY)}:{number}"
            if IGNORE_ALL.search(line):
                yield f"{place}: ignores every rule; name the rule"
            found = IGNORE.search(line)
            if found and IS_SECURITY.search(found["codes"]) and not found["reason"]:
                yield f"{place}: ignores {found['codes']} without a reason; add ` - reason`"


def faults_of_settings() -> Iterator[str]:
    """Yield the security rules that pyproject.toml ignores in whole folders."""
    lint = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    if lint["select"] != ["ALL"]:
        yield "pyproject.toml: tool.ruff.lint.select is not ['ALL']"
    for pattern, codes in {"everywhere": lint["ignore"], **lint["per-file-ignores"]}.items():
        security = {code for code in codes if IS_SECURITY.fullmatch(code)}
        for code in sorted(security - ALLOWED.get(pattern, set())):
            yield f"pyproject.toml: {code} is ignored in {pattern}; ignore it on the lines that need it"


if __name__ == "__main__":
    sys.exit("\n".join([*faults_of_lines(), *faults_of_settings()]) or None)
