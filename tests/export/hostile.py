"""Markup and metadata that try to get past what cleans a page, and what is looked for in the page."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

# It reads HTML as browsers do, and is none.
from bleach._vendor import html5lib  # type: ignore[import-untyped] # it has no types

from notebook_runner_server.export.formats import convert

RUN = "window.ran=1"
MARKUP = [
    f"<script>{RUN}</script>",
    f"<SCRIPT SRC=data:text/javascript,{RUN}></SCRIPT>",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<img src=x onerror={RUN}>",
    f'<img src="data:image/png;base64,AA" onerror="{RUN}">',
    f'<img src="data:image/svg+xml,<svg onload={RUN}>">',
    f"<img/src/onerror={RUN}>",
    f'<img """><script>{RUN}</script>">',
    "<img srcset='http://127.0.0.1:9/a 1x'>",
    "<picture><source srcset='http://127.0.0.1:9/a'><img src='http://127.0.0.1:9/b'></picture>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><script href='data:text/javascript,{RUN}'/></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s></svg>",
    f"<svg><a xlink:href='javascript:{RUN}'><text x=9 y=9>a</text></a></svg>",
    f"<svg><a><animate attributeName=href values='javascript:{RUN}'/><text>a</text></a></svg>",
    f"<svg><set attributeName=onmouseover to='{RUN}'/></svg>",
    f"<svg><foreignObject><img src=x onerror={RUN}></foreignObject></svg>",
    "<svg><use href='http://127.0.0.1:9/a.svg#b'/></svg>",
    "<svg><image href='http://127.0.0.1:9/a.png'/></svg>",
    "<svg><feImage href='http://127.0.0.1:9/a.png'/></svg>",
    "<svg><rect style='fill:url(http://127.0.0.1:9/a)' fill='url(http://127.0.0.1:9/b)'/></svg>",
    f"<svg><style><img src=x onerror={RUN}></style></svg>",
    f"<svg></p><style><a id='</style><img src=1 onerror={RUN}>'>",
    f"<svg><title><style></title><img src=x onerror={RUN}></style></svg>",
    f"<svg><![CDATA[><img src=x onerror={RUN}>]]></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}></style></mglyph></table></mtext></math>",
    f"<math><annotation-xml encoding='text/html'><script>{RUN}</script></annotation-xml></math>",
    f"<math href='javascript:{RUN}'><mi xlink:href='javascript:{RUN}'>a</mi></math>",
    f'<math><mi//xlink:href="data:x,<script>{RUN}</script>">',
    f"<form><math><mtext></form><form><mglyph><style></math><img src onerror={RUN}>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"<xmp><img title='</xmp><img src=x onerror={RUN}>'>",
    f"<textarea></textarea><img src=x onerror={RUN}>",
    f"<title></title><script>{RUN}</script>",
    "<plaintext>",
    f"<!--><img src=x onerror={RUN}>-->",
    f"<!--{'x' * 9}--!><img src=x onerror={RUN}>",
    f"<?xml <img src=x onerror={RUN}>?>",
    f"<a href='javascript:{RUN}'>a</a>",
    f"<a href=' java\tscript:{RUN}'>a</a>",
    f"<a href='&#1;javascript:{RUN}'>a</a>",
    f"<a href='vbscript:{RUN}'>a</a>",
    f"<a href='data:text/html,<script>{RUN}</script>'>a</a>",
    "<a href='#' ping='http://127.0.0.1:9/'>a</a>",
    f"<iframe src='javascript:{RUN}'></iframe>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    "<frameset><frame src='http://127.0.0.1:9/'></frameset>",
    f"<object data='data:text/html,<script>{RUN}</script>'></object>",
    "<embed src='http://127.0.0.1:9/a'>",
    "<applet code=a codebase='http://127.0.0.1:9/'></applet>",
    "<portal src='http://127.0.0.1:9/'></portal>",
    f"<form action='javascript:{RUN}'><input type=image src='http://127.0.0.1:9/a'><button>a</button></form>",
    f"<input autofocus onfocus={RUN}>",
    f"<button formaction='javascript:{RUN}'>a</button>",
    f"<details open ontoggle={RUN}><summary>a</summary></details>",
    f"<video src=x onerror={RUN} poster='http://127.0.0.1:9/p'><source src=x onerror={RUN}></video>",
    f"<audio src=x onerror={RUN}></audio>",
    f"<marquee onstart={RUN}>a</marquee>",
    f"<body onload={RUN} background='http://127.0.0.1:9/a'>",
    f"<div onpointerrawupdate={RUN} contenteditable autofocus tabindex=1 onfocus={RUN}>a</div>",
    "<table background='http://127.0.0.1:9/a'><td background='http://127.0.0.1:9/b'>a</table>",
    "<link rel=stylesheet href='http://127.0.0.1:9/a.css'>",
    f"<link rel=import href='data:text/html,<script>{RUN}</script>'>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "<base href='http://127.0.0.1:9/'><img src=a>",
    "<style>@import 'http://127.0.0.1:9/a.css'; * { margin: 0 }</style>",
    "<style>*{margin:0}</style><p>a</p>",
    "<style>body { background: url(http://127.0.0.1:9/a) } p { position: fixed; content: 'x' }</style>a",
    "<p style='background: url(http://127.0.0.1:9/a)'>a</p>",
    "<p style='background: u\\72l(http://127.0.0.1:9/a)'>a</p>",
    "<p style='position: fixed; inset: 0; z-index: 9; color: red'>a</p>",
    "<p style='width: expression(alert(1)); -moz-binding: url(http://127.0.0.1:9/a); behavior: url(a)'>a</p>",
    "<p style='background: image-set(\"http://127.0.0.1:9/a\" 1x); cursor: url(http://127.0.0.1:9/c), a'>a",
    "<p data-background-iframe='http://127.0.0.1:9/' data-src='http://127.0.0.1:9/'>a</p>",
    f"<template><script>{RUN}</script></template>",
    f"<div><template shadowrootmode=open><script>{RUN}</script></template></div>",
    f"<x-a is=y onclick={RUN} slot=a>a</x-a>",
    f"$\\text{{<img src=x onerror={RUN}>}}$ $$\\href{{javascript:{RUN}}}{{a}}$$",
    f"</div></div></main></body></html><script>{RUN}</script>",
    f"</pre></section><aside class=notes><img src=x onerror={RUN}></aside>",
]
"""Each of them runs, loads, styles or ends what it may not, where it is not cleaned."""

