"""Whose runs a caller sees and changes: each call by scope, owner and state of the run."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, inline
from tests.support.errors import Refusal, refusal_of, refused
from tests.support.http_client import HttpCaller
from tests.support.killable import KillableServer
from tests.support.scrape import scrape
from tests.support.secure import TlsFolder, bearer, issue, new_token, roots, secure_channel
from tests.support.server import Server
from tests.support.watching import watching

HIDDEN = (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
NOT_OWNER = (grpc.StatusCode.PERMISSION_DENIED, "NOT_OWNER")
NO_SCOPE = (grpc.StatusCode.PERMISSION_DENIED, "BAD_TOKEN")
ACTIVE = (grpc.StatusCode.FAILED_PRECONDITION, "RUN_ACTIVE")
ALLOWED = None

SLEEPS = inline("print('so far')", "import time; time.sleep(600)")


@dataclass(frozen=True)
class Caller:
    """A caller with a token.

    Attributes:
        stub: Makes its calls.
        token: Its token.
    """

    stub: rpc.NotebookRunnerStub
    token: str

    def call(self, method: str, request: Message) -> Any:
        """Makes a call; a stream is read to its end."""
        answer = getattr(self.stub, method)(request, timeout=SECONDS, metadata=bearer(self.token))
        return list(answer) if method == "Progress" else answer

    def start(self, request: pb.StartRequest) -> str:
        """Starts a run, and returns its id."""
        return str(self.call("Start", request).run.run_id)

    def end(self, run_id: str = "") -> pb.Run:
        """Waits for the end of a run."""
        return self.call("Progress", pb.ProgressRequest(run_id=run_id))[-1].run_changed  # type: ignore[no-any-return] # a stub's

    def run(self, request: pb.StartRequest) -> str:
        """Runs a notebook to its end, and returns the run's id."""
        run_id = self.start(request)
        self.end(run_id)
        return run_id

    def list(self, **fields: Any) -> list[str]:
        """The ids of the runs that it sees, the newest first."""
        return [run.run_id for run in self.call("List", pb.ListRequest(page_size=1000, **fields)).runs]

    def refused(self, method: str, request: Message) -> Refusal:
        """Makes a call that must be refused."""
        return refused(lambda: self.call(method, request))


@dataclass
class Team:
    """A server with tokens of several callers.

    Attributes:
        server: The server.
        file: Its tokens file.
        state: The run of `ada` in each state that the tests ask for.
    """

    server: Server
    file: Path
    state: dict[str, str] = field(default_factory=dict)
    _callers: dict[str, Caller] = field(default_factory=dict)

    def __call__(self, who: str) -> Caller:
        """The caller with this name and scope, as in `ada:run`."""
        if who not in self._callers:
            name, _, scope = who.partition(":")
            self._callers[who] = Caller(self.server.stub, new_token(self.file, name, scope))
        return self._callers[who]

    def run_in(self, state: str) -> str:
        """A run of `ada` in a state: queued, running or ended."""
        ada = self("ada:run")
        known = self.state.get(state)
        if known is None or known not in ada.list() or self._state(known) != state:
            if state == "queued":
                self.run_in("running")
            else:
                self.free_workers()
            self.state[state] = known = ada.run(inline("1")) if state == "ended" else ada.start(SLEEPS)
            if state == "running":
                request = pb.ProgressRequest(run_id=known)
                events = ada.stub.Progress(request, metadata=bearer(ada.token), timeout=SECONDS)
                next(event for event in events if event.HasField("cell_output"))
                events.cancel()
        return known

    def free_workers(self) -> None:
        """Ends all runs of `ada`."""
        ada = self("ada:run")
        for run_id in ada.list():
            ada.call("Kill", pb.KillRequest(run_id=run_id))

    def _state(self, run_id: str) -> str:
        run = self("ada:run").call("Get", pb.GetRequest(run_id=run_id)).run
        return {1: "queued", 2: "running", 3: "running", 4: "running"}.get(run.state, "ended")


