"""Admission: what a request may ask for, and what its silence means."""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.app import prepare
from notebook_runner_server.errors import (
    InvalidFieldError,
    InvalidNotebookError,
    NotebookNotFoundError,
    NotebookTooLargeError,
    RunnerError,
    UnknownKernelError,
    UnknownParameterError,
)
from notebook_runner_server.execution.interface import Limits
from notebook_runner_server.execution.segments import HEAD, SEPARATOR, TAIL
from notebook_runner_server.runs.admission import (
    LIMIT_FIELDS,
    MAX_DURATION,
    MAX_LABEL,
    MAX_LABELS,
    MAX_REQUEST_ID,
    Admission,
    Defaults,
)
from notebook_runner_server.runs.model import Admitted, RunState, StartSpec
from notebook_runner_server.runs.request_digest import compute_digest
from notebook_runner_server.runs.sources import NotebookRoot
from notebook_runner_server.transfer.policy import UriPolicy
from notebook_runner_server.transfer.service import TransferService
from tests.runs.samples import json_values
from tests.support.notebooks import content, notebook, parsed, written

KERNELS = {"python3": "python", "ir": "R"}
TIMES = ("run_timeout", "cell_timeout", "output_timeout")
SIMPLE = content("1 + 1", "2")
LIMIT = 100_000
SOME = Limits(1.5, 2.5, 3.5, 40, 50, 60, 70)


def admit(
    spec: StartSpec, defaults: Defaults | None = None, root: Path | None = None, limit: int = LIMIT
) -> Admitted:
    """Admits a request, with the notebooks read by what reads them in the server."""
    transfer = TransferService(UriPolicy(), limit, 1.0)
    admission = Admission(NotebookRoot(root, limit), limit, defaults or Defaults(), prepare, transfer)
    return asyncio.run(admission.admit(spec, KERNELS))


def refusal(kind: type[RunnerError], field: str, *, root: Path | None = None, **asked: Any) -> RunnerError:
    """How a request is refused."""
    with pytest.raises(kind) as caught:
        admit(StartSpec(**{"content": SIMPLE, **asked}), root=root)
    assert caught.value.field == field
    return caught.value


def test_a_silent_request_means_the_defaults() -> None:
    """Every default reaches run and options, and no default is no limit."""
    admitted = admit(StartSpec(content=SIMPLE), Defaults(limits=SOME, retention=4.0))
    options, run = admitted.options, admitted.run
    assert (options.limits, options.retention) == (SOME, 4)
    assert (options.allow_errors, options.environment, options.working_folder) == (False, {}, "")
    assert (run.state, run.kernel_name, run.cells_total, run.notebook_path) == (
        *(RunState.QUEUED, "python3", 2, ""),
    )
    assert (run.request_id, run.parameters, run.labels) == ("", {}, {})
    assert (run.start_time, run.end_time, run.cells_completed) == (0, 0, 0)
    assert run.create_time > 0
    assert admit(StartSpec(content=SIMPLE)).options.limits == Limits()


@pytest.mark.parametrize("name", list(LIMIT_FIELDS))
def test_a_request_lowers_and_raises_each_limit_up_to_its_ceiling(name: str) -> None:
    """What is asked for wins over the default; at the ceiling it is allowed, beyond it is refused."""
    default = getattr(SOME, name)
    ceilings = replace(Limits(), **{name: default * 2})
    defaults = Defaults(limits=SOME, ceilings=ceilings)
    for asked in (1, default, default * 2):
        limits = admit(StartSpec(content=SIMPLE, limits=replace(Limits(), **{name: asked})), defaults).options
        assert limits.limits == replace(SOME, **{name: asked})
    with pytest.raises(InvalidFieldError, match="at most") as caught:
        admit(StartSpec(content=SIMPLE, limits=replace(Limits(), **{name: default * 2 + 1})), defaults)
    assert caught.value.field == LIMIT_FIELDS[name]
    assert float(caught.value.metadata["ceiling"]) == default * 2


@pytest.mark.parametrize("name", list(LIMIT_FIELDS))
def test_no_limit_is_negative(name: str) -> None:
    """Below zero is no limit that anybody could mean."""
    error = refusal(InvalidFieldError, LIMIT_FIELDS[name], limits=replace(Limits(), **{name: -1}))
    assert LIMIT_FIELDS[name] in error.message
    assert "-1" in error.message


