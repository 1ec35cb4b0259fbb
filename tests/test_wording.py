"""The check of spelling and wording finds mistakes, words of the list and phrases of the list."""

from pathlib import Path

import pytest

from checks.wording import WORDS, check

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The run continues, and the log reports it.", 0),
        ("The exectued notebook is recieved.", 2),
        ("What a client was told is durable.", 1),
        ("The run Goes on for ever.", 2),
        ("A template for walls, and their mending.", 1),
    ],
)
def test_wording(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, count: int) -> None:
    """Each finding is counted, and printed with what to write instead."""
    page = tmp_path / "page.md"
    page.write_text(f"{text}\n")
    assert bool(check([str(page)])) is bool(count)
    assert capsys.readouterr().out.count("==>") == count


def test_the_list_is_sorted() -> None:
    """Each word is in the list once, in alphabetical order, with a replacement."""
    lines = WORDS.read_text().splitlines()
    assert all(len([part for part in line.split("->") if part.strip()]) == 2 for line in lines)
    words = [line.partition("->")[0] for line in lines]
    assert words == sorted(set(words))