@contextmanager
def team_of(folder: Path, *options: str) -> Iterator[Team]:
    """A server that asks for tokens."""
    file = folder / "tokens"
    token = new_token(file, "ada", "run")
    # Runs that sleep may be left.
    options = ("--tokens-file", str(file), "--drain-timeout", "0", *options)
    with Server(folder / "state", *options) as server:
        yield Team(server, file, _callers={"ada:run": Caller(server.stub, token)})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A server with one worker, for which runs can wait, that serves HTTP as well."""
    options = ("--queue", "20", "--http-listen", "127.0.0.1:0")
    with team_of(tmp_path_factory.mktemp("table"), *options) as team:
        yield team


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """One server for all tests that share it."""
    options = (
        "--workers",
        "3",
        "--queue",
        "20",
        "--heartbeat-interval",
        "0.5",
        "--notify-hosts",
        "a.example",
    )
    with team_of(tmp_path_factory.mktemp("team"), *options) as team:
        yield team


# What each caller gets that reads, and that changes, a run of `ada`.
TABLE: dict[str, tuple[Any, Any]] = {
    "ada:run": (ALLOWED, ALLOWED),
    "ada:read": (ALLOWED, NO_SCOPE),
    "ada:admin": (ALLOWED, ALLOWED),
    "bob:read": (HIDDEN, NO_SCOPE),
    "bob:run": (HIDDEN, HIDDEN),
    "bob:read-all": (ALLOWED, NO_SCOPE),
    "bob:run,read-all": (ALLOWED, NOT_OWNER),
    "bob:run-all": (ALLOWED, ALLOWED),
    "bob:admin": (ALLOWED, ALLOWED),
}
READING: dict[str, Callable[[str], tuple[str, Message]]] = {
    "Get": lambda run_id: ("Get", pb.GetRequest(run_id=run_id)),
    "Get by the random part": lambda run_id: ("Get", pb.GetRequest(run_id=run_id.rpartition("-")[2])),
    "Progress": lambda run_id: ("Progress", pb.ProgressRequest(run_id=run_id, snapshot_only=True)),
    "Output": lambda run_id: ("Output", pb.OutputRequest(run_id=run_id)),
    "Output of the error": lambda run_id: ("Output", pb.OutputRequest(run_id=run_id, format="error")),
}
CHANGING: dict[str, Callable[[str], tuple[str, Message]]] = {
    "Kill": lambda run_id: ("Kill", pb.KillRequest(run_id=run_id)),
    "Delete": lambda run_id: ("Delete", pb.DeleteRequest(run_id=run_id)),
}


def over_grpc(caller: Caller, _: Server, method: str, request: Message) -> Any:
    """How a call was answered: `ALLOWED`, or its status and reason."""
    try:
        caller.call(method, request)
    except grpc.RpcError as error:
        return refusal_of(error).kind
    return ALLOWED


PATHS = {
    "Get": ("GET", "/v1/runs/{run_id}"),
    "Progress": ("GET", "/v1/runs/{run_id}/progress?snapshotOnly=true"),
    "Output": ("GET", "/v1/runs/{run_id}/output?format={format}"),
    "Kill": ("POST", "/v1/runs/{run_id}:kill"),
    "Delete": ("DELETE", "/v1/runs/{run_id}"),
}


def over_http(caller: Caller, server: Server, method: str, request: Any) -> Any:
    """The same over HTTP."""
    verb, path = PATHS[method]
    path = path.format(run_id=request.run_id, format=getattr(request, "format", ""))
    made = HttpCaller(server.http, authorization=f"Bearer {caller.token}")
    answer = made.call(verb, path, {} if verb == "POST" else None)
    if answer.status < 400:
        return ALLOWED
    codes = {code.value[0]: code for code in grpc.StatusCode}
    return codes[answer.json["code"]], answer.reason


@pytest.mark.parametrize("listener", [over_grpc, over_http])
@pytest.mark.parametrize("name", READING | CHANGING)
@pytest.mark.parametrize("who", TABLE)
@pytest.mark.parametrize("state", ["queued", "running", "ended"])
def test_each_call(table: Team, who: str, name: str, state: str, listener: Callable[..., Any]) -> None:
    """A run of another owner is not there for who may not see it, and refused to who may only see it."""
    run_id = table.run_in(state)
    expected = TABLE[who][name in CHANGING]
    if name == "Delete" and expected is ALLOWED and state != "ended":
        expected = ACTIVE
    assert listener(table(who), table.server, *(READING | CHANGING)[name](run_id)) == expected
    if expected is not ALLOWED:
        assert table("ada:run").call("Get", pb.GetRequest(run_id=run_id)).run.owner == "ada"


@pytest.mark.parametrize("who", TABLE)
def test_watch(team: Team, who: str) -> None:
    """A watcher gets existing runs, changes and deletions of those runs that it may read, and no others."""
    ada, caller = team("ada:run"), team(who)
    is_visible = TABLE[who][0] is ALLOWED
    existing = ada.run(inline("1"))
    with (
        watching(caller.stub, bearer(caller.token), include_existing=True) as watcher,
        watching(caller.stub, bearer(caller.token), owner="ada") as of_ada,
    ):
        assert (existing in [run.run_id for run in watcher.existing()]) == is_visible
        cursor = watcher.cursor
        changed = ada.run(inline("1"))
        ada.call("Delete", pb.DeleteRequest(run_id=existing))
        # For everyone there is something at the end, and all of it was before.
        own = team("bob:run" if who.startswith("bob") else "ada:run").run(inline("1"))
        assert watcher.until_end(own)
        seen = {message.run.run_id or message.deleted_run_id for message in watcher.seen}
        assert ({existing, changed} <= seen) == is_visible
        assert is_visible or not {existing, changed} & seen
        with watching(caller.stub, bearer(caller.token), cursor=cursor) as again:
            assert again.until_end(own)
            assert again.seen == watcher.seen[-len(again.seen) :]
        if is_visible:
            assert of_ada.change().run.run_id == changed
        else:
            assert of_ada.message().HasField("heartbeat")
            assert of_ada.seen == []


def test_a_watch_ends_with_its_token(team: Team) -> None:
    """A token that is revoked ends the stream with its next message."""
    name = "frank:read"
    caller = team(name)
    with watching(caller.stub, bearer(caller.token)) as watcher:
        lines = team.file.read_text().splitlines(keepends=True)
        team.file.write_text("".join(line for line in lines if "frank" not in line))

        def read_on() -> None:
            while True:
                watcher.message()

        assert refused(read_on).kind == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")


def test_what_is_hidden_looks_like_what_does_not_exist(team: Team) -> None:
    """The answer about a hidden run differs from that about none only in the id that was asked for."""
    run_id, bob = team.run_in("ended"), team("bob:run")
    for method, kind in (("Get", pb.GetRequest), ("Kill", pb.KillRequest), ("Delete", pb.DeleteRequest)):
        hidden = bob.refused(method, kind(run_id=run_id))
        absent = bob.refused(method, kind(run_id="20260101-000000-01234567"))
        assert hidden.message.replace(run_id, "ID") == absent.message.replace(
            "20260101-000000-01234567", "ID"
        )
        assert hidden.kind == absent.kind == HIDDEN


def test_who_is_refused_learns_why(team: Team) -> None:
    """The error names the run, its owner and the scope that is needed."""
    run_id = team.run_in("ended")
    refusal = team("bob:run,read-all").refused("Delete", pb.DeleteRequest(run_id=run_id))
    assert refusal.kind == NOT_OWNER
    assert refusal.metadata == {"run_id": run_id, "owner": "ada"}
    assert "run-all" in refusal.message


def test_list(team: Team) -> None:
    """Each caller lists its own runs, or all; the filter by owner shows no more than that."""
    ada, bob, all_seeing = team("ada:run"), team("bob:run"), team("carol:read-all")
    of_ada, of_bob = ada.run(inline("1")), bob.run(inline("2"))
    assert of_ada in ada.list()
    assert of_bob not in ada.list()
    assert set(ada.list()).isdisjoint(bob.list())
    assert set(all_seeing.list()) >= {of_ada, of_bob}
    assert ada.list(owner="bob") == []
    assert ada.list(owner="ada") == ada.list()
    assert all_seeing.list(owner="bob") == bob.list()
    assert all_seeing.list(owner="carol") == []
    owners = {run.owner for run in all_seeing.call("List", pb.ListRequest(page_size=1000)).runs}
    assert owners >= {"ada", "bob"}


def test_a_page_token_of_another_filter(team: Team) -> None:
    """A token of one owner's list continues no other list."""
    for _ in range(2):
        team("bob:run").run(inline("1"))
    token = team("carol:read-all").call("List", pb.ListRequest(page_size=1, owner="bob")).next_page_token
    for fields in ({}, {"owner": "ada"}):
        request = pb.ListRequest(page_token=token, **fields)  # type: ignore[arg-type] # a test's fields
        assert team("carol:read-all").refused("List", request).fields == ["page_token"]
    # Its position reveals nothing: bob's token shows ada only her own runs.
    shown = team("ada:run").call("List", pb.ListRequest(page_token=token, owner="bob"))
    assert not shown.runs


