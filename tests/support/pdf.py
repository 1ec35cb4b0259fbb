"""Reads the text of a PDF that Chromium has printed: as much of the format as Chromium uses."""

import re
import zlib
from collections.abc import Iterator

_OBJECT = re.compile(rb"(\d+) 0 obj\s(.*?)\sendobj", re.DOTALL)
_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)
_PAGE = re.compile(rb"/Type /Page\b(?!s)")
_REFERENCE = re.compile(rb"/(\w+) (\d+) 0 R")
_SHOWN = re.compile(rb"/(\w+) [\d.]+ Tf|/(\w+) Do|<([0-9A-Fa-f]+)> ?Tj|\[([^\]]*)\] ?TJ")
_CHARACTER = re.compile(rb"<([0-9A-Fa-f]{4})> <([0-9A-Fa-f]{4,})>$", re.MULTILINE)
_RANGE = re.compile(rb"<([0-9A-Fa-f]{4})> <([0-9A-Fa-f]{4})> <([0-9A-Fa-f]{4,})>")


def page_texts(pdf: bytes) -> list[str]:
    """Return the text of each page, without spaces: first that in its margins."""
    return list(_Reader(pdf).pages())


class _Reader:
    def __init__(self, pdf: bytes) -> None:
        self._objects = {int(number): body for number, body in _OBJECT.findall(pdf)}

    def pages(self) -> Iterator[str]:
        """Yield the text of each page."""
        for body in self._objects.values():
            if _PAGE.search(body):
                contents = int(re.findall(rb"/Contents (\d+) 0 R", body)[0])
                yield "".join(self._text(body, self._stream(contents)))

    def _stream(self, number: int) -> bytes:
        found = _STREAM.search(self._objects[number])
        assert found is not None
        return zlib.decompress(found[1]) if b"/FlateDecode" in self._objects[number] else found[1]

    def _text(self, holder: bytes, content: bytes) -> Iterator[str]:
        names = {name: int(number) for name, number in _REFERENCE.findall(holder.partition(b"stream")[0])}
        characters: dict[int, str] = {}
        for font, drawing, text, texts in _SHOWN.findall(content):
            if font:
                characters = self._characters(names[font])
            elif drawing and b"/Subtype /Form" in self._objects[names[drawing]]:
                yield from self._text(self._objects[names[drawing]], self._stream(names[drawing]))
            for codes in [text] if text else re.findall(rb"<([0-9A-Fa-f]+)>", texts):
                numbers = (int(codes[at : at + 4], 16) for at in range(0, len(codes), 4))
                yield "".join(characters.get(number, "?") for number in numbers).replace(" ", "")

    def _characters(self, font: int) -> dict[int, str]:
        found = re.search(rb"/ToUnicode (\d+) 0 R", self._objects[font])
        if found is None:
            return {}
        table = self._stream(int(found[1]))
        characters = {}
        for first, last, value in _RANGE.findall(table):
            for number in range(int(first, 16), int(last, 16) + 1):
                characters[number] = chr(int(value, 16) + number - int(first, 16))
        for code, value in _CHARACTER.findall(table):
            characters.setdefault(int(code, 16), bytes.fromhex(value.decode()).decode("utf-16-be"))
        return characters
