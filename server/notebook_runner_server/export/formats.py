"""Converts one notebook with nbconvert, as a program of its own, so that no server waits for it.

::

    python -m notebook_runner_server.export.formats FORMAT NOTEBOOK TARGET [--no-input]

It writes TARGET, and prints `{"media_type": …}` or `{"error": …}`.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from pathlib import Path
from typing import Any

from notebook_runner_server.export.service import NO_INPUT, ConversionError

DEEPEST = 12_000
"""How deep the JSON of a notebook may be; a worker reads what is nearly as deep (`execution.worker`)."""

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36  # linux/prctl.h


def convert(to: str, notebook: Path, target: Path, *, omit_input: bool = False) -> str:
    """Write a notebook in a format of nbconvert's, and return its media type.

    Args:
        to: The name of an exporter.
        notebook: The notebook's file.
        target: The file to write.
        omit_input: Leave out what the code cells say, and all prompts.

    Raises:
        Exception: Whatever nbconvert raises.
    """
    from traitlets.config import Config  # noqa: PLC0415 - half a second, and only here

    from notebook_runner_server.export.exportable import exportable  # noqa: PLC0415 - as above

    config = Config()
    # Who looks at a result runs none of the notebook's scripts.
    config.HTMLExporter.sanitize_html = True
    # One artefact is one file: images stay in it.
    config.ExtractOutputPreprocessor.enabled = False
    config.ExtractAttachmentsPreprocessor.enabled = False
    # What was printed in pieces is one text, as a terminal would show it.
    config.CoalesceStreamsPreprocessor.enabled = True
    # Markdown alone has no way of its own to carry what was pasted.
    config.MarkdownExporter.preprocessors = [_with_attachments]
    config.TemplateExporter.exclude_input = omit_input
    config.TemplateExporter.exclude_input_prompt = omit_input
    config.TemplateExporter.exclude_output_prompt = omit_input
    exporter = _exporter(to)(config=config)
    with notebook.open(encoding="utf-8", errors="surrogatepass") as file:
        node = exportable(json.load(file))
    content, _ = exporter.from_notebook_node(node, resources={"metadata": {"name": "notebook"}})
    if isinstance(content, str):
        content = content.encode(errors="replace")
    target.write_bytes(content)
    return exporter.output_mimetype or "text/plain"


def _exporter(to: str) -> Any:
    """Return nbconvert's exporter of a format, or ours in its place."""
    from nbconvert.exporters import get_exporter  # noqa: PLC0415 - as above

    from notebook_runner_server.export import pages, pdf, scripts  # noqa: PLC0415 - as above

    own = {
        "html": pages.PageExporter,
        "slides": pages.SlidesPageExporter,
        "pdf": pdf.PdfExporter,
        # nbconvert's opens the page in a browser that runs what is in it.
        "webpdf": pdf.PdfExporter,
        "script": scripts.CodeExporter,
    }
    # nbconvert finds its own by names in any case.
    return own.get(to.lower()) or get_exporter(to)


def _with_attachments(node: Any, resources: Any) -> tuple[Any, Any]:
    """Put pictures that were pasted into text cells where the text names them."""
    for cell in node.cells:
        for name, bundle in cell.get("attachments", {}).items():
            for kind, data in list(bundle.items())[:1]:
                cell.source = cell.source.replace(f"attachment:{name}", f"data:{kind};base64,{data}")
    return node, resources


def main(arguments: list[str]) -> int:
    """Convert as the command line says, and print what came of it."""
    # Other processes of the server's user, notebooks too, may not look into it.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    to, notebook, target, *options = arguments
    # Whoever asked for the export is this process's parent; without it nobody wants the result.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # What it starts stays below it until it ends.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sys.setrecursionlimit(DEEPEST)
    omit_input = options == [NO_INPUT]
    try:
        answer = {"media_type": convert(to, Path(notebook), Path(target), omit_input=omit_input)}
    except ConversionError as error:
        answer = {"error": str(error)[:1000]}
    except Exception as error:  # noqa: BLE001 - nbconvert's errors have no common root; all are said
        answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
    print(json.dumps(answer))  # noqa: T201 - its answer
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
