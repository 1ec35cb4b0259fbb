"""Read, check and parameterize notebooks, and encode them as segments (`execution.segments`)."""

from __future__ import annotations

import copy
import json
import keyword
import warnings
from collections.abc import Mapping
from typing import Any

import nbformat
from nbformat.v4.rwbase import split_lines, strip_transient
from nbformat.warnings import DuplicateCellId, MissingIDFieldWarning

from notebook_runner_server.errors import (
    InvalidFieldError,
    InvalidNotebookError,
    RunnerError,
    unknown_parameters,
)
from notebook_runner_server.execution import repairs, segments
from notebook_runner_server.execution.options import resolve_kernel_name
from notebook_runner_server.execution.repairs import CannotRepairError, Repairs, clear_execution
from notebook_runner_server.execution.segments import PreparedNotebook

MAX_MESSAGE = 1000
OLD_FORMAT = 3

# Missing and repeated cell ids are fixed, as every Jupyter tool does.
warnings.filterwarnings("ignore", category=MissingIDFieldWarning)
warnings.filterwarnings("ignore", category=DuplicateCellId)

_SMALLEST = b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'


def warm_up() -> None:
    """Have nbformat load and compile its schemas, for which the first notebook would wait.

    That frees 10 MB, which what is imported after it can use.
    """
    prepare(_SMALLEST, {}, "", {})


def prepare(
    content: bytes,
    parameters: Mapping[str, Any],
    kernel_name: str,
    kernels: Mapping[str, str],
    *,
    is_ordered: bool = False,
) -> PreparedNotebook:
    """Read a notebook, repair and clear it, and inject parameters as papermill does.

    Args:
        content: JSON in nbformat 3 or 4, UTF-8.
        parameters: Values by name; empty: the notebook is taken as it is.
        kernel_name: The requested kernelspec; empty: the notebook's own.
        kernels: The known kernelspecs with their languages.
        is_ordered: Whether the parameters and their contents have an order, which is kept.

    Raises:
        InvalidNotebookError: It is not a notebook, or has no language that parameters can be translated to.
        UnknownParameterError: A parameter is not in the cell tagged `parameters`.
        InvalidFieldError: A parameter's name is not valid in the notebook's language.
    """
    try:
        notebook, repaired = _read(content)
        clear_execution(notebook)
        kernel_name = kernel_name or notebook.metadata.get("kernelspec", {}).get("name", "")
        if parameters:
            kernelspec = resolve_kernel_name(kernel_name)
            notebook = _parameterize(notebook, parameters, kernelspec, kernels, is_ordered=is_ordered)
        # Text that is not Unicode can be kept as an escape, but no kernel can be sent it.
        for text in (kernel_name, *(cell.source for cell in notebook.cells if cell.cell_type == "code")):
            text.encode()
        return PreparedNotebook(
            tuple(encode_cell(cell) for cell in notebook.cells), encode_tail(notebook), kernel_name, repaired
        )
    except UnicodeEncodeError as error:
        raise InvalidNotebookError(
            "The notebook has text that is not valid Unicode (a lone surrogate)."
        ) from error
    except RecursionError as error:
        raise InvalidNotebookError("The notebook is nested too deeply.") from error


def _read(content: bytes) -> tuple[nbformat.NotebookNode, tuple[str, ...]]:
    """Return a notebook in nbformat 4 that can be executed, and its repairs.

    Raises:
        InvalidNotebookError: It cannot be executed.
        RecursionError: It is nested too deeply.
    """
    document = _document(content)
    found = Repairs()
    try:
        if document["nbformat"] == OLD_FORMAT:
            document = _converted(document, found)
        repairs.repair(document, found)
        notebook: nbformat.NotebookNode = nbformat.v4.to_notebook_json(document)
        repairs.strip_metadata(notebook, found)
    except CannotRepairError as error:
        raise InvalidNotebookError(f"The notebook cannot be executed: {error}") from error
    except RecursionError:
        raise
    # Documents in a wrong format fail in many ways inside the conversion.
    except Exception as error:
        reason = f"{type(error).__name__}: {_short(error)}"
        raise InvalidNotebookError(f"The notebook cannot be read: {reason}") from error
    return notebook, found.sentences()


def _converted(document: dict[str, Any], found: Repairs) -> dict[str, Any]:
    """Convert a notebook of nbformat 3, without its outputs, which may be malformed."""
    index = 0
    for sheet in document["worksheets"]:
        for cell in sheet["cells"]:
            if cell.get("cell_type") == "code":
                if "outputs" not in cell:
                    found.note("Set the missing or invalid outputs", index)
                cell["outputs"] = []
            index += 1
    reader = nbformat.versions[OLD_FORMAT]
    converted: dict[str, Any] = nbformat.convert(reader.to_notebook_json(document), 4)
    return converted


