"""Exporters to HTML, slides, PDF and scripts; nothing of the notebook is executed in their results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter, PythonExporter, ScriptExporter, SlidesExporter
from nbformat import NotebookNode
from traitlets import default
from traitlets.config import Config

from notebook_runner_server.export.banner import Banner
from notebook_runner_server.export.formats import ConversionError
from notebook_runner_server.export.interactive import PLOTLY, POLICY, ScriptedOutputs, framed
from notebook_runner_server.export.markup import sanitize_body, sanitize_html
from notebook_runner_server.export.representation import HTML, SHOWN, chosen

_TEMPLATES = Path(__file__).with_name("templates")


class PageExporter(HTMLExporter):
    """Exports a page as one file that loads and executes nothing, and follows the reader's dark mode."""

    @default("template_name")
    def _template_name_default(self) -> str:
        return "page"

    @default("extra_template_basedirs")
    def _basedirs_default(self) -> list[str]:
        return [str(_TEMPLATES)]

    @default("extra_template_paths")
    def _paths_default(self) -> list[str]:
        # For templates that use files of another one.
        return [str(_TEMPLATES)]

    @property
    def default_config(self) -> Config:
        """The configuration of nbconvert, with the representations that are shown."""
        config: Config = super().default_config
        config.NbConvertBase.display_data_priority = list(SHOWN)
        return config

    def default_filters(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """Yield nbconvert's filters, with our sanitizer instead of its own, which shows most tags as text."""
        yield from super().default_filters()  # type: ignore[no-untyped-call] # nbconvert's
        yield "clean_html", sanitize_html

    @pass_context
    def markdown2html(self, context: Mapping[str, Any], source: str) -> str:
        """Return Markdown as HTML; missing attachments are empty instead of an error."""
        attachments = _Attachments(context.get("cell", {}).get("attachments", {}))
        own = {"cell": {"attachments": attachments}, "resources": context.get("resources", {})}
        html: str = super().markdown2html(own, source)
        return html

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a notebook.

        Raises:
            ConversionError: The part of the page that is made of the notebook is unknown.
        """
        about: Banner | None = (resources or {}).get("banner")
        nb.metadata.setdefault("title", _title(nb) or (about and about.title) or "Notebook")
        # Random, because a notebook that knew it could close the part early.
        self._mark = secrets.token_hex(16)
        resources = {**(resources or {}), "failed_cell": _failed_cell(nb, about)}
        for cell in nb.cells:
            self._prepare(cell)
        page, resources = super().from_notebook_node(nb, resources, **options)
        try:
            before, body, after = page.split(f"<!--{self._mark}-->")
        except ValueError as error:
            raise ConversionError("the HTML of this notebook cannot be sanitized") from error
        return f"{before}{sanitize_body(body)}{after}", resources

    def _prepare(self, cell: NotebookNode) -> None:
        """Reduce the outputs of a cell to what the page shows."""
        for output in cell.get("outputs", ()):
            if isinstance(output.get("data"), dict):
                output.data = NotebookNode(self._chosen(output.data))
        if "outputs" in cell:
            # nbconvert would warn of an output without a representation.
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]

    def _chosen(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the representation of an output that the page shows."""
        return chosen(data)

    def _init_resources(self, resources: dict[str, Any] | None) -> dict[str, Any]:
        found: dict[str, Any] = super()._init_resources(resources)  # type: ignore[no-untyped-call] # as above
        loader = self.environment.loader
        assert loader is not None  # noqa: S101 - nbconvert has made one
        found["body_mark"] = self._mark
        found["dark_theme"] = loader.get_source(self.environment, "static/theme-dark.css")[0]
        return found


class InteractivePageExporter(PageExporter):
    """Exports a page in a sandboxed frame, in which the scripts of outputs run and load nothing.

    Everything else is sanitized as in the other page: text cells, for example, run nothing.

    Attributes:
        json_types: The JSON types that are shown.
    """

    json_types = (PLOTLY,)

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a notebook.

        Raises:
            ConversionError: As for a page.
        """
        self._scripted = ScriptedOutputs()
        page, resources = super().from_notebook_node(nb, {**(resources or {}), "policy": POLICY}, **options)
        head, end, body = page.partition("</head>")
        # The sanitizer has passed the places, and would not pass the scripts.
        body = self._place(r"(\d+)").sub(lambda found: self._scripted.found[int(found[1])], body)
        page = "".join([head, *self._scripted.head(), end, body])
        return framed(nb.metadata.title, page), resources

    def _chosen(self, data: Mapping[str, Any]) -> dict[str, Any]:
        if not self._scripted.add(data):
            return chosen(data, runs_scripts=True)
        return {HTML: self._place(str(len(self._scripted.found) - 1)).pattern}

    def _place(self, number: str) -> re.Pattern[str]:
        """Return what stands for a scripted output until the page is sanitized."""
        return re.compile(f'<div class="nbr-scripted-{self._mark}-{number}"></div>')


class SlidesPageExporter(PageExporter, SlidesExporter):
    """Exports slides, which load only reveal.js."""

    @default("template_name")
    def _template_name_default(self) -> str:
        return "deck"

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a notebook reproducibly.

        Raises:
            ConversionError: As for a page.
        """
        # A notebook cannot contain its own digest.
        digest = hashlib.sha256(json.dumps(nb, sort_keys=True).encode()).hexdigest()
        return super().from_notebook_node(nb, {**(resources or {}), "script_nonce": digest}, **options)


class _Attachments(dict[str, Mapping[str, str]]):
    """The attachments of a cell; missing ones are an empty picture."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Mapping[str, str]:
        return {"image/png": ""}


def _title(notebook: NotebookNode) -> str:
    """Return the first heading that a text cell begins with; empty: there is none."""
    for cell in notebook.cells:
        source = str(cell.source).lstrip()
        if cell.cell_type == "markdown" and source.startswith("# "):
            return source[2:].splitlines()[0].strip()
    return ""


def _failed_cell(notebook: NotebookNode, about: Banner | None) -> dict[str, Any] | None:
    """Return the id of the cell in which a run failed, and its number as people count."""
    index = about.cell_index if about else None
    if index is None or index >= len(notebook.cells):
        return None
    return {"id": notebook.cells[index].id, "number": index + 1}


PLAIN = "text/plain"

_MEDIA_TYPES = {
    "bash": "text/x-sh",
    "c": "text/x-csrc",
    "c#": "text/x-csharp",
    "c++": "text/x-c++src",
    "clojure": "text/x-clojure",
    "f#": "text/x-fsharp",
    "go": "text/x-go",
    "haskell": "text/x-haskell",
    "java": "text/x-java",
    "julia": "text/x-julia",
    "kotlin": "text/x-kotlin",
    "lua": "text/x-lua",
    "octave": "text/x-octave",
    "ocaml": "text/x-ocaml",
    "perl": "text/x-perl",
    "python": PythonExporter.output_mimetype,
    "r": "text/x-r-source",
    "ruby": "text/x-ruby",
    "rust": "text/x-rust",
    "scala": "text/x-scala",
    "sql": "text/x-sql",
}


class CodeExporter(ScriptExporter):
    """Exports the code cells as a script; only the language's name determines exporter and media type.

    With nbconvert's own exporter a notebook chooses any exporter, or a function to import.
    """

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a notebook."""
        language = nb.metadata.get("language_info", {}).get("name", "").lower()
        nb.metadata["language_info"] = NotebookNode(name=language)
        content: tuple[Any, dict[str, Any]] = super().from_notebook_node(nb, resources, **options)  # type: ignore[no-untyped-call] # nbconvert's
        self.output_mimetype = _MEDIA_TYPES.get(language, PLAIN)
        return content

    def _get_language_exporter(self, lang_name: str) -> PythonExporter | None:
        # nbconvert's method accepts any exporter that a package has installed for a language.
        return PythonExporter(config=self.config, parent=self) if lang_name == "python" else None


BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")

# The page's policy forbids executing and loading, and the browser resolves no host.
_FLAGS = (
    "--headless=new",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--no-pdf-header-footer",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-dev-shm-usage",
    # Its sandbox needs rights that root and most containers lack. The page executes nothing.
    "--no-sandbox",
)
# In the plain dictionary of metadata; text has no unescaped parentheses.
_DATE = re.compile(rb"/(?:Creation|Mod)Date \(D:[^()]*\)")


class PdfExporter(PageExporter):
    """Exports a PDF: our page, printed by Chromium, which must be installed on the server."""

    output_mimetype = "application/pdf"

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a notebook; the content is bytes.

        Raises:
            ConversionError: No browser is installed, or it failed.
        """
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None:
            raise ConversionError(
                "PDF export needs Chromium, which is not installed on the server (the package chromium)"
            )
        html, resources = super().from_notebook_node(nb, resources, **options)
        return _printed(browser, html), resources


def _printed(browser: str, html: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="print-") as folder:
        page, target = Path(folder, "page.html"), Path(folder, "page.pdf")
        page.write_text(html, encoding="utf-8", errors="replace")
        # The caller of this process limits its time.
        done = subprocess.run(  # noqa: S603 - a browser that the operator has installed
            [
                browser,
                *_FLAGS,
                f"--user-data-dir={folder}/profile",
                f"--print-to-pdf={target}",
                page.as_uri(),
            ],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            # It creates a socket in its TMPDIR, and the path of a socket has at most 107 bytes.
            cwd=folder,
            env={**os.environ, "HOME": folder, "TMPDIR": "."},
        )
        if not target.exists():
            # It always complains about a missing message bus.
            errors = [
                line for line in done.stderr.decode(errors="replace").splitlines() if "dbus" not in line
            ]
            raise ConversionError(f"{browser} created no PDF: {' '.join(errors[-3:]) or done.returncode}")
        return _undated(target.read_bytes())


def _undated(pdf: bytes) -> bytes:
    """Blank the dates, so that a PDF that is created again has the same bytes."""
    return _DATE.sub(lambda found: b" " * len(found[0]), pdf, count=2)
