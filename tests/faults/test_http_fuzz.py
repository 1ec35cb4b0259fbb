"""Requests that schemathesis makes from the OpenAPI document: none of them breaks the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from docsite import openapi
from tests.support.server import Server

SCHEMA = schemathesis.openapi.from_dict(openapi.document())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, notebook_root: Path) -> Iterator[Server]:
    """A server that runs what it is asked to, one run at a time."""
    options = ["--notebook-root", str(notebook_root), "--default-notebook", "default.ipynb", "--queue", "5"]
    with Server(tmp_path_factory.mktemp("state"), *options, "--http-listen", "127.0.0.1:0") as running:
        yield running


# A stream of changes has no end.
@SCHEMA.exclude(operation_id="Watch").parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_an_error_of_the_server(server: Server, case: Any) -> None:
    """Valid and invalid requests get a response that the document describes."""
    response = case.call(base_url=f"http://{server.http}", timeout=60)
    case.validate_response(
        response, checks=[not_a_server_error, content_type_conformance, response_schema_conformance]
    )
