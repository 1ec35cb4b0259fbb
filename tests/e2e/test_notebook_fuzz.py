"""No JSON document is a fault of the server's: it is refused with its reason, or is run to an end."""

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import artefact, finish, inline, perform
from tests.support.documents import any_documents, strange_documents
from tests.support.errors import refusal_of
from tests.support.server import Server

pytestmark = pytest.mark.long

DOCUMENTS = 60
SECONDS = 60.0
ENDS = {pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED, pb.RUN_STATE_TIMED_OUT, pb.RUN_STATE_CRASHED}
REASONS = {"INVALID_NOTEBOOK", "UNKNOWN_KERNEL", "UNKNOWN_PARAMETER", "INVALID_FIELD"}
parameters = st.sampled_from(["", "", '{"a": 1.5}'])


@settings(
    max_examples=DOCUMENTS,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(document=strange_documents() | any_documents, parameters_json=parameters)
def _documents(server: Server, document: bytes, parameters_json: str) -> None:
    request = pb.StartRequest(notebook_content=document, parameters_json=parameters_json)
    request.cell_timeout.seconds = 5
    request.allow_errors = True
    try:
        run = server.stub.Start(request, timeout=SECONDS).run
    except grpc.RpcError as error:
        refusal = refusal_of(error)
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal
        assert refusal.reason in REASONS, refusal
        return
    ended = finish(server.stub, run.run_id).run
    assert ended.state in ENDS
    assert ended.failure.cause != pb.FAILURE_CAUSE_WORKER_DIED, ended
    artefact(server.stub, run.run_id)


def test_every_document_is_refused_or_run(server: Server) -> None:
    """Strange notebooks and JSON of every shape, through a real server to the executed notebook."""
    _documents(server)
    assert perform(server.stub, inline("'well'")).run.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("format_", ["html", "markdown", "script"])
def test_what_was_repaired_can_be_exported(server: Server, format_: str) -> None:
    """Of a document that had little of a notebook every format can be made."""
    document = (
        b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": "1"}, {"cell_type": "?", "x": null}]}'
    )
    run = perform(server.stub, pb.StartRequest(notebook_content=document)).run
    assert run.state == pb.RUN_STATE_SUCCEEDED
    assert artefact(server.stub, run.run_id, format=format_)