def test_every_limit_has_a_field_of_the_contract() -> None:
    """A limit that a Start cannot name, or that the contract does not have, is a mistake."""
    assert list(LIMIT_FIELDS) == [one.name for one in fields(Limits)]
    assert set(LIMIT_FIELDS.values()) <= set(pb.StartRequest.DESCRIPTOR.fields_by_name)


def test_retention_and_errors_are_as_asked() -> None:
    """A retention of zero is one, and not a silence."""
    asked = StartSpec(content=SIMPLE, retention=0.0, allow_errors=True)
    options = admit(asked, Defaults(retention=4.0)).options
    assert (options.retention, options.allow_errors) == (0, True)


def test_the_segments_are_the_notebook() -> None:
    """Every cell and the tail are there, and together they are the notebook that was sent."""
    segments = admit(StartSpec(content=SIMPLE)).segments
    assert list(segments) == [0, 1, TAIL]
    assert HEAD + SEPARATOR.join([segments[0], segments[1]]) + segments[TAIL] == SIMPLE + b"\n"


def test_every_run_has_an_id_of_its_own() -> None:
    """Ids differ, and sort by the second in which the run was admitted."""
    ids = [admit(StartSpec(content=SIMPLE)).run.run_id for _ in range(20)]
    assert len(set(ids)) == 20
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{8}", one) for one in ids)
    assert [one[:15] for one in ids] == sorted(one[:15] for one in ids)


def test_ids_have_the_time_of_no_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers in several zones have one order."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        before = datetime.now(UTC)
        run_id = admit(StartSpec(content=SIMPLE)).run.run_id
        after = datetime.now(UTC)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert f"{before:%Y%m%d-%H%M%S}" <= run_id[:15] <= f"{after:%Y%m%d-%H%M%S}"


