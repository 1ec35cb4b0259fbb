"""Servers that are attacked: by notebooks, run by an ordinary user; by callers, where tokens are wanted."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.attacks import ENVIRONMENT, attacked
from tests.support.secure import Guarded, TlsFolder, issue, new_token, roots
from tests.support.server import Server
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home


@pytest.fixture(scope="module", params=["warm", "cold"])
def mode(request: pytest.FixtureRequest) -> str:
    """How kernels come to be."""
    return str(request.param)


@pytest.fixture
def make_plain() -> Iterator[Callable[..., UnprivilegedServer]]:
    """Starts such servers of the test's own: `make_plain(*options, environment=…)`."""
    with ExitStack() as stack:

        def make(*options: str, **more: Any) -> UnprivilegedServer:
            home = stack.enter_context(unprivileged_home())
            return stack.enter_context(UnprivilegedServer(home, *options, **more))

        yield make


@pytest.fixture(scope="module")
def plain(mode: str) -> Iterator[UnprivilegedServer]:
    """A server for the attacks of a module."""
    options = ["--log-level", "debug"] if mode == "warm" else ["--no-warm-kernels"]
    with unprivileged_home() as home, UnprivilegedServer(home, *options, environment=ENVIRONMENT) as server:
        yield server


@pytest.fixture
def attack(plain: UnprivilegedServer, mode: str) -> Callable[..., Any]:
    """Runs an attack in a notebook; answers what it noted."""
    return lambda source, **fields: attacked(plain, source, mode=mode, **fields)


@contextmanager
def guarding(folder: Path, *options: str, ca: bytes = b"") -> Iterator[Guarded]:
    """A server with tokens."""
    file = folder / "tokens"
    # Of one name, so that the second one reads the runs of the first.
    run, read = new_token(file, "ci"), new_token(file, "ci", "read")
    options = ("--tokens-file", str(file), "--heartbeat-interval", "0.2", "--channelz", *options)
    with Server(folder / "state", *options) as server:
        yield Guarded(server, file, run, read, ca)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """One server with tokens for the tests of a module that leave its tokens file as it was."""
    with guarding(tmp_path_factory.mktemp("guarded")) as guarded:
        yield guarded


@pytest.fixture(scope="module", params=["plain", "TLS"])
def besieged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The same, without TLS and with it."""
    folder, authority = tmp_path_factory.mktemp("besieged"), trustme.CA()
    with_tls = request.param == "TLS"
    options = TlsFolder(folder, issue(authority)).options if with_tls else []
    with guarding(folder, *options, ca=roots(authority) if with_tls else b"") as guarded:
        yield guarded
