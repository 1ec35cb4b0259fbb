"""What the event of a display has of its data: sizes, a result value, and small content."""

import base64
import json
import math
from typing import Any

import pytest

from notebook_runner_server.execution.displays import display_event
from notebook_runner_server.execution.interface import (
    MAX_CONTENT_BYTES,
    MAX_RESULT_BYTES,
    MAX_TYPES,
    DisplayOutput,
    ResultValue,
)

MIME = "application/scrapbook.scrap.json+json"
TEXT_MIME = "application/scrapbook.scrap.text+json"
KIB_256 = 256 * 1024


def event(data: dict[str, Any], content_bytes: int = KIB_256) -> DisplayOutput:
    """The event of a display."""
    return display_event("display_data", data, 0, content_bytes)


def scrap(**fields: Any) -> dict[str, Any]:
    """A scrap, complete unless fields replace its own."""
    return {"name": "n", "data": 1, "encoder": "json", "version": 1, **fields}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**100, str(2**100)),
        (1.0, "1.0"),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        ("ä", '"ä"'),
        (None, "null"),
        ({"b": [], "a": {}}, '{"b": [], "a": {}}'),
    ],
)
def test_a_value_is_exact(value: Any, text: str) -> None:
    """Its JSON is that of Python."""
    assert event({MIME: scrap(data=value)}).result == ResultValue("n", text)


@pytest.mark.parametrize(
    "data",
    [
        {"text/plain": "x"},
        {MIME: "text"},
        {MIME: [scrap()]},
        {MIME: {"name": "n"}},
        {MIME: {"data": 1}},
        {MIME: scrap(name="")},
        {MIME: scrap(name=1)},
        {MIME: scrap(name="x" * 129)},
        {MIME: scrap(encoder="pandas")},
        {MIME: scrap(encoder=["json"])},
        {"application/scrapbook.scrap.pandas+json": scrap(encoder="pandas")},
    ],
)
def test_what_is_malformed_sets_no_value(data: dict[str, Any]) -> None:
    """It is a display as before."""
    shown = event(data)
    assert shown.result is None
    assert [mime for mime, _ in shown.data] == list(data)


def test_encoder_and_version_may_be_left_out() -> None:
    """A notebook without scrapbook needs no more than name and value."""
    assert event({MIME: {"name": "n", "data": 1}}).result == ResultValue("n", "1")
    assert event({TEXT_MIME: scrap(encoder="text", data="x")}).result == ResultValue("n", '"x"')


def test_a_value_that_is_too_large_is_empty() -> None:
    """By its size in UTF-8, or its depth."""
    fits = "x" * (MAX_RESULT_BYTES - 2)
    assert event({MIME: scrap(data=fits)}).result == ResultValue("n", json.dumps(fits))
    deepest: Any = 1
    for _ in range(30):
        deepest = [deepest]
    assert event({MIME: scrap(data=deepest)}).result == ResultValue("n", json.dumps(deepest))
    for large in (fits + "x", "ä" * (MAX_RESULT_BYTES // 2), [deepest], [0] * MAX_RESULT_BYTES):
        assert event({MIME: scrap(data=large)}).result == ResultValue("n", "")


def test_surrogates_are_replaced() -> None:
    """The contract cannot carry them."""
    shown = event({MIME: scrap(name="n\ud800", data="\ud800"), "text/plain": "\ud800"})
    assert shown.result == ResultValue("n?", '"?"')
    assert shown.contents[1] == (1, b"?")


PNG = base64.encodebytes(b"\x89PNG" * 100).decode()


@pytest.mark.parametrize(
    ("mime", "value", "content"),
    [
        ("text/plain", "ä\nb", "ä\nb".encode()),
        ("text/html", ["<b>", "x</b>"], b"<b>x</b>"),
        ("image/png", PNG, b"\x89PNG" * 100),
        ("IMAGE/JPEG; q=1", PNG, b"\x89PNG" * 100),
        ("application/pdf", "aGk=", b"hi"),
        ("image/png", "no base64!", b"no base64!"),
        ("image/svg+xml", "<svg/>", b"<svg/>"),
        ("application/json", {"a": [1, 1.0, "ä"]}, '{"a": [1, 1.0, "ä"]}'.encode()),
        ("application/json", "text", b'"text"'),
        ("application/vnd.x+json", ["a", "b"], b'["a", "b"]'),
        ("text/plain", {"a": 1}, b'{"a": 1}'),
        ("application/javascript", "1", b"1"),
    ],
)
def test_content_is_as_the_contract_has_it(mime: str, value: Any, content: bytes) -> None:
    """Text, JSON, or decoded bytes."""
    assert event({mime: value}).contents == ((0, content),)


def test_content_above_the_limit_is_left_out() -> None:
    """By the size of the content, so a picture counts without its base64."""
    picture = base64.b64encode(bytes(900)).decode()
    data = {"text/plain": "x" * 1001, "image/png": picture, "text/html": "x" * 1000}
    assert [index for index, _ in event(data, 1000).contents] == [1, 2]
    assert [index for index, _ in event(data, 899).contents] == []
    assert event(data, 0).contents == ()


def test_all_content_of_a_message_is_bounded() -> None:
    """In the order of the representations, each that still fits."""
    data = {f"text/{number}": "x" * KIB_256 for number in range(MAX_TYPES - 1)}
    shown = event({**data, "text/small": "x"})
    assert [index for index, _ in shown.contents] == [0, 1, 2, 3, 4, 5, 6, MAX_TYPES - 1]
    assert sum(len(content) for _, content in shown.contents) <= MAX_CONTENT_BYTES
