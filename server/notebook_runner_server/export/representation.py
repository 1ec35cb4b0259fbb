"""Chooses the representation of an output for a page: the best one without scripts, or a placeholder.

A kernel sends an output in several MIME types, and a notebook chooses the richest. A page that executes
nothing cannot show interactive plots and HTML that scripts would fill; it shows their fallbacks, and widgets
as they were saved.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from notebook_runner_server.export.markup import is_blank, sanitize_html
from notebook_runner_server.export.widgets import VIEW

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
# What scrapbook's `glue` displays.
_RESULT = re.compile(r"application/scrapbook\.scrap\.(?:json|text)\+json")
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]+")
LOADER = re.compile(r"application/vnd\.\w+_load\.v\d+\+json")
LOADER_LOGO = re.compile(r"class=[\"']bk-notebook-logo\b")
"""Loaders for later outputs, by MIME type or HTML: they show nothing in a notebook either."""


@dataclass(frozen=True, slots=True)
class _Missing:
    """What a page cannot show.

    Attributes:
        name: What it is.
        picture: The code that makes a picture of it in the notebook.
        runs: Whether a page with scripts can draw it.
    """

    name: str
    picture: str = ""
    runs: bool = False


_PLOTLY = _Missing("Interactive Plotly figure", 'fig.show("png")', runs=True)
_VEGA = _Missing("Interactive Vega chart", 'altair.renderers.enable("png")')
_BOKEH = _Missing("Interactive Bokeh plot", "bokeh.io.export.get_screenshot_as_png(plot)", runs=True)
_SCRIPT = _Missing("JavaScript output", runs=True)
# By the beginning of the MIME type.
_NAMES = {
    "application/vnd.plotly": _PLOTLY,
    "application/vnd.vega": _VEGA,
    "application/vnd.bokehjs": _BOKEH,
    "application/vnd.holoviews": _Missing("Interactive HoloViews plot", 'hv.output(fig="png")'),
    "application/vnd.jupyter.widget": _Missing("Widget"),
    "application/vdom": _Missing("VDOM element"),
    "application/geo+json": _Missing("Map (GeoJSON)"),
    "application/javascript": _SCRIPT,
    "application/pdf": _Missing("PDF document"),
    "text/vnd.mermaid": _Missing("Mermaid diagram"),
}
# By content of the HTML that the sanitizer removes, the most specific first.
_PARTS = (
    (re.compile(r"plotly", re.IGNORECASE), _PLOTLY),
    (re.compile(r"bokeh", re.IGNORECASE), _BOKEH),
    (re.compile(r"vega-?embed|altair", re.IGNORECASE), _VEGA),
    (re.compile(r"leaflet|folium", re.IGNORECASE), _Missing("Interactive map")),
    (re.compile(r"<(?:iframe|object|embed|frame|portal)\b", re.IGNORECASE), _Missing("Embedded page")),
    (re.compile(r"<(?:script|canvas|link)\b", re.IGNORECASE), _SCRIPT),
    (re.compile(r"<(?:form|input|button|select|textarea)\b", re.IGNORECASE), _Missing("Form")),
    (
        re.compile(r"<(?:img|picture|video|audio|source|image)\b", re.IGNORECASE),
        _Missing("Image or sound from another location"),
    ),
)


def chosen(data: Mapping[str, Any], *, runs_scripts: bool = False) -> dict[str, Any]:
    """Return the representation to show, as data of one MIME type with sanitized HTML; empty: nothing.

    Args:
        data: The representations by MIME type.
        runs_scripts: Whether the page runs scripts; what is missing there needs something from elsewhere.
    """
    if any(map(LOADER.fullmatch, data)) or LOADER_LOGO.search(str(data.get(HTML, ""))):
        return {}
    if isinstance(saved := data.get(VIEW), dict) and "html" in saved:
        return {HTML: _saved(saved)}
    # JavaScript often stands beside a type that says what it draws.
    missing = sorted((one for kind in data if (one := _missing(kind))), key=lambda one: one is _SCRIPT)
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
        missing = [one for pattern, one in _PARTS if pattern.search(text)][:1] or missing
    if picture := _other_picture(data):
        return {HTML: sanitize_html(picture)}
    # HTML of styles alone shows nothing, in a notebook as well.
    box = _box(missing[0], data.get(TEXT, ""), runs_scripts=runs_scripts) if missing else ""
    return {HTML: box} if box else _result_value(data)


def _result_value(data: Mapping[str, Any]) -> dict[str, str]:
    """Return a result value that the output sets, as a line of text; empty: it sets none."""
    for kind, scrap in data.items():
        if _RESULT.fullmatch(kind) and isinstance(scrap, dict) and {"name", "data"} <= scrap.keys():
            return {TEXT: f"{scrap['name']} = {json.dumps(scrap['data'], ensure_ascii=False)}"}
    return {}


def _missing(kind: str) -> _Missing | None:
    """Return what a MIME type is that a page cannot show; None: it can, or it shows nothing."""
    if kind in SHOWN or _OTHER_PICTURE.fullmatch(kind) or _RESULT.fullmatch(kind):
        return None
    found = next((one for beginning, one in _NAMES.items() if kind.startswith(beginning)), None)
    return found or _Missing(f"Output of type {kind[:100]}")


def _other_picture(data: Mapping[str, Any]) -> str:
    for kind, content in data.items():
        if _OTHER_PICTURE.fullmatch(kind) and isinstance(content, str) and _BASE64.fullmatch(content):
            return f'<img src="data:{kind};base64,{content}">'
    return ""


def _saved(widget: Mapping[str, Any]) -> str:
    """Return a widget as it was saved (`export.widgets`)."""
    note = "<p>Interactive widget, shown as it was saved: its controls need a kernel.</p>"
    shown = sanitize_html(widget["html"])
    return f'<div class="nbr-missing">{note}{shown}</div>' if widget["is_interactive"] else shown


def _box(missing: _Missing, text: object, *, runs_scripts: bool) -> str:
    """Return a box that says what is missing, and how a reader gets it."""
    shown = f"<pre>{html.escape(str(text))}</pre>" if text else ""
    why = (
        "its scripts are not in the page, which loads"
        if runs_scripts
        else "this page runs no scripts and loads"
    )
    ways = ["export it as html-interactive" if missing.runs and not runs_scripts else "open the notebook"]
    if missing.picture:
        ways.append(f"save a picture in the notebook with <code>{html.escape(missing.picture)}</code>")
    return (
        f'<div class="nbr-missing"><p><strong>{html.escape(missing.name)}</strong>: not shown, because {why} '
        f"nothing. To see it, {', or '.join(ways)}.</p>{shown}</div>"
    )
