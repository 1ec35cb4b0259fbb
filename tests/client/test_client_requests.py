"""From Python's values to the messages of the contract."""

import errno
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import nbformat
import numpy as np
import pytest
from google.protobuf import json_format

from notebook_runner import RunState, StartOptions, _requests, _states, _values
from notebook_runner.v1 import notebook_runner_pb2 as pb

NOTEBOOK: dict[str, Any] = {"cells": [], "metadata": {"title": "Größe"}, "nbformat": 4, "nbformat_minor": 5}
NODE = nbformat.NotebookNode(NOTEBOOK)


def start(notebook: Any = None, **options: Any) -> pb.StartRequest:
    """The request that these arguments make."""
    chosen: StartOptions = options  # type: ignore[assignment] # wrong ones are part of the tests
    return _requests.start_request(notebook, chosen)


@pytest.mark.parametrize("kind", [str, Path])
def test_notebook_from_a_file(tmp_path: Path, kind: type[str | Path]) -> None:
    """A path of the client's is read, and its bytes are sent untouched."""
    path = tmp_path / "a.ipynb"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert start(kind(path)).notebook_content == b"\xef\xbb\xbf{}"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_notebook_from_bytes(kind: type[Any]) -> None:
    """Bytes of any kind are sent as they are."""
    assert start(kind(b"{}")).notebook_content == b"{}"


@pytest.mark.parametrize("notebook", [NOTEBOOK, NODE])
def test_notebook_from_a_dict(notebook: Any) -> None:
    """A dict and a NotebookNode are sent as JSON in UTF-8."""
    content = start(notebook).notebook_content
    assert json.loads(content) == NOTEBOOK
    assert "Größe".encode() in content


def test_notebook_on_the_server() -> None:
    """A server path is sent as a path, and nothing is read here."""
    request = start(server_path="reports/a.ipynb")
    assert request.WhichOneof("notebook") == "notebook_path"
    assert request.notebook_path == "reports/a.ipynb"


def test_no_notebook_is_the_servers_default() -> None:
    """With neither of them the request has no notebook."""
    assert start().WhichOneof("notebook") is None


def test_notebook_by_uri() -> None:
    """URIs are sent as they are: what they mean is the server's to say."""
    notify_uri = "https://a/done?token=b"
    request = start(notebook_uri="s3://a/b.ipynb", output_uri="s3://a/c.ipynb", notify_uri=notify_uri)
    assert request.WhichOneof("notebook") == "notebook_uri"
    assert (request.notebook_uri, request.output_uri) == ("s3://a/b.ipynb", "s3://a/c.ipynb")
    assert request.notify_uri == notify_uri


@pytest.mark.parametrize(
    ("notebook", "options"),
    [
        (NOTEBOOK, {"server_path": "a.ipynb"}),
        (NOTEBOOK, {"notebook_uri": "s3://a/b.ipynb"}),
        (None, {"notebook_uri": "s3://a/b.ipynb", "server_path": "a.ipynb"}),
    ],
)
def test_two_notebooks_are_one_too_many(notebook: Any, options: dict[str, str]) -> None:
    """A notebook, a server path and a URI contradict each other."""
    with pytest.raises(ValueError, match=r"^Set only one of notebook, server_path and notebook_uri.$"):
        start(notebook, **options)


def test_missing_file_says_where_else_it_may_be(tmp_path: Path) -> None:
    """A path that is not here reminds of server_path and notebook_uri."""
    with pytest.raises(FileNotFoundError) as caught:
        start(tmp_path / "none.ipynb")
    assert caught.value.filename == str(tmp_path / "none.ipynb")
    assert caught.value.strerror == (
        "No such local notebook (use server_path for one on the server, or notebook_uri for a URI)"
    )


def test_other_types_are_no_notebook() -> None:
    """Anything else is refused by its type."""
    with pytest.raises(TypeError, match=r"\(got int\)"):
        start(3)


def test_request_id_is_made_when_none_is_given() -> None:
    """Every start carries an id, so that a retry cannot run the notebook twice."""
    assert start(request_id="mine").request_id == "mine"
    assert start().request_id != start().request_id != ""


