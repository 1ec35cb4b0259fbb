"""HTML that a notebook brings: what of it stays, what does not, and formulas."""

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebook_runner_server.export.markup import LONGEST_FORMULA, is_blank, sanitize_html

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
    assert sanitize_html(given_html) == left


SHAPE = '<circle cx="1" cy="1" r="1"></circle>'


@pytest.mark.parametrize(
    ("inside", "left"),
    [
        (SHAPE, SHAPE),
        (f"<script>evil()</script>{SHAPE}", SHAPE),
        (f"<style>body {{ display: none }}</style>{SHAPE}", SHAPE),
        ('<circle r="1" onload="evil()" onclick="evil()"/>', '<circle r="1"></circle>'),
        (f"<foreignObject><p>a</p><script>b</script></foreignObject>{SHAPE}", SHAPE),
        ("<image href='http://127.0.0.1/x.png'/>", "<image></image>"),
        ("<image xlink:href='http://127.0.0.1/x.png'/>", "<image></image>"),
        (
            "<image xlink:href='data:image/png;base64,AA'/>",
            '<image xlink:href="data:image/png;base64,AA"></image>',
        ),
        ("<image href='data:text/html;base64,AA'/>", "<image></image>"),
        ("<use href='http://127.0.0.1/x.svg#a'/>", "<use></use>"),
        ("<use href='data:image/svg+xml;base64,AA#a'/>", "<use></use>"),
        ("<use xlink:href='#a'/>", '<use xlink:href="#a"></use>'),
        ("<rect fill='url(#g)'/>", '<rect fill="url(#g)"></rect>'),
        ("<rect fill='url(http://127.0.0.1/)'/>", "<rect></rect>"),
        (
            "<rect style='fill:url(#g);stroke:red'/>",
            '<rect style="fill:url(&quot;#g&quot;);stroke:red"></rect>',
        ),
        ("<rect style='fill:url(http://127.0.0.1/#g)'/>", "<rect></rect>"),
        ("<rect clip-path='u\\72l(http://127.0.0.1/)'/>", "<rect></rect>"),
        ("<g transform='translate(1, 2)'/>", '<g transform="translate(1, 2)"></g>'),
        (
            "<linearGradient id='g' gradientUnits='x'/>",
            '<linearGradient id="g" gradientUnits="x"></linearGradient>',
        ),
        (f"<animate attributeName='href' to='javascript:x'/><set/><handler/>{SHAPE}", SHAPE),
        (f"<a href='javascript:evil()'>{SHAPE}</a>", f'<a rel="noopener noreferrer">{SHAPE}</a>'),
        ("<filter><feImage href='http://127.0.0.1/'/></filter>", ""),
    ],
)
def test_a_drawing_in_html(inside: str, left: str) -> None:
    """Inline SVG keeps its shapes, text and links within itself; what runs, loads or brings HTML goes."""
    assert sanitize_html(f'<svg viewBox="0 0 2 2">{inside}</svg>') == f'<svg viewBox="0 0 2 2">{left}</svg>'


@pytest.mark.parametrize(
    "trick",
    [
        "<svg></p><style><a id='</style><img src=1 onerror=evil()>'>",
        "<svg><title><style><img src=1 onerror=evil()></style></title></svg>",
        "<svg><desc><p><img src=1 onerror=evil()></p></desc></svg>",
        "<math><mtext><table><mglyph><style><img src=1 onerror=evil()></style></mglyph></table></mtext>",
        "<svg><math><mi><svg><script>evil()</script></svg></mi></math></svg>",
        "<svg><foreignObject><math><mi><style><img src=1 onerror=evil()>",
        "<svg><![CDATA[<img src=1 onerror=evil()>]]></svg>",
        "<noscript><p title='</noscript><img src=1 onerror=evil()>'>",
        "<input type=checkbox onclick=evil() checked><input type=checkbox onfocus=evil() autofocus>",
        "<style>*{x:y}</style><svg onload=evil()><circle/></svg>",
    ],
)
def test_no_namespace_hides_what_runs(trick: str) -> None:
    """What one kind of parser reads as text and another as HTML is neither, however often it is read."""
    found = sanitize_html(trick)
    for _ in range(2):
        elements = [tag.partition(">")[0] for tag in found.split("<")[1:]]
        assert not [one for one in elements if "evil" in one or one.startswith(("script", "style", "input"))]
        found = sanitize_html(found)


