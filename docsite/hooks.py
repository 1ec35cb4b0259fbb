"""Hooks that MkDocs calls while it builds the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from docsite import commands, contract, errors, python, repository, settings

ROOT = Path(__file__).resolve().parents[1]

# A page contains `<!-- generated: NAME -->` in place of its generated part.
_MARK = re.compile(r"^<!-- generated: ([a-z]+) -->$", re.MULTILINE)
_GENERATORS = {
    "commands": commands.markdown,
    "contract": contract.markdown,
    "errors": errors.markdown,
    "python": python.markdown,
    "settings": settings.markdown,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to."""
    repository.add_linked(files, config, ROOT)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs names them
    """Insert generated parts into a page, and adapt its links to the site."""
    whole = _MARK.sub(lambda mark: _GENERATORS[mark[1]](), markdown)
    return repository.relinked(whole, page.file.src_uri)
