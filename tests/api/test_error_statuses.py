"""Every reason why a call cannot be served has its status, is in the contract, and fits in a trailer."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from notebook_runner_server import app, errors
from notebook_runner_server.api.errors import abort, abort_with
from notebook_runner_server.errors import RunnerError
from notebook_runner_server.runs.admission import Admission, Defaults
from notebook_runner_server.runs.model import StartSpec
from notebook_runner_server.runs.sources import NotebookRoot
from notebook_runner_server.transfer.policy import UriPolicy
from notebook_runner_server.transfer.service import TransferService
from tests.support.errors import DETAILS_BYTES, Refusal, refusal_of
from tests.support.notebooks import code, notebook, written

PROTO = Path(__file__).parents[2] / "proto" / "notebook_runner" / "v1" / "notebook_runner.proto"
# Answered by the guard around every call, not by an error of the runs.
OF_THE_GUARD = {("INTERNAL", "INTERNAL_ERROR"), ("UNIMPLEMENTED", "UNKNOWN_METHOD")}
# In the contract, and for a server that asks who calls; this one does not yet.
OF_ACCESS_CONTROL = {
    *(("UNAUTHENTICATED", "MISSING_TOKEN"), ("UNAUTHENTICATED", "BAD_TOKEN")),
    ("PERMISSION_DENIED", "BAD_TOKEN"),
}
STATUSES = {code.name for code in grpc.StatusCode}
WIDEST = "\U0001f600"


def kinds(base: type[RunnerError] = RunnerError) -> list[type[RunnerError]]:
    """Every error that names a reason."""
    below = [kind for one in base.__subclasses__() for kind in kinds(one)]
    return ([base] if "reason" in vars(base) else []) + below


def of_the_contract() -> set[tuple[str, str]]:
    """The pairs of status and reason that the comments of the contract name."""
    comments = " ".join(re.findall(r"^\s*//(.*)$", PROTO.read_text(), re.MULTILINE))
    found = set()
    for status, inside in re.findall(r"([A-Z_]+)\s+\(([^)]*)\)", comments):
        if status in STATUSES:
            found |= {(status, reason) for reason in re.findall(r"\b[A-Z]+_[A-Z_]+\b", inside)}
    return found


Abort = Callable[[Any], Awaitable[object]]


class Refuser:
    """A real server whose one call is refused in the way that the test says."""

    def __init__(self) -> None:
        self.refuse: Abort | None = None

    async def _handle(self, _: bytes, context: Any) -> bytes:
        assert self.refuse is not None
        await self.refuse(context)
        return b""

    async def _refused(self) -> Refusal:
        server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(self._handle)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", {"Call": handler})])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call: Any = channel.unary_unary("/test/Call")
                await call(b"", timeout=60)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        finally:
            await server.stop(None)
        raise AssertionError("the call was served")

    def refused(self, refuse: Abort) -> Refusal:
        """How a caller sees the refusal; what every refusal promises has been checked."""
        self.refuse = refuse
        return asyncio.run(self._refused())


@pytest.fixture
def refuser() -> Refuser:
    """Refuses a real call."""
    return Refuser()


def refused(refuser: Refuser, error: RunnerError) -> Refusal:
    """How a caller sees an error of the runs."""
    return refuser.refused(lambda context: abort(context, error))


def test_the_contract_and_the_errors_name_the_same_reasons(refuser: Refuser) -> None:
    """Each reason of the contract can be answered with its status, and none else is."""
    answered = set()
    for kind in kinds():
        status, reason = refused(refuser, kind("why")).kind
        answered.add((status.name, reason))
    assert len(answered) == len(kinds())
    assert answered | OF_THE_GUARD | OF_ACCESS_CONTROL == of_the_contract()


def test_the_table_that_is_parsed_is_the_whole_one() -> None:
    """The comments are read as they are meant: one reason of every status is among the pairs."""
    pairs = of_the_contract()
    assert ("INVALID_ARGUMENT", "PATH_OUTSIDE_ROOT") in pairs
    assert ("RESOURCE_EXHAUSTED", "RUNNER_BUSY") in pairs
    assert ("FAILED_PRECONDITION", "EXPORT_FAILED") in pairs
    assert len({status for status, _ in pairs}) == 12


def test_every_reason_belongs_to_one_error() -> None:
    """Reasons are upper snake case, and no two errors share one."""
    reasons = [kind.reason for kind in kinds()]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[A-Z]+(_[A-Z]+)+", reason) for reason in reasons)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """The drawing at the top of the module names every class, with its reason."""
    drawn = dict(re.findall(r"(\w+Error)\s+([A-Z]+_[A-Z_]+)", str(errors.__doc__)))
    assert drawn == {kind.__name__: kind.reason for kind in kinds()}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.reason)
def test_details_help_where_they_can(refuser: Refuser, kind: type[RunnerError]) -> None:
    """Message and metadata arrive; a field is named where one is wrong; who may retry soon is told when."""
    refusal = refused(refuser, kind("What is wrong.", field="a.field", some="thing"))
    assert (refusal.message, refusal.metadata) == ("What is wrong.", {"some": "thing"})
    assert refusal.fields == ["a.field"]
    assert refused(refuser, kind("What is wrong.")).fields == []
    soon = kind in (errors.RunnerBusyError, errors.NotReadyError)
    assert refusal.retry_seconds == (1.0 if soon else 0.0)


@pytest.mark.parametrize("character", ["x", "ä", "€", WIDEST, "\ud800", "\0", "%"])
def test_details_stay_under_4_kib(refuser: Refuser, character: str) -> None:
    """With the longest message, metadata and all details, in characters of any width, all of it arrives."""
    long = character * 100_000
    error = errors.RunnerBusyError(long, field="field", **{f"key_{number}": long for number in range(20)})
    refusal = refused(refuser, error)
    assert refusal.reason == error.reason
    assert refusal.message.startswith("?" if character == "\ud800" else character)
    assert len(refusal.message) >= 100
    assert len(refusal.details) == 3


def test_an_internal_error_with_long_metadata_fits(refuser: Refuser) -> None:
    """The same for what no error of the runs stands for."""
    values = {f"key_{number}": WIDEST * 10_000 for number in range(20)}
    refusal = refuser.refused(
        lambda context: abort_with(
            context, grpc.StatusCode.INTERNAL, WIDEST * 10_000, "INTERNAL_ERROR", values
        )
    )
    assert refusal.kind == (grpc.StatusCode.INTERNAL, "INTERNAL_ERROR")


def admit(spec: StartSpec) -> RunnerError:
    """How the server's own admission refuses a request."""
    transfer = TransferService(UriPolicy(), 10**7, 1.0)
    admission = Admission(NotebookRoot(Path("/nowhere"), 10**7), 10**7, Defaults(), app.prepare, transfer)
    with pytest.raises(RunnerError) as caught:
        asyncio.run(admission.admit(spec, {f"kernel-{number}": "python" for number in range(500)}))
    return caught.value


