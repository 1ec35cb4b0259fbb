"""Reduces a notebook to what the formats show, with the types of nbformat.

nbconvert lets metadata choose exporters, media types, file names, attributes and more. Metadata that no
format shows is therefore dropped, and the rest is validated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import to_notebook_json

_CELL_TYPES = {"code", "markdown", "raw"}
_MAX_NAME = 40
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
_LANGUAGE = re.compile(r"[\w.+#-][\w.+# -]{0,99}")
_MIME_TYPE = re.compile(r"[a-z]+/[\w.+-]{1,200}", re.IGNORECASE)
_JSON_TYPE = re.compile(r"application/(?:.*\+)?json", re.IGNORECASE)
_SIZE = re.compile(r"\d{1,5}(?:\.\d{1,5})?(?:px|%)?")
_MAX_SIZE = 100_000
_SLIDE_TYPES = {"slide", "subslide", "fragment", "skip", "notes", "-"}
_BACKGROUNDS = {"light", "dark"}


def exportable(document: Mapping[str, Any]) -> NotebookNode:
    """Return a notebook for an exporter.

    Args:
        document: The notebook's JSON, nbformat 4.
    """
    cells = [{"id": _id(cell, index), **_cell(cell)} for index, cell in enumerate(document["cells"])]
    notebook = {"nbformat": 4, "nbformat_minor": 5, "cells": cells, "metadata": _metadata(document)}
    node: NotebookNode = to_notebook_json(notebook)
    return node


def _id(cell: Mapping[str, Any], index: int) -> str:
    """Return a cell's id for links in a page."""
    given = cell.get("id")
    return given if isinstance(given, str) and _ID.fullmatch(given) else f"cell-{index}"


def _metadata(document: Mapping[str, Any]) -> dict[str, Any]:
    metadata = _mapping(document.get("metadata"))
    found = _kept(metadata, {"title": _is_text, "date": _is_text})
    language = _kept(
        _mapping(metadata.get("language_info")), {"name": _is_language, "pygments_lexer": _is_language}
    )
    if "name" in language:
        found["language_info"] = language
    authors = metadata.get("authors")
    if isinstance(authors, list):
        found["authors"] = [
            {"name": one["name"]} for one in map(_mapping, authors) if _is_text(one.get("name"))
        ]
    return found


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    kind = cell["cell_type"]
    if kind not in _CELL_TYPES:
        return _placeholder(cell)
    metadata = _mapping(cell.get("metadata"))
    found: dict[str, Any] = {
        "cell_type": kind,
        "source": cell["source"],
        "metadata": _cell_metadata(metadata),
    }
    if kind == "code":
        found["execution_count"] = _count(cell)
        found["outputs"] = [made for output in cell.get("outputs", ()) if (made := _output(output))]
    elif attachments := _mapping(cell.get("attachments")):
        bundles = {name: _data(_mapping(bundle)) for name, bundle in attachments.items()}
        found["attachments"] = {name: bundle for name, bundle in bundles.items() if bundle}
    return found


def _cell_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = _kept(metadata, {"raw_mimetype": _is_text})
    tags = metadata.get("tags")
    if isinstance(tags, list):
        found["tags"] = [tag for tag in tags if _is_text(tag)]
    slideshow = _mapping(metadata.get("slideshow"))
    if slideshow.get("slide_type") in _SLIDE_TYPES:
        found["slideshow"] = {"slide_type": slideshow["slide_type"]}
    if _mapping(metadata.get("transient")).get("remove_source") is True:
        found["transient"] = {"remove_source": True}
    return found


def _placeholder(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a text cell instead of a cell of unknown type."""
    name = re.sub(r"[^\w.-]", "", str(cell["cell_type"]))[:_MAX_NAME]
    source = f"*A cell of type `{name}` cannot be shown in this format.*"
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def _output(output: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the part of an output that is shown; None: nothing."""
    kind = output.get("output_type")
    if kind == "stream":
        return {name: output[name] for name in ("output_type", "name", "text")}
    if kind == "error":
        return {name: output[name] for name in ("output_type", "ename", "evalue", "traceback")}
    if kind not in {"display_data", "execute_result"}:
        return None
    found = {
        "output_type": kind,
        "data": _data(_mapping(output.get("data"))),
        "metadata": _output_metadata(_mapping(output.get("metadata"))),
    }
    if kind == "execute_result":
        found["execution_count"] = _count(output)
    return found


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return representations; of JSON only the type, because no format shows more."""
    found: dict[str, Any] = {}
    for kind, value in data.items():
        if not _MIME_TYPE.fullmatch(kind):
            continue
        if _JSON_TYPE.fullmatch(kind):
            found[kind] = {}
        elif isinstance(value, str) or (isinstance(value, list) and all(map(_is_text, value))):
            found[kind] = value
    return found


def _output_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return sizes and backgrounds of pictures: for all types, and for each."""
    each = {
        kind: _presentation(_mapping(one)) for kind, one in metadata.items() if _MIME_TYPE.fullmatch(kind)
    }
    return {**{kind: one for kind, one in each.items() if one}, **_presentation(metadata)}


def _presentation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return _kept(
        metadata,
        {
            "width": _is_size,
            "height": _is_size,
            "unconfined": lambda value: value is True,
            "needs_background": lambda value: _is_text(value) and value in _BACKGROUNDS,
        },
    )


def _count(holder: Mapping[str, Any]) -> int | None:
    count = holder.get("execution_count")
    return count if isinstance(count, int) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _kept(found: Mapping[str, Any], wanted: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    return {name: found[name] for name, is_right in wanted.items() if name in found and is_right(found[name])}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_language(value: Any) -> bool:
    return isinstance(value, str) and _LANGUAGE.fullmatch(value) is not None


def _is_size(value: Any) -> bool:
    if isinstance(value, str):
        return _SIZE.fullmatch(value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_SIZE