def test_an_empty_id(team: Team) -> None:
    """It is the caller's own newest run, also for who may see all; who has none is told so."""
    bob, admin = team("bob:run"), team("dora:admin")
    own, newer = bob.run(inline("1")), team("ada:run").run(inline("2"))
    assert own < newer or own != newer
    assert bob.call("Get", pb.GetRequest()).run.run_id == own
    assert bob.end().run_id == own
    assert bob.call("Output", pb.OutputRequest()).run.run_id == own
    assert bob.call("Kill", pb.KillRequest()).run.run_id == own
    for method, request in (
        ("Get", pb.GetRequest()),
        ("Kill", pb.KillRequest()),
        ("Progress", pb.ProgressRequest()),
    ):
        assert admin.refused(method, request).kind == HIDDEN
    assert "No run" in admin.refused("Get", pb.GetRequest()).message


def test_an_empty_kill_ends_the_own_run(team: Team) -> None:
    """Runs of others that are newer, and execute, go on."""
    bob = team("bob:run")
    of_bob = bob.start(SLEEPS)
    of_ada = team.run_in("running")
    assert bob.call("Kill", pb.KillRequest()).run.run_id == of_bob
    assert team("ada:run").call("Get", pb.GetRequest(run_id=of_ada)).run.state < pb.RUN_STATE_KILLING


