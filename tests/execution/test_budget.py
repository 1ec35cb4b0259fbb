"""How much output a cell and a run may still have, counted in bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebook_runner_server.execution.interface import Limits
from notebook_runner_server.execution.output_limiter import OutputLimiter, shortened, size

quick = settings(deadline=None, database=None)


@pytest.mark.parametrize(
    ("cell", "run", "left", "reached"),
    [
        (0, 0, [float("inf")] * 3, (0, False)),
        (10, 0, [10, 4, 10], (10, False)),
        (0, 10, [10, 4, 4], (10, True)),
        (10, 100, [10, 4, 10], (10, False)),
        (100, 10, [10, 4, 4], (10, True)),
        (10, 10, [10, 4, 4], (10, True)),
    ],
)
def test_the_nearest_limit_counts(cell: int, run: int, left: list[float], reached: tuple[int, bool]) -> None:
    """A cell's room is new with each cell, a run's is not; the smaller one is what is left."""
    budget = OutputLimiter(Limits(cell_output_bytes=cell, run_output_bytes=run))
    seen = [budget.left()]
    budget.take(6)
    seen.append(budget.left())
    budget.start_cell()
    seen.append(budget.left())
    assert seen == left
    if cell or run:
        assert budget.reached() == reached


@quick
@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 50))
def test_text_is_shortened_to_whole_characters(text: str, room: int) -> None:
    """As much as fits, in bytes of UTF-8, and no half character."""
    content = shortened("stream", {"name": "stdout", "text": text}, room)
    if not room:
        assert content is None
        return
    assert content is not None
    assert content["name"] == "stdout"
    assert text.startswith(content["text"])
    assert len(content["text"].encode()) <= room
    following = text[len(content["text"]) :][:1]
    assert not following or len((content["text"] + following).encode()) > room


@pytest.mark.parametrize("room", [0, -5, 1000])
def test_only_text_can_be_shortened(room: int) -> None:
    """Half a picture is none."""
    assert shortened("display_data", {"data": {"text/plain": "x"}, "text": "x"}, room) is None


@quick
@given(st.text(max_size=20))
def test_what_has_to_be_kept_is_counted_in_bytes(text: str) -> None:
    """The same text counts the same as a stream, as data, and as an exception's message."""
    expected = len(text.encode(errors="replace"))
    assert size({"name": "stdout", "text": text}) == expected
    assert size({"data": {"text/plain": text}}) == expected
    assert size({"ename": "", "evalue": text, "traceback": []}) == expected
    assert size({"ename": "", "evalue": "", "traceback": [text, text]}) == 2 * expected
