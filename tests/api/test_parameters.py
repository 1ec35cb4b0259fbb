"""Parameters arrive as they were given, in either of the contract's forms, or are refused with the reason."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from hypothesis import example, given
from hypothesis import strategies as st

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.api import convert
from notebook_runner_server.errors import InvalidFieldError
from notebook_runner_server.runs.model import StartSpec
from tests.runs.samples import a_run

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values: st.SearchStrategy[Value] = st.deferred(
    lambda: st.one_of(
        st.just(Value(null_value=NULL_VALUE)),
        st.builds(lambda value: Value(bool_value=value), st.booleans()),
        st.builds(lambda value: Value(number_value=value), st.floats() | st.integers(-(2**60), 2**60)),
        st.builds(lambda value: Value(string_value=value), text),
        st.builds(list_value, st.lists(values, max_size=3)),
        st.builds(lambda value: Value(struct_value=value), structs),
    )
)
structs: st.SearchStrategy[Struct] = st.builds(
    lambda fields: Struct(fields=fields), st.dictionaries(text, values, max_size=3)
)


def list_value(items: list[Value]) -> Value:
    """A list as a Value; an empty one is one, too."""
    value = Value()
    value.list_value.SetInParent()
    value.list_value.values.extend(items)
    return value


def spec(**fields: Any) -> StartSpec:
    """What a Start with these fields asks for."""
    return convert.start_spec(pb.StartRequest(**fields))


def refusal(**fields: Any) -> InvalidFieldError:
    """Why a Start with these fields is refused; the sentence begins with the field that is wrong."""
    with pytest.raises(InvalidFieldError) as caught:
        spec(**fields)
    assert caught.value.message.startswith(f"{caught.value.field} ")
    return caught.value


def struct(values: dict[str, Any]) -> Struct:
    """Plain values as a Struct."""
    made = Struct()
    made.update(values)
    return made


def sent(values: dict[str, Any], form: str) -> dict[str, Any]:
    """The fields of a Start with these parameters in one of the two forms."""
    return {form: struct(values) if form == "parameters" else json.dumps(values)}


@given(structs)
def test_parameters_come_back_as_they_were_given(parameters: Struct) -> None:
    """From the request to the run and back: byte for byte the same, but what JSON has not is a string."""
    given_ = spec(parameters=parameters).parameters
    message = convert.run_message(a_run(parameters=given_))
    expected = Struct()
    expected.CopyFrom(parameters)
    in_json(expected)
    assert message.parameters.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )
    json_format.MessageToJson(message)


def in_json(struct: Struct) -> None:
    """Replaces NaN and infinities, also in lists and in structs, by their names."""
    waiting: list[Value] = list(struct.fields.values())
    while waiting:
        value = waiting.pop()
        waiting += [*value.struct_value.fields.values(), *value.list_value.values]
        if not math.isfinite(number := value.number_value):
            value.string_value = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


exact = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(text, exact, min_size=1, max_size=3))
@example({"b": [{}, [], {"z": 1, "y": [None, True, 1.0]}], "a": -0.0, "ä€": math.nan})
def test_exact_parameters_come_back_as_they_were_given(values: dict[str, Any]) -> None:
    """Types, digits, signs and order are in the JSON of the run, and its Struct agrees with it."""
    given_ = spec(parameters_json=json.dumps(values))
    assert repr(given_.parameters) == repr(values)
    assert given_.parameters_are_ordered
    message = convert.run_message(a_run(parameters=given_.parameters))
    assert repr(json.loads(message.parameters_json)) == repr(values)
    again = spec(parameters_json=message.parameters_json, parameters=message.parameters)
    assert repr(again.parameters) == repr(values)
    json_format.MessageToJson(message)


@pytest.mark.parametrize(
    ("exact", "struct_"),
    [
        ('{"a": 1}', {"a": True}),
        ('{"a": true}', {"a": 1}),
        ('{"a": 1}', {"a": "1"}),
        ('{"a": "1"}', {"a": 1}),
        ('{"a": null}', {"a": 0}),
        ('{"a": [1, 2]}', {"a": [1]}),
        ('{"a": {"b": 1}}', {"a": {"b": 2}}),
        ('{"a": 1, "b": 2}', {"a": 1}),
        ('{"a": 9007199254740993}', {"a": "9007199254740992"}),
        ('{"a": 9007199254740992}', {"a": "9007199254740992"}),
        ('{"a": NaN}', {"a": 1}),
        ('{"a": 1}', {"a": math.nan}),
        ('{"a": NaN}', {"a": "nan"}),
        ('{"a": "NaN"}', {"a": math.nan}),
        ('{"a": Infinity}', {"a": "-Infinity"}),
        ('{"a": 1e400}', {"a": -math.inf}),
        ('{"a": [1]}', {"a": {"0": 1}}),
        ('{"a": {"b": 1}}', {"a": ["b"]}),
        ('{"a": true}', {"a": "true"}),
    ],
)
def test_two_forms_that_differ_are_refused(exact: str, struct_: dict[str, Any]) -> None:
    """What a Struct says must be what is left of the JSON."""
    error = refusal(parameters_json=exact, parameters=struct(struct_))
    assert error.field == "parameters_json"
    assert error.message == (
        "parameters_json and parameters differ. Set one of them, or both to the same values."
    )


def test_a_struct_without_names_is_not_given() -> None:
    """Libraries send an empty one for none."""
    assert spec(parameters_json='{"a": 1}', parameters=Struct()).parameters == {"a": 1}


@pytest.mark.parametrize(
    ("exact", "left"),
    [
        (2**53, 2.0**53),
        (2**53 + 3, 2.0**53 + 4),
        (2**53 + 1, str(2**53 + 1)),
        (-(2**53) - 1, str(-(2**53) - 1)),
        (10**400, math.inf),
        (-(10**400), -math.inf),
        (10**400, str(10**400)),
        (math.inf, math.inf),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (math.nan, math.nan),
        (math.nan, "NaN"),
        (-0.0, 0.0),
        (True, True),
        (None, None),
    ],
)
def test_a_struct_may_have_what_it_can_hold(exact: Any, left: Any) -> None:
    """The nearest double, or a string for what JSON or a double does not have; what counts is the JSON."""
    both = spec(parameters_json=json.dumps({"a": exact}), parameters=struct({"a": left}))
    assert repr(both.parameters) == repr({"a": exact})


@pytest.mark.parametrize(
    ("exact", "shown"),
    [
        (1.5, 1.5),
        (2**53, 2.0**53),
        (-(2**53), -(2.0**53)),
        (2**53 + 1, "9007199254740993"),
        (-(2**53) - 1, "-9007199254740993"),
        (2.0**60, 2.0**60),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        ([math.inf, {"b": 10**20}], ["Infinity", {"b": "100000000000000000000"}]),
    ],
)
def test_a_run_shows_what_a_struct_cannot_hold_as_a_string(exact: Any, shown: Any) -> None:
    """A Struct in JSON has neither integers beyond 2^53 nor NaN and the infinities."""
    assert convert.run_message(a_run(parameters={"a": exact})).parameters == struct({"a": shown})


def test_a_run_without_parameters_has_no_json() -> None:
    """Empty: none were given."""
    message = convert.run_message(a_run(parameters={}))
    assert (message.parameters_json, message.parameters) == ("", Struct())


def test_a_struct_has_no_order() -> None:
    """Which its names come in depends on the library that wrote it."""
    assert not spec(parameters=struct({"b": 1, "a": 2})).parameters_are_ordered


@pytest.mark.parametrize(
    ("text_", "value"),
    [
        ("1.0", 1.0),
        ("-0.0", -0.0),
        ("1e3", 1000.0),
        ("1", 1),
        ("-0", 0),
        ("9" * 4300, int("9" * 4300)),
        ("-" + "9" * 4300, -int("9" * 4300)),
        ("1e400", math.inf),
        ("[NaN, Infinity, -Infinity]", [math.nan, math.inf, -math.inf]),
        ('{"c": 1, "b": 2, "c": 3}', {"c": 3, "b": 2}),
    ],
)
def test_json_says_which_numbers_are_floats(text_: str, value: Any) -> None:
    """A fraction or an exponent makes one; integers have any size, and of equal keys the last one counts."""
    assert repr(spec(parameters_json=f'{{"a": {text_}}}').parameters) == repr({"a": value})


@pytest.mark.parametrize(
    ("text_", "why"),
    [
        (" ", "must be valid JSON (Expecting value at line 1, column 2)."),
        (
            '{"a": 1,\n b}',
            "must be valid JSON (Expecting property name enclosed in double quotes at line 2, column 2).",
        ),
        ("[1]", "must be a JSON object with the values by name."),
        ("null", "must be a JSON object with the values by name."),
        ('"a"', "must be a JSON object with the values by name."),
        (
            f'{{"a": {"9" * 4301}}}',
            "must not have an integer of more than 4,300 digits. Send it as a string.",
        ),
        ('{"a": ["\\ud800"]}', "must be valid Unicode (found a lone surrogate)."),
        ('{"\\udfff": 1}', "must be valid Unicode (found a lone surrogate)."),
        ('{"a":' * 100_000, "must not be nested more than 30 levels deep. Send deeper values as a string."),
    ],
)
def test_json_that_has_no_parameters_is_refused(text_: str, why: str) -> None:
    """The reason is named, and where a parser says it, the place."""
    error = refusal(parameters_json=text_)
    assert error.message == f"parameters_json {why}"


@pytest.mark.parametrize("form", ["parameters", "parameters_json"])
@pytest.mark.parametrize(
    "around", [lambda value: {"a": value}, lambda value: [value]], ids=["object", "list"]
)
@pytest.mark.parametrize("innermost", [1, {}, []])
def test_what_is_nested_deeper_than_a_reader_allows_is_refused(
    form: str, around: Callable[[Any], Any], innermost: Any
) -> None:
    """Values that are accepted can be read back within the largest message that carries a run."""
    value = innermost
    for _ in range(30 if innermost == 1 else 29):
        value = around(value)
    run = convert.run_message(a_run(parameters=spec(**sent({"b": 1, "a": value}, form)).parameters))
    message = pb.ListResponse(runs=[run]).SerializeToString()
    assert pb.ListResponse.FromString(message).runs[0] == run
    error = refusal(**sent({"a": around(value), "b": 1}, form))
    assert error.field == form
    assert "more than 30 levels deep" in error.message


@pytest.mark.parametrize("form", ["parameters", "parameters_json"])
@pytest.mark.parametrize(
    "values",
    [
        {str(number): 1 for number in range(10_000)},
        {"a": [None] * 9_999},
        {"a": {str(number): "" for number in range(4_998)}, "b": [[0], [0] * 4_995, {"c": {}}]},
    ],
    ids=["names", "list", "both"],
)
def test_ten_thousand_values_may_be_sent(form: str, values: dict[str, Any]) -> None:
    """Those in lists and objects count as well; one more is refused."""
    assert spec(**sent(values, form)).parameters == values
    error = refusal(**sent({"more": 1, **values}, form))
    assert error.field == form
    assert "at most 10000 values" in error.message


@given(st.floats())
@example(0.0)
@example(-0.0)
@example(-1.0)
@example(2.0**53)
@example(2.0**53 + 2)
def test_numbers_without_a_fraction_are_integers(number: float) -> None:
    """As far as a double tells whole numbers apart, and no further."""
    parameters = Struct(fields={"a": Value(number_value=number)})
    value = spec(parameters=parameters).parameters["a"]
    whole = number.is_integer() and abs(number) <= 2**53 and str(number) != "-0.0"
    assert isinstance(value, int) == whole
    assert value == number or math.isnan(number)


def test_a_value_of_no_kind_is_null() -> None:
    """A Value that says nothing is none, in a list as well."""
    parameters = Struct(fields={"a": Value(), "b": list_value([Value()])})
    assert spec(parameters=parameters).parameters == {"a": None, "b": [None]}


MOST = 1024 * 1024


def too_large(**fields: Any) -> str:
    """The field that has too many bytes."""
    error = refusal(**fields)
    assert f"at most {MOST} bytes" in error.message
    return error.field


def test_a_struct_may_have_a_mebibyte() -> None:
    """One byte more is refused, by the field's name."""
    most = struct({"a": "x" * (MOST - 100)})
    # Longer text needs longer lengths around it.
    most.fields["a"].string_value += "x" * (MOST - most.ByteSize())
    assert most.ByteSize() == MOST
    assert len(spec(parameters=most).parameters["a"]) > MOST - 100
    most.fields["a"].string_value += "x"
    assert too_large(parameters=most) == "parameters"
    assert too_large(parameters=most, parameters_json='{"a": "x"}') == "parameters"


