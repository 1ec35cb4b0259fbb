"""The banner at the top of a page: the facts of the run as text, and a link to the failing cell."""

import html
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell

from notebook_runner_server.export.banner import Banner
from notebook_runner_server.export.formats import convert
from tests.export.hostile import MARKUP, faults
from tests.support.notebooks import code, notebook

pytestmark = pytest.mark.integration

FAILED = Banner(
    "nightly", "Failed", "bad", (("Run", "r-1"),), (("n", "3"),), 2, "The cell raised KeyError", 1
)


def page(folder: Path, about: Banner | None, to: str = "html", *, omit_input: bool = False) -> str:
    """Return a notebook with two cells as a page."""
    source, target = folder / "source.ipynb", folder / "target"
    nbformat.write(notebook(new_markdown_cell("some text"), code("boom")), source)
    convert(to, source, target, omit_input=omit_input, about=about)
    return target.read_text()


@pytest.mark.parametrize("omit_input", [False, True])
def test_a_page_begins_with_its_run(tmp_path: Path, *, omit_input: bool) -> None:
    """Name, state, facts, parameters and the reason of the failure are above the notebook, once."""
    text = page(tmp_path, FAILED, omit_input=omit_input)
    banner = text[text.index('<div class="nbr-banner nbr-bad">') : text.index("some text")]
    for part in ("nightly", ">Failed<", "r-1", "<dt>n</dt><dd>3</dd>", "and 2 more", "raised KeyError"):
        assert banner.count(part) == 1
    assert "<title>nightly</title>" in text


def test_the_link_leads_to_the_failing_cell(tmp_path: Path) -> None:
    """The link's target is the id of the cell, which people count from one."""
    text = page(tmp_path, FAILED)
    (link,) = [part for part in text.split("<a ") if "Go to cell 2" in part]
    target = html.unescape(link.split('href="#')[1].split('"')[0])
    assert text.count(f'id="{target}"') == 1
    assert text.index("boom") > text.index(f'id="{target}"') > text.index("some text")


def test_a_cell_that_is_not_in_the_notebook_has_no_link(tmp_path: Path) -> None:
    """A page of an earlier state of the notebook still says why."""
    gone = Banner("a", "Failed", "bad", message="why", cell_index=7)
    assert "Go to cell" not in page(tmp_path, gone)
    assert "why" in page(tmp_path, gone)


def test_a_run_without_a_name_is_called_as_its_notebook(tmp_path: Path) -> None:
    """The first heading stands for a name that nobody gave."""
    source, target = tmp_path / "source.ipynb", tmp_path / "target"
    nbformat.write(notebook(new_markdown_cell("# The <b> report")), source)
    convert("html", source, target, about=Banner("", "Succeeded", "good"))
    assert ">The &lt;b&gt; report</strong>" in target.read_text()


def test_a_name_does_not_reorder_what_follows(tmp_path: Path) -> None:
    """A right-to-left override in it ends with its element, which `dir` isolates."""
    about = Banner("\N{RIGHT-TO-LEFT OVERRIDE}name", "Failed", "bad")
    assert '<strong dir="auto">\N{RIGHT-TO-LEFT OVERRIDE}name</strong>' in page(tmp_path, about)


@pytest.mark.parametrize("to", ["slides", "markdown", "script"])
def test_other_formats_have_no_banner(tmp_path: Path, to: str) -> None:
    """Only pages say something about their run."""
    text = page(tmp_path, FAILED, to)
    assert "boom" in text
    assert "raised KeyError" not in text


@pytest.mark.parametrize("markup", MARKUP)
def test_a_banner_is_text(tmp_path: Path, markup: str) -> None:
    """What a caller named or passed is shown as it is, and never is markup."""
    about = Banner(markup, markup, "bad", (("Notebook", markup),), ((markup, markup),), message=markup)
    plain = Banner("w", "w", "bad", (("Notebook", "w"),), (("w", "w"),), message="w")
    text, expected = page(tmp_path, about), page(tmp_path, plain)
    assert list(faults(text)) == []
    assert text.count("<") == expected.count("<")
