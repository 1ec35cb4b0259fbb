"""Repairs notebooks that violate nbformat's schema, and clears the results of earlier executions.

nbclient and papermill log a violation and continue. Here the executed notebook is valid afterwards, as far as
its format's version allows, and each repair is reported. Only a notebook that cannot be executed is an error.
"""

from __future__ import annotations

import json
import re
from typing import Any

from nbformat import NotebookNode
from nbformat.corpus.words import generate_corpus_id
from nbformat.v4 import nbformat_minor as NEWEST_MINOR  # noqa: N812 - a constant there, too
from nbformat.validator import iter_validate, normalize, validate

MAX_REPAIRS = 20
MAX_REPAIR = 200
_MAX_CELLS = 10
_MAX_KEY = 40

IDS_SINCE = 5
"""The first minor version of nbformat 4 with cell ids."""

_LAST_WITHOUT_IDS = IDS_SINCE - 1
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOTEBOOK_KEYS = {"cells", "metadata", "nbformat", "nbformat_minor"}
_CELL_KEYS = {
    "code": {"id", "cell_type", "metadata", "source", "outputs", "execution_count"},
    "markdown": {"id", "cell_type", "metadata", "source", "attachments"},
    "raw": {"id", "cell_type", "metadata", "source", "attachments"},
}
_JSON_MIME_TYPE = re.compile(r"application/(.*\+)?json")


class CannotRepairError(ValueError):
    """The notebook cannot be executed; the message says why, and where."""


class Repairs:
    """The repairs of a notebook: one sentence for each kind, with its cells."""

    def __init__(self) -> None:
        self._found: dict[str, list[int]] = {}

    def note(self, what: str, cell_index: int | None = None) -> None:
        """Add a repair: a sentence without its full stop, and the index of its cell, if any."""
        cells = self._found.setdefault(what, [])
        if cell_index is not None:
            cells.append(cell_index)

    def sentences(self) -> tuple[str, ...]:
        """Return the repairs in order, up to `MAX_REPAIRS`."""
        found = [_sentence(what, cells) for what, cells in self._found.items()]
        if len(found) > MAX_REPAIRS:
            left_out = len(found) - MAX_REPAIRS + 1
            found[MAX_REPAIRS - 1 :] = [f"{left_out} more kinds of repairs are not listed."]
        return tuple(found)


def _sentence(what: str, cells: list[int]) -> str:
    if cells:
        shown = ", ".join(map(str, cells[:_MAX_CELLS]))
        more = f" and {len(cells) - _MAX_CELLS} more" if len(cells) > _MAX_CELLS else ""
        what += f": cell{'s' if len(cells) > 1 else ''} {shown}{more}"
    return f"{what[: MAX_REPAIR - 1]}."


def repair(document: dict[str, Any], repairs: Repairs) -> None:
    """Repair a notebook of nbformat 4 in place, except values of metadata (`strip_metadata`).

    Args:
        document: The notebook's JSON.
        repairs: Collects the repairs.

    Raises:
        CannotRepairError: The notebook cannot be executed.
    """
    cells = document.get("cells")
    if not isinstance(cells, list):
        raise CannotRepairError("cells must be a list of cells.")
    for index, cell in enumerate(cells):
        _check_cell(f"cells/{index}", cell)
    minor = _repair_minor(document, repairs)
    # Later versions may have other keys, which are kept.
    if minor <= NEWEST_MINOR:
        _remove_keys(document, _NOTEBOOK_KEYS, repairs)
    _repair_metadata(document, "metadata", repairs)
    _repair_kernelspec(document["metadata"], repairs)
    seen: set[str] = set()
    for index, cell in enumerate(cells):
        _repair_cell(cell, minor, repairs, index)
        _repair_id(cell, minor, seen, repairs, index)


def strip_metadata(notebook: NotebookNode, repairs: Repairs) -> None:
    """Remove metadata that violates the schema, with nbformat's own code.

    Raises:
        NotebookValidationError: Something else violates the schema.
    """
    checked = _checked_by_schema(notebook)
    # nbformat caches a compiled schema for each version; all later versions share one.
    minor = min(notebook.nbformat_minor, NEWEST_MINOR + 1)
    if next(iter(iter_validate(checked, version=4, version_minor=minor)), None) is None:
        return
    _, stripped = normalize(checked, version_minor=minor, strip_invalid_metadata=True)
    validate(stripped, version=4, version_minor=minor)
    pairs = [(checked, stripped), *zip(checked.cells, stripped.cells, strict=True)]
    places = [None, *(index for index, cell in enumerate(notebook.cells) if cell.cell_type in _CELL_KEYS)]
    for (before, after), index in zip(pairs, places, strict=True):
        target = notebook if index is None else notebook.cells[index]
        for key in [key for key in before.metadata if key not in after.metadata]:
            del target.metadata[key]
            whose = "the notebook's metadata" if index is None else "the metadata"
            repairs.note(f"Removed the invalid {_quoted(key)} from {whose}", index)


