"""Adapt links to files of the repository, which are right on a Git host, to the site.

The site has the pages of `docs/`. If a page links to a file outside `docs/`, that file is added to the
site below `repository/`: a Markdown file as a page, any other file unchanged.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_DOCS = "docs/"
_REPOSITORY = "repository/"

# A Markdown link or picture with a relative target: its path, and an optional anchor.
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^)#\s]+)(#[^)\s]*)?(?=\))")


def add_linked(files: Files, config: MkDocsConfig, root: Path) -> None:
    """Add the files of the repository that pages of the site link to, directly or through other added pages.

    A broken link adds nothing, and MkDocs reports it.
    """
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        page = waiting.pop()
        for target in _targets(page.content_string, page.src_uri):
            source = root / target.removeprefix(_REPOSITORY)
            if not target.startswith(_REPOSITORY) or files.get_file_from_path(target) or not source.is_file():
                continue
            added = File.generated(config, target, abs_src_path=str(source))
            files.append(added)
            if added.is_documentation_page():
                waiting.append(added)


def relinked(markdown: str, page: str) -> str:
    """Return a page's text with its links adapted to the site.

    Args:
        markdown: The text, with links relative to the file's path in the repository.
        page: The page's path in the site.
    """
    folder = posixpath.dirname(page)

    def link(found: re.Match[str]) -> str:
        target = _in_site(found[1], page)
        return posixpath.relpath(target, folder) + (found[2] or "")

    return _LINK.sub(link, markdown)


def _targets(markdown: str, page: str) -> Iterator[str]:
    for found in _LINK.finditer(markdown):
        yield _in_site(found[1], page)


def _in_site(target: str, page: str) -> str:
    """Return the path in the site of the target of a page's link."""
    home = page.removeprefix(_REPOSITORY) if page.startswith(_REPOSITORY) else _DOCS + page
    path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
    return path.removeprefix(_DOCS) if path.startswith(_DOCS) else _REPOSITORY + path
