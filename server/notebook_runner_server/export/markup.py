"""Sanitizes HTML of notebooks, and converts formulas to MathML."""

from __future__ import annotations

import html as entities
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import nh3
import tinycss2
from bs4 import BeautifulSoup
from bs4.element import NavigableString, Tag
from latex2mathml.converter import convert_to_element
from soupsieve import SelectorSyntaxError

LONGEST_FORMULA = 2000
"""Maximum length of a formula; longer ones stay as TeX."""


DEEPEST = 4000
"""Maximum nesting of elements: the time to sanitize grows with its square. Deeper HTML is shown as text;
browsers stop at some 500."""

DEEPEST_CHANGED = 250
"""Maximum nesting of elements for converting formulas and style sheets."""

# What html.parser raises an AssertionError for: a section that is none of these.
_UNKNOWN_SECTION = re.compile(
    r"<!\[(?!(?:temp|cdata|ignore|include|rcdata|if|else|endif)[^-_.a-zA-Z0-9])", re.IGNORECASE
)


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
# Shapes and text, and neither what loads (filters' images), runs (scripts, animations of attributes), styles
# the page nor brings HTML (foreignObject).
_SVG_TAGS = _words(
    "svg circle clipPath defs desc ellipse g image line linearGradient marker mask metadata path pattern "
    "polygon polyline radialGradient rect stop switch symbol text textPath title tspan use"
)
_SVG_ATTRIBUTES = _words(
    "clip-path clip-rule clipPathUnits cx cy d dominant-baseline dx dy fill fill-opacity fill-rule "
    "font-family font-size font-style font-weight fx fy gradientTransform gradientUnits height href "
    "letter-spacing marker-end marker-mid marker-start markerHeight markerUnits markerWidth mask "
    "maskContentUnits maskUnits offset opacity orient pathLength patternContentUnits "
    "patternTransform patternUnits points preserveAspectRatio r refX refY rotate rx ry shape-rendering "
    "spreadMethod startOffset stop-color stop-opacity stroke stroke-dasharray stroke-dashoffset "
    "stroke-linecap stroke-linejoin stroke-miterlimit stroke-opacity stroke-width text-anchor "
    "text-rendering textLength transform vector-effect viewBox visibility width x x1 x2 xlink:href xmlns y "
    "y1 y2"
)
_TAGS = (
    nh3.ALLOWED_TAGS
    | _MATH_TAGS
    | _SVG_TAGS
    | {"audio", "font", "meter", "progress", "section", "source", "tfoot", "video"}
)
# None that takes an element out of its place in the page.
_STYLES = _words(
    "background background-color border border-bottom border-collapse border-color border-left "
    "border-radius border-right border-spacing border-style border-top border-width color display float "
    "font  font-family font-size font-style font-variant font-weight gap grid-template-columns height "
    "letter-spacing line-height list-style-type margin margin-bottom margin-left margin-right "
    "margin-top max-height max-width min-height min-width overflow overflow-x overflow-y padding "
    "padding-bottom padding-left padding-right padding-top text-align text-decoration text-indent "
    "text-transform vertical-align  white-space width word-break "
    # Of SVG.
    "clip-path clip-rule dominant-baseline fill fill-opacity fill-rule marker-end marker-mid marker-start "
    "mask opacity shape-rendering stop-color stop-opacity stroke stroke-dasharray stroke-dashoffset "
    "stroke-linecap stroke-linejoin stroke-miterlimit stroke-opacity stroke-width text-anchor "
    "visibility"
)
_MEDIA = re.compile(r"data:(image|audio|video)/[a-z0-9.+-]+[;,]", re.IGNORECASE)
# Any function of CSS but those that load nothing; a backslash can hide a name.
_LOADING = re.compile(
    r"\\|(?<![\w-])(?!(?:rgba?|hsla?|calc|minmax|repeat|(?:repeating-)?(?:linear|radial)-gradient)\("
    # A part of the page itself.
    r"|url\(\s*[\"']?#[\w:.-]+[\"']?\s*\))"
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
    rf"|\\(?P<kind>eq)?ref\{{(?P<ref>[^{{}}]{{1,200}})\}}"
    rf"|(?<![\\$\w])\$(?P<inline>(?=[^\s$])[^$]{_ANY}(?<![\s\\]))\$(?!\d)",
    re.DOTALL,
)
_LABEL = re.compile(r"\\label\s*\{([^{}]{0,200})\}")
_UNNUMBERED = re.compile(r"\\(?:nonumber|notag)(?![a-zA-Z])")
_REFERENCE = re.compile(r"\\(?:eq)?ref\s*\{([^{}]{0,200})\}")
# The converter takes one kind of columns, with a star, and one without: the rest is shown by these.
_ENVIRONMENTS = {
    **dict.fromkeys(("align", "aligned", "alignat", "alignedat", "eqnarray", "flalign"), "align*"),
    **dict.fromkeys(("gather", "gathered", "multline", "multlined"), "matrix"),
}
_ENVIRONMENT = re.compile(rf"\\(begin|end)\{{({'|'.join(_ENVIRONMENTS)})\*?\}}(?:\[[tbc]\])?")
_COLUMNS = re.compile(r"(\\begin\{align(?:ed)?at\*?\})\s*\{\d+\}")
# The converter takes a name of letters and spaces only.
_OPERATOR = re.compile(r"(\\operatorname(?:withlimits|\*)?)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SPACING = re.compile(r"\\[,;: !]|\\q?quad(?![a-zA-Z])|~")
_FONT = re.compile(r"\\(?:mathrm|mathop|mathsf|mathit|mathbf|text|textrm|rm)(?![a-zA-Z])\s*")
_WITH_LIMITS = frozenset({"inf", "lim", "lim inf", "lim sup", "liminf", "limsup", "max", "min", "sup"})
_LIMITS = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
_VERBATIM = {"a", "code", "math", "pre", "samp", "kbd", "script", "style"}
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
    for tag in _SVG_TAGS:
        allowed[tag] = _SVG_ATTRIBUTES
    allowed["details"] = {"open"}
    allowed["meter"] = {"value", "min", "max", "low", "high", "optimum"}
    allowed["progress"] = {"value", "max"}
    return allowed


def _filtered(tag: str, name: str, value: str) -> str | None:
    """Return an attribute's safe value, which loads nothing; None: remove it."""
    if tag in _SVG_TAGS:
        return _filtered_of_svg(tag, name, value)
    if name == "style":
        if _LOADING.search(value):
            return None
        # A light background needs dark text, also on a dark page.
        return f"{value};color:#111" if _COLOURED.search(value) and not _COLOUR.search(value) else value
    address = value.lstrip().lower()
    if name == "src":
        # External media would be requested by the reader's browser.
        return value if _MEDIA.match(address) else None
    return None if address.startswith("data:") else value


def _filtered_of_svg(tag: str, name: str, value: str) -> str | None:
    address = value.lstrip().lower()
    # With and without its namespace: xlink:href is href here.
    if name in {"href", "xlink:href"}:
        is_data = tag == "image" and _MEDIA.match(address)
        # A part of the page itself, for `use`, gradients and text on a path.
        return value if is_data or address.startswith("#") else None
    return None if _LOADING.search(value) and name not in _PLAIN else value


# Attributes in which parentheses are text, or move a shape.
_PLAIN = frozenset({"class", "id", "title", "lang", "transform", "gradientTransform", "patternTransform"})


def _cleaner(**more: set[str]) -> nh3.Cleaner:
    attributes = _attributes()
    for tag, names in more.items():
        attributes["*" if tag == "any" else tag] = attributes.get("*" if tag == "any" else tag, set()) | names
    return nh3.Cleaner(
        tags=_TAGS,
        attributes=attributes,
        attribute_filter=_filtered,
        url_schemes={"http", "https", "mailto", "data"},
        filter_style_properties=_STYLES,
    )


_CLEANER = _cleaner()
# For what the templates make, which says of what type an output is.
_BODY_CLEANER = _cleaner(any={"data-mime-type"}, div={"tabindex"})


def sanitize_html(html: str | bytes) -> str:
    """Return HTML without anything that executes or loads, and with formulas as MathML.

    Text, headings, tables, lists, links, colours, and embedded pictures and sounds stay.
    """
    text = html.decode(errors="replace") if isinstance(html, bytes) else str(html)
    if _depth(text) > DEEPEST:
        return f"<pre>{entities.escape(text)}</pre>"
    if _CHANGED.search(text):
        text = _transformed(text)
    # Last, so that everything is sanitized that was made of the notebook's text.
    return _cleaned(_CLEANER, text)


def sanitize_body(html: str) -> str:
    """Return the templates' HTML of all cells without anything that executes or loads.

    Templates put text of the notebook into attributes, so that sanitizing their input is not enough.
    """
    return _cleaned(_BODY_CLEANER, html)


def _cleaned(cleaner: nh3.Cleaner, text: str) -> str:
    # A lone surrogate is no text that could be cleaned.
    cleaned: str = cleaner.clean(text.encode(errors="replace").decode())
    return cleaned


def is_blank(html: str) -> bool:
    """Return whether sanitized HTML shows nothing, such as an element that a script would fill."""
    return not _VISIBLE.search(html)


_OPENING = re.compile(r"<[a-z]", re.IGNORECASE)
_VOID = _words("area base br col embed hr img input link meta param source track wbr")
# HTML without these is not parsed here.
_CHANGED = re.compile(r"[$\\]|<style|<input", re.IGNORECASE)
_VISIBLE = re.compile(
    r"<(?:img|audio|video|source|image)\b[^>]*\s(?:xlink:)?(?:src|href)=|<(?:math|hr|meter|progress)\b"
    r"|<(?:circle|ellipse|line|path|polygon|polyline|rect|use)\b|>[^<\S]*[^<\s]|^\s*[^<\s]"
)


def _depth(text: str) -> int:
    """Return an upper bound for the nesting of elements."""
    most = len(_OPENING.findall(text))
    if most <= DEEPEST:
        return most
    nesting = _Nesting()
    nesting.feed(_without_unknown_sections(text))
    return nesting.deepest


def _without_unknown_sections(text: str) -> str:
    """Return HTML with sections as text that Python's parser refuses."""
    return _UNKNOWN_SECTION.sub("&lt;![", text)


class _Nesting(HTMLParser):
    """Measures the nesting of elements without building a tree."""

    def __init__(self) -> None:
        super().__init__()
        self._open: Counter[str] = Counter()
        self._depth = self.deepest = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - its signature
        """Count an element."""
        if tag not in _VOID:
            self._open[tag] += 1
            self._depth += 1
            self.deepest = max(self.deepest, self._depth)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """Ignore an empty element of SVG or MathML; other elements have no such form."""
        if not (self._open["svg"] or self._open["math"]):
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """Count the end of an element."""
        if self._open[tag]:
            self._open[tag] -= 1
            self._depth -= 1


def _transformed(text: str) -> str:
    soup = BeautifulSoup(_without_unknown_sections(text), "html.parser")
    depths = _depths(soup)
    if max(depths, default=0) > DEEPEST_CHANGED:
        return text
    _inline_styles(soup, sum(depths))
    _show_checkboxes(soup)
    _show_formulas(soup)
    return str(soup)


def _depths(soup: BeautifulSoup) -> list[int]:
    """Return the depth of each element."""
    found: list[int] = []
    level: list[Tag] = [soup]
    while level := [child for element in level for child in element.children if isinstance(child, Tag)]:
        found += [found[-1] + 1 if found else 1] * len(level)
    return found


def _show_checkboxes(soup: BeautifulSoup) -> None:
    """Replace the checkboxes of task lists by characters, for form controls are removed."""
    for box in soup.find_all("input", type="checkbox"):
        is_checked = box.has_attr("checked")
        sign = soup.new_tag("span", title="done" if is_checked else "to do")
        sign.string = "\u2611 " if is_checked else "\u2610 "
        box.replace_with(sign)


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


def _readable(source: str) -> str:
    """Return TeX in the converter's commands, without equation numbers, as in Jupyter."""
    source = _UNNUMBERED.sub("", _LABEL.sub("", source))
    source = _REFERENCE.sub(lambda found: rf"\text{{{found[1]}}}", source)
    source = _OPERATOR.sub(_operator, _COLUMNS.sub(r"\1", source))
    return _ENVIRONMENT.sub(lambda found: rf"\{found[1]}{{{_ENVIRONMENTS[found[2]]}}}", source)


def _operator(found: re.Match[str]) -> str:
    """Return an operator whose name has neither fonts nor commands for spaces."""
    name = _SPACING.sub("\u2009", _FONT.sub("", found[2])).replace("{", "").replace("}", "")
    return f"{found[1]}{{{name}}}"


def _reference(label: str, *, in_parentheses: bool) -> BeautifulSoup:
    """Return a link to a formula by its label."""
    soup = BeautifulSoup("", "html.parser")
    link = soup.new_tag("a", href=f"#{label}")
    link.string = f"({label})" if in_parentheses else label
    soup.append(link)
    return soup


def _math(match: re.Match[str]) -> NavigableString | BeautifulSoup:
    """Return a formula as MathML, a reference as a link, and malformed TeX unchanged."""
    if match["ref"]:
        return _reference(match["ref"], in_parentheses=bool(match["kind"]))
    source = match["display"] or match["bracket"] or match["paren"] or match["inline"]
    if match["environment"]:
        source = rf"\begin{{{match['name']}}}{match['environment']}\end{{{match['name']}}}"
    label = _LABEL.search(source)
    source = _readable(source)
    display = "inline" if match["inline"] or match["paren"] else "block"
    try:
        element = convert_to_element(source, display=display)
    except Exception:  # noqa: BLE001 - its errors have no common root, and TeX is written by people
        return NavigableString(match[0])
    for one in element.iter():
        # The converter writes its signs as entities.
        one.text = entities.unescape(one.text or "")
        if one.tag in _LIMITS and (one[0].get("movablelimits") == "true" or one[0].text in _WITH_LIMITS):
            # It belongs below the operator, where there is room.
            one[0].set("movablelimits", "true")
            one.tag = _LIMITS[one.tag]
        if one.tag == "mo" and one.text in {"|", "\u2016"} and one.get("stretchy") is None:
            # Bars without \\left and \\right are as tall as a letter, the first one as the second.
            one.set("stretchy", "false")
        if one.tag == "mtable":
            _align(one)
    if label:
        element.set("id", label[1])
    return BeautifulSoup(ET.tostring(element, encoding="unicode"), "html.parser")


def _align(table: ET.Element) -> None:
    """Align the columns of a table by styles, because browsers ignore the attributes of MathML for that."""
    gaps = [float(gap.removesuffix("em")) for gap in table.get("columnspacing", "").split()]
    for row in table:
        for index, cell in enumerate(row):
            styles = [f"text-align:{cell.get('columnalign')}"] if cell.get("columnalign") else []
            if gaps:
                before = gaps[min(index, len(gaps)) - 1] / 2 if index else 0.0
                after = gaps[min(index, len(gaps) - 1)] / 2 if index + 1 < len(row) else 0.0
                styles += [f"padding-left:{before:g}em", f"padding-right:{after:g}em"]
            if styles:
                cell.set("style", ";".join(styles))


MOST_SEARCHES = 200
"""Selectors of one output that are searched for; selectors of a single id cost nothing."""

MOST_STEPS = 2_000_000
"""Steps of all searches in one output; a search may go up from each element."""


def _inline_styles(soup: BeautifulSoup, steps: int) -> None:
    """Move style sheets into the elements that they select, because a sheet would affect the whole page.

    Tables with colours of pandas (`DataFrame.style`) have one each.

    Args:
        soup: An output.
        steps: Steps of one search: the sum of the depths of all elements.
    """
    most = min(MOST_SEARCHES, MOST_STEPS // max(1, steps))
    # All of them first: a selector may select a style sheet as well.
    sheets = [sheet.extract() for sheet in soup.find_all("style")]
    known = {str(element["id"]): element for element in soup.find_all(id=True)}
    found: dict[Tag, list[str]] = defaultdict(list)
    searches = 0
    for sheet in sheets:
        # pandas adds one to each plain table as well, which repeats the page's own style.
        rules = () if sheet.has_attr("scoped") else _rules(sheet.get_text())
        for selector, declarations in rules:
            searches += not _is_id(selector)
            if _is_id(selector) or searches <= most:
                for element in _selected(soup, known, selector):
                    found[element].append(declarations)
    for element, declared in found.items():
        element["style"] = ";".join([*declared, str(element.get("style", ""))])


def _rules(sheet: str) -> Iterator[tuple[str, str]]:
    """Yield each selector with its declarations, except those under a condition."""
    for rule in tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True):
        if rule.type == "qualified-rule":
            declarations = tinycss2.serialize(rule.content).strip()
            for selector in tinycss2.serialize(rule.prelude).split(","):
                yield selector.strip(), declarations


def _is_id(selector: str) -> bool:
    return selector.startswith("#") and selector[1:].replace("-", "_").isidentifier()


def _selected(soup: BeautifulSoup, known: Mapping[str, Tag], selector: str) -> list[Tag]:
    if _is_id(selector):
        return [known[selector[1:]]] if selector[1:] in known else []
    try:
        return list(soup.select(selector))
    except (SelectorSyntaxError, NotImplementedError):
        # Only browsers support it: ::before, :hover.
        return []
