"""Reads an executed notebook: what its cells printed and displayed."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._printable import COLOUR, one_line, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Contents", "Image", "Output", "decoded", "pictures_of"]

_SVG = "image/svg+xml"
# Of several representations of one picture, the first of these.
_SHOWN_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")
_IMAGE_TYPES = (*_SHOWN_TYPES, _SVG)
_BINARY = ("image/", "audio/", "video/", "application/pdf")


@dataclass(frozen=True)
class Output:
    """One output of a cell.

    Attributes:
        cell_index: The cell's index in the executed notebook, from 0.
        kind: The type in nbformat: `stream`, `display_data`, `execute_result` or `error`.
        text: The output as plain text: what was printed, the representation `text/plain`, or the traceback.
        data: The representations of rich data by MIME type: str for text, bytes for pictures, sound, video
            and PDF, parsed for JSON. Empty for other outputs.
        stream: `stdout` or `stderr` for printed text; else empty.
    """

    cell_index: int
    kind: str
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    stream: str = ""

    def __str__(self) -> str:
        what = one_line(self.text) or f"[{', '.join(self.data)}]"
        return f"cell {self.cell_index + 1}: {what}"


@dataclass(frozen=True)
class Image:
    """A picture that a cell displayed.

    Attributes:
        cell_index: The cell's index in the executed notebook, from 0.
        mime_type: The type, such as `image/png`, `image/svg+xml` or `image/jpeg`.
        content: The picture as the content of a file of this type.
    """

    cell_index: int
    mime_type: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"cell {self.cell_index + 1}: {self.mime_type}, {size(len(self.content))}"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        # An SVG may have scripts, which a frontend would execute.
        shown = {self.mime_type: self.content} if self.mime_type in _SHOWN_TYPES else {}
        return {"text/plain": str(self), **shown}


class Contents:
    """The contents of an executed notebook.

    Args:
        notebook: The notebook as JSON.
    """

    def __init__(self, notebook: bytes) -> None:
        self.outputs = tuple(_outputs(json.loads(notebook)))

    @property
    def text(self) -> str:
        """What the cells printed, to standard output and standard error."""
        return "".join(output.text for output in self.outputs if output.kind == "stream")

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures that cells displayed, one for each output that has any."""
        return tuple(pictures_of(self.outputs))

    @property
    def pages(self) -> tuple[str, ...]:
        """What the cells displayed as HTML."""
        found = (output.data.get("text/html") for output in self.outputs)
        return tuple(page for page in found if isinstance(page, str))


def decoded(mime_type: str, content: bytes) -> Any:
    """Return a representation as its type suggests: JSON parsed, text as str, everything else as bytes."""
    if _is_binary(mime_type):
        return content
    try:
        return json.loads(content) if _is_json(mime_type) else content.decode()
    except ValueError:
        return content


def _outputs(notebook: Mapping[str, Any]) -> Iterator[Output]:
    for index, cell in enumerate(notebook.get("cells", ())):
        for output in cell.get("outputs", ()):
            yield _output(index, output)


def _output(index: int, output: Mapping[str, Any]) -> Output:
    kind = output["output_type"]
    if kind == "stream":
        return Output(index, kind, _joined(output.get("text", "")), stream=output.get("name", ""))
    if kind == "error":
        return Output(index, kind, COLOUR.sub("", "\n".join(output.get("traceback", ()))))
    data = {
        mime_type: _representation(mime_type, value) for mime_type, value in output.get("data", {}).items()
    }
    plain = data.get("text/plain", "")
    return Output(index, kind, plain if isinstance(plain, str) else "", data)


def _representation(mime_type: str, value: Any) -> Any:
    if _is_json(mime_type):
        return value
    text = _joined(value)
    if not _is_binary(mime_type):
        return text
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return text


def _joined(text: Any) -> str:
    # A notebook may keep text as a list of lines.
    return "".join(text) if isinstance(text, list) else str(text)


def pictures_of(outputs: Iterable[Output]) -> Iterator[Image]:
    """Iterate over the pictures of outputs: one for each output that has any."""
    for output in outputs:
        known = [mime_type for mime_type in _IMAGE_TYPES if mime_type in output.data]
        others = [mime_type for mime_type in output.data if mime_type.startswith("image/")]
        for mime_type in (known or others)[:1]:
            content = output.data[mime_type]
            yield Image(
                output.cell_index, mime_type, content if isinstance(content, bytes) else str(content).encode()
            )


def _is_binary(mime_type: str) -> bool:
    return mime_type.startswith(_BINARY) and mime_type != _SVG


def _is_json(mime_type: str) -> bool:
    return mime_type == "application/json" or mime_type.endswith("+json")