def test_a_request_id_belongs_to_its_owner(team: Team) -> None:
    """Two callers may use the same one, for whatever they like."""
    ada, bob = team("ada:run"), team("bob:run")
    one, two = inline("1", request_id="same"), inline("2", request_id="same")
    of_ada, of_bob = ada.run(one), bob.run(two)
    assert of_ada != of_bob
    assert ada.start(one) == of_ada
    assert bob.start(two) == of_bob
    assert bob.refused("Start", one).metadata == {"run_id": of_bob}
    bob.call("Delete", pb.DeleteRequest(run_id=of_bob))
    assert ada.start(one) == of_ada


def test_a_part_of_an_id(team: Team) -> None:
    """A part that several runs have is not ambiguous for who sees one of them."""
    erin = team("erin:run")
    own = erin.run(inline("1"))
    team("ada:run").run(inline("1"))
    assert erin.call("Get", pb.GetRequest(run_id=own[:8])).run.run_id == own
    others = team("carol:read-all").refused("Get", pb.GetRequest(run_id=own[:8]))
    assert others.reason == "AMBIGUOUS_RUN_ID"
    few = team("ada:run").refused("Get", pb.GetRequest(run_id=own[:8]))
    assert own not in few.metadata["run_ids"]


def test_a_busy_server_names_no_run_of_others(tmp_path: Path) -> None:
    """Who is refused for the runs of others learns only that the server is busy."""
    with team_of(tmp_path, "--queue", "0") as team:
        run_id = team.run_in("running")
        refusal = team("bob:run").refused("Start", inline("1"))
        assert refusal.kind == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RUNNER_BUSY")
        assert refusal.metadata == {}
        assert run_id not in refusal.message
        assert refusal.retry_seconds
        for who in ("ada:run", "bob:run,read-all"):
            refusal = team(who).refused("Start", inline("1"))
            assert refusal.metadata["run_id"] == run_id


def test_info(team: Team) -> None:
    """A caller learns its name and its scopes, with what they include."""
    answer = team("bob:run,read-all").call("Info", pb.InfoRequest())
    assert (answer.caller, list(answer.scopes)) == ("bob", ["read", "read-all", "run"])


@pytest.mark.parametrize(("scope", "names"), [("run", []), ("read-all", ["notify:a.example"])])
def test_receivers_of_webhooks(team: Team, scope: str, names: list[str]) -> None:
    """Their backlogs tell of all runs, and so only callers that may see all runs get them."""
    answer = team(f"bob:{scope}").call("Info", pb.InfoRequest())
    assert [receiver.name for receiver in answer.webhooks] == names


def test_owners_after_a_crash(tmp_path: Path) -> None:
    """Owners and request ids are durable, also when the history is made again from its intact runs."""
    file, state = tmp_path / "tokens", tmp_path / "state"
    tokens = {name: new_token(file, name, "run") for name in ("ada", "bob")}
    found: dict[str, str] = {}
    request = inline("1", request_id="same")
    for attempt in range(3):
        with KillableServer(state, "--tokens-file", str(file), "--warm-kernels", "none") as server:
            for name, token in tokens.items():
                caller = Caller(server.stub, token)
                run_id = caller.start(request)
                assert found.setdefault(name, run_id) == run_id
                assert caller.end(run_id).owner == name
                assert caller.list() == [run_id]
            server.die()
        if attempt == 1:
            (state / "notebook-runner.db-damaged").write_text("found by the server before")


