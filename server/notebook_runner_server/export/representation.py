"""Chooses the representation of an output for a page: the best one without scripts, or a placeholder.

A kernel sends an output in several MIME types, and a notebook chooses the richest. A page that executes
nothing cannot show widgets, interactive plots and HTML that scripts would fill; it shows their fallbacks.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

from notebook_runner_server.export.markup import is_blank, sanitize_html

HTML, TEXT = "text/html", "text/plain"

SHOWN = (
    HTML,
    "text/markdown",
    "image/svg+xml",
    "text/latex",
    "image/png",
    "image/jpeg",
    TEXT,
)
"""The MIME types of nbconvert's templates, best first."""

# Pictures that nbconvert has no template for.
_OTHER_PICTURE = re.compile(r"image/(?:gif|webp|avif|bmp|apng)")
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]+")
# Loaders for later outputs show nothing in a notebook either.
_LOADER = re.compile(r"application/vnd\.\w+_load\.v\d+\+json")
# By the beginning of the MIME type.
_NAMES = {
    "application/vnd.plotly": "a Plotly figure",
    "application/vnd.vegalite": "a Vega-Lite chart",
    "application/vnd.vega": "a Vega chart",
    "application/vnd.bokehjs": "a Bokeh plot",
    "application/vnd.holoviews": "a HoloViews plot",
    "application/vnd.jupyter.widget": "a widget",
    "application/vdom": "a VDOM element",
    "application/geo+json": "a map (GeoJSON)",
    "application/javascript": "JavaScript output",
    "application/pdf": "a PDF",
    "text/vnd.mermaid": "a Mermaid diagram",
}
# By content of the HTML that the sanitizer removes, the most specific first.
_PARTS = (
    (re.compile(r"plotly", re.IGNORECASE), "a Plotly figure"),
    (re.compile(r"bokeh", re.IGNORECASE), "a Bokeh plot"),
    (re.compile(r"vega-?embed|altair", re.IGNORECASE), "a Vega chart"),
    (re.compile(r"leaflet|folium", re.IGNORECASE), "a map"),
    (re.compile(r"<(?:iframe|object|embed|frame|portal)\b", re.IGNORECASE), "an embedded page"),
    (re.compile(r"<(?:script|canvas|link)\b", re.IGNORECASE), "JavaScript output"),
    (re.compile(r"<(?:form|input|button|select|textarea)\b", re.IGNORECASE), "a form"),
    (
        re.compile(r"<(?:img|picture|video|audio|source|image)\b", re.IGNORECASE),
        "an image or sound from another location",
    ),
)
_MARKUP = re.compile(r"<[a-z]", re.IGNORECASE)


def chosen(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the representation to show, as data of one MIME type with sanitized HTML; empty: nothing."""
    missing = [name for kind in data if (name := _name(kind))]
    html_is_blank = False
    for kind in SHOWN:
        if kind not in data or (kind == TEXT and (missing or html_is_blank)):
            continue
        if kind != HTML:
            return {kind: data[kind]}
        text = str(data[HTML])
        cleaned = sanitize_html(text)
        if not is_blank(cleaned):
            return {HTML: cleaned}
        html_is_blank = True
        missing = [name for pattern, name in _PARTS if pattern.search(text)][:1] or missing
    if picture := _other_picture(data):
        return {HTML: sanitize_html(picture)}
    # HTML of styles alone shows nothing, in a notebook as well.
    return {HTML: _box(missing[0], data.get(TEXT, ""))} if missing else {}


def _name(kind: str) -> str:
    """Return a name for a MIME type that a page cannot show; empty: it can, or shows nothing."""
    if kind in SHOWN or _OTHER_PICTURE.fullmatch(kind) or _LOADER.fullmatch(kind):
        return ""
    found = next((name for beginning, name in _NAMES.items() if kind.startswith(beginning)), "")
    return found or f"output of type {kind[:100]}"


def _other_picture(data: Mapping[str, Any]) -> str:
    for kind, content in data.items():
        if _OTHER_PICTURE.fullmatch(kind) and isinstance(content, str) and _BASE64.fullmatch(content):
            return f'<img src="data:{kind};base64,{content}">'
    return ""


def _box(name: str, text: object) -> str:
    shown = f"<pre>{html.escape(str(text))}</pre>" if text else ""
    return (
        f'<div class="nbr-missing"><p>Not shown: {html.escape(name)}. '
        f"This page runs no scripts and loads nothing; open the notebook to see it.</p>{shown}</div>"
    )
