"""Pages of notebooks that try every way in, read as a browser reads them: nothing is left that may not be."""

import re
from pathlib import Path

import pytest

from tests.export.hostile import MARKUP, WORDS, document, everywhere, faults, in_metadata, page

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings(
        "ignore:Your element with mimetype:UserWarning", "ignore:No lexer found:UserWarning"
    ),
]


def test_faults_are_found() -> None:
    """What looks at the pages sees each of the attacks, if nobody cleans it."""
    missed = [markup for markup in MARKUP if not list(faults(f"<!DOCTYPE html><body>{markup}"))]
    # Harmless by themselves: a picture's scripts, text, and what ends elements that are not there.
    assert len(missed) <= 5, missed


@pytest.mark.parametrize("markup", MARKUP)
def test_no_markup_is_left(tmp_path: Path, markup: str) -> None:
    """In text cells, raw cells, code, and outputs of every type."""
    assert list(faults(page(tmp_path, document(*everywhere(markup)), "html"))) == []


@pytest.mark.parametrize("to", ["html", "slides"])
def test_all_of_it_together(tmp_path: Path, to: str) -> None:
    """What one cell leaves open does nothing to the next."""
    cells = [cell for markup in MARKUP for cell in everywhere(markup)]
    html = page(tmp_path, document(*cells), to)
    assert list(faults(html)) == []
    # What stands around the cells is there once, and after them.
    assert [html.count(tag) for tag in ("<main>", "</main>", "</body>", "</html>")] == [1, 1, 1, 1]
    assert re.search(r"</main>\s*</body>", html)


@pytest.mark.parametrize("to", ["html", "slides"])
@pytest.mark.parametrize("word", WORDS)
def test_no_metadata_is_markup(tmp_path: Path, word: str, to: str) -> None:
    """Neither of the notebook, nor of cells, outputs, pictures and attachments."""
    assert list(faults(page(tmp_path, in_metadata(word), to))) == []


@pytest.mark.parametrize("to", ["html", "slides"])
@pytest.mark.parametrize("depth", [300, 5000])
@pytest.mark.parametrize("element", ["div", "b", "ul><li", "p", "svg", "div/", "table><tr><td"])
def test_html_that_is_nested_deep(tmp_path: Path, element: str, depth: int, to: str) -> None:
    """Style sheets in it, and the depth itself, take no time; what follows is shown."""
    deep = "<style>* * * { color: red }</style>" + f"<{element}>" * depth + "deep"
    cells = everywhere(deep)[:1] + everywhere(deep)[2:3] + everywhere("<i>after</i>")[:1]
    html = page(tmp_path, document(*cells), to)
    assert "<i>after</i>" in html
    assert "deep" in html
    assert "<style>*" not in html


@pytest.mark.parametrize("to", ["html", "slides"])
def test_a_picture_that_was_not_pasted(tmp_path: Path, to: str) -> None:
    """A reference to an attachment that is not there shows nothing, and what follows it is shown."""
    cells = (
        everywhere("![a](attachment:missing.png) <img src='attachment:b'>")[:1] + everywhere("*after*")[:1]
    )
    html = page(tmp_path, document(*cells), to)
    assert "<em>after</em>" in html
    assert "missing.png" not in html
