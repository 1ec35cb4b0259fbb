"""Links from pages to files of the repository: they are right on a Git host, and are made right in the site.

The site has the pages of `docs/`. A file outside of it that a page links to is put into the site below
`repository/`: a Markdown file as a page, any other as it is.
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

# A link or picture in Markdown whose target is relative: its path, then perhaps an anchor.
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^)#\s]+)(#[^)\s]*)?(?=\))")


def add_linked(files: Files, config: MkDocsConfig, root: Path) -> None:
    """Add to the site's files those of the repository that its pages link to, and that those link to.

    A link that leads nowhere adds nothing; MkDocs then finds that it does.
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
    """Return a page's text with its links as the site needs them.

    Args:
        markdown: The text, with links as they are in the repository.
        page: The page's place in the site.
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
    """Return the place in the site of what a page's link names by its place in the repository."""
    home = page.removeprefix(_REPOSITORY) if page.startswith(_REPOSITORY) else _DOCS + page
    path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
    return path.removeprefix(_DOCS) if path.startswith(_DOCS) else _REPOSITORY + path