def test_the_notebook_comes_from_the_request_the_path_or_the_default(tmp_path: Path) -> None:
    """Content has no path and the run's own folder; a path and the default run where the file is."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "one.ipynb").write_bytes(SIMPLE)
    (tmp_path / "default.ipynb").write_bytes(content("3"))
    defaults = Defaults(notebook="default.ipynb")
    inline = admit(StartSpec(content=SIMPLE), defaults, tmp_path)
    path = admit(StartSpec(path="below/one.ipynb"), defaults, tmp_path)
    default = admit(StartSpec(), defaults, tmp_path)
    assert (inline.run.notebook_path, inline.options.working_folder) == ("", "")
    assert (path.run.notebook_path, path.options.working_folder) == (
        *("below/one.ipynb", str(tmp_path / "below")),
    )
    assert (default.run.notebook_path, default.options.working_folder) == ("default.ipynb", str(tmp_path))
    assert default.run.cells_total == 1


def test_no_notebook_at_all_is_refused(tmp_path: Path) -> None:
    """Where the operator named no default, an empty request says what is missing; so does an empty path."""
    for spec in (StartSpec(), StartSpec(path="")):
        with pytest.raises(NotebookNotFoundError) as caught:
            admit(spec, root=tmp_path)
        assert str(caught.value) == (
            "The request names no notebook, and the server has no default notebook. Send or name one, or "
            "start the server with --default-notebook."
        )


def test_empty_content_is_no_silence(tmp_path: Path) -> None:
    """A caller that sends zero bytes meant a notebook, and is not given the default one."""
    (tmp_path / "default.ipynb").write_bytes(SIMPLE)
    with pytest.raises(InvalidNotebookError):
        admit(StartSpec(content=b""), Defaults(notebook="default.ipynb"), tmp_path)


@pytest.mark.parametrize(
    ("asked", "named", "used"),
    [("", "", "python3"), ("", "ir", "ir"), ("ir", "", "ir"), ("python3", "ir", "python3")],
)
def test_the_kernel_is_the_one_asked_for_else_the_notebooks_else_the_default(
    asked: str, named: str, used: str
) -> None:
    """The request wins over the notebook, and the notebook over the server."""
    spec = {"kernelspec": {"name": named, "display_name": "x"}} if named else {}
    data = written(notebook("1", **spec))
    assert admit(StartSpec(content=data, kernel_name=asked)).run.kernel_name == used


def test_an_unknown_kernel_is_refused_wherever_it_was_named() -> None:
    """By the request, by the notebook, by the operator: the message lists what there is."""
    spec = {"kernelspec": {"name": "cobol", "display_name": "x"}}
    error = refusal(UnknownKernelError, "kernel_name", kernel_name="cobol")
    assert error.metadata == {"kernel_name": "cobol", "known": "ir, python3"}
    refusal(UnknownKernelError, "kernel_name", content=written(notebook("1", **spec)))
    with pytest.raises(UnknownKernelError):
        admit(StartSpec(content=SIMPLE), Defaults(kernel_name="cobol"))
    long = refusal(UnknownKernelError, "kernel_name", kernel_name="x" * 10_000)
    assert long.message == f"Unknown kernelspec '{'x' * 100}'. Available: ir, python3."
    assert long.metadata["kernel_name"] == "x" * 100


def test_the_names_of_many_kernels_are_cut_in_the_details() -> None:
    """The metadata of an error has a limit in gRPC, as the headers that it is sent in."""
    many = {f"kernel-{number:04}": "python" for number in range(1000)}
    admission = Admission(
        NotebookRoot(None, LIMIT), LIMIT, Defaults(), prepare, TransferService(UriPolicy(), LIMIT, 1.0)
    )
    with pytest.raises(UnknownKernelError) as caught:
        asyncio.run(admission.admit(StartSpec(content=SIMPLE), many))
    assert len(caught.value.metadata["known"]) == 1000


def test_the_default_kernel_is_what_its_name_stands_for() -> None:
    """`python` means `python3`, also where the operator names it."""
    transfer = TransferService(UriPolicy(), LIMIT, 1.0)
    defaults = Defaults(kernel_name="Python")
    admission = Admission(NotebookRoot(None, LIMIT), LIMIT, defaults, prepare, transfer, str.lower)
    assert admission.default_kernel == "python"


def test_repairs_are_in_the_run() -> None:
    """What was repaired in an invalid notebook, as sentences."""
    node = notebook("1")
    node.cells[0]["collapsed"] = True
    repairs = admit(StartSpec(content=written(node))).run.notebook_repairs
    assert repairs
    assert all(isinstance(one, str) for one in repairs)


def test_a_notebook_may_be_as_large_as_the_limit() -> None:
    """The limit is exact, and sent bytes are measured before they are parsed."""
    assert admit(StartSpec(content=SIMPLE), limit=len(SIMPLE)).run.cells_total == 2
    with pytest.raises(NotebookTooLargeError):
        admit(StartSpec(content=SIMPLE), limit=len(SIMPLE) - 1)
    with pytest.raises(NotebookTooLargeError):
        admit(StartSpec(content=b"\xff" * (LIMIT + 1)))


@pytest.mark.parametrize("name", [*TIMES, "retention"])
def test_durations_lie_between_zero_and_a_year(name: str) -> None:
    """The bounds themselves are allowed, what is beyond them or no number is refused."""

    def asked(value: float) -> dict[str, Any]:
        limits: dict[str, Any] = {name: value}
        return limits if name == "retention" else {"limits": Limits(**limits)}

    for good in (0.0, 1e-9, MAX_DURATION):
        admit(StartSpec(content=SIMPLE, **asked(good)))
    for bad in (-1e-9, MAX_DURATION * 1.0001, float("inf"), float("nan"), -float("inf")):
        assert name in refusal(InvalidFieldError, name, **asked(bad)).message


def test_labels_and_request_ids_have_their_limits() -> None:
    """As many and as long as the contract says, and not one more."""
    most = {f"{number:0{MAX_LABEL}}": "v" * MAX_LABEL for number in range(MAX_LABELS)}
    admitted = admit(StartSpec(content=SIMPLE, labels=most, request_id="x" * MAX_REQUEST_ID))
    assert (admitted.run.labels, admitted.run.request_id) == (most, "x" * MAX_REQUEST_ID)
    too_many = refusal(InvalidFieldError, "labels", labels={**most, "one": "more"})
    assert too_many.message == (
        f"labels must have at most {MAX_LABELS} entries (got {MAX_LABELS + 1}), with names and values of at "
        f"most {MAX_LABEL} characters."
    )
    refusal(InvalidFieldError, "labels", labels={"x" * (MAX_LABEL + 1): ""})
    refusal(InvalidFieldError, "labels", labels={"": "x" * (MAX_LABEL + 1)})
    too_long = refusal(InvalidFieldError, "request_id", request_id="x" * (MAX_REQUEST_ID + 1))
    assert too_long.message == (
        f"request_id must have at most {MAX_REQUEST_ID} characters (got {MAX_REQUEST_ID + 1})."
    )


@pytest.mark.parametrize(
    "environment", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "\0"}, {"A": "b", "=": ""}]
)
def test_variables_that_no_process_can_have_are_refused(environment: Mapping[str, str]) -> None:
    """A name that is empty or has `=`, and NUL anywhere; the value is not in the message."""
    assert (
        "is not a valid variable"
        in refusal(InvalidFieldError, "environment", environment=environment).message
    )


def test_a_refused_variable_is_shown_by_the_beginning_of_its_name() -> None:
    """A name may have a megabyte; what is allowed is said."""
    error = refusal(InvalidFieldError, "environment", environment={"x" * 1000 + "=": ""})
    assert error.message == (
        f"environment: '{'x' * 100}' is not a valid variable. A name must not be empty or contain '='; name "
        "and value must not contain NUL."
    )


def test_variables_reach_the_order_and_not_the_run() -> None:
    """What may be secret is in what the worker gets, and in nothing that is answered."""
    admitted = admit(StartSpec(content=SIMPLE, environment={"TOKEN": "secret", "EMPTY": ""}))
    assert admitted.options.environment == {"TOKEN": "secret", "EMPTY": ""}
    assert "secret" not in repr(admitted.run)


@pytest.mark.parametrize("name", ["", "1a", "a b", "a-b", "a\n", "a;b", "x" * 256, ".a", "a=1", "π r"])
def test_names_that_no_language_has_are_refused(name: str) -> None:
    """A parameter's name reaches source code, so it is a name and nothing else."""
    error = refusal(InvalidFieldError, "parameters", parameters={name: 1})
    assert error.message == f"parameters: {name[:100]!r} is not a valid name."


