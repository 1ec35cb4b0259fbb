"""The result values of a run: the last of each name, in the order of the names, within 64 KiB."""

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner_server.execution.interface import MAX_RESULT_BYTES, ResultValue
from notebook_runner_server.runs.results import MAX_BYTES, MAX_OMITTED, Results

TOO_LARGE = ""


def after(*values: tuple[str, str]) -> Results:
    """The results after these values were displayed."""
    return functools.reduce(Results.with_value, (ResultValue(*value) for value in values), Results())


def test_the_last_value_wins_in_the_order_of_the_names() -> None:
    """A name keeps its place."""
    results = after(("a", "1"), ("b", "2"), ("a", "3.0"))
    assert results.to_json() == '{"a": 3.0, "b": 2}'
    assert results.number_omitted == 0


def test_no_values_are_no_json() -> None:
    """As without parameters."""
    assert Results().to_json() == ""


def test_a_value_that_is_too_large_replaces_an_earlier_one() -> None:
    """The earlier value would be wrong; the name counts once, and no longer when a smaller value comes."""
    results = after(("a", "1"), ("a", TOO_LARGE), ("b", "2"), ("a", TOO_LARGE))
    assert (results.to_json(), results.number_omitted) == ('{"b": 2}', 1)
    results = results.with_value(ResultValue("a", "3"))
    assert (results.to_json(), results.number_omitted) == ('{"b": 2, "a": 3}', 0)


def test_all_values_together_are_bounded_to_the_byte() -> None:
    """With names, quotes and separators."""
    full = after(*((name, f'"{"x" * (MAX_RESULT_BYTES - 9)}"') for name in "abcd"))
    assert len(full.to_json()) == full.size == MAX_BYTES
    one_more = full.with_value(ResultValue("a", f'"{"x" * (MAX_RESULT_BYTES - 8)}"'))
    assert (list(one_more.values), one_more.number_omitted) == (["b", "c", "d"], 1)


def test_many_names_without_a_value_are_counted() -> None:
    """Only some are remembered."""
    results = after(*((f"n{number}", TOO_LARGE) for number in range(3 * MAX_OMITTED)))
    assert results.number_omitted == 3 * MAX_OMITTED
    assert len(results.omitted) == MAX_OMITTED


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)
values = (st.integers() | st.floats() | names).map(lambda value: json.dumps(value, ensure_ascii=False))


@given(st.lists(st.tuples(names, values), max_size=20))
def test_they_are_a_dict_of_the_values(displayed: list[tuple[str, str]]) -> None:
    """Whatever names and values come, also from the store."""
    results = after(*displayed)
    assert Results.from_dict(json.loads(json.dumps(results.to_dict()))) == results
    if displayed:
        assert len(results.to_json().encode()) == results.size
        parsed = json.loads(results.to_json())
        expected = {name: json.loads(value) for name, value in dict(displayed).items()}
        assert json.dumps(parsed) == json.dumps(expected)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-0.0", "1e+300", str(2**70)])
def test_values_stay_as_they_were_written(value: str) -> None:
    """No number is read and written again."""
    assert after(("a", value)).to_json() == f'{{"a": {value}}}'
