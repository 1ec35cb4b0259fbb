"""PDF: printed by a browser where there is one, refused at once where there is none."""

import os
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_output
from typing_extensions import override

from notebook_runner_server.export.formats import ConversionError, convert, export
from notebook_runner_server.export.pages import _printed
from notebook_runner_server.run_in_subprocess import run_in_subprocess
from tests.support.notebooks import code, notebook
from tests.support.pdf import page_texts
from tests.support.polling import pause
from tests.support.tools import needs

pytestmark = pytest.mark.long

# CI has it (.ci/run); the browser's own tests (tests/gallery) see to that.
needs_browser = needs("chromium")
MISSING = "PDF export needs Chromium"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A notebook with a heading, code and text, and a script that it would print."""
    cell = code("secret = 1")
    cell.outputs = [
        new_output(
            "display_data", data={"text/html": "<script>document.write('evil')</script><p>forty-two</p>"}
        )
    ]
    path = tmp_path / "source.ipynb"
    nbformat.write(notebook(new_markdown_cell("# A heading"), cell), path)
    return path


@needs_browser
def test_a_notebook_is_printed(source: Path, tmp_path: Path) -> None:
    """The PDF is one, has pages, and is smaller without the code."""
    whole, bare = tmp_path / "whole.pdf", tmp_path / "bare.pdf"
    assert convert("pdf", source, whole) == "application/pdf"
    assert convert("pdf", source, bare, omit_input=True) == "application/pdf"
    for made in (whole, bare):
        assert made.read_bytes().startswith(b"%PDF-")
        assert b"/Page" in made.read_bytes()
    assert bare.stat().st_size < whole.stat().st_size


@needs_browser
def test_a_notebook_is_printed_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    """Whoever has read half of one that was removed meanwhile goes on in the one that is made again."""
    first, second = tmp_path / "first.pdf", tmp_path / "second.pdf"
    convert("pdf", source, first)
    # A PDF says when it was printed, to the second.
    printed = time.time()
    while int(time.time()) <= int(printed):
        pause()
    convert("pdf", source, second)
    assert first.read_bytes() == second.read_bytes()


@needs_browser
def test_pages_have_numbers_and_headings_stay_with_what_follows(tmp_path: Path) -> None:
    """Each page has its number of all; no heading is the last of its page, whatever follows in which cell."""
    cells = []
    for number in range(30):
        filler = "line  \n" * (7 + number % 17)
        cells += [new_markdown_cell(filler), new_markdown_cell(f"## own.{number}."), code(f"code.{number}.")]
        cells += [new_markdown_cell(f"{filler}\n\n### cell.{number}.\n\ntext.{number}.")]
    source, target = tmp_path / "source.ipynb", tmp_path / "target.pdf"
    nbformat.write(notebook(*cells), source)
    convert("pdf", source, target)
    texts = page_texts(target.read_bytes())
    assert len(texts) > 10
    assert [text.startswith(f"{number}/{len(texts)}") for number, text in enumerate(texts, 1)] == [
        True
    ] * len(texts)
    for heading, following in (("own", "code"), ("cell", "text")):
        for number in range(30):
            (page,) = [text for text in texts if f"{heading}.{number}." in text]
            assert f"{following}.{number}." in page


def test_without_a_browser_the_operator_is_told_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what is missing and its package, and nothing is written."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConversionError) as caught:
        run_in_subprocess(export, "pdf", source, tmp_path / "target")
    error = str(caught.value)
    assert error.startswith(MISSING)
    assert "package chromium" in error
    assert not (tmp_path / "target").exists()


def test_a_browser_that_prints_nothing_is_an_error_with_its_words(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it said last is in the error, without what it says on every server."""
    browser = tmp_path / "chromium"
    browser.write_text(
        "#!/bin/sh\necho 'ERROR:dbus/bus.cc no bus' >&2\necho 'no room on the disk' >&2\nexit 3\n"
    )
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConversionError) as caught:
        run_in_subprocess(export, "pdf", source, tmp_path / "target")
    error = str(caught.value)
    assert error == f"{browser} created no PDF: no room on the disk"


def test_the_browser_is_given_a_page_that_loads_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the sanitised page with its policy, a profile that is new, and finds no host."""
    browser = tmp_path / "chromium"
    browser.write_text(
        "#!/bin/sh\nfor each; do case $each in\n"
        "--print-to-pdf=*) target=${each#*=};;\nfile://*) page=${each#file://};;\nesac; done\n"
        f'cp "$page" "$target"; echo "$@" > {tmp_path}/flags\n'
    )
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    convert("pdf", source, tmp_path / "target")
    page, flags = (tmp_path / "target").read_text(), (tmp_path / "flags").read_text()
    assert "default-src 'none'" in page
    assert "evil" not in page
    assert "forty-two" in page
    assert "MAP * ~NOTFOUND" in flags
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chromium", "flags", "source.ipynb", "target"]


@needs_browser
def test_a_folder_for_temporary_files_may_have_a_long_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser makes a socket among them, whose path may have 107 bytes; it leaves nothing there."""
    long = tmp_path / ("long-" * 20)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr("tempfile.tempdir", None)
    browser = shutil.which("chromium")
    assert browser is not None
    assert _printed(browser, "some words").startswith(b"%PDF-")
    assert list(long.iterdir()) == []


@needs_browser
def test_a_browser_that_prints_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a page without a policy gets nothing from a host, not from this machine either."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    browser = shutil.which("chromium")
    assert browser is not None
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        @override
        def log_message(self, format: str, *args: object) -> None:
            asked.append(format % args)

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        html = f"<img src='http://127.0.0.1:{port}/a'><link rel=stylesheet href='http://localhost:{port}/b'>x"
        assert _printed(browser, html).startswith(b"%PDF-")
        server.shutdown()
    assert asked == []
    assert list(tmp_path.iterdir()) == []