def test_a_damaged_run_is_hidden_as_well(tmp_path: Path) -> None:
    """Only who may see a damaged run learns of it, and only who may change it deletes it."""
    file, state = tmp_path / "tokens", tmp_path / "state"
    names = {"ada": "run", "bob": "run", "carol": "run,read-all", "dora": "run-all"}
    tokens = {name: new_token(file, name, scope) for name, scope in names.items()}
    options = ("--tokens-file", str(file), "--warm-kernels", "none")
    with Server(state, *options) as server:
        run_id = Caller(server.stub, tokens["ada"]).run(inline("1"))
    with closing(sqlite3.connect(state / "notebook-runner.db")) as db:
        db.execute("UPDATE runs SET run = replace(run, 'succeeded', 'failed')")
        db.commit()
    with Server(state, *options) as server:
        callers = {name: Caller(server.stub, token) for name, token in tokens.items()}
        lists = {name: one.call("List", pb.ListRequest()).damaged_run_ids for name, one in callers.items()}
        assert lists == {"ada": [run_id], "bob": [], "carol": [run_id], "dora": [run_id]}
        get, delete = pb.GetRequest(run_id=run_id), pb.DeleteRequest(run_id=run_id)
        assert callers["ada"].refused("Get", get).reason == "RUN_DAMAGED"
        assert callers["bob"].refused("Get", get).kind == HIDDEN
        assert callers["bob"].refused("Delete", delete).kind == HIDDEN
        assert callers["carol"].refused("Delete", delete).kind == NOT_OWNER
        callers["dora"].call("Delete", delete)
        assert callers["ada"].refused("Get", get).kind == HIDDEN


def test_certificates(tmp_path: Path) -> None:
    """With client certificates alone, the name in the certificate owns runs, and may do everything."""
    authority = trustme.CA()
    tls = TlsFolder(tmp_path, issue(authority), roots(authority))
    with Server(tmp_path / "state", *tls.options, "--queue", "1") as server:
        stubs = {}
        for name in ("ada", "bob"):
            pair = issue(authority, "127.0.0.1", common_name=name)
            stubs[name] = rpc.NotebookRunnerStub(secure_channel(server.target, roots(authority), pair))
        run = stubs["ada"].Start(inline("1", request_id="same"), timeout=SECONDS).run
        other = stubs["bob"].Start(inline("1", request_id="same"), timeout=SECONDS).run
        assert (run.owner, other.owner) == ("ada", "bob")
        assert list(stubs["bob"].Progress(pb.ProgressRequest(run_id=run.run_id), timeout=SECONDS))
        assert stubs["ada"].Get(pb.GetRequest(), timeout=SECONDS).run.run_id == run.run_id
        assert len(stubs["ada"].List(pb.ListRequest(), timeout=SECONDS).runs) == 2


def test_without_credentials(server: Server) -> None:
    """Where nobody is asked who calls, all is one owner without a name."""
    run = server.stub.Start(inline("1"), timeout=SECONDS).run
    assert run.owner == ""
    answer = server.stub.Info(pb.InfoRequest(), timeout=SECONDS)
    assert (answer.caller, set(answer.scopes)) == ("", {"read", "run", "read-all", "run-all", "admin"})
    assert server.stub.List(pb.ListRequest(owner="nobody"), timeout=SECONDS).runs == []


def test_runs_from_before_authentication(tmp_path: Path) -> None:
    """They have no owner: with tokens, only who may see all sees them; without tokens, everyone sees all."""
    file, state = tmp_path / "tokens", tmp_path / "state"
    tokens = {scope: new_token(file, "ada", scope) for scope in ("run", "run-all")}
    with Server(state, "--warm-kernels", "none") as server:
        run_id = server.stub.Start(inline("1"), timeout=SECONDS).run.run_id
        list(server.stub.Progress(pb.ProgressRequest(), timeout=SECONDS))
    with Server(state, "--warm-kernels", "none", "--tokens-file", str(file)) as server:
        ada = Caller(server.stub, tokens["run"])
        assert ada.refused("Get", pb.GetRequest(run_id=run_id)).kind == HIDDEN
        assert Caller(server.stub, tokens["run-all"]).list() == [run_id]
        own = ada.run(inline("1"))
    with Server(state, "--warm-kernels", "none") as server:
        assert server.stub.Get(pb.GetRequest(), timeout=SECONDS).run.run_id == own
        assert len(server.stub.List(pb.ListRequest(), timeout=SECONDS).runs) == 2