@pytest.mark.parametrize(
    "sheet",
    [
        "*{margin:0}",
        "style{color:red}",
        "* *{a:b}*{color:red}",
        ":root,html *{margin:0}",
        "}{",
        "@import 'x';*{a:b",
        "*{",
    ],
)
def test_a_sheet_that_speaks_of_everything(sheet: str) -> None:
    """Whatever a style sheet says, the rest of the output is shown, and HTML of styles alone is blank."""
    assert ">a</p>" in sanitize_html(
        f"<style>{sheet}</style><style>{sheet}</style><p>a</p><style>{sheet}</style>"
    )
    assert is_blank(sanitize_html(f"<style>{sheet}</style>"))


def test_elements_nested_too_deep() -> None:
    """They are no reason to fail, and what runs goes from them as well."""
    found = sanitize_html("<b>" * 2000 + "$x$<p onclick=x>a</p><script>b</script>")
    assert "<p>a</p>" in found
    assert "script" not in found


def test_boxes_of_a_task_list() -> None:
    """They are shown as signs, done or not, and no control is left."""
    found = sanitize_html(
        '<li><input class="task-list-item-checkbox" type="checkbox" disabled/>a</li>'
        "<li><input type=checkbox checked>b</li>"
    )
    assert found == '<li><span title="to do">☐ </span>a</li><li><span title="done">☑ </span>b</li>'


def test_styles_of_a_table_are_those_of_its_cells() -> None:
    """What pandas colours keeps its colours, dark letters on them, and the page keeps its own."""
    text = sanitize_html(SHEET)
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
    assert ("color:#111" in sanitize_html(f"<p style='{style}'>a</p>")) is dark


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("$x^2$", "x2"),
        ("$$\\frac{1}{2}$$", "12"),
        ("\\(a\\) and \\[b\\]", "ab"),
        ("\\begin{align}a &= b\\end{align}", "a=b"),
        ("$a < b$", "a<b"),
        ("$\\leq$", "≤"),
        ("$$\\begin{aligned}a &= b \\\\ c &= d\\end{aligned}$$", "a=bc=d"),
        ("\\begin{aligned}a &= b\\end{aligned}", "a=b"),
        ("\\begin{equation}\\begin{aligned}[t]a &= b\\end{aligned}\\end{equation}", "a=b"),
        ("\\begin{alignat}{2}a &= b\\end{alignat}", "a=b"),
        ("\\begin{gather*}a \\\\ b\\end{gather*}", "ab"),
        ("\\begin{eqnarray}a &=& b\\end{eqnarray}", "a=b"),
        ("\\begin{multline}a \\\\ b\\end{multline}", "ab"),
        ("\\begin{equation}\\label{eq:a} a = b \\nonumber\\end{equation}", "a=b"),
        ("$$a \\label{a} \\notag$$", "a"),
        ("$\\operatorname*{argmin}_x f$", "argminxf"),
        ("$\\operatorname*{arg\\,max}_x f$", "arg\u2009maxxf"),
        ("$\\operatorname*{\\mathrm{arg}~min}_x f$", "arg\u2009minxf"),
        ("$\\operatorname{\\text{sign}}x$", "signx"),
        ("$a \\eqref{eq:b}$", "aeq:b"),
    ],
)
def test_formulas_are_shown(text: str, shown: str) -> None:
    """TeX as Jupyter reads it becomes MathML, without numbers of equations."""
    found = sanitize_html(html.escape(text))
    math = found[found.index("<math") :]
    assert (
        "".join(html.unescape(part.partition(">")[2]) for part in math.split("<")).replace(" and ", "")
        == shown
    )


def test_a_label_is_where_its_references_lead() -> None:
    """A formula with a label can be linked to, and references outside of formulas are links."""
    found = sanitize_html("$$a \\label{eq:a}$$ see \\ref{eq:a} and \\eqref{eq:a}, not <code>\\ref{x}</code>")
    assert 'id="eq:a"' in found[: found.index("</math>")]
    links = '<a href="#eq:a" rel="noopener noreferrer">{}</a>'
    assert f"see {links.format('eq:a')} and {links.format('(eq:a)')}, " in found
    assert "<code>\\ref{x}</code>" in found


