"""Fixtures of the tests by attack: a server that wants tokens."""

from collections.abc import Iterator

import pytest
from support.secure import Guarded, new_token
from support.server import Server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """One server with tokens for the tests of a module that leave its tokens file as it was."""
    file = tmp_path_factory.mktemp("secret") / "tokens"
    run, read = new_token(file, "ci"), new_token(file, "board", "read")
    options = ["--tokens-file", str(file), "--heartbeat-interval", "0.2", "--channelz"]
    with Server(tmp_path_factory.mktemp("state"), *options) as server:
        yield Guarded(server, file, run, read)
