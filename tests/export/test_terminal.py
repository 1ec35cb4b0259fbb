"""Printed text is shown as a terminal shows it in the end."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm  # type: ignore[import-untyped] # it has no types

from notebook_runner_server.export.terminal import final_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n  text  \n", "plain\n  text  \n"),
        ("\x1b[31mred\x1b[0m  \n", "\x1b[31mred\x1b[0m  \n"),
        ("10%\r50%\r100%\n", "100%\n"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("long\rab", "abng"),
        ("long\r\x1b[Kab", "ab"),
        ("\x1b[2K\r50%\x1b[2K\r\x1b[32m100%\x1b[0m\n", "\x1b[32m100%\x1b[0m\n"),
        ("abc\bd\n", "abd\n"),
        ("one\ntwo\x1b[1A\rONE\n\nthree", "ONE\ntwo\nthree"),
        ("a\nb\nc\x1b[2A\x1b[Jx", "ax"),
        ("abc\x1b[1Kd", "   d"),
        ("ab\x1b[3Cd\x1b[2Gx", "ax   d"),
        ("a\x1b[9Fb\x1b[Ec", "c"),
        ("old\x1b[2Jnew", "new"),
        ("\x1b]0;title\x07a\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\\x1b(B\x1b[?25l", "alink"),
        ("a\x1b[", "a"),
        ("a\x1b", "a"),
        ("\x1b[1m\x1b[31mx\ry", "\x1b[1m\x1b[31my\x1b[0m"),
    ],
)
def test_what_a_terminal_shows(text: str, shown: str) -> None:
    """Returns, backspaces and moves of the cursor write over what was there; colours stay."""
    assert final_text(text) == shown


def test_bars_within_bars_are_there_once() -> None:
    """Bars of tqdm, which move the cursor up and down, end in their last state."""
    file = io.StringIO()
    options = {"file": file, "mininterval": 0, "miniters": 1, "ncols": 60, "ascii": False}
    for _ in tqdm(range(2), desc="outer", **options):
        for _ in tqdm(range(3), desc="inner", leave=False, **options):
            pass
    assert "\x1b[A" in file.getvalue()
    lines = final_text(file.getvalue()).splitlines()
    assert [line for line in lines if line.strip()] == [lines[0]]
    assert re.match(r"outer: 100%\|█+\| 2/2 \[", lines[0])


def test_a_sequence_makes_no_text_large() -> None:
    """A few bytes that move the cursor far away do not become a page of spaces."""
    assert len(final_text("\x1b[9999Cx\n" * 100)) < 25_000
    assert len(final_text("\x1b[9999Bx\r" * 100)) < 1000
    assert len(final_text("\x1b[1m" * 10_000 + "a\rb")) < 100


@given(st.text(alphabet="ab \n\r\b\x1b[]0123;mKJABCDGH?(\x07\\"))
def test_any_text_ends(text: str) -> None:
    """Any sequence of controls has a result, which has no more moves in it and stays what it is."""
    shown = final_text(text)
    assert not re.search(r"[\r\b]", shown)
    assert final_text(shown) == shown
