"""HTML that a notebook brings, made harmless, and formulas as browsers show them by themselves."""

from __future__ import annotations

import re
from copy import deepcopy

import nh3
from bs4 import BeautifulSoup, NavigableString, Tag
from latex2mathml.converter import convert

_EVERYWHERE = {"class", "id", "title", "lang", "dir", "align", "valign", "style"}
_TAGS = nh3.ALLOWED_TAGS | {"audio", "font", "section", "source", "tfoot", "video"}
_STYLES = set(
    """
    background background-color border border-bottom border-collapse border-color border-left border-radius
    border-right border-spacing border-style border-top border-width color display float font font-family
    font-size font-style font-variant font-weight gap grid-template-columns height letter-spacing line-height
    list-style-type margin margin-bottom margin-left margin-right margin-top max-height max-width min-height
    min-width overflow overflow-x overflow-y padding padding-bottom padding-left padding-right padding-top
    text-align text-decoration text-indent text-transform vertical-align white-space width word-break
    """.split()
)
_MEDIA = re.compile(r"data:(image|audio|video)/[a-z0-9.+-]+[;,]", re.IGNORECASE)

# As nbconvert's own reading of Markdown leaves them in the text.
_FORMULA = re.compile(
    r"\$\$(?P<display>.+?)\$\$"
    r"|\\\[(?P<bracket>.+?)\\\]"
    r"|(?P<environment>\\begin\{(?P<name>[a-z]+\*?)\}.+?\\end\{(?P=name)\})"
    r"|\\\((?P<paren>.+?)\\\)"
    r"|(?<![\\$\w])\$(?P<inline>[^\s$](?:[^$]*?[^\s$\\])?)\$(?!\d)",
    re.DOTALL,
)
_VERBATIM = {"code", "math", "pre", "samp", "kbd", "style"}


def _attributes() -> dict[str, set[str]]:
    allowed = deepcopy(nh3.ALLOWED_ATTRIBUTES)
    allowed["*"] = _EVERYWHERE
    allowed["font"] = {"color", "size", "face"}
    for tag in ("audio", "source", "video"):
        allowed[tag] = {"src", "controls", "width", "height", "type"}
    allowed["details"] = {"open"}
    return allowed


def _filtered(tag: str, name: str, value: str) -> str | None:
    """Let data in an address be a picture or a sound, and nothing that could be a page."""
    if value.lstrip().lower().startswith("data:") and not (
        name == "src" and tag in {"img", "audio", "source", "video"} and _MEDIA.match(value.lstrip())
    ):
        return None
    return value


_CLEANER = nh3.Cleaner(
    tags=_TAGS,
    attributes=_attributes(),
    attribute_filter=_filtered,
    url_schemes={"http", "https", "mailto", "data"},
    filter_style_properties=_STYLES,
)


def harmless(html: str | bytes) -> str:
    """Return HTML without anything that runs or loads, and with its formulas shown.

    What stays: text, headings, tables, lists, links, colours, and pictures and sounds that are in it as data.
    """
    text = html.decode(errors="replace") if isinstance(html, bytes) else str(html)
    return with_formulas(_CLEANER.clean(text))


def with_formulas(html: str) -> str:
    """Return HTML in which TeX between dollars is MathML, but in code."""
    if not _FORMULA.search(html):
        return html
    soup = BeautifulSoup(html, "html.parser")
    for text in list(soup.find_all(string=_FORMULA)):
        if not any(isinstance(one, Tag) and one.name in _VERBATIM for one in text.parents):
            _replace(text)
    return str(soup)


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
    source = next(
        found for name in ("display", "bracket", "environment", "paren", "inline") if (found := match[name])
    )
    display = "inline" if match["inline"] or match["paren"] else "block"
    try:
        return BeautifulSoup(convert(source, display=display), "html.parser")
    except Exception:  # noqa: BLE001 - its errors have no common root, and TeX is written by people
        return NavigableString(match[0])
