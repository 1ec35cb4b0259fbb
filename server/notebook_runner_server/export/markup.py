"""HTML that a notebook brings, made harmless, and formulas as browsers show them by themselves."""

from __future__ import annotations

import html as entities
import re
from xml.etree import ElementTree as ET

import nh3
from bs4 import BeautifulSoup
from bs4.element import NavigableString, Tag
from latex2mathml.converter import convert_to_element

from notebook_runner_server.export import styles

LONGEST_FORMULA = 2000
"""Characters of a formula; what is longer stays as it was written."""


def _words(text: str) -> set[str]:
    return set(text.split())


_EVERYWHERE = {"class", "id", "title", "lang", "dir", "align", "valign", "style"}
_MATH_TAGS = _words(
    "math menclose merror mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms "
    "mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover"
)
_MATH_ATTRIBUTES = _words(
    "accent accentunder columnalign columnlines columnspacing depth display displaystyle fence form "
    "frame  height linethickness lspace mathbackground mathcolor mathsize mathvariant maxsize minsize "
    "movablelimits notation rowlines rowspacing rspace scriptlevel separator stretchy symmetric voffset "
    "width"
)
_TAGS = nh3.ALLOWED_TAGS | _MATH_TAGS | {"audio", "font", "section", "source", "tfoot", "video"}
# None that takes an element out of its place in the page.
_STYLES = _words(
    "background background-color border border-bottom border-collapse border-color border-left "
    "border-radius border-right border-spacing border-style border-top border-width color display float "
    "font  font-family font-size font-style font-variant font-weight gap grid-template-columns height "
    "letter-spacing line-height list-style-type margin margin-bottom margin-left margin-right "
    "margin-top max-height max-width min-height min-width overflow overflow-x overflow-y padding "
    "padding-bottom padding-left padding-right padding-top text-align text-decoration text-indent "
    "text-transform vertical-align  white-space width word-break"
)
_MEDIA = re.compile(r"data:(image|audio|video)/[a-z0-9.+-]+[;,]", re.IGNORECASE)
# The functions of CSS that load nothing; a backslash can hide a name.
_LOADING = re.compile(
    r"\\|(?<![\w-])(?!(?:rgba?|hsla?|calc|minmax|repeat|(?:repeating-)?(?:linear|radial)-gradient)\()"
    r"[\w-]+\(",
    re.IGNORECASE,
)
_COLOURED = re.compile(
    r"(?:^|;)\s*background(?:-color)?\s*:(?!.*(?:transparent|none|inherit|gradient))", re.IGNORECASE
)
_COLOUR = re.compile(r"(?:^|;)\s*color\s*:", re.IGNORECASE)

# As nbconvert's own reading of Markdown leaves them in the text.
_ANY = rf"{{1,{LONGEST_FORMULA}}}?"
_FORMULA = re.compile(
    rf"\$\$(?P<display>.{_ANY})\$\$"
    rf"|\\\[(?P<bracket>.{_ANY})\\\]"
    rf"|\\begin\{{(?P<name>[a-z]{{1,20}})\*?\}}(?P<environment>.{_ANY})\\end\{{(?P=name)\*?\}}"
    rf"|\\\((?P<paren>.{_ANY})\\\)"
    rf"|(?<![\\$\w])\$(?P<inline>(?=[^\s$])[^$]{_ANY}(?<![\s\\]))\$(?!\d)",
    re.DOTALL,
)
_VERBATIM = {"code", "math", "pre", "samp", "kbd", "script", "style"}
# Said by pandas where dollars are money.
_NO_FORMULAS = {"tex2jax_ignore", "mathjax_ignore"}


def _attributes() -> dict[str, set[str]]:
    allowed = {tag: set(names) for tag, names in nh3.ALLOWED_ATTRIBUTES.items()}
    allowed["*"] = _EVERYWHERE
    allowed["font"] = {"color", "size", "face"}
    for tag in ("audio", "source", "video"):
        allowed[tag] = {"src", "controls", "width", "height", "type"}
    for tag in _MATH_TAGS:
        allowed[tag] = _MATH_ATTRIBUTES
    allowed["details"] = {"open"}
    return allowed


def _filtered(_tag: str, name: str, value: str) -> str | None:
    """Let an attribute be what shows something, and nothing that could be a page or load something."""
    if name == "style":
        if _LOADING.search(value):
            return None
        # Who gives an element a light ground thinks of dark letters, which a dark page has not.
        return f"{value};color:#111" if _COLOURED.search(value) and not _COLOUR.search(value) else value
    address = value.lstrip().lower()
    if name == "src":
        # What is only referred to would be asked for by whoever opens the page.
        return value if _MEDIA.match(address) else None
    return None if address.startswith("data:") else value


_CLEANER = nh3.Cleaner(
    tags=_TAGS,
    attributes=_attributes(),
    attribute_filter=_filtered,
    url_schemes={"http", "https", "mailto", "data"},
    filter_style_properties=_STYLES,
)


def harmless(html: str | bytes) -> str:
    """Return HTML without anything that runs or loads by itself, and with its formulas shown.

    What stays: text, headings, tables, lists, links, colours, and pictures and sounds that are in it as data.
    """
    text = html.decode(errors="replace") if isinstance(html, bytes) else str(html)
    if any(sign in text for sign in ("$", "\\", "<style", "<STYLE")):
        soup = BeautifulSoup(text, "html.parser")
        styles.inline(soup)
        _show_formulas(soup)
        text = str(soup)
    # Last, so that nothing which was made of the notebook's text goes by it.
    cleaned: str = _CLEANER.clean(text)
    return cleaned


def is_blank(html: str) -> bool:
    """Tell whether HTML that is harmless shows nothing, as what scripts would have filled."""
    return not re.search(r"<(?:img|audio|video|math|hr)\b|>[^<\S]*[^<\s]|^\s*[^<\s]", html)


def _show_formulas(soup: BeautifulSoup) -> None:
    for text in list(soup.find_all(string=_FORMULA)):
        # A comment is a kind of text as well.
        if type(text) is NavigableString and not any(_is_verbatim(one) for one in text.parents):
            _replace(text)


def _is_verbatim(element: Tag) -> bool:
    return element.name in _VERBATIM or not _NO_FORMULAS.isdisjoint(element.get_attribute_list("class"))


def _replace(text: NavigableString) -> None:
    pieces: list[NavigableString | BeautifulSoup] = []
    end = 0
    for match in _FORMULA.finditer(text):
        pieces += [NavigableString(text[end : match.start()]), _math(match)]
        end = match.end()
    pieces.append(NavigableString(text[end:]))
    text.replace_with(*pieces)


def _math(match: re.Match[str]) -> NavigableString | BeautifulSoup:
    """Return a formula as MathML; one that cannot be read stays as it was written."""
    source = match["display"] or match["bracket"] or match["paren"] or match["inline"]
    if match["environment"]:
        # With a star where it matters: Jupyter's formulas have no numbers.
        name = "align*" if match["name"] == "align" else match["name"]
        source = rf"\begin{{{name}}}{match['environment']}\end{{{name}}}"
    display = "inline" if match["inline"] or match["paren"] else "block"
    try:
        element = convert_to_element(source, display=display)
    except Exception:  # noqa: BLE001 - its errors have no common root, and TeX is written by people
        return NavigableString(match[0])
    for one in element.iter():
        # The converter writes its signs as entities.
        one.text = entities.unescape(one.text or "")
    return BeautifulSoup(ET.tostring(element, encoding="unicode"), "html.parser")
