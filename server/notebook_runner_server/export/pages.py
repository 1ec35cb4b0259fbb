"""nbconvert's exporters of pages, made safe to open: nothing of the notebook runs in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbconvert.exporters import HTMLExporter, SlidesExporter
from nbformat import NotebookNode
from traitlets import default
from traitlets.config import Config

from notebook_runner_server.export.markup import harmless, is_blank

_TEMPLATES = Path(__file__).with_name("templates")
# What a page can show by itself, best first; widgets, JavaScript and Mermaid need scripts, and what stands
# beside them for such a case is shown.
_SHOWN = (
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "text/latex",
    "image/png",
    "image/jpeg",
    "text/plain",
)


class PageExporter(HTMLExporter):
    """A page that is one file: it loads nothing, runs nothing, and is light or dark as its reader is."""

    @default("template_name")
    def _template_name_default(self) -> str:
        return "page"

    @default("extra_template_basedirs")
    def _basedirs_default(self) -> list[str]:
        return [str(_TEMPLATES)]

    @property
    def default_config(self) -> Config:
        """What of an output is shown."""
        config: Config = super().default_config
        config.NbConvertBase.display_data_priority = list(_SHOWN)
        return config

    def default_filters(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Yield nbconvert's filters, with our idea of harmless HTML in the place of its own.

        nbconvert's shows most tags as text.
        """
        yield from super().default_filters()  # type: ignore[no-untyped-call] # nbconvert's
        yield "clean_html", harmless
        yield "is_blank", is_blank

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a notebook."""
        # Read by scripts only, and often larger than all that is shown.
        nb.metadata.pop("widgets", None)
        nb.metadata.setdefault("title", _title(nb))
        return super().from_notebook_node(nb, resources, **options)

    def _init_resources(self, resources: dict[str, Any] | None) -> dict[str, Any]:
        found: dict[str, Any] = super()._init_resources(resources)  # type: ignore[no-untyped-call] # as above
        loader = self.environment.loader
        assert loader is not None  # noqa: S101 - nbconvert has made one
        found["dark_theme"] = loader.get_source(self.environment, "static/theme-dark.css")[0]
        return found


class DeckExporter(PageExporter, SlidesExporter):
    """Slides. What shows them (reveal.js) is loaded by whoever opens them, and nothing else is."""

    @default("template_name")
    def _template_name_default(self) -> str:
        return "deck"


def _title(notebook: NotebookNode) -> str:
    """Return the heading that the first text cell with one begins with."""
    for cell in notebook.cells:
        source = str(cell.source).lstrip()
        if cell.cell_type == "markdown" and source.startswith("# "):
            return source[2:].splitlines()[0].strip()
    return "Notebook"
