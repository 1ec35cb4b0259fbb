"""nbconvert's exporters of pages, made safe to open: nothing of the notebook runs in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nbconvert.exporters import HTMLExporter, SlidesExporter
from nbformat import NotebookNode
from traitlets import default
from traitlets.config import Config

from notebook_runner_server.export.markup import harmless, harmless_cell
from notebook_runner_server.export.representation import SHOWN, chosen

_TEMPLATES = Path(__file__).with_name("templates")


class PageExporter(HTMLExporter):
    """A page that is one file: it loads nothing, runs nothing, and is light or dark as its reader is."""

    @default("template_name")
    def _template_name_default(self) -> str:
        return "page"

    @default("extra_template_basedirs")
    def _basedirs_default(self) -> list[str]:
        return [str(_TEMPLATES)]

    @default("extra_template_paths")
    def _paths_default(self) -> list[str]:
        # So that one template can name a file of another one.
        return [str(_TEMPLATES)]

    @property
    def default_config(self) -> Config:
        """What of an output is shown."""
        config: Config = super().default_config
        config.NbConvertBase.display_data_priority = list(SHOWN)
        return config

    def default_filters(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Yield nbconvert's filters, with our idea of harmless HTML in the place of its own.

        nbconvert's shows most tags as text.
        """
        yield from super().default_filters()  # type: ignore[no-untyped-call] # nbconvert's
        yield "clean_html", harmless
        yield "clean_cell", harmless_cell

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a notebook."""
        # Read by scripts only, and often larger than all that is shown.
        nb.metadata.pop("widgets", None)
        nb.metadata.setdefault("title", _title(nb))
        for cell in nb.cells:
            _prepare(cell)
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


def _prepare(cell: NotebookNode) -> None:
    """Leave of a cell what the page shows."""
    # nbconvert would make them attributes of a slide, which is outside of what is sanitized.
    if isinstance(slideshow := cell.metadata.get("slideshow"), dict):
        slideshow.pop("data", None)
    for output in cell.get("outputs", ()):
        if isinstance(output.get("data"), dict):
            output.data = NotebookNode(chosen(output.data))
    if "outputs" in cell:
        # One without a representation shows nothing, and nbconvert would warn of it.
        cell.outputs = [output for output in cell.outputs if output.get("data", True)]


def _title(notebook: NotebookNode) -> str:
    """Return the heading that the first text cell with one begins with."""
    for cell in notebook.cells:
        source = str(cell.source).lstrip()
        if cell.cell_type == "markdown" and source.startswith("# "):
            return source[2:].splitlines()[0].strip()
    return "Notebook"