def _document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InvalidNotebookError(
            f"The notebook is not UTF-8: {error.reason} at byte {error.start}."
        ) from error
    except json.JSONDecodeError as error:
        raise InvalidNotebookError(
            f"The notebook is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except ValueError as error:
        raise InvalidNotebookError("The notebook has an integer of more than 4,300 digits.") from error
    if not isinstance(document, dict) or "nbformat" not in document:
        raise InvalidNotebookError('The JSON is not a notebook: it has no "nbformat".')
    if document["nbformat"] not in (OLD_FORMAT, 4) or isinstance(document["nbformat"], (bool, float)):
        raise InvalidNotebookError(f"Unsupported nbformat {_short(document['nbformat'])}. Supported: 3, 4.")
    return document


def _short(value: object) -> str:
    # Text of a document may have lone surrogates.
    return str(value)[:MAX_MESSAGE].encode(errors="replace").decode()


def _parameterize(
    notebook: nbformat.NotebookNode,
    parameters: Mapping[str, Any],
    kernel_name: str,
    kernels: Mapping[str, str],
    *,
    is_ordered: bool,
) -> nbformat.NotebookNode:
    """Inject parameters with papermill's translators, and report unknown ones."""
    language = notebook.metadata.get("language_info", {}).get("name") or kernels.get(kernel_name, "python")
    try:
        # Papermill looks for a translator by the kernel's name first, then by the language.
        return _injected(notebook, parameters, kernel_name or language, language, is_ordered=is_ordered)
    except (RunnerError, RecursionError):
        raise
    # Papermill's translators and its view of a notebook's metadata fail in many ways.
    except Exception as error:
        message = f"The parameters cannot be translated to {_short(language)}: {_short(error)}"
        raise InvalidNotebookError(message) from error


def _injected(
    notebook: nbformat.NotebookNode,
    parameters: Mapping[str, Any],
    kernel_name: str,
    language: str,
    *,
    is_ordered: bool,
) -> nbformat.NotebookNode:
    # Papermill takes 0.3 s and 20 MB to import, and most runs have no parameters.
    from papermill.parameterize import parameterize_notebook  # noqa: PLC0415 - the reason above

    for name in parameters if language == "python" else ():
        if not name.isidentifier() or keyword.iskeyword(name):
            message = f"parameters: {name[:100]!r} is not a valid Python name."
            raise InvalidFieldError(message, field="parameters")
    # Papermill expects what its own loader puts there.
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
    notebook.metadata.setdefault("papermill", {})
    known, is_complete = _known_parameters(notebook, kernel_name, language)
    unknown = sorted(set(parameters) - set(known))
    if unknown and is_complete:
        raise unknown_parameters(unknown, known)
    parameterized: nbformat.NotebookNode = parameterize_notebook(
        notebook,
        dict(parameters) if is_ordered else _ordered(parameters, known),
        kernel_name=kernel_name,
        language=language,
    )
    return parameterized


def _known_parameters(
    notebook: nbformat.NotebookNode, kernel_name: str, language: str
) -> tuple[list[str], bool]:
    """Return the names that the `parameters` cell assigns, and whether the list is complete.

    It is the list that `--help-notebook` of the command shows.
    """
    from papermill.inspection import _infer_parameters  # noqa: PLC0415 - as papermill.parameterize
    from papermill.utils import find_first_tagged_cell_index  # noqa: PLC0415 - the same

    from notebook_runner._parameters_cell import python_parameters  # noqa: PLC0415 - it imports all of the client

    index = find_first_tagged_cell_index(notebook, "parameters")
    if index < 0:
        return [], False
    if language == "python":
        try:
            return [one.name for one in python_parameters(notebook.cells[index].source)], True
        except SyntaxError:
            # The run reports the error in its cell.
            return [], False
    # Papermill reads the cells of other languages incompletely.
    found = [one.name for one in _infer_parameters(notebook, kernel_name, language)]
    return found, bool(found)


def _ordered(parameters: Mapping[str, Any], known: list[str]) -> dict[str, Any]:
    """Sort parameters by the order in the notebook, and the rest by name.

    A Struct has no order: otherwise the same request would give a different notebook each time.
    """
    names = [name for name in known if name in parameters]
    names += sorted(set(parameters) - set(names))
    return {name: _sorted(parameters[name]) for name in names}


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def encode_cell(cell: nbformat.NotebookNode) -> bytes:
    """Encode a cell as it stands in a notebook file, with its indentation."""
    holder = nbformat.NotebookNode(cells=[copy.deepcopy(cell)], metadata=nbformat.NotebookNode())
    cell = strip_transient(split_lines(holder)).cells[0]
    return segments.encode_cell(cell)


def encode_tail(notebook: nbformat.NotebookNode) -> bytes:
    """Encode the part of a notebook that follows its cells."""
    holder = strip_transient(copy.deepcopy(nbformat.NotebookNode({**notebook, "cells": []})))
    del holder["cells"]
    end = b"\n ]," if notebook.cells else b"],"
    # Without the brace that opens the notebook: the head has it.
    return end + segments.encode(holder)[1:] + b"\n"


def decode(content: bytes) -> nbformat.NotebookNode:
    """Return a prepared notebook that was joined from its segments, without checks or conversion."""
    notebook: nbformat.NotebookNode = nbformat.v4.to_notebook_json(json.loads(content))
    return notebook
