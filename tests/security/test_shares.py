"""The shares of owners on a real server: by default, name and group, in order, and over time."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, duration, inline
from tests.support.errors import Refusal, refusal_of, refused
from tests.support.issuer import AUDIENCE, Issuer
from tests.support.killable import KillableServer
from tests.support.polling import pause
from tests.support.scrape import ON, scrape
from tests.support.secure import bearer, new_token
from tests.support.server import Server

QUOTA = (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
SLEEPS = inline("import time; time.sleep(600)")
SCOPES = "anyone run\nname run-all operator\n"
DEFAULTS = ("--owner-max-active", "1", "--owner-max-queued", "2")
RULES = """
# who may use how much
name active=2,queued=1,history=1Gi ada
name active=unlimited,queued=0 Bea B
group active=3,queued=0 team
group active=1,queued=1 small
group queued=unlimited queue
"""


class Owner:
    """A caller with a token, of the tokens file or of the issuer."""

    def __init__(self, server: Server, token: str) -> None:
        self._stub = rpc.NotebookRunnerStub(server.channel)
        self._about: dict[str, Any] = {"metadata": bearer(token), "timeout": SECONDS}

    def start(self, request: pb.StartRequest = SLEEPS) -> str:
        """Starts a run, and returns its id."""
        return self._stub.Start(request, **self._about).run.run_id

    def refused(self, request: pb.StartRequest = SLEEPS) -> Refusal:
        """Starts a run, which must be refused."""
        return refused(lambda: self._stub.Start(request, **self._about))

    def fill(self) -> tuple[int, Refusal]:
        """Starts runs until one is refused; returns how many were not, and the refusal."""
        for number in range(100):
            try:
                self.start()
            except grpc.RpcError as error:
                return number, refusal_of(error)
        raise AssertionError("no Start was refused")

    def end(self, run_id: str = "") -> pb.Run:
        """Waits for the end of a run."""
        request = pb.ProgressRequest(run_id=run_id)
        return list(self._stub.Progress(request, **self._about))[-1].run_changed

    def kill(self, run_id: str) -> None:
        """Ends a run."""
        self._stub.Kill(pb.KillRequest(run_id=run_id), **self._about)

    def delete(self, run_id: str) -> None:
        """Deletes a run."""
        self._stub.Delete(pb.DeleteRequest(run_id=run_id), **self._about)

    def runs(self) -> list[pb.Run]:
        """The runs that it sees, the oldest first."""
        return list(self._stub.List(pb.ListRequest(page_size=1000), **self._about).runs)[::-1]

    def share(self) -> pb.Share:
        """Its share, and what it uses of it."""
        return self._stub.Info(pb.InfoRequest(), **self._about).share

    def free(self) -> None:
        """Ends its runs, those that wait first."""
        for run in self.runs()[::-1]:
            self.kill(run.run_id)

    def states(self) -> Counter[str]:
        """How many of its runs are in each state."""
        return Counter(pb.RunState.Name(run.state).removeprefix("RUN_STATE_") for run in self.runs())


def until(what: Callable[[], bool]) -> None:
    """Waits until something is true that is to become true by itself."""
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end
        pause()


def written(path: Path, text: str) -> Path:
    """A file that only this user can write."""
    path.touch(0o600)
    path.write_text(text)
    return path


def options(issuer: Issuer, folder: Path) -> list[str]:
    """The options of a server with shares that accepts an issuer's tokens."""
    scopes, shares = written(folder / "scopes", SCOPES), written(folder / "shares", RULES)
    own = ["--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE, "--oidc-scopes-file", str(scopes)]
    own += ["--shares-file", str(shares), *DEFAULTS, "--workers", "4", "--queue", "100"]
    # Runs that sleep may be left.
    return [*own, "--drain-timeout", "0"]


def ready(server: Server, issuer: Issuer) -> None:
    """Waits until the server has the issuer's keys."""

    def has_keys() -> bool:
        try:
            Owner(server, issuer.token("operator")).share()
        except grpc.RpcError as error:
            assert refusal_of(error).reason == "NOT_READY"  # noqa: PT017 - any other status is a mistake
            return False
        return True

    until(has_keys)


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer of tokens with groups."""
    with Issuer() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def shared(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with four workers."""
    folder = tmp_path_factory.mktemp("shared")
    with Server(folder / "state", *options(issuer, folder), *ON) as server:
        ready(server, issuer)
        yield server


# Claims of a caller, and how many of its runs are active and queued before one is refused.
TABLE: dict[str, tuple[dict[str, Any], pb.Share, tuple[int, int]]] = {
    "default": ({"sub": "x"}, pb.Share(max_active=1, max_queued=2), (1, 2)),
    "an unknown group": ({"sub": "y", "groups": ["other"]}, pb.Share(max_active=1, max_queued=2), (1, 2)),
    "a name": ({"sub": "ada"}, pb.Share(max_active=2, max_queued=1, max_history_bytes=2**30), (2, 1)),
    "a name with a blank": ({"sub": "Bea B"}, pb.Share(max_queued=0), (4, 0)),
    "a group": ({"sub": "z", "groups": ["team"]}, pb.Share(max_active=3, max_queued=0), (3, 0)),
    "the larger of two groups": (
        {"sub": "v", "groups": ["small", "team"]},
        pb.Share(max_active=3, max_queued=1),
        (3, 1),
    ),
    "a name before its groups": (
        {"sub": "ada", "groups": ["team", "queue"]},
        pb.Share(max_active=2, max_queued=1, max_history_bytes=2**30),
        (2, 1),
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_share(shared: Server, issuer: Issuer, name: str) -> None:
    """So many runs are executed, so many wait, and the next one is refused with the quota and its limit."""
    claims, share, (active, queued) = TABLE[name]
    owner = Owner(shared, issuer.token(**claims))
    before = scrape(shared).value("owner_quota_exceeded_total", quota="queued")
    try:
        admitted, refusal = owner.fill()
        assert admitted == active + queued
        assert refusal.kind == QUOTA
        assert refusal.metadata == {"quota": "queued", "limit": str(share.max_queued)}
        assert refusal.retry_seconds == 1.0
        until(lambda: owner.share().active == active)
        answered = owner.share()
        assert (answered.active, answered.queued) == (active, queued)
        for field in ("max_active", "max_queued", "max_history_bytes"):
            assert answered.HasField(field) == share.HasField(field)
            assert getattr(answered, field) == getattr(share, field)
        assert scrape(shared).value("owner_quota_exceeded_total", quota="queued") == before + 1
    finally:
        owner.free()


def test_many_starts_at_once(shared: Server, issuer: Issuer) -> None:
    """Two owners whose calls arrive together: none gets more than its share."""
    owners = {
        "ada": Owner(shared, issuer.token("ada")),
        "z": Owner(shared, issuer.token("z", groups=["small"])),
    }
    try:

        def start(owner: Owner) -> int:
            try:
                owner.start()
            except grpc.RpcError as error:
                assert refusal_of(error).kind == QUOTA  # noqa: PT017 - any other status is a mistake
                return 0
            return 1

        with ThreadPoolExecutor(16) as pool:
            answers = {name: [pool.submit(start, one) for _ in range(20)] for name, one in owners.items()}
        admitted = {name: sum(one.result() for one in calls) for name, calls in answers.items()}
        assert admitted == {"ada": 2 + 1, "z": 1 + 1}
    finally:
        for owner in owners.values():
            owner.free()


def test_a_full_history(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A Start after the run that fills the history is refused, until one of the owner's runs is deleted."""
    tokens = tmp_path / "tokens"
    ada, bob = new_token(tokens, "ada"), new_token(tokens, "bob")
    server = make_server("--tokens-file", str(tokens), "--owner-max-history-bytes", "100Ki", *ON)
    owner = Owner(server, ada)
    large = owner.start(inline("open('data', 'wb').write(b'x' * 200_000)"))
    assert owner.end(large).state == pb.RUN_STATE_SUCCEEDED
    share = owner.share()
    assert share.max_history_bytes == 102400
    assert 200_000 < share.history_bytes < 300_000
    refusal = owner.refused()
    assert (refusal.kind, refusal.retry_seconds) == (QUOTA, 0.0)
    assert refusal.metadata == {"quota": "history", "limit": "102400"}
    assert scrape(server).value("owner_quota_exceeded_total", quota="history") == 1
    other = Owner(server, bob)
    assert other.end(other.start(inline("1"))).state == pb.RUN_STATE_SUCCEEDED
    owner.delete(large)
    assert owner.share().history_bytes == 0
    assert owner.end(owner.start(inline("1"))).state == pb.RUN_STATE_SUCCEEDED


def test_repetitions_fill_no_history(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A run that crashes again and again is repeated until its owner's history is full, and then ends."""
    token = new_token(tmp_path / "tokens")
    limits = ("--owner-max-history-bytes", "200Ki", "--queue", "5")
    server = make_server("--tokens-file", str(tmp_path / "tokens"), *limits)
    retry = pb.RetryPolicy(max_retries=100, backoff=duration(0))
    source = f"import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n#{'x' * 100_000}"
    owner = Owner(server, token)
    owner.start(inline(source, retry=retry))
    server.logged("run_not_retried", "share")
    until(lambda: all(run.HasField("end_time") for run in owner.runs()))
    newest = max(owner.runs(), key=lambda run: run.attempt)
    assert (newest.state, newest.retried_by) == (pb.RUN_STATE_CRASHED, "")
    assert 2 <= newest.attempt < 10
    assert owner.refused().kind == QUOTA


def test_a_history_from_before(tmp_path: Path) -> None:
    """A server that starts with a full history refuses its owner's Starts as soon as it has measured it."""
    token = new_token(tmp_path / "tokens", "ada")
    options = ("--tokens-file", str(tmp_path / "tokens"))
    with Server(tmp_path / "state", *options) as server:
        owner = Owner(server, token)
        owner.end(owner.start(inline("open('data', 'wb').write(b'x' * 200_000)")))
        assert owner.share().history_bytes == 0
    with Server(tmp_path / "state", *options, "--owner-max-history-bytes", "200k") as server:
        owner = Owner(server, token)
        until(lambda: owner.share().history_bytes > 200_000)
        assert owner.refused().metadata == {"quota": "history", "limit": "200000"}


def test_turns_and_priorities(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Owners take turns; within one the priority decides, and then the order of the Starts."""
    tokens = tmp_path / "tokens"
    ada_token, bob_token = new_token(tokens, "ada"), new_token(tokens, "bob")
    server = make_server("--tokens-file", str(tokens), "--queue", "20")
    ada, bob = Owner(server, ada_token), Owner(server, bob_token)
    first = ada.start()
    until(lambda: ada.share().active == 1)
    for name, priority in (("a0", 0), ("a5", 5), ("a-1", -1), ("a5 too", 5)):
        ada.start(inline("1", name=name, priority=priority))
    for name, priority in (("b-9", -9), ("b-9 too", -9)):
        bob.start(inline("1", name=name, priority=priority))
    ada.kill(first)
    for owner in (ada, bob):
        for run in owner.runs():
            owner.end(run.run_id)
    runs = [run for owner in (ada, bob) for run in owner.runs() if run.name and run.run_id != first]
    runs.sort(key=lambda run: run.start_time.ToNanoseconds())
    assert [run.name for run in runs] == ["b-9", "a5", "b-9 too", "a5 too", "a0", "a-1"]


def test_a_restart_keeps_shares(issuer: Issuer, tmp_path: Path) -> None:
    """A group's share counts for runs that wait, before any call of their owner."""
    settings = options(issuer, tmp_path)
    written(tmp_path / "shares", "group active=2,queued=10 pair")
    with KillableServer(tmp_path / "state", *settings) as server:
        ready(server, issuer)
        owner = Owner(server, issuer.token("ada", groups=["pair"]))
        for _ in range(6):
            owner.start()
        until(lambda: owner.states() == {"RUNNING": 2, "QUEUED": 4})
        server.die()
    with KillableServer(tmp_path / "state", *settings) as server:
        ready(server, issuer)
        operator = Owner(server, issuer.token("operator"))
        until(lambda: operator.states() == {"INTERRUPTED": 2, "RUNNING": 2, "QUEUED": 2})
        assert (operator.share().active, operator.share().max_active) == (0, 1)


def test_shares_that_change(issuer: Issuer, tmp_path: Path) -> None:
    """A larger share starts what waits, without any call; an invalid file changes nothing, and is logged."""
    settings = options(issuer, tmp_path)
    file = written(tmp_path / "shares", "anyone active=1,queued=10")
    with Server(tmp_path / "state", *settings) as server:
        ready(server, issuer)
        owner = Owner(server, issuer.token("ada"))
        for _ in range(3):
            owner.start()
        until(lambda: owner.states() == {"RUNNING": 1, "QUEUED": 2})
        file.write_text("anyone active=many")
        server.logged("shares_not_reloaded", "active must be a number")
        assert owner.share().max_active == 1
        file.write_text("anyone active=2,queued=0")
        server.logged("shares_reloaded")
        until(lambda: owner.states() == {"RUNNING": 2, "QUEUED": 1})
        assert owner.refused().metadata == {"quota": "queued", "limit": "0"}


def test_a_server_without_credentials(make_server: Callable[..., Server]) -> None:
    """All its callers are one owner."""
    shares = ("--owner-max-active", "1", "--owner-max-queued", "1")
    server = make_server(*shares, "--workers", "2", "--queue", "9", "--drain-timeout", "0")
    for _ in range(2):
        server.stub.Start(SLEEPS, timeout=SECONDS)
    assert refused(lambda: server.stub.Start(SLEEPS, timeout=SECONDS)).kind == QUOTA
