"""Converts one notebook with nbconvert, in a process of its own, so that no server waits for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from notebook_runner_server.confinement import confine
from notebook_runner_server.export.banner import Banner


class ConversionError(RuntimeError):
    """A notebook cannot be converted; the message says why."""


HTML_INTERACTIVE = "html-interactive"
"""The page with scripts, the only format of ours whose name nbconvert does not know."""

DEEPEST = 12_000
"""Maximum depth of a notebook's JSON; a worker reads nearly as much (`execution.worker`)."""


def convert(
    to: str, notebook: Path, target: Path, *, omit_input: bool = False, about: Banner | None = None
) -> str:
    """Write a notebook in one of nbconvert's formats, and return its media type.

    Args:
        to: The name of an exporter.
        notebook: The notebook's file.
        target: The file to write.
        omit_input: Leave out the source of code cells, and all prompts.
        about: What a page says about the run at its top; None: nothing.

    Raises:
        Exception: Whatever nbconvert raises.
    """
    from traitlets.config import Config  # noqa: PLC0415 - half a second, and only here

    from notebook_runner_server.export.exportable import exportable  # noqa: PLC0415 - as above

    config = Config()
    # Readers of a result must not execute scripts of the notebook.
    config.HTMLExporter.sanitize_html = True
    # One artefact is one file: images stay in it.
    config.ExtractOutputPreprocessor.enabled = False
    config.ExtractAttachmentsPreprocessor.enabled = False
    # `exportable` has joined text that was printed in pieces.
    config.CoalesceStreamsPreprocessor.enabled = False
    # Markdown alone has neither attachments nor colours.
    config.MarkdownExporter.preprocessors = [_for_markdown]
    config.TemplateExporter.exclude_input = omit_input
    config.TemplateExporter.exclude_input_prompt = omit_input
    config.TemplateExporter.exclude_output_prompt = omit_input
    exporter = _exporter(to)(config=config)
    with notebook.open(encoding="utf-8", errors="surrogatepass") as file:
        node = exportable(json.load(file), keep=getattr(exporter, "json_types", ()))
    content, _ = exporter.from_notebook_node(
        node, resources={"metadata": {"name": "notebook"}, "banner": about}
    )
    if isinstance(content, str):
        content = content.encode(errors="replace")
    target.write_bytes(content)
    return exporter.output_mimetype or "text/plain"


def _exporter(to: str) -> Any:
    """Return our exporter of a format, or nbconvert's."""
    from nbconvert.exporters import get_exporter  # noqa: PLC0415 - as above

    from notebook_runner_server.export import pages  # noqa: PLC0415 - as above

    own = {
        "html": pages.PageExporter,
        HTML_INTERACTIVE: pages.InteractivePageExporter,
        "slides": pages.SlidesPageExporter,
        "pdf": pages.PdfExporter,
        # nbconvert's exporter executes the page in a browser.
        "webpdf": pages.PdfExporter,
        "script": pages.CodeExporter,
    }
    # nbconvert finds its own by names in any case.
    return own.get(to.lower()) or get_exporter(to)


def _for_markdown(node: Any, resources: Any) -> tuple[Any, Any]:
    """Replace references to attachments by their data, and remove the colours of printed text."""
    from nbconvert.filters import strip_ansi  # noqa: PLC0415 - as above

    for cell in node.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = strip_ansi(output.text)
        for name, bundle in cell.get("attachments", {}).items():
            for kind, data in list(bundle.items())[:1]:
                cell.source = cell.source.replace(f"attachment:{name}", f"data:{kind};base64,{data}")
    return node, resources


def export(
    to: str, notebook: Path, target: Path, *, omit_input: bool = False, about: Banner | None = None
) -> str:
    """Convert in a process of its own (`run_in_subprocess`), with all that it starts below it.

    Raises:
        ConversionError: The notebook cannot be converted.
    """
    # The end of standard input is not enough: a conversion may hold the interpreter for long.
    confine.die_with_parent()
    confine.become_subreaper()
    sys.setrecursionlimit(DEEPEST)
    try:
        return convert(to, notebook, target, omit_input=omit_input, about=about)
    except ConversionError as error:
        raise ConversionError(str(error)[:1000]) from error
    # nbconvert's errors have no common base class.
    except Exception as error:
        raise ConversionError(f"{type(error).__name__}: {error}"[:1000]) from error
