"""A notebook as PDF: our page, printed by Chromium, which has to be installed beside the server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from notebook_runner_server.export.formats import ConversionError
from notebook_runner_server.export.pages import PageExporter

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")

# The page's own policy forbids whatever would run or load, and the browser finds no host.
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
    # Its sandbox needs rights that root and most containers have not. What is printed runs nothing.
    "--no-sandbox",
)
# In the plain dictionary that says what made it; with parentheses that no text can have unescaped.
_DATE = re.compile(rb"/(?:Creation|Mod)Date \(D:[^()]*\)")


class PdfExporter(PageExporter):
    """Prints the page of a notebook."""

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
                "a PDF is printed by Chromium, which this server has not: its operator can install it "
                "(the package chromium)"
            )
        html, resources = super().from_notebook_node(nb, resources, **options)
        return _printed(browser, html), resources


def _printed(browser: str, html: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="print-") as folder:
        page, target = Path(folder, "page.html"), Path(folder, "page.pdf")
        page.write_text(html, encoding="utf-8", errors="replace")
        # Whoever asked for this process limits its time.
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
            # It makes a socket in its folder for temporary files, and a socket's path may have 107 bytes.
            cwd=folder,
            env={**os.environ, "HOME": folder, "TMPDIR": "."},
        )
        if not target.exists():
            # A desktop's message bus is not there on a server, which it says whatever happens.
            said = [line for line in done.stderr.decode(errors="replace").splitlines() if "dbus" not in line]
            raise ConversionError(f"{browser} printed nothing: {' '.join(said[-3:]) or done.returncode}")
        return _undated(target.read_bytes())


def _undated(pdf: bytes) -> bytes:
    """Blank when it was printed: one that is made again between two reads has the same bytes."""
    return _DATE.sub(lambda found: b" " * len(found[0]), pdf, count=2)
