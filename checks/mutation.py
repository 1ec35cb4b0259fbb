"""Run mutation tests on the modules that only compute, and print scores and surviving mutants.

mutmut changes one thing at a time and runs the tests that reach it; `[tool.mutmut]` in pyproject.toml names
modules and tests, and docs/testing.md explains the survivors. mutmut expects packages and tests side by side,
so it works in a folder with links to them. It keeps its results there, and tries only changed code and
surviving mutants again. Arguments are patterns of mutants (`*.runs.transitions.*`).
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / ".mutation"
LINKS = {
    ".test-data": ".test-data",
    "notebook_runner": "client/notebook_runner",
    "notebook_runner_server": "server/notebook_runner_server",
    "pyproject.toml": "pyproject.toml",
    "tests": "tests",
}
LEAST_SCORE = 0.9
# Exit codes of pytest for a killed mutant: a test failed, pytest failed, a test did not end.
KILLED = {1, 3, 24, -24, 36, 152, 255}


def outcomes() -> Iterator[tuple[Path, dict[str, int | None]]]:
    """Yield each module's file, and pytest's exit code for each of its mutants (None: not tried)."""
    for path in sorted((FOLDER / "mutants").rglob("*.py.meta")):
        codes: dict[str, int | None] = json.loads(path.read_text())["exit_code_by_key"]
        if codes:
            yield path, codes


def forget_survivors() -> None:
    """Make mutmut try surviving mutants again, because a test may have been added."""
    for path, codes in outcomes():
        document = json.loads(path.read_text())
        document["exit_code_by_key"] = {
            name: code if code in KILLED else None for name, code in codes.items()
        }
        path.write_text(json.dumps(document))


def run(*patterns: str) -> None:
    """Run mutmut on the mutants that match the patterns."""
    FOLDER.mkdir(exist_ok=True)
    for name, source in LINKS.items():
        link = FOLDER / name
        if not link.is_symlink():
            link.symlink_to(REPOSITORY / source)
    forget_survivors()
    command = [sys.executable, "-m", "mutmut", "run", *patterns]
    subprocess.run(command, cwd=FOLDER, check=True)  # noqa: S603 - mutmut of this environment


def report() -> str | None:
    """Print scores and survivors, and return an error message if a score is too low."""
    survivors: list[str] = []
    too_low: list[str] = []
    for path, codes in outcomes():
        module = str(path.relative_to(FOLDER / "mutants")).removesuffix(".meta")
        tried = {name: code for name, code in codes.items() if code is not None}
        if not tried:
            continue
        killed = Counter(code in KILLED for code in tried.values())[True]
        survivors += [name for name, code in tried.items() if code not in KILLED]
        print(f"{killed / len(tried):7.1%}  {killed:4} of {len(tried):4} killed  {module}")
        if killed / len(tried) < LEAST_SCORE:
            too_low.append(module)
    if survivors:
        print("\nSurvivors; `cd .mutation && ../.venv/bin/mutmut show NAME` shows the change:")
        print("\n".join(survivors))
    return f"Below {LEAST_SCORE:.0%}: {', '.join(too_low)}" if too_low else None


if __name__ == "__main__":
    run(*sys.argv[1:])
    sys.exit(report())