def _checked_by_schema(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook for the check against the schema, without cells of unknown types."""
    cells = [cell for cell in notebook.cells if cell.cell_type in _CELL_KEYS]
    metadata = NotebookNode(notebook.metadata)
    # Some notebooks have a kernelspec without a name, which means the default kernel.
    if "name" not in metadata.get("kernelspec", {"name": ""}):
        del metadata["kernelspec"]
    return NotebookNode({**notebook, "metadata": metadata, "cells": cells})


def _check_cell(place: str, cell: object) -> None:
    """Check that a cell can be executed or shown.

    Raises:
        CannotRepairError: It is not a cell, or a code cell without source.
    """
    if not isinstance(cell, dict):
        raise CannotRepairError(f"{place} must be an object, not {_type_name(cell)}.")
    if not isinstance(cell.get("cell_type"), str):
        raise CannotRepairError(
            f"{place}/cell_type must be a string, not {_type_name(cell.get('cell_type'))}."
        )
    if cell["cell_type"] == "code" and not _is_text(cell.get("source")):
        found = _type_name(cell.get("source"))
        raise CannotRepairError(f"{place}/source must be a string or a list of strings, not {found}.")
    if not isinstance(cell.get("metadata"), dict | None):
        raise CannotRepairError(f"{place}/metadata must be an object, not {_type_name(cell['metadata'])}.")


def _repair_minor(document: dict[str, Any], repairs: Repairs) -> int:
    minor = document.get("nbformat_minor")
    if isinstance(minor, int) and not isinstance(minor, bool) and minor >= 0:
        return minor
    has_ids = any("id" in cell for cell in document["cells"])
    found = "missing" if minor is None else "not a whole number"
    minor = document["nbformat_minor"] = IDS_SINCE if has_ids else _LAST_WITHOUT_IDS
    repairs.note(f"Set nbformat_minor, which was {found}, to {minor}")
    return minor


def _repair_metadata(holder: dict[str, Any], what: str, repairs: Repairs, index: int | None = None) -> None:
    if holder.get("metadata") is None:
        holder["metadata"] = {}
        repairs.note(f"Added the missing {what}", index)
    elif not isinstance(holder["metadata"], dict):
        raise CannotRepairError(f"metadata must be an object, not {_type_name(holder['metadata'])}.")


def _repair_kernelspec(metadata: dict[str, Any], repairs: Repairs) -> None:
    for name in ("kernelspec", "language_info"):
        if name in metadata and not isinstance(metadata[name], dict):
            del metadata[name]
            repairs.note(f"Removed the {name}, which was not an object")
    language = metadata.get("language_info", {"name": ""})
    if not isinstance(language.get("name"), str):
        del metadata["language_info"]
        repairs.note("Removed the language_info, which had no name")
    spec = metadata.get("kernelspec", {})
    name = spec.get("name")
    if name is None:
        spec.pop("name", None)
    elif not isinstance(name, str):
        raise CannotRepairError(f"metadata/kernelspec/name must be a string, not {_type_name(name)}.")
    elif not isinstance(spec.get("display_name"), str):
        spec["display_name"] = name
        repairs.note("Set the kernelspec's display_name, which was missing, to its name")


def _repair_cell(cell: dict[str, Any], minor: int, repairs: Repairs, index: int) -> None:
    kind = cell["cell_type"]
    _repair_metadata(cell, "metadata", repairs, index)
    _repair_tags(cell["metadata"], repairs, index)
    if kind in _CELL_KEYS and cell.get("source") is None:
        cell["source"] = ""
        repairs.note("Added the missing source", index)
    elif not _is_text(cell.get("source", "")) and (kind in _CELL_KEYS or isinstance(cell["source"], list)):
        cell["source"] = json.dumps(cell["source"])
        repairs.note("Replaced the source, which was not text, with its JSON", index)
    if kind in _CELL_KEYS and minor <= NEWEST_MINOR:
        _remove_keys(cell, _CELL_KEYS[kind], repairs, index)
    _repair_attachments(cell, repairs, index)
    if kind == "code":
        _repair_outputs(cell, repairs, index)


def _repair_outputs(cell: dict[str, Any], repairs: Repairs, index: int) -> None:
    """Reset outputs and execution count, as `clear_execution` does, and report invalid ones."""
    if not isinstance(cell.get("outputs"), list):
        repairs.note("Set the missing or invalid outputs", index)
    count = cell.get("execution_count", "")
    if isinstance(count, bool) or not (count is None or (isinstance(count, int) and count >= 0)):
        repairs.note("Cleared the missing or invalid execution_count", index)
    cell["outputs"], cell["execution_count"] = [], None


def _repair_tags(metadata: dict[str, Any], repairs: Repairs, index: int) -> None:
    if "tags" not in metadata:
        return
    tags = metadata["tags"]
    if isinstance(tags, str):
        tags = [tags]
        repairs.note("Converted the tags from a string to a list", index)
    given = tags if isinstance(tags, list) else []
    valid = [tag for tag in given if isinstance(tag, str) and tag and "," not in tag]
    if len(valid) < len(given) or not isinstance(tags, list):
        repairs.note("Removed tags that were not valid", index)
    if len(set(valid)) < len(valid):
        repairs.note("Removed duplicate tags", index)
    metadata["tags"] = list(dict.fromkeys(valid))


def _repair_attachments(cell: dict[str, Any], repairs: Repairs, index: int) -> None:
    if "attachments" not in cell:
        return
    attachments = cell["attachments"]
    valid: dict[str, Any] = {}
    if isinstance(attachments, dict):
        valid = {name: data for name, data in attachments.items() if _is_bundle(data)}
        if len(valid) == len(attachments):
            return
    del cell["attachments"]
    if valid:
        cell["attachments"] = valid
    repairs.note("Removed null or invalid attachments", index)


def _repair_id(cell: dict[str, Any], minor: int, seen: set[str], repairs: Repairs, index: int) -> None:
    if minor < IDS_SINCE:
        if "id" in cell and cell["cell_type"] in _CELL_KEYS:
            del cell["id"]
            repairs.note(f"Removed the id, which nbformat 4.{minor} does not have", index)
        return
    given = cell.get("id")
    if isinstance(given, str) and _ID.fullmatch(given) and given not in seen:
        seen.add(given)
        return
    if "id" not in cell:
        repairs.note("Added the missing id", index)
    elif isinstance(given, str) and given in seen:
        repairs.note("Replaced the id, which another cell has too", index)
    else:
        repairs.note("Replaced the id, which was not valid", index)
    while (made := generate_corpus_id()) in seen:
        pass
    cell["id"] = made
    seen.add(made)


def _remove_keys(
    holder: dict[str, Any], allowed: set[str], repairs: Repairs, index: int | None = None
) -> None:
    for key in [key for key in holder if key not in allowed]:
        del holder[key]
        whose = "a notebook" if index is None else "this type of cell"
        repairs.note(f"Removed the key {_quoted(key)}, which {whose} cannot have", index)


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(line, str) for line in value)
    )


def _is_bundle(data: object) -> bool:
    return isinstance(data, dict) and all(
        _JSON_MIME_TYPE.fullmatch(mime) or _is_text(value) for mime, value in data.items()
    )


def _quoted(key: str) -> str:
    # Keys of a document can have any length, and lone surrogates.
    return repr(key if len(key) <= _MAX_KEY else f"{key[:_MAX_KEY]}…").encode(errors="replace").decode()


def _type_name(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        type(None): "missing or null",
    }
    return names.get(type(value), "something else" if not isinstance(value, int | float) else "a number")


ERROR_MARKER_TAG = "papermill-error-cell-tag"
"""The tag of the cells in which papermill shows an exception (`papermill.execute`, 0.3 s to import)."""

_RECORDS = ("start_time", "end_time", "duration", "exception", "input_path", "output_path")


def clear_execution(notebook: NotebookNode) -> None:
    """Remove outputs, execution counts, times and papermill's record, in place.

    Papermill does the same when it executes a notebook again, before it writes its new record; what it keeps
    of parameters is kept.
    """
    notebook.cells = [
        cell for cell in notebook.cells if ERROR_MARKER_TAG not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata.pop("execution", None)
    record = notebook.metadata.get("papermill")
    if isinstance(record, dict):
        for name in _RECORDS:
            record.pop(name, None)
    else:
        notebook.metadata.pop("papermill", None)
