"""A notebook as PDF: our page, printed by Chromium; where that is missing, nbconvert's own way by LaTeX."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from nbconvert.exporters import PDFExporter
from nbformat import NotebookNode

from notebook_runner_server.export.pages import PageExporter

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
PRINT_SECONDS = 100

# The page has a policy that forbids whatever would run or load; the browser need not be able to, either.
_FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--no-pdf-header-footer",
)


class PrintedExporter(PageExporter):
    """Prints the page of a notebook. A browser or LaTeX has to be installed beside the server."""

    output_mimetype = "application/pdf"

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a notebook; the content is bytes.

        Raises:
            RuntimeError: Nothing is installed that makes a PDF, or it failed.
        """
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None and shutil.which("xelatex") and shutil.which("pandoc"):
            printed: tuple[Any, dict[str, Any]] = PDFExporter(config=self.config).from_notebook_node(
                nb, resources, **options
            )
            return printed
        if browser is None:
            raise RuntimeError(
                "this server has nothing that makes a PDF: its operator can install Chromium (the package "
                "chromium), or LaTeX and pandoc (the packages texlive-xetex and pandoc)"
            )
        html, resources = super().from_notebook_node(nb, resources, **options)
        return _printed(browser, html), resources


def _printed(browser: str, html: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="print-") as folder:
        page, target = Path(folder, "page.html"), Path(folder, "page.pdf")
        page.write_text(html, encoding="utf-8", errors="replace")
        flags = [*_FLAGS, f"--user-data-dir={folder}/profile", f"--print-to-pdf={target}"]
        # Chromium's own sandbox needs rights that root's processes and most containers have not. What is
        # printed runs nothing.
        flags.append("--no-sandbox")
        done = subprocess.run(  # noqa: S603 - a browser that the operator has installed
            [browser, *flags, page.as_uri()],
            check=False,
            capture_output=True,
            timeout=PRINT_SECONDS,
            env={**os.environ, "HOME": folder},
        )
        if not target.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"{browser} printed nothing: {' '.join(said[-3:]) or done.returncode}")
        return target.read_bytes()
