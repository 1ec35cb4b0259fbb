"""Builds notebooks, and brings executed ones into a form in which equal runs are equal."""

import json
import re
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
_MODEL_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_TEXTUAL = (
    (re.compile(r"\b0x[0-9a-fA-F]+\b"), "ADDRESS"),
    (re.compile(r"ipykernel_\d+(/\d+\.py)?"), "ipykernel_N"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?"), "TIME"),
    (re.compile(r"/tmp/[\w./+-]+"), "TEMPORARY"),  # noqa: S108 - a pattern, no file
)


def code(source: str, *tags: str) -> NotebookNode:
    """A code cell, with cell tags."""
    node: NotebookNode = new_code_cell(source, metadata={"tags": list(tags)} if tags else {})
    return node


def markdown(source: str) -> NotebookNode:
    """A cell of text."""
    node: NotebookNode = new_markdown_cell(source)
    return node


def notebook(*cells: str | NotebookNode, **metadata: Any) -> NotebookNode:
    """A notebook of the newest format; a string is the source of a code cell."""
    nodes = [code(cell) if isinstance(cell, str) else cell for cell in cells]
    node: NotebookNode = new_notebook(cells=nodes, metadata=metadata)
    return node


def content(*cells: str | NotebookNode, **metadata: Any) -> bytes:
    """The same as the bytes of an .ipynb file."""
    return written(notebook(*cells, **metadata))


def written(node: NotebookNode) -> bytes:
    """A notebook as the bytes of an .ipynb file."""
    text: str = nbformat.writes(node)
    return text.encode()


def parsed(data: bytes) -> NotebookNode:
    """Reads the bytes of an .ipynb file."""
    node: NotebookNode = nbformat.reads(data.decode(), as_version=4)
    return node


def printed(node: NotebookNode, cell_index: int, name: str = "stdout") -> str:
    """All that one cell printed."""
    outputs = node.cells[cell_index].outputs
    return "".join(out.text for out in outputs if out.output_type == "stream" and out.name == name)


def results(node: NotebookNode) -> list[Any]:
    """The plain text of every execute_result, cell by cell."""
    outputs = [out for cell in node.cells for out in cell.get("outputs", [])]
    return [out.data["text/plain"] for out in outputs if out.output_type == "execute_result"]


def normalised(node: NotebookNode, *, torn: bool = False) -> dict[str, Any]:
    """The whole notebook, without what differs between two equal executions.

    Execution times, memory addresses, times of day, temporary paths and process ids become words;
    model ids become numbers by order of appearance; text that the kernel sent in several messages,
    cut by its flush timer, is joined. `torn` leaves out which of a cell's own messages had arrived
    when its kernel was ended, which is chance.
    """
    plain = json.loads(nbformat.writes(node))
    for cell in plain["cells"]:
        _without_times(cell, torn=torn)
        cell["outputs"] = _joined(cell.get("outputs", []))
    numbers = {model: f"MODEL-{number}" for number, model in enumerate(_models(plain))}
    text = _MODEL_ID.sub(lambda found: numbers[found[0]], json.dumps(plain, sort_keys=True))
    for pattern, word in _TEXTUAL:
        text = pattern.sub(word, text)
    result: dict[str, Any] = json.loads(text)
    return result


def _without_times(cell: dict[str, Any], *, torn: bool) -> None:
    times = cell["metadata"].get("execution", {})
    if torn:
        cell["metadata"].pop("execution", None)
        cell.pop("execution_count", None)
    else:
        times.update(dict.fromkeys(times, "TIME"))


def _joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring texts of one stream as one."""
    whole: list[dict[str, Any]] = []
    for output in outputs:
        is_text = output["output_type"] == "stream"
        text = "".join(output["text"]) if is_text else ""
        if is_text and whole and whole[-1].get("name") == output["name"]:
            whole[-1]["text"] += text
        else:
            whole.append({**output, "text": text} if is_text else output)
    return whole


def _models(plain: dict[str, Any]) -> list[str]:
    """All model ids: those in cells first, then those they refer to, then the rest by content."""
    states = plain["metadata"].get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    order = dict.fromkeys(_MODEL_ID.findall(json.dumps(plain["cells"])))
    _follow(order, states)
    while rest := [model for model in states if model not in order]:
        order[min(rest, key=lambda model: _MODEL_ID.sub("", json.dumps(states[model])))] = None
        _follow(order, states)
    order.update(dict.fromkeys(_MODEL_ID.findall(json.dumps(plain))))
    return list(order)


def _follow(order: dict[str, None], states: dict[str, Any]) -> None:
    """Appends the ids that the known models refer to, until there are no more."""
    found = list(order)
    for model in found:
        named = _MODEL_ID.findall(json.dumps(states.get(model, {}), sort_keys=True))
        found.extend(name for name in dict.fromkeys(named) if name not in order)
        order.update(dict.fromkeys(named))
