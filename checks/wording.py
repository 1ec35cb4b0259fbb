"""Check spelling, and words that this project does not use, with codespell.

`wording.txt` is a dictionary in codespell's format: each word or phrase, and what to write instead.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import codespell_lib

ROOT = Path(__file__).resolve().parent.parent
WORDS = Path(__file__).with_name("wording.txt")
# What is checked, as git names it. Code joins a folder at a time, when its sentences are rewritten.
PATHS = [
    "benchmarks/*.py",
    "*.md",
    "*.proto",
    "*.yaml",
    "*.yml",
    "Dockerfile",
    "Makefile",
    "checks/*.py",
    "docsite/*.py",
    "examples/*.py",
]


def pattern() -> str:
    """Return the expression that finds words for codespell: phrases of the list, then single words."""
    listed = (line.partition("->")[0] for line in WORDS.read_text(encoding="utf-8").splitlines())
    phrases = sorted((re.escape(words) for words in listed if " " in words), key=len, reverse=True)
    return rf"(?i:\b(?:{'|'.join(phrases)})(?!\w))|[\w'-]+"


def files() -> list[str]:
    """Return the files of the repository that are checked."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PATHS]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S603 - git of PATH
    return sorted(listed.removesuffix("\0").split("\0"))


if __name__ == "__main__":
    sys.exit(
        codespell_lib.main("--dictionary", "-", "--dictionary", str(WORDS), "--regex", pattern(), *files())
    )