def test_the_log_and_the_metrics_name_owners(tmp_path: Path) -> None:
    """Lines of a run and the metrics have its owner; beyond a number of owners, metrics name no more."""
    with team_of(tmp_path, "--metrics-listen", "127.0.0.1:0") as team:
        for who in ("ada:run", "bob:run"):
            team(who).run(inline("1"))
        assert [line["owner"] for line in team.server.logged("run", count=2)] == ["ada", "bob"]
        page = scrape(team.server)
        for name in ("ada", "bob"):
            assert page.value("owner_runs_ended_total", owner=name, state="succeeded") == 1
            assert page.value("owner_runs", owner=name, state="running") == 0


MARKER = "marker-of-bob"
REQUEST = "request-of-bob"


@pytest.fixture(scope="module")
def secrets(team: Team) -> frozenset[str]:
    """What nobody but bob may see: the ids of his runs, and all that he gave and got."""
    bob = team("bob:run")
    cells = (f"print('{MARKER}')", f"raise ValueError('{MARKER}')")
    given = {"name": MARKER, "labels": {MARKER: MARKER}}
    run_ids = [bob.run(inline(*cells, request_id=one, **given)) for one in (REQUEST, "")]
    run_ids.append(bob.start(inline(f"print('{MARKER}')", "import time; time.sleep(600)", name=MARKER)))
    return frozenset([MARKER, *run_ids])


ids = st.sampled_from(["bob", "part", "random part", "short", "empty", "unknown", "own"])
steps = st.one_of(
    st.tuples(st.sampled_from(["Get", "Kill", "Delete"]), ids),
    st.tuples(st.just("Progress"), ids, st.sampled_from([0, 1, 5, -1]), st.sampled_from([0, 2**20])),
    st.tuples(
        st.just("Output"), ids, st.sampled_from(["", "error", "files", "html", "x"]), st.sampled_from([0, 5])
    ),
    st.tuples(st.just("List"), st.sampled_from(["", "bob", "ada"]), st.sampled_from([{}, {MARKER: MARKER}])),
    st.tuples(st.just("Start"), st.sampled_from([REQUEST, "", "own"])),
    st.tuples(st.just("Info")),
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(sequence=st.lists(steps, max_size=12), number=st.integers(0, 2))
def test_no_sequence_of_calls_shows_a_byte_of_others(
    team: Team, secrets: frozenset[str], sequence: list[Any], number: int
) -> None:
    """Whatever ada calls, in whatever order, no answer and no error has anything of bob's in it."""
    ada = team("ada:run")
    target = sorted(one for one in secrets if one != MARKER)[number]
    names = {
        "bob": target,
        "part": target[:-2],
        "random part": target.rpartition("-")[2][:6],
        "short": target[:2],
        "empty": "",
        "unknown": "20260101-000000-01234567",
        "own": team.run_in("ended"),
    }
    for step in sequence:
        method, request = _request(step, names)
        given_by_ada = request.SerializeToString()
        try:
            answer = ada.call(method, request)
            shown = b"".join(
                one.SerializeToString() for one in (answer if isinstance(answer, list) else [answer])
            )
        except grpc.RpcError as error:
            trailers = error.trailing_metadata() or ()
            shown = str((error.details(), trailers)).encode()
        for secret in secrets:
            # An error may repeat what was asked.
            if secret.encode() not in given_by_ada:
                assert secret.encode() not in shown, (method, request)
            elif method in ("Get", "Output", "Progress", "Kill", "Delete"):
                assert b"RUN_NOT_FOUND" in shown or b"INVALID" in shown or b"UNKNOWN_FORMAT" in shown, (
                    method,
                    shown,
                )
    assert target in team("bob:run").list()


def _request(step: Any, names: dict[str, str]) -> tuple[str, Message]:
    match step:
        case ("Progress", name, after, content_bytes):
            return "Progress", pb.ProgressRequest(
                run_id=names[name],
                after_sequence=after,
                snapshot_only=True,
                display_data_max_bytes=content_bytes,
            )
        case ("Output", name, format_, as_of):
            return "Output", pb.OutputRequest(run_id=names[name], format=format_, as_of_sequence=as_of)
        case ("List", owner, labels):
            return "List", pb.ListRequest(owner=owner, labels=labels)
        case ("Start", request_id):
            return "Start", inline("1", request_id=request_id)
        case ("Info",):
            return "Info", pb.InfoRequest()
        case (method, name):
            return method, getattr(pb, f"{method}Request")(run_id=names[name])
    raise AssertionError(step)