WORDS = [
    f'"><script>{RUN}</script>',
    f"1 onload={RUN}",
    f"1\" onerror='{RUN}'",
    f"'><img src=x onerror={RUN}>",
]
"""What stands for an attribute, a name or a number."""


def _code(*outputs: dict[str, Any], **cell: Any) -> dict[str, Any]:
    code = {"cell_type": "code", "id": "a", "execution_count": 1, "source": "1", "metadata": {}}
    return {**code, "outputs": list(outputs), **cell}


def _text(source: str, **cell: Any) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": "b", "metadata": {}, "source": source, **cell}


def _shown(data: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def document(*cells: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """A notebook as JSON, in which nothing is checked."""
    numbered = [
        {**cell, "id": f"c{number}"} if len(cell["id"]) == 1 else cell for number, cell in enumerate(cells)
    ]
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": numbered}


def everywhere(text: str) -> list[dict[str, Any]]:
    """Cells that bring some text in every place that a page shows."""
    kinds = ("text/html", "text/markdown", "text/latex", "text/plain", "image/svg+xml", "text/vnd.mermaid")
    return [
        _text(text),
        {"cell_type": "raw", "id": "r", "metadata": {"raw_mimetype": "text/html"}, "source": text},
        _code(
            *(_shown({kind: text}) for kind in (*kinds, "application/javascript", "image/png", "image/jpeg"))
        ),
        _code({"output_type": "stream", "name": "stdout", "text": f"\x1b[1m{text}\x1b]8;;{text}\x07a"}),
        _code({"output_type": "error", "ename": text, "evalue": text, "traceback": [text]}),
        _code(source=text),
    ]


def in_metadata(word: str) -> dict[str, Any]:
    """A notebook whose metadata says some word wherever a template could read it."""
    sizes = {
        "width": word,
        "height": word,
        "alt": word,
        "needs_background": word,
        "filenames": {"image/png": word},
    }
    names = (
        "tags",
        "slideshow",
        "raw_mimetype",
        "slide_type",
        "slide_start",
        "name",
        "magics_language",
        "alt",
    )
    cell: dict[str, Any] = {
        **dict.fromkeys(names, word),
        "tags": [word],
        "slideshow": {"slide_type": "slide", "data": {word: word, "background-iframe": word}},
    }
    pictures = [_shown({kind: "QUJDRA=="}, **sizes, **{kind: sizes}) for kind in ("image/png", "image/jpeg")]
    return document(
        _code(*pictures, _shown({word: word, f"image/png{word}": word}), execution_count=word, metadata=cell),
        _code({"output_type": word, "name": word, "text": word}, id=word),
        _text(
            "![a](attachment:a)", attachments={"a": {word: word}, word: {"image/png": word}}, metadata=cell
        ),
        {"cell_type": word, "id": "u", "metadata": cell, "source": word},
        **dict.fromkeys(("title", "authors", "date", "language", "kernelspec", "widgets"), word),
        language_info={"name": word, "pygments_lexer": word, "mimetype": word, "nbconvert_exporter": word},
    )


def page(folder: Path, node: dict[str, Any], to: str) -> str:
    """A notebook as a page."""
    source, target = folder / "source.ipynb", folder / "target.html"
    source.write_text(json.dumps(node))
    assert convert(to, source, target) == "text/html"
    return target.read_text()


def _words(text: str) -> set[str]:
    return set(text.split())


_FORBIDDEN = _words(
    "applet animate animatemotion animatetransform base button embed feimage filter foreignobject form frame "
    "frameset iframe input link meta noscript object plaintext portal script select set slot style template "
    "textarea xmp x-a marquee annotation-xml"
)
_ATTRIBUTES = _words(
    "action autofocus background code codebase contenteditable data formaction is nonce ping poster profile "
    "slot srcdoc srcset http-equiv data-background-iframe data-src"
)
_PROPERTY = re.compile(r"(?:^|;)\s*([\w-]+)\s*:")
_LOADS = re.compile(r"url\((?![\"']?#)|image-set|expression|@|\\", re.IGNORECASE)
_PLACED = {"position", "inset", "z-index", "content", "cursor", "behavior", "-moz-binding", "animation"}
_MEDIA = re.compile(r"\s*data:(?:image|audio|video)/", re.IGNORECASE)
_LINK = re.compile(r"\s*(?:https?:|mailto:|#|[\w./?-]*$)", re.IGNORECASE)


def faults(html: str) -> Iterator[str]:
    """Yield what a browser would find in the body of a page that may not be there."""
    tree = html5lib.parse(html, namespaceHTMLElements=False)
    body = tree.find("body")
    for element in body.iter() if body is not None else ():
        # Comments have a function in the place of a name.
        if isinstance(element.tag, str):
            name = element.tag.rpartition("}")[2].lower()
            if _is_ours(element):
                continue
            if name in _FORBIDDEN:
                yield f"<{name}> {element.attrib}"
            yield from _of_attributes(element, name)


def _is_ours(element: Element) -> bool:
    """Whether it is a script of the slides."""
    source = element.get("src", "")
    own = source.startswith("https://unpkg.com/reveal.js") or "Reveal.initialize" in (element.text or "")
    return element.tag == "script" and own and RUN not in (element.text or "")


def _of_attributes(element: Element, tag: str) -> Iterator[str]:
    for given, value in element.attrib.items():
        name = given.rpartition("}")[2].rpartition(":")[2].lower()
        is_link = name == "href" and not (
            _LINK.match(value) if tag == "a" else re.match("#|data:image/", value)
        )
        is_source = name == "src" and not _MEDIA.match(value)
        is_style = name == "style" and (
            _LOADS.search(value) or _PLACED & set(_PROPERTY.findall(value.lower()))
        )
        is_named = name.startswith("on") or name in _ATTRIBUTES or re.fullmatch(r"[a-z0-9_-]+", name) is None
        if is_link or is_source or is_style or is_named:
            yield f"<{tag} {given}={value[:100]!r}>"