TAGGED = written(notebook(code("a = 1", "parameters")))
LONG_FORMAT = f'{{"nbformat": "{"X" * 10_000}"}}'.replace("X", "笔")
REQUESTS = {
    "UNKNOWN_PARAMETER": StartSpec(content=TAGGED, parameters={f"参{'数' * 250}{n}": 1 for n in range(300)}),
    "INVALID_FIELD": StartSpec(content=TAGGED, parameters={"数 " * 10_000: 1}),
    "UNKNOWN_KERNEL": StartSpec(content=TAGGED, kernel_name="核" * 10_000),
    "INVALID_NOTEBOOK": StartSpec(content=LONG_FORMAT.encode()),
    "PATH_OUTSIDE_ROOT": StartSpec(path="../" + "路" * 10_000),
    "NOTEBOOK_NOT_FOUND": StartSpec(path="路" * 10_000),
}


@pytest.mark.parametrize("reason", list(REQUESTS))
def test_the_longest_requests_are_refused_within_4_kib(refuser: Refuser, reason: str) -> None:
    """What a caller can really send, in a script whose letters have three bytes."""
    refusal = refused(refuser, admit(REQUESTS[reason]))
    assert refusal.reason == reason
    assert refusal.message
    assert DETAILS_BYTES == 4096