def test_parameters_keep_their_types() -> None:
    """Every type that JSON has arrives as it was."""
    parameters: dict[str, Any] = {
        "a": None,
        "b": True,
        "c": 3,
        "d": 0.5,
        "e": "x",
        "f": [1, ("y",)],
        "g": {"h": {}},
    }
    sent = json_format.MessageToDict(start(parameters=parameters).parameters)
    assert sent == {**parameters, "f": [1, ["y"]]}
    assert type(sent["b"]) is bool


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Fraction(1, 2), 0.5),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.array(7), 7),
    ],
)
def test_scalars_of_other_libraries(value: object, plain: object) -> None:
    """Numbers that register as Python's numeric types, and all scalars of NumPy's, are taken."""
    sent = start(parameters={"a": value}).parameters["a"]
    assert sent == plain
    assert isinstance(sent, bool) == isinstance(plain, bool)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (datetime(2024, 1, 1, tzinfo=UTC), r"parameters\['a'\] is of type datetime"),
        ([1, {"b": Path("x")}], r"parameters\['a'\]\[1\]\['b'\] is of type \w*Path"),
        (Decimal(1), "Decimal"),
        (b"x", "bytes"),
        ({1}, "set"),
        (np.array([1]), "ndarray"),
        (np.datetime64("2024-01-01"), r"is of type date\."),
    ],
)
def test_parameter_that_cannot_be_sent(value: object, place: str) -> None:
    """A value without a JSON type is refused, with the place where it stands."""
    with pytest.raises(TypeError, match=place) as caught:
        start(parameters={"a": value})
    assert str(caught.value).endswith(
        ". A parameter must be None, bool, int, float, str, or a list or dict of these. "
        "Send anything else as a str that the notebook parses."
    )


def test_names_of_parameters_are_str() -> None:
    """A name that is a number is refused; within a value it is the string that papermill writes."""
    with pytest.raises(TypeError, match=r"must be str \(got 1\)"):
        start(parameters={1: 2})
    request = start(parameters={"a": {1: 2, None: {True: 3}}})
    assert request.parameters["a"] == {"1": 2, "None": {"True": 3}}
    assert request.parameters_json == '{"a": {"1": 2, "None": {"True": 3}}}'


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 10**400])
def test_integers_keep_all_digits(value: int) -> None:
    """What a fake cannot hold is exact in the JSON, and for older servers a str."""
    request = start(parameters={"a": 2**53, "b": [value]})
    assert json.loads(request.parameters_json) == {"a": 2**53, "b": [value]}
    assert request.parameters["a"] == 2**53
    assert request.parameters.fields["b"].list_value.values[0].string_value == str(value)


def test_values_are_sent_as_they_are() -> None:
    """Floats, their signs, NaN, infinities, letters and the order of names are in the JSON."""
    values = {"b": 1.0, "a": -0.0, "d": float("nan"), "c": [float("inf"), -float("inf")], "ä": "€"}
    request = start(parameters=values)
    # Letters as they are: as escapes, text in most languages would reach the limit of bytes too early.
    assert request.parameters_json == '{"b": 1.0, "a": -0.0, "d": NaN, "c": [Infinity, -Infinity], "ä": "€"}'
    assert request.parameters.fields["c"].list_value.values[0].number_value == float("inf")


def test_an_integer_with_too_many_digits_is_refused() -> None:
    """Python does not write more than 4,300 of them."""
    with pytest.raises(ValueError, match="4300 digits"):
        start(parameters={"a": 10**5000})


@pytest.mark.parametrize(
    ("value", "nanoseconds"),
    [(0, 0), (1.5, 1_500_000_000), (0.1, 100_000_000), (timedelta(minutes=2), 120 * 10**9), (-1, -(10**9))],
)
def test_duration(value: _values.Seconds, nanoseconds: int) -> None:
    """Seconds and timedeltas arrive exactly; whether a limit makes sense is the server's to say."""
    request = start(run_timeout=value)
    assert request.HasField("run_timeout")
    assert request.run_timeout.ToNanoseconds() == nanoseconds


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e300])
def test_duration_that_is_none(value: float) -> None:
    """A length of time that has no number is refused."""
    with pytest.raises(ValueError, match="number of seconds"):
        start(cell_timeout=value)


def test_absent_options_stay_absent() -> None:
    """What is not given leaves no trace: absent and zero are two things in the contract."""
    assert start(request_id="x") == pb.StartRequest(request_id="x")


def test_all_options_arrive() -> None:
    """Every option has its field."""
    request = start(
        kernel_name="ir",
        cell_timeout=1,
        output_timeout=2,
        retention=3,
        allow_errors=True,
        environment={"A": "b"},
        memory_limit=4,
        labels={"c": "d"},
    )
    assert (request.kernel_name, request.allow_errors, request.memory_limit_bytes) == ("ir", True, 4)
    assert (dict(request.environment), dict(request.labels)) == ({"A": "b"}, {"c": "d"})
    assert [d.seconds for d in (request.cell_timeout, request.output_timeout, request.retention)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"paramters": {}}, "Unknown option 'paramters'. Did you mean parameters?"),
        ({"foo": 1}, f"Unknown option 'foo'. Available: {', '.join(StartOptions.__annotations__)}."),
        ({"parameters": [1]}, r"parameters must be a dict of values by name \(got list\)\."),
        ({"environment": {"A": 1}}, r"environment must be Mapping\[str, str\]"),
        ({"memory_limit": "1G"}, "memory_limit must be int"),
        ({"server_path": Path("a")}, "server_path must be str"),
        ({"cell_timeout": "5m"}, r"^cell_timeout: A duration must be .* a timedelta \(got str\)"),
    ],
)
def test_option_that_is_none(options: dict[str, Any], problem: str) -> None:
    """An option that there is not, or of a wrong type, is named; nothing is left out in silence."""
    with pytest.raises(TypeError, match=problem):
        start(**options)


