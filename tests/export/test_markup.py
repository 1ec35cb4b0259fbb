"""HTML that a notebook brings: what of it stays, what does not, and formulas."""

import html

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebook_runner_server.export.markup import LONGEST_FORMULA, harmless, is_blank

SHEET = """<style type="text/css">
#T_1_row0_col0, #T_1_row1_col0 { background-color: yellow; }
#T_1_row1_col0 { color: green; }
#T_1 th { color: red; }
#T_1 td:hover, @media print { color: blue }
body { display: none; background: url(http://127.0.0.1/x) }
</style>
<table id="T_1"><tr><th>head</th><td id="T_1_row0_col0">1</td><td id="T_1_row1_col0">2</td></tr></table>"""


@pytest.mark.parametrize(
    ("given_html", "left"),
    [
        ("<p onclick=x>a</p><script>b</script>", "<p>a</p>"),
        ("<a href='javascript:x'>a</a>", '<a rel="noopener noreferrer">a</a>'),
        ("<a href='data:text/html,x'>a</a>", '<a rel="noopener noreferrer">a</a>'),
        ("<img src='http://127.0.0.1/x.png' alt=a>", '<img alt="a">'),
        ("<img src='x.png' alt=a>", '<img alt="a">'),
        ("<img src='data:text/html;base64,AA' alt=a>", '<img alt="a">'),
        ("<img src=' DATA:image/png;base64,AA' alt=a>", '<img src=" DATA:image/png;base64,AA" alt="a">'),
        ("<iframe src=x></iframe><form><input></form>a", "a"),
        ("<p style='background: url(http://127.0.0.1/)'>a</p>", "<p>a</p>"),
        ("<p style='background: u\\72l(http://127.0.0.1/)'>a</p>", "<p>a</p>"),
        ("<p style='background: image-set(\"http://127.0.0.1/\" 1x)'>a</p>", "<p>a</p>"),
        ("<p style='position: fixed; color: rgb(1, 2, 3)'>a</p>", '<p style="color:rgb(1, 2, 3)">a</p>'),
        ("<p data-background-iframe=x>a</p>", "<p>a</p>"),
        ("<!-- $x$ --><p>a</p>", "<p>a</p>"),
        (
            "<table><tr><td colspan=2>a</td></tr></table>",
            '<table><tbody><tr><td colspan="2">a</td></tr></tbody></table>',
        ),
    ],
)
def test_what_stays(given_html: str, left: str) -> None:
    """Text, tables, colours and pictures that are there as data stay; what runs or loads goes."""
    assert harmless(given_html) == left


def test_styles_of_a_table_are_those_of_its_cells() -> None:
    """What pandas colours keeps its colours, dark letters on them, and the page keeps its own."""
    text = harmless(SHEET)
    assert 'id="T_1_row0_col0" style="background-color:yellow;color:#111"' in text
    assert 'id="T_1_row1_col0" style="background-color:yellow;color:green"' in text
    assert '<th style="color:red">' in text
    assert "display" not in text
    assert "<style" not in text


@pytest.mark.parametrize(
    ("style", "dark"),
    [
        ("background: #ff0", True),
        ("background-color: white; font-weight: bold", True),
        ("background-color: white; color: green", False),
        ("background-color: transparent", False),
        ("background: linear-gradient(90deg, red 5%, transparent 5%)", False),
        ("border: 1px solid", False),
    ],
)
def test_a_light_ground_has_dark_letters(style: str, dark: bool) -> None:
    """Who gives an element a ground and no ink thinks of dark letters, which a dark page has not."""
    assert ("color:#111" in harmless(f"<p style='{style}'>a</p>")) is dark


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$x^2$", "x2"),
        ("$$\\frac{1}{2}$$", "12"),
        ("\\(a\\) and \\[b\\]", "ab"),
        ("\\begin{align}a &= b\\end{align}", "a=b"),
        ("$a < b$", "a<b"),
        ("$\\leq$", "≤"),
    ],
)
def test_formulas_are_shown(text: str, shown: str) -> None:
    """TeX as Jupyter reads it becomes MathML, without numbers of equations."""
    found = harmless(html.escape(text))
    math = found[found.index("<math") :]
    assert (
        "".join(html.unescape(part.partition(">")[2]) for part in math.split("<")).replace(" and ", "")
        == shown
    )


@pytest.mark.parametrize(
    "text",
    [
        "it costs $5 and $6",
        "US$5-US$6",
        "<code>$x$</code>",
        "<pre>echo $HOME $PATH$</pre>",
        '<table class="tex2jax_ignore"><tbody><tr><td>$x$</td></tr></tbody></table>',
        "$" + "x" * (LONGEST_FORMULA + 1) + "$",
        "a \\$5 note\\$",
    ],
)
def test_what_is_no_formula_stays(text: str) -> None:
    """Money, code, and tables that say so."""
    assert harmless(text) == text


def test_a_formula_brings_no_html() -> None:
    """The text of a formula stays text, and so do its links and styles."""
    found = harmless(
        "$\\text{&lt;img src=x onerror=evil()&gt;}$ $\\href{javascript:evil()}{x}$ $\\style{color:x}{y}$"
    )
    assert "<img" not in found
    assert "javascript" not in found
    assert "&lt;img" in found


@pytest.mark.parametrize("text", ["$\\frac{1}$", "$}{$", "$\\left($", "$" + "{" * 1500 + "$"])
def test_a_formula_that_cannot_be_read_is_no_reason_to_fail(text: str) -> None:
    """It stays as it was written, or as far as it can be shown."""
    assert harmless(text)


@settings(deadline=None, database=None, max_examples=200)
@given(st.text(st.sampled_from("$\\[](){}<>&;=\"'/ abscriptonmhl!-")))
def test_any_text_can_be_made_harmless(text: str) -> None:
    """Whatever comes, there is an answer, and cleaning it again finds nothing more that runs."""
    found = harmless(text)
    assert "<script" not in found
    assert " on" not in "".join(tag.partition(">")[0] for tag in found.split("<")[1:])


def test_what_is_blank() -> None:
    """HTML that only scripts would have filled shows nothing."""
    assert is_blank(harmless("<div id=a> <p></p></div><script>1</script>"))
    assert not is_blank(harmless("<div><p>a</p></div>"))
    assert not is_blank("words")
    assert not is_blank(harmless("<img src='data:image/png;base64,AA'>"))


def test_a_large_table_takes_no_time() -> None:
    """A style of its own for each of many cells is found at once."""
    cells = range(5000)
    sheet = "".join(f"#c{cell} {{ color: red }}" for cell in cells)
    text = harmless(f"<style>{sheet}</style><p>" + "".join(f"<b id=c{cell}>$1</b>" for cell in cells))
    assert text.count("color:red") == len(cells)
