"""Check spelling, and reject the words that this project does not use, with codespell.

`wording.txt` is a dictionary in codespell's format: each word or phrase, and what to write instead.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import codespell_lib

ROOT = Path(__file__).resolve().parent.parent
WORDS = Path(__file__).with_name("wording.txt")
# The files to check, as patterns for git. Add further code here once its sentences pass.
PATHS = [
    *("*.md", "*.proto", "*.toml", "*.yaml", "*.yml", "Dockerfile", "Makefile", ".ci/*"),
    *("benchmarks/*.py", "checks/*.py", "docsite/*.py", "examples/*.py", "server/*.py", "client/*.py"),
]
KNOWN = "multline"  # an environment of TeX


def files() -> list[str]:
    """Return the files of the repository to check, relative to its root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PATHS]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()  # noqa: S603 - git of PATH
    return [name for name in sorted(set(listed.split("\0"))) if name]


def check(names: Iterable[str]) -> int:
    """Print the findings in files, and return an exit code: 0 if there are none."""
    dictionaries = ["--dictionary", "-", "--dictionary", str(WORDS), "--ignore-words-list", KNOWN]
    return codespell_lib.main(*dictionaries, "--regex", _pattern(), *names)


def _pattern() -> str:
    """Return the expression that splits text for codespell: into the list's phrases, and single words."""
    listed = (line.partition("->")[0] for line in WORDS.read_text(encoding="utf-8").splitlines())
    phrases = sorted((re.escape(words) for words in listed if " " in words), key=len, reverse=True)
    return rf"(?i:\b(?:{'|'.join(phrases)})(?!\w))|[\w'-]+"


if __name__ == "__main__":
    sys.exit(check(files()))