def test_number_out_of_range() -> None:
    """A number that does not fit into its field is refused by the option's name."""
    with pytest.raises(ValueError, match="process_limit must be int: Value out of range"):
        start(process_limit=2**40)


def test_content_is_no_path() -> None:
    """A notebook's JSON as a str is taken for the mistake that it is."""
    with pytest.raises(
        ValueError,
        match=r"^A notebook given as a str must be a path. Pass the content as bytes or as a dict.$",
    ):
        start('{"cells": []}')


@pytest.mark.parametrize("state", ["running", RunState.RUNNING, pb.RUN_STATE_RUNNING])
def test_one_state_is_no_list(state: str | pb.RunState.ValueType) -> None:
    """A single state is that state, and not a list of letters."""
    assert _requests.list_request(state, None, 0).states == [pb.RUN_STATE_RUNNING]


def test_the_time_since_when() -> None:
    """A duration counts back from now, a time without a zone is local, and nothing is no limit."""
    assert _requests.earliest(None) is None
    before = datetime.now(UTC)
    assert before - timedelta(hours=1) <= (_requests.earliest(timedelta(hours=1)) or before)
    moment = datetime(2026, 11, 29, 12, tzinfo=UTC)
    assert _requests.earliest(moment.astimezone().replace(tzinfo=None)) == moment
    with pytest.raises(TypeError, match=r"must be a datetime or a timedelta \(got int\)"):
        _requests.earliest(cast("Any", 5))


def test_a_deletion_names_its_run() -> None:
    """An empty id would be the newest run elsewhere, so it is refused here."""
    assert _requests.delete_request("r") == pb.DeleteRequest(run_id="r")
    with pytest.raises(ValueError, match="must not be empty"):
        _requests.delete_request("")


def test_kill_without_grace_is_at_once() -> None:
    """No grace is sent as none."""
    assert not _requests.kill_request("r", 0).HasField("grace_period")
    assert _requests.kill_request("r", timedelta(seconds=2)).grace_period.seconds == 2


@pytest.mark.parametrize("name", ["timed-out", "TIMED_OUT", "timed out", "RUN_STATE_TIMED_OUT", 7])
def test_states_by_name(name: str | pb.RunState.ValueType) -> None:
    """A state can be written in the ways that people write it."""
    assert _requests.list_request([name], {"a": "b"}, 5) == pb.ListRequest(
        states=[pb.RUN_STATE_TIMED_OUT], labels={"a": "b"}, page_size=5
    )


@pytest.mark.parametrize("name", ["gone", "unspecified", ""])
def test_unknown_state(name: str) -> None:
    """A state that there is not is refused with those there are."""
    with pytest.raises(ValueError, match="queued, starting, running, killing"):
        _requests.list_request([name], None, 0)


def test_every_state_has_a_name() -> None:
    """Each state of the contract reads as words, and back."""
    for state in pb.RunState.values()[1:]:
        assert _states.parse_state(_states.state_name(state)) == state
    terminal = {_states.state_name(s) for s in pb.RunState.values() if _states.is_terminal(s)}
    assert terminal == {"succeeded", "failed", "timed out", "killed", "crashed", "interrupted"}


def test_a_kill_names_its_run() -> None:
    """With a grace period and without."""
    assert _requests.kill_request("r", 0) == pb.KillRequest(run_id="r")
    assert _requests.kill_request("r", 2).run_id == "r"


@pytest.mark.parametrize(("value", "number"), [(2, 2.0), (timedelta(minutes=1.5), 90.0)])
def test_a_length_of_time_in_seconds(value: _values.Seconds, number: float) -> None:
    """Of a number, and of a timedelta."""
    assert _values.seconds(value) == number


def test_the_longest_duration_is_one() -> None:
    """The bound itself can be sent."""
    assert _values.duration(_values.MAX_SECONDS).seconds == _values.MAX_SECONDS


def test_an_option_of_none_is_not_given() -> None:
    """As in a call that passes on what it was given; an empty text and an empty dict are none, too."""
    asked = start(request_id="x", cell_timeout=None, memory_limit=None, kernel_name="", labels={})
    assert asked == pb.StartRequest(request_id="x")


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    """A program finds the number of the error and the name of the file where Python puts them."""
    path = tmp_path / "none.ipynb"
    with pytest.raises(FileNotFoundError) as caught:
        start(path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))


def test_content_after_spaces_is_no_path_either() -> None:
    """A notebook's JSON may be indented."""
    with pytest.raises(ValueError, match="content as bytes or as a dict"):
        start('\n  {"cells": []}')
