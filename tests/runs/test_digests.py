"""Digests of requests: they stay what they are when later versions add fields."""

from dataclasses import fields, replace

import pytest

from notebook_runner_server.execution.interface import Limits
from notebook_runner_server.runs.model import StartSpec
from notebook_runner_server.runs.request_digest import compute_digest, is_same

KEY = bytes(range(32))
SMALL = StartSpec("id")
LARGE = StartSpec(
    "id",
    content=b"x",
    limits=Limits(cell_timeout=2.0),
    labels={"a": "b"},
    parameters={"b": 1, "a": 2},
    parameters_are_ordered=True,
)
# As the version before names computed them.
STORED = {
    "2:630dcd2966c43366:86227fe96722a2247dcfee12c07d89c1b0567bbc9aa6a8d804838f66a3da843f": SMALL,
    "2:630dcd2966c43366:a189384ccf21a41949d6df941b319b623094654c9488e571135c1d02c18f6565": LARGE,
}


@pytest.mark.parametrize("digest", STORED)
def test_a_stored_digest_stays_valid(digest: str) -> None:
    """A request without a new field has the digest that an earlier server stored; with one, another."""
    spec = STORED[digest]
    assert compute_digest(spec, KEY) == digest
    assert is_same(digest, spec, KEY)
    assert not is_same(digest, replace(spec, name="x"), KEY)


def test_each_field_but_the_id_counts() -> None:
    """A name is part of the request, the request id is not."""
    digest = compute_digest(SMALL, KEY)
    assert is_same(digest, replace(SMALL, request_id="other"), KEY)
    assert compute_digest(replace(SMALL, name="x"), KEY) != digest
    assert "name" in {one.name for one in fields(StartSpec)}