def test_a_parameter_is_injected_and_kept() -> None:
    """The notebook has one cell more, and the run the values as they were given."""
    values = {"a": 1, "b": [1.5, None, {"c": "d"}], "π": True}
    admitted = admit(StartSpec(content=SIMPLE, parameters=values))
    assert admitted.run.parameters == values
    assert admitted.run.cells_total == 3
    node = parsed(HEAD + SEPARATOR.join(admitted.segments[n] for n in range(3)) + admitted.segments[TAIL])
    assert "a = 1\n" in node.cells[0].source


def test_an_unknown_parameter_is_told_with_the_known_ones() -> None:
    """Message and metadata name both, for a person and for a program."""
    node = notebook("1")
    node.cells[0].source, node.cells[0].metadata["tags"] = "a = 1\nb = 2", ["parameters"]
    error = refusal(UnknownParameterError, "parameters", content=written(node), parameters={"z": 1, "a": 2})
    assert error.metadata == {"unknown": "z", "known": "a,b"}
    assert "Unknown parameter 'z'" in error.message


specs = st.builds(
    StartSpec,
    content=st.none() | st.binary(max_size=5),
    path=st.none() | st.sampled_from(["", "a", "b"]),
    parameters=st.dictionaries(st.sampled_from("ab"), json_values, max_size=2),
    kernel_name=st.sampled_from(["", "a"]),
    limits=st.sampled_from([Limits(), Limits(run_timeout=1.0), Limits(processes=1)]),
    allow_errors=st.booleans(),
    environment=st.dictionaries(st.sampled_from("ab"), st.sampled_from("ab"), max_size=2),
    labels=st.dictionaries(st.sampled_from("ab"), st.sampled_from("ab"), max_size=2),
    retention=st.none() | st.sampled_from([0.0, 1.0]),
    notebook_uri=st.none() | st.sampled_from(["", "a"]),
    output_uri=st.sampled_from(["", "a"]),
)


def payload(spec: StartSpec) -> dict[str, Any]:
    """The payload by name."""
    return {**asdict(spec), "request_id": None}


def spelled(value: Any) -> str:
    """What tells values apart as JSON does: False is not 0, the order of names is nothing."""
    if isinstance(value, dict):
        return f"dict of {sorted((name, spelled(one)) for name, one in value.items())}"
    if isinstance(value, list):
        return repr([spelled(one) for one in value])
    return repr(value)


@given(specs, specs)
@example(StartSpec(parameters={"a": [False]}), StartSpec(parameters={"a": [0]}))
@example(StartSpec(parameters={"a": 1, "b": 2}), StartSpec(parameters={"b": 2, "a": 1}))
def test_fingerprints_are_equal_exactly_for_equal_payloads(one: StartSpec, other: StartSpec) -> None:
    """The request id does not count, the order of names does not count, all else does."""
    named = replace(one, request_id="x", labels=dict(reversed(list(one.labels.items()))))
    assert compute_digest(one, b"key") == compute_digest(named, b"key")
    same = spelled(payload(one)) == spelled(payload(other))
    assert (compute_digest(one, b"key") == compute_digest(other, b"key")) == same
