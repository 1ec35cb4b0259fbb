"""Reduces a notebook to what the formats show, with the types of nbformat.

nbconvert lets metadata choose exporters, media types, file names, attributes and more. Metadata that no
format shows is therefore dropped, and the rest is validated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from nbformat import NotebookNode
from nbformat.v4 import to_notebook_json

from notebook_runner_server.export import widgets
from notebook_runner_server.export.terminal import final_text

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


class _Kept(NamedTuple):
    """What of outputs is kept beside text: the models of widgets by id, and JSON of some types."""

    models: Mapping[str, Any]
    types: Collection[str]


def exportable(document: Mapping[str, Any], *, keep: Collection[str] = ()) -> NotebookNode:
    """Return a notebook for an exporter.

    Args:
        document: The notebook's JSON, nbformat 4.
        keep: JSON types that the format shows.
    """
    kept = _Kept(_models(_mapping(document.get("metadata"))), keep)
    cells = [{"id": _id(cell, index), **_cell(cell, kept)} for index, cell in enumerate(document["cells"])]
    notebook = {"nbformat": 4, "nbformat_minor": 5, "cells": cells, "metadata": _metadata(document)}
    node: NotebookNode = to_notebook_json(notebook)
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return node


def _joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Join text that was printed in pieces, and show it as a terminal does in the end."""
    found: list[NotebookNode] = []
    for output in outputs:
        previous = found[-1] if found else None
        if (
            previous is not None
            and output.output_type == previous.output_type == "stream"
            and output.name == previous.name
        ):
            previous.text += output.text
        else:
            found.append(output)
    for output in found:
        if output.output_type == "stream":
            output.text = final_text(output.text)
    return found


def _models(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of the notebook's widgets, by the id of their models."""
    return _mapping(_mapping(_mapping(metadata.get("widgets")).get(widgets.STATE)).get("state"))


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


def _cell(cell: Mapping[str, Any], kept: _Kept) -> dict[str, Any]:
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
        found["outputs"] = [made for output in cell.get("outputs", ()) if (made := _output(output, kept))]
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


def _output(output: Mapping[str, Any], kept: _Kept) -> dict[str, Any] | None:
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
        "data": _shown(_mapping(output.get("data")), kept),
        "metadata": _output_metadata(_mapping(output.get("metadata"))),
    }
    if kind == "execute_result":
        found["execution_count"] = _count(output)
    return found


def _shown(data: Mapping[str, Any], kept: _Kept) -> dict[str, Any]:
    """Return representations, with a widget as it was saved."""
    found = _data(data)
    found.update({kind: data[kind] for kind in kept.types if kind in data})
    model_id = _mapping(data.get(widgets.VIEW)).get("model_id")
    if model_id is not None and (saved := widgets.static_widget(kept.models, model_id)):
        found[widgets.VIEW] = {"html": saved.html, "is_interactive": saved.is_interactive}
        found["text/plain"] = saved.text
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
