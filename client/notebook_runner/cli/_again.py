"""What `rerun` takes from an earlier run."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["notebook_again", "parameters_again"]

_INJECTED = "injected-parameters"


def parameters_again(parameters_json: str) -> dict[str, Any]:
    """Parse the parameters of a run. Integers and floats stay what they are, NaN and infinities as well."""
    found: dict[str, Any] = json.loads(parameters_json) if parameters_json else {}
    return found


def notebook_again(executed: bytes, *, was_injected: bool) -> bytes:
    """Return the notebook of a run without the cell that the server injected, and without outputs.

    Args:
        executed: The executed notebook.
        was_injected: Whether the run had parameters; otherwise such a cell belongs to the notebook.
    """
    document = json.loads(executed)
    # nbformat 3 has its cells in worksheets.
    for sheet in document.get("worksheets") or [document]:
        cells = sheet.get("cells", [])
        sheet["cells"] = [cell for cell in cells if not (was_injected and _INJECTED in _tags(cell))]
        for cell in sheet["cells"]:
            if cell.get("cell_type") == "code":
                cell["outputs"] = []
    return json.dumps(document, ensure_ascii=False).encode()


def _tags(cell: dict[str, Any]) -> list[str]:
    tags = cell.get("metadata", {}).get("tags")
    return tags if isinstance(tags, list) else []
