"""Style sheets that an output brings, as the styles of the elements that they speak of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import tinycss2
from bs4 import BeautifulSoup
from bs4.element import Tag
from soupsieve import SelectorSyntaxError

MOST_SEARCHES = 200
"""Selectors of one output that the whole output is searched for; those that name one id cost nothing."""

MOST_STEPS = 2_000_000
"""Steps that all searches in one output may take: each may go up from each element."""


def inline(soup: BeautifulSoup, steps: int) -> None:
    """Take the style sheets out, and give each element what they say of it.

    A sheet would speak of the whole page. Tables that pandas has coloured (`DataFrame.style`) have one each.

    Args:
        soup: An output.
        steps: How many steps one search may take: how deep all elements are together.
    """
    most = min(MOST_SEARCHES, MOST_STEPS // max(1, steps))
    # All of them before any is applied: a selector may speak of them as well.
    sheets = [sheet.extract() for sheet in soup.find_all("style")]
    known = {str(element["id"]): element for element in soup.find_all(id=True)}
    said: dict[Tag, list[str]] = defaultdict(list)
    searches = 0
    for sheet in sheets:
        # pandas brings one for each plain table as well, that says what the page says itself.
        rules = () if sheet.has_attr("scoped") else _rules(sheet.get_text())
        for selector, declarations in rules:
            searches += not _is_id(selector)
            if _is_id(selector) or searches <= most:
                for element in _spoken_of(soup, known, selector):
                    said[element].append(declarations)
    for element, declarations_of_it in said.items():
        element["style"] = ";".join([*declarations_of_it, str(element.get("style", ""))])


def _rules(sheet: str) -> Iterator[tuple[str, str]]:
    """Yield each selector with its declarations; what is under a condition is left out."""
    for rule in tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True):
        if rule.type == "qualified-rule":
            declarations = tinycss2.serialize(rule.content).strip()
            for selector in tinycss2.serialize(rule.prelude).split(","):
                yield selector.strip(), declarations


def _is_id(selector: str) -> bool:
    return selector.startswith("#") and selector[1:].replace("-", "_").isidentifier()


def _spoken_of(soup: BeautifulSoup, known: Mapping[str, Tag], selector: str) -> list[Tag]:
    if _is_id(selector):
        return [known[selector[1:]]] if selector[1:] in known else []
    try:
        return list(soup.select(selector))
    except (SelectorSyntaxError, NotImplementedError):
        # What only a browser knows: ::before, a state of the pointer.
        return []
