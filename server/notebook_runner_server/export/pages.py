"""nbconvert's exporters of pages, made safe to open: nothing of the notebook runs in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbconvert.exporters import HTMLExporter, SlidesExporter
from nbformat import NotebookNode
from traitlets import default

from notebook_runner_server.export.markup import harmless

_TEMPLATES = Path(__file__).with_name("templates")


class _Safe(HTMLExporter):
    """Puts our idea of harmless HTML in the place of nbconvert's, which shows most tags as text."""

    def default_filters(self) -> Iterator[tuple[str, Callable[..., str]]]:
        """Yield nbconvert's filters, and the one of them that makes HTML harmless."""
        yield from super().default_filters()
        yield "clean_html", harmless


class PageExporter(_Safe):
    """A page that is one file: it loads nothing, runs nothing, and is light or dark as its reader is."""

    @default("template_name")
    def _template_name_default(self) -> str:
        return "page"

    @default("extra_template_basedirs")
    def _basedirs_default(self) -> list[str]:
        return [str(_TEMPLATES)]

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[str, dict[str, Any]]:
        """Convert a notebook."""
        nb.metadata.setdefault("title", _title(nb))
        return super().from_notebook_node(nb, resources, **options)

    def _init_resources(self, resources: dict[str, Any] | None) -> dict[str, Any]:
        found: dict[str, Any] = super()._init_resources(resources)
        loader = self.environment.loader
        assert loader is not None  # noqa: S101 - nbconvert has made one
        found["dark_theme"] = loader.get_source(self.environment, "static/theme-dark.css")[0]
        return found


class SafeSlidesExporter(_Safe, SlidesExporter):
    """Slides. What shows them (reveal.js) is loaded by whoever opens them."""


def _title(notebook: NotebookNode) -> str:
    """Return the first heading."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("# "):
                    return str(line[2:].strip())
    return "Notebook"