def test_json_may_have_a_mebibyte() -> None:
    """Also of white space; bytes of UTF-8 are counted, and not characters."""
    little = '{"ä": "€"}'
    most = little + " " * (MOST - len(little.encode()))
    assert spec(parameters_json=most).parameters == {"ä": "€"}
    assert too_large(parameters_json=most + " ") == "parameters_json"


def test_a_run_may_have_a_mebibyte_of_json() -> None:
    """What a run shows is as long as what was sent, where it was written as the run writes it."""
    # Escapes make the JSON the longer one of the two forms.
    value = "\n" * 100 + "x"
    value += "ä" * ((MOST - len(json.dumps({"a": value}))) // 2)
    most = json.dumps({"a": value}, ensure_ascii=False)
    assert len(most.encode()) == MOST
    assert (
        convert.run_message(a_run(parameters=spec(parameters_json=most).parameters)).parameters_json == most
    )
    assert too_large(parameters=struct({"a": value + "x"})) == "parameters"


def test_what_grows_in_a_run_is_refused() -> None:
    """Small as it was sent, and over a mebibyte in one of the two forms of the answer."""
    assert too_large(parameters=struct({"a": "\0" * (MOST // 2)})) == "parameters"
    numbers = ",".join(["0"] * 9_000)
    rest = "x" * (MOST - 30_000)
    assert too_large(parameters_json=f'{{"a":[{numbers}],"b":"{rest}"}}') == "parameters_json"
    exponents = ",".join(["1e15"] * 9_000)
    rest = "x" * (MOST - 170_000)
    assert too_large(parameters_json=f'{{"a":[{exponents}],"b":"{rest}"}}') == "parameters_json"