@pytest.mark.parametrize("name", ["\\max", "\\lim", "\\operatorname*{argmin}", "\\operatorname*{arg\\,min}"])
def test_limits_stand_below(name: str) -> None:
    """What stands at an operator with limits is below it where there is room."""
    assert "<munder>" in sanitize_html(f"$${name}_x f$$")
    assert "<msub>" in sanitize_html("$$a_x f$$")


def test_bars_are_as_tall_as_asked() -> None:
    """Both bars of a norm have the size of a letter, unless they are asked to grow."""
    plain = sanitize_html("$$\\lVert x \\rVert^2$$")
    assert plain.count('<mo stretchy="false">\u2016</mo>') == 2
    assert sanitize_html("$$\\left| x \\right|$$").count('stretchy="true"') == 2


def test_equations_are_aligned() -> None:
    """Both sides of an equation stand beside its sign, and pairs of columns apart from each other."""
    found = sanitize_html("$$\\begin{aligned} a &amp;= b &amp; c &amp;= d \\end{aligned}$$")
    styles = re.findall(r'<mtd [^>]*style="([^"]*)"', found)
    assert styles == [
        "text-align:right;padding-left:0em;padding-right:0em",
        "text-align:left;padding-left:0em;padding-right:1em",
        "text-align:right;padding-left:1em;padding-right:0em",
        "text-align:left;padding-left:0em;padding-right:0em",
    ]


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
    assert sanitize_html(text) == text


def test_a_formula_brings_no_html() -> None:
    """The text of a formula stays text, and so do its links and styles."""
    found = sanitize_html(
        "$\\text{&lt;img src=x onerror=evil()&gt;}$ $\\href{javascript:evil()}{x}$ $\\style{color:x}{y}$"
    )
    assert "<img" not in found
    assert "javascript" not in found
    assert "&lt;img" in found


@pytest.mark.parametrize("text", ["$\\frac{1}$", "$}{$", "$\\left($", "$" + "{" * 1500 + "$"])
def test_a_formula_that_cannot_be_read_is_no_reason_to_fail(text: str) -> None:
    """It stays as it was written, or as far as it can be shown."""
    assert sanitize_html(text)


@pytest.mark.parametrize(
    "text", ["<![$", "<![", "<![x[a]]>", "<![if", "<![CDATA[a]]>", "<![if !IE]>b<![endif]>"]
)
def test_sections_are_no_reason_to_fail(text: str) -> None:
    """Those that Python's parser refuses are text."""
    assert "c" in sanitize_html(f"{text}<p>c</p>")


@settings(deadline=None, database=None, max_examples=200)
@given(st.text(st.sampled_from("$\\[](){}<>&;=\"'/ abscriptonmhl!-")))
def test_any_text_can_be_made_harmless(text: str) -> None:
    """Whatever comes, there is an answer, and cleaning it again finds nothing more that runs."""
    found = sanitize_html(text)
    assert "<script" not in found
    assert " on" not in "".join(tag.partition(">")[0] for tag in found.split("<")[1:])


def test_what_is_blank() -> None:
    """HTML that only scripts would have filled shows nothing."""
    assert is_blank(sanitize_html("<div id=a> <p></p></div><script>1</script>"))
    assert not is_blank(sanitize_html("<div><p>a</p></div>"))
    assert not is_blank("words")
    assert not is_blank(sanitize_html("<img src='data:image/png;base64,AA'>"))
    assert is_blank(sanitize_html("<img src='http://127.0.0.1/x.png'>"))
    assert not is_blank(sanitize_html("<svg><circle r=1 /></svg>"))
    assert is_blank(sanitize_html("<svg><script>1</script></svg>"))
    assert not is_blank(sanitize_html("<progress value=3 max=10></progress>"))


def test_a_large_table_takes_no_time() -> None:
    """A style of its own for each of many cells is found at once."""
    cells = range(5000)
    sheet = "".join(f"#c{cell} {{ color: red }}" for cell in cells)
    text = sanitize_html(f"<style>{sheet}</style><p>" + "".join(f"<b id=c{cell}>$1</b>" for cell in cells))
    assert text.count("color:red") == len(cells)
